"""What `torch.save` wrote, read without running anything in it.

`torch.load(weights_only=True)` runs nothing foreign either, but it believes a file's sizes: a few
bytes can make it take all memory (a bytearray of 2^40, a tensor that repeats one element, a
deflated storage) or keep it busy for ever (a nested tuple as a key). Looking a file through before
it is handed on does not help, since `torch.load` also does what leaves no trace in the value: it
builds what a later entry of the same dict replaces. So the notes themselves become the value, and
the work and the memory are bounded by the size of the file.

Layout, a zip without compression:
    FOLDER/data.pkl     a protocol 2 pickle
    FOLDER/byteorder    "little"
    FOLDER/data/KEY     the storages that the pickle refers to, by number
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from weights.safe_pickle import PickleReader, Record, RefusedError
from weights.tensor_notes import (
    TENSOR_NAMES,
    Storage,
    Storages,
    as_elements,
    build_tensor,
    is_tensor,
    mapping,
    num_bytes,
    tensor_note,
)

MAX_OPCODES = 2_000_000  # an epoch's record takes about 100, a tensor 40
MAX_VALUES = MAX_OPCODES  # those that stand in several places count in each
MAX_DEPTH = 20
LONGEST_KEY = 200
LONGEST_TEXT = 1000  # characters; one text may stand in many places
ENCRYPTED = 1  # a bit of a zip member's flags
PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Saved:
    """The parts of a file that count."""

    size: int  # of the file, in bytes
    note: object  # what the pickle says
    declared: Mapping[str, Storage]  # by key
    stored: Mapping[str, bytes]  # the storages' bytes, by key

    @classmethod
    def read(cls, path: Path) -> "Saved":
        """For a file of another form raises RefusedError, one of MISFITS, or what zipfile does."""
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = stored_members(archive, size)
            if "data.pkl" not in members:
                raise RefusedError("a zip file without data.pkl")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise RefusedError("numbers that are not little-endian")
            pickled = archive.read(members["data.pkl"])
            note, declared = read_pickle(pickled, max_bytes=size)
            stored = {key: archive.read(members[f"data/{key}"]) for key in declared}
        return cls(size, note, declared, stored)

    def value(self) -> object:
        """The saved value: dicts, lists, tuples, numbers, text, and tensors on the CPU.

        An OrderedDict comes back as a dict, a parameter as a tensor; tensors are float32 or int64,
        with memory of their own, and finite. Raises RefusedError for all else.
        """
        memory = {key: as_elements(self.declared[key], raw) for key, raw in self.stored.items()}
        return Unfolding(memory, bytes_left=self.size).value(self.note)


def read_pickle(pickled: bytes, max_bytes: int) -> tuple[object, dict[str, Storage]]:
    """What a pickle says, and the storages that it refers to, by key."""
    storages = Storages(max_bytes)
    reader = PickleReader(
        pickled, TENSOR_NAMES.__contains__, storages.resolve, max_opcodes=MAX_OPCODES
    )
    note = reader.read()
    if reader.position != len(pickled):
        raise RefusedError("bytes after the end of the pickle")
    if not all(re.fullmatch("[0-9]+", key) for key in storages.declared):
        raise RefusedError("a storage that has no number")
    return note, storages.declared


def stored_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The files in a zip by their name in its folder; none is compressed or overlaps another."""
    infos = archive.infolist()
    if any(info.flag_bits & ENCRYPTED for info in infos):
        raise RefusedError("an encrypted zip file")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise RefusedError("a compressed zip file")
    if any(info.compress_size != info.file_size for info in infos):
        raise RefusedError("a zip file that gives two sizes for one member")
    if sum(info.file_size for info in infos) > size:
        raise RefusedError("a zip file smaller than what it holds")
    members = {info.filename.partition("/")[2]: info for info in infos}
    if len(members) < len(infos):
        raise RefusedError("a zip file that holds a name twice")
    return members


def saved_tensor_note(value: Record) -> Record:
    """As `tensor_note`, of a tensor or parameter described as `torch.save` does today.

    Then nothing more is said than whether it is trained: no state, which would take the place of
    storage, shape and strides, no hooks, no metadata. Raises RefusedError otherwise.
    """
    note = tensor_note(value)
    after = [note.arguments[4:]] if note is value else [note.arguments[4:], value.arguments[1:]]
    if any(each.state is not None or each.items for each in (note, value)):
        raise RefusedError("a tensor with a state")
    for requires_grad, *hooks in filter(None, after):
        if type(requires_grad) is not bool or hooks and not is_empty(*hooks):
            raise RefusedError("a tensor with hooks or metadata")
    return note


def is_empty(value: object, *more: object) -> bool:
    """Whether there is one value, and it is the note on an OrderedDict without anything in it."""
    return not more and type(value) is Record and value.state is None and not mapping(value)


@dataclass
class Unfolding:
    """Puts values in the place of notes, as many as the limits allow."""

    memory: Mapping[str, Tensor]  # the storages, by key
    bytes_left: int  # for tensors, which may not take more memory than the file
    values_left: int = MAX_VALUES

    def value(self, note: object, name: str = "", depth: int = 0) -> object:
        """What a note stands for; `name` leads there through the dicts around it."""
        self.values_left -= 1
        if self.values_left < 0 or depth > MAX_DEPTH:
            raise RefusedError("values that are nested too deeply, or too many")
        if type(note) in PLAIN:
            if type(note) is str and len(note) > LONGEST_TEXT:
                raise RefusedError(f"a text of more than {LONGEST_TEXT:,} characters")
            return note
        if is_tensor(note):
            return self.tensor(saved_tensor_note(note), name)
        if type(note) in (list, tuple):
            return type(note)([self.value(each, name, depth + 1) for each in note])
        items = mapping(note)
        if any(len(str(key)) > LONGEST_KEY for key in items):
            raise RefusedError(f"a key of more than {LONGEST_KEY} characters")
        return {
            key: self.value(each, f"{name}.{key}".lstrip("."), depth + 1)
            for key, each in items.items()
        }

    def tensor(self, note: Record, name: str) -> Tensor:
        """The tensor that a note describes."""
        self.bytes_left -= num_bytes(note)
        if self.bytes_left < 0:
            raise RefusedError("tensors that take more memory than the file")
        return build_tensor(name, note, self.memory)
