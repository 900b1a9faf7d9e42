"""BatchNorm folded into the convolution before it: the same network with fewer passes over memory.

Exact in evaluation, where BatchNorm is a fixed scale and shift per channel.
"""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.freezing import BatchNorm

# No subclasses: some change their weights before they use them.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def folded(network: nn.Module) -> nn.Module:
    """A copy of `network` for evaluation, with BatchNorm folded into the convolutions.

    A module lists its pairs of children by name: `CONV_BN = (("conv1", "bn1"), ...)`; in an
    nn.Sequential they are neighbours. Other BatchNorm layers stay.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in network.modules():
        for conv_name, bn_name in _pairs_in(module):
            conv, bn = getattr(module, conv_name), getattr(module, bn_name)
            if type(conv) in CONVOLUTIONS and isinstance(bn, BatchNorm):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, bn).requires_grad_(False))
                setattr(module, bn_name, getattr(bn, "act", nn.Identity()))  # timm's hold a ReLU
    return network


def _pairs_in(module: nn.Module) -> list[tuple[str, str]]:
    """Names of the children of which one follows the other and nothing comes between."""
    neighbours = pairwise(dict(module.named_children())) if type(module) is nn.Sequential else ()
    return [*neighbours, *getattr(module, "CONV_BN", ())]
