"""Files that are written whole or not at all."""

import csv
import glob
import io
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

from runtime.errors import SpotTuneError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a stream whose content takes the place of `path` only once it is safely on disk.

    The stream is a temporary file in the same folder. After an error it is removed, and the old
    `path` stays. What a killed process has left is removed by the next that writes `path`. Raises
    SpotTuneError if its folder is not there.
    """
    check_place(path)
    _remove_leftovers(path)
    temporary = _temporary_name(path)
    lock = lock_file(temporary)  # held until it is renamed: a sign that its writer lives
    try:
        with suppress(OSError):  # no locks there: then nobody removes it either
            lock.acquire()
        with temporary.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and str(error.filename) in ("None", str(temporary)):
            error.filename = str(path)  # "no space" alone would not say where
        temporary.unlink(missing_ok=True)
        raise
    finally:
        lock.release()
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # so that the new name survives a power cut
    os.close(folder)


def check_place(path: Path) -> None:
    """Raise SpotTuneError unless `path` can be the name of a file: call it before long work."""
    if path.is_dir() or not path.parent.is_dir():
        raise SpotTuneError(f"{path}: expected a file name in a folder that exists")


def leads_outside(name: str) -> bool:
    """Whether a path that a file names would lead outside the folder that it is relative to."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A table with a line of headings; what a row lacks is an empty cell."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns)
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` in the place of `path`, whole or not at all."""
    with replacing(path) as stream:
        stream.write(data)


def keep_copy(path: Path, copy: Path) -> None:
    """Let `copy` hold what `path` holds now, also after `path` is replaced.

    Without writing it again where the file system knows hard links. For one process at a time.
    """
    _remove_leftovers(copy)
    temporary = _temporary_name(copy)
    try:
        try:
            temporary.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, temporary)
        temporary.replace(copy)
    finally:
        temporary.unlink(missing_ok=True)


def lock_file(path: Path) -> FileLock:
    """A lock that the kernel frees when its holder ends, however that happens.

    Acquiring it raises OSError where system or file system know no such locks.
    """
    return FileLock(path, fallback_to_soft=False)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files for `path` whose writers are dead; where that is unknown, none."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), lock_file(leftover).acquire(timeout=0):
            leftover.unlink()
