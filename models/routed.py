"""Evaluation in which each image runs only the blocks that it chose.

With hard decisions equation 2 is a choice, so half of the two-branch network's work is multiplied
by zero. Here the images of a batch are split before each block and joined after it. The scores are
those of SpotTuneNet in evaluation mode, up to rounding.
"""

from torch import Tensor, nn

from models.folding import folded
from models.spottune import SpotTuneNet
from runtime.devices import to_device


class RoutedNet(nn.Module):
    """A copy of a SpotTune network for evaluation only; images N x ... -> scores N x K.

    Decisions N x L are bool or exact 0 and 1. They are read on the host once per batch.
    """

    def __init__(self, net: SpotTuneNet) -> None:
        super().__init__()
        self.net = folded(net)

    def forward(self, images: Tensor, decisions_NL: Tensor) -> Tensor:
        x = self.net.stem(images)
        for pair, decisions_N in zip(self.net.pairs, decisions_NL.bool().cpu().T, strict=True):
            x = _route(x, pair, decisions_N)
        return self.net.head(x)


def _route(x: Tensor, pair: nn.Module, decisions_N: Tensor) -> Tensor:
    """Run each image through the copy of the block that it chose."""
    if decisions_N.all():
        return pair.fine_tuned(x)
    if not decisions_N.any():
        return pair.kept(x)
    out = None
    for block, mask_N in ((pair.fine_tuned, decisions_N), (pair.kept, ~decisions_N)):
        chosen = to_device(mask_N.nonzero()[:, 0], x.device)
        part = _channels_second(_channels_last(x).index_select(0, chosen))
        part = _channels_last(block(part))
        if out is None:
            out = part.new_empty(len(x), *part.shape[1:])
        out.index_copy_(0, chosen, part)
    return _channels_second(out)


def _channels_last(x: Tensor) -> Tensor:
    """N x C x H x W as N x H x W x C, where an image in channels_last is contiguous."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def _channels_second(x: Tensor) -> Tensor:
    """Undo `_channels_last`."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x
