"""Source weights under this project's names, from any of the files that people keep them in.

These are the authors' `resnet26_pretrained.t7`, a state dict that `torch.save` wrote, a
`.safetensors` file, and a source checkpoint of main.py. Names in the authors' file (classes of
residual_adapters) and here, for stage s and block b of 4:

    pre_layers_conv.conv, .bns.0           stem.conv, stem.bn
    layer{s}.{b}.conv1.conv, .conv1.bns.0  blocks.{4 (s - 1) + b}.conv1, .bn1
    layer{s}.{b}.conv2.1.conv, .1.bns.0    blocks.{4 (s - 1) + b}.conv2, .bn2
    end_bns.0.0, linears.0                 head.bn, head.linear

Every tensor is matched by name; one that is missing, or has no place, is an error.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.resnet26 import BLOCKS_PER_STAGE, ResNet, resnet26
from runtime.errors import SpotTuneError, brief
from weights.legacy_t7 import MAGIC, network_in, read_legacy_weights
from weights.malformed import RefusedError, refusing
from weights.state_dict import as_state_dict, saved_by_torch, without_data_parallel
from weights.tensor_file import content_sha256, from_bytes

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


SOURCE_KIND, PREFIX = "source", "weights.net."  # in our own checkpoints, see engine/checkpoints.py
OLD_FORMAT = "spottune-decathlon"  # how the "format" of a checkpoint.pt began
EXPECTED = (
    "a ResNet-26 as resnet26_pretrained.t7, a state dict with its names or ours, or a source "
    "checkpoint of main.py. Download it again, or name another file"
)


def read_source_weights(path: Path) -> dict[str, Tensor]:
    """A source network's weights by our names, from a file in any of the formats.

    Raises SpotTuneError if it has another format or other names; shapes are not yet checked.
    """
    if not path.is_file():
        raise SpotTuneError(
            f"{path}: no such file of pretrained weights. Give the right one with --pretrained, or "
            f"train the source network with --tasks imagenet12"
        )
    with path.open("rb") as stream:
        start = stream.read(100)
    with refusing(path, EXPECTED):
        if start.startswith(MAGIC):
            weights = read_legacy_weights(path.read_bytes())
        elif start.startswith(b"PK"):
            weights = _saved_by_torch(path)
        elif start[8:9] == b"{":
            weights = _from_safetensors(path.read_bytes())
        else:
            is_html = start.lstrip().startswith(b"<")
            raise RefusedError("a web page" if is_html else f"a file that starts {start[:8]!r}")
        return _by_our_names(weights)


def _saved_by_torch(path: Path) -> dict[str, Tensor]:
    """A state dict, bare or under "net"."""
    saved = saved_by_torch(path)
    if isinstance(saved, dict) and str(saved.get("format")).startswith(OLD_FORMAT):
        raise RefusedError("a checkpoint of an earlier version of this project")
    return as_state_dict(network_in(saved))


def _from_safetensors(data: bytes) -> dict[str, Tensor]:
    """All tensors of a file; of our own checkpoint those of the source network."""
    text, tensors = from_bytes(data)
    if text is None:
        return tensors
    facts = json.loads(text)
    if facts["kind"] != SOURCE_KIND:
        raise RefusedError(f"the {brief(facts['kind'])} network of {brief(facts['task'])}")
    return {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}


def _by_our_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names, whether they have these already or the released code's."""
    weights = without_data_parallel(weights)
    if "stem.conv.weight" in weights:
        return dict(weights)
    renamed = {}
    for name, tensor in weights.items():
        try:
            renamed[our_name(str(name))] = tensor
        except KeyError as error:
            raise RefusedError(f"{brief(repr(name))}, which no ResNet-26 has") from error
    return renamed


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """One hash over names, shapes and values: the same weights, the same hash.

    Without num_batches_tracked, which old files lack and nothing depends on.
    """
    counted = {n: t for n, t in weights.items() if not n.endswith("num_batches_tracked")}
    return content_sha256("", counted)


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
        if sum(tensor.nbytes for tensor in tensors.values()) > path.stat().st_size:
            raise SpotTuneError(f"{path}: claims tensors larger than the file; name another file")
        _check_all(tensors, cls(tensors, "", path).num_classes, width, path)
        return cls(tensors, weights_sha256(tensors), path)

    @property
    def num_classes(self) -> int:
        bias = self.tensors.get("head.linear.bias", torch.zeros(1))
        return bias.numel() or 1  # where it is missing or empty, no network fits

    def network(self, width: int) -> ResNet:
        """The source network itself, with its classifier."""
        net = resnet26(self.num_classes, width)
        net.load_state_dict({**net.state_dict(), **self.tensors})
        return net

    def transferred(self, num_classes: int, width: int) -> ResNet:
        """A network for another task: these weights, and a classifier with new random ones."""
        net = resnet26(num_classes, width)
        classifier = net.head.linear.state_dict(prefix="head.linear.")
        net.load_state_dict({**net.state_dict(), **self.tensors, **classifier})
        return net


def _check_all(tensors: Mapping[str, Tensor], num_classes: int, width: int, where: Path) -> None:
    """Raise SpotTuneError unless the tensors are a ResNet-26's in name, shape and type, and finite.

    PyTorch 0.3 had no num_batches_tracked; nothing depends on it here, so it may be missing.
    """
    stem = tensors.get("stem.conv.weight")
    if stem is not None and stem.ndim == 4 and len(stem) != width:
        raise SpotTuneError(
            f"{where}: weights of a network of width {len(stem)}; expected width {width}. Give "
            f"--width {len(stem)}, or other weights"
        )
    with torch.device("meta"):  # no memory for a network that the weights may not fill
        own = resnet26(num_classes, width).state_dict()
    missing = [n for n in own.keys() - tensors if not n.endswith("num_batches_tracked")]
    foreign = tensors.keys() - own
    other = [
        name
        for name in own.keys() & tensors
        if (own[name].shape, own[name].dtype) != (tensors[name].shape, tensors[name].dtype)
    ]
    if missing or foreign or other:
        raise SpotTuneError(
            f"{where}: not the weights of this ResNet-26: {len(missing)} tensors missing "
            f"{brief(sorted(missing)[:3])}, {len(foreign)} without a place "
            f"{brief(sorted(foreign)[:3])}, {len(other)} of another shape or type "
            f"{brief(sorted(other)[:3])}"
        )
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise SpotTuneError(f"{where}: holds weights that are not finite; train them again")
