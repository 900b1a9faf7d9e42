"""Checkpoints: tensors, numbers and strings in a file that is written whole."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from errors import SpotTuneError
from files import replacing

FORMAT = "spottune-decathlon-1"
CHECKPOINT = "checkpoint.pt"


def save_checkpoint(path: Path, content: Mapping[str, object]) -> None:
    """Write `content` in the place of `path`; only types that `weights_only=True` reads."""
    with replacing(path) as stream:
        torch.save({"format": FORMAT, **content}, stream)


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint of this project onto the CPU.

    Raises SpotTuneError for a file that is missing, cut short, or not one of ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise SpotTuneError(f"{path}: no such checkpoint. Train the task with main.py") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:100]
        raise SpotTuneError(
            f"{path}: not a readable checkpoint ({reason}); it may be cut short, or not one of "
            f"ours. Remove it to train the task again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SpotTuneError(
            f"{path}: not a checkpoint of this project; expected one that main.py wrote"
        )
    return content


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """One hash over names, shapes and values: the same weights, the same hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
