"""One task's training, from its first epoch or its checkpoint to its last epoch.

The checkpoint is the truth: records are written from its history, so that a run that was killed
between the two never shows an epoch twice.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from checkpoints import Checkpoint, checkpoint_file, compact_file
from devices import Compute
from errors import SpotTuneError
from methods import COMPACT_KIND, Rates
from plots import draw_curves
from progress import say
from records import (
    epoch_record,
    parameter_counts,
    summary,
    write_decisions,
    write_records,
    write_surroundings,
)
from settings import Settings
from training import (
    TaskData,
    Tested,
    Trainer,
    lr_multiplier,
    predict,
    summarise,
    train_epoch,
)


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
        return {"task": self.task, "method": self.kind, **self.settings.as_plain()}

    def found(self) -> Checkpoint | None:
        """The checkpoint to go on from, or None. Raises SpotTuneError if it is another run's."""
        if not self.path.exists():
            return None
        checkpoint = Checkpoint.load(self.path)
        difference = self.difference(checkpoint)
        if difference is not None:
            name, found, asked = difference
            raise SpotTuneError(
                f"{self.path}: was trained with {name} {_brief(found)}, but this run asks for "
                f"{_brief(asked)}. Give the same settings to go on, or another --ckpdir to train "
                f"anew"
            )
        return checkpoint

    def difference(self, checkpoint: Checkpoint) -> tuple[str, object, object] | None:
        """The first thing in which the checkpoint is not this run's: name, found, asked."""
        for name in ("task", "kind", "categories"):
            found, asked = getattr(checkpoint, name), getattr(self, name)
            if found != asked:
                return name, found, asked
        return checkpoint.settings.difference(self.settings)

    def save(self, method: nn.Module, optimizers: Sequence, history: list[dict]) -> None:
        """Write checkpoint and records after a finished epoch."""
        states = [optimizer.state_dict() for optimizer in optimizers]
        self.checkpoint(self.kind, method, states, history).save(self.path)
        write_records(self.folder, history)

    def save_compact(self, method: nn.Module, history: list[dict]) -> None:
        """Write the network that is left when all images decide alike, if it is smaller."""
        kept = method.kept_for_predicting()
        if kept is method:
            return
        path = compact_file(self.ckpdir, self.task)
        self.checkpoint(COMPACT_KIND, kept, [], history).save(path)
        whole, _ = parameter_counts(method)
        left, stored = parameter_counts(kept)
        say(
            f"{path}: {left:,} parameters instead of {whole:,}, {stored:,} of them not the "
            f"source's; {path.stat().st_size / 1e6:.1f} MB"
        )

    def checkpoint(
        self, kind: str, method: nn.Module, optimizers: list[dict], history: list[dict]
    ) -> Checkpoint:
        return Checkpoint(
            task=self.task,
            kind=kind,
            categories=self.categories,
            settings=self.settings,
            weights=method.state_dict(),
            optimizers=optimizers,
            history=history,
        )


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def fit(
    run: Run,
    method: nn.Module,
    train_data: TaskData,
    val_data: TaskData,
    compute: Compute,
    eval_every: int,
) -> list[dict]:
    """Train `method` to the run's last epoch; returns the history, one record an epoch."""
    settings = run.settings
    rates = Rates(settings.lr, settings.lr_agent, settings.weight_decay)
    trainer = Trainer(method, rates, compute, settings.batch_size)
    optimizers = trainer.optimizers
    history = _restore(run, method, optimizers)
    if len(history) < settings.epochs:
        for record in history:
            record.pop("val_policies", None)  # of an earlier last epoch
        write_surroundings(run.folder, run.arguments(), compute, method, val_data.view)
    for epoch in range(len(history), settings.epochs):
        multiplier = lr_multiplier(epoch, settings.milestones)
        _set_learning_rates(optimizers, (settings.lr, settings.lr_agent), multiplier)
        label = f"{run.task} epoch {epoch + 1}/{settings.epochs}"
        seed = (settings.seed, run.task, epoch)
        start = time.perf_counter()
        trained = train_epoch(trainer, train_data, seed, label)
        seconds = time.perf_counter() - start
        _check_finite(trained.loss, label)
        is_last = epoch + 1 == settings.epochs
        is_tested = is_last or (epoch + 1) % eval_every == 0
        policies = method.policies if is_last else ()
        tested = evaluate(run, method, val_data, compute, policies) if is_tested else {}
        record = epoch_record(epoch, settings, multiplier, trained, tested)
        record["seconds"] = round(seconds, 3)
        record["images_per_second"] = round(len(train_data.images) / seconds, 1)
        history.append(record)
        if is_last:
            run.save_compact(method, history)  # first: after the checkpoint nothing is redone
        run.save(method, optimizers, history)
        say(f"{label}  {summary(record)}")
    draw_curves(history, run.task, run.folder / "curves.png")
    return history


def _check_finite(loss: float, label: str) -> None:
    """A diverged epoch is not saved, so that the checkpoint before it can be gone on from."""
    if not math.isfinite(loss):
        raise SpotTuneError(
            f"{label}: the loss became {loss}; the epoch was not saved. Try a smaller --lr, or "
            f"--precision fp32"
        )


def _restore(run: Run, method: nn.Module, optimizers: Sequence) -> list[dict]:
    """Load the checkpoint, if there is one, into method and optimisers; returns its history."""
    checkpoint = run.found()
    if checkpoint is None:
        return []
    checkpoint.load_into(method, run.path)
    try:
        for optimizer, state in zip(optimizers, checkpoint.optimizers, strict=True):
            optimizer.load_state_dict(state)
            _check_momenta(optimizer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpotTuneError(
            f"{run.path}: its optimisers' state does not fit ({error}). Remove it to train the "
            f"task again"
        ) from error
    write_records(run.folder, checkpoint.history)
    done, asked = len(checkpoint.history), run.settings.epochs
    say(f"{run.task}: {done} of {asked} epochs were finished before")
    if done >= asked and checkpoint.settings.policy != run.settings.policy:
        say(f"{run.task}: its figures stay those of --policy {checkpoint.settings.policy}")
    return checkpoint.history


def _check_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless every parameter has the momentum that a finished epoch left."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            momentum = optimizer.state[parameter].get("momentum_buffer")
            if momentum is None or (momentum.shape, momentum.dtype) != (
                parameter.shape,
                parameter.dtype,
            ):
                raise ValueError("a momentum is missing or has another shape")


def evaluate(
    run: Run,
    method: nn.Module,
    val_data: TaskData,
    compute: Compute,
    policies: Sequence[str] = (),
) -> dict[str, Tested]:
    """Loss, accuracy and decisions on the val images under the run's test-time policy.

    And under `policies`, if any: then decisions.json is written too. Drawn decisions are those of
    submit_val.py with the same seed.
    """
    settings, images = run.settings, val_data.images
    seed, label = (settings.seed, run.task, "val"), f"{run.task} val"
    tested = {}
    for policy in dict.fromkeys((settings.policy, *policies)):
        predictions = predict(method, val_data, settings.batch_size, policy, seed, compute, label)
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
