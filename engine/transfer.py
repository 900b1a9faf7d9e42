"""From source to target: the source network's weights, and the training that starts from them.

The source network is read from a file, found in --ckpdir, or trained on imagenet12; a method then
starts from it on a target task.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from decathlon import SOURCE, DecathlonTask
from engine.checkpoints import Checkpoint, Latest, checkpoint_file
from engine.fit import Pace, Run, evaluate, fit
from engine.records import val_fields, write_surroundings
from engine.settings import TRAIN_SPLITS, Settings
from image_cache.batches import View
from image_cache.packed import DataFolders
from image_cache.task_data import TaskData
from imdbfolder_coco import annotation_file, check_categories, load_images, require_labels, view_of
from methods.baselines import PlainNetwork
from methods.registry import METHODS, SOURCE_KIND, Options, build_method, choose_policy
from models.resnet26 import ResNet, resnet26
from runtime.devices import Compute
from runtime.errors import SpotTuneError
from runtime.locks import claimed
from runtime.progress import say
from runtime.randomness import seeded_initialisation
from weights.source_weights import SourceWeights


@dataclass(frozen=True)
class Workplace:
    """What all tasks of a run share: where things lie, and what computes."""

    folders: DataFolders
    ckpdir: Path
    mean_std: dict
    compute: Compute
    pace: Pace

    def data(self, task: DecathlonTask, splits: Sequence[str], settings: Settings) -> TaskData:
        """The labelled images of a task's splits, as training sees them if one is "train"."""
        images = load_images(task, splits, self.folders, settings.resize)
        require_labels(images, task.name)
        view = view_of(task, images, settings.resize, settings.crop, training="train" in splits)
        return TaskData(images, view, (settings.mean, settings.std))

    def has(self, task: DecathlonTask, splits: Sequence[str]) -> bool:
        """Whether the task's images and annotations are there at all."""
        files = [annotation_file(self.folders.imdbdir, task.name, split) for split in splits]
        return self.folders.images_of(task.name).is_dir() and all(file.is_file() for file in files)

    def checkpoint(self, task: DecathlonTask) -> Path:
        return checkpoint_file(self.ckpdir, task.name)

    def settings(
        self, task: DecathlonTask, kind: str, shared: Settings, source_sha256: str
    ) -> Settings:
        """The shared settings with what is the task's own; 0 for what its method does not read."""
        mean, std = self.mean_std[task.name]
        row = METHODS.get(kind)  # None for the source: it has no options, and decides nothing
        read, policies = (row.options, row.policies) if row else ((), ())
        unread = {field.name: field.type(0) for field in fields(Options) if field.name not in read}
        return replace(
            shared,
            **unread,
            policy=choose_policy(policies, shared.policy),
            weight_decay=task.weight_decay,
            mean=tuple(mean),
            std=tuple(std),
            source_sha256=source_sha256,
        )


