"""The mean and standard deviation of each task's pixels, with which its images are normalised.

The figures are those of the public `decathlon_mean_std.pickle` of residual adapters
(github.com/srebuffi/residual_adapters), which SpotTune's released code reads too. That file is a
Python 2 pickle of {"<task>mean": 3 numbers, "<task>std": 3 numbers}, most of them numpy arrays.

    python mean_std.py decathlon_mean_std.pickle

writes the project's own file from the table below: the same keys with plain lists, so that the
released code can read it as well. Either file is read without running anything in it.

Units: red, green, blue, each from 0 (black) to 1.
"""

import argparse
import math
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.errors import run_script
from runtime.files import write_whole
from weights.safe_pickle import Name, PickleReader, Record, RefusedError, read_whole, refusing

Rgb = tuple[float, float, float]

#                  mean                                  std
MEAN_STD: dict[str, tuple[Rgb, Rgb]] = {
    "aircraft": ((0.47983041, 0.51074066, 0.53437998), (0.21070221, 0.20508901, 0.23729657)),
    "cifar100": ((0.50705882, 0.48666667, 0.44078431), (0.26745098, 0.25647059, 0.27607843)),
    "daimlerpedcls": ((0.48203529, 0.48203529, 0.48203529), (0.23612616, 0.23612616, 0.23612616)),
    "dtd": ((0.52696497, 0.47025164, 0.42396662), (0.25226877, 0.2409176, 0.2499409)),
    "gtsrb": ((0.33921263, 0.3117836, 0.32047045), (0.27560347, 0.26576119, 0.27089863)),
    "imagenet12": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "omniglot": ((0.08099839, 0.08099839, 0.08099839), (0.27046935, 0.27046935, 0.27046935)),
    "svhn": ((0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614)),
    "ucf101": ((0.49953101, 0.49880386, 0.49981996), (0.10898684, 0.10810246, 0.10679939)),
    "vgg-flowers": ((0.43414682, 0.38309883, 0.29714763), (0.28509808, 0.23842338, 0.2639633)),
}

MAX_BYTES = 2**20  # the public file takes 2,403
EXPECTED = "the mean and std of each task as a pickle of protocol 2"
ADVICE = "use the decathlon_mean_std.pickle that comes with this project"

# A numpy array in a pickle: a call to _reconstruct, with shape, dtype and raw bytes as its state.
# Python 3 writes raw bytes as a call to _codecs.encode.
RECONSTRUCT = {Name(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
NDARRAY, DTYPE = Name("numpy", "ndarray"), Name("numpy", "dtype")
ENCODE = Name("_codecs", "encode")
KNOWN_NAMES = {*RECONSTRUCT, NDARRAY, DTYPE, ENCODE}
LETTERS = {"f4": "f", "f8": "d"}  # numpy's names of the float types, and struct's


def read_mean_std(path: Path) -> dict[str, tuple[Rgb, Rgb]]:
    """(mean, std) by name of the task, from the public file or the project's own.

    The public file also has tasks outside the Decathlon; they are returned as well. Raises
    SpotTuneError unless every task has both, each of three finite numbers, mean from 0 to 1
    and std above 0.
    """
    data = read_whole(path, MAX_BYTES)
    with refusing(path, EXPECTED, ADVICE):
        reader = PickleReader(data, is_known=KNOWN_NAMES.__contains__)
        entries = reader.read()
        if reader.position != len(data):
            raise RefusedError("bytes after the end of the pickle")
        return pair_up(entries)


def pair_up(entries: object) -> dict[str, tuple[Rgb, Rgb]]:
    """Both figures of each task, from the entries "<task>mean" and "<task>std"."""
    if type(entries) is not dict or not entries or any(type(key) is not str for key in entries):
        raise RefusedError("something else than a dict of tasks")
    tasks = [key.removesuffix("mean") for key in entries if key.endswith("mean")]
    both = {task + kind for task in tasks for kind in ("mean", "std")}
    if both - entries.keys():
        raise RefusedError(f"no entry {min(both - entries.keys())!r:.80}")
    if entries.keys() - both:
        raise RefusedError(f"an entry that belongs to no mean: {min(entries.keys() - both)!r:.80}")
    return {
        task: (checked_mean(entries, task + "mean"), checked_std(entries, task + "std"))
        for task in tasks
    }


def checked_mean(entries: Mapping[str, object], key: str) -> Rgb:
    """The three numbers under `key`, each from 0 to 1."""
    mean = three_numbers(entries[key], key)
    if not all(0 <= value <= 1 for value in mean):
        raise RefusedError(f"{key!r:.80} = {mean}, not within 0 to 1")
    return mean


def checked_std(entries: Mapping[str, object], key: str) -> Rgb:
    """The three numbers under `key`, each above 0."""
    std = three_numbers(entries[key], key)
    if not all(value > 0 for value in std):
        raise RefusedError(f"{key!r:.80} = {std}, not above 0")
    return std


def three_numbers(value: object, key: str) -> Rgb:
    """Three finite floats, from a list or from a noted numpy array."""
    numbers = array_values(value) if type(value) is Record else value
    if type(numbers) not in (list, tuple) or len(numbers) != 3:
        raise RefusedError(f"{key!r:.80} that is not three numbers")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise RefusedError(f"{key!r:.80} that is not three finite numbers")
    return tuple(float(number) for number in numbers)


def array_values(array: Record) -> tuple[float, ...]:
    """The values of a noted numpy array: three floats of 4 or 8 bytes each."""
    if array.made_by not in RECONSTRUCT:
        raise RefusedError(f"a call to {array.made_by} in the place of an array")
    _, shape, dtype, _, raw = array.state
    if type(shape) is not tuple or shape != (3,) or type(dtype) is not Record:
        raise RefusedError("an array that is not of shape (3,)")
    kind, byte_order = dtype.arguments[0], dtype.state[1]
    # A list of letters rather than a look-up: what the file puts here need not be cheap to hash.
    if dtype.made_by != DTYPE or kind not in list(LETTERS) or byte_order not in ("<", ">"):
        raise RefusedError("an array of something else than floats")
    return struct.unpack(f"{byte_order}3{LETTERS[kind]}", raw_bytes(raw))


def raw_bytes(raw: object) -> bytes:
    """Bytes as Python 2 wrote them, or as Python 3 does: encode(text, "latin1")."""
    if type(raw) is Record and raw.made_by == ENCODE:
        raw, _ = raw.arguments
    return raw.encode("latin1")


def as_pickle(mean_std: Mapping[str, tuple[Rgb, Rgb]]) -> bytes:
    """The table in the public file's form, with plain lists; the same bytes every time."""
    entries = {}
    for task, (mean, std) in mean_std.items():
        entries[task + "mean"] = list(mean)
        entries[task + "std"] = list(std)
    return pickle.dumps(entries, protocol=2)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write each task's mean and std as a file that the scripts, and the released "
        "code, can read.",
    )
    parser.add_argument("path", type=Path, help="file to write: decathlon_mean_std.pickle")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    write_whole(args.path, as_pickle(MEAN_STD))
    print(f"{args.path}: mean and std of {len(MEAN_STD)} tasks")


if __name__ == "__main__":
    run_script(main)
