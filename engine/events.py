"""--tensorboard: the records of a run as events in its folder, for `tensorboard --logdir cv`.

They are made from the checkpoint's history. A process that continues a run writes those of the
epochs before it anew: the earlier process may have been killed between an epoch's checkpoint and
its events. So each epoch stands there once.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.records import flat
from runtime.errors import SpotTuneError

FILES = "events.out.tfevents.*"  # as TensorBoard names them


def check_tensorboard() -> None:
    """Raise SpotTuneError unless TensorBoard is installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise SpotTuneError(
            "--tensorboard: the package tensorboard is not installed. Install it with `pip install "
            "tensorboard`, or leave the flag out"
        ) from error


@contextmanager
def events_in(
    folder: Path, history: Sequence[Mapping], is_writing: bool
) -> Iterator[Callable[[Mapping], None]]:
    """Write the events of `history`; yields what adds those of a further record.

    Both do nothing unless `is_writing`.
    """
    if not is_writing:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter  # not at the top: it may not be installed

    for path in folder.glob(FILES):  # of earlier processes
        path.unlink()
    writer = SummaryWriter(str(folder))

    def add(record: Mapping) -> None:
        for tag, value in scalars(record):
            writer.add_scalar(tag, value, record["epoch"])
        writer.flush()

    try:
        for record in history:
            add(record)
        yield add
    finally:
        writer.close()


def scalars(record: Mapping) -> Iterator[tuple[str, float]]:
    """The numbers of a record by their tags, such as "val/loss"; a list's are counted from 0."""
    for name, value in flat(record).items():
        tag = re.sub(r"^(train|val)_", r"\1/", name.replace(".", "/"))
        for place, number in enumerate(value if isinstance(value, list) else [value]):
            if type(number) in (int, float) and name != "epoch":
                yield f"{tag}/{place}" if isinstance(value, list) else tag, number
