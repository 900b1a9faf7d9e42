"""Pairs, routing and policies for images, volumes and tokens, as in networks for each of these."""

import copy

import pytest
import torch
from networks import perturb_
from torch import nn

from agent_net import PolicyNet, averaged_down
from gumbel_softmax import gumbel_noise
from methods.optimizers import Rates
from methods.spottune import SpotTune, Stochastic
from models.residual import Head, ResidualNetwork
from models.routed import RoutedNet
from models.spottune import BlockPair, SpotTuneNet, mixed

CHANNELS, CLASSES, BLOCKS = 6, 3, 2


class Residual(nn.Module):
    """x + norm(layer(x))."""

    def __init__(self, layer, norm):
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x):
        return torch.relu(x + self.norm(self.layer(x)))


class Mean(nn.Module):
    """The mean over some dimensions."""

    def __init__(self, *dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.mean(dim=self.dims)


def conv(dimensions, norm):
    kind = nn.Conv2d if dimensions == 2 else nn.Conv3d
    return Residual(kind(CHANNELS, CHANNELS, 3, padding=1, bias=False), norm)


def image_network(norm=nn.BatchNorm2d):
    stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
    blocks = [conv(2, norm(CHANNELS)) for _ in range(BLOCKS)]
    return ResidualNetwork(stem, blocks, Head(Mean(2, 3), nn.Linear(CHANNELS, CLASSES)))


def volume_network():
    """As for medical scans: one channel, depth x height x width."""
    stem = nn.Conv3d(1, CHANNELS, 3, padding=1)
    blocks = [conv(3, nn.BatchNorm3d(CHANNELS)) for _ in range(BLOCKS)]
    return ResidualNetwork(stem, blocks, Head(Mean(2, 3, 4), nn.Linear(CHANNELS, CLASSES)))


def token_network():
    stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 4, stride=4), nn.Flatten(2), Transposed())
    blocks = [
        Residual(nn.Linear(CHANNELS, CHANNELS), nn.LayerNorm(CHANNELS)) for _ in range(BLOCKS)
    ]
    return ResidualNetwork(stem, blocks, Head(Mean(1), nn.Linear(CHANNELS, CLASSES)))


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


NETWORKS = {
    "images": (image_network, (3, 8, 8)),
    "group norm": (lambda: image_network(lambda channels: nn.GroupNorm(2, channels)), (3, 8, 8)),
    "volumes": (volume_network, (1, 3, 4, 5)),
    "tokens": (token_network, (3, 8, 8)),
}


@pytest.fixture(params=NETWORKS)
def source_and_inputs(request):
    """In evaluation and in float64."""
    build, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    source = build()
    perturb_(source)
    return source.double().eval(), torch.randn(6, *shape, dtype=torch.float64)


@torch.no_grad()
def test_each_image_gets_the_block_it_chose_in_both_forms(source_and_inputs):
    source, inputs = source_and_inputs
    net = SpotTuneNet(copy.deepcopy(source)).eval()
    torch.testing.assert_close(net(inputs, torch.ones(6, BLOCKS)), source(inputs))  # fresh copies
    for pair in net.pairs:
        perturb_(pair.fine_tuned, seed=7)
    torch.testing.assert_close(net(inputs, torch.zeros(6, BLOCKS)), source(inputs))
    decisions = torch.randint(0, 2, (6, BLOCKS), generator=torch.Generator().manual_seed(3))
    assert 0 < decisions.sum() < decisions.numel()
    scores = net(inputs, decisions)
    torch.testing.assert_close(RoutedNet(net)(inputs, decisions), scores)
    alone = net.single_branch(decisions[4].bool().tolist())
    torch.testing.assert_close(alone(inputs[4:5]), scores[4:5])


@pytest.mark.parametrize("kept_norm", ["train", "frozen"])
def test_nothing_in_a_kept_block_moves_but_batch_norm_if_that_is_asked(
    kept_norm, source_and_inputs
):
    source, inputs = source_and_inputs
    method = SpotTune(source, FirstPixel(), kept_norm).train()
    before = copy.deepcopy(method.state_dict())
    optimizers = method.optimizers(Rates(0.1, 0.1, 0.0))
    scores, _ = method(inputs, gumbel_noise((6, BLOCKS, 2), torch.Generator().manual_seed(0)))
    scores.square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    still = {name for name, t in method.state_dict().items() if torch.equal(t, before[name])}
    kept = {f"net.pairs.{n}.kept.{name}" for n in range(BLOCKS) for name in blocks_state(source)}
    has_statistics = any("running_mean" in name for name in kept)
    norm = {name for name in kept if ".norm." in name}
    assert still == (kept - norm if kept_norm == "train" and has_statistics else kept)


def blocks_state(source):
    return source.blocks[0].state_dict()


