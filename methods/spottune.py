"""SpotTune: the two-branch network and its policy network, trained by one loss.

Guo et al., sections 3.1 and 3.2. Stochastic fine-tuning is the same with random decisions.
"""

import torch
from torch import Tensor, nn

from gumbel_softmax import POLICIES, TEMPERATURE, likelier_decisions, sample_decisions
from methods.optimizers import POLICY_WEIGHT_DECAY, Rates, optimizers
from models.folding import folded
from models.routed import RoutedNet
from models.spottune import SpotTuneNet


class SpotTune(nn.Module):
    """The two-branch network and its policy network: one loss trains both.

    `pretrained`: any network with a stem, blocks and a head, such as a ResidualNetwork, and
    `policy_net`: any module that takes its images to logits N x L x 2, one pair a block.
    `kept_norm`: see BlockPair. `temperature` of the Gumbel-softmax may be set anew before each
    epoch; a compiled training step is compiled again for each new value.
    """

    policies = POLICIES

    def __init__(
        self,
        pretrained: nn.Module,
        policy_net: nn.Module,
        kept_norm: str = "train",
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__()
        self.num_blocks = len(pretrained.blocks)
        self.net = SpotTuneNet(pretrained, kept_norm)
        self.policy_net = policy_net
        self.temperature = temperature

    def forward(self, images: Tensor, noise_NL2: Tensor) -> tuple[Tensor, Tensor]:
        logits_NL2 = self.policy_net(images)
        if self.training:
            decisions_NL = sample_decisions(logits_NL2, noise_NL2, self.temperature)
        else:
            decisions_NL = likelier_decisions(logits_NL2 + noise_NL2)
        return self.net(images, decisions_NL), decisions_NL

    def penalty(self, decisions_NL: Tensor) -> Tensor | float:
        return 0.0

    def evaluator(self) -> nn.Module:
        return RoutedSpotTune(self)

    def kept_for_predicting(self) -> nn.Module:
        return self

    def optimizers(self, rates: Rates) -> list[torch.optim.Optimizer]:
        return optimizers(
            rates.optimizer,
            (self.net, rates.network, rates.weight_decay),
            (self.policy_net, rates.policy, POLICY_WEIGHT_DECAY),
        )


class RoutedSpotTune(nn.Module):
    """A copy of a SpotTune method that only predicts: each image runs the blocks it chose."""

    def __init__(self, method: SpotTune) -> None:
        super().__init__()
        self.num_blocks = method.num_blocks
        self.net = RoutedNet(method.net)
        self.policy_net = folded(method.policy_net)

    def forward(self, images: Tensor, noise_NL2: Tensor) -> tuple[Tensor, Tensor]:
        decisions_NL = likelier_decisions(self.policy_net(images) + noise_NL2)
        return self.net(images, decisions_NL), decisions_NL


class FairCoin(nn.Module):
    """A policy without parameters that ignores the image: equal logits for both branches."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.num_blocks = num_blocks

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), self.num_blocks, 2, dtype=torch.float32)


class Stochastic(SpotTune):
    """Stochastic fine-tuning: each image flips a fair coin for each of its decisions.

    At test time too. With equal logits no decision is likelier, so there is no "argmax".
    """

    policies = POLICIES[1:]

    def __init__(self, pretrained: nn.Module, kept_norm: str = "train") -> None:
        super().__init__(pretrained, FairCoin(len(pretrained.blocks)), kept_norm)
