"""The mean and standard deviation of each task's pixels, with which its images are normalised.

The figures are those of the public `decathlon_mean_std.pickle` of residual adapters
(github.com/srebuffi/residual_adapters), which SpotTune's released code reads too: a Python 2 pickle
of {"<task>mean": 3 numbers, "<task>std": 3 numbers}, most of them numpy arrays. The project's own
file has the same keys with plain lists. Files that today's `pickle.dump` writes are read too, in
every protocol, and none of them can run anything (`closed_pickle`).

Units: red, green, blue, each from 0 (black) to 1.
"""

import io
import math
from pathlib import Path

import numpy as np

from runtime.errors import SpotTuneError
from weights.closed_pickle import MAX_PICKLE_BYTES, Call, ClosedUnpickler
from weights.malformed import RefusedError, refusing

Rgb = tuple[float, float, float]
EXPECTED = "the mean and std of each task; use this project's own decathlon_mean_std.pickle"


class MeanStdUnpickler(ClosedUnpickler):
    """Knows the names with which numpy, old and new, describes arrays and their elements."""

    known = ("numpy.", "_codecs.encode")


def find_mean_std(named: Path | None, datadir: Path, own: Path) -> Path:
    """The file to read: the one that was named, else the data folder's, else the project's own."""
    if named is not None:
        return named
    in_datadir = datadir / own.name
    return in_datadir if in_datadir.exists() else own


def read_mean_std(path: Path) -> dict[str, tuple[Rgb, Rgb]]:
    """(mean, std) by name of the task; the public file's tasks outside the Decathlon as well.

    Raises SpotTuneError unless every mean has a std, each of three finite numbers, mean from 0 to 1
    and std above 0.
    """
    if not path.is_file():
        raise SpotTuneError(f"{path}: no such file of means; name another with --mean_std")
    with refusing(path, EXPECTED):
        with path.open("rb") as stream:
            start = stream.read(MAX_PICKLE_BYTES)
        entries = MeanStdUnpickler(io.BytesIO(start)).load()
        tasks = [key.removesuffix("mean") for key in entries if key.endswith("mean")]
        return {task: figures(task, entries) for task in tasks}


def figures(task: str, entries: dict) -> tuple[Rgb, Rgb]:
    """A task's mean and std, checked."""
    mean, std = (three_numbers(entries, task + kind) for kind in ("mean", "std"))
    if not all(0 <= value <= 1 for value in mean):
        raise RefusedError(f"a mean of {mean} for {task!r:.80}, not within 0 to 1")
    if not all(value > 0 for value in std):
        raise RefusedError(f"a std of {std} for {task!r:.80}, not above 0")
    return mean, std


def three_numbers(entries: dict, key: str) -> Rgb:
    """Three finite floats, from a list, a list of numpy floats, or an array of any shape."""
    value = entries.get(key)
    numbers = array_values(value) if type(value) is Call else value
    if type(numbers) not in (list, tuple) or len(numbers) != 3:
        raise RefusedError(f"no three numbers under {key!r:.80}")
    numbers = [array_values(each)[0] if type(each) is Call else each for each in numbers]
    if not all(type(each) in (int, float) and math.isfinite(each) for each in numbers):
        raise RefusedError(f"no three finite numbers under {key!r:.80}")
    return tuple(float(each) for each in numbers)


def array_values(call: Call) -> list[float]:
    """The elements of an array, or of a single number, as numpy describes it to pickle."""
    match call.function.rpartition(".")[2]:
        case "_reconstruct":
            _, _, dtype, _, raw = call.state
        case "_frombuffer":
            raw, dtype = call.arguments[:2]
        case "scalar":
            dtype, raw = call.arguments
        case other:
            raise RefusedError(f"a {other} in the place of numbers")
    code = dtype.state[1] + dtype.arguments[0]
    if code not in ["<f4", "<f8", ">f4", ">f8"]:  # no set: what the file has may be slow to hash
        raise RefusedError("an array that is not of float32 or float64")
    if type(raw) is Call:  # encode(text, "latin1"), below protocol 3
        raw = raw.arguments[0]
    return np.frombuffer(raw if type(raw) is bytes else raw.encode("latin1"), code).tolist()