def source_weights(
    place: Workplace, settings: Settings, pretrained: Path | None, wanted: bool
) -> tuple[SourceWeights, list[dict]]:
    """The source network's weights, read, trained or found in --ckpdir, and its history.

    `wanted`: imagenet12 is one of the tasks, so it is trained or evaluated too.
    """
    own = place.checkpoint(SOURCE)
    found = Checkpoint.latest(own)
    is_other_file = pretrained is not None and pretrained.resolve() != own.resolve()
    if is_other_file or was_adopted(found):
        weights = SourceWeights.read(pretrained if is_other_file else found.where, settings.width)
        may_write = found is None or found.damage or wanted
        # Tasks that start side by side adopt the same weights: the first does, the others wait.
        with claimed(own.parent, patient=True) if may_write else nullcontext():
            history = adopt_source(place, settings, weights, wanted)
    elif wanted:
        history = train_source(place, settings)
        weights = SourceWeights.read(own, settings.width)
    else:
        weights, history = kept_source(found, settings.width), found.checkpoint.history
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
    place: Workplace,
    settings: Settings,
    weights: SourceWeights,
    evaluated: bool,
) -> list[dict]:
    """Put pretrained weights into --ckpdir, where the submit scripts look for imagenet12's.

    They are evaluated on val once, if that is wanted and the images are there.
    """
    own = place.checkpoint(SOURCE)
    found = Checkpoint.latest(own)
    if found is not None and not was_adopted(found):
        raise SpotTuneError(
            f"{own}: holds a source network that was trained here, but {weights.where} was asked "
            f"for. Name another --ckpdir, or give --pretrained none"
        )
    if found is not None and found.checkpoint.settings.source_sha256 != weights.sha256:
        raise SpotTuneError(
            f"{own}: holds other source weights than {weights.where}. Name another --ckpdir, or "
            f"leave --pretrained out"
        )
    categories = [SOURCE.first_category_id + label for label in range(weights.num_classes)]
    settings = place.settings(SOURCE, SOURCE_KIND, replace(settings, epochs=0), weights.sha256)
    run = Run(place.ckpdir, SOURCE.name, SOURCE_KIND, categories, settings)
    method = PlainNetwork(weights.network(settings.width))
    kept = found.checkpoint.history if found else []
    history = kept
    if found is not None:
        found.repair()
    if evaluated and not history and place.has(SOURCE, ["val"]):
        history = [adopted_record(run, method, place)]
    elif evaluated and not history:
        say(f"{SOURCE.name}: its images are not in {place.folders.datadir}, so it is not evaluated")
    if found is None or kept != history:
        view = View(settings.resize, settings.resize)
        write_surroundings(run.folder, run.arguments(), place.compute, method, view)
        run.save(method, [], history)
    return history


def adopted_record(run: Run, method: PlainNetwork, place: Workplace) -> dict:
    """The one record of weights that were not trained here."""
    val_data = place.data(SOURCE, ("val",), run.settings)
    check_categories(run.task, run.categories, val_data.images.categories.tolist())
    method.to(place.compute.device, memory_format=torch.channels_last)
    (tested,) = evaluate(run, method, val_data, place.compute).values()
    say(f"{SOURCE.name}: the pretrained weights reach {tested.accuracy:.1f} % on val")
    return {"epoch": 0, **val_fields(tested, seen_in_training=False)}


def train_source(place: Workplace, settings: Settings) -> list[dict]:
    """Train imagenet12 with a plain ResNet-26 from random weights."""
    return train_task(place, SOURCE, SOURCE_KIND, settings, None)


def train_task(
    place: Workplace,
    task: DecathlonTask,
    kind: str,
    shared: Settings,
    weights: SourceWeights | None,
) -> list[dict]:
    """Data, initial weights and training of one task, held by this process; its history.

    `kind` of method, see methods.py; without `weights` it starts from random ones.
    """
    group = place.compute.group
    with claimed(place.checkpoint(task).parent) if group.is_first else nullcontext():
        settings = place.settings(task, kind, shared, weights.sha256 if weights else "")
        with group.first_before_others():
            train_data = place.data(task, TRAIN_SPLITS[settings.train_split], settings)
            val_data = place.data(task, ("val",), settings)
        categories = train_data.images.categories.tolist()
        check_categories(task.name, categories, val_data.images.categories.tolist())
        with seeded_initialisation(settings.seed, task.name):
            net = initial_network(weights, len(categories), settings.width)
            method = build_method(kind, net, settings.width, settings.options)
        settings = replace(settings, data_sha256=train_data.images.sha256())
        run = Run(place.ckpdir, task.name, kind, categories, settings)
        return fit(run, method, train_data, val_data, place.compute, place.pace)


def initial_network(weights: SourceWeights | None, num_classes: int, width: int) -> ResNet:
    """The source network with a new classifier, or a network with random weights."""
    return weights.transferred(num_classes, width) if weights else resnet26(num_classes, width)
