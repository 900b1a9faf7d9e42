"""Damage to pickles, opcode by opcode: hostile names, calls, bombs."""

import io
import pickletools
import struct
from collections.abc import Sequence
from random import Random

from damage_bytes import EXTREMES

# Modules and what they hold, as a pickle may name them.
HOSTILE_NAMES = """
os.system posix.system builtins.eval builtins.exec __builtin__.eval builtins.open
builtins.__import__ builtins.getattr builtins.bytearray builtins.compile subprocess.Popen
subprocess.check_output importlib.import_module runpy.run_path pickle.loads torch.load
torch.hub.load torch.storage._load_from_bytes ctypes.CDLL socket.create_connection shutil.rmtree
webbrowser.open numpy.load torch.utils.cpp_extension.load _codecs.encode codecs.open
operator.attrgetter torch._utils._rebuild_meta_tensor_no_storage
torch._utils._rebuild_sparse_tensor torch._utils._rebuild_wrapper_subclass torch.BFloat16Storage
models.legacy_t7.torch torch.nn.modules.torch copyreg._reconstructor antigravity.fly
""".split()  # noqa: SIM905 - as a list it would fill a page


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def doubled(rounds: int) -> bytes:
    """A nested tuple of 2^rounds leaves, each made once: hashing or copying it takes for ever."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(rounds))


def call(name: str, argument: str) -> bytes:
    return named(name) + text(argument) + b"\x85R"


CANARY = "touch canary"
# Values and single opcodes that would exhaust a reader, or that lie.
BOMBS = (
    b"}" + doubled(60) + b"Ns",
    b"](" + doubled(60) + b"e",
    named("builtins.bytearray") + b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85R",
    b"N" + b"r\xff\xff\xff\x7f",
    b"T" + struct.pack("<I", 2**31 - 1),
    b"X" + struct.pack("<I", 2**32 - 1),
    b"\x8d" + struct.pack("<Q", 2**62),
    b"\x96" + struct.pack("<Q", 2**40),
    b"\x8b" + struct.pack("<I", 2**31 - 1),
    b"\x8a\xff" + bytes(range(255)),
    b"I" + b"9" * 5000 + b"\n",
    b"F1e999\n",
    b"G\x7f\xf8\0\0\0\0\0\0",
    b"G\xff\xf0\0\0\0\0\0\0",
    b"(" * 50_000,
    b"]" * 30_000 + b"a" * 29_999,
    b"}" * 3000,
    b"c" + b"a" * 5000 + b"\n" + b"b" * 5000 + b"\n",
    b"c" + b"\x1b" * 150 + b"\n[2J\n",
    text("x" * 100_000),
    text("\x1b[2J\nnewline\u2028"),
    b"\x80\x05",
    b"\x95" + struct.pack("<Q", 2**63),
    b"\x82\x01",
    b"\x83\x01\x00",
    b"P" + CANARY.encode() + b"\n",
    b".",
    b"Q",
    b"0",
    b"2",
)


# What may be added to the call that makes a tensor: one more argument; after it a state or an item.
STORED = b"(" + text("storage") + named("torch.FloatStorage") + text("0") + text("cpu") + b"K\x1btQ"
ARGUMENTS = (b"K\x01", b"N", b"}", b"]", b"\x88")
STATES = (
    *(
        b"(" + STORED + b"K\0" + size + b"\x85" + stride + b"\x85tb"
        for size in (b"K\x04", b"J\0\0\0\x10", b"\x8a\x06" + (2**40).to_bytes(6, "little"))
        for stride in (b"K\0", b"K\x01")
    ),
    b"}b",
    b")b",
    b"Nb",
    text("key") + b"Ns",
)


def hostile_snippet(chance: Random) -> bytes:
    """Opcodes that would run something, or exhaust a reader that trusts them."""
    name = chance.choice(HOSTILE_NAMES)
    module, _, attribute = name.rpartition(".")
    forms = (
        call(name, CANARY),
        named(name) + text(CANARY) + b"\x85\x81",  # NEWOBJ
        named(name) + text(CANARY) + b"\x85}\x92",  # NEWOBJ_EX
        named(name) + b")R}" + text("__setstate__") + named(name) + b"sb",  # BUILD
        text(module) + text(attribute) + b"\x93" + text(CANARY) + b"\x85R",  # STACK_GLOBAL
        b"(" + text(CANARY) + f"i{module}\n{attribute}\n".encode(),  # INST
        b"(" + named(name) + text(CANARY) + b"o",  # OBJ
        call(name, CANARY) + b"Q",  # as a persistent id
    )
    return chance.choice(forms) if chance.random() < 0.5 else chance.choice(BOMBS)


def opcodes(data: bytes, count: int) -> tuple[list[bytes], bytes]:
    """The first `count` pickles in `data` cut into single opcodes, and what follows them."""
    stream = io.BytesIO(data)
    begins = []
    for _ in range(count):
        begins += [position for _, _, position in pickletools.genops(stream)]
    ends = [*begins[1:], stream.tell()]
    return [data[i:j] for i, j in zip(begins, ends, strict=True)], data[ends[-1] :]


def damaged_pickle(parts: Sequence[bytes], chance: Random, others: Sequence[bytes]) -> bytes:
    """Some of a pickle's opcodes changed; `others` are opcodes of other pickles."""
    parts = list(parts)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(parts))
        damage_opcode(parts, place, chance, others)
    return b"".join(parts)


def damage_opcode(parts: list[bytes], place: int, chance: Random, others: Sequence[bytes]) -> None:
    """Change `parts` at `place`, in one of ten ways."""
    kind = chance.randrange(10)
    here = parts[place]
    if kind == 0:  # another name in the place of one
        names = [i for i, part in enumerate(parts) if part[:1] == b"c"] or [place]
        parts[chance.choice(names)] = named(chance.choice(HOSTILE_NAMES))
    elif kind <= 2:  # a value more, or another value
        parts[place : place + (kind - 1)] = [hostile_snippet(chance)]
    elif kind == 3:
        del parts[place : place + chance.choice((1, 1, 2, 10))]
    elif kind == 4:
        parts[place:place] = parts[place : place + chance.choice((1, 2, 5, 50))]
    elif kind == 5:  # something out of another file
        begin = chance.randrange(len(others))
        parts[place : place + 1] = others[begin : begin + chance.choice((1, 1, 5, 200))]
    elif kind == 6:  # the same argument to another opcode
        parts[place] = bytes([chance.randrange(256)]) + here[1:]
    elif kind == 7 and len(here) > 1:  # another argument
        number = chance.choice(EXTREMES).to_bytes(8, "little")
        parts[place] = (here[:1] + number)[: len(here)] if len(here) < 10 else here[:-2] + number
    elif kind == 8:
        add_to_a_call(parts, chance)
    else:
        other = chance.randrange(len(parts))
        parts[place], parts[other] = parts[other], parts[place]
    if not parts:
        parts.append(b".")


def add_to_a_call(parts: list[bytes], chance: Random) -> None:
    """One more argument or, more often, a state."""
    calls = [i for i, part in enumerate(parts) if part == b"R"]
    if not calls:
        return
    call = chance.choice(calls)
    if chance.random() < 0.3:
        parts.insert(max(0, call - 2), chance.choice(ARGUMENTS))  # before the tuple is closed
    else:
        parts.insert(call + 1, chance.choice(STATES))
