"""Evaluation in which each image runs only the blocks that it chose.

With hard decisions equation 2 is a choice, so half of the two-branch network's work is multiplied
by zero. Here the images of a batch are split before each block and joined after it. The scores are
those of SpotTuneNet in evaluation mode, up to rounding.
"""

from torch import Tensor, nn

from models.folding import folded
from models.spottune import SpotTuneNet


class RoutedNet(nn.Module):
    """A copy of a SpotTune network for evaluation only; images N x 3 x H x W -> scores N x K.

    Decisions N x L are bool or exact 0 and 1. They are read on the host once per batch.
    """

    def __init__(self, net: SpotTuneNet) -> None:
        super().__init__()
        self.net = folded(net)

    def forward(self, images_N3HW: Tensor, decisions_NL: Tensor) -> Tensor:
        x = self.net.stem(images_N3HW)
        for pair, decisions_N in zip(self.net.pairs, decisions_NL.bool().cpu().T, strict=True):
            x = _route(x, pair, decisions_N)
        return self.net.head(x)


def _route(x_NCHW: Tensor, pair: nn.Module, decisions_N: Tensor) -> Tensor:
    """Run each image through the copy of the block that it chose."""
    if decisions_N.all():
        return pair.fine_tuned(x_NCHW)
    if not decisions_N.any():
        return pair.kept(x_NCHW)
    x_NHWC = x_NCHW.permute(0, 2, 3, 1)  # in channels_last an image is contiguous
    out_NHWC = None
    for block, mask_N in ((pair.fine_tuned, decisions_N), (pair.kept, ~decisions_N)):
        chosen = mask_N.nonzero()[:, 0].to(x_NCHW.device)
        part_NCHW = x_NHWC.index_select(0, chosen).permute(0, 3, 1, 2)
        part_NHWC = block(part_NCHW).permute(0, 2, 3, 1)
        if out_NHWC is None:
            out_NHWC = part_NHWC.new_empty(len(x_NCHW), *part_NHWC.shape[1:])
        out_NHWC.index_copy_(0, chosen, part_NHWC)
    return out_NHWC.permute(0, 3, 1, 2)
