"""The runs of a study: found below some folders, checked to be comparable, grouped.

A study is any tree of folders in which main.py has left runs. What a run is (method, task, seed)
stands in its arguments.json; names of folders mean nothing. The source network, imagenet12, is
shared by all rows: its runs in several folders are the same network.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from decathlon import COLUMNS, SOURCE
from engine.settings import Settings
from methods.registry import METHODS
from reporting.task_runs import Row, TaskRun, read_run
from runtime.errors import SpotTuneError

APART = "Report them apart"
# In what runs must agree to stand in one table: all of them, those of a task, those of a row.
OF_ALL = ("resize", "crop", "width", "train_split")
DATA = ("num_classes", "data_sha256", "mean", "std")
SCHEDULE = ("epochs", "milestones", "batch_size", "weight_decay")
OF_A_TASK = DATA + SCHEDULE
FREE_IN_A_ROW = ("seed", "policy", "precision")


@dataclass(frozen=True)
class Study:
    """Comparable runs: finished ones of target tasks, the source's, and those not finished."""

    runs: Sequence[TaskRun]
    sources: Sequence[TaskRun]
    unfinished: Sequence[TaskRun]

    @cached_property
    def tasks(self) -> list[str]:
        """The target tasks, in the order of published tables."""
        found = {run.task for run in self.runs}
        return [task for task in COLUMNS if task in found]

    @cached_property
    def rows(self) -> list[Row]:
        rows = {Row(run.method, run.settings.k, how) for run in self.runs for how in run.tested}
        return sorted(rows, key=lambda row: row.order)

    @cached_property
    def methods(self) -> list[Row]:
        """The main rows: one for each training."""
        return sorted({run.row for run in self.runs}, key=lambda row: row.order)

    def of(self, row: Row, task: str) -> list[TaskRun]:
        """The runs of a row on a task, by seed."""
        runs = [run for run in self.runs if run.row == row.main and run.task == task]
        return sorted(runs, key=lambda run: run.seed)

    @property
    def settings(self) -> Settings:
        """Of any run: to be asked for what all agree in."""
        return self.runs[0].settings

    @cached_property
    def source(self) -> TaskRun | None:
        """The source network, from the run that tells most: evaluated as the targets, or not."""
        return next(iter([*self.evaluated_sources, *self.sources]), None)

    @cached_property
    def evaluated_sources(self) -> list[TaskRun]:
        """The source's runs that were evaluated on val, with the settings of the targets."""
        return [run for run in self.sources if run.history and _agree(run, self.runs[0], OF_ALL)]


def read_study(folders: Sequence[Path]) -> Study:
    """All runs below `folders`. Raises SpotTuneError where there are none, or not comparable ones.

    A run that lies below two of the folders is one run.
    """
    found = {path.resolve(): run for path, run in _runs_below(folders)}
    runs = sorted(found.values(), key=lambda run: run.name)
    finished = [run for run in runs if run.is_finished]
    unfinished = [run for run in runs if not run.is_finished]
    targets = [run for run in finished if run.task != SOURCE.name]
    sources = [run for run in finished if run.task == SOURCE.name]
    if not targets:
        where = ", ".join(str(folder) for folder in folders)
        raise SpotTuneError(
            f"{where}: found no finished run of a target task, {len(sources)} of the source and "
            f"{len(unfinished)} unfinished ones; expected folders as main.py leaves them in its "
            f"--ckpdir, with arguments.json and records.jsonl"
        )
    check_comparable(targets, sources)
    return Study(targets, sources, unfinished)


def _runs_below(folders: Sequence[Path]) -> Iterator[tuple[Path, TaskRun]]:
    for folder in folders:
        if not folder.is_dir():
            raise SpotTuneError(f"{folder}: no such folder; expected one with runs of main.py")
        for path in sorted(folder.rglob("arguments.json")):
            name = Path(folder.resolve().name) / path.parent.relative_to(folder)
            yield path, read_run(path.parent, name.as_posix())


def check_comparable(targets: Sequence[TaskRun], sources: Sequence[TaskRun] = ()) -> None:
    """Raise SpotTuneError, naming two folders and the setting, where runs cannot be tabulated."""
    for group in _groups(targets, lambda run: (run.row, run.task, run.seed)):
        _refuse_second(group)
    _refuse_difference(targets, OF_ALL)
    started = [run for run in targets if METHODS[run.method].from_source]
    started += [run for run in sources if run.settings.source_sha256]  # none: it was trained here
    _refuse_difference(started, ("source_sha256",))
    for group in _groups(targets, lambda run: run.task):
        _refuse_difference(group, OF_A_TASK)
    names = [each.name for each in fields(Settings) if each.name not in FREE_IN_A_ROW]
    for group in _groups(targets, lambda run: (run.row, run.task)):
        _refuse_difference(group, names)


def _groups(runs: Sequence[TaskRun], key: Callable) -> Iterable[list[TaskRun]]:
    groups: dict[object, list[TaskRun]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups.values()


def _refuse_second(group: Sequence[TaskRun]) -> None:
    if len(group) == 1:
        return
    first, second = group[:2]
    names = (each.name for each in fields(Settings))
    differing = [name for name in names if not _agree(first, second, (name,))]
    how = f"differ in {_both(differing[0], first, second)}" if differing else "are alike"
    raise SpotTuneError(
        f"{first.folder} and {second.folder}: two runs of {first.row.title} on {first.task} with "
        f"seed {first.seed}, which {how}; expected one. {APART}"
    )


def _refuse_difference(runs: Sequence[TaskRun], names: Sequence[str]) -> None:
    """Each of the settings is the same wherever it was recorded."""
    for name in names:
        known = [run for run in runs if run.setting(name) is not None]
        for other in known[1:]:
            if not _agree(known[0], other, (name,)):
                raise SpotTuneError(
                    f"{known[0].folder} and {other.folder}: cannot stand in one table, for they "
                    f"differ in {_both(name, known[0], other)}. {APART}"
                )


def _agree(first: TaskRun, second: TaskRun, names: Sequence[str]) -> bool:
    return all(first.setting(name) == second.setting(name) for name in names)


def _both(name: str, first: TaskRun, second: TaskRun) -> str:
    values = [str(run.setting(name))[:20] or "none" for run in (first, second)]
    return f"{name} ({values[0]} and {values[1]})"
