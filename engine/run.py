"""One run: a task, a method and settings, and the checkpoint and records in its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from engine.answers import VAL_ANSWERS
from engine.checkpoints import (
    Checkpoint,
    Latest,
    checkpoint_file,
    compact_file,
    momenta_of,
)
from engine.records import DECISIONS, parameter_counts, write_cost, write_records
from engine.settings import RESNET26, Settings
from engine.step import EpochSums
from image_cache.orders import View
from methods.registry import COMPACT_KIND
from runtime.errors import SpotTuneError, brief
from runtime.progress import say

OF_LAST = (DECISIONS, VAL_ANSWERS)  # files that only a last epoch leaves
HASHES_OF_DATA = {"data_sha256": "trained on", "val_sha256": "evaluated on"}  # among the settings


def is_best(history: Sequence[Mapping]) -> bool:
    """Whether the last epoch has a better val accuracy than all before it."""
    *before, last = (record["val_accuracy"] for record in history)
    return last is not None and all(each is None or last > each for each in before)


@dataclass(frozen=True)
class Run:
    """A task's place, name, kind of method, classes and settings."""

    ckpdir: Path
    task: str
    kind: str
    categories: list[int] | list[str]  # by label: category ids, or names of own classes
    settings: Settings

    @property
    def path(self) -> Path:
        return checkpoint_file(self.ckpdir, self.task)

    @property
    def folder(self) -> Path:
        return self.path.parent

    def arguments(self) -> dict[str, object]:
        """What arguments.json holds."""
        known = {"task": self.task, "method": self.kind, "num_classes": len(self.categories)}
        if self.settings.backbone != RESNET26:
            known["classes"] = self.categories
        return {**known, **self.settings.as_plain()}

    def found(self) -> Latest | None:
        """The checkpoint to continue from, or None. Raises SpotTuneError if it is another run's."""
        found = Checkpoint.latest(self.path)
        difference = found and self.difference(found.checkpoint)
        if difference is not None:
            name, trained, asked = difference
            if name in HASHES_OF_DATA:
                is_own = self.settings.backbone != RESNET26
                where = (
                    f"folder {self.task} holds" if is_own else f"annotations of {self.task} list"
                )
                raise SpotTuneError(
                    f"{self.path}: was {HASHES_OF_DATA[name]} other images or labels than the "
                    f"{where} now. Put those back, or give another --ckpdir to train anew"
                )
            raise SpotTuneError(
                f"{self.path}: was trained with {name} {brief(trained, 40)}, but this run "
                f"asks for {brief(asked, 40)}. Give the same settings to continue, or another "
                f"--ckpdir to train anew"
            )
        return found

    def difference(self, checkpoint: Checkpoint) -> tuple[str, object, object] | None:
        """The first difference between the checkpoint and this run: name, found, asked for."""
        for name, called in (("task", "task"), ("kind", "method"), ("categories", "categories")):
            found, asked = getattr(checkpoint, name), getattr(self, name)
            if found != asked:
                return called, found, asked
        return checkpoint.settings.difference(self.settings, done=len(checkpoint.history))

    def save(
        self,
        method: nn.Module,
        optimizers: Sequence,
        history: list[dict],
        unfinished: EpochSums | None = None,
    ) -> None:
        """Write checkpoint and records, after an epoch or inside an `unfinished` one.

        What an earlier last epoch left goes, if more epochs are to come.
        """
        if len(history) < self.settings.epochs:
            of_last = (compact_file(self.ckpdir, self.task), *map(self.folder.joinpath, OF_LAST))
            for path in of_last:
                path.unlink(missing_ok=True)
        momenta = momenta_of(method, optimizers)
        sums = unfinished and unfinished.state_dict()
        best = self.settings.keep_best and sums is None and is_best(history)
        self.checkpoint(self.kind, method, momenta, history, sums).save(self.path, best)
        write_records(self.folder, history)

    def save_compact(self, method: nn.Module, history: list[dict], view: View) -> None:
        """Write the network that remains if all images decide alike, if it is smaller.

        And its cost: which blocks are left, and so how large they are, was learnt.
        """
        kept = method.kept_for_predicting()
        if kept is method:
            return
        path = compact_file(self.ckpdir, self.task)
        self.checkpoint(COMPACT_KIND, kept, {}, history).save(path)
        write_cost(self.folder, method, view)
        whole, _ = parameter_counts(method)
        left, stored = parameter_counts(kept)
        say(
            f"{path}: {left:,} parameters instead of {whole:,}, {stored:,} of them not the "
            f"source's; {path.stat().st_size / 1e6:.1f} MB"
        )

    def checkpoint(
        self,
        kind: str,
        method: nn.Module,
        momenta: dict[str, Tensor],
        history: list[dict],
        unfinished: dict | None = None,
    ) -> Checkpoint:
        return Checkpoint(
            task=self.task,
            kind=kind,
            categories=self.categories,
            settings=self.settings,
            weights=method.state_dict(),
            momenta=momenta,
            history=history,
            unfinished=unfinished,
        )
