"""How a script starts and ends: a user's mistake is told in one line, and a stop is a status."""

import errno
import io
import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from runtime.signals import Stopped, handle_stops, stop_at_once

# What reading a file raises that is damaged or of another kind, so that its values do not fit.
MISFITS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
MISFITS += (struct.error,)
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
# The CPU's allocator, oneDNN, cuBLAS and cuDNN have no exception class of their own.
SAID_WITHOUT_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "could not create a primitive",
    "status_alloc_failed",
)
# Of a pipe whose reader has ended, a closed terminal, and a stream that cannot be written to.
READER_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class SpotTuneError(Exception):
    """Something that the user can mend. Its message is one whole, helpful line."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a user's mistake or a full disk ends it in one line and status 1.

    So does a lack of memory. A stop signal ends it with 128 + the signal's number. Any other
    exception is a bug and shows its traceback.
    """
    keep_streams_writable()
    handle_stops(stop_at_once)
    try:
        main()
    except Stopped as stop:
        name = signal.Signals(stop.number).name
        print(f"{name}: stopped; the same command continues where it can", file=sys.stderr)
        sys.exit(128 + stop.number)
    except SpotTuneError as error:
        sys.exit(f"error: {printable(str(error))}")
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {printable(where)}{REMEDIES[error.errno]}")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = brief(str(error).partition("\n")[0] or "of the machine", 120)
        sys.exit(
            f"error: out of memory ({reason}). Give a smaller --batch_size or --resize, or a "
            f"device with more memory that nothing else uses"
        )


def keep_streams_writable() -> None:
    """Let work continue when nobody reads standard output or error, or a letter has no encoding.

    `main.py | head -1`, `>&-`, and `2>&1 | tee log` after Ctrl-C, which ends tee first, would
    otherwise end a run before it is saved.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a closed one would be given to the next file, and lines be written into that
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        buffer = io.BufferedWriter(StandardStream(number, "w", closefd=False))
        stream = io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)
        setattr(sys, name, stream)


class StandardStream(io.FileIO):
    """Standard output or error; once a write has failed, the rest is dropped."""

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError as error:
            with Path(os.devnull).open("wb") as nobody:
                os.dup2(nobody.fileno(), self.fileno())
            if error.errno not in READER_GONE:
                raise
            return len(data)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device or the machine has run out of memory."""
    is_said = any(words in str(error).lower() for words in SAID_WITHOUT_MEMORY)
    return is_said or isinstance(error, MemoryError)


def printable(text: str) -> str:
    """`text` without what could steer a terminal: files may hold any name."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def brief(value: object, length: int = 80) -> str:
    """`value` as a message may quote it: printable, and cut where it is longer than `length`."""
    text = printable(str(value))
    return text if len(text) <= length else f"{text[: length - 3]}..."
