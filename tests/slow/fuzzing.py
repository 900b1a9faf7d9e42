"""Sees what reading a file does besides reading it: running code, other files, time, memory.

Python tells audit hooks when it is about to open, import, compile, run or connect. What is not
listed here is stopped and noted. Hook and limits stay for ever: for a process of its own.
"""

import codecs
import contextlib
import faulthandler
import io
import os
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from damage import Damage, blind

from runtime.errors import REMEDIES, SpotTuneError

SECONDS = 10.0  # that one file may take
LONGEST_MESSAGE = 1000  # characters, without the names of folders
HARMLESS = {"object.__getattr__", "object.__setattr__", "sys._getframe", "builtins.id"}
HARMLESS |= {"mmap.__new__", "array.__new__", "fcntl.flock"}
LISTS = {"os.listdir", "os.scandir", "pathlib.Path.glob"}
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod"}
CHANGES |= {"os.chown", "os.utime", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


# What zip files, JSON and pickles may be written in.
ENCODINGS = ("cp437", "latin1", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
ENCODINGS += ("utf-32-le", "utf-32-be", "raw_unicode_escape")


class ForbiddenError(BaseException):
    """What a file made its reader do; no `except Exception` may hide it."""


class Guard:
    """While it `is_on`, files may be read below `folder` and written below `folder`/out."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.writable = os.path.realpath(folder), os.path.realpath(folder / "out")
        self.is_on = False
        self.seen: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if self.is_on and not self.allows(event, arguments):
            self.is_on = False  # or what follows would be heard too
            self.seen.append(f"{event} {arguments!r:.200}")
            raise ForbiddenError(self.seen[-1])

    def allows(self, event: str, arguments: tuple) -> bool:
        if event == "open":
            path, _, flags = arguments
            return isinstance(path, int) or self.is_below(path, bool(flags & WRITES))
        paths = [each for each in arguments if isinstance(each, str | bytes | os.PathLike)]
        if event == "os.symlink":  # where it leads
            paths[0] = Path(paths[1]).parent / paths[0]
        if event in LISTS or event in CHANGES:
            return all(self.is_below(path, is_written=event in CHANGES) for path in paths)
        return event in HARMLESS

    def is_below(self, path: str | bytes | os.PathLike, is_written: bool) -> bool:
        folder = self.writable if is_written else self.folder
        try:
            return os.path.commonpath([folder, os.path.realpath(os.fsdecode(path))]) == folder
        except ValueError:  # a NUL in it: opening it will fail
            return True

    def outcome(self, read: Callable[[], object], seconds: float = SECONDS) -> str:
        """ "loaded", "refused", or what is wrong with how a file was read.

        A reader that takes longer than `seconds` ends the process, and tells where in "traceback".
        """
        output = io.StringIO()
        with Path(self.folder, "traceback").open("w") as traceback:
            faulthandler.dump_traceback_later(seconds, exit=True, file=traceback)
            try:
                with contextlib.redirect_stdout(output):
                    self.is_on = True
                    read()
                result = "loaded"
            except SpotTuneError as error:
                result = self.fault_of(str(error)) or "refused"
            except OSError as error:  # as run_script tells it
                result = "refused" if error.errno in REMEDIES else repr(error)
            except (Exception, ForbiddenError) as error:  # noqa: BLE001 - the test's failure
                result = f"{type(error).__name__}: {error!s:.300}"
            finally:
                self.is_on = False
                faulthandler.cancel_dump_traceback_later()
        if self.seen:  # even if the reader swallowed it
            return f"it did {self.seen.pop()}"
        if not output.getvalue().replace("\n", "").isprintable():
            return f"it printed what could steer a terminal: {output.getvalue()!r:.300}"
        return result

    def fault_of(self, message: str) -> str:
        """What keeps a message from being one clear line that names the file; empty if nothing."""
        if self.folder not in message:
            return f"a message that names no file: {message:.400}"
        length = len(message.replace(self.folder, ""))
        return f"a message of {length} characters: {message:.600}" * (length > LONGEST_MESSAGE)


def memory_now(figure: str) -> int:
    """In MiB: VmSize (address space), VmRSS (memory) or VmHWM (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(f"{figure}:"))
    return int(found.split()[1]) // 1024


def guarded(folder: Path, mebibytes: int) -> Guard:
    """A guard for this process, which from here on gets no more memory than this."""
    for encoding in ENCODINGS:  # Python imports each when it first meets it
        codecs.lookup(encoding)
    (folder / "out").mkdir(exist_ok=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="PIL|torch")  # which warn of what they then refuse
    limit = (memory_now("VmSize") + mebibytes) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return Guard(folder)


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    path: Path  # where a damaged file is put, and read
    good: Sequence[bytes]
    damage: Damage | None  # that knows the format
    read: Callable[[], object]  # as a user's run would
    hostile: Sequence[bytes] = ()  # files that nobody needs to damage
    mebibytes: int = 128  # that reading may take

    def case(self, chance: Random) -> bytes:
        """A damaged file, or now and then a hostile one as it is."""
        everything = [*self.good, *self.hostile]
        if self.hostile and chance.random() < 0.2:
            data = chance.choice(self.hostile)
            return data if chance.random() < 0.5 else blind(data, chance, everything)
        data = chance.choice(self.good)
        if self.damage is None or chance.random() < 0.4:
            return blind(data, chance, everything)
        return self.damage(data, chance)


@dataclass
class Tally:
    """What became of the cases of one kind."""

    loaded: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    added_MiB: int = 0  # noqa: N815 - a unit
    failures: list[str] = field(default_factory=list)


def fuzz(kind: Kind, name: str, cases: int, folder: Path) -> Tally:
    """Damage and read `cases` files; a number always gives the same file.

    That which is being read stands in `folder`/case, should the process end, and a file that fails
    is kept there as well.
    """
    for data in (*kind.good, b"garbage", b""):  # so that all imports are made
        write_alone(kind.path, data, folder)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                kind.read()
            except SpotTuneError:
                if data in kind.good:
                    raise
    guard, tally = guarded(folder, kind.mebibytes), Tally()
    for number in range(cases):
        data = kind.case(Random(f"{name} {number}"))
        write_alone(kind.path, data, folder)
        (folder / "case").write_text(f"{number}")
        Path("/proc/self/clear_refs").write_text("5")  # let the peak of memory be that of this file
        memory, begin = memory_now("VmRSS"), time.process_time()
        result = guard.outcome(kind.read)
        tally.slowest_s = max(tally.slowest_s, time.process_time() - begin)
        tally.added_MiB = max(tally.added_MiB, memory_now("VmHWM") - memory)
        if result in ("loaded", "refused"):
            setattr(tally, result, getattr(tally, result) + 1)
        else:
            tally.failures.append(f"case {number}: {result}")
            (folder / f"failed_{number}").write_bytes(data)
    return tally


def write_alone(path: Path, data: bytes, folder: Path) -> None:
    """Put the file in its place, without what an earlier one left in `folder`/out."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
