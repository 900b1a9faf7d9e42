"""One process to a task's folder: two that trained one task there would overwrite each other.

The lock is on `.lock` in the folder, whose text names the last holder. The kernel frees it when its
holder ends, so that none is left behind.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from runtime.errors import SpotTuneError, printable
from runtime.files import lock_file
from runtime.progress import say

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def claimed(folder: Path, patient: bool = False) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if need be.

    If another process holds it, wait if `patient`, else raise a SpotTuneError that names it. Where
    the file system knows no locks, say so and go on without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_file(folder / LOCK)
    try:
        _acquire(lock, folder, patient)
        (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        say(f"{folder}: cannot be locked here ({error.strerror}); start no second run in it")
    try:
        yield
    finally:
        lock.release()


def refuse_claimed(folder: Path) -> None:
    """Raise SpotTuneError, naming the process, if another one holds `folder` at this moment."""
    if (folder / LOCK).exists():
        lock = lock_file(folder / LOCK)
        with suppress(OSError):  # where there are no locks, `claimed` will tell
            _acquire(lock, folder, patient=False)
        lock.release()


def _acquire(lock: FileLock, folder: Path, patient: bool) -> None:
    """Take the lock, or refuse or wait as `claimed` does; OSError where there are no locks."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = printable((folder / LOCK).read_text(errors="replace")[:200].strip())
        at_work = f"{folder}: {holder or 'another process'} is at work there"
        if not patient:
            raise SpotTuneError(
                f"{at_work}. Wait until it ends, stop it, or name another --ckpdir"
            ) from None
        say(f"{at_work}; waiting for it")
        lock.acquire()
