"""One task's training, from its first epoch or its checkpoint to its last epoch.

The checkpoint is the truth: records are written from its history, so that a run that was killed
between the two never shows an epoch twice.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.answers import VAL_ANSWERS, write_answers
from engine.checkpoints import REMOVE
from engine.evaluation import Tested, class_figures, predict, summarise
from engine.events import events_in
from engine.records import (
    epoch_record,
    summary,
    write_decisions,
    write_records,
    write_surroundings,
)
from engine.run import Run
from engine.settings import Settings
from engine.step import (
    REMEDY,
    EpochSums,
    Trainer,
    num_steps,
    rate_multiplier,
    temperature_in,
    train_epoch,
)
from image_cache.batches import TaskData
from methods.optimizers import Rates
from runtime.devices import Compute
from runtime.errors import SpotTuneError, brief
from runtime.progress import say
from runtime.signals import Stopped, deferred_stop

TIMED_SECONDS = 20.0  # of training, before the rest is estimated


@dataclass(frozen=True)
class Pace:
    """How often a run is evaluated and saved, and as what; does not change the weights."""

    eval_every: int  # epochs
    checkpoint_seconds: float  # between checkpoints inside an epoch
    tensorboard: bool = False  # write the records as TensorBoard's events too


def fit(
    run: Run,
    method: nn.Module,
    train_data: TaskData,
    val_data: TaskData,
    compute: Compute,
    pace: Pace,
) -> list[dict]:
    """Train `method` to the run's last epoch; returns the history, one record per epoch.

    Raises Stopped after a signal, once all that was done is saved. Of several processes that train
    together only the first evaluates and writes.
    """
    settings, group = run.settings, compute.group
    rates = Rates(settings.lr, settings.lr_agent, settings.weight_decay, settings.optimizer)
    trainer = Trainer(
        method, rates, compute, settings.batch_size, cross_entropy_of(settings, train_data),
        settings.grad_clip,
    )  # fmt: skip
    sums = EpochSums.zero(method.num_blocks, compute.device)
    steps = num_steps(len(train_data.images), settings.batch_size)
    history = resume(run, trainer, sums, steps)
    if len(history) < settings.epochs and group.is_first:
        write_surroundings(
            run.folder, run.arguments(), compute, method, val_data.view,
            epoch=len(history) + 1, is_first=not history and not sums.steps,
        )  # fmt: skip

    estimate = Estimate(run.task, (settings.epochs - len(history)) * steps - sums.steps)
    is_writing = pace.tensorboard and group.is_first
    with deferred_stop() as stop, events_in(run.folder, history, is_writing) as add_events:
        saved_at = time.monotonic()  # a clock that is never set back
        while len(history) < settings.epochs:
            epoch, is_last = len(history), len(history) + 1 == settings.epochs
            label = f"{run.task} epoch {epoch + 1}/{settings.epochs}"
            trainer.method.temperature = temperature_in(settings, epoch)
            before_step = partial(set_learning_rates, trainer.optimizers, settings, steps, epoch)
            try:
                seed = (settings.seed, run.task, epoch)
                for _ in train_epoch(trainer, train_data, seed, label, sums, before_step):
                    stop.raise_if_asked(group.agree)
                    estimate.after_step()
                    if time.monotonic() - saved_at >= pace.checkpoint_seconds:
                        save(run, trainer, history, label, unfinished=sums)
                        saved_at = time.monotonic()
                check_finite(trainer, sums, label)
                is_due = is_last or (epoch + 1) % pace.eval_every == 0
                tested = {}
                if is_due and group.is_first:
                    # The other processes wait meanwhile; they hear of a stop after the epoch.
                    after_batch = stop.raise_if_asked if group.size == 1 else (lambda: None)
                    tested = evaluate(run, trainer.method, val_data, compute, is_last, after_batch)
            except Stopped:
                save(run, trainer, history, label, unfinished=sums)
                say(f"{label}: saved after step {sums.steps}")
                raise
            trained = sums.averages(len(train_data.images))
            multiplier = rate_multiplier(settings, epoch, 0, steps)
            record = epoch_record(epoch, settings, multiplier, trained, tested)
            record["seconds"] = round(sums.seconds, 3)
            record["images_per_second"] = round(len(train_data.images) / sums.seconds, 1)
            history.append(record)
            if is_last:  # before the checkpoint: afterwards the task counts as finished
                run.save_compact(trainer.method, history, val_data.view)
            save(run, trainer, history, label)
            add_events(record)
            saved_at = time.monotonic()
            say(f"{label}  {summary(record)}")
            stop.raise_if_asked(group.agree)
            sums = EpochSums.zero(method.num_blocks, compute.device)
    return history


class Estimate:
    """Says once, when enough steps were timed, how long the rest of a training takes."""

    def __init__(self, task: str, steps: int) -> None:
        self.task, self.steps, self.done = task, steps, 0
        self.start, self.is_said = time.monotonic(), False

    def after_step(self) -> None:
        self.done += 1
        seconds = time.monotonic() - self.start
        if not self.is_said and seconds >= TIMED_SECONDS:
            left = (self.steps - self.done) * seconds / self.done
            say(f"{self.task}: about {hours_and_minutes(left)} left at this speed")
            self.is_said = True


def hours_and_minutes(seconds: float) -> str:
    """E.g. "3 h 05 min"."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def save(
    run: Run,
    trainer: Trainer,
    history: list[dict],
    label: str,
    unfinished: EpochSums | None = None,
) -> None:
    """Write checkpoint and records, if this is the first of the processes that train together."""
    if unfinished is not None:
        check_finite(trainer, unfinished, label)
    if trainer.compute.group.is_first:
        run.save(trainer.method, trainer.optimizers, history, unfinished)


