"""SpotTune (Global-k): all images of a task fine-tune the same k blocks."""

import torch
from torch import Tensor, nn

from gumbel_softmax import TEMPERATURE
from methods.baselines import PlainNetwork
from methods.spottune import SpotTune
from models.folding import folded

SHARE_MOMENTUM = 0.01  # of Global-k's running share: a mean over about the last 100 steps
SMALLEST_SHARE = 1e-4  # below it the entropy's gradient, log v, is cut off


class GlobalK(SpotTune):
    """SpotTune (Global-k): all images of a task fine-tune the same k blocks.

    Guo et al.; the formulas are second-hand. With v_l the fraction of a batch's images that use
    fine-tuned block l,

        L_k = (sum_l v_l - k)^2,   L_e = sum_l -v_l log v_l

    are added to the cross-entropy with the weights lambda_k and lambda_e. We did not find the
    paper's weights, how it estimates v_l, or how it arrives at exactly k blocks. Here v_l comes
    from the sampled decisions of the batch, and at test time every image uses the k fine-tuned
    blocks with the largest running mean of v_l.
    """

    policies = ()

    def __init__(
        self,
        pretrained: nn.Module,
        policy_net: nn.Module,
        k: int,
        lambda_k: float,
        lambda_e: float,
        kept_norm: str = "train",
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__(pretrained, policy_net, kept_norm, temperature)
        self.k, self.lambda_k, self.lambda_e = k, lambda_k, lambda_e
        self.register_buffer("share_L", torch.full((self.num_blocks,), 0.5))

    def forward(self, images: Tensor, noise_NL2: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            decisions_NL = self.chosen_L().expand(len(images), -1)
            return self.net(images, decisions_NL), decisions_NL
        scores_NK, decisions_NL = super().forward(images, noise_NL2)
        self.share_L.lerp_(decisions_NL.detach().mean(dim=0), SHARE_MOMENTUM)
        return scores_NK, decisions_NL

    def chosen_L(self) -> Tensor:
        """1.0 for the k blocks that all images fine-tune, else 0.0; a tie goes to the first."""
        order = self.share_L.argsort(descending=True, stable=True)
        return torch.zeros_like(self.share_L).index_fill_(0, order[: self.k], 1.0)

    def penalty(self, decisions_NL: Tensor) -> Tensor:
        share_L = decisions_NL.mean(dim=0)
        number = (share_L.sum() - self.k).square()
        entropy = -(share_L * share_L.clamp_min(SMALLEST_SHARE).log()).sum()
        return self.lambda_k * number + self.lambda_e * entropy

    def evaluator(self) -> nn.Module:
        return self.kept_for_predicting().evaluator()

    def kept_for_predicting(self) -> "Compact":
        """One copy of each block and no policy network, with exactly the same predictions."""
        chosen_L = self.chosen_L()
        return Compact(self.net.single_branch(chosen_L.bool().tolist()), chosen_L)


class Compact(PlainNetwork):
    """What is left of Global-k after training: a plain network, and which blocks it fine-tuned."""

    def __init__(self, net: nn.Module, chosen_L: Tensor) -> None:
        super().__init__(net)
        self.num_blocks = len(chosen_L)
        self.register_buffer("chosen_L", chosen_L)

    def forward(self, images: Tensor, noise_NL2: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(images), self.chosen_L.expand(len(images), -1)

    def evaluator(self) -> "Compact":
        return Compact(folded(self.net), self.chosen_L)
