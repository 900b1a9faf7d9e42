"""Damage to tar archives, header by header under a checksum that is right."""

import io
import tarfile
from collections.abc import Mapping
from random import Random

BLOCK = 512
# Where a header's fields begin, and how long they are: name, mode, size, time, type, link, magic,
# owner, prefix, and GNU's fields for sparse files.
FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (265, 32))
FIELDS += ((345, 155), (386, 12), (482, 1), (483, 12))
NAMES = (
    b"../outside",
    b"/tmp/outside",
    b"svhn/../../../../../../x",
    b"svhn/a\nb",
    b"svhn/\x1b[2J",
    b"svhn",
)
NAMES += (b"svhn/train", b"svhn/.unpacked_from/x", b"svhn//x", b"./svhn/x", b"..", b"/", b"\xff")
TYPES = b"01234567LKxgSVMDNAX"  # as tar names them: links, devices, sparse files, further headers
# What an entry may claim in the headers of the newer format.
CLAIMS = (
    {"size": "9" * 22},
    {"size": "-5"},
    {"path": "svhn/a\0b"},
    {"path": "svhn/" + "../" * 6 + "outside"},
    {"path": "/tmp/outside"},
    {"path": "svhn/\n\x1b[2J" + "x" * 300},
    {"path": "svhn/" + "x/" * 3000},
    {"linkpath": "/etc/passwd"},
    {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 12},
    {"GNU.sparse.size": "1099511627776", "GNU.sparse.map": "0,5"},
    {"GNU.sparse.map": "a,b"},
    {"GNU.sparse.name": "../../outside", "GNU.sparse.size": "5", "GNU.sparse.map": "0,5"},
    {"hdrcharset": "BINARY"},
    {"mtime": "nan"},
)


def tar_of(files: Mapping[str, bytes], claims: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a tar; `claims` stand in the header of each entry."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.pax_headers = dict(claims or {})
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def damaged_header(data: bytes, chance: Random) -> bytes:
    """One field of one header changed, and the header's checksum made right again."""
    headers = [i for i in range(0, len(data) - BLOCK, BLOCK) if data[i + 257 : i + 262] == b"ustar"]
    if not headers:
        return data
    begin = chance.choice(headers)
    header = bytearray(data[begin : begin + BLOCK])
    start, length = chance.choice((*FIELDS, *FIELDS[:1] * 4, *FIELDS[4:6] * 4))
    if start in (0, 157):
        value = chance.choice(NAMES)
    elif start == 156:
        value = bytes([chance.choice(TYPES)])
    else:
        octal, binary = b"7" * length, b"\x80" + b"\xff" * length
        value = chance.choice((octal, binary, b"-1", chance.randbytes(length)))
    header[start : start + length] = value[:length].ljust(length, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:begin] + bytes(header) + data[begin + BLOCK :]
