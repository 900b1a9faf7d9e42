"""Source weights under this project's names, from the authors' file or from our own checkpoint.

Names in the authors' file (classes of residual_adapters) and here, for stage s and block b of 4:

    pre_layers_conv.conv, .bns.0           stem.conv, stem.bn
    layer{s}.{b}.conv1.conv, .conv1.bns.0  blocks.{4 (s - 1) + b}.conv1, .bn1
    layer{s}.{b}.conv2.1.conv, .1.bns.0    blocks.{4 (s - 1) + b}.conv2, .bn2
    end_bns.0.0, linears.0                 head.bn, head.linear

Every tensor is matched by name; one that is missing, or has no place, is an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoints import Checkpoint, weights_sha256
from methods.registry import SOURCE_KIND
from models.resnet26 import BLOCKS_PER_STAGE, ResNet, resnet26
from runtime.errors import SpotTuneError, brief
from weights.legacy_t7 import is_legacy, read_legacy_weights

OUR_NAME_OF = {
    "pre_layers_conv.conv": "stem.conv",
    "pre_layers_conv.bns.0": "stem.bn",
    "end_bns.0.0": "head.bn",
    "linears.0": "head.linear",
}
OUR_NAME_IN_BLOCK = {
    "conv1.conv": "conv1",
    "conv1.bns.0": "bn1",
    "conv2.1.conv": "conv2",
    "conv2.1.bns.0": "bn2",
}
BLOCK = re.compile(r"layer([123])\.([0-3])\.(.+)")


def our_name(legacy_name: str) -> str:
    """This project's name of a tensor of the authors' file; KeyError if it has none."""
    layer, _, tensor = legacy_name.rpartition(".")
    match = BLOCK.fullmatch(layer)
    if match is None:
        return f"{OUR_NAME_OF[layer]}.{tensor}"
    stage, block, part = int(match[1]), int(match[2]), match[3]
    position = sum(BLOCKS_PER_STAGE[: stage - 1]) + block
    return f"blocks.{position}.{OUR_NAME_IN_BLOCK[part]}.{tensor}"


def read_source_weights(path: Path) -> dict[str, Tensor]:
    """A ResNet-26's weights by our names; raises SpotTuneError for any other file."""
    if not path.is_file():
        raise SpotTuneError(
            f"{path}: no such file of pretrained weights. Give the right one with --pretrained, or "
            f"train the source network with --tasks imagenet12"
        )
    if not is_legacy(path):
        return _weights_of_checkpoint(path)
    weights = {}
    for name, tensor in read_legacy_weights(path).items():
        try:
            weights[our_name(name)] = tensor
        except KeyError as error:
            raise SpotTuneError(
                f"{path}: holds a tensor {name!r}, which a ResNet-26 of the released code does not "
                f"have. Expected its resnet26_pretrained.t7"
            ) from error
    return weights


def _weights_of_checkpoint(path: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint.load(path, advice="Download it again, or name another file")
    if checkpoint.kind != SOURCE_KIND:
        raise SpotTuneError(
            f"{path}: holds the {checkpoint.kind} network of {checkpoint.task}; expected a source "
            f"network, such as the checkpoint of imagenet12"
        )
    return {name.removeprefix("net."): tensor for name, tensor in checkpoint.weights.items()}


@dataclass(frozen=True)
class SourceWeights:
    """The weights of a source network by our names, checked to be all of a ResNet-26's."""

    tensors: Mapping[str, Tensor]
    sha256: str  # over names, shapes and values
    where: Path

    @classmethod
    def read(cls, path: Path, width: int) -> "SourceWeights":
        """Raises SpotTuneError if the file is not a whole ResNet-26 of this width."""
        tensors = read_source_weights(path)
        _check_width(tensors, width, path)
        with torch.device("meta"):  # no memory for a network that the weights may not fill
            net = resnet26(cls(tensors, "", path).num_classes, width)
        _check_all(net, tensors, path)
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise SpotTuneError(f"{path}: holds weights that are not finite; train them again")
        return cls(tensors, weights_sha256(tensors), path)

    @property
    def num_classes(self) -> int:
        bias = self.tensors.get("head.linear.bias", torch.zeros(1))
        return bias.numel() or 1  # where it is missing or empty, no network fits

    def network(self, width: int) -> ResNet:
        """The source network itself, with its classifier."""
        net = resnet26(self.num_classes, width)
        _load_all(net, self.tensors, self.where)
        return net

    def transferred(self, num_classes: int, width: int) -> ResNet:
        """A network for another task: these weights, and a classifier with new random ones."""
        net = resnet26(num_classes, width)
        classifier = net.head.linear.state_dict(prefix="head.linear.")
        _load_all(net, {**self.tensors, **classifier}, self.where)
        return net


def _check_width(weights: Mapping[str, Tensor], width: int, where: Path) -> None:
    """Raise SpotTuneError unless the stem has `width` channels."""
    stem = weights.get("stem.conv.weight")
    if stem is None or stem.ndim != 4:
        raise SpotTuneError(
            f"{where}: has no stem convolution, so it is no ResNet-26. Expected the released "
            f"code's resnet26_pretrained.t7 or a source checkpoint of main.py"
        )
    if stem.shape[0] != width:
        raise SpotTuneError(
            f"{where}: weights of a network of width {stem.shape[0]}; expected width {width}. "
            f"Give --width {stem.shape[0]}, or other weights"
        )


def _load_all(net: ResNet, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy `weights` into `net` by name. Raises SpotTuneError if any name or shape is amiss."""
    _check_all(net, weights, where)
    net.load_state_dict(dict(weights), strict=False)


def _check_all(net: ResNet, weights: Mapping[str, Tensor], where: Path) -> None:
    """Raise SpotTuneError unless `weights` are `net`'s in name and shape.

    PyTorch 0.3 had no num_batches_tracked; nothing depends on it here, so it may be missing.
    """
    own = net.state_dict()
    missing = own.keys() - weights.keys()
    missing = sorted(name for name in missing if not name.endswith("num_batches_tracked"))
    unexpected = sorted(weights.keys() - own.keys())
    reshaped = sorted(
        name for name in own.keys() & weights if own[name].shape != weights[name].shape
    )
    if missing or unexpected or reshaped:
        raise SpotTuneError(
            f"{where}: not the weights of this ResNet-26: {len(missing)} tensors missing "
            f"{brief(missing[:3])}, {len(unexpected)} without a place {brief(unexpected[:3])}, "
            f"{len(reshaped)} of another shape {brief(reshaped[:3])}"
        )
