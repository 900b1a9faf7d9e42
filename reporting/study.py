"""The runs of a study: found below some folders, checked to be comparable, grouped.

A study is any tree of folders in which main.py has left runs. What a run is (method, task, seed)
stands in its arguments.json; names of folders mean nothing. The source network, imagenet12, is
shared by all methods: its runs in several folders are the same network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from decathlon import COLUMNS, SOURCE
from engine.settings import Settings
from reporting.runs import Run, Variant, read_run
from runtime.errors import SpotTuneError

# In what runs must agree to stand in one table: all of them, those of a task, and (in what else
# they are set to) those of a variant on a task.
OF_ALL = ("resize", "crop", "width", "train_split")
OF_A_TASK = ("num_classes", "data_sha256", "mean", "std", "epochs", "milestones", "batch_size")
OF_A_TASK += ("weight_decay",)
FREE_IN_A_VARIANT = ("seed", "policy", "precision")
OF_A_VARIANT = [each.name for each in fields(Settings) if each.name not in FREE_IN_A_VARIANT]


@dataclass(frozen=True)
class Study:
    """Comparable runs: finished ones of target tasks, the source's, and those not finished."""

    runs: Sequence[Run]
    sources: Sequence[Run]
    unfinished: Sequence[Run]

    @cached_property
    def tasks(self) -> list[str]:
        """The target tasks, in the order of published tables."""
        found = {run.task for run in self.runs}
        return [task for task in COLUMNS if task in found]

    @cached_property
    def variants(self) -> list[Variant]:
        found = {replace(run.variant, policy=policy) for run in self.runs for policy in run.tested}
        return sorted(found, key=lambda variant: variant.order)

    @cached_property
    def methods(self) -> list[Variant]:
        """The variants under their own policies: one for each kind of training."""
        return sorted({run.variant for run in self.runs}, key=lambda variant: variant.order)

    def of(self, variant: Variant, task: str) -> list[Run]:
        """The runs of a variant's training on a task, by seed."""
        main = replace(variant, policy="")
        runs = [run for run in self.runs if run.variant == main and run.task == task]
        return sorted(runs, key=lambda run: run.settings.seed)

    @property
    def settings(self) -> Settings:
        """Of any run: to be asked for what all agree in."""
        return self.runs[0].settings

    @cached_property
    def source(self) -> Run | None:
        """The source network, from a run that was evaluated as the targets if there is one."""
        return next(iter([*self.evaluated_sources, *self.sources]), None)

    @cached_property
    def evaluated_sources(self) -> list[Run]:
        """The source's runs that were evaluated on val, with the settings of the targets."""
        expected = [self.runs[0].setting(name) for name in OF_ALL]
        found = [run for run in self.sources if run.tested]
        return [run for run in found if [run.setting(name) for name in OF_ALL] == expected]

    @property
    def source_accuracies(self) -> list[float]:
        """What those evaluations found, in percent: equal but for rounding."""
        return [run.tested[""]["accuracy"] for run in self.evaluated_sources]


def read_study(folders: Sequence[Path]) -> Study:
    """All runs below `folders`. Raises SpotTuneError where there are none, or not comparable ones.

    A run that lies below two of the folders is one run.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise SpotTuneError(f"{folder}: no such folder; expected one with runs of main.py")
        for path in sorted(folder.rglob("arguments.json")):
            name = Path(folder.resolve().name) / path.parent.relative_to(folder)
            found[path.parent.resolve()] = read_run(path.parent, name.as_posix())
    runs = sorted(found.values(), key=lambda run: run.name)
    unfinished = [run for run in runs if not run.is_finished]
    targets = [run for run in runs if run.is_finished and run.task != SOURCE.name]
    sources = [run for run in runs if run.is_finished and run.task == SOURCE.name]
    if not targets:
        raise SpotTuneError(
            f"{', '.join(map(str, folders))}: found no finished run of a target task, "
            f"{len(sources)} of the source and {len(unfinished)} unfinished ones; expected folders "
            f"as main.py leaves them in its --ckpdir, with arguments.json and records.jsonl"
        )
    check_comparable([*sources, *targets])
    return Study(targets, sources, unfinished)


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise SpotTuneError, naming two folders and the setting, where runs cannot be tabulated."""
    known: dict[object, Run] = {}  # by group and setting: the first run that recorded it
    for run in runs:
        groups = {"all": ("source_sha256",)}
        if run.task != SOURCE.name:
            groups |= {"targets": (*OF_ALL, "num_blocks"), run.task: OF_A_TASK}
            groups |= {(run.variant, run.task): OF_A_VARIANT}
        for group, name in [(group, name) for group, names in groups.items() for name in names]:
            value = run.setting(name)
            first = known.setdefault((group, name), run) if value not in (None, "") else run
            if first.setting(name) != value:
                raise SpotTuneError(
                    f"{first.folder} and {run.folder}: cannot stand in one table, because they "
                    f"differ in {name} ({str(first.setting(name))[:20]} and {str(value)[:20]}). "
                    f"Report them apart"
                )
        first = known.setdefault((run.variant, run.task, run.settings.seed), run)
        if first is not run and run.task != SOURCE.name:
            raise SpotTuneError(
                f"{first.folder} and {run.folder}: two runs of {run.variant.title} on {run.task} "
                f"with seed {run.settings.seed}; expected one. Report them apart"
            )
