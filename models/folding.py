"""BatchNorm folded into the convolution before it: the same network with fewer passes over memory.

Exact in evaluation, where BatchNorm is a fixed scale and shift per channel.
"""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """A copy of `network` for evaluation, with BatchNorm folded into the convolutions.

    A module lists its pairs of children by name: `CONV_BN = (("conv1", "bn1"), ...)`. Other
    BatchNorm layers stay.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in network.modules():
        for conv, bn in getattr(module, "CONV_BN", ()):
            fused = fuse_conv_bn_eval(getattr(module, conv), getattr(module, bn))
            setattr(module, conv, fused.requires_grad_(False))
            setattr(module, bn, nn.Identity())
    return network
