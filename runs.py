"""One task's training from first to last epoch, and what it leaves in its folder.

    checkpoint.pt      weights, optimisers, settings and history after the last finished epoch
    records.jsonl      one line an epoch; the history of the checkpoint, for people and scripts
    arguments.json     the settings of the task
    environment.json   versions, device, threads, commit
    curves.png         loss, accuracy and share of fine-tuned decisions over the epochs

The checkpoint is the truth: records are rewritten from its history, so that a run that was killed
between the two never shows an epoch twice.
"""

import json
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from devices import Compute
from errors import SpotTuneError
from files import write_whole
from methods import Rates
from plots import draw_curves
from progress import say
from training import EpochResult, TaskData, lr_multiplier, predict, summarise, train_epoch

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pycocotools", "matplotlib")
TIMING_FIELDS = ("seconds", "images_per_second")  # of a record; all others repeat exactly


@dataclass(frozen=True)
class Settings:
    """All that a task's result depends on, besides its data and its source weights."""

    epochs: int
    milestones: tuple[int, ...]  # epochs at which both learning rates drop tenfold
    lr: float
    lr_agent: float
    weight_decay: float
    batch_size: int
    resize: int
    crop: int
    width: int
    seed: int
    train_split: str  # "trainval" or "train"
    policy: str  # at test time: "argmax" or "sample"
    precision: str  # "fp32" or "bf16"
    source_sha256: str  # of the pretrained weights; "" where there are none


# These may change between two runs of a task: more epochs go on from the last one, and the test
# policy and the batch order's record do not touch the weights.
MAY_CHANGE = ("epochs", "policy")


@dataclass(frozen=True)
class Run:
    """A task's folder, name, kind of method, classes and settings."""

    folder: Path
    task: str
    kind: str
    categories: list[int]
    settings: Settings

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def resume(self) -> dict | None:
        """The checkpoint to go on from, or None. Raises SpotTuneError if it is another run's."""
        if not self.checkpoint.exists():
            return None
        content = load_checkpoint(self.checkpoint)
        facts = {"kind": self.kind, "categories": self.categories, **_plain(self.settings)}
        found = {**content, **content["settings"]}
        for name, value in facts.items():
            if name not in MAY_CHANGE and found[name] != value:
                raise SpotTuneError(
                    f"{self.checkpoint}: was trained with {name} {_brief(found[name])}, but this "
                    f"run asks for {_brief(value)}. Give the same settings to go on, or another "
                    f"--ckpdir to train anew"
                )
        return content

    def save(self, method: nn.Module, optimizers: list, history: list[dict]) -> None:
        """Write checkpoint and records after a finished epoch."""
        save_checkpoint(
            self.checkpoint,
            {
                "kind": self.kind,
                "task": self.task,
                "categories": self.categories,
                "settings": _plain(self.settings),
                "weights": method.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "history": history,
            },
        )
        self.write_records(history)

    def write_records(self, history: list[dict]) -> None:
        lines = [json.dumps(record) + "\n" for record in history]
        write_whole(self.folder / "records.jsonl", "".join(lines).encode())

    def write_surroundings(self, compute: Compute) -> None:
        """arguments.json and environment.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = {"task": self.task, "kind": self.kind, **_plain(self.settings)}
        for name, content in (("arguments", arguments), ("environment", environment(compute))):
            text = json.dumps(content, indent=2) + "\n"
            write_whole(self.folder / f"{name}.json", text.encode())


def _plain(settings: Settings) -> dict:
    """Only types that a checkpoint may hold."""
    return {**asdict(settings), "milestones": list(settings.milestones)}


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def environment(compute: Compute) -> dict[str, object]:
    """What else a result depends on; bits are equal only for equal thread counts."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": str(compute.device),
        "device_name": _device_name(compute.device),
        "precision": compute.precision,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this code, with "-dirty" if files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def fit(
    run: Run,
    method: nn.Module,
    train_data: TaskData,
    val_data: TaskData,
    compute: Compute,
    eval_every: int,
) -> list[dict]:
    """Train `method` from its checkpoint, or from the start, to the last epoch.

    Returns the history: one record an epoch, as in records.jsonl.
    """
    settings = run.settings
    method.to(compute.device, memory_format=torch.channels_last)
    rates = Rates(settings.lr, settings.lr_agent, settings.weight_decay)
    optimizers = method.optimizers(rates)
    history = _restore(run, method, optimizers)
    run.write_surroundings(compute)
    for epoch in range(len(history), settings.epochs):
        multiplier = lr_multiplier(epoch, settings.milestones)
        _set_learning_rates(optimizers, (settings.lr, settings.lr_agent), multiplier)
        seed = (settings.seed, run.task, epoch)
        label = f"{run.task} epoch {epoch + 1}/{settings.epochs}"
        start = time.perf_counter()
        trained = train_epoch(
            method, optimizers, train_data, settings.batch_size, seed, compute, label
        )
        seconds = time.perf_counter() - start
        tested = None
        if (epoch + 1) % eval_every == 0 or epoch + 1 == settings.epochs:
            tested = evaluate(run, method, val_data, epoch, compute)
        record = _record(epoch, settings, multiplier, trained, tested)
        record["seconds"] = round(seconds, 3)
        record["images_per_second"] = round(len(train_data.images) / seconds, 1)
        history.append(record)
        run.save(method, optimizers, history)
        say(f"{label}  {_summary(record)}")
    run.write_records(history)
    draw_curves(history, run.task, run.folder / "curves.png")
    return history


