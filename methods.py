"""The ways of learning a task: which network, how its decisions are made, what the loss adds.

A method is a module with the three calls that training and evaluation share:

    method(images, noise) -> scores N x K and decisions N x L, or None where it has none
    method.optimizers(rates) -> its optimisers, one learning rate each
    method.evaluator() -> a copy for predicting, quicker, with the same call and the same answers

Shapes (N images, L blocks, K classes): images N x 3 x H x W, noise N x L x 2 of Gumbel(0, 1), or
None for the likelier decision.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent_net import PolicyNet
from errors import SpotTuneError
from gumbel_softmax import hard_decisions, sample_decisions
from models.folding import folded
from models.resnet26 import ResNet, resnet26
from models.routed import RoutedNet
from models.spottune import SpotTuneNet

MOMENTUM = 0.9
POLICY_WEIGHT_DECAY = 1e-3
FUSED_DEVICES = ("cpu", "cuda")  # where one kernel can update all tensors


@dataclass(frozen=True)
class Rates:
    """Learning rates of the network and of the policy network; weight decay of the network."""

    network: float
    policy: float
    weight_decay: float


class PlainNetwork(nn.Module):
    """One network without decisions: how the source task is trained."""

    num_blocks = 0  # that need a decision

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, noise_NL2: Tensor | None) -> tuple[Tensor, None]:
        return self.net(images), None

    def evaluator(self) -> "PlainNetwork":
        return PlainNetwork(folded(self.net))

    def optimizers(self, rates: Rates) -> list[torch.optim.Optimizer]:
        return [_sgd(self.net, rates.network, rates.weight_decay)]


class SpotTune(nn.Module):
    """The two-branch network and its policy network: one loss trains both."""

    def __init__(self, pretrained: ResNet, width: int) -> None:
        super().__init__()
        self.num_blocks = len(pretrained.blocks)
        self.net = SpotTuneNet(pretrained)
        self.policy_net = PolicyNet(self.num_blocks, width)

    def forward(self, images: Tensor, noise_NL2: Tensor | None) -> tuple[Tensor, Tensor]:
        logits_NL2 = self.policy_net(images)
        if self.training:
            decisions_NL = sample_decisions(logits_NL2, noise_NL2)
        else:
            decisions_NL = hard_decisions(logits_NL2, noise_NL2)
        return self.net(images, decisions_NL), decisions_NL

    def evaluator(self) -> "RoutedSpotTune":
        return RoutedSpotTune(self)

    def optimizers(self, rates: Rates) -> list[torch.optim.Optimizer]:
        return [
            _sgd(self.net, rates.network, rates.weight_decay),
            _sgd(self.policy_net, rates.policy, POLICY_WEIGHT_DECAY),
        ]


class RoutedSpotTune(nn.Module):
    """A copy of a SpotTune method that only predicts: each image runs the blocks it chose."""

    def __init__(self, method: SpotTune) -> None:
        super().__init__()
        self.net = RoutedNet(method.net)
        self.policy_net = folded(method.policy_net)

    def forward(self, images: Tensor, noise_NL2: Tensor | None) -> tuple[Tensor, Tensor]:
        decisions_NL = hard_decisions(self.policy_net(images), noise_NL2)
        return self.net(images, decisions_NL), decisions_NL


def build_method(kind: str, num_classes: int, width: int) -> nn.Module:
    """An untrained method of the given kind: "source" or "spottune"."""
    net = resnet26(num_classes, width)
    if kind == "source":
        return PlainNetwork(net)
    if kind == "spottune":
        return SpotTune(net, width)
    raise SpotTuneError(f"a method of kind {kind!r} was found; expected source or spottune")


def _sgd(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.SGD:
    """SGD over everything in `module` that trains: BN included, kept convolutions not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fused = all(parameter.device.type in FUSED_DEVICES for parameter in trained)
    return torch.optim.SGD(
        trained, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay, fused=fused
    )
