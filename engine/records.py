"""What a task's training leaves in its folder for people to read, besides the checkpoint.

records.jsonl      one line per epoch: the history of the run; the last one also has the figures
                   under every test-time policy that the method knows
records.csv        the same as a table: a row per epoch, lists as numbers with spaces between them
arguments.json     the settings of the task
environment.json   versions, device, threads, commit; and under "before" those of earlier epochs, if
                   the run was continued in another environment
cost.json          parameters, and multiply-accumulate operations per predicted image; written
                   again after the last epoch where it depends on what was learnt (Global-k)
decisions.json     of the last epoch: each val image's decisions, and the category it is taken for
val_answers.csv    own pictures, in place of decisions.json: see engine/answers.py
curves.png         loss, accuracy and share of fine-tuned decisions over the epochs
events.out.tfevents...  with --tensorboard: the records once more, see engine/events.py
"""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from engine.evaluation import Predictions, Tested
from engine.settings import Settings
from image_cache.orders import View
from methods.cost import macs_per_image
from runtime.devices import Compute
from runtime.errors import SpotTuneError, brief
from runtime.files import csv_text, write_whole
from runtime.progress import say

DECISIONS = "decisions.json"
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pycocotools", "matplotlib")
# What every record has; tables and curves are made from it.
RECORDED = {
    "epoch": (int,),
    "val_accuracy": (float, type(None)),
    "val_loss": (float, type(None)),
    "val_fine_tuned_share": (list, type(None)),
    "val_seen_in_training": (bool,),
}
MAY_CHANGE_BITS = ("device", "device_name", "threads", "packages")  # of an environment
TIMING_FIELDS = ("seconds", "images_per_second")  # of a record; all others repeat exactly


def epoch_record(
    epoch: int,
    settings: Settings,
    multiplier: float,
    trained: Mapping[str, object],
    tested: Mapping[str, Tested],
) -> dict:
    """One line of records.jsonl. Accuracies in percent, losses in nats, shares from 0 to 1.

    `trained`: EpochSums.averages. `tested`, by test-time policy, is empty where the epoch was not
    evaluated. If there are several, the record has them all under "val_policies".
    """
    seen = settings.train_split == "trainval"
    policies = {policy: val_fields(result, seen) for policy, result in tested.items()}
    return {
        "epoch": epoch + 1,
        "lr": settings.lr * multiplier,
        "lr_agent": settings.lr_agent * multiplier,
        **trained,
        **val_fields(tested.get(settings.policy), seen),
        **({"val_policies": policies} if len(policies) > 1 else {}),
    }


def val_fields(tested: Tested | None, seen_in_training: bool) -> dict:
    """The val part of a record; None if the epoch was not evaluated."""
    names = [field.name for field in fields(Tested) if field.name != "of_classes"]
    figures = {name: tested and getattr(tested, name) for name in names}
    figures |= tested.of_classes if tested else {}
    named = {f"val_{name}": figure for name, figure in figures.items()}
    return {**named, "val_seen_in_training": seen_in_training}


def write_decisions(
    folder: Path, image_ids: Sequence[int], categories: Sequence[int], predictions: Predictions
) -> None:
    """decisions.json: each val image's decisions, "1" for a fine-tuned block, and its answer."""
    answers = [categories[label] for label in predictions.labels.tolist()]
    ids = [int(image_id) for image_id in image_ids]
    content = {
        "split": "val",
        "decisions": dict(zip(ids, predictions.decision_rows, strict=True)),
        "answers": dict(zip(ids, answers, strict=True)),
    }
    write_whole(folder / DECISIONS, (json.dumps(content, indent=0) + "\n").encode())


def summary(record: Mapping) -> str:
    """A record in one readable line."""
    parts = [f"loss {record['train_loss']:.3f}", f"train {record['train_accuracy']:.1f} %"]
    if record["val_accuracy"] is not None:
        seen = " (seen in training)" if record["val_seen_in_training"] else ""
        parts.append(f"val {record['val_accuracy']:.1f} %{seen}")
    shares = record["val_fine_tuned_share"] or record["train_fine_tuned_share"]
    if shares:
        parts.append(f"fine-tuned {100 * sum(shares) / len(shares):.0f} %")
    parts.append(f"{record['images_per_second']:,.0f} images/s")
    return "  ".join(parts)


