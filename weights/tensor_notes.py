"""Tensors as a pickle of PyTorch's describes them, checked before one is built.

Such a pickle holds no numbers of the tensors themselves: it names storages, runs of elements that
stand elsewhere in the file, and for each tensor a storage, an offset, a shape and strides. Read by
`safe_pickle` these are notes. Here they are held against the size of the file, so that no tensor
reaches outside its storage and all of them together take no more memory than the file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weights.safe_pickle import Name, Record, RefusedError

MAX_DIMENSIONS = 8

DTYPES = {
    Name("torch", f"{kind}Storage"): dtype
    for kind, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
    }.items()
}
ORDERED_DICT = Name("collections", "OrderedDict")
# What makes a parameter out of a tensor, and a tensor out of a storage.
PARAMETERS = {Name("torch.nn.parameter", "Parameter"), Name("torch._utils", "_rebuild_parameter")}
TENSORS = {Name("torch._utils", "_rebuild_tensor"), Name("torch._utils", "_rebuild_tensor_v2")}
TENSOR_NAMES = {ORDERED_DICT, *DTYPES, *PARAMETERS, *TENSORS}


@dataclass(frozen=True)
class Storage:
    """A run of elements that stands outside the pickle."""

    key: str
    dtype: torch.dtype
    num_elements: int

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


@dataclass
class Storages:
    """The storages that a pickle refers to, by key."""

    max_bytes: int  # of one
    declared: dict[str, Storage] = field(default_factory=dict)

    def resolve(self, identity: object) -> Storage:
        """The storage that a persistent id stands for, noted as declared.

        ("storage", type, key, device, number of elements), and in the old format None after them.
        """
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise RefusedError("a persistent id that is no storage")
        return self.declare(*identity[1:])

    def declare(
        self, kind: object, key: object, device: object, num_elements: object, view: object = None
    ) -> Storage:
        """Note a storage, whatever device it was on; the same key must always mean the same."""
        if type(kind) is not Name or kind not in DTYPES or type(key) is not str:
            raise RefusedError("a storage of an unknown type")
        if view is not None:
            raise RefusedError("a storage that is part of another")
        storage = Storage(key, DTYPES[kind], counted(num_elements, "storage's size"))
        if storage.num_bytes > self.max_bytes:
            raise RefusedError(f"a storage of {storage.num_elements:,} elements, beyond the file")
        if self.declared.setdefault(key, storage) != storage:
            raise RefusedError("two different storages under one key")
        return storage


def mapping(value: object) -> dict[str, object]:
    """A dict, or what was noted of an OrderedDict."""
    if type(value) is Record and value.made_by == ORDERED_DICT:
        (pairs,) = value.arguments or ([],)
        value = from_pairs(pairs) | value.items
    if type(value) is not dict:
        raise RefusedError(f"a {type(value).__name__} in the place of a dict")
    return value


def from_pairs(pairs: object) -> dict[str, object]:
    """The dict that Python 2 wrote as an OrderedDict's argument, [[key, value], ...]."""
    if type(pairs) is not list:
        raise RefusedError("an OrderedDict of an unknown form")
    if any(type(pair) not in (list, tuple) or type(pair[0]) is not str for pair in pairs):
        raise RefusedError("an OrderedDict whose keys are not text")
    items = dict(pairs)
    if len(items) < len(pairs):
        raise RefusedError("an OrderedDict that holds a key twice")
    return items


def is_tensor(value: object) -> bool:
    """Whether a value is the note on a tensor, or on a parameter."""
    return type(value) is Record and (value.made_by in TENSORS or value.made_by in PARAMETERS)


def tensor_note(value: object) -> Record:
    """The note on a tensor, out of the one on the parameter around it if there is one."""
    if type(value) is Record and value.made_by in PARAMETERS and value.arguments:
        value = value.arguments[0]
    if type(value) is not Record or value.made_by not in TENSORS or len(value.arguments) < 4:
        raise RefusedError(f"a {type(value).__name__} in the place of a tensor")
    return value


def counted(value: object, what: str) -> int:
    """A size, offset or stride: an integer from 0."""
    if type(value) is not int or value < 0:
        raise RefusedError(f"a {what} that is negative or no integer")
    return value


def layout(note: Record) -> tuple[Storage, int, tuple[int, ...], tuple[int, ...]]:
    """A tensor's storage, offset, shape and strides, in elements, checked to lie inside it."""
    storage, offset, shape, strides = note.arguments[:4]
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise RefusedError("a tensor of an unknown form")
    if shape == (0,) and offset == 0:
        return storage, 0, (0,), (1,)
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS or 0 in shape:
        raise RefusedError("a tensor whose shape and strides do not fit")
    last = counted(offset, "tensor's offset") + sum(
        (counted(size, "tensor's size") - 1) * counted(stride, "tensor's stride")
        for size, stride in zip(shape, strides, strict=True)
    )
    if last >= storage.num_elements:
        raise RefusedError(f"a tensor that needs {last + 1:,} of {storage.num_elements:,} elements")
    return storage, offset, shape, strides


def num_bytes(note: Record) -> int:
    """The memory that the tensor takes once it is built."""
    storage, _, shape, _ = layout(note)
    return math.prod(shape) * storage.dtype.itemsize


def as_elements(storage: Storage, data: bytes) -> Tensor:
    """The bytes of a storage as a 1-D tensor with its own memory."""
    if len(data) != storage.num_bytes:
        raise RefusedError("a storage whose size differs from the one declared")
    if not data:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(data), dtype=storage.dtype)


def build_tensor(name: str, note: Record, memory: Mapping[str, Tensor]) -> Tensor:
    """The tensor that a note describes, with memory of its own; finite numbers only.

    Its strides stay (channels_last) where they leave no gaps: a fused optimiser takes the momentum
    of a parameter in the parameter's own order.
    """
    storage, offset, shape, strides = layout(note)
    if storage.dtype not in (torch.float32, torch.int64):
        raise RefusedError(f"{name} as {storage.dtype}")
    tensor = memory[storage.key].as_strided(shape, strides, offset).clone()
    if not tensor.isfinite().all():
        raise RefusedError(f"values in {name} that are not finite")
    return tensor
