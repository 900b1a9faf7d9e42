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
from pathlib import Path
from random import Random
from typing import NamedTuple

from damage import Damage, blind

from runtime.errors import REMEDIES, SpotTuneError

LONGEST_MESSAGE = 1000  # characters, without the names of folders
HARMLESS = {"object.__getattr__", "object.__setattr__", "sys._getframe", "builtins.id"}
HARMLESS |= {"mmap.__new__", "array.__new__", "fcntl.flock"}
READS = {"os.listdir", "os.scandir", "pathlib.Path.glob"}
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod"}
WRITES |= {"os.chown", "os.utime", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ENCODINGS = ("cp437", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le")
ENCODINGS += ("utf-32-be", "latin1", "raw_unicode_escape")  # of zip files, JSON and pickles


class ForbiddenError(BaseException):
    """What a file made its reader do; no `except Exception` may hide it."""


class Guard:
    """While it `is_on`, files may be read beside `folder`, and written below `folder`/out."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        """From here on, this process gets so much more memory, and warnings are errors."""
        for encoding in ENCODINGS:  # Python imports each when it first meets it
            codecs.lookup(encoding)
        self.readable, self.writable = str(folder.parent), str(folder / "out")
        self.is_on, self.seen = False, []
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="PIL|torch")  # they warn of what they then refuse
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + mebibytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if self.is_on and not self.allows(event, arguments):
            self.is_on = False  # or what follows would be heard too
            self.seen.append(f"{event} {arguments!r:.200}")
            raise ForbiddenError(self.seen[-1])

    def allows(self, event: str, arguments: tuple) -> bool:
        paths = [each for each in arguments if isinstance(each, str | bytes | os.PathLike)]
        writes = arguments[2] & WRITING if event == "open" else event in WRITES
        if event == "open":
            paths = paths[:1]
        elif event == "os.symlink":  # where it leads
            paths[0] = Path(paths[1]).parent / paths[0]
        elif event not in READS | WRITES:
            return event in HARMLESS
        return all(is_below(self.writable if writes else self.readable, path) for path in paths)

    def outcome(self, read: Callable[[], object], seconds: float = 10) -> str:
        """ "loaded", "refused", or what is wrong with how a file was read.

        A reader that takes longer than `seconds` ends the process, and tells where in "traceback".
        """
        output = io.StringIO()
        with Path("traceback").open("w") as traceback, contextlib.redirect_stdout(output):
            faulthandler.dump_traceback_later(seconds, exit=True, file=traceback)
            try:
                self.is_on = True
                read()
                result = "loaded"
            except SpotTuneError as error:
                line = str(error).replace(self.readable, "")
                is_clear = len(line) <= LONGEST_MESSAGE and line != str(error)
                result = "refused" if is_clear else f"too long, or names no file: {line:.600}"
            except OSError as error:  # as run_script tells it
                result = "refused" if error.errno in REMEDIES else repr(error)
            except (Exception, ForbiddenError) as error:  # noqa: BLE001 - the test's failure
                result = f"{type(error).__name__}: {error!s:.300}"
            finally:
                self.is_on = False
                faulthandler.cancel_dump_traceback_later()
        if self.seen:  # even if the reader swallowed it
            return f"it did {self.seen.pop()}"
        is_printable = output.getvalue().replace("\n", "").isprintable()
        return result if is_printable else f"it printed {output.getvalue()!r:.300}"


def is_below(folder: str, path: str | bytes | os.PathLike) -> bool:
    try:
        return os.path.commonpath([folder, os.path.realpath(os.fsdecode(path))]) == folder
    except ValueError:  # a NUL in it: opening it will fail
        return True


class Kind(NamedTuple):
    """One kind of file."""

    cases: int
    place: str  # in the working directory
    damage: Damage  # by the rules of the format
    mebibytes: int = 64  # of address space that damaging and reading one may take


def fuzz(kind: Kind, seeds: Sequence[bytes], read: Callable[[Path], object]) -> dict:
    """Damage files, put each in its place, read it; what became of them.

    `seeds`: files to damage, the first of them good. A number always gives the same case; that of
    the one being read stands in "case", should it end the process. A file that fails is kept.
    """
    folder = Path.cwd()
    path = folder / kind.place
    for data in (seeds[0], b"garbage", b""):  # so that all imports are made
        put(data, path)
        with contextlib.suppress(SpotTuneError):
            read(path)
    guard, peak = Guard(folder, kind.mebibytes), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"loaded": 0, "refused": 0, "failures": [], "slowest_s": 0.0}
    for number in range(kind.cases):
        chance = Random(f"{folder.name} {number}")
        data = chance.choice([seeds[0], chance.choice(seeds)])
        (damage,) = chance.choices((blind, kind.damage, as_it_is), (4, 5, 1))
        put(damage(data, chance), path)
        Path("case").write_text(str(number))
        begin = time.process_time()
        result = guard.outcome(lambda: read(path))
        found["slowest_s"] = max(found["slowest_s"], time.process_time() - begin)
        if result in ("loaded", "refused"):
            found[result] += 1
        else:
            found["failures"].append(f"case {number}: {result}")
            path.replace(f"failed_{number}")
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    return {**found, "added_MiB": added // 1024}


def as_it_is(data: bytes, chance: Random) -> bytes:
    return data


def put(data: bytes, path: Path) -> None:
    """The file in its place, without what an earlier one left in "out"."""
    shutil.rmtree("out", ignore_errors=True)
    Path("out").mkdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
