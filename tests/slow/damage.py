"""Damage to files: blind, to JSON value by value, to pickles opcode by opcode, to archives.

Most functions take a file's bytes and a source of chance, and return the bytes of a damaged file.
"""

import io
import json
import pickletools
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from random import Random

from released_files import ATTACKS, NESTED_TUPLE, call, name, storage, text

Damage = Callable[[bytes, Random], bytes]
NUMBERS = (0, 1, 2, 127, 255, 2**15, 2**16 - 1, 60_000, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
NUMBERS += (2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def blind(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    """One to three places changed; `others` are files to go on with in the middle of this one."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.random() ** chance.choice((1, 4))  # headers stand at the start or the end
        start = int(chance.choice((place, place, 1 - place)) * len(data))
        end = start + chance.choice((1, 1, 2, 4, 8, 30, 300, 3000))
        before, inside, after = data[:start], data[start:end], data[end:]
        match chance.randrange(8):
            case 0:  # one bit
                inside = bytes(byte ^ 1 << chance.randrange(8) for byte in inside[:1]) + inside[1:]
            case 1:  # cut short
                inside = after = b""
            case 2:  # a range missing
                inside = b""
            case 3:  # a range repeated
                inside *= chance.choice((2, 2, 1000)) if len(inside) < 100 else 2
            case 4:
                before += chance.randbytes(chance.randint(1, 8))
            case 5:
                inside = bytes(len(inside))
            case 6:  # a length that lies
                inside = number(chance, chance.choice((1, 2, 4, 8)))
                after = data[start + len(inside) :]
            case 7:
                inside, other = b"", chance.choice(others)
                after = other[chance.randrange(len(other) + 1) :]
        data = before + inside + after
    return data


def number(chance: Random, length: int) -> bytes:
    order = chance.choice(("little", "big"))
    return (chance.choice(NUMBERS) % 256**length).to_bytes(length, order)


# JSON.

RAW_JSON = ("NaN", "-Infinity", "1e999", "9" * 6000, "-" + "9" * 30, "[" * 500 + "]" * 500)
RAW_JSON += ("[" * 100_000, '{"a":' * 100_000, '"\\ud800"', '"\\u001b[2J"', "01", "'x'", "")
ODD_VALUES = (None, True, -1, 0, 1, 1.5, 2.0**63, 2**31, 2**63 - 1, 2**64, 10**400, "", "1", "\0")
ODD_VALUES += ("x" * 10_000, [], {}, [[]], [None], {"id": 1}, [1, 2], "\u202e\n")
ODD_VALUES += ([{"id": (2**61 - 1) * k} for k in range(1, 2000)],)  # ids that share a hash
PATHS = ("../../../etc/passwd", "/etc/passwd", "data/../../x", "//etc/passwd", "..\\x", "~/x", ".")
PATHS += ("\0", "data/svhn", "\ud800", "data/" + "x" * 300, "x/" * 3000, "data/\x1b[2J\n.jpg")
PATHS += ("file:///etc/passwd", "/dev/zero", "data/svhn/./val//0001/x.jpg")


def damaged_json(data: bytes, chance: Random) -> bytes:
    """Other values, keys missing or doubled, what no writer would write, another encoding."""
    whole, raw = [json.loads(data)], []
    for _ in range(chance.choice((1, 1, 2, 3))):
        damage_value(whole, chance, raw)
    written = json.dumps(whole[0])
    for index, fragment in enumerate(raw):
        written = written.replace(f'"raw {index}"', fragment)
    match chance.randrange(12):
        case 0:
            written = written.replace('"id"', '"id": 1, "id"', 2)
        case 1:
            return written.encode("utf-16")
        case 2:
            written = f"\ufeff{written}"
        case 3:
            written += "\0"
    return written.encode()


def damage_value(whole: list, chance: Random, raw: list[str]) -> None:
    """Change one value of the document whole[0]; text that is no JSON goes to `raw`, for later."""
    everywhere = places(whole)
    container, key = chance.choice(everywhere)
    match chance.randrange(7):
        case 0 if container is not whole:
            del container[key]
        case 1:
            raw.append(chance.choice(RAW_JSON))
            container[key] = f"raw {len(raw) - 1}"
        case 2:
            names = [place for place in everywhere if place[1] in ("file_name", "name")]
            container, key = chance.choice(names or everywhere)
            container[key] = chance.choice(PATHS)
        case 3:
            other, other_key = chance.choice(everywhere)
            container[key] = json.loads(json.dumps(other[other_key]))
        case 4 if isinstance(container, list) and container is not whole:
            container.insert(key, container[key])
        case 4 if isinstance(container, dict):
            container["\x1b[2J" + "k" * chance.choice((1, 5000))] = container.pop(key)
        case _:
            container[key] = chance.choice(ODD_VALUES)


def places(value: object) -> list[tuple[list | dict, object]]:
    """Every (container, key) in a document."""
    found, waiting = [], [value]
    while waiting:
        container = waiting.pop()
        if isinstance(container, list | dict):
            keys = list(container if isinstance(container, dict) else range(len(container)))
            found += [(container, key) for key in keys]
            waiting += [container[key] for key in keys]
    return found


# Pickles.

HOSTILE_NAMES = """
    os.system builtins.eval builtins.getattr builtins.bytearray subprocess.Popen pickle.loads
    torch.load torch.storage._load_from_bytes numpy.load torch.jit.load _codecs.encode
    torch._utils._rebuild_meta_tensor_no_storage torch._utils._rebuild_sparse_tensor
    torch._utils._rebuild_wrapper_subclass weights.legacy_t7.torch antigravity.fly
""".split()  # noqa: SIM905 - as a list it would fill a page
TERABYTE = b"\x8a\x06" + (2**40).to_bytes(6, "little")
# Values and opcodes that would exhaust a reader, or that lie.
# fmt: off
BOMBS = [
    b"}" + NESTED_TUPLE + b"Ns", b"](" + NESTED_TUPLE + b"e", b"(" * 50_000, b"}" * 3000,
    call("builtins", "bytearray", TERABYTE), b"Nr\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff", b"\x8d\0\0\0\0\0\0\0@", b"\x96\0\0\0\0\0\1\0\0", b"\x95" + b"\xff" * 8,
    b"\x8a\xff" + bytes(range(255)), b"I" + b"9" * 5000 + b"\n", b"F1e999\n",
    b"G\x7f\xf8\0\0\0\0\0\0",
    b"]" * 30_000 + b"a" * 29_999, b"c" + b"\x1b" * 150 + b"\n[2J\n", b"Pcanary\n", b"\x82\1",
    b"(" + storage(size=2**40) + b"K\0K\4\x85K\0\x85tb", text("\x1b[2J\n"), b"}b", b"Q", b"0", b".",
]
# fmt: on
SNIPPETS = [*ATTACKS.values(), *(attack + b"Q" for attack in ATTACKS.values()), *BOMBS]


def damaged_pickle(data: bytes, chance: Random, snippets: Sequence[bytes] = SNIPPETS) -> bytes:
    """Some opcodes of the pickles that `data` begins with changed: hostile names, calls, bombs."""
    parts, rest = opcodes(data)
    parts = list(parts)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(parts))
        here, several = parts[place], chance.choice((1, 1, 2, 10))
        match chance.randrange(8):
            case 0:  # another name in the place of one
                names = [i for i, part in enumerate(parts) if part[:1] == b"c"]
                parts[chance.choice(names or [place])] = name(
                    *chance.choice(HOSTILE_NAMES).rsplit(".", 1)
                )
            case 1 | 2 as length:  # a value more, or another value
                parts[place : place + length - 1] = [chance.choice(snippets)]
            case 3:
                parts[place : place + several] = [b""]
            case 4:
                parts[place:place] = parts[place : place + several]
            case 5:  # the same argument to another opcode
                parts[place] = bytes([chance.randrange(256)]) + here[1:]
            case 6:  # another argument
                end = number(chance, min(8, len(here) - 1))
                parts[place] = here[: len(here) - len(end)] + end
            case 7:
                other = chance.randrange(len(parts))
                parts[place], parts[other] = parts[other], here
    return b"".join(parts) + rest


@cache
def opcodes(data: bytes) -> tuple[list[bytes], bytes]:
    """The pickles at the start of `data` cut into single opcodes, and what follows them."""
    stream, begins, end = io.BytesIO(data), [], 0
    with suppress(ValueError):  # what follows is no pickle
        while True:
            begins += [begin for *_, begin in pickletools.genops(stream)]
            end = stream.tell()
    return [data[i:j] for i, j in zip(begins, [*begins[1:], end], strict=True)], data[end:]


# What stands inside another format: damaged there, and the rest made right again.


def in_zip(damaged: Damage) -> Damage:
    """One member, most often the first: its content, its name or its compression."""

    def knowing(data: bytes, chance: Random) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
            members = old.infolist()
            hit = members[0] if chance.random() < 0.8 else chance.choice(members)
            for member in members:
                content, member_name, method = old.read(member), member.filename, zipfile.ZIP_STORED
                if member is hit:
                    match chance.randrange(10):
                        case 0:
                            member_name = chance.choice(PATHS[:3])
                        case 1:
                            method = chance.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
                        case _ if member is members[0]:
                            content = damaged(content, chance)
                        case _:
                            content = blind(content, chance, [data])
                new.writestr(zipfile.ZipInfo(member_name), content, method)
        return stream.getvalue()

    return knowing


TAR_TYPES = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
TAR_TYPES += (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE)


def in_safetensors(data: bytes, chance: Random) -> bytes:
    """The header, which is JSON."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = damaged_json(data[8:end], chance)
    return struct.pack("<Q", len(header)) + header + data[end:]


def in_tar(data: bytes, chance: Random) -> bytes:
    """One entry's name, kind, link, size or mode, under a checksum that is right."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        hit = chance.choice(tar.getmembers())
        for entry in tar:
            file = tar.extractfile(entry)
            content = file.read() if file else b""
            if entry is hit:
                entry.name = chance.choice((entry.name, f"{entry.name}/..", *PATHS))
                entry.type = chance.choice((entry.type, *TAR_TYPES))
                entry.linkname = chance.choice(("x", *PATHS))
                entry.size = chance.choice((*[entry.size] * 20, *NUMBERS))
                entry.mode = chance.choice((0o644, 0o6777, 0))
            stream.write(entry.tobuf(tarfile.GNU_FORMAT, errors="surrogatepass"))
            stream.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
    return stream.getvalue() + bytes(2 * tarfile.BLOCKSIZE)