def write_records(folder: Path, history: Sequence[Mapping]) -> None:
    """Write records.jsonl and records.csv from the checkpoint's history.

    So no epoch is listed twice.
    """
    lines = [json.dumps(record) + "\n" for record in history]
    write_whole(folder / "records.jsonl", "".join(lines).encode())
    write_whole(folder / "records.csv", records_as_csv(history).encode())


def flat(record: Mapping, prefix: str = "") -> dict[str, object]:
    """A record without records inside it: their names become `val_policies.argmax.val_loss`."""
    found = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def records_as_csv(history: Sequence[Mapping]) -> str:
    """A row for each epoch. What an epoch lacks is an empty cell, within a list "nan"."""
    rows = [flat(record) for record in history]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return csv_text(columns, ({name: _cell(value) for name, value in row.items()} for row in rows))


def _cell(value: object) -> object:
    if isinstance(value, list):
        return " ".join("nan" if each is None else str(each) for each in value)
    return value


def epochs_recorded(folder: Path) -> int:
    """How many lines `write_records` left in a task's folder."""
    path = folder / "records.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def write_surroundings(
    folder: Path,
    arguments: Mapping[str, object],
    compute: Compute,
    method: nn.Module,
    view: View,
    epoch: int = 1,
    is_first: bool = True,
) -> None:
    """arguments.json, environment.json, and the cost of predicting images of `view`'s size.

    `epoch` comes next; `is_first` unless an earlier run has made some of the steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "arguments.json", arguments)
    write_environment(folder, environment(compute), epoch, is_first)
    write_cost(folder, method, view)


def write_environment(folder: Path, now: dict[str, object], epoch: int, is_first: bool) -> None:
    """environment.json, from `epoch` on; below it those of the steps before, if they differ.

    A difference that may change bits is said. Raises SpotTuneError if the file is damaged.
    """
    path = folder / "environment.json"
    if is_first or not path.exists():
        _write_json(path, {"from_epoch": epoch, **now})
        return
    try:
        before = json.loads(path.read_bytes())
        earlier, since = before.pop("before", []), before.pop("from_epoch", 1)
    except (ValueError, AttributeError, TypeError) as error:
        raise SpotTuneError(f"{path}: damaged ({brief(error)}). Remove it to continue") from error
    if before == now:
        return
    for name in MAY_CHANGE_BITS:
        if before.get(name) != now[name]:
            say(
                f"{folder.name}: {name} was {before.get(name)} and is {now[name]} from epoch "
                f"{epoch} on; bits may differ from those of a run without this change"
            )
    earlier = [*earlier, {"from_epoch": since, **before}]
    _write_json(path, {"from_epoch": epoch, **now, "before": earlier})


def write_cost(folder: Path, method: nn.Module, view: View) -> None:
    """cost.json: see `cost`."""
    _write_json(folder / "cost.json", cost(method, view))


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def cost(method: nn.Module, view: View) -> dict[str, object]:
    """Parameters of the method, and MACs of one image of `view`'s size in its quicker form.

    `stored_parameters`: what a task adds to the source network, which all tasks share: all that
    has trained and is needed for predicting.
    """
    whole, trained = parameter_counts(method)
    _, stored = parameter_counts(method.kept_for_predicting())
    return {
        "parameters": whole,
        "trained_parameters": trained,
        "stored_parameters": stored,
        "image": [view.height, view.width],
        "macs_per_image": macs_per_image(method.evaluator(), view.height, view.width),
    }


def parameter_counts(module: nn.Module) -> tuple[int, int]:
    """All parameters, and those that train."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def environment(compute: Compute) -> dict[str, object]:
    """What else a result depends on; equal bits need equal thread counts."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": compute.device.type,  # which one of several equal GPUs changes no bits
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
