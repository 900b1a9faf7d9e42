"""The weights in the authors' `resnet26_pretrained.t7`, read without running anything in it.

The file was written by PyTorch 0.4 under Python 2 as `torch.save({"net": network, ...})`: not a
dict of tensors but the pickle of a whole module, which an ordinary `torch.load` can only read by
importing and calling what the file names. This reads the pickle as plain notes (`safe_pickle`) and
takes from them the parameters and buffers. `torch.load(weights_only=True)` refuses this format.

Layout, in this order:
    four pickles     magic number, protocol version, facts on the machine, the saved dict
    one pickle       the keys of the storages, in the order in which they follow
    the storages     each: number of elements (8 bytes), then the elements, little-endian
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from safe_pickle import (
    Name,
    PickleReader,
    Record,
    RefusedError,
    check_is_file,
    read_whole,
    refusing,
)

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
PROTOCOL_VERSION = 1001
MAX_BYTES = 2**28  # the file takes 23.5 million
MAX_ENTRIES = 10_000  # modules, parameters and buffers; a ResNet-26 has about 500
MAX_DIMENSIONS = 8
NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
LONGEST_NAME = 200
DATA_PARALLEL_PREFIX = "module."

EXPECTED = "the pretrained network in PyTorch 0.4's format (resnet26_pretrained.t7)"
ADVICE = "download it again, or name another file"

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
# Beside the network the file keeps an accuracy, perhaps as a numpy value, which is not used.
OTHERS = {
    Name("torch", "Size"),
    Name("__builtin__", "set"),
    Name("numpy", "dtype"),
    Name("numpy", "ndarray"),
    Name("numpy.core.multiarray", "_reconstruct"),
    Name("numpy.core.multiarray", "scalar"),
}
KNOWN_NAMES = {ORDERED_DICT, *DTYPES, *PARAMETERS, *TENSORS, *OTHERS}


@dataclass(frozen=True)
class Storage:
    """A run of elements that stands at the end of the file."""

    key: str
    dtype: torch.dtype
    num_elements: int


@dataclass
class Storages:
    """The storages that the saved dict refers to, by key."""

    max_bytes: int
    declared: dict[str, Storage] = field(default_factory=dict)

    def resolve(self, identity: object) -> object:
        """What a persistent id stands for: a class, or a storage, which is noted as declared.

        ("module", class, source file, source text)
        ("storage", type, key, device, number of elements, None)
        """
        if type(identity) is not tuple or not identity:
            raise RefusedError("a persistent id of an unknown form")
        kind, *facts = identity
        if kind == "module" and len(facts) == 3 and type(facts[0]) is Name:
            return facts[0]
        if kind == "storage" and len(facts) == 5:
            return self.declare(*facts)
        raise RefusedError("a persistent id that is neither a module nor a storage")

    def declare(
        self, kind: object, key: object, device: object, num_elements: object, view: object
    ) -> Storage:
        """Note a storage, whatever device it was on; the same key must always mean the same."""
        if type(kind) is not Name or kind not in DTYPES or type(key) is not str:
            raise RefusedError("a storage of an unknown type")
        if view is not None:
            raise RefusedError("a storage that is part of another")
        storage = Storage(key, DTYPES[kind], counted(num_elements, "storage's size"))
        if storage.num_elements * storage.dtype.itemsize > self.max_bytes:
            raise RefusedError(f"a storage of {storage.num_elements:,} elements, beyond the file")
        if self.declared.setdefault(key, storage) != storage:
            raise RefusedError("two different storages under one key")
        return storage

    def read(self, data: bytes, position: int, keys: object) -> dict[str, Tensor]:
        """Each storage as a 1-D tensor; `keys` gives their order in `data` from `position` on."""
        if type(keys) is not list or any(type(key) is not str for key in keys):
            raise RefusedError("a list of storages that is no list of keys")
        if len(keys) != len(self.declared) or set(keys) != set(self.declared):
            raise RefusedError("a list of storages that differs from those the network refers to")
        tensors = {}
        for key in keys:
            tensors[key] = elements(self.declared[key], data, position)
            position += 8 + tensors[key].nbytes
        if position != len(data):
            raise RefusedError(f"{len(data) - position:,} bytes after the last storage")
        return tensors


def is_legacy(path: Path) -> bool:
    """Whether a file is in this format, by its first bytes; our own checkpoints are zip files.

    Raises SpotTuneError if there is no such file.
    """
    check_is_file(path)
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def read_legacy_weights(path: Path) -> dict[str, Tensor]:
    """The network's parameters and buffers by name, as the file has them.

    Names are such as "layer1.0.conv1.conv.weight" (without the "module." of DataParallel); values
    are CPU tensors with memory of their own, float32 and finite, or int64 for batch counts.
    Raises SpotTuneError for any other file, whatever is in it.
    """
    data = read_whole(path, MAX_BYTES)
    with refusing(path, EXPECTED, ADVICE):
        if not data.startswith(MAGIC):
            raise RefusedError(describe(data))
        storages = Storages(max_bytes=len(data))
        reader = PickleReader(data, is_known, storages.resolve, position=len(MAGIC))
        check_header(version=reader.read(), machine=reader.read())
        notes = tensor_notes(saved_network(reader.read()))
        keys = reader.read()
        memory = storages.read(data, reader.position, keys)
        check_total_size(notes, len(data))
        return {name: build_tensor(name, note, memory) for name, note in notes.items()}


def describe(data: bytes) -> str:
    """What a file that is not in this format seems to be."""
    if not data:
        return "an empty file"
    if data.startswith(b"PK"):
        return "a zip file, as current PyTorch writes them"
    if data[:100].lstrip().startswith(b"<"):
        return "a web page"
    return f"a file that begins with {data[:8]!r}"


def is_known(name: Name) -> bool:
    """Whether a network's pickle may name this; nothing that it names is ever called."""
    return name in KNOWN_NAMES or name.module == "models" or name.module.startswith("torch.nn.")


