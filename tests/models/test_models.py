"""The networks, against the paper's counts and an independent, slow computation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from reference import decide, resnet, sgd_step
from released_files import released_names

from agent_net import PolicyNet
from engine.step import Trainer
from gumbel_softmax import gumbel_noise
from methods.optimizers import POLICY_WEIGHT_DECAY, Rates
from methods.registry import build_method
from models.resnet26 import BasicBlock, ResNet, resnet26
from models.spottune import BlockPair, SpotTuneNet
from runtime.devices import Compute
from weights.source_weights import our_name

CPU = Compute(torch.device("cpu"), "fp32")


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def perturb_(module, seed=3):
    """Give every parameter and running statistic a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
            tensor[tensor == 0] = 0.1  # shifts and means start at zero


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


def test_only_the_kept_convolutions_are_frozen():
    net = SpotTuneNet(resnet26(10, width=4))
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {f"pairs.{i}.kept.conv{j}.weight" for i in range(12) for j in (1, 2)}


def test_the_kept_blocks_batch_norm_trains_and_follows_the_new_task():
    """As in the released code: surprising in a branch that is called frozen."""
    pair = BlockPair(BasicBlock(4, 4, 1))
    pair(torch.randn(8, 4, 8, 8) + 5, torch.zeros(8)).sum().backward()
    assert pair.kept.bn1.weight.grad is not None
    assert pair.kept.conv1.weight.grad is None
    assert not torch.equal(pair.kept.bn1.running_mean, torch.zeros(4))


def tiny_spottune_and_its_source():
    torch.manual_seed(0)
    pretrained = resnet26(5, width=4)
    perturb_(pretrained)
    return SpotTuneNet(copy.deepcopy(pretrained)).eval(), pretrained.eval()


@torch.no_grad()
def test_an_image_that_never_picks_fine_tuning_gets_the_pretrained_network():
    spottune, pretrained = tiny_spottune_and_its_source()
    for pair in spottune.pairs:
        perturb_(pair.fine_tuned)  # fresh copies would give the same answer either way
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(spottune(images, torch.zeros(4, 12)), pretrained(images))


@torch.no_grad()
def test_an_image_that_always_picks_fine_tuning_gets_the_fine_tuned_network():
    spottune, fine_tuned = tiny_spottune_and_its_source()
    for pair in spottune.pairs:
        perturb_(pair.kept)
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(spottune(images, torch.ones(4, 12)), fine_tuned(images))


@torch.no_grad()
def test_each_image_takes_its_own_path_through_the_blocks():
    spottune, pretrained = tiny_spottune_and_its_source()
    for pair in spottune.pairs:
        perturb_(pair.fine_tuned)
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    decisions = torch.randint(0, 2, (6, 12), generator=torch.Generator().manual_seed(0)).float()
    scores = spottune(images, decisions)
    for image, path, expected in zip(images, decisions, scores, strict=True):
        x = spottune.stem(image[None])
        for pair, choice in zip(spottune.pairs, path, strict=True):
            x = pair.fine_tuned(x) if choice else pair.kept(x)
        torch.testing.assert_close(spottune.head(x)[0], expected, rtol=1e-5, atol=1e-5)


def test_decisions_for_another_number_of_blocks_are_refused():
    with pytest.raises(ValueError, match="zip"):
        SpotTuneNet(resnet26(2, width=4))(torch.randn(2, 3, 16, 16), torch.zeros(2, 11))


def test_any_network_with_stem_blocks_and_head_can_be_paired():
    net = ResNet(7, width=4, blocks_per_stage=(1, 2))
    assert SpotTuneNet(net)(torch.randn(2, 3, 8, 8), torch.ones(2, 3)).shape == (2, 7)


class Reference:
    """The slow second form: its weights start as copies of a SpotTune method's."""

    def __init__(self, method):
        def copies(tensors, wanted):
            return {name: tensors[our_name(name)].double().clone() for name in wanted}

        net = method.net.state_dict()
        names = list(released_names(4))
        kept = {
            key.replace("pairs.", "blocks.").replace(".kept.", "."): v for key, v in net.items()
        }
        tuned = {
            key.replace("pairs.", "blocks.").replace(".fine_tuned.", "."): net[key] for key in net
        }
        policy = {}
        for key, value in method.policy_net.resnet.state_dict().items():
            parts = key.split(".")  # its stages have one block each: block 1 is layer2.0
            if parts[0] == "blocks":
                key = ".".join(["blocks", str(4 * int(parts[1])), *parts[2:]])
            policy[key] = value
        self.kept = copies(kept, names)
        self.tuned = copies(tuned, [name for name in names if name.startswith("layer")])
        self.policy = copies(policy, list(released_names(1)))
        self.trained_net = {name: t for name, t in self.kept.items() if "conv.w" not in name}
        stem = "pre_layers_conv.conv.weight"
        self.trained_net[stem] = self.kept[stem]
        self.trained_net |= {f"tuned.{name}": tensor for name, tensor in self.tuned.items()}
        self.momenta, self.policy_momenta = {}, {}

    def step(self, images, labels, noise, lr, lr_agent, weight_decay):
        """Loss, logits and gradients of one batch; then both optimisers' steps."""
        leaves = [*self.trained_net.values(), *self.policy.values()]
        for leaf in leaves:
            leaf.requires_grad_(True)
        logits = resnet(images, self.policy, num_blocks=1)
        scores = resnet(images, self.kept, 4, decide(logits, noise), self.tuned)
        loss = -torch.log_softmax(scores, dim=1)[torch.arange(len(labels)), labels].mean()
        gradients = torch.autograd.grad(loss, leaves)
        for leaf in leaves:
            leaf.requires_grad_(False)
        split = len(self.trained_net)
        of_net = dict(zip(self.trained_net, gradients[:split], strict=True))
        of_policy = dict(zip(self.policy, gradients[split:], strict=True))
        sgd_step(self.trained_net, of_net, self.momenta, lr, weight_decay)
        sgd_step(self.policy, of_policy, self.policy_momenta, lr_agent, 1e-3)
        return loss.item(), scores.detach(), of_net, of_policy