class FirstPixel(nn.Module):
    """A policy for inputs of any shape."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2 * BLOCKS, dtype=torch.float64)

    def forward(self, inputs):
        return self.linear(inputs.flatten(1)[:, :1]).unflatten(1, (-1, 2))


def test_frozen_batch_norm_normalises_by_the_sources_statistics_in_training_too():
    block = image_network().blocks[0]
    perturb_(block)
    source = copy.deepcopy(block).eval()
    pair = BlockPair(block, "frozen").train()
    x = torch.randn(4, CHANNELS, 5, 5)
    assert torch.equal(pair(x, torch.zeros(4)), source(x))
    with pytest.raises(ValueError, match="expected train or frozen"):
        BlockPair(block, "no")


def test_volumes_train_with_a_policy_network_for_volumes():
    torch.manual_seed(0)
    policy_net = nn.Sequential(
        nn.Conv3d(1, CHANNELS, 3, padding=1),
        conv(3, nn.BatchNorm3d(CHANNELS)),
        Mean(2, 3, 4),
        nn.Linear(CHANNELS, 2 * BLOCKS),
        nn.Unflatten(1, (BLOCKS, 2)),
    )
    for method in (SpotTune(volume_network(), policy_net), Stochastic(volume_network())):
        for pair in method.net.pairs:
            perturb_(pair.fine_tuned)  # while copies are equal, no decision matters
        volumes = torch.randn(6, 1, 3, 4, 5)
        noise = gumbel_noise((6, BLOCKS, 2), torch.Generator().manual_seed(1))
        scores, decisions = method.train()(volumes, noise)
        scores.square().sum().backward()
        trained = [p for p in method.parameters() if p.requires_grad]
        assert all(p.grad.abs().sum() > 0 for p in trained if p.dim() > 1)
        ours, theirs = method.eval().evaluator()(volumes, noise), method(volumes, noise)
        assert torch.equal(ours[1], theirs[1])
        torch.testing.assert_close(ours[0], theirs[0])


@pytest.mark.parametrize("shape", [(4, 5, 16, 16), (4, 5, 3, 8, 8), (4, 60, 20)])
def test_in_bf16_the_decisions_gradient_is_the_product_over_the_difference(shape):
    """The copies are nearly equal, as at the start; rounding each product would lose it."""
    torch.manual_seed(0)
    kept = torch.randn(shape) + 2
    fine_tuned = (kept + 0.02 * torch.randn(shape)).bfloat16().requires_grad_()
    kept, gradient = kept.bfloat16().requires_grad_(), torch.randn(shape).bfloat16()
    decisions = torch.tensor([0.0, 1.0, 1.0, 0.0]).requires_grad_()
    out = mixed(fine_tuned, kept, decisions)
    out.backward(gradient)
    assert torch.equal(out[0], kept[0])
    assert torch.equal(out[1], fine_tuned[1])
    exact = gradient.double() * (fine_tuned.double() - kept.double())
    exact = exact.flatten(1).sum(dim=1)
    assert ((decisions.grad - exact).norm() / exact.norm()) < 1e-6
    shaped = decisions.detach().bfloat16().view(-1, *[1] * (len(shape) - 1))
    assert torch.equal(fine_tuned.grad, gradient * shaped)
    assert torch.equal(kept.grad, gradient * (1 - shaped))


def test_the_bf16_mix_can_be_compiled():
    fine_tuned, kept = torch.randn(2, 3, 4, 5).bfloat16().unbind()
    gradients = []
    for mix in (mixed, torch.compile(mixed, backend="aot_eager", fullgraph=True)):
        decisions = torch.tensor([0.0, 1.0, 1.0]).requires_grad_()
        mix(fine_tuned, kept, decisions).float().square().sum().backward()
        gradients.append(decisions.grad)
    torch.testing.assert_close(*gradients)


def test_the_policy_network_sees_large_images_averaged_down_and_small_ones_as_they_are():
    images = torch.randn(2, 3, 64, 96)
    mean_of_4 = (images[..., ::2, ::2] + images[..., 1::2, ::2]) / 4
    mean_of_4 += (images[..., ::2, 1::2] + images[..., 1::2, 1::2]) / 4
    torch.testing.assert_close(averaged_down(images, 32), mean_of_4)
    assert torch.equal(averaged_down(images, 64), images)
    assert torch.equal(averaged_down(images, 200), images)
    assert averaged_down(torch.randn(1, 3, 225, 300), 72).shape[2:] == (72, 96)
    assert averaged_down(torch.randn(1, 3, 100, 100), 128).shape[2:] == (96, 96)  # a multiple of 8
    policy = PolicyNet(5, 4, input_size=32).eval()
    assert torch.equal(policy(images), policy(averaged_down(images, 32)))
    assert policy(images).shape == (2, 5, 2)


class SameLogits(nn.Module):
    """A policy that gives each image the same logits."""

    def __init__(self):
        super().__init__()
        self.logits_L2 = nn.Parameter(torch.tensor([[0.5, -1.0], [0.2, 2.0]]))

    def forward(self, images):
        return self.logits_L2.expand(len(images), -1, -1)


def test_the_temperature_can_be_set_before_each_epoch():
    method = SpotTune(image_network(), SameLogits(), temperature=2.0).train()
    images, noise = torch.randn(4, 3, 8, 8), torch.zeros(4, BLOCKS, 2)
    for temperature in (2.0, 0.7):
        method.temperature = temperature
        (ours,) = torch.autograd.grad(
            method(images, noise)[1].sum(), method.policy_net.parameters()
        )
        gap = torch.tensor([-1.5, 1.8])
        p = torch.sigmoid(gap / temperature)
        torch.testing.assert_close(ours[:, 1], 4 * p * (1 - p) / temperature)