def check_header(version: object, machine: object) -> None:
    """The second and third pickle: the version of the format, and the order of bytes."""
    if version != PROTOCOL_VERSION:
        raise RefusedError("another version of the format")
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise RefusedError("numbers that are not little-endian")


def saved_network(saved: object) -> object:
    """What the saved dict keeps under "net": a noted module, or a state dict."""
    if type(saved) is not dict or "net" not in saved:
        raise RefusedError("saved values without a network ('net')")
    return saved["net"]


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


def tensor_notes(net: object) -> dict[str, Record]:
    """The notes on a network's parameters and buffers, by full name, modules in their order."""
    is_state_dict = type(net) is dict or (type(net) is Record and net.made_by == ORDERED_DICT)
    found = under_prefix("", mapping(net)) if is_state_dict else parts_by_name(net)
    if not found:
        raise RefusedError("a network without weights")
    if all(name.startswith(DATA_PARALLEL_PREFIX) for name in found):
        found = {name.removeprefix(DATA_PARALLEL_PREFIX): part for name, part in found.items()}
    return {name: tensor_note(part) for name, part in found.items()}


def parts_by_name(net: object) -> dict[str, object]:
    """The parameters and buffers of a noted module and of all modules inside it.

    All entries are counted each time they are met, the empty ones too: that bounds the work where
    modules stand in several places, and so does the length of a name where one contains itself.
    """
    found: dict[str, object] = {}
    waiting, entries = [("", net)], 0
    while waiting:
        prefix, module = waiting.pop()
        own, children = own_and_children(module)
        entries += 1 + len(own) + len(children)
        if entries > MAX_ENTRIES:
            raise RefusedError(f"a network of more than {MAX_ENTRIES:,} parts")
        found |= under_prefix(prefix, own)
        inner = under_prefix(prefix, children)
        waiting += [(name + ".", child) for name, child in reversed(inner.items())]
    return found


def own_and_children(module: object) -> tuple[dict[str, object], dict[str, object]]:
    """A module's own parameters and buffers, and its child modules."""
    if type(module) is not Record or type(module.state) is not dict:
        raise RefusedError("a part of the network that is no module")
    parameters, buffers, children = (
        mapping(module.state[kind]) for kind in ("_parameters", "_buffers", "_modules")
    )
    if parameters.keys() & buffers.keys():
        raise RefusedError("a parameter and a buffer of one name")
    return parameters | buffers, children


def under_prefix(prefix: str, parts: Mapping[str, object]) -> dict[str, object]:
    """The parts by full name, without the empty ones (a convolution without a bias has None)."""
    found = {prefix + str(name): part for name, part in parts.items() if part is not None}
    for name in found:
        if len(name) > LONGEST_NAME or not NAME.fullmatch(name):
            raise RefusedError(f"the name {name[:LONGEST_NAME]!r} in the network")
    return found


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
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS or 0 in shape:
        raise RefusedError("a tensor whose shape and strides do not fit")
    last = counted(offset, "tensor's offset") + sum(
        (counted(size, "tensor's size") - 1) * counted(stride, "tensor's stride")
        for size, stride in zip(shape, strides, strict=True)
    )
    if last >= storage.num_elements:
        raise RefusedError(f"a tensor that needs {last + 1:,} of {storage.num_elements:,} elements")
    return storage, offset, shape, strides


def check_total_size(notes: Mapping[str, Record], max_bytes: int) -> None:
    """The tensors may not take more memory than the file they come from."""
    total = 0
    for note in notes.values():
        storage, _, shape, _ = layout(note)
        total += math.prod(shape) * storage.dtype.itemsize
    if total > max_bytes:
        raise RefusedError(f"tensors of {total:,} bytes in a file of {max_bytes:,}")


def elements(storage: Storage, data: bytes, position: int) -> Tensor:
    """The elements of the storage at `position` as a 1-D tensor with its own memory."""
    start = position + 8
    end = start + storage.num_elements * storage.dtype.itemsize
    if end > len(data):
        raise RefusedError(f"a file that ends {end - len(data):,} bytes too early")
    if int.from_bytes(data[position:start], "little") != storage.num_elements:
        raise RefusedError("a storage whose size differs from the one declared")
    if storage.num_elements == 0:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(data[start:end]), dtype=storage.dtype)


def build_tensor(name: str, note: Record, memory: Mapping[str, Tensor]) -> Tensor:
    """The tensor that a note describes, contiguous, with memory of its own."""
    storage, offset, shape, strides = layout(note)
    if storage.dtype not in (torch.float32, torch.int64):
        raise RefusedError(f"{name} as {storage.dtype}")
    view = memory[storage.key].as_strided(shape, strides, offset)
    tensor = view.clone(memory_format=torch.contiguous_format)
    if not tensor.isfinite().all():
        raise RefusedError(f"values in {name} that are not finite")
    return tensor
