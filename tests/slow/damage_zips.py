"""Damage to zip files, member by member and header by header."""

import bz2
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from damage_bytes import EXTREMES

HOSTILE_NAMES_OF_MEMBERS = ("../../outside", "/tmp/outside", "a/../data.pkl", "C:\\x", "a\0b", "")
HOSTILE_NAMES_OF_MEMBERS += ("x" * 5000, "archive/", "a\nb\x1b[2J")
STORED, DEFLATED, BZIP2 = 0, 8, 12
BOMB_BYTES = 2**29  # far more than the limit on memory
# Of each header in a zip: its form, and where the fields begin that it could lie in.
LOCAL = (struct.Struct("<4sHHHHHIIIHH"), b"PK\x03\x04", (4, 6, 8, 14, 18, 22, 26, 28))
CENTRAL = (struct.Struct("<4sHHHHHHIIIHHHHHII"), b"PK\x01\x02", (8, 10, 16, 20, 24, 28, 30, 32, 42))
END = (struct.Struct("<4sHHHHIIH"), b"PK\x05\x06", (4, 8, 10, 12, 16, 20))


class Member(NamedTuple):
    """A file in a zip: its bytes as they stand there, and what they become."""

    name: str
    raw: bytes
    method: int
    size: int
    crc: int


def member(name: str, data: bytes) -> Member:
    return Member(name, data, STORED, len(data), zlib.crc32(data))


def compressed(plain: Member, chance: Random) -> Member:
    if chance.random() < 0.3:
        return plain._replace(raw=bz2.compress(plain.raw), method=BZIP2)
    deflate = zlib.compressobj(1, wbits=-15)
    return plain._replace(raw=deflate.compress(plain.raw) + deflate.flush(), method=DEFLATED)


@cache
def bomb() -> Member:
    """Two megabytes that unfold to BOMB_BYTES."""
    deflate, crc, block = zlib.compressobj(1, wbits=-15), 0, bytes(2**20)
    raw = []
    for _ in range(BOMB_BYTES // len(block)):
        raw.append(deflate.compress(block))
        crc = zlib.crc32(block, crc)
    return Member("", b"".join(raw) + deflate.flush(), DEFLATED, BOMB_BYTES, crc)


def members_of(data: bytes) -> list[Member]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [member(info.filename, archive.read(info)) for info in archive.infolist()]


def zip_of(members: Sequence[Member]) -> bytes:
    """Written by hand: the standard library refuses to write most of what is wanted here."""
    files, directory = b"", b""
    for each in members:
        name = each.name.encode()
        facts = (each.method, 0, 0x21, each.crc, len(each.raw), each.size, len(name), 0)
        central = (CENTRAL[1], 20, 20, 0x800, *facts, 0, 0, 0, 0, len(files))
        directory += CENTRAL[0].pack(*central) + name
        files += LOCAL[0].pack(LOCAL[1], 20, 0x800, *facts) + name + each.raw
    count = len(members) % 2**16
    return (
        files + directory + END[0].pack(END[1], 0, 0, count, count, len(directory), len(files), 0)
    )


def damaged_zip(
    members: Sequence[Member], chance: Random, damaged_content: Callable[[bytes, Random], bytes]
) -> bytes:
    """A zip whose members, names, compression or headers are not what they should be."""
    members = list(members)
    # The first member of our own files matters most.
    place = 0 if chance.random() < 0.5 else chance.randrange(len(members))
    here = members[place]
    kind = chance.randrange(12)
    if kind <= 4:
        members[place] = member(here.name, damaged_content(here.raw, chance))
    elif kind == 5:
        members[place] = here._replace(name=chance.choice(HOSTILE_NAMES_OF_MEMBERS))
    elif kind == 6:
        del members[place]
    elif kind == 7:
        members.insert(place, here._replace(name=chance.choice(members).name))
    elif kind == 8:
        members[place] = compressed(here, chance)
    elif kind == 9:
        members[place] = bomb()._replace(name=here.name)
    elif kind == 10:  # two names that differ in case
        members.insert(place, member(here.name.swapcase(), damaged_content(here.raw, chance)))
    whole = zip_of(members)
    if kind == 11:  # two zips, one behind the other
        members[place] = member(here.name, damaged_content(here.raw, chance))
        both = [whole, zip_of(members)]
        whole = b"".join(both if chance.random() < 0.5 else reversed(both))
    return with_lying_headers(whole, chance) if chance.random() < 0.3 else whole


def with_lying_headers(data: bytes, chance: Random) -> bytes:
    """Sizes, offsets, flags and lengths in a zip's headers changed."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 2, 3))):
        _, signature, fields = chance.choice((LOCAL, CENTRAL, CENTRAL, END))
        begins = [found.start() for found in re.finditer(re.escape(signature), data)]
        if begins:
            form = chance.choice(("<H", "<I"))
            number = chance.choice((*EXTREMES, 8, 12, 14, 99, len(data), chance.randrange(2**32)))
            place = chance.choice(begins) + chance.choice(fields)
            if place + 4 <= len(data):
                struct.pack_into(form, result, place, number % 256 ** struct.calcsize(form))
    return bytes(result)
