"""The runs of a study: found below some folders, checked to be comparable, grouped.

Any tree of folders in which main.py and train_folder.py have left runs. What a run is (method,
task, seed) stands in its arguments.json; names of folders mean nothing. Runs on the Decathlon are
one study, and those on own pictures another: no figure is over both. The Decathlon's source
network, imagenet12, is shared by all methods: its runs in several folders are the same network.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from decathlon import COLUMNS, SOURCE
from engine.settings import Settings
from image_cache.subsets import Subset
from models.resnet26 import BLOCKS_PER_STAGE
from reporting.runs import Run, Variant, read_run
from runtime.errors import SpotTuneError

# In what runs must agree to stand in one table. Of the Decathlon: all of them; those of a task.
OF_ALL = ("resize", "crop", "width", "train_split")
OF_A_TASK = ("num_classes", "epochs", "milestones", "schedule", "warmup", "batch_size")
OF_A_TASK += ("images_per_class", "train_share")
OF_DECATHLON_TASK = (*OF_A_TASK, "mean", "std", "weight_decay")
# Of own pictures: those of a task, and those of a backbone.
OF_OWN_TASK = (*OF_A_TASK, "classes", "resize", "crop", "fit", "val_share")
OF_A_BACKBONE = ("source_sha256", "num_blocks")
HASHES = ("data_sha256", "val_sha256")
# And in what else they are set to: those of a variant on a task.
FREE_IN_A_VARIANT = ("seed", "policy", "precision", *HASHES)
OF_A_VARIANT = [each.name for each in fields(Settings) if each.name not in FREE_IN_A_VARIANT]


@dataclass(frozen=True)
class Study:
    """Comparable runs: finished ones of target tasks, the source's, and those not finished."""

    runs: Sequence[Run]
    sources: Sequence[Run]
    unfinished: Sequence[Run]

    @property
    def is_own(self) -> bool:
        """Whether it is of own pictures, which have no source's runs, and not of the Decathlon."""
        return self.runs[0].is_own

    @cached_property
    def columns(self) -> list[str]:
        """All tasks that a table may have, in its order: that of published ones, or the names'."""
        return sorted({run.task for run in self.runs}) if self.is_own else list(COLUMNS)

    @cached_property
    def tasks(self) -> list[str]:
        """The target tasks, in the same order."""
        found = {run.task for run in self.runs}
        return [task for task in self.columns if task in found]

    @property
    def source_task(self) -> str | None:
        """The source network's own task; own pictures have none."""
        return None if self.is_own else SOURCE.name

    @property
    def stages(self) -> Sequence[int]:
        """Blocks of each stage, where they are known."""
        return () if self.is_own else BLOCKS_PER_STAGE

    @cached_property
    def backbones(self) -> list[str]:
        return sorted({run.settings.backbone for run in self.runs})

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

    def answered(self, variant: Variant, task: str) -> list[Run]:
        """Those of them whose answers on val were decided in the variant's way."""
        return [run for run in self.of(variant, task) if run.scored_variant == variant]

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


def read_studies(folders: Sequence[Path]) -> list[Study]:
    """All runs below `folders`: of the Decathlon, and of own pictures.

    Raises SpotTuneError where there are none, or not comparable ones. A run that lies below two of
    the folders is one run. What is not finished is told where its kind, or else the other, is.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise SpotTuneError(f"{folder}: no such folder; expected one with finished runs")
        for path in sorted(folder.rglob("arguments.json")):
            name = Path(folder.resolve().name) / path.parent.relative_to(folder)
            found[path.parent.resolve()] = read_run(path.parent, name.as_posix())
    runs = sorted(found.values(), key=lambda run: run.name)
    unfinished = [run for run in runs if not run.is_finished]
    finished = [run for run in runs if run.is_finished]
    sources = [run for run in finished if not run.is_own and run.task == SOURCE.name]
    targets = [run for run in finished if run not in sources]
    if not targets:
        raise SpotTuneError(
            f"{', '.join(map(str, folders))}: found no finished run of a target task, "
            f"{len(sources)} of the source and {len(unfinished)} unfinished ones; expected folders "
            f"as main.py leaves them in its --ckpdir, with arguments.json and records.jsonl"
        )
    own = [run for run in targets if run.is_own]
    of_decathlon = [run for run in targets if not run.is_own]
    if len({run.settings.backbone for run in own}) > 1:
        own = [replace(run, row_backbone=run.settings.backbone) for run in own]
    studies = []
    for kind, its_sources in ((of_decathlon, sources), (own, [])):
        if kind:
            check_comparable([*its_sources, *kind])
            left = [r for r in unfinished if r.is_own == kind[0].is_own or kind == targets]
            studies.append(Study(kind, its_sources, left))
    return studies


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise SpotTuneError, naming two folders and the setting, where runs cannot be tabulated."""
    known: dict[object, Run] = {}  # by group and setting: the first run that recorded it
    for run in runs:
        for group, name in _must_agree(run):
            value = run.setting(name)
            first = known.setdefault((group, name), run) if value not in (None, "") else run
            if first.setting(name) != value:
                raise SpotTuneError(
                    f"{first.folder} and {run.folder}: cannot stand in one table, because they "
                    f"differ in {name} ({str(first.setting(name))[:20]} and {str(value)[:20]}). "
                    f"Report them apart"
                )
        first = known.setdefault((run.variant, run.task, run.settings.seed), run)
        if first is not run and (run.is_own or run.task != SOURCE.name):
            raise SpotTuneError(
                f"{first.folder} and {run.folder}: two runs of {run.variant.title} on {run.task} "
                f"with seed {run.settings.seed}; expected one. Report them apart"
            )


def _must_agree(run: Run) -> Iterator[tuple[object, str]]:
    """Groups that the run is in, each with a setting in which all of the group agree."""
    settings = run.settings
    if run.is_own:
        groups = {settings.backbone: OF_A_BACKBONE, ("task", run.task): OF_OWN_TASK}
    else:
        groups = {"all": ("source_sha256",)}
        if run.task != SOURCE.name:
            groups |= {"targets": (*OF_ALL, "num_blocks"), run.task: OF_DECATHLON_TASK}
    if run.is_own or run.task != SOURCE.name:
        groups[(run.variant, run.task)] = OF_A_VARIANT
        # Pictures that are set aside or left out are chosen by the seed.
        is_chosen = run.is_own or settings.subset != Subset()
        groups[("data", run.task, settings.seed if is_chosen else 0)] = HASHES
    return ((group, name) for group, names in groups.items() for name in names)
