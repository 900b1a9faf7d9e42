"""A user's mistake, told in one line: what was found, what was expected, what to do."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

# Faults of the machine rather than of the code, and what a user can do about each.
REMEDIES = {
    errno.ENOSPC: "no space is left there; free some, or name another folder",
    errno.EDQUOT: "the disk quota is used up; free some space, or name another folder",
    errno.EFBIG: "the file would be larger than allowed; raise the limit (ulimit -f)",
    errno.EACCES: "permission was denied; name a folder or file that you may use",
    errno.EPERM: "the operation is not permitted; name a folder or file that you may use",
    errno.EROFS: "that file system is read-only; name another folder",
    errno.ENOTDIR: "a folder was expected and a file found; check the path",
    errno.EISDIR: "a file was expected and a folder found; check the path",
    errno.EEXIST: "a file stands where a folder was to be made; check the path",
    errno.ENAMETOOLONG: "that name is longer than the file system allows; choose a shorter one",
}
READER_GONE = 141  # the status of a program that SIGPIPE ends: 128 + 13


# Of a keyboard, of a batch system's limits, and of one that is about to preempt; submitit's.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# One stop may reach a process by several ways: a terminal and SLURM tell every process of a run,
# torchrun and cluster.py tell theirs once more.
ONE_STOP_SECONDS = 1.0


class SpotTuneError(Exception):
    """Something that the user can mend. Its message is one whole, helpful line."""


class Stopped(BaseException):  # noqa: N818 - like KeyboardInterrupt, no error
    """A signal ended the program on purpose; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a user's mistake or a full disk ends it in one line and status 1.

    Any other exception is a bug and shows its traceback.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        main()
        print(end="", flush=True)  # Python would flush at exit, too late to tell a fault kindly
    except BrokenPipeError:  # `score.py | head`: no mistake, only nobody left to tell
        sys.exit(READER_GONE)
    except Stopped as stop:
        name = signal.Signals(stop.number).name
        print(f"{name}: stopped; the same command goes on where it can", file=sys.stderr)
        sys.exit(128 + stop.number)
    except SpotTuneError as error:
        sys.exit(f"error: {printable(str(error))}")
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {printable(where)}{REMEDIES[error.errno]}")
    finally:
        drop_what_cannot_be_printed()


def _stop(number: int, frame: object) -> NoReturn:
    """Let a signal unwind the program, so that half-written files are removed."""
    raise Stopped(number)


def printable(text: str) -> str:
    """`text` without what could steer a terminal: files may hold any name."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def brief(value: object, length: int = 80) -> str:
    """`value` as a message may quote it: printable, and cut where it is longer than `length`."""
    text = printable(str(value))
    return text if len(text) <= length else f"{text[: length - 3]}..."


def drop_what_cannot_be_printed() -> None:
    """Python tries to print what is left once more at exit, and would complain of it then."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
