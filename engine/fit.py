"""One task's training, from its first epoch or its checkpoint to its last epoch.

The checkpoint is the truth: records are written from its history, so that a run that was killed
between the two never shows an epoch twice.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoints import (
    REMOVE,
    Checkpoint,
    Latest,
    checkpoint_file,
    compact_file,
    momenta_of,
)
from engine.evaluation import Tested, predict, summarise
from engine.records import (
    DECISIONS,
    epoch_record,
    parameter_counts,
    summary,
    write_cost,
    write_decisions,
    write_records,
    write_surroundings,
)
from engine.settings import Settings
from engine.step import REMEDY, EpochSums, Trainer, lr_multiplier, num_steps, train_epoch
from image_cache.batches import TaskData
from image_cache.orders import View
from methods.optimizers import Rates
from methods.registry import COMPACT_KIND
from runtime.devices import Compute
from runtime.distributed import Group
from runtime.errors import SpotTuneError, Stopped, brief
from runtime.progress import say
from runtime.signals import StopRequest, deferred_stop


@dataclass(frozen=True)
class Run:
    """A task's place, name, kind of method, classes and settings."""

    ckpdir: Path
    task: str
    kind: str
    categories: list[int]
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
        return {**known, **self.settings.as_plain()}

    def found(self) -> Latest | None:
        """The checkpoint to go on from, or None. Raises SpotTuneError if it is another run's."""
        found = Checkpoint.latest(self.path)
        difference = found and self.difference(found.checkpoint)
        if difference is not None:
            name, trained, asked = difference
            if name == "data_sha256":
                raise SpotTuneError(
                    f"{self.path}: was trained on other images or labels than the annotations of "
                    f"{self.task} list now. Put those back, or give another --ckpdir to train anew"
                )
            raise SpotTuneError(
                f"{self.path}: was trained with {name} {brief(trained, 40)}, but this run "
                f"asks for {brief(asked, 40)}. Give the same settings to go on, or another "
                f"--ckpdir to train anew"
            )
        return found

    def difference(self, checkpoint: Checkpoint) -> tuple[str, object, object] | None:
        """The first thing in which the checkpoint is not this run's: name, found, asked."""
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
            for path in (compact_file(self.ckpdir, self.task), self.folder / DECISIONS):
                path.unlink(missing_ok=True)
        momenta = momenta_of(method, optimizers)
        sums = unfinished and unfinished.state_dict()
        self.checkpoint(self.kind, method, momenta, history, sums).save(self.path)
        write_records(self.folder, history)

    def save_compact(self, method: nn.Module, history: list[dict], view: View) -> None:
        """Write the network that is left when all images decide alike, if it is smaller.

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


@dataclass(frozen=True)
class Pace:
    """How often a run is evaluated and saved; touches no result."""

    eval_every: int  # epochs
    checkpoint_seconds: float  # between checkpoints inside an epoch


def fit(
    run: Run,
    method: nn.Module,
    train_data: TaskData,
    val_data: TaskData,
    compute: Compute,
    pace: Pace,
) -> list[dict]:
    """Train `method` to the run's last epoch; returns the history, one record an epoch.

    Raises Stopped after a signal, once all that was done is saved.
    """
    settings = run.settings
    rates = Rates(settings.lr, settings.lr_agent, settings.weight_decay)
    trainer = Trainer(method, rates, compute, settings.batch_size)
    sums = EpochSums.zero(method.num_blocks, compute.device)
    steps = num_steps(len(train_data.images), settings.batch_size)
    found = run.found()
    compute.group.agree(0)  # before the first process writes, all have read
    if found and compute.group.is_first:
        found.repair()
    history = restore(run, found, method, trainer.optimizers, sums, steps) if found else []
    if history and compute.group.is_first:
        write_records(run.folder, history)
    if len(history) < settings.epochs and compute.group.is_first:
        for record in history:
            record.pop("val_policies", None)  # of an earlier last epoch
        write_surroundings(run.folder, run.arguments(), compute, method, val_data.view)
    with deferred_stop() as stop:
        keeper = Keeper(run, trainer, history, pace, stop)
        while len(history) < settings.epochs:
            label = f"{run.task} epoch {len(history) + 1}/{settings.epochs}"
            record = keeper.epoch(sums, train_data, val_data, label)
            say(f"{label}  {summary(record)}")
            sums = EpochSums.zero(method.num_blocks, compute.device)
    return history


@dataclass
class Keeper:
    """Trains one epoch after another, and keeps what was done."""

    run: Run
    trainer: Trainer
    history: list[dict]
    pace: Pace
    stop: StopRequest

    def epoch(self, sums: EpochSums, train_data: TaskData, val_data: TaskData, label: str) -> dict:
        """One epoch from where `sums` left it, its evaluation and its checkpoint; its record."""
        run, settings, epoch = self.run, self.run.settings, len(self.history)
        multiplier = lr_multiplier(epoch, settings.milestones)
        _set_learning_rates(self.trainer.optimizers, (settings.lr, settings.lr_agent), multiplier)
        seed = (settings.seed, run.task, epoch)
        after_step = self.between_steps(sums, label)
        trained = train_epoch(self.trainer, train_data, seed, label, sums, after_step)
        self.check_finite(sums, label)
        try:
            tested = self.tested(epoch, val_data)
        except Stopped:
            self.leave(sums, label)
            raise
        record = epoch_record(epoch, settings, multiplier, trained, tested)
        record["seconds"] = round(sums.seconds, 3)
        record["images_per_second"] = round(len(train_data.images) / sums.seconds, 1)
        self.history.append(record)
        if epoch + 1 == settings.epochs:
            # After the checkpoint nothing is done again.
            run.save_compact(self.trainer.method, self.history, val_data.view)
        self.save()
        self.stop.raise_if_asked(self.group)
        return record

    @property
    def group(self) -> Group:
        """The processes that train together; only the first evaluates and writes."""
        return self.trainer.compute.group

    def check_finite(self, sums: EpochSums, label: str) -> None:
        """Raise SpotTuneError if weights or sums have become infinite or nan; before each save.

        A loss tells only of the weights before its step. The momenta need no look: a step with one
        that is not finite leaves such a weight.
        """
        held = {**self.trainer.method.state_dict(), **sums.state_dict()}
        found = not_finite(held) if self.group.is_first else []
        if found:
            raise SpotTuneError(
                f"{label}, step {sums.steps}: after a finite loss {brief(', '.join(found), 60)} "
                f"became infinite or nan, so that was not saved; a checkpoint from before stays. "
                f"{REMEDY}"
            )

    def save(self, unfinished: EpochSums | None = None) -> None:
        if self.group.is_first:
            trainer = self.trainer
            self.run.save(trainer.method, trainer.optimizers, self.history, unfinished)

    def save_inside(self, sums: EpochSums, label: str) -> None:
        """Save inside an epoch."""
        self.check_finite(sums, label)
        self.save(sums)

    def tested(self, epoch: int, val_data: TaskData) -> dict[str, Tested]:
        """Val figures by test-time policy; empty where the epoch is not to be evaluated."""
        is_last = epoch + 1 == self.run.settings.epochs
        is_due = is_last or (epoch + 1) % self.pace.eval_every == 0
        if not is_due or not self.group.is_first:
            return {}
        method, compute = self.trainer.method, self.trainer.compute
        policies = method.policies if is_last else ()
        alone = self.group.size == 1  # else the others, who wait, are told after the epoch
        after_batch = self.stop.raise_if_asked if alone else (lambda: None)
        return evaluate(self.run, method, val_data, compute, policies, after_batch)

    def between_steps(self, sums: EpochSums, label: str) -> Callable[[], None]:
        """What is done after each step: now and then a checkpoint, and one before a stop."""
        last_saved = time.monotonic()  # a clock that nobody sets

        def after_step() -> None:
            nonlocal last_saved
            try:
                self.stop.raise_if_asked(self.group)
            except Stopped:
                self.leave(sums, label)
                raise
            if time.monotonic() - last_saved >= self.pace.checkpoint_seconds:
                self.save_inside(sums, label)
                last_saved = time.monotonic()

        return after_step

    def leave(self, sums: EpochSums, label: str) -> None:
        """Save inside an epoch, before a stop."""
        self.save_inside(sums, label)
        say(f"{label}: saved after step {sums.steps}")


def not_finite(held: Mapping[str, object]) -> list[str]:
    """The names of the tensors that hold an infinity or nan; the device is asked once."""
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    # A sum over one is never finite; it is quick, but may also overflow where all is finite.
    finite_sums = torch.stack([tensor.sum().isfinite() for tensor in tensors.values()]).tolist()
    suspects = [name for name, fine in zip(tensors, finite_sums, strict=True) if not fine]
    return [name for name in suspects if not tensors[name].isfinite().all()]


def restore(
    run: Run, found: Latest, method: nn.Module, optimizers: Sequence, sums: EpochSums, steps: int
) -> list[dict]:
    """Load the checkpoint that was found into method, optimisers and sums; its history."""
    checkpoint = found.checkpoint
    checkpoint.load_into(method, run.path)
    checkpoint.load_momenta(method, optimizers, run.path)
    try:
        if checkpoint.unfinished is not None:
            sums.load_state_dict(checkpoint.unfinished, steps)
    except ValueError as error:
        raise SpotTuneError(f"{run.path}: {brief(error)}. {REMOVE}") from error
    done, asked = len(checkpoint.history), run.settings.epochs
    inside = f", and {sums.steps} of {steps} steps of the next" if sums.steps else ""
    say(f"{run.task}: {done} of {asked} epochs were finished before{inside}")
    if done >= asked and checkpoint.settings.policy != run.settings.policy:
        say(f"{run.task}: its figures stay those of --policy {checkpoint.settings.policy}")
    return checkpoint.history


def evaluate(
    run: Run,
    method: nn.Module,
    val_data: TaskData,
    compute: Compute,
    policies: Sequence[str] = (),
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Tested]:
    """Loss, accuracy and decisions on the val images under the run's test-time policy.

    And under `policies`, if any: then decisions.json is written too. Drawn decisions are those of
    submit_val.py with the same seed.
    """
    settings, images = run.settings, val_data.images
    seed, label = (settings.seed, run.task, "val"), f"{run.task} val"
    tested = {}
    for policy in dict.fromkeys((settings.policy, *policies)):
        predictions = predict(
            method, val_data, settings.batch_size, policy, seed, compute, label, after_batch
        )
        tested[policy] = summarise(predictions, images)
        if policies and policy == settings.policy:
            write_decisions(run.folder, images.image_ids, predictions)
    return tested


def _set_learning_rates(
    optimizers: Sequence, rates: tuple[float, float], multiplier: float
) -> None:
    """The network's optimiser comes first, the policy network's second, where there is one."""
    for optimizer, rate in zip(optimizers, rates, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * multiplier