def _restore(run: Run, method: nn.Module, optimizers: list) -> list[dict]:
    """Load the checkpoint, if there is one, into method and optimisers; returns its history."""
    content = run.resume()
    if content is None:
        return []
    method.load_state_dict(content["weights"])
    for optimizer, state in zip(optimizers, content["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    history = content["history"]
    if history:
        say(f"{run.task}: {len(history)} of {run.settings.epochs} epochs were finished before")
    return history


def evaluate(
    run: Run, method: nn.Module, val_data: TaskData, epoch: int, compute: Compute
) -> EpochResult:
    """Loss, accuracy and decisions on the val images, with the run's test-time policy."""
    settings = run.settings
    seed = (settings.seed, run.task, epoch)
    label = f"{run.task} val"
    predictions = predict(
        method, val_data, settings.batch_size, settings.policy, seed, compute, label
    )
    return summarise(predictions, val_data.images)


def _set_learning_rates(optimizers: list, rates: tuple[float, ...], multiplier: float) -> None:
    for optimizer, rate in zip(optimizers, rates, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * multiplier


def _record(
    epoch: int,
    settings: Settings,
    multiplier: float,
    trained: EpochResult,
    tested: EpochResult | None,
) -> dict:
    """One line of records.jsonl. Accuracies in percent, losses in nats, shares from 0 to 1."""
    return {
        "epoch": epoch + 1,
        "lr": settings.lr * multiplier,
        "lr_agent": settings.lr_agent * multiplier,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "train_fine_tuned_share": trained.fine_tuned_share,
        **val_fields(tested, seen_in_training=settings.train_split == "trainval"),
    }


def val_fields(tested: EpochResult | None, seen_in_training: bool) -> dict:
    """The val part of a record; None where the epoch was not evaluated."""
    return {
        "val_loss": tested and tested.loss,
        "val_accuracy": tested and tested.accuracy,
        "val_fine_tuned_share": tested and tested.fine_tuned_share,
        "val_seen_in_training": seen_in_training,
    }


def _summary(record: Mapping) -> str:
    parts = [f"loss {record['train_loss']:.3f}", f"train {record['train_accuracy']:.1f} %"]
    if record["val_accuracy"] is not None:
        seen = " (seen in training)" if record["val_seen_in_training"] else ""
        parts.append(f"val {record['val_accuracy']:.1f} %{seen}")
    shares = record["val_fine_tuned_share"] or record["train_fine_tuned_share"]
    if shares:
        parts.append(f"fine-tuned {100 * sum(shares) / len(shares):.0f} %")
    parts.append(f"{record['images_per_second']:,.0f} images/s")
    return "  ".join(parts)
