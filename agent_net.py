"""The policy network looks at an image and emits two logits for each residual block.

Guo et al., section 3.2. Its size is that of the released code: a ResNet of the backbone's family
with one block per stage, trained from random weights. At width 32 and for 12 blocks it has
1,170,616 parameters.
"""

from torch import Tensor, nn

from models.resnet26 import PAPER_WIDTH, ResNet

POLICY_BLOCKS_PER_STAGE = (1, 1, 1)


class PolicyNet(nn.Module):
    """Images N x 3 x H x W -> logits N x L x 2 for L blocks: index 0 keep, index 1 fine-tune."""

    def __init__(self, num_blocks: int, width: int = PAPER_WIDTH) -> None:
        super().__init__()
        self.resnet = ResNet(2 * num_blocks, width, POLICY_BLOCKS_PER_STAGE)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        return self.resnet(images_N3HW).unflatten(1, (-1, 2))
