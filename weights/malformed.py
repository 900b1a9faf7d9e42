"""What reading a damaged file of weights or means raises, and how its user is told."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from runtime.errors import MISFITS, SpotTuneError


class RefusedError(ValueError):
    """Says what was found in a file that cannot be accepted, without naming the file."""


MALFORMED = (*MISFITS, SafetensorError, pickle.UnpicklingError, EOFError)


@contextmanager
def refusing(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a bad file causes into one line: PATH: found …, expected …"""
    try:
        yield
    except MALFORMED as error:
        malformed = f"a damaged file, or one of another kind ({type(error).__name__})"
        found = error if isinstance(error, RefusedError) else malformed
        raise SpotTuneError(f"{path}: found {found}, expected {expected}") from error
