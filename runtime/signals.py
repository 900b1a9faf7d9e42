"""Stop signals: the first lets the step finish and be saved; one that comes later ends at once.

A signal that was ignored when the program started stays ignored: so nohup keeps SIGHUP away, and a
shell keeps Ctrl-C from what it runs in the background.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

# From the keyboard, a batch system and a closed terminal; from a batch system's time limit and
# before preemption.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# One stop may reach a process in several ways: a terminal and SLURM signal every process of a run,
# and torchrun and `main.py --jobs` forward what they receive.
ONE_STOP_SECONDS = 1.0

Handler = Callable[[int], None]


class Stopped(BaseException):  # noqa: N818 - like KeyboardInterrupt, no error
    """A signal ended the program on purpose; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_at_once(number: int, frame: object) -> NoReturn:
    """A signal handler that unwinds the program, so that half-written files are removed."""
    raise Stopped(number)


def announce(number: int) -> None:
    """Tell the user that the signal was received and what happens now."""
    line = f"{signal.Signals(number).name}: finishing this step, then saving\n"
    with suppress(OSError, ValueError):  # nobody reads any more
        os.write(sys.stderr.fileno(), line.encode())  # print might be interrupted by itself


def end_process(number: int) -> None:
    """Let the signal have its usual effect."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@dataclass
class StopRequest:
    """Whether a signal has asked for a stop; what is done on the first one and on a later one."""

    first: Handler
    later: Handler
    number: int = 0  # of the first signal
    since: float = 0.0

    def receive(self, number: int, frame: object) -> None:
        """The signal handler."""
        if not self.number:
            self.number, self.since = number, time.monotonic()
            self.first(number)
        elif time.monotonic() - self.since > ONE_STOP_SECONDS:
            self.later(number)

    def raise_if_asked(self, agree: Callable[[int], int] = int) -> None:
        """Raise Stopped if a signal has come; `agree` is Group.agree where several train."""
        if number := agree(self.number):
            raise Stopped(number)


def handle_stops(handler: Callable[[int, object], None]) -> dict[int, object]:
    """Let `handler` answer the stop signals; returns what answered them before."""
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}


@contextmanager
def deferred_stop(first: Handler = announce, later: Handler = end_process) -> Iterator[StopRequest]:
    """Inside, a signal asks for a stop instead of stopping in the middle of a step.

    `first` is called for the first signal, `later` for one that comes more than ONE_STOP_SECONDS
    after it. At the end Stopped is raised for a request that was not answered.
    """
    request = StopRequest(first, later)
    before = handle_stops(request.receive)
    try:
        yield request
    finally:
        if not request.number:  # else a later signal still ends the program while it unwinds
            for number, handler in before.items():
                signal.signal(number, handler)
    request.raise_if_asked()
