"""Reading what a pickle says without doing what it says.

A pickle is a small program, and Python's own reader runs whatever it names. Two files that users
download are pickles: the authors' pretrained network and the public mean_std. Here classes and
functions stay names, and calls stay records: there is nothing a file could make this reader run.

It is a reader of its own rather than a restricted `pickle.Unpickler`, because closing `find_class`
leaves that one open to files that only exhaust it: one LONG_BINPUT reserves gigabytes, and hashing
a nested tuple as a key of a dict takes forever or overflows the C stack. Here every opcode costs
about the same, keys are text or integers, and the number of opcodes is limited.

Source: the opcodes and what they mean are those of `pickletools` in the standard library.
"""

import pickle  # its names of the opcodes only
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import SpotTuneError, brief

MAX_OPCODES = 500_000  # the pretrained network takes 14,000
LONGEST_INTEGER = 8  # bytes: larger ones could be made to share a hash, which slows a dict down
LONGEST_DECIMAL = 20  # digits, with the sign
LONGEST_NAME = 200  # characters, of a class or function

# What Python raises when values taken from a file do not fit together, apart from `RefusedError`.
MISFITS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    struct.error,
)


class RefusedError(ValueError):
    """Says what was found in a file that cannot be accepted, without naming the file."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names; never looked up, so never run."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Record:
    """A call that a pickle asks for, kept as a note of what it was asked with."""

    made_by: Name
    arguments: tuple
    state: object = None
    items: dict = field(default_factory=dict)


def refuse_persistent(identity: object) -> object:
    """The answer to persistent ids where a file may hold none."""
    raise RefusedError("a reference to something outside the pickle")


class PickleReader:
    """Reads the protocol 2 pickles that stand one after another in `data`.

    Known names come back as `Name`, calls as `Record`, the rest as plain values; Python 2's byte
    strings as text, latin1. `is_known` is the closed list of names; `persistent` answers persistent
    ids. `position` is that of the next byte to read. Raises `RefusedError`, or one of `MISFITS`.
    """

    def __init__(
        self,
        data: bytes,
        is_known: Callable[[Name], bool],
        persistent: Callable[[object], object] = refuse_persistent,
        position: int = 0,
        max_opcodes: int = MAX_OPCODES,
    ) -> None:
        self.data = data
        self.is_known = is_known
        self.persistent = persistent
        self.position = position
        self.max_opcodes = max_opcodes
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def read(self) -> object:
        """The value of the pickle at `position`, which moves to the byte after it."""
        self.stack, self.marks, self.memo = [], [], {}
        for _ in range(self.max_opcodes):
            opcode = self.take(1)
            if opcode == pickle.STOP:
                return self.result()
            if opcode not in STEPS:
                raise RefusedError(f"the pickle opcode {opcode!r}, unknown to files of this kind")
            STEPS[opcode](self)
        raise RefusedError(f"a pickle of more than {self.max_opcodes:,} opcodes")

    def result(self) -> object:
        """The one value that is left at the end of a pickle."""
        if len(self.stack) != 1 or self.marks:
            raise RefusedError(f"a pickle that ends with {len(self.stack)} values instead of one")
        return self.stack[0]

    # What the opcodes take from the file.

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        taken = self.data[self.position : self.position + count]
        if len(taken) < count:
            raise RefusedError("a pickle that ends too early")
        self.position += count
        return taken

    def number(self, form: str) -> int | float:
        """The next number, in the form that `struct` calls `form`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def long(self) -> int:
        """An integer that is preceded by its length in bytes."""
        length = self.number("<B")
        if length > LONGEST_INTEGER:
            raise RefusedError(f"an integer of {length} bytes")
        return int.from_bytes(self.take(length), "little", signed=True)

    def decimal(self) -> int:
        """An integer in digits."""
        digits = self.line()
        if len(digits) > LONGEST_DECIMAL:
            raise RefusedError(f"an integer of {len(digits)} digits")
        return int(digits)

    def text(self, length_form: str, encoding: str) -> str:
        """Text that is preceded by its length in bytes."""
        return self.take(self.number(length_form)).decode(encoding)

    def line(self) -> str:
        """Text that ends with a line break."""
        end = self.data.find(b"\n", self.position, self.position + LONGEST_NAME)
        if end < 0:
            raise RefusedError("a name without an end")
        return self.take(end + 1 - self.position)[:-1].decode("ascii")

    def known_name(self) -> Name:
        """A class or function, from the closed list only."""
        name = Name(self.line(), self.line())
        if not (name.name.isidentifier() and self.is_known(name)):
            raise RefusedError(f"the name {brief(repr(str(name)))}, unknown to files of this kind")
        return name

    # What they do with the stack of values.

    def push(self, value: object) -> None:
        """Put a value on top."""
        self.stack.append(value)

    def pop(self, count: int) -> list:
        """Remove the top `count` values, down to the last mark at most."""
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise RefusedError("a pickle that takes more values than it made")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def pop_to_mark(self) -> list:
        """Remove all values above the last mark, and the mark."""
        if not self.marks:
            raise RefusedError("a pickle that takes more values than it made")
        taken = self.pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return taken

    def top(self, *kinds: type) -> object:
        """The top value, which stays there and must be of one of `kinds`."""
        (value,) = self.pop(1)
        self.push(value)
        if type(value) not in kinds:
            raise RefusedError(f"a pickle that fills a {type(value).__name__}")
        return value

    def check_protocol(self, protocol: int) -> None:
        """Protocol 2 is what Python 2 wrote, and what Python 3 can write for it."""
        if protocol != 2:
            raise RefusedError(f"a pickle of protocol {protocol} instead of 2")

    def remember(self, index: int) -> None:
        """Keep the top value for later."""
        (self.memo[index],) = self.pop(1)
        self.push(self.memo[index])

    def recall(self, index: int) -> None:
        """Put a value on top that was kept before."""
        if index not in self.memo:
            raise RefusedError("a pickle that refers to a value it never made")
        self.push(self.memo[index])

    def extend(self, values: list) -> None:
        """Append to the list on top."""
        self.top(list).extend(values)

    def set_items(self, keys_and_values: list) -> None:
        """Add entries to the dict on top. Only keys whose hash is cheap and hard to forge."""
        owner = self.top(dict, Record)
        items = owner if type(owner) is dict else owner.items
        keys, values = keys_and_values[::2], keys_and_values[1::2]
        if any(type(key) not in (str, int) for key in keys):
            raise RefusedError("a dict whose keys are neither text nor integers")
        items.update(zip(keys, values, strict=True))

    def note_call(self) -> None:
        """Note a call instead of making it."""
        function, arguments = self.pop(2)
        if type(function) is not Name or type(arguments) is not tuple:
            kinds = f"{type(function).__name__} with a {type(arguments).__name__}"
            raise RefusedError(f"a call of a {kinds}")
        self.push(Record(function, arguments))

    def note_state(self) -> None:
        """Note an object's state instead of setting it."""
        (state,) = self.pop(1)
        self.top(Record).state = state


