"""The plain form of SpotTune that the benchmark compares with, and tests hold the fast form to.

What the released code does, in the fewest words: each image decoded anew in each epoch, float32,
NCHW, both branches of every block also at test time, one optimiser step tensor by tensor. It uses
the project's modules, so that only the way of computing differs.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms

from gumbel_softmax import likelier_decisions
from methods.optimizers import MOMENTUM, POLICY_WEIGHT_DECAY, Rates
from methods.spottune import SpotTune


def decode_batch(
    paths: Sequence[Path],
    side: int,
    crop: int,
    mean_std: tuple[Sequence[float], Sequence[float]],
) -> Tensor:
    """N x 3 x crop x crop float32: every JPEG opened, decoded, resized, cropped, normalised."""
    pipeline = transforms.Compose(
        [
            transforms.Resize(side),
            transforms.RandomCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(*mean_std),
        ]
    )
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(pipeline(image.convert("RGB")))
    return torch.stack(images)


def plain_optimizers(method: SpotTune, rates: Rates) -> list[torch.optim.Optimizer]:
    """The two optimisers, one small operation per tensor."""
    network = [parameter for parameter in method.net.parameters() if parameter.requires_grad]
    policy = list(method.policy_net.parameters())
    plain = {"momentum": MOMENTUM, "foreach": False, "fused": False}
    return [
        torch.optim.SGD(network, rates.network, weight_decay=rates.weight_decay, **plain),
        torch.optim.SGD(policy, rates.policy, weight_decay=POLICY_WEIGHT_DECAY, **plain),
    ]


def plain_train_step(
    images: Tensor,
    labels: Tensor,
    noise_NL2: Tensor,
    method: SpotTune,
    optimizers: Sequence[torch.optim.Optimizer],
) -> float:
    """One update in float32; reads the loss back, as the released loop does in every step."""
    scores_NK, _ = method(images, noise_NL2)
    loss = F.cross_entropy(scores_NK, labels)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


@torch.no_grad()
def plain_predict(images: Tensor, noise_NL2: Tensor, method: SpotTune) -> Tensor:
    """Scores N x K in evaluation mode, through both branches of every block."""
    decisions_NL = likelier_decisions(method.policy_net(images) + noise_NL2)
    return method.net(images, decisions_NL)
