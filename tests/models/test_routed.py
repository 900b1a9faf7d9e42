"""Evaluation that runs only the chosen blocks, against the two-branch form."""

import pytest
import torch
from test_models import perturb_

from gumbel_softmax import POLICIES, added_at_test_time, gumbel_noise
from methods.baselines import PlainNetwork
from methods.registry import build_method
from models.folding import folded
from models.resnet26 import resnet26
from models.routed import RoutedNet


@pytest.fixture
def method():
    """A SpotTune method whose copies, statistics and decisions all differ."""
    torch.manual_seed(0)
    method = build_method("spottune", resnet26(5, width=4), 4)
    perturb_(method)
    for pair in method.net.pairs:
        perturb_(pair.fine_tuned, seed=5)
    method.train()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        images = 2 * torch.randn(16, 3, 16, 16, generator=generator) + 1
        method(images, gumbel_noise((16, 12, 2), generator))
    return method.eval()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@torch.no_grad()
def test_routed_scores_are_those_of_both_branches(share, channels_last, method):
    images = torch.randn(9, 3, 32, 16)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    decisions = (torch.rand(9, 12, generator=torch.Generator().manual_seed(1)) < share).float()
    close(RoutedNet(method.net)(images, decisions), method.net(images, decisions))


@pytest.mark.parametrize("policy", POLICIES)
@torch.no_grad()
def test_the_evaluator_decides_and_answers_as_the_method_does(policy, method):
    images = torch.randn(32, 3, 16, 16)
    noise = added_at_test_time(policy, 32, 12, torch.Generator().manual_seed(0))
    (ours, routed), (theirs, both) = method.evaluator()(images, noise), method(images, noise)
    assert torch.equal(routed, both)
    if policy in ("finetuned", "kept"):
        assert (routed == (policy == "finetuned")).all()
    else:
        assert 0 < routed.mean() < 1
    close(ours, theirs)


@torch.no_grad()
def test_each_image_runs_one_block_of_each_pair(method):
    """Counted by hooks: the routed network does half of the two-branch network's work."""
    routed = RoutedNet(method.net)
    images_through = [0, 0]
    for pair in routed.net.pairs:
        for copy, block in enumerate((pair.kept, pair.fine_tuned)):

            def count(module, inputs, output, copy=copy):
                images_through[copy] += len(output)

            block.register_forward_hook(count)
    decisions = torch.rand(10, 12, generator=torch.Generator().manual_seed(2)) < 0.3
    routed(torch.randn(10, 3, 16, 16), decisions)
    assert images_through == [int((~decisions).sum()), int(decisions.sum())]


@torch.no_grad()
def test_folding_batch_norm_changes_nothing(method):
    images = torch.randn(4, 3, 16, 16)
    net = method.policy_net
    close(folded(net)(images), net(images))
    left = [name for name, m in folded(net).named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert left == ["resnet.head.bn"]  # it follows a ReLU, so that no convolution can take it in


@torch.no_grad()
def test_an_evaluator_is_a_copy(method):
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    evaluator = method.evaluator()
    for parameter in evaluator.parameters():
        parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


@torch.no_grad()
def test_a_plain_network_is_folded_too():
    net = PlainNetwork(resnet26(5, width=4))
    net(torch.randn(8, 3, 16, 16), None)
    images = torch.randn(4, 3, 16, 16)
    close(net.eval().evaluator()(images, None)[0], net(images, None)[0])