# All that a file can make happen: the opcodes that picklers write in protocol 2.
STEPS: dict[bytes, Callable[[PickleReader], None]] = {
    pickle.PROTO: lambda reader: reader.check_protocol(reader.number("<B")),
    pickle.MARK: lambda reader: reader.marks.append(len(reader.stack)),
    pickle.NONE: lambda reader: reader.push(None),
    pickle.NEWTRUE: lambda reader: reader.push(True),
    pickle.NEWFALSE: lambda reader: reader.push(False),
    pickle.BININT: lambda reader: reader.push(reader.number("<i")),
    pickle.BININT1: lambda reader: reader.push(reader.number("<B")),
    pickle.BININT2: lambda reader: reader.push(reader.number("<H")),
    pickle.INT: lambda reader: reader.push(reader.decimal()),  # Python 2 from 2^31 on
    pickle.LONG1: lambda reader: reader.push(reader.long()),
    pickle.BINFLOAT: lambda reader: reader.push(reader.number(">d")),
    pickle.SHORT_BINSTRING: lambda reader: reader.push(reader.text("<B", "latin1")),
    pickle.BINSTRING: lambda reader: reader.push(reader.text("<I", "latin1")),
    pickle.BINUNICODE: lambda reader: reader.push(reader.text("<I", "utf-8")),
    pickle.EMPTY_TUPLE: lambda reader: reader.push(()),
    pickle.TUPLE1: lambda reader: reader.push(tuple(reader.pop(1))),
    pickle.TUPLE2: lambda reader: reader.push(tuple(reader.pop(2))),
    pickle.TUPLE3: lambda reader: reader.push(tuple(reader.pop(3))),
    pickle.TUPLE: lambda reader: reader.push(tuple(reader.pop_to_mark())),
    pickle.EMPTY_LIST: lambda reader: reader.push([]),
    pickle.APPEND: lambda reader: reader.extend(reader.pop(1)),
    pickle.APPENDS: lambda reader: reader.extend(reader.pop_to_mark()),
    pickle.EMPTY_DICT: lambda reader: reader.push({}),
    pickle.SETITEM: lambda reader: reader.set_items(reader.pop(2)),
    pickle.SETITEMS: lambda reader: reader.set_items(reader.pop_to_mark()),
    pickle.BINPUT: lambda reader: reader.remember(reader.number("<B")),
    pickle.LONG_BINPUT: lambda reader: reader.remember(reader.number("<I")),
    pickle.BINGET: lambda reader: reader.recall(reader.number("<B")),
    pickle.LONG_BINGET: lambda reader: reader.recall(reader.number("<I")),
    pickle.GLOBAL: lambda reader: reader.push(reader.known_name()),
    pickle.REDUCE: PickleReader.note_call,
    pickle.NEWOBJ: PickleReader.note_call,
    pickle.BUILD: PickleReader.note_state,
    pickle.BINPERSID: lambda reader: reader.push(reader.persistent(*reader.pop(1))),
}


def check_is_file(path: Path) -> None:
    """Raise SpotTuneError unless `path` is an ordinary file."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "a device" if path.exists() else "nothing"
        raise SpotTuneError(f"{path}: found {found}, expected a file; check the path")


def read_whole(path: Path, max_bytes: int) -> bytes:
    """The content of an ordinary file of at most `max_bytes`; raises SpotTuneError otherwise."""
    check_is_file(path)
    size = path.stat().st_size
    if size > max_bytes:
        raise SpotTuneError(
            f"{path}: found {size:,} bytes, expected at most {max_bytes:,}; is this another file?"
        )
    return path.read_bytes()


@contextmanager
def refusing(path: Path, expected: str, advice: str) -> Iterator[None]:
    """Turn whatever a bad file causes into one line: PATH: found …, expected …; advice."""
    try:
        yield
    except MISFITS as error:
        misfit = f"values that do not fit together ({type(error).__name__})"
        found = str(error) if isinstance(error, RefusedError) else misfit
        raise SpotTuneError(f"{path}: found {found}, expected {expected}; {advice}") from error
