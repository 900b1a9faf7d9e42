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

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from runtime.errors import brief
from weights.safe_pickle import (
    Name,
    PickleReader,
    Record,
    RefusedError,
    check_is_file,
    read_whole,
    refusing,
)
from weights.tensor_notes import (
    ORDERED_DICT,
    TENSOR_NAMES,
    Storage,
    Storages,
    as_elements,
    build_tensor,
    mapping,
    num_bytes,
    tensor_note,
)

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
PROTOCOL_VERSION = 1001
MAX_BYTES = 2**28  # the file takes 23.5 million
MAX_ENTRIES = 10_000  # modules, parameters and buffers; a ResNet-26 has about 500
NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
LONGEST_NAME = 200
DATA_PARALLEL_PREFIX = "module."

EXPECTED = "the pretrained network in PyTorch 0.4's format (resnet26_pretrained.t7)"
ADVICE = "download it again, or name another file"

# Beside the network the file keeps an accuracy, perhaps as a numpy value, which is not used.
OTHERS = {
    Name("torch", "Size"),
    Name("__builtin__", "set"),
    Name("numpy", "dtype"),
    Name("numpy", "ndarray"),
    Name("numpy.core.multiarray", "_reconstruct"),
    Name("numpy.core.multiarray", "scalar"),
}
KNOWN_NAMES = TENSOR_NAMES | OTHERS


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
        reader = PickleReader(data, is_known, class_or_storage(storages), position=len(MAGIC))
        check_header(version=reader.read(), machine=reader.read())
        notes = weight_notes(saved_network(reader.read()))
        keys = reader.read()
        memory = read_storages(storages.declared, data, reader.position, keys)
        check_total_size(notes, len(data))
        return {name: build_tensor(name, note, memory).contiguous() for name, note in notes.items()}


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


def class_or_storage(storages: Storages) -> Callable[[object], object]:
    """What a persistent id stands for: a storage, or the class of a module, which stays a name.

    ("module", class, source file, source text)
    """

    def resolve(identity: object) -> object:
        is_class = type(identity) is tuple and len(identity) == 4 and identity[0] == "module"
        if is_class and type(identity[1]) is Name:
            return identity[1]
        return storages.resolve(identity)

    return resolve


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


def weight_notes(net: object) -> dict[str, Record]:
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
            raise RefusedError(f"the name {brief(repr(name))} in the network")
    return found


def check_total_size(notes: Mapping[str, Record], max_bytes: int) -> None:
    """No tensor is empty, and all together take no more memory than the file they come from."""
    sizes = [num_bytes(note) for note in notes.values()]
    if 0 in sizes:
        raise RefusedError("a tensor without elements")
    if sum(sizes) > max_bytes:
        raise RefusedError(f"tensors of {sum(sizes):,} bytes in a file of {max_bytes:,}")


def read_storages(
    declared: Mapping[str, Storage], data: bytes, position: int, keys: object
) -> dict[str, Tensor]:
    """Each storage as a 1-D tensor; `keys` gives their order in `data` from `position` on."""
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise RefusedError("a list of storages that is no list of keys")
    if len(keys) != len(declared) or set(keys) != set(declared):
        raise RefusedError("a list of storages that differs from those the network refers to")
    tensors = {}
    for key in keys:
        tensors[key] = elements(declared[key], data, position)
        position += 8 + tensors[key].nbytes
    if position != len(data):
        raise RefusedError(f"{len(data) - position:,} bytes after the last storage")
    return tensors


def elements(storage: Storage, data: bytes, position: int) -> Tensor:
    """The elements of the storage at `position`, after their number."""
    start = position + 8
    end = start + storage.num_bytes
    if end > len(data):
        raise RefusedError(f"a file that ends {end - len(data):,} bytes too early")
    if int.from_bytes(data[position:start], "little") != storage.num_elements:
        raise RefusedError("a storage whose size differs from the one declared")
    return as_elements(storage, data[start:end])
