"""The SpotTune network: every residual block twice, and a decision per image between the two.

Guo et al., equation 2, for block l and image x:

    x_l = I_l(x) * fine_tuned_l(x_{l-1}) + (1 - I_l(x)) * kept_l(x_{l-1}) + x_{l-1}

A "block" here includes the shortcut and the final ReLU, as in the released code: the two results
are mixed after it. Works for any network with a `stem`, a list of `blocks` and a `head`.

Shapes (N images, L blocks, K classes): decisions N x L, 0 = kept, 1 = fine-tuned; scores N x K.
"""

import copy
from collections.abc import Sequence

from torch import Tensor, nn


class BlockPair(nn.Module):
    """A pretrained block that is kept, and its copy that is fine-tuned.

    Only the kept block's *convolutions* stay as they were. Its BatchNorm layers train, and their
    running statistics follow the new task, as in the released code.
    """

    def __init__(self, pretrained: nn.Module) -> None:
        super().__init__()
        self.kept = pretrained
        self.fine_tuned = copy.deepcopy(pretrained)
        for module in self.kept.modules():
            if isinstance(module, nn.Conv2d):
                module.requires_grad_(False)

    def forward(self, x_NCHW: Tensor, decisions_N: Tensor) -> Tensor:
        fine_tuned_NCHW = self.fine_tuned(x_NCHW)
        use_fine_tuned = decisions_N.to(fine_tuned_NCHW.dtype).view(-1, 1, 1, 1)
        return use_fine_tuned * fine_tuned_NCHW + (1 - use_fine_tuned) * self.kept(x_NCHW)


class SpotTuneNet(nn.Module):
    """`network` with each of its blocks paired; stem and head are shared and train."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.stem = network.stem
        self.pairs = nn.ModuleList(BlockPair(block) for block in network.blocks)
        self.head = network.head

    def forward(self, images_N3HW: Tensor, decisions_NL: Tensor) -> Tensor:
        x = self.stem(images_N3HW)
        for pair, decisions_N in zip(self.pairs, decisions_NL.unbind(dim=1), strict=True):
            x = pair(x, decisions_N)
        return self.head(x)

    def single_branch(self, fine_tuned: Sequence[bool]) -> "SingleBranchNet":
        """A copy with one block of each pair: enough if all images make the same decisions."""
        blocks = [
            pair.fine_tuned if chosen else pair.kept
            for pair, chosen in zip(self.pairs, fine_tuned, strict=True)
        ]
        return copy.deepcopy(SingleBranchNet(self.stem, nn.ModuleList(blocks), self.head))


class SingleBranchNet(nn.Module):
    """stem -> blocks -> head, with the names of the network that was paired."""

    def __init__(self, stem: nn.Module, blocks: nn.ModuleList, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, blocks, head

    def forward(self, images_N3HW: Tensor) -> Tensor:
        x = self.stem(images_N3HW)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
