"""What reading a file raises that is damaged or of another kind, and how its user is told."""

import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from runtime.errors import SpotTuneError


class RefusedError(ValueError):
    """Says what was found in a file that cannot be accepted, without naming the file."""


# What Python and safetensors raise when the values in a file do not fit together.
MALFORMED = (
    SafetensorError,
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


@contextmanager
def refusing(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a bad file causes into one line: PATH: found …, expected …"""
    try:
        yield
    except MALFORMED as error:
        malformed = f"a damaged file, or one of another kind ({type(error).__name__})"
        found = error if isinstance(error, RefusedError) else malformed
        raise SpotTuneError(f"{path}: found {found}, expected {expected}") from error
