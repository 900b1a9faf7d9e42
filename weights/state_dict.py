"""Tensors by name from a file that torch.save wrote, read without running any code in it."""

from pathlib import Path

import torch
from torch import Tensor

from weights.malformed import MALFORMED, RefusedError

DATA_PARALLEL_PREFIX = "module."


def saved_by_torch(path: Path) -> object:
    """What the file holds: tensors, numbers, texts and containers of them.

    Raises RefusedError if it is damaged or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, AssertionError, MemoryError, *MALFORMED) as error:
        raise RefusedError("a damaged file, or one that holds more than tensors") from error


def as_state_dict(saved: object) -> dict[str, Tensor]:
    """`saved` if it is tensors by name; RefusedError if it is not."""
    if not isinstance(saved, dict) or not all(map(_is_plain_tensor, saved.values())):
        raise RefusedError("something other than tensors by name")
    return saved


def _is_plain_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def without_data_parallel(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names without "module.", which nn.DataParallel puts before each of them."""
    if all(str(name).startswith(DATA_PARALLEL_PREFIX) for name in weights):
        return {name.removeprefix(DATA_PARALLEL_PREFIX): w for name, w in weights.items()}
    return weights
