"""Evaluation that runs only the chosen blocks, against the two-branch form; all in float64."""

import pytest
import torch
from networks import BLOCKS, batch, tiny_method

from gumbel_softmax import POLICIES, added_at_test_time
from models.folding import folded
from models.routed import RoutedNet


@pytest.fixture
def method():
    """A SpotTune method whose copies, statistics and decisions all differ."""
    method = tiny_method().double()
    for seed in range(3):
        images, _, noise = batch(seed, 16)
        method(2 * images.double() + 1, noise)
    return method.eval()


def images_of(count, height=16):
    return batch(9, count, height)[0].double()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@torch.no_grad()
def test_routed_scores_are_those_of_both_branches(share, channels_last, method):
    images = images_of(9, 32)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    decisions = torch.rand(9, BLOCKS, generator=torch.Generator().manual_seed(1)) < share
    ours, theirs = RoutedNet(method.net)(images, decisions), method.net(images, decisions)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("policy", POLICIES)
@torch.no_grad()
def test_the_evaluator_decides_and_answers_as_the_method_does(policy, method):
    images = images_of(32)
    noise = added_at_test_time(policy, 32, BLOCKS, torch.Generator().manual_seed(0))
    (ours, routed), (theirs, both) = method.evaluator()(images, noise), method(images, noise)
    assert torch.equal(routed, both)
    if policy in ("finetuned", "kept"):
        assert (routed == (policy == "finetuned")).all()
    else:
        assert 0 < routed.mean() < 1
    torch.testing.assert_close(ours, theirs)


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
    decisions = torch.rand(10, BLOCKS, generator=torch.Generator().manual_seed(2)) < 0.3
    routed(images_of(10), decisions)
    assert images_through == [int((~decisions).sum()), int(decisions.sum())]


@torch.no_grad()
def test_folding_batch_norm_changes_nothing(method):
    net, images = method.policy_net, images_of(4)
    torch.testing.assert_close(folded(net)(images), net(images))
    remaining = [n for n, m in folded(net).named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert remaining == ["resnet.head.bn"]  # it follows a ReLU: no convolution can take it in
    plain = tiny_method("finetune").double().eval()
    torch.testing.assert_close(plain.evaluator()(images, None)[0], plain(images, None)[0])


@torch.no_grad()
def test_an_evaluator_is_a_copy(method):
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    evaluator = method.evaluator()
    for parameter in evaluator.parameters():
        parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
