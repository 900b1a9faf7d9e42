"""From source to target: the source network's weights, and the training that starts from them.

The source network is read from a file, found in --ckpdir, or trained on imagenet12; a method then
starts from it on a target task.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from decathlon import SOURCE, DecathlonTask
from engine.checkpoints import Checkpoint, Latest, checkpoint_file
from engine.fit import Pace, evaluate
from engine.records import val_fields, write_surroundings
from engine.run import Run
from engine.settings import TRAIN_SPLITS, Recipe, Settings, task_settings
from engine.training import train
from image_cache.batches import TaskData
from image_cache.orders import View
from image_cache.packed import DataFolders
from image_cache.subsets import Subset, few
from imdbfolder_coco import annotation_file, check_categories, load_images, require_labels, view_of
from methods.baselines import PlainNetwork
from methods.registry import SOURCE_KIND
from models.resnet26 import ResNet, resnet26
from runtime.devices import Compute
from runtime.errors import SpotTuneError
from runtime.locks import claimed
from runtime.progress import say
from weights.source_weights import SourceWeights


@dataclass(frozen=True)
class Workspace:
    """What all tasks of a run share: folders, means, device and pace."""

    folders: DataFolders
    ckpdir: Path
    mean_std: dict  # by task: three means and three stds, from 0 to 1
    compute: Compute
    pace: Pace

    def settings(
        self, task: DecathlonTask, kind: str, recipe: Recipe, source_sha256: str
    ) -> Settings:
        """The recipe and what is the task's own; `kind`: see methods/registry.py."""
        mean, std = self.mean_std[task.name]
        return task_settings(
            kind, recipe, weight_decay=task.weight_decay, mean=tuple(mean), std=tuple(std),
            source_sha256=source_sha256,
        )  # fmt: skip

    def data(self, task: DecathlonTask, splits: Sequence[str], settings: Settings) -> TaskData:
        """The labelled images of a task's splits, as training sees them if one is "train"."""
        images = load_images(task, splits, self.folders, settings.resize)
        require_labels(images, task.name)
        if "train" in splits and settings.subset != Subset():
            images = images.chosen(few(images.labels, settings.subset, settings.seed, task.name))
        view = view_of(task, images, settings.resize, settings.crop, training="train" in splits)
        mean_std = (settings.mean, settings.std)
        balanced = settings.balance == "sampling"
        return TaskData(images, view, mean_std, self.compute.device, balanced=balanced)

    def has(self, task: DecathlonTask, splits: Sequence[str]) -> bool:
        """Whether the task's images and annotations exist."""
        files = [annotation_file(self.folders.imdbdir, task.name, split) for split in splits]
        return self.folders.images_of(task.name).is_dir() and all(file.is_file() for file in files)

    def checkpoint(self, task: DecathlonTask) -> Path:
        return checkpoint_file(self.ckpdir, task.name)


def source_weights(
    space: Workspace, recipe: Recipe, pretrained: Path | None, wanted: bool
) -> tuple[SourceWeights, list[dict]]:
    """The source network's weights and its history: adopted from a file, trained, or found.

    `wanted`: imagenet12 is one of the tasks, so it is trained or evaluated too.
    """
    own = space.checkpoint(SOURCE)
    found = Checkpoint.latest(own)
    is_other_file = pretrained is not None and pretrained.resolve() != own.resolve()
    if is_other_file or was_adopted(found):
        weights = SourceWeights.read(pretrained if is_other_file else found.where, recipe.width)
        history = adopt_source(space, recipe, weights, found, wanted)
    elif wanted:
        if found is None and pretrained is None:
            say(
                f"{SOURCE.name}: no source weights were given, so it is trained first, for "
                f"{recipe.epochs} epochs; --pretrained FILE saves that time"
            )
        history = train_task(space, SOURCE, SOURCE_KIND, recipe, None)
        weights = SourceWeights.read(own, recipe.width)
    else:
        weights, history = kept_source(found, recipe.width), found.checkpoint.history
    say(f"source weights: {weights.where}")
    return weights, history


def kept_source(found: Latest, width: int) -> SourceWeights:
    """The weights of a source that was trained before, for targets alone; only reads.

    Raises SpotTuneError if they would be those of an epoch before the last that was trained: other
    targets have started from that one.
    """
    done, asked = len(found.checkpoint.history), found.checkpoint.settings.epochs
    if found.damage and done < asked:
        raise SpotTuneError(
            f"{found.path}: cannot be read, and {found.where.name} is of {done} of {asked} epochs. "
            f"To train the source on from there, add {SOURCE.name} to --tasks"
        )
    if found.damage:
        say(f"{found.damage}. Starting from the one before")
    if done < asked:
        say(f"{found.where}: trained for only {done} of {asked} epochs")
    return SourceWeights.read(found.where, width)


def was_adopted(source: Latest | None) -> bool:
    """Whether the source's checkpoint holds weights that an earlier run took from a file."""
    return source is not None and source.checkpoint.settings.source_sha256 != ""


