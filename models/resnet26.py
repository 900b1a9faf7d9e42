"""ResNet-26 of the Visual Decathlon, and the same family at other widths and depths.

Rebuffi et al. 2017 (code: residual_adapters), used by SpotTune. At width 32, as released:

    stem    3x3 convolution 3 -> 32, stride 1, BN (no ReLU after it)
    blocks  three stages of four basic blocks with 64, 128 and 256 channels; the first block of
            each stage halves height and width
    head    BN, ReLU, global average pool, linear

Shapes (N images, H x W pixels, K classes): images N x 3 x H x W -> scores N x K, with H and W
multiples of 8.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.residual import ResidualNetwork

PAPER_WIDTH = 32
BLOCKS_PER_STAGE = (4, 4, 4)
SIDE_MULTIPLE = 8  # three stages halve the image; at an odd side shortcut and convolution differ


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias, He-normal over its outputs (fan-out)."""
    conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus a shortcut without parameters, then ReLU.

    Where the block halves the image, the shortcut is a 2x2 average pool; missing channels are
    filled with zeros.
    """

    CONV_BN = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.missing_channels = channels_out - channels_in

    def shortcut(self, x_NCHW: Tensor) -> Tensor:
        if self.stride > 1:
            x_NCHW = F.avg_pool2d(x_NCHW, self.stride)
        if self.missing_channels:
            x_NCHW = F.pad(x_NCHW, (0, 0, 0, 0, 0, self.missing_channels))
        return x_NCHW

    def forward(self, x_NCHW: Tensor) -> Tensor:
        # The released block applies a second ReLU, in place, before conv2. The output is the
        # same without it, and current PyTorch refuses to differentiate through it.
        out = F.relu(self.bn1(self.conv1(x_NCHW)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x_NCHW))


class Stem(nn.Module):
    """3x3 convolution and BN; the first block's convolution sees signed values (no ReLU)."""

    CONV_BN = (("conv", "bn"),)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv3x3(3, width)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        return self.bn(self.conv(images_N3HW))


class Head(nn.Module):
    """BN, ReLU, global average pool, linear.

    Pool and linear layer stay in float32 under autocast: scores in bf16 would tie.
    """

    def __init__(self, channels: int, num_outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_outputs)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features_NCHW = F.relu(self.bn(x_NCHW))
        with torch.autocast(x_NCHW.device.type, enabled=False):
            features_NC = features_NCHW.to(self.linear.weight.dtype).mean(dim=(2, 3))
            return self.linear(features_NC)


class ResNet(ResidualNetwork):
    """stem -> blocks -> head; the stages have 2, 4 and 8 times the stem's `width`."""

    def __init__(
        self,
        num_outputs: int,
        width: int = PAPER_WIDTH,
        blocks_per_stage: Sequence[int] = BLOCKS_PER_STAGE,
    ) -> None:
        stem = Stem(width)
        blocks = []
        channels = width
        for stage, num_blocks in enumerate(blocks_per_stage):
            for position in range(num_blocks):
                channels_out = width * 2 ** (stage + 1)
                stride = 2 if position == 0 else 1
                blocks.append(BasicBlock(channels, channels_out, stride))
                channels = channels_out
        super().__init__(stem, blocks, Head(channels, num_outputs))


def resnet26(num_classes: int, width: int = PAPER_WIDTH) -> ResNet:
    """The paper's backbone: 12 residual blocks, 25 convolutions and one linear layer."""
    return ResNet(num_classes, width)
