"""Several tasks at once, each a process of its own on a device of its own: `main.py --jobs N`.

Each process is `main.py` with the same arguments for one task alone, so that a task ends with the
same bits as in a run of one task after another. The source is trained first, since the targets
start from its weights; then the targets, the longest first, each on the next device that gets free.
The parent only watches. A process ends in one of three ways:

    status 0                                   finished
    "error: ..." as last line, status 1 or 2   the user's mistake, which would come again: failed
    anything else                              died: started again from its checkpoint, at most
                                               `retries` times
"""

import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np

from decathlon import SOURCE, DecathlonTask
from engine.checkpoints import Checkpoint, checkpoint_file
from engine.records import epochs_recorded
from image_cache.orders import View
from image_cache.packed import DataFolders
from imdbfolder_coco import annotation_file, read_annotations, view_of
from runtime.errors import SpotTuneError, printable
from runtime.progress import SECONDS_BETWEEN_LINES, say
from runtime.signals import announce, deferred_stop

LONGEST_LINE = 1000  # a longer one is shown cut; the log has all of it
GRACE_SECONDS = 60.0  # for a process to save and end in, after its parent
MISTAKE = (1, 2)  # statuses that a one-line error ends with: errors.py, and argparse

Command = Callable[[str, str], list[str]]  # task, device -> the command line that trains it


def job_command(
    script: Path, argv: Sequence[str], threads: int, one_task: str = "--tasks"
) -> Command:
    """How to train one task on one device: the run's own arguments, and what is different.

    `one_task`: the script's flag that names it.
    """

    def command(task: str, device: str) -> list[str]:
        own = [one_task, task, "--device", device, "--threads", str(threads), "--jobs", "1"]
        return [sys.executable, str(script), *argv, *own, "--is_job"]

    return command


def train_side_by_side(
    tasks: Sequence[DecathlonTask],
    targets: Sequence[DecathlonTask],
    ckpdir: Path,
    devices: Sequence[str],
    command: Command,
    retries: int,
) -> dict[str, list[dict]]:
    """Train the source, if it is one of the tasks, then the `targets` in their order.

    Returns the histories of the tasks that finished, in the order of `tasks`. Raises SpotTuneError
    if the source failed, and Stopped after a signal.
    """
    if SOURCE in tasks and run_tasks([SOURCE.name], devices, command, ckpdir, retries):
        raise SpotTuneError(
            f"{SOURCE.name} failed, so no target was started; see {log_file(ckpdir, SOURCE.name)}. "
            f"The same command continues"
        )
    failed = run_tasks([task.name for task in targets], devices, command, ckpdir, retries)
    finished = [task.name for task in tasks if task.name not in failed]
    return {name: Checkpoint.load(checkpoint_file(ckpdir, name)).history for name in finished}


def check_finished(tasks: Sequence[str], histories: dict[str, list[dict]], ckpdir: Path) -> None:
    """Raise SpotTuneError, naming their logs, if some of the tasks have not finished."""
    failed = [str(log_file(ckpdir, task)) for task in tasks if task not in histories]
    if failed:
        raise SpotTuneError(
            f"{len(failed)} of {len(tasks)} tasks failed, see {', '.join(failed)}. The others are "
            f"finished; the same command continues with these"
        )


# --- The order of the tasks ----------------------------------------------------------------------


def longest_first(
    tasks: Sequence[DecathlonTask],
    folders: DataFolders,
    ckpdir: Path,
    splits: Sequence[str],
    epochs: int,
    resize: int,
    crop: int,
) -> list[DecathlonTask]:
    """The targets among `tasks`, those first whose training has the most pixels still to see.

    A convolution's time grows with the pixels; what evaluation and start-up add is left out. Raises
    SpotTuneError where the annotations of the `splits` break the format.
    """

    def pixels_left(task: DecathlonTask) -> int:
        files = [annotation_file(folders.imdbdir, task.name, split) for split in splits]
        images = sum(len(read_annotations(file).image_ids) for file in files)
        epochs_left = epochs - epochs_recorded(ckpdir / task.name)
        view = official_view(task, resize, crop)
        return epochs_left * images * view.height * view.width

    return sorted((task for task in tasks if task is not SOURCE), key=pixels_left, reverse=True)


def official_view(task: DecathlonTask, resize: int, crop: int, training: bool = True) -> View:
    """What the network sees of an official image, without a look at one.

    Only daimlerpedcls is not cropped: its images are twice as high as wide.
    """
    sizes = SimpleNamespace(heights=np.array([2 * resize]), widths=np.array([resize]))
    return view_of(task, sizes, resize, crop, training)


