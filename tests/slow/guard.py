"""Sees what reading a file does besides reading it: running code, other files, time, memory.

Python tells audit hooks when it is about to open, import, compile, run or connect. Whatever is not
on the short list here is stopped and noted, so that "nothing in the file was run" is something seen
and not assumed. Time and memory are limited from outside the interpreter: a loop in C ends too.
"""

import contextlib
import faulthandler
import io
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import SpotTuneError

SECONDS = 10.0  # that one file may take; the slowest takes a tenth of it
LONGEST_MESSAGE = 500  # characters, without the names of folders
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMLESS = {"object.__getattr__", "object.__setattr__", "sys._getframe", "builtins.id"}
HARMLESS |= {"mmap.__new__", "array.__new__", "sys._getframemodulename", "fcntl.flock"}
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
CHANGES |= {"os.listdir", "os.scandir", "pathlib.Path.glob"}


class ForbiddenError(BaseException):
    """What a file made the reader do; no `except Exception` may hide it."""


class Guard:
    """Once made it hears everything in this process; it forbids only while `watching`.

    Files may be read below `folder` and written below `writable`.
    """

    def __init__(self, folder: Path, writable: Path) -> None:
        self.folder, self.writable = os.path.realpath(folder), os.path.realpath(writable)
        self.is_on = self.imports_allowed = False
        self.seen: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if not self.is_on or self.allows(event, arguments):
            return
        self.is_on = False  # or what follows would be heard too
        self.seen.append(f"{event} {arguments!r:.200}")
        raise ForbiddenError(self.seen[-1])

    def allows(self, event: str, arguments: tuple) -> bool:
        if event in HARMLESS or self.imports_allowed:
            return True
        if event == "open":
            path, _, flags = arguments
            return isinstance(path, int) or self.is_below(path, bool(flags & WRITES))
        paths = [path for path in arguments if isinstance(path, str | bytes | os.PathLike)]
        return event in CHANGES and all(self.is_below(path, writes=True) for path in paths)

    def is_below(self, path: str | bytes | os.PathLike, writes: bool) -> bool:
        try:
            real = os.path.realpath(os.fsdecode(path))
        except ValueError:  # a NUL in it: opening it will fail
            return True
        folder = self.writable if writes else self.folder
        return os.path.commonpath([folder, real]) == folder

    @contextmanager
    def watching(self, imports_allowed: bool = False) -> Iterator[None]:
        """`imports_allowed`: for good files, with which everything is read once to begin with."""
        self.imports_allowed, self.is_on = imports_allowed, True
        self.seen.clear()
        try:
            yield
        finally:
            self.is_on = False


def outcome(
    read: Callable[[], object],
    guard: Guard,
    imports_allowed: bool = False,
    seconds: float = SECONDS,
) -> str:
    """ "loaded", "refused", or else what is wrong with how a file was read.

    A read that takes longer than `seconds` ends the process, and tells on standard error where.
    """
    output = io.StringIO()
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        with contextlib.redirect_stdout(output), guard.watching(imports_allowed):
            read()
        result = "loaded"
    except SpotTuneError as error:
        result = fault_of(str(error), guard.folder) or "refused"
    except (Exception, ForbiddenError) as error:  # noqa: BLE001 - it is reported as a failure
        result = f"{type(error).__name__}: {error!s:.300}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    if guard.seen:  # even if the reader swallowed it
        return f"it did {guard.seen[0]}"
    if not all(line.isprintable() for line in output.getvalue().split("\n")):
        return f"it printed what could steer a terminal: {output.getvalue()!r:.300}"
    return result


def fault_of(message: str, folder: str) -> str:
    """What keeps a message from being one clear line that names the file; empty if nothing."""
    if not message.isprintable():
        return f"a message that is not one printable line: {message!r:.400}"
    if folder not in message:
        return f"a message that names no file: {message:.400}"
    length = len(message.replace(folder, ""))
    return f"a message of {length} characters: {message:.600}" * (length > LONGEST_MESSAGE)


def memory_now(field: str) -> int:
    """A figure of this process in MiB: VmSize (address space), VmRSS (memory), VmHWM (its peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) // 1024
    raise LookupError(field)


def count_peak_anew() -> None:
    """Let the peak be that of what follows."""
    Path("/proc/self/clear_refs").write_text("5")


def limit_memory(mebibytes: int) -> None:
    """From here on no more further address space than this, be it touched or only asked for."""
    limit = (memory_now("VmSize") + mebibytes) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
