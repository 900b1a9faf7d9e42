"""The policy network looks at an image and emits two logits for each residual block.

Guo et al., section 3.2. Its size is that of the released code: a ResNet of the backbone's family
with one block per stage, trained from random weights. At width 32 and for 12 blocks it has
1,170,616 parameters.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.resnet26 import PAPER_WIDTH, SIDE_MULTIPLE, ResNet

POLICY_BLOCKS_PER_STAGE = (1, 1, 1)


class PolicyNet(nn.Module):
    """Images N x 3 x H x W -> logits N x L x 2 for L blocks: index 0 keep, index 1 fine-tune.

    `input_size`, ours, for photographs: it sees images of at most that shorter side, in pixels. At
    224 pixels it would cost 2.1 GMAC, more than a ResNet-18. None: it sees them as they are.
    """

    def __init__(
        self, num_blocks: int, width: int = PAPER_WIDTH, input_size: int | None = None
    ) -> None:
        super().__init__()
        self.resnet = ResNet(2 * num_blocks, width, POLICY_BLOCKS_PER_STAGE)
        self.input_size = input_size

    def forward(self, images_N3HW: Tensor) -> Tensor:
        if self.input_size is not None:
            images_N3HW = averaged_down(images_N3HW, self.input_size)
        return self.resnet(images_N3HW).unflatten(1, (-1, 2))


def averaged_down(images_N3HW: Tensor, shorter_side: int) -> Tensor:
    """Images of at most this shorter side, each pixel the mean of the area that it covers.

    Sides become multiples of 8, the next below, as the ResNet needs them.
    """
    sides = images_N3HW.shape[-2:]
    now, then = min(sides), min(*sides, shorter_side)
    smaller = [side * then // now // SIDE_MULTIPLE * SIDE_MULTIPLE for side in sides]
    return F.adaptive_avg_pool2d(images_N3HW, [max(side, SIDE_MULTIPLE) for side in smaller])
