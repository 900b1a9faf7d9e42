"""Which pictures a folder holds, and of which class: torchvision's ImageFolder layout, or lists.

    DIR/train/CLASS/...   or  DIR/train.csv   pictures to learn from
    DIR/val/CLASS/...     or  DIR/val.csv     optional: else a share of train
    DIR/test/...                              for predict.py

A list has a line `path,class` per picture, the path relative to DIR.
"""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import make_dataset

from image_cache.packed import sha256_of
from runtime.errors import SpotTuneError, brief
from runtime.files import leads_outside
from runtime.progress import say

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ENDINGS += (".jp2", ".ppm", ".pgm", ".pbm")
SHOWN = 5  # names in a message
HEADER = ["path", "class"]  # a list's first line, if it has one


@dataclass(frozen=True)
class Pictures:
    """Pictures by their paths relative to the task's folder, and their classes as numbers."""

    files: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.files)

    def chosen(self, places: Sequence[int]) -> "Pictures":
        return Pictures([self.files[i] for i in places], [self.labels[i] for i in places])


@dataclass(frozen=True)
class Listing:
    """The classes of a task, by label, and its pictures; `val` is None if there are none."""

    classes: list[str]
    train: Pictures
    val: Pictures | None


def read_listing(folder: Path) -> Listing:
    """Raises SpotTuneError, in one line, for a folder that cannot be learnt from."""
    if not folder.is_dir():
        raise SpotTuneError(f"{folder}: no such folder; expected one with train/CLASS/...")
    train_list = folder / "train.csv"
    if train_list.is_file():
        rows = _read_list(train_list)
        classes = sorted({name for _, name in rows})
    else:
        _require_train(folder)
        classes = _class_folders(folder / "train")
    if len(classes) < 2:
        found = f"only the class {classes[0]}" if classes else "no classes"
        raise SpotTuneError(
            f"{folder / 'train'}: {found} found; expected a folder for each of two or more classes"
        )
    train = _split(folder, "train", classes)
    empty = [name for label, name in enumerate(classes) if label not in set(train.labels)]
    if empty:
        raise SpotTuneError(
            f"{folder / 'train'}: no pictures of {_some(empty)}. Add some, or remove the folder"
        )
    has_val = (folder / "val").is_dir() or (folder / "val.csv").is_file()
    val = _split(folder, "val", classes) if has_val else None
    if val is not None and not len(val):
        raise SpotTuneError(
            f"{folder / 'val'}: no pictures. Add some, or remove it, so that a share of train is "
            f"used"
        )
    return Listing(classes, train, val)


