"""Backbones with pretrained weights: the library's own, those of a file, or none.

network, config = load_backbone("resnet50", num_classes=10)
network, config = load_backbone("timm:tf_efficientnet_lite0", 10, Path("lite0.safetensors"))
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from models.backbones import DataConfig, create, data_config, family_of, stem_blocks_head
from models.residual import ResidualNetwork
from runtime.errors import SpotTuneError, brief
from runtime.progress import say
from weights.malformed import RefusedError, refusing
from weights.state_dict import as_state_dict, saved_by_torch, without_data_parallel
from weights.tensor_file import from_bytes

IMAGENET, NONE = "imagenet", "none"
WRAPPERS = ("state_dict", "model", "net")  # under which training programs put the weights
EXPECTED = "the tensors of a network by name, as .safetensors or as torch.save writes a state dict"


def load_backbone(
    name: str, num_classes: int, weights: str | Path = IMAGENET, side: int | None = None
) -> tuple[ResidualNetwork, DataConfig]:
    """A network ready to be paired, and the pictures that it was trained for.

    `weights`: "imagenet" for the library's own, a file, or "none". The classifier is always a new
    one for `num_classes`; like all random weights it is drawn from PyTorch's global generator.
    `side` of the images in pixels, which a vision transformer must know; None: that of its weights.

    Raises SpotTuneError for an unknown or unsuitable network, a failed download, a file that cannot
    be read or is of another network, or a side that the network cannot take.
    """
    network = (
        _with_imagenet(name, num_classes) if weights == IMAGENET else create(name, num_classes)
    )
    if weights not in (IMAGENET, NONE):
        _fill(network, read_tensors(Path(weights)), Path(weights), name)
    for classifier in family_of(network).classifier:
        network.get_submodule(classifier).reset_parameters()
    config = data_config(network)
    if side is not None and hasattr(network, "set_input_size"):
        _set_side(network, side, name)
    return stem_blocks_head(network), config


def _with_imagenet(name: str, num_classes: int) -> nn.Module:
    try:
        return create(name, num_classes, imagenet=True)
    except (OSError, RuntimeError) as error:  # of the connection, the hub, or a wrong checksum
        raise SpotTuneError(
            f"--weights {IMAGENET}: the weights of {name} could not be fetched "
            f"({brief(' '.join(str(error).split()), 120)}). Check the connection, or name a file "
            f"with --weights"
        ) from error


def _set_side(network: nn.Module, side: int, name: str) -> None:
    patch = network.patch_embed.patch_size[0]
    if side % patch:
        raise SpotTuneError(f"--crop {side}: expected a multiple of {patch}, the patches of {name}")
    network.set_input_size(img_size=side)  # the positions are interpolated


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; runs nothing in it.

    Raises SpotTuneError if there is none, or it holds something else.
    """
    if not path.is_file():
        raise SpotTuneError(
            f"{path}: no such file; expected --weights {IMAGENET}, {NONE} or a file"
        )
    with path.open("rb") as stream:
        start = stream.read(100)
    with refusing(path, EXPECTED):
        if start.lstrip().startswith(b"<"):
            raise RefusedError("a web page")
        if start[8:9] == b"{":
            _, tensors = from_bytes(path.read_bytes())
        else:
            saved = saved_by_torch(path)
            for wrapper in WRAPPERS:
                saved = saved[wrapper] if isinstance(saved, dict) and wrapper in saved else saved
            tensors = as_state_dict(saved)
        if sum(tensor.nbytes for tensor in tensors.values()) > path.stat().st_size:
            raise RefusedError("tensors that are larger than the file")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise RefusedError("weights that are not finite")
        return without_data_parallel(tensors)


def _fill(network: nn.Module, tensors: dict[str, Tensor], path: Path, name: str) -> None:
    """Copy all weights but the classifier's into the network, by name.

    What the network has no place for is said. Raises SpotTuneError if a weight is missing, has
    another shape, or belongs to a block that the network does not have.
    """
    family = family_of(network)
    classifier = tuple(f"{layer}." for layer in family.classifier)
    own = {n: t for n, t in network.state_dict().items() if not n.startswith(classifier)}
    given = {n: t for n, t in tensors.items() if not n.startswith(classifier)}
    missing = [n for n in own.keys() - given if not n.endswith("num_batches_tracked")]
    reshaped = [n for n in own.keys() & given if own[n].shape != given[n].shape]
    left_out = given.keys() - own
    if missing or reshaped or any(n.startswith(family.blocks_prefix) for n in left_out):
        raise SpotTuneError(
            f"{path}: not the weights of {name}: {len(missing)} tensors missing "
            f"{brief(sorted(missing)[:3])}, {len(left_out)} without a place "
            f"{brief(sorted(left_out)[:3])}, {len(reshaped)} of another shape "
            f"{brief(sorted(reshaped)[:3])}. Name its own weights, or another --backbone"
        )
    if left_out:
        say(f"{path}: {len(left_out)} tensors without a place in {name}: {brief(sorted(left_out))}")
    with torch.no_grad():
        network.load_state_dict({n: t for n, t in given.items() if n in own}, strict=False)
