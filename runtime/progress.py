"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0


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
