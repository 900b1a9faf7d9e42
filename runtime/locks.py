"""One process to a task's folder: two that trained one task there would overwrite each other.

The lock is flock(2) on `.lock` in the folder. The kernel lets go of it when its holder ends,
however that happens, so a lock is never left behind. The file stays, and names the last holder;
were it removed, a process that waits for it would then hold a file that nobody else sees.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from runtime.errors import SpotTuneError, printable
from runtime.files import flock
from runtime.progress import say

LOCK = ".lock"


@contextmanager
def claimed(folder: Path, patient: bool = False) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if need be.

    If another process holds it, a `patient` caller waits; any other gets a SpotTuneError that names
    the process. Where the file system knows no locks, that is said, and work goes on without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8", errors="replace") as stream:
        try:
            _lock(stream, folder, patient)
        except OSError as error:
            say(
                f"{folder}: cannot be locked here ({error.strerror}), so a second run in it would "
                f"not be noticed; do not start one"
            )
        else:
            _sign(stream)
        yield


def refuse_claimed(folder: Path) -> None:
    """Raise SpotTuneError, naming the process, if another one holds `folder` at this moment."""
    path = folder / LOCK
    if path.exists():
        with path.open("a+", encoding="utf-8", errors="replace") as stream, suppress(OSError):
            _lock(stream, folder, patient=False)  # where it fails, `claimed` will tell


def _lock(stream: IO[str], folder: Path, patient: bool) -> None:
    """Lock the file, or refuse or wait as `claimed` says. OSError where there are no locks."""
    if flock(stream, blocking=False):
        return
    stream.seek(0)
    holder = printable(stream.read(200).strip()) or "another process"
    if not patient:
        raise SpotTuneError(
            f"{folder}: {holder} is at work there. Wait until it ends, stop it, or name another "
            f"--ckpdir"
        )
    say(f"{folder}: {holder} is at work there; waiting for it")
    flock(stream, blocking=True)


def _sign(stream: IO[str]) -> None:
    """Let the file name this process."""
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    stream.flush()
