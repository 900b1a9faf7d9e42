"""The SpotTune network: every residual block twice, and a decision per image between the two.

Guo et al., equation 2, for block l and image x:

    x_l = I_l(x) * fine_tuned_l(x_{l-1}) + (1 - I_l(x)) * kept_l(x_{l-1}) + x_{l-1}

A "block" here includes the shortcut and the final ReLU, as in the released code: the two results
are mixed after it. So a block without a shortcut, such as some of an EfficientNet's, can be paired
like any other. Works for any network with a `stem`, a list of `blocks` and a `head`
(models/residual.py), whatever the shape of the tensors between its blocks.

Shapes (N images, L blocks, K classes): decisions N x L, 0 = kept, 1 = fine-tuned; scores N x K.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.freezing import batch_norms, freeze_all_but_batch_norm
from models.residual import ResidualNetwork

KEPT_NORMS = ("train", "frozen")  # the released code's, and the paper's
HALF_PRECISIONS = (torch.bfloat16, torch.float16)


class BlockPair(nn.Module):
    """A pretrained block that is kept, and its copy that is fine-tuned.

    With `kept_norm` "train" the kept block's BatchNorm layers train, and their running statistics
    follow the new task, as in the released code; everything else in it stays as it was. With
    "frozen" they stay too, as the paper's text has it: they normalise by the source's statistics.
    Norms without running statistics, such as LayerNorm, stay in both.
    """

    def __init__(self, pretrained: nn.Module, kept_norm: str = "train") -> None:
        super().__init__()
        if kept_norm not in KEPT_NORMS:
            raise ValueError(f"kept_norm {kept_norm!r}: expected {' or '.join(KEPT_NORMS)}")
        self.kept = pretrained
        self.fine_tuned = copy.deepcopy(pretrained)
        self.kept_norm = kept_norm
        freeze_all_but_batch_norm(self.kept)
        if kept_norm == "frozen":
            self.kept.requires_grad_(False)
        self._hold_frozen_norms()

    def _hold_frozen_norms(self) -> None:
        if self.kept_norm == "frozen":
            for norm in batch_norms(self.kept):
                norm.eval()

    def train(self, mode: bool = True) -> "BlockPair":
        super().train(mode)
        self._hold_frozen_norms()
        return self

    def forward(self, x: Tensor, decisions_N: Tensor) -> Tensor:
        return mixed(self.fine_tuned(x), self.kept(x), decisions_N)


def mixed(fine_tuned: Tensor, kept: Tensor, decisions_N: Tensor) -> Tensor:
    """Equation 2 after both blocks, of any shape N x ...: decision 1 takes `fine_tuned`."""
    if fine_tuned.dtype in HALF_PRECISIONS:
        return _HalfPrecisionMix.apply(fine_tuned, kept, decisions_N)
    return _mixed(fine_tuned, kept, _per_image(decisions_N, fine_tuned))


def _mixed(fine_tuned: Tensor, kept: Tensor, use_fine_tuned: Tensor) -> Tensor:
    return use_fine_tuned * fine_tuned + (1 - use_fine_tuned) * kept


def _per_image(decisions_N: Tensor, x: Tensor) -> Tensor:
    """N x 1 x 1 ..., to be multiplied with N x ..."""
    return decisions_N.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))


class _HalfPrecisionMix(torch.autograd.Function):
    """The same mix, for bf16 and fp16, with the decisions' gradient computed in float32.

    That gradient is <g, fine_tuned - kept>. Autograd would round <g, fine_tuned> and <g, kept> to
    half precision and then subtract; the copies start equal, so little but rounding error is left.
    """

    @staticmethod
    def forward(ctx, fine_tuned: Tensor, kept: Tensor, decisions_N: Tensor) -> Tensor:
        use_fine_tuned = _per_image(decisions_N, fine_tuned)
        ctx.save_for_backward(fine_tuned, kept, use_fine_tuned)
        return _mixed(fine_tuned, kept, use_fine_tuned)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        fine_tuned, kept, use_fine_tuned = ctx.saved_tensors
        of_decisions_N = None
        if ctx.needs_input_grad[2]:
            product = fine_tuned.float().sub_(kept).mul_(gradient)  # one float32 tensor, in place
            of_decisions_N = product.sum(dim=tuple(range(1, product.dim())))
        return gradient * use_fine_tuned, gradient * (1 - use_fine_tuned), of_decisions_N


class SpotTuneNet(nn.Module):
    """`network` with each of its blocks paired; stem and head are shared and train."""

    def __init__(self, network: nn.Module, kept_norm: str = "train") -> None:
        super().__init__()
        self.stem = network.stem
        self.pairs = nn.ModuleList(BlockPair(block, kept_norm) for block in network.blocks)
        self.head = network.head

    def forward(self, images: Tensor, decisions_NL: Tensor) -> Tensor:
        x = self.stem(images)
        for pair, decisions_N in zip(self.pairs, decisions_NL.unbind(dim=1), strict=True):
            x = pair(x, decisions_N)
        return self.head(x)

    def single_branch(self, fine_tuned: Sequence[bool]) -> ResidualNetwork:
        """A copy with one block of each pair: enough if all images make the same decisions."""
        blocks = [
            pair.fine_tuned if chosen else pair.kept
            for pair, chosen in zip(self.pairs, fine_tuned, strict=True)
        ]
        return copy.deepcopy(ResidualNetwork(self.stem, blocks, self.head))