def pictures_below(folder: Path) -> tuple[list[str], int]:
    """All pictures in a folder and the folders in it, by their relative paths; how many others.

    Hidden files and folders do not count.
    """
    found, seen, others = [], set(), 0
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (real := os.path.realpath(where)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        shown = sorted(name for name in names if not name.startswith("."))
        paths = [Path(where, name) for name in shown if is_picture(name)]
        found += [path.relative_to(folder).as_posix() for path in paths]
        others += len(shown) - len(paths)
    return found, others


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture; hidden files are none."""
    name = Path(name).name
    return not name.startswith(".") and name.lower().endswith(ENDINGS)


def _require_train(folder: Path) -> None:
    if (folder / "train").is_dir():
        return
    inside = _class_folders(folder)
    found = f"the folders {_some(inside)}" if inside else "no folders"
    raise SpotTuneError(
        f"{folder}: {found} found; expected {folder.name}/train/CLASS/... (and val/CLASS/..., if "
        f"there is such a part). Are these the classes? Then move them into {folder / 'train'}"
    )


def _class_folders(folder: Path) -> list[str]:
    names = (child.name for child in folder.iterdir() if child.is_dir())
    return sorted(name for name in names if not name.startswith((".", "__")))


def _split(folder: Path, split: str, classes: list[str]) -> Pictures:
    """The pictures of "train" or "val"; SpotTuneError for a class that `classes` lacks."""
    number = {name: label for label, name in enumerate(classes)}
    listed = folder / f"{split}.csv"
    if listed.is_file():
        rows = _read_list(listed)
        if unknown := sorted({name for _, name in rows} - number.keys()):
            raise SpotTuneError(f"{listed}: the classes {_some(unknown)} are not among train's")
        return Pictures([path for path, _ in rows], [number[name] for _, name in rows])
    if unknown := sorted(set(_class_folders(folder / split)) - number.keys()):
        raise SpotTuneError(
            f"{folder / split}: the classes {_some(unknown)} are not among train's "
            f"{len(classes)}. Are they spelt alike? Otherwise add them to train, or remove them"
        )
    loose = [child.name for child in (folder / split).iterdir() if child.is_file()]
    skipped, seen = [f"{split}/{name}" for name in loose], set()

    def is_wanted(path: str) -> bool:
        place, real = os.path.relpath(path, folder), os.path.realpath(path)
        in_hidden = any(part.startswith(".") for part in Path(place).parts)
        is_new = is_picture(path) and not in_hidden and real not in seen
        seen.add(real)  # a link to a folder above would give the same pictures again
        if not is_new:
            skipped.append(place)
        return is_new

    there = {name: label for name, label in number.items() if (folder / split / name).is_dir()}
    if not there:
        return Pictures([], [])
    found = make_dataset(str(folder / split), there, is_valid_file=is_wanted, allow_empty=True)
    if skipped:
        say(
            f"{folder / split}: {len(skipped)} files that are hidden, twice there, or no pictures "
            f"of a class are skipped: {_some(sorted(skipped))}"
        )
    files = [Path(os.path.relpath(path, folder)).as_posix() for path, _ in found]
    return Pictures(files, [label for _, label in found])


def _read_list(path: Path) -> list[tuple[str, str]]:
    """The lines `path,class` of a list, without its header."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            rows = [(number, row) for number, row in enumerate(csv.reader(stream), start=1) if row]
    except csv.Error as error:
        raise SpotTuneError(
            f"{path}: not a list of path,class ({error}); is a quote left open?"
        ) from error
    if rows and [cell.strip().lower() for cell in rows[0][1]] == HEADER:
        rows = rows[1:]
    found = []
    for number, row in rows:
        cells = [cell.strip() for cell in row]
        if len(cells) != 2 or not all(cells):
            raise SpotTuneError(
                f"{path}, line {number}: {brief(','.join(row))} found; expected path,class"
            )
        name = cells[0].replace("\\", "/")
        if leads_outside(name):
            raise SpotTuneError(
                f"{path}, line {number}: {brief(name)} leads outside; expected a path relative to "
                f"{path.parent}"
            )
        found.append((name, cells[1]))
    if repeated := [
        name for name, count in Counter(name for name, _ in found).items() if count > 1
    ]:
        raise SpotTuneError(f"{path}: {_some(repeated)} listed more than once")
    return found


def warn_of_copies(folder: Path, train: Pictures, val: Pictures) -> None:
    """Say so if the same picture, byte for byte, is in train and in val."""
    of_train, copies = _by_size(folder, train.files), []
    for size, names in _by_size(folder, val.files).items():
        contents = {sha256_of(folder / name) for name in of_train.get(size, ())}
        copies += [name for name in names if contents and sha256_of(folder / name) in contents]
    if copies:
        say(
            f"warning: {len(copies)} pictures of val are in train too, so val's accuracy is too "
            f"high: {_some(sorted(copies))}"
        )


def _by_size(folder: Path, names: Sequence[str]) -> dict[int, list[str]]:
    found = defaultdict(list)
    for name in names:
        if (folder / name).is_file():
            found[(folder / name).stat().st_size].append(name)
    return found


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    shown = ", ".join(brief(name, 60) for name in names[:SHOWN])
    return f"{shown}{f' and {more} more' if more > 0 else ''}"
