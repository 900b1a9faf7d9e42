"""The weights in the authors' `resnet26_pretrained.t7`, read without running anything in it.

The file was written by PyTorch 0.4 under Python 2 as `torch.save({"net": network, ...})`: not a
dict of tensors but the pickle of a whole module, which an ordinary `torch.load` can only read by
importing and calling what the file names, and which `torch.load(weights_only=True)` refuses.

Layout, in this order:
    four pickles     magic number, protocol version, facts on the machine, the saved dict
    one pickle       the keys of the storages, in the order in which they follow
    the storages     each: number of elements (8 bytes), then the elements, little-endian
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from runtime.errors import brief
from weights.closed_pickle import MAX_PICKLE_BYTES, Call, ClosedUnpickler, Global
from weights.malformed import RefusedError

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
MAX_PARTS = 10_000  # modules, parameters and buffers; a ResNet-26 has about 500
LONGEST_NAME = 200
MAX_DIMENSIONS = 4
DTYPES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
}
PARAMETERS = ("torch.nn.parameter.Parameter", "torch._utils._rebuild_parameter")
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")


@dataclass
class Storage:
    """A run of elements that stands outside the pickles."""

    dtype: np.dtype
    size: int  # elements
    start: int = 0  # byte in the file


class LegacyUnpickler(ClosedUnpickler):
    """Reads one of the file's pickles, and notes in `storages`, by key, those that it refers to."""

    # Beside the network the file keeps an accuracy, perhaps as a numpy value, which is not used.
    known = ("models.", "torch.", "numpy.", "__builtin__.set")

    def __init__(self, stream: io.BytesIO, storages: dict[str, Storage]) -> None:
        super().__init__(stream)
        self.storages = storages

    def persistent_load(self, identity: object) -> Global | Storage:
        """A module's class, which stays a name, or a storage, whatever device it was on."""
        match identity:
            case "module", Global() as name, _, _:
                return name
            case "storage", Global() as kind, str(key), _, int(size), None:
                return self.storages.setdefault(key, Storage(np.dtype(DTYPES[kind]), size))
        raise RefusedError("a reference to something other than a class or a storage")


def read_legacy_weights(data: bytes) -> dict[str, Tensor]:
    """The network's parameters and buffers by name, from the content of a file.

    Names are such as "layer1.0.conv1.conv.weight", or "module.layer1..." of a DataParallel; values
    are CPU tensors with memory of their own. Raises one of MALFORMED for any other file.
    """
    stream = io.BytesIO(data[:MAX_PICKLE_BYTES])
    stream.seek(len(MAGIC))
    storages: dict[str, Storage] = {}
    _, _, saved, keys = (LegacyUnpickler(stream, storages).load() for _ in range(4))
    parts = list(islice(named_parts(network_in(saved)), MAX_PARTS + 1))
    if len(parts) > MAX_PARTS:
        raise RefusedError(f"a network of more than {MAX_PARTS:,} parts")
    place_storages(storages, keys, data, stream.tell())
    arrays = {name: array_of(part, data) for name, part in parts if part is not None}
    if sum(array.nbytes for array in arrays.values()) > len(data):
        raise RefusedError("tensors that take more memory than the file")
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def place_storages(storages: dict[str, Storage], keys: object, data: bytes, position: int) -> None:
    """Find where each storage starts in `data`, the first of `keys` at `position`."""
    if keys != sorted(storages):  # the order in which every PyTorch wrote them
        raise RefusedError("a list of storages that differs from those the network refers to")
    for key in keys:
        storage = storages[key]
        storage.start = position + 8
        if int.from_bytes(data[position : storage.start], "little") != storage.size:
            raise RefusedError("a storage whose size differs from the one declared")
        position = storage.start + storage.size * storage.dtype.itemsize
        if position > len(data):
            raise RefusedError(f"a file that ends {position - len(data):,} bytes too early")


def network_in(saved: object) -> object:
    """What the saved dict keeps under "net", a module or a state dict; or the value itself."""
    return saved["net"] if isinstance(saved, dict) and "net" in saved else saved


def named_parts(net: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Parameters and buffers by full name, modules in their order.

    Also None for each module, and for what it lacks (the bias of a convolution): by counting the
    parts the caller bounds the work, even if a module contains itself.
    """
    if isinstance(net, dict):
        yield from net.items()
        return
    for kind in ("_parameters", "_buffers", "_modules"):
        for name, part in net.state[kind].items():
            if len(prefix + name) > LONGEST_NAME:
                raise RefusedError(f"the name {brief(repr(prefix + name))} in the network")
            yield prefix + name, None if kind == "_modules" else part
            if kind == "_modules":
                yield from named_parts(part, f"{prefix}{name}.")


def array_of(part: object, data: bytes) -> np.ndarray:
    """The elements of a noted tensor or parameter, where they stand in the file."""
    if type(part) is Call and part.function in PARAMETERS:
        part = part.arguments[0]
    if type(part) is not Call or part.function not in TENSORS:
        raise RefusedError(f"{type(part).__name__} in the place of a tensor")
    storage, offset, shape, strides = part.arguments[:4]
    is_counts = all(type(number) is int and number >= 0 for number in (offset, *shape))
    if type(storage) is not Storage or not is_counts or len(shape) > MAX_DIMENSIONS:
        raise RefusedError("a tensor of an unknown form")
    size, itemsize = math.prod(shape), storage.dtype.itemsize
    if offset + size > storage.size:
        raise RefusedError(f"a tensor that needs {offset + size:,} of {storage.size:,} elements")
    start = storage.start + offset * itemsize
    array = np.frombuffer(data, storage.dtype, size, start).reshape(shape)
    if array.strides != tuple(stride * itemsize for stride in strides):
        raise RefusedError("a tensor whose elements are not in order")
    return array
