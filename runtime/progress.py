"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import math
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_REFRESHES = 0.5
# The lines of a task's training: "svhn epoch 3/110: 12 of 573 steps", and its end, without steps.
EPOCH_LINE = re.compile(r"epoch (\d+)/(\d+)(?:: ([\d,]+) of ([\d,]+) steps)?")


def track(
    items: Iterable[Item], total: int, label: str, unit: str = "step", first: int = 0
) -> Iterator[Item]:
    """Yield the items of `items`, showing on standard error how far along `total` they are.

    `first` of them were done before.
    """
    if sys.stderr.isatty():
        yield from tqdm(
            items, label, total, initial=first, unit=unit, leave=False, dynamic_ncols=True
        )
        return
    last_line = time.monotonic()
    for done, item in enumerate(items, start=first):
        if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            print(f"{label}: {done:,} of {total:,} {unit}s", file=sys.stderr, flush=True)
            last_line = time.monotonic()
        yield item


def say(line: str) -> None:
    """Print one line on standard output, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def epochs_done(line: str) -> tuple[float, int] | None:
    """How many epochs of how many are done, where a line of a task's training tells it."""
    match = EPOCH_LINE.search(line)
    if match is None:
        return None
    epoch, epochs = int(match[1]), int(match[2])
    if match[3] is None:
        return epoch, epochs
    steps_done, steps = (int(match[group].replace(",", "")) for group in (3, 4))
    return epoch - 1 + steps_done / steps, epochs


class TaskDisplay(Protocol):
    """What several tasks at once say, in one place."""

    def begin(self, task: str, slot: int) -> None:
        """A task starts, as number `slot` of those that run."""

    def hear(self, task: str, line: str) -> None:
        """A task says `line`."""

    def refresh(self) -> None:
        """Show what was heard, if it is time to; to be called often."""

    def end(self, task: str) -> None:
        """A task has ended."""


def task_display() -> TaskDisplay:
    """Bars on a terminal, lines elsewhere."""
    return TaskBars() if sys.stderr.isatty() else TaskLines()


class TaskBars:
    """A bar of each task's epochs, with the last line that it said."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm] = {}
        self._refreshed = -math.inf

    def begin(self, task: str, slot: int) -> None:
        self._bars[task] = tqdm(
            total=1,
            desc=f"{task:13}",
            position=slot,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc}{percentage:3.0f} %|{bar:12}| {elapsed}<{remaining}{postfix}",
        )

    def hear(self, task: str, line: str) -> None:
        bar = self._bars[task]
        bar.set_postfix_str(line.removeprefix(f"{task} "), refresh=False)
        place = epochs_done(line)
        if place is None:
            return
        done, bar.total = place
        if bar.n == 0:  # epochs of an earlier run took none of this one's time
            bar.initial = math.ceil(done) - 1
        bar.n = done

    def refresh(self) -> None:
        if time.monotonic() - self._refreshed >= SECONDS_BETWEEN_REFRESHES:
            for bar in self._bars.values():
                bar.refresh()
            self._refreshed = time.monotonic()

    def end(self, task: str) -> None:
        self._bars.pop(task).close()


class TaskLines:
    """Lines with their task's name: of each task the first, the last, and one now and then."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}
        self._heard: dict[str, str] = {}

    def begin(self, task: str, slot: int) -> None:
        self._said[task] = -math.inf

    def hear(self, task: str, line: str) -> None:
        self._heard[task] = line

    def refresh(self) -> None:
        now = time.monotonic()
        for task in list(self._heard):
            if now - self._said[task] >= SECONDS_BETWEEN_LINES:
                self._say(task)

    def end(self, task: str) -> None:
        if task in self._heard:
            self._say(task)

    def _say(self, task: str) -> None:
        say(f"{task} | {self._heard.pop(task).removeprefix(f'{task} ')}")
        self._said[task] = time.monotonic()
