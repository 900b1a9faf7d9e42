"""The form in which SpotTune needs a network: a stem, residual blocks and a head, in this order."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class ResidualNetwork(nn.Module):
    """stem(images) -> x, each block x -> x, head(x) -> scores N x K.

    What x is, only the parts need to know: N x C x H x W in a convolutional network, N x T x C
    tokens in a transformer, N x C x D x H x W in a network for volumes. The last layer of the
    head, new for each task, is `head.classifier`.
    """

    def __init__(self, stem: nn.Module, blocks: Iterable[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    @property
    def classifier(self) -> nn.Module:
        return self.head.classifier

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Head(nn.Module):
    """features(x) -> N x C, classifier -> scores N x K.

    The classifier stays in float32 under autocast: scores in bf16 would tie.
    """

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        features_NC = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.classifier(features_NC.to(next(self.classifier.parameters()).dtype))
