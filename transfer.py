"""From source to target: the source network's weights, and the training that starts from them.

The source network is read from a file, found in --ckpdir, or trained on imagenet12; SpotTune then
pairs each of its blocks with a copy and trains on a target task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from checkpoints import CHECKPOINT, Checkpoint
from decathlon import SOURCE, DecathlonTask
from devices import Compute
from imdbfolder_coco import annotation_file, check_categories, load_images, require_labels, view_of
from methods import PlainNetwork, SpotTune
from models.pretrained import SourceWeights
from models.resnet26 import resnet26
from packed import DataFolders
from progress import say
from randomness import seeded_initialisation
from records import val_fields, write_surroundings
from runs import Run, evaluate, fit
from settings import Settings
from training import TaskData

# What weights from a file do not depend on; the rest (width, resize, their hash) must agree.
NOT_TRAINED_HERE = {
    "epochs": 0,
    "milestones": (),
    "lr": 0.0,
    "lr_agent": 0.0,
    "weight_decay": 0.0,
    "batch_size": 128,  # of the evaluation
    "crop": 0,
    "seed": 0,
    "train_split": "",
    "precision": "",
}
TRAIN_SPLITS = {"trainval": ("train", "val"), "train": ("train",)}


@dataclass(frozen=True)
class Workplace:
    """What all tasks of a run share: where things lie, and what computes."""

    folders: DataFolders
    ckpdir: Path
    mean_std: dict
    compute: Compute
    eval_every: int

    def data(self, task: DecathlonTask, splits: Sequence[str], settings: Settings) -> TaskData:
        """The labelled images of a task's splits, as training sees them if one is "train"."""
        images = load_images(task.name, splits, self.folders, settings.resize)
        require_labels(images, task.name)
        view = view_of(task, images, settings.resize, settings.crop, training="train" in splits)
        return TaskData(images, view, self.mean_std[task.name])

    def has(self, task: DecathlonTask) -> bool:
        """Whether the task's images and annotations are there at all."""
        return (self.folders.datadir / "data" / task.name).is_dir() and annotation_file(
            self.folders.imdbdir, task.name, "val"
        ).is_file()

    def checkpoint(self, task: DecathlonTask) -> Path:
        return self.ckpdir / task.name / CHECKPOINT


def source_weights(
    place: Workplace, settings: Settings, pretrained: Path | None, wanted: bool
) -> tuple[SourceWeights, dict[str, list]]:
    """The source network's weights, read, trained or found in --ckpdir, and its history.

    `wanted`: imagenet12 is one of the tasks, so it is trained or evaluated too.
    """
    checkpoint = place.checkpoint(SOURCE)
    if pretrained is not None and pretrained.resolve() != checkpoint.resolve():
        weights = SourceWeights.read(pretrained, settings.width)
        history = adopt_source(place, settings, weights, wanted)
    elif wanted and not was_adopted(checkpoint):
        history = train_source(place, settings)
        weights = SourceWeights.read(checkpoint, settings.width)
    else:
        found = Checkpoint.load(checkpoint)
        history = found.history
        weights = SourceWeights.read(checkpoint, settings.width)
        if len(history) < found.settings.epochs:
            say(f"{checkpoint}: only {len(history)} of {found.settings.epochs} epochs were trained")
    return weights, {SOURCE.name: history} if wanted and history else {}


def was_adopted(checkpoint: Path) -> bool:
    """Whether the source's checkpoint holds weights that an earlier run took from a file."""
    return checkpoint.exists() and Checkpoint.load(checkpoint).settings.source_sha256 != ""


def adopt_source(
    place: Workplace, settings: Settings, weights: SourceWeights, evaluated: bool
) -> list[dict]:
    """Put pretrained weights into --ckpdir, where the submit scripts look for imagenet12's.

    They are evaluated on val once, if that is wanted and the images are there.
    """
    categories = [SOURCE.first_category_id + label for label in range(weights.num_classes)]
    settings = replace(settings, **NOT_TRAINED_HERE, source_sha256=weights.sha256)
    run = Run(place.ckpdir / SOURCE.name, SOURCE.name, "source", categories, settings)
    found = run.found()
    history = found.history if found else []
    method = PlainNetwork(weights.network(settings.width))
    write_surroundings(run.folder, run.task, run.kind, settings, place.compute)
    if evaluated and not history and place.has(SOURCE):
        history = [adopted_record(run, method, place)]
    elif evaluated and not history:
        say(f"{SOURCE.name}: its images are not in {place.folders.datadir}, so it is not evaluated")
    run.save(method, [], history)
    return history


def adopted_record(run: Run, method: PlainNetwork, place: Workplace) -> dict:
    """The one record of weights that were not trained here."""
    val_data = place.data(SOURCE, ("val",), run.settings)
    check_categories(run.task, run.categories, val_data.images.categories)
    method.to(place.compute.device, memory_format=torch.channels_last)
    tested = evaluate(run, method, val_data, 0, place.compute)
    say(f"{SOURCE.name}: the pretrained weights reach {tested.accuracy:.1f} % on val")
    return {"epoch": 0, **val_fields(tested, seen_in_training=False)}


def train_source(place: Workplace, settings: Settings) -> list[dict]:
    """Train imagenet12 with a plain ResNet-26 from random weights."""

    def build(num_classes: int) -> PlainNetwork:
        return PlainNetwork(resnet26(num_classes, settings.width))

    return train_task(place, SOURCE, "source", settings, build)


def train_target(
    place: Workplace, task: DecathlonTask, settings: Settings, weights: SourceWeights
) -> list[dict]:
    """Train SpotTune on one target task, from the source's weights."""
    settings = replace(settings, weight_decay=task.weight_decay, source_sha256=weights.sha256)

    def build(num_classes: int) -> SpotTune:
        return SpotTune(weights.transferred(num_classes, settings.width), settings.width)

    return train_task(place, task, "spottune", settings, build)


def train_task(
    place: Workplace,
    task: DecathlonTask,
    kind: str,
    settings: Settings,
    build: Callable[[int], nn.Module],
) -> list[dict]:
    """Data, initial weights and training of one task; returns its history."""
    train_data = place.data(task, TRAIN_SPLITS[settings.train_split], settings)
    val_data = place.data(task, ("val",), settings)
    categories = train_data.images.categories
    check_categories(task.name, categories.tolist(), val_data.images.categories)
    with seeded_initialisation(settings.seed, task.name):
        method = build(len(categories))
    run = Run(place.ckpdir / task.name, task.name, kind, categories.tolist(), settings)
    return fit(run, method, train_data, val_data, place.compute, place.eval_every)
