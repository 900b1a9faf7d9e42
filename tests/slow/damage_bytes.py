"""Damage that knows nothing of a file's format."""

import struct
from collections.abc import Sequence
from random import Random

EXTREMES = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
EXTREMES += (2**40, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
FORMS = ("<B", "<H", "<I", "<Q", ">H", ">I", ">Q")
LENGTHS = (1, 2, 4, 8, 30, 300, 3000)


def damaged_bytes(data: bytes, chance: Random, others: Sequence[bytes] = ()) -> bytes:
    """One to three places changed; `others` are files to go on with in the middle of this one."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        data = _damaged_once(data, chance, [data, *others])
    return data


def _damaged_once(data: bytes, chance: Random, files: Sequence[bytes]) -> bytes:
    if not data:
        return chance.randbytes(chance.randint(0, 20))
    start = chance.randrange(len(data))
    end = min(len(data), start + chance.choice(LENGTHS))
    before, inside, after = data[:start], data[start:end], data[end:]
    kind = chance.randrange(10)
    if kind == 0:  # one bit
        inside = bytes([inside[0] ^ (1 << chance.randrange(8))]) + inside[1:]
    elif kind == 1:
        inside = bytes([chance.randrange(256)]) + inside[1:]
    elif kind == 2:  # cut short
        inside = after = b""
    elif kind == 3:
        before += chance.randbytes(chance.randint(1, 8))
    elif kind == 4:  # a range twice, or a thousand times
        inside *= chance.choice((2, 2, 1000)) if len(inside) < 100 else 2
    elif kind == 5:  # a range missing
        inside = b""
    elif kind == 6:
        inside = bytes(len(inside))
    elif kind == 7:  # a length that lies
        inside, after = _extreme(chance), data[start:]
        after = after[len(inside) :]
    elif kind == 8:  # two ranges in each other's place
        inside, after = after[: len(inside)], inside + after[len(inside) :]
    else:  # another file from somewhere on
        other = chance.choice(files)
        inside, after = b"", other[chance.randrange(len(other) + 1) :]
    return before + inside + after


def _extreme(chance: Random) -> bytes:
    form = chance.choice(FORMS)
    return struct.pack(form, chance.choice(EXTREMES) % 256 ** struct.calcsize(form))
