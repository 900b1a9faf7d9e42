"""The networks, against the paper's counts and an independent, slow computation."""

import copy
import re

import pytest
import reference
import torch
import torch.nn.functional as F
from networks import BLOCKS, CPU, batch, perturb_, tiny_method, tiny_spottune_and_its_source
from released_files import released_names

from agent_net import PolicyNet
from engine.step import Trainer
from methods.optimizers import POLICY_WEIGHT_DECAY, Rates
from models.resnet26 import BasicBlock, ResNet, resnet26
from models.spottune import BlockPair, SpotTuneNet
from weights.source_weights import our_name


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def test_the_two_branch_network_has_the_papers_parameters():
    net = SpotTuneNet(resnet26(10))
    assert count(net.parameters()) == 11_630_506
    assert count(p for p in net.parameters() if p.requires_grad) == 5_824_426


def test_the_policy_network_has_the_released_ones_used_parameters():
    assert count(PolicyNet(12).parameters()) == 1_170_616


def test_resnet26_has_12_blocks_in_three_stages():
    channels = [block.conv2.out_channels for block in resnet26(10).blocks]
    assert channels == [64] * 4 + [128] * 4 + [256] * 4
    assert [block.stride for block in resnet26(10).blocks] == [2, 1, 1, 1] * 3


def test_convolutions_start_he_normal_over_their_outputs():
    weight = BasicBlock(64, 128, 2).conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)


def test_running_statistics_take_a_tenth_of_each_batch_in_all_of_batch_norm():
    """As in the released code, which leaves PyTorch's defaults."""
    norms = [m for m in tiny_method().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == (1 + 2 * 2 * BLOCKS + 1) + (1 + 2 * 3 + 1)
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-5)}


def test_the_kept_blocks_batch_norm_trains_and_follows_the_new_task():
    """As in the released code: surprising in a branch that is called frozen."""
    pair = BlockPair(BasicBlock(4, 4, 1))
    pair(torch.randn(8, 4, 8, 8) + 5, torch.zeros(8)).sum().backward()
    assert pair.kept.bn1.weight.grad is not None
    assert pair.kept.conv1.weight.grad is None
    assert not torch.equal(pair.kept.bn1.running_mean, torch.zeros(4))


@torch.no_grad()
def test_an_image_that_never_picks_fine_tuning_gets_the_pretrained_network():
    spottune, pretrained = tiny_spottune_and_its_source()
    for pair in spottune.pairs:
        perturb_(pair.fine_tuned)  # fresh copies would give the same answer either way
    images = batch()[0].double()
    torch.testing.assert_close(spottune(images, torch.zeros(8, BLOCKS)), pretrained(images))


@torch.no_grad()
def test_an_image_that_always_picks_fine_tuning_gets_the_fine_tuned_network():
    spottune, fine_tuned = tiny_spottune_and_its_source()
    for pair in spottune.pairs:
        perturb_(pair.kept)
    images = batch()[0].double()
    torch.testing.assert_close(spottune(images, torch.ones(8, BLOCKS)), fine_tuned(images))


@torch.no_grad()
def test_each_image_takes_its_own_path_through_the_blocks():
    spottune, _ = tiny_spottune_and_its_source()
    for pair in spottune.pairs:
        perturb_(pair.fine_tuned)
    images = batch()[0].double()
    decisions = torch.randint(0, 2, (8, BLOCKS), generator=torch.Generator().manual_seed(0))
    scores = spottune(images, decisions)
    for image, path, expected in zip(images, decisions, scores, strict=True):
        x = spottune.stem(image[None])
        for pair, choice in zip(spottune.pairs, path, strict=True):
            x = pair.fine_tuned(x) if choice else pair.kept(x)
        torch.testing.assert_close(spottune.head(x)[0], expected)


def test_decisions_for_another_number_of_blocks_are_refused():
    with pytest.raises(ValueError, match="zip"):
        tiny_method().net(batch()[0], torch.zeros(8, BLOCKS - 1))


def test_any_network_with_stem_blocks_and_head_can_be_paired():
    net = ResNet(7, width=4, blocks_per_stage=(1, 2))
    assert SpotTuneNet(net)(torch.randn(2, 3, 8, 8), torch.ones(2, 3)).shape == (2, 7)


def name_in_pairs(name):
    """Our name of a released tensor in the two-branch network, after "tuned." of its copy."""
    copy_of = "fine_tuned" if name.startswith("tuned.") else "kept"
    return re.sub(r"^blocks\.(\d+)", rf"pairs.\1.{copy_of}", our_name(name.removeprefix("tuned.")))


def name_in_policy(name):
    """Its stages have one block each: block 4 of the backbone is its block 1."""
    return re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 4}", our_name(name))


def slow_form(method):
    """The slow second form: its weights start as copies of a SpotTune method's."""
    net, policy = method.net.state_dict(), method.policy_net.resnet.state_dict()
    names = list(released_names(4))
    tuned = [name for name in names if name.startswith("layer")]
    return reference.SpotTune(
        {name: net[name_in_pairs(name)].clone() for name in names},
        {name: net[name_in_pairs(f"tuned.{name}")].clone() for name in tuned},
        {name: policy[name_in_policy(name)].clone() for name in released_names(1)},
    )


@pytest.mark.parametrize("height", [16, 32], ids=["16 x 16", "32 x 16, upright like daimlerpedcls"])
def test_losses_logits_gradients_and_steps_are_those_of_the_slow_form(height):
    """Every tensor that trains gets the slow form's gradient: equation 2 and the gate are right."""
    method = tiny_method().double()
    net, policy = method.net, method.policy_net.resnet
    slow = slow_form(method)
    trainer = Trainer(method, Rates(network=0.1, policy=0.01, weight_decay=5e-4), CPU, 8)
    for seed in range(4):
        images, labels, noise = batch(seed, height=height)
        images, noise = images.double(), noise.double()
        loss, scores, _, of_net, of_policy = slow.step(images, labels, noise, 0.1, 0.01, 5e-4)
        state = copy.deepcopy(method.state_dict())
        close(method(images, noise)[0].detach(), scores)
        method.load_state_dict(state)
        result = trainer.step(images, labels, noise)
        assert result.loss.item() / 8 == pytest.approx(loss, rel=1e-9)
        ours = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
        close(ours, {name_in_pairs(name): gradient for name, gradient in of_net.items()})
        ours = {name: p.grad for name, p in policy.named_parameters()}
        close(ours, {name_in_policy(name): gradient for name, gradient in of_policy.items()})
    ours = {name: p.data for name, p in net.named_parameters() if p.requires_grad}
    close(ours, {name_in_pairs(name): t for name, t in slow.trained_net.items()})
    ours = {name: p.data for name, p in policy.named_parameters()}
    close(ours, {name_in_policy(name): t for name, t in slow.trained_policy.items()})


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_policy_learns_from_the_same_loss():
    method = tiny_method()
    images, labels, noise = batch()
    F.cross_entropy(method(images, noise)[0], labels).backward()
    assert method.policy_net.resnet.head.linear.weight.grad.abs().sum() > 0
    assert POLICY_WEIGHT_DECAY == 1e-3


def test_in_evaluation_decisions_are_exactly_0_or_1_with_noise_and_without():
    method = tiny_method().eval()
    images, _, noise = batch()
    for draw in (torch.zeros_like(noise), noise):
        assert set(method(images, draw)[1].unique().tolist()) <= {0.0, 1.0}