# --- The processes -------------------------------------------------------------------------------


def run_tasks(
    tasks: Sequence[str], devices: Sequence[str], command: Command, ckpdir: Path, retries: int
) -> list[str]:
    """Run `command(task, device)` for all tasks, in their order, one on each device at a time.

    Returns the tasks that failed. The first stop signal is forwarded: processes save and exit, no
    more are started, and Stopped is raised. A second signal kills them.
    """
    run = SideBySide(deque(tasks), command, ckpdir, retries)
    with deferred_stop(run.forward, run.kill), ThreadPoolExecutor(len(devices)) as pool:
        list(pool.map(run.use, devices))
    return run.failed


class SideBySide:
    """Tasks that wait, run and have failed; the thread of each device takes the next from here."""

    def __init__(self, waiting: deque[str], command: Command, ckpdir: Path, retries: int) -> None:
        self.waiting, self.failed = waiting, []
        self._command, self._ckpdir, self._retries = command, ckpdir, retries
        self._running: dict[str, subprocess.Popen] = {}
        self._stop = 0  # the signal that was forwarded

    def use(self, device: str) -> None:
        """Train one task after another on a device, until none waits or a signal comes."""
        while not self._stop:
            try:
                task = self.waiting.popleft()
            except IndexError:  # another device took the last
                return
            if not self._finishes(task, device):
                self.failed.append(task)

    def forward(self, number: int) -> None:
        """Let all processes save and exit."""
        self._stop = number
        announce(number)
        for process in list(self._running.values()):
            process.send_signal(number)

    def kill(self, number: int) -> None:
        for process in list(self._running.values()):
            process.kill()

    def _finishes(self, task: str, device: str) -> bool:
        """Run a task, again where its process died; False if it was given up or stopped."""
        for attempt in range(1, self._retries + 2):
            status, last_line = self._run(task, device)
            if status == 0:
                to_go = len(self.waiting) + len(self._running)
                say(f"{task} | finished; {to_go} tasks to go")
                return True
            if self._stop or (status in MISTAKE and last_line.startswith("error: ")):
                return False
            ending = f"ended with status {status}"
            if status < 0:
                ending = f"was ended by signal {-status} ({signal.strsignal(-status)})"
            if attempt <= self._retries:
                again = f"started again from its checkpoint ({attempt} of {self._retries})"
                say(f"{task} | {ending}: {again}")
        say(f"{task} | {ending}: given up after {attempt} attempts")
        return False

    def _run(self, task: str, device: str) -> tuple[int, str]:
        """Run a task's process to its end; its status, as Popen has it, and its last line."""
        command = self._command(task, device)
        path = log_file(self._ckpdir, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with (
            path.open("ab", buffering=0) as log,
            # In a session of its own, or Ctrl-C would reach it twice. stdin: end_with_parent.
            subprocess.Popen(command, **pipes, start_new_session=True) as process,
        ):
            self._running[task] = process
            try:
                if self._stop:  # it came while the process was being started
                    process.send_signal(self._stop)
                log.write(os.fsencode(f"$ {shlex.join(command)}\n"))
                last_line = show(task, process.stdout, log)
                return process.wait(), last_line
            finally:
                del self._running[task]


def show(task: str, output: IO[bytes], log: IO[bytes]) -> str:
    """Log all that a process prints; of its lines show the first, the last, and one now and then.

    Returns the last line, once the output has ended.
    """
    line, shown, last_shown = "", "", -math.inf
    for raw in output:
        log.write(raw)
        line = printable(raw.decode(errors="replace").strip())[:LONGEST_LINE] or line
        if line and time.monotonic() - last_shown >= SECONDS_BETWEEN_LINES:
            say(f"{task} | {line.removeprefix(f'{task} ')}")
            shown, last_shown = line, time.monotonic()
    if line != shown:
        say(f"{task} | {line.removeprefix(f'{task} ')}")
    return line


def log_file(ckpdir: Path, task: str) -> Path:
    """Where all that a task's processes printed is kept."""
    return ckpdir / task / "log.txt"


# --- In a process --------------------------------------------------------------------------------


def end_with_parent() -> None:
    """Let this process, one that run_tasks has started, end when its parent is gone.

    Standard input is a pipe that only the parent holds: it ends when the parent does, even by
    SIGKILL. Then this process gets a SIGTERM, and what is left of it after a while is ended.
    """
    threading.Thread(target=_await_end_of_parent, daemon=True).start()


def _await_end_of_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)