@pytest.mark.parametrize("height", [16, 32], ids=["16 x 16", "32 x 16, upright like daimlerpedcls"])
def test_losses_logits_gradients_and_steps_are_those_of_the_slow_form(height):
    torch.manual_seed(0)
    method = build_method("spottune", resnet26(5, width=4), 4).double().train()
    perturb_(method)
    reference = Reference(method)
    trainer = Trainer(method, Rates(network=0.1, policy=0.01, weight_decay=5e-4), CPU, 6)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(6, 3, height, 16, generator=generator).double()
        labels = torch.randint(0, 5, (6,), generator=generator)
        noise = gumbel_noise((6, 12, 2), generator).double()
        loss, scores, of_net, of_policy = reference.step(images, labels, noise, 0.1, 0.01, 5e-4)
        state = copy.deepcopy(method.state_dict())
        ours = method(images, noise)[0]
        torch.testing.assert_close(ours.detach(), scores, rtol=1e-5, atol=1e-5)
        method.load_state_dict(state)
        result = trainer.step(images, labels, noise)
        assert result.loss_sum.item() / 6 == pytest.approx(loss, rel=1e-5)
        check_gradients(method, of_net, of_policy)
    check_weights(method, reference)


def check_gradients(method, of_net, of_policy):
    """Every tensor that trains got the slow form's gradient; equation 2 and the gate are right."""
    ours = {name: p.grad for name, p in method.net.named_parameters() if p.requires_grad}
    assert len(ours) == len(of_net)
    for name, gradient in of_net.items():
        torch.testing.assert_close(ours[name_in_pairs(name)], gradient, rtol=1e-4, atol=1e-6)
    policy = dict(method.policy_net.resnet.named_parameters())
    assert len(policy) == len(of_policy)
    for name, gradient in of_policy.items():
        torch.testing.assert_close(
            policy[name_in_policy(name)].grad, gradient, rtol=1e-4, atol=1e-6
        )


def check_weights(method, reference):
    ours = method.net.state_dict()
    for name, tensor in reference.trained_net.items():
        torch.testing.assert_close(ours[name_in_pairs(name)], tensor, rtol=1e-5, atol=1e-6)
    policy = method.policy_net.resnet.state_dict()
    for name, tensor in reference.policy.items():
        torch.testing.assert_close(policy[name_in_policy(name)], tensor, rtol=1e-5, atol=1e-6)


def name_in_pairs(name):
    copy_of = "fine_tuned" if name.startswith("tuned.") else "kept"
    ours = our_name(name.removeprefix("tuned."))
    if not ours.startswith("blocks."):
        return ours
    _, block, rest = ours.split(".", 2)
    return f"pairs.{block}.{copy_of}.{rest}"


def name_in_policy(name):
    ours = our_name(name)
    if not ours.startswith("blocks."):
        return ours
    _, block, rest = ours.split(".", 2)
    return f"blocks.{int(block) // 4}.{rest}"


def test_the_policy_learns_from_the_same_loss():
    torch.manual_seed(0)
    method = build_method("spottune", resnet26(2, width=4), 4).train()
    for pair in method.net.pairs:
        perturb_(pair.fine_tuned)  # between equal copies there is nothing to learn
    noise = gumbel_noise((4, 12, 2), torch.Generator().manual_seed(0))
    scores, _ = method(torch.randn(4, 3, 16, 16), noise)
    F.cross_entropy(scores, torch.tensor([0, 1, 0, 1])).backward()
    assert method.policy_net.resnet.head.linear.weight.grad.abs().sum() > 0
    assert POLICY_WEIGHT_DECAY == 1e-3


def test_without_noise_or_in_evaluation_decisions_are_exactly_0_or_1():
    method = build_method("spottune", resnet26(2, width=4), 4).eval()
    images = torch.randn(4, 3, 16, 16)
    noise = gumbel_noise((4, 12, 2), torch.Generator().manual_seed(0))
    for draw in (torch.zeros(4, 12, 2), noise):
        assert set(method(images, draw)[1].unique().tolist()) <= {0.0, 1.0}
