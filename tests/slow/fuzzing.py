"""Reads damaged files in a process of its own, under limits, and tells what became of each.

    python -W error tests/slow/fuzzing.py KIND FIRST END [FOLDER]

damages and reads the cases FIRST to END - 1 of one kind of files (see kinds.py); the same number
always gives the same file. It prints a line of JSON for each case that is neither loaded nor
refused in one clear line, and one with the figures at the end. A case that takes too long, or that
kills the process, is the one whose number stands in FOLDER/case, and its file is still there.
"""

import codecs
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from random import Random

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

import torch  # noqa: E402
from guard import Guard, count_peak_anew, limit_memory, memory_now, outcome  # noqa: E402
from kinds import KINDS, Kind  # noqa: E402

# What zip files, JSON and pickles may be written in; Python imports each when it first meets it.
ENCODINGS = ("cp437", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32")
ENCODINGS += ("utf-32-be", "utf-32-le", "raw_unicode_escape")


def warm_up(kind: Kind, guard: Guard) -> None:
    """Read every good file and two that are none, so that all imports are made."""
    for encoding in ENCODINGS:
        codecs.lookup(encoding)
    for data in (*kind.good, b"garbage", b""):
        kind.before()
        kind.path.write_bytes(data)
        result = outcome(kind.read, guard, imports_allowed=True, seconds=60)
        if result not in ("loaded", "refused"):
            raise RuntimeError(f"before any damage: {result}")


def run(name: str, first: int, end: int, folder: Path) -> None:
    """Cases `first` to `end` - 1 of a kind; `folder` is empty."""
    torch.set_num_threads(1)
    (folder / "out").mkdir()
    os.chdir(folder / "out")  # what rmtree opens relative to a folder seems to be here
    kind = KINDS[name](folder)
    guard = Guard(folder, writable=folder / "out")
    warm_up(kind, guard)
    counts = {"loaded": 0, "refused": 0, "failed": 0}
    slowest, most = (0.0, first), (0, first)
    place = os.open(folder / "case", os.O_CREAT | os.O_WRONLY)
    limit_memory(kind.mebibytes)
    for number in range(first, end):
        os.pwrite(place, f"{number:8}".encode(), 0)
        kind.before()
        kind.path.write_bytes(kind.damaged(Random(f"{name} {number}")))
        count_peak_anew()
        memory, begin = memory_now("VmRSS"), time.process_time()
        result = outcome(kind.read, guard)
        slowest = max(slowest, (time.process_time() - begin, number))
        most = max(most, (memory_now("VmHWM") - memory, number))
        if result not in counts:
            print(json.dumps({"case": number, "result": result}), flush=True)
            result = "failed"
        counts[result] += 1
    figures = {"slowest_s": slowest[0], "slowest_case": slowest[1]}
    figures |= {"added_MiB": most[0], "added_case": most[1]}
    print(json.dumps(counts | figures), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        kind_name, first_case, end_case, *given = sys.argv[1:]
        run(kind_name, int(first_case), int(end_case), Path(*given or [temporary]).resolve())
