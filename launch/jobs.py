"""The Decathlon's tasks side by side: `main.py --jobs N`.

Every task is trained by a process of its own, `main.py` with the same arguments for that task
alone, so that it ends with the same bits as in a run of one task after another. The source is
trained first, since the targets start from its weights; then the targets, the longest first, each
on the next device that gets free.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from decathlon import SOURCE, DecathlonTask
from engine.checkpoints import Checkpoint, checkpoint_file
from engine.records import epochs_recorded
from engine.settings import Recipe
from image_cache.packed import DataFolders
from launch.crew import Command, log_file, run_tasks
from launch.workload import expected_work
from runtime.errors import SpotTuneError


def job_command(script: Path, argv: Sequence[str], threads: int) -> Command:
    """How to train one task on one device: the run's own arguments, and what is different."""

    def command(task: str, device: str) -> list[str]:
        own = ["--tasks", task, "--device", device, "--threads", str(threads), "--jobs", "1"]
        return [sys.executable, str(script), *argv, *own, "--is_job"]

    return command


def train_side_by_side(
    tasks: Sequence[DecathlonTask],
    folders: DataFolders,
    ckpdir: Path,
    recipe: Recipe,
    devices: Sequence[str],
    command: Command,
    retries: int,
) -> dict[str, list[dict]]:
    """Train the tasks as processes, one on each device at a time; histories of those that finished.

    Raises SpotTuneError if the source failed, and SystemExit if a signal stopped the run.
    """
    targets = longest_first(tasks, folders, ckpdir, recipe)
    if SOURCE in tasks and run_tasks([SOURCE.name], devices, command, ckpdir, retries):
        raise SpotTuneError(
            f"{SOURCE.name} failed, so no target was started; see {log_file(ckpdir, SOURCE.name)}. "
            f"The same command goes on"
        )
    failed = run_tasks([task.name for task in targets], devices, command, ckpdir, retries)
    finished = [task.name for task in tasks if task.name not in failed]
    return {name: Checkpoint.load(checkpoint_file(ckpdir, name)).history for name in finished}


def longest_first(
    tasks: Sequence[DecathlonTask], folders: DataFolders, ckpdir: Path, recipe: Recipe
) -> list[DecathlonTask]:
    """The targets among `tasks`, those with the most work still to do first."""

    def work(task: DecathlonTask) -> int:
        epochs = recipe.epochs - epochs_recorded(ckpdir / task.name)
        return expected_work(task, folders, recipe, epochs)

    return sorted((task for task in tasks if task is not SOURCE), key=work, reverse=True)


def check_finished(
    tasks: Sequence[DecathlonTask], histories: dict[str, list[dict]], ckpdir: Path
) -> None:
    """Raise SpotTuneError, naming their logs, if some of the tasks have not finished."""
    failed = [str(log_file(ckpdir, task.name)) for task in tasks if task.name not in histories]
    if failed:
        raise SpotTuneError(
            f"{len(failed)} of {len(tasks)} tasks failed, see {', '.join(failed)}. The others are "
            f"finished; the same command goes on with these"
        )