def refuse_adopted(path: Path) -> None:
    """Raise SpotTuneError if the source's checkpoint is not of a network trained here."""
    if was_adopted(Checkpoint.latest(path)):
        raise SpotTuneError(
            f"{path}: was taken from a file, but --pretrained none asks for a source network that "
            f"is trained here. Name another --ckpdir, or leave --pretrained out"
        )


def adopt_source(
    space: Workspace, recipe: Recipe, weights: SourceWeights, found: Latest | None, wanted: bool
) -> list[dict]:
    """Put pretrained weights into --ckpdir, where the submit scripts look for them.

    They are evaluated on val once, if that is `wanted` and the images are there. `found`: what lies
    in --ckpdir already.
    """
    settings = space.settings(SOURCE, SOURCE_KIND, replace(recipe, epochs=0), weights.sha256)
    categories = [SOURCE.first_category_id + label for label in range(weights.num_classes)]
    run = Run(space.ckpdir, SOURCE.name, SOURCE_KIND, categories, settings)
    if found is not None and not found.damage and not wanted:
        check_same_source(found, weights)
        return found.checkpoint.history
    # Tasks that start side by side adopt the same weights: the first one does it, the others wait.
    with claimed(run.folder, patient=True):
        found = Checkpoint.latest(run.path)
        if found is not None:
            check_same_source(found, weights)
            found.repair()
        history = found.checkpoint.history if found else []
        method = PlainNetwork(weights.network(settings.width))
        tested = []
        if wanted and not (history and saw_the_same(found.checkpoint.settings, settings)):
            tested = evaluated_once(run, method, space)
        if found is None or tested:
            history = tested
            view = View(settings.resize, settings.resize)
            write_surroundings(run.folder, run.arguments(), space.compute, method, view)
            run.save(method, [], history)
    return history


def saw_the_same(ours: Settings, others: Settings) -> bool:
    """Whether evaluations under both settings see the same pixels, and so give the same figure."""
    names = ("resize", "mean", "std")
    return all(getattr(ours, name) == getattr(others, name) for name in names)


def check_same_source(found: Latest, weights: SourceWeights) -> None:
    """Raise SpotTuneError if --ckpdir holds another source network than the weights asked for."""
    if not was_adopted(found):
        raise SpotTuneError(
            f"{found.path}: holds a source network that was trained here, but {weights.where} was "
            f"asked for. Remove {found.path.parent} to start from those, name another --ckpdir, or "
            f"give --pretrained none to keep the network trained here"
        )
    if found.checkpoint.settings.source_sha256 != weights.sha256:
        raise SpotTuneError(
            f"{found.path}: holds other source weights than {weights.where}. Name another "
            f"--ckpdir, or leave --pretrained out"
        )


def evaluated_once(run: Run, method: PlainNetwork, space: Workspace) -> list[dict]:
    """The one record of weights that were not trained here; none without images to test on."""
    if not space.has(SOURCE, ["val"]):
        say(f"{SOURCE.name}: its images are not in {space.folders.datadir}, so it is not evaluated")
        return []
    val_data = space.data(SOURCE, ("val",), run.settings)
    check_categories(run.task, run.categories, val_data.images.categories.tolist())
    method.to(space.compute.device, memory_format=torch.channels_last)
    (tested,) = evaluate(run, method, val_data, space.compute).values()
    say(f"{SOURCE.name}: the pretrained weights reach {tested.accuracy:.1f} % on val")
    return [{"epoch": 0, **val_fields(tested, seen_in_training=False)}]


def train_task(
    space: Workspace,
    task: DecathlonTask,
    kind: str,
    recipe: Recipe,
    weights: SourceWeights | None,
) -> list[dict]:
    """Train one task of the Decathlon; without `weights` it starts from random ones."""
    return train(DecathlonProblem(space, task, weights), kind, recipe, space)


@dataclass(frozen=True)
class DecathlonProblem:
    """A task of the Decathlon, and the source weights to start from: see engine/training.py."""

    space: Workspace
    task: DecathlonTask
    weights: SourceWeights | None

    @property
    def name(self) -> str:
        return self.task.name

    def settings(self, kind: str, recipe: Recipe) -> Settings:
        source_sha256 = self.weights.sha256 if self.weights else ""
        return self.space.settings(self.task, kind, recipe, source_sha256)

    def data(self, settings: Settings) -> tuple[TaskData, TaskData, list[int]]:
        train_data = self.space.data(self.task, TRAIN_SPLITS[settings.train_split], settings)
        val_data = self.space.data(self.task, ("val",), settings)
        categories = train_data.images.categories.tolist()
        check_categories(self.name, categories, val_data.images.categories.tolist())
        return train_data, val_data, categories

    def network(self, num_classes: int, settings: Settings) -> ResNet:
        """The source network with a new classifier, or a network with random weights."""
        if self.weights:
            return self.weights.transferred(num_classes, settings.width)
        return resnet26(num_classes, settings.width)
