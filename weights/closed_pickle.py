"""A closed unpickler: it reads what a pickle says and does none of it.

A pickle is a small program, and Python's own reader runs whatever the program names. Two files that
users download are pickles: the authors' pretrained network and the public means. Here a class or
function of a few known packages stays a `Global`, its mere name, and a call stays a `Call`, a note
of what was asked for. Other names, and opcodes that these files do not need, are refused.

The base class is the pickle module's reader in Python. The one in C keeps its opcodes open: a few
bytes make it reserve gigabytes, and a nested tuple as a key keeps it busy for ever.
"""

import io
import pickle
from dataclasses import dataclass

from runtime.errors import brief
from weights.malformed import RefusedError

MAX_PICKLE_BYTES = 2**20  # the pretrained network's take 41,136; an opcode may cost 100 bytes
ORDERED_DICT = "collections.OrderedDict"
OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE SHORT_BINBYTES
    EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST LIST APPEND APPENDS SETITEM SETITEMS
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID
""".split()  # noqa: SIM905 - as a list it would fill a page


class Global(str):
    """A class or function that a pickle names, as "module.name"; never looked up, so never run."""


@dataclass(eq=False, slots=True)
class Call:
    """A call that a pickle asks for, and the state that it then sets."""

    function: Global
    arguments: tuple
    state: object = None


class Dict(dict):
    """A dict that takes only keys whose hash is cheap and hard to forge."""

    def __setitem__(self, key: str | int, value: object) -> None:
        if type(key) is not str and not (type(key) is int and abs(key) < 2**63):
            raise RefusedError(f"a {type(key).__name__} as a key")
        super().__setitem__(key, value)


class ClosedUnpickler(pickle._Unpickler):
    """Reads one pickle of any protocol; Python 2's byte strings come back as text, latin1.

    An OrderedDict comes back as a dict. `load` raises one of MALFORMED for what it does not know.
    """

    known: tuple[str, ...] = ()  # starts of the names that a kind of file may hold

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="latin1")

    def find_class(self, module: str, name: str) -> Global:
        found = Global(f"{module}.{name}")
        if not found.startswith((ORDERED_DICT, *self.known)):
            raise RefusedError(f"the name {brief(repr(str(found)))}")
        return found

    def load_call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise RefusedError(f"a call of a {type(function).__name__}")
        if function != ORDERED_DICT:
            self.append(Call(function, arguments))
            return
        made = Dict()
        for pairs in arguments:  # Python 2 calls it with [[key, value], ...], Python 3 with nothing
            for key, value in pairs:
                made[key] = value
            pairs.clear()  # serves once: a small file could fill many dicts with one long list
        self.append(made)

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is Call:  # an OrderedDict's own state is not needed
            self.stack[-1].state = state

    def load_empty_dict(self) -> None:
        self.append(Dict())

    def load_dict(self) -> None:
        items, made = self.pop_mark(), Dict()
        for key, value in zip(items[::2], items[1::2], strict=True):
            made[key] = value
        self.append(made)

    # Protocol 0 numbers its memo in decimal. Kept as text: integers could be made to share a hash.

    def load_put(self) -> None:
        self.memo[self.readline()] = self.stack[-1]

    def load_get(self) -> None:
        self.append(self.memo[self.readline()])

    def load_bytearray8(self) -> None:  # the base class believes the length
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in OPCODES
    } | {
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.BUILD[0]: load_build,
        pickle.EMPTY_DICT[0]: load_empty_dict,
        pickle.DICT[0]: load_dict,
        pickle.PUT[0]: load_put,
        pickle.GET[0]: load_get,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }
