"""Several tasks at once, each a process of its own on a device of its own, watched by a parent.

The parent computes nothing. It starts the next task as soon as a device is free, starts a task that
died again from its checkpoint, passes signals on, and shows what all of them say. Everything that a
process prints is added to <ckpdir>/<task>/log.txt too.

A process ends in one of three ways:
    status 0                                finished
    "error: ..." as last line, status 1 or 2   the user's mistake; it would come again, so: failed
    anything else                           died; started again, at most `retries` times
"""

import math
import os
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from runtime.errors import ONE_STOP_SECONDS, STOP_SIGNALS, printable
from runtime.progress import TaskDisplay, say, task_display

POLL_SECONDS = 0.2
PIPE_BYTES = 1 << 20  # the most that Linux lets a pipe hold
LONGEST_LINE = 1 << 12  # a longer one is shown cut
GRACE_SECONDS = 60.0  # to save and end in, before a process is killed
MISTAKE = (1, 2)  # statuses that a one-line error ends with: errors.py, and argparse

Command = Callable[[str, str], list[str]]  # task, device -> the command line that trains it


def run_tasks(
    tasks: Sequence[str], devices: Sequence[str], command: Command, ckpdir: Path, retries: int
) -> list[str]:
    """Run `command(task, device)` for all tasks, in their order, one on each device at a time.

    Returns the tasks that failed. The first of the STOP_SIGNALS goes to all processes, and no
    more are started; a second one kills them. When they have ended, SystemExit is raised with 128
    plus the number of the first, as a shell would report it.
    """
    with noted_signals() as signals, Crew(tasks, devices, command, ckpdir, retries) as crew:
        while crew.running or (crew.waiting and not signals):
            if not signals:
                crew.start_waiting()
            crew.listen()
            crew.pass_on(signals)
            crew.collect(is_stopping=bool(signals))
    if signals:
        say(f"stopped by {signals[0].name}; the same command goes on where it can")
        raise SystemExit(128 + signals[0])
    return crew.failed


@contextmanager
def noted_signals() -> Iterator[list[signal.Signals]]:
    """Collect signals in a list instead of being ended by them.

    Those that follow at once are the same stop: some clusters preempt with two.
    """
    noted: list[signal.Signals] = []
    last = -math.inf

    def note(number: int, frame: object) -> None:
        nonlocal last
        if time.monotonic() - last > ONE_STOP_SECONDS:
            last = time.monotonic()
            noted.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Job:
    """The process of a task, on one of the devices (`slot`)."""

    def __init__(self, task: str, slot: int, command: Sequence[str], log: Path) -> None:
        self.task, self.slot = task, slot
        self.last_line = ""
        self._partial = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: IO[bytes] = log.open("ab", buffering=0)
        self._log.write(os.fsencode(f"$ {shlex.join(command)}\n"))
        # In a session of its own, or Ctrl-C would reach it twice. For stdin see end_with_parent.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.output: IO[bytes] = self.process.stdout
        os.set_blocking(self.output.fileno(), False)

    def new_lines(self) -> list[str] | None:
        """Whole lines that have come since the last call; None at the end of the output."""
        try:
            data = os.read(self.output.fileno(), PIPE_BYTES)
        except BlockingIOError:
            return []
        if not data:
            return None
        self._log.write(data)
        *whole, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > LONGEST_LINE:
            whole, self._partial = [*whole, self._partial], b""
        return self._readable(whole)

    def last_lines(self) -> list[str]:
        """What a dead process left unread, and a last line that it did not end."""
        return (self.new_lines() or []) + self._readable([self._partial])

    def close(self) -> None:
        for stream in (self._log, self.output, self.process.stdin):
            stream.close()

    def _readable(self, raw_lines: Sequence[bytes]) -> list[str]:
        lines = [printable(raw.decode(errors="replace")[:LONGEST_LINE]) for raw in raw_lines]
        lines = [line for line in lines if line.strip()]
        self.last_line = lines[-1] if lines else self.last_line
        return lines

    def made_a_mistake(self) -> bool:
        """Whether the process ended with one line that tells a user's mistake."""
        return self.process.returncode in MISTAKE and self.last_line.startswith("error: ")

    def ending(self) -> str:
        """How the dead process ended, in words."""
        status = self.process.returncode
        if status >= 0:
            return f"ended with status {status}"
        return f"was ended by signal {-status} ({signal.strsignal(-status)})"


class Crew:
    """Tasks that wait, run and have failed, and the slots, one a device, that are free."""

    def __init__(
        self,
        tasks: Sequence[str],
        devices: Sequence[str],
        command: Command,
        ckpdir: Path,
        retries: int,
    ) -> None:
        self.waiting = deque(tasks)
        self.running: list[Job] = []
        self.failed: list[str] = []
        self._total = len(tasks)
        self._devices, self._free = devices, deque(range(len(devices)))
        self._command, self._ckpdir, self._retries = command, ckpdir, retries
        self._deaths: Counter[str] = Counter()
        self._signals_passed_on = 0
        self._selector = selectors.DefaultSelector()
        self._display: TaskDisplay = task_display()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """After a fault of the parent, no process is left behind."""
        for job in self.running:
            job.process.terminate()
        for job in self.running:
            try:
                job.process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()
            job.close()
            self._display.end(job.task)
        self._selector.close()

    def start_waiting(self) -> None:
        """Start as many tasks as there are free devices."""
        while self.waiting and self._free:
            task, slot = self.waiting.popleft(), self._free.popleft()
            command = self._command(task, self._devices[slot])
            job = Job(task, slot, command, log_file(self._ckpdir, task))
            self.running.append(job)
            self._selector.register(job.output, selectors.EVENT_READ, job)
            self._display.begin(task, slot)

    def listen(self) -> None:
        """Show what the processes say, or wait a moment if they are silent."""
        for key, _ in self._selector.select(POLL_SECONDS):
            lines = key.data.new_lines()
            if lines is None:
                self._selector.unregister(key.fileobj)
            for line in lines or ():
                self._display.hear(key.data.task, line)
        self._display.refresh()

    def pass_on(self, signals: Sequence[signal.Signals]) -> None:
        """The first signal goes to every process as it is; any other one kills them."""
        for number in signals[self._signals_passed_on :]:
            for job in self.running:
                job.process.send_signal(signal.SIGKILL if self._signals_passed_on else number)
            self._signals_passed_on += 1

    def collect(self, is_stopping: bool) -> None:
        """Take leave of the processes that have ended, and decide what becomes of their tasks."""
        for job in [job for job in self.running if job.process.poll() is not None]:
            self.running.remove(job)
            self._free.append(job.slot)
            if job.output in self._selector.get_map():
                self._selector.unregister(job.output)
            for line in job.last_lines():
                self._display.hear(job.task, line)
            job.close()
            self._display.end(job.task)
            if not is_stopping:
                self._judge(job)

    def _judge(self, job: Job) -> None:
        """Finished, failed, or to be started again, before the tasks that still wait."""
        task = job.task
        if job.process.returncode == 0:
            left = len(self.waiting) + len(self.running)
            say(f"{task} | finished; {left} of {self._total} tasks to go")
            return
        self._deaths[task] += 1
        if job.made_a_mistake():
            self.failed.append(task)
            say(f"{task} | {job.last_line}")
        elif self._deaths[task] > self._retries:
            self.failed.append(task)
            say(f"{task} | {job.ending()}: given up after {self._deaths[task]} attempts")
        else:
            self.waiting.appendleft(task)
            say(
                f"{task} | {job.ending()}: started again from its checkpoint "
                f"({self._deaths[task]} of {self._retries})"
            )


def log_file(ckpdir: Path, task: str) -> Path:
    """Where all that a task's processes printed is kept."""
    return ckpdir / task / "log.txt"


def end_with_parent() -> None:
    """Let this process, one that run_tasks has started, end when its parent is gone.

    Standard input is a pipe that only the parent holds: it ends when the parent does, even by
    SIGKILL. Then this process gets a SIGTERM, and what is left of it after a while is ended.
    """
    threading.Thread(target=_await_end_of_parent, daemon=True).start()


def _await_end_of_parent() -> None:
    while os.read(0, 1):
        pass
    nobody = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # nobody reads; a broken pipe must not come between it and its saving
        os.dup2(nobody, descriptor)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)
