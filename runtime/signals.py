"""Signals in training: the first one lets the step finish and be saved, a later ends at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.distributed import ALONE, Group
from runtime.errors import ONE_STOP_SECONDS, STOP_SIGNALS, Stopped

STDERR = 2


class StopRequest:
    """Whether a signal has asked for a stop."""

    def __init__(self) -> None:
        self.number = None
        self.since = 0.0

    def receive(self, number: int, frame: object) -> None:
        """The signal handler: a later signal has its usual effect, which is to end."""
        now = time.monotonic()
        if self.number is None:
            self.number, self.since = number, now
            # Not print: the signal may have come in the middle of another print.
            line = f"{signal.Signals(number).name}: finishing this step, then saving\n"
            os.write(STDERR, line.encode())
        elif now - self.since > ONE_STOP_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def raise_if_asked(self, group: Group = ALONE) -> None:
        """Raise Stopped if a signal has come, to this process or another of its group."""
        number = group.agree(self.number or 0)
        if number:
            raise Stopped(number)


@contextmanager
def deferred_stop() -> Iterator[StopRequest]:
    """Inside, a signal asks for a stop instead of stopping in the middle of a step.

    At the end Stopped is raised for one that was not answered.
    In a thread other than the main one, where Python allows no signal handlers, nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        if request.number is None:
            for number, handler in before.items():
                signal.signal(number, handler)
    if request.number is not None:  # after the last time that the caller looked
        raise Stopped(request.number)
