"""Files that are written whole or not at all."""

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from runtime.errors import SpotTuneError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a stream whose content takes the place of `path` only once it is safely on disk.

    The stream is a temporary file in the same folder; if anything goes wrong before the end, the
    old `path` stays as it was and the temporary file is removed. One that a killed process has left
    is removed by the next that writes the same `path`. Raises SpotTuneError if its folder is not
    there.
    """
    check_place(path)
    _remove_leftovers(path)
    stream = _open_temporary(path)
    temporary = Path(stream.name)
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and str(error.filename) in ("None", str(temporary)):
            error.filename = str(path)  # "no space" alone would not say where
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def check_place(path: Path) -> None:
    """Raise SpotTuneError unless `path` can be the name of a file: call it before long work."""
    if path.is_dir() or not path.parent.is_dir():
        raise SpotTuneError(f"{path}: expected a file name in a folder that exists")


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` in the place of `path`, whole or not at all."""
    with replacing(path) as stream:
        stream.write(data)


def keep_copy(path: Path, copy: Path) -> None:
    """Let `copy` hold what `path` holds now, also after `path` is replaced.

    Without writing it again where the file system knows hard links.
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


def flock(stream: IO, blocking: bool) -> bool:
    """Whether the lock of an open file is ours now; the kernel frees it when its holder ends.

    Raises OSError where system or file system know no such locks.
    """
    try:
        import fcntl  # POSIX only
    except ImportError as error:
        raise OSError(errno.ENOSYS, "no file locks on this system") from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _open_temporary(path: Path) -> IO[bytes]:
    """A new file, locked as a sign that its writer lives."""
    while True:
        temporary = _temporary_name(path)
        stream = temporary.open("x+b")
        with suppress(OSError):
            flock(stream, blocking=True)
        if temporary.exists():  # else another process took it for a leftover before it was locked
            return stream
        stream.close()


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files for `path` whose writers are dead; where that is unknown, none."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), leftover.open("r+b") as stream:
            if flock(stream, blocking=False):
                leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the system allows it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