def check_finite(trainer: Trainer, sums: EpochSums, label: str) -> None:
    """Raise SpotTuneError if weights or sums have become infinite or nan. Called before each save.

    A loss says nothing about the weights after its step. Momenta are not checked: a momentum that
    is not finite makes a weight that is not.
    """
    held = {**trainer.method.state_dict(), **sums.state_dict()}
    found = not_finite(held) if trainer.compute.group.is_first else []
    if found:
        raise SpotTuneError(
            f"{label}, step {sums.steps}: after a finite loss {brief(', '.join(found), 60)} "
            f"became infinite or nan, so that was not saved; an earlier checkpoint stays. {REMEDY}"
        )


def not_finite(held: Mapping[str, object]) -> list[str]:
    """The names of the tensors that hold an infinity or nan; with one read from the device."""
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    # A quick first test: a sum over such a tensor is not finite. It may overflow, so look again.
    finite_sums = torch.stack([tensor.sum().isfinite() for tensor in tensors.values()]).tolist()
    suspects = [name for name, fine in zip(tensors, finite_sums, strict=True) if not fine]
    return [name for name in suspects if not tensors[name].isfinite().all()]


def resume(run: Run, trainer: Trainer, sums: EpochSums, steps: int) -> list[dict]:
    """Load the run's checkpoint, if any, into networks, optimisers and sums; returns its history.

    `steps`: of a whole epoch. Records are written anew from the history.
    """
    group, settings = trainer.compute.group, run.settings
    found = run.found()
    group.agree(0)  # all have read before the first process writes
    if found is None:
        return []
    if group.is_first:
        found.repair()
    checkpoint = found.checkpoint
    checkpoint.load_into(trainer.method, run.path)
    checkpoint.load_momenta(trainer.method, trainer.optimizers, run.path)
    if checkpoint.unfinished is not None:
        try:
            sums.load_state_dict(checkpoint.unfinished, steps)
        except ValueError as error:
            raise SpotTuneError(f"{run.path}: {brief(error)}. {REMOVE}") from error
    history, done, asked = checkpoint.history, len(checkpoint.history), settings.epochs
    inside = f", and {sums.steps} of {steps} steps of the next" if sums.steps else ""
    say(f"{run.task}: {done} of {asked} epochs were finished before{inside}")
    if done >= asked and checkpoint.settings.policy != settings.policy:
        say(f"{run.task}: its figures stay those of --policy {checkpoint.settings.policy}")
    if group.is_first and history:
        write_records(run.folder, history)
    if done < asked:
        for record in history:
            record.pop("val_policies", None)  # of an earlier last epoch
    return history


def evaluate(
    run: Run,
    method: nn.Module,
    val_data: TaskData,
    compute: Compute,
    is_last: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Tested]:
    """Loss, accuracy and decisions on the val images under the run's test-time policy.

    If the epoch `is_last`, under all that the method knows; then decisions.json is written, or
    val_answers.csv for own pictures. Drawn decisions are those of submit_val.py with the same seed.
    """
    settings, images, names = run.settings, val_data.images, val_data.names
    seed, label = (settings.seed, run.task, "val"), f"{run.task} val"
    policies = method.policies if is_last else ()
    tested = {}
    for policy in dict.fromkeys((settings.policy, *policies)):
        predictions = predict(
            method, val_data, settings.batch_size, policy, seed, compute, label, after_batch,
            details=names is not None,
        )  # fmt: skip
        tested[policy] = summarise(predictions, images)
        if names is not None:
            figures = class_figures(predictions, images.labels, len(run.categories))
            tested[policy] = replace(tested[policy], of_classes=figures)
        if policy != settings.policy or not is_last:
            continue
        if names is not None:
            truth = [run.categories[label] for label in images.labels]
            write_answers(run.folder / VAL_ANSWERS, names, run.categories, predictions, truth)
        elif policies:
            write_decisions(run.folder, images.image_ids, run.categories, predictions)
    return tested


def cross_entropy_of(settings: Settings, data: TaskData) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss in training: plain, smoothed, or weighted so that all classes count alike."""
    weight = None
    if settings.balance == "loss":
        counts = np.bincount(data.images.labels, minlength=len(data.images.categories))
        weight = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
        weight = weight.to(data.device)
    if weight is None and not settings.label_smoothing:
        return F.cross_entropy
    return partial(F.cross_entropy, weight=weight, label_smoothing=settings.label_smoothing)


def set_learning_rates(
    optimizers: Sequence, settings: Settings, steps: int, epoch: int, step: int
) -> None:
    """The network's optimiser comes first, the policy network's second, where there is one."""
    multiplier = rate_multiplier(settings, epoch, step, steps)
    for optimizer, rate in zip(optimizers, (settings.lr, settings.lr_agent), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * multiplier
