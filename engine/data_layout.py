"""Where data lie that are not where they should be: archives unpacked beside or inside each other.

Expected are datadir/annotations/<task>_<split>.json and datadir/data/<task>/...
"""

from collections.abc import Iterator
from pathlib import Path


def misplaced_annotations(datadir: Path) -> str:
    """What to do about a `datadir` without annotations; "" if none are found near it."""
    for folder in _near(datadir):
        if (folder / "annotations").is_dir() and (folder / "data").is_dir():
            return f"{folder} holds annotations/ and data/: give --datadir {folder}"
    for folder in _near(datadir):
        if (folder / "annotations").is_dir():
            return f"{folder} holds annotations/: give --imdbdir {folder / 'annotations'}"
    return ""


def misplaced_images(expected: Path, datadir: Path) -> str:
    """What to do about a task's folder that is not at `expected`; "" if it is, or is nowhere near.

    It may be one level too deep, beside `datadir`, or still packed.
    """
    task = expected.name
    if (expected / "train").is_dir():
        return ""
    folders = [expected] if expected.is_dir() else [expected.parent, *_near(datadir)]
    for folder in folders:
        for place in (folder / task, folder / "data" / task):
            if (place / "train").is_dir():
                return f"its images are in {place}: move that folder to {expected}"
            if (packed := place.with_suffix(".tar")).is_file():
                return f"{packed} is still packed: run `tar -xf {packed} -C {expected.parent}`"
    return ""


def _near(datadir: Path) -> Iterator[Path]:
    """The folder, its parent, and the folders in both."""
    for folder in (datadir, datadir.resolve().parent):
        yield folder
        yield from sorted(child for child in folder.iterdir() if child.is_dir())
