"""Damage to files: blind, to JSON value by value, to pickles opcode by opcode, inside archives.

A function takes a file's bytes and a source of chance, and returns the bytes of a damaged file.
"""

import io
import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from random import Random

from released_files import ATTACKS, call, name, storage, text, zip_of

Damage = Callable[[bytes, Random], bytes]
NUMBERS = (0, 1, 127, 255, 2**15, 2**16 - 1, 60_000, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
NUMBERS += (2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def blind(data: bytes, chance: Random) -> bytes:
    """One to three places flipped, cut out, repeated, added to or overwritten; or all after it."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.random() ** chance.choice((1, 4))  # headers stand at the start or the end
        start = int(chance.choice((place, place, 1 - place)) * len(data))
        length = chance.choice((1, 1, 2, 4, 8, 30, 300))
        inside, after = data[start : start + length], data[start + length :]
        flipped = bytes(byte ^ 1 << chance.randrange(8) for byte in inside[:1]) + inside[1:]
        more = inside + chance.randbytes(length)
        lie = number(chance, length)
        inside = chance.choice((flipped, b"", inside * 2, inside * 300, more, bytes(length), lie))
        elsewhere = data[chance.randrange(len(data) + 1) :]
        data = data[:start] + inside + chance.choice((*[after] * 8, elsewhere, b""))
    return data


def number(chance: Random, length: int) -> bytes:
    """One that a reader may trust, as a length or a place."""
    order = chance.choice(("little", "big"))
    return (chance.choice(NUMBERS) % 256**length).to_bytes(length, order)


# JSON.

ODD_VALUES = (None, True, -1, 0, 1, 1.5, 2.0**63, 2**31, 2**63 - 1, 2**64, 10**400, "", "1", [])
ODD_VALUES += ("x" * 10_000, {}, [[]], [None], {"id": 1}, [1, 2], "\u202e\n", "\0", "data/svhn")
ODD_VALUES += ("../../../etc/passwd", "/etc/passwd", "data/../../x", "..\\x", "~/x", "x/" * 3000)
ODD_VALUES += (".", "\ud800", "/")
RAW_JSON = ("NaN", "-Infinity", "1e999", "9" * 6000, "-" + "9" * 30, "[" * 500 + "]" * 500)
RAW_JSON += ("[" * 100_000, '{"a":' * 100_000, '"\\ud800"', '"\\u001b[2J"', "01", "'x'", "")


def damaged_json(data: bytes, chance: Random) -> bytes:
    """Other values, keys missing, renamed or doubled, what is no JSON, another encoding."""
    whole = [json.loads(data)]
    for _ in range(chance.choice((1, 1, 2, 3))):
        (container, key), (other, other_key) = chance.choices(list(places(whole)), k=2)
        match chance.randrange(6):
            case 0 if container is not whole:
                del container[key]
            case 1:
                container[key] = "raw"
            case 2:
                container[key] = json.loads(json.dumps(other[other_key]))
            case 3 if isinstance(container, dict):
                container["\x1b[2J" + "k" * chance.choice((1, 5000))] = container.pop(key)
            case _:
                container[key] = chance.choice(ODD_VALUES)
    written = json.dumps(whole[0]).replace('"raw"', chance.choice(RAW_JSON))
    doubled = written.replace('"id"', '"id": 1, "id"', 2)
    return chance.choice((*[written.encode()] * 10, doubled.encode(), written.encode("utf-16")))


def places(value: object) -> Iterator[tuple[list | dict, object]]:
    """Every (container, key) in a document."""
    if isinstance(value, list | dict):
        for key in list(value if isinstance(value, dict) else range(len(value))):
            yield value, key
            yield from places(value[key])


# Pickles.

HOSTILE_NAMES = [name("os", "system"), name("builtins", "getattr"), name("pickle", "loads")]
HOSTILE_NAMES += [name("torch.storage", "_load_from_bytes"), name("weights.legacy_t7", "torch")]
HOSTILE_NAMES += [name("torch._utils", "_rebuild_sparse_tensor"), name("numpy", "load")]
TERABYTE = b"\x8a\x06" + (2**40).to_bytes(6, "little")
# What would run something, exhaust a reader that trusts it, or lies.
# fmt: off
SNIPPETS = [
    *ATTACKS.values(), *(attack + b"Q" for attack in ATTACKS.values()), b"(" * 50_000, b"}" * 3000,
    call("builtins", "bytearray", TERABYTE), b"Nr\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f", b"Pid\n",
    b"X\xff\xff\xff\xff", b"\x8d\0\0\0\0\0\0\0@", b"\x96\0\0\0\0\0\1\0\0", b"\x95" + b"\xff" * 8,
    b"\x8a\xff" + bytes(range(255)), b"I" + b"9" * 5000 + b"\n", b"F1e999\n", text("\x1b[2J\n"),
    b"]" * 30_000 + b"a" * 29_999, b"c" + b"\x1b" * 150 + b"\n[2J\n", b"\x82\1", b"}b", b"Q", b"0",
    b"(" + storage(size=2**40) + b"K\0K\4\x85K\0\x85tb", b"G\x7f\xf8" + bytes(6), b".",
]
# fmt: on


def damaged_pickle(data: bytes, chance: Random) -> bytes:
    """Some opcodes of the pickles that `data` begins with changed: other names, calls, bombs."""
    parts, rest = opcodes(data)
    parts = list(parts)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(parts))
        here, end = parts[place], place + chance.choice((1, 1, 2, 10))
        match chance.randrange(7):
            case 0:  # another name in the place of one
                names = [i for i, part in enumerate(parts) if part[:1] == b"c"]
                parts[chance.choice(names or [place])] = chance.choice(HOSTILE_NAMES)
            case 1 | 2 as length:  # a value more, or another value
                parts[place : place + length - 1] = [chance.choice(SNIPPETS)]
            case 3:
                parts[place:end] = [b""]
            case 4:
                parts[place:place] = parts[place:end]
            case 5:  # the same argument to another opcode
                parts[place] = bytes([chance.randrange(256)]) + here[1:]
            case 6:  # another argument
                argument = number(chance, max(0, min(8, len(here) - 1)))
                parts[place] = here[: len(here) - len(argument)] + argument
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


# What stands inside another format is damaged there, and the rest made right again.


def in_zip(damaged: Damage, data: bytes, chance: Random) -> bytes:
    """The first member; sometimes it is compressed in an unusual way."""
    if len(data) > 2**17:  # a bomb
        return blind(data, chance)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {member: archive.read(member) for member in archive.namelist()}
    first = next(iter(contents))
    contents[first] = damaged(contents[first], chance)
    return zip_of(contents, chance.choice((*[zipfile.ZIP_STORED] * 8, zipfile.ZIP_BZIP2)))


def in_safetensors(data: bytes, chance: Random) -> bytes:
    """The header, which is JSON."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = damaged_json(data[8:end], chance)
    return struct.pack("<Q", len(header)) + header + data[end:]


def in_tar(data: bytes, chance: Random) -> bytes:
    """The header of an entry, under a right checksum; hostile ones stand in test_download_data."""
    begin = chance.choice([found.start() - 257 for found in re.finditer(b"ustar", data)])
    header = blind(data[begin : begin + 512], chance)[:512].ljust(512, b"\0")
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    return data[:begin] + header[:148] + b"%06o\0 " % checksum + header[156:] + data[begin + 512 :]
