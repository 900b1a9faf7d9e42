"""A closed unpickler: it reads what a pickle says and does none of it.

A pickle is a small program, and Python's own reader runs whatever the program names. Two files that
users download are pickles: the authors' pretrained network and the public means. Here a class or
function stays a `Global`, taken from a closed list, and a call stays a `Call`, a note of what was
asked for. Opcodes that these files do not need are unknown.

The base class is the pickle module's reader in Python. The one in C keeps its opcodes open: a few
bytes make it reserve gigabytes, and a nested tuple as a key keeps it busy for ever.
"""

import io
import pickle
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import SpotTuneError, brief

MAX_PICKLE_BYTES = 2**20  # the pretrained network's take 41,136; an opcode may cost 100 bytes
MAX_PAIRS = 100_000  # of all OrderedDicts; those of a ResNet-26 hold about 600
OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE SHORT_BINBYTES
    EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID
""".split()  # noqa: SIM905 - as a list it would fill a page


class RefusedError(pickle.UnpicklingError):
    """Says what was found in a file that cannot be accepted, without naming the file."""


# What Python raises when the values in a file do not fit together.
MISFITS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    struct.error,
)


class Global(str):
    """A class or function that a pickle names, as "module.name"; never looked up, so never run."""


@dataclass(eq=False, slots=True)
class Call:
    """A call that a pickle asks for, and the state that it then sets."""

    function: Global
    arguments: tuple
    state: object = None


class ClosedUnpickler(pickle._Unpickler):
    """Reads one pickle of any protocol; Python 2's byte strings come back as text, latin1.

    An OrderedDict comes back as a dict. `load` raises `RefusedError` or another of `MISFITS`.
    """

    known: frozenset[str] = frozenset()  # the names that a kind of file may hold
    dispatch = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in OPCODES
    }

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="latin1")
        self.pairs_left = MAX_PAIRS

    def find_class(self, module: str, name: str) -> Global:
        found = Global(f"{module}.{name}")
        if not self.is_known(found):
            raise RefusedError(f"the name {brief(repr(str(found)))}")
        return found

    def is_known(self, name: Global) -> bool:
        return name in self.known or name == "collections.OrderedDict"

    def load_call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise RefusedError(f"a call of a {type(function).__name__}")
        if function == "collections.OrderedDict":
            self.append({})
            self.fill_from(*arguments)
        else:
            self.append(Call(function, arguments))

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_call

    def fill_from(self, pairs: Sequence = ()) -> None:
        """Python 2 writes an OrderedDict as a call with [[key, value], ...]."""
        self.pairs_left -= len(pairs)
        if self.pairs_left < 0:  # calls with one long list, over and over
            raise RefusedError("more entries than the file can hold")
        for key, value in pairs:
            self.fill([key, value])

    def fill(self, items: list) -> None:
        """Entries for the dict on top. Only keys whose hash is cheap and hard to forge."""
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and not (type(key) is int and abs(key) < 2**63):
                raise RefusedError(f"a {type(key).__name__} as a key")
            self.stack[-1][key] = value

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is Call:
            self.stack[-1].state = state
        elif type(self.stack[-1]) is not dict:  # a state_dict has a state that is not needed
            raise RefusedError(f"a state for a {type(self.stack[-1]).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.fill([key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        self.fill(self.pop_mark())

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.fill(items)

    dispatch[pickle.DICT[0]] = load_dict

    # Protocol 0 numbers its memo in decimal. Kept as text: integers could be made to share a hash.

    def load_put(self) -> None:
        self.memo[self.readline()] = self.stack[-1]

    dispatch[pickle.PUT[0]] = load_put

    def load_get(self) -> None:
        self.append(self.memo[self.readline()])

    dispatch[pickle.GET[0]] = load_get

    def load_bytearray8(self) -> None:  # the base class believes the length
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def read_whole(path: Path, max_bytes: int) -> bytes:
    """The content of an ordinary file of at most `max_bytes`; raises SpotTuneError otherwise."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "a device" if path.exists() else "nothing"
        raise SpotTuneError(f"{path}: found {found}, expected a file; check the path")
    size = path.stat().st_size
    if size > max_bytes:
        raise SpotTuneError(
            f"{path}: found {size:,} bytes, expected at most {max_bytes:,}; is this another file?"
        )
    return path.read_bytes()


@contextmanager
def refusing(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a bad file causes into one line: PATH: found …, expected …"""
    try:
        yield
    except MISFITS as error:
        misfit = f"a damaged file, or one of another kind ({type(error).__name__})"
        found = str(error) if isinstance(error, RefusedError) else misfit
        raise SpotTuneError(f"{path}: found {found}, expected {expected}") from error
