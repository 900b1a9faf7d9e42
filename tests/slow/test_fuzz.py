"""Whatever stands in a file, reading it runs nothing, ends soon, and takes little memory.

Over ten thousand damaged files, some damaged blindly and some by hands that know the format, are
read as a run would read them. Each must be loaded, or refused in one clear line. A failure names
its case; `python -W error tests/slow/fuzzing.py KIND CASE CASE+1 FOLDER` repeats it.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = {
    "pretrained": 4000,
    "mean_std": 3000,
    "checkpoint": 2500,
    "annotations": 2500,
    "pack": 1000,
    "answers": 1000,
    "zipped_answers": 1000,
    "labels": 1000,
    "image": 2000,
}
MOST_MEBIBYTES = 32  # of memory that reading a file of some kilobytes may add
OF_IMAGES = 512  # one of 89 million pixels, Pillow's limit, takes 0.4 GB
MOST_DEATHS = 3  # of a process, before the rest of its cases is left

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="memory is limited and measured in Linux's way"
)


@dataclass
class Tally:
    """What became of the cases of one kind."""

    loaded: int = 0
    refused: int = 0
    failed: int = 0
    slowest_s: float = 0.0
    added_MiB: int = 0  # noqa: N815 - a unit
    failures: list[str] = field(default_factory=list)

    def add(self, line: dict) -> None:
        """One line that fuzzing.py has printed."""
        if "case" in line:
            self.failures.append(f"case {line['case']}: {line['result']}")
            return
        for name in ("loaded", "refused", "failed"):
            setattr(self, name, getattr(self, name) + line[name])
        self.slowest_s = max(self.slowest_s, line["slowest_s"])
        self.added_MiB = max(self.added_MiB, line["added_MiB"])


def fuzzed(kind: str, cases: int, folder: Path) -> Tally:
    """All cases of a kind; after one that kills its process, a new process takes the next."""
    tally, first = Tally(), 0
    while first < cases and len(tally.failures) < MOST_DEATHS:
        place = folder / f"from_{first}"
        place.mkdir()
        command = [sys.executable, "-W", "error", str(HERE / "fuzzing.py")]
        command += [kind, str(first), str(cases), str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            tally.add(json.loads(line))
        if done.returncode == 0:
            break
        case = int((place / "case").read_text())
        ended = f"ended its process with {done.returncode}: {done.stderr[-2000:]}"
        tally.failures.append(f"case {case} {ended}")
        first = case + 1
    return tally


@pytest.mark.parametrize("kind", CASES)
def test_a_damaged_file_is_loaded_or_refused_in_one_clear_line(kind, tmp_path, figures):
    tally = fuzzed(kind, CASES[kind], tmp_path)
    figures.append(
        f"{kind:15} {CASES[kind]:5} files  {tally.loaded:5} loaded  {tally.refused:5} refused"
        f"  slowest {tally.slowest_s:.2f} s  memory +{tally.added_MiB} MiB"
    )
    assert not tally.failures
    assert tally.loaded + tally.refused == CASES[kind]
    assert tally.added_MiB < (OF_IMAGES if kind == "image" else MOST_MEBIBYTES)
    assert tally.loaded and tally.refused  # damage that spares, and damage that does not


def test_over_ten_thousand_files_of_the_four_kinds_that_users_fetch_or_keep_are_read():
    assert sum(CASES[k] for k in ("pretrained", "mean_std", "checkpoint", "annotations")) > 10_000


# The guard itself: what it would see if a reader did it.

PROGRAM = """
import os, pickle, socket, subprocess, sys
from pathlib import Path
here, repository, folder, body = sys.argv[1:]
sys.path[:0] = [here, repository]
from runtime.errors import SpotTuneError
from guard import Guard, limit_memory, outcome

def read():
    exec(compiled)

compiled = compile(body, "body", "exec")
(Path(folder) / "out").mkdir()
guard = Guard(Path(folder), Path(folder) / "out")
guard.allows = lambda event, arguments: event == "exec" or Guard.allows(guard, event, arguments)
limit_memory(256)
print(outcome(read, guard, seconds=2))
"""


def seen(body: str, folder: Path) -> subprocess.CompletedProcess:
    """What the guard says of a reader that does this."""
    command = [sys.executable, "-c", PROGRAM, str(HERE), str(HERE.parents[1]), str(folder), body]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pickle.loads(b'cposix\\nsystem\\n(Vtouch canary\\ntR.')", "it did pickle.find_class"),
        ("os.system('touch canary')", "it did os.system"),
        ("subprocess.run(['touch', 'canary'])", "it did subprocess.Popen"),
        ("os.posix_spawn('/usr/bin/touch', ['touch', 'canary'], {})", "it did os.posix_spawn"),
        ("socket.socket()", "it did socket.__new__"),
        ("eval('1 + 1')", "it did compile"),
        ("__import__('antigravity')", "it did import"),
        ("open('/etc/passwd')", "it did open"),
        ("open('canary', 'w')", "it did open"),
        ("os.symlink('/etc', 'out/canary')", "it did os.symlink"),
        ("os.rename('out', 'canary')", "it did os.rename"),
        ("try: os.system('touch canary')\nexcept BaseException: pass", "it did os.system"),
        ("print('\\x1b[2J')", "it printed what could steer a terminal"),
        ("1 / 0", "ZeroDivisionError"),
        ("bytearray(2**30)", "MemoryError"),
        ("raise SpotTuneError('two\\nlines')", "a message that is not one printable line"),
        ("raise SpotTuneError('something is wrong')", "a message that names no file"),
        ("raise SpotTuneError(folder + 'x' * 501)", "a message of 501 characters"),
        ("raise SpotTuneError(folder + ': found nothing')", "refused"),
        ("open('out/file', 'w').close(); os.remove('out/file')", "loaded"),
    ],
)
def test_what_a_reader_does_besides_reading_is_seen_and_stopped(body, said, tmp_path):
    done = seen(body, tmp_path)
    assert done.stdout.startswith(said), done
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "body", ["while True: pass", "key = ()\nfor _ in range(60): key = (key, key)\nhash(key)"]
)
def test_a_reader_that_does_not_end_is_ended_and_where_is_told(body, tmp_path):
    done = seen(body, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "in read" in done.stderr
