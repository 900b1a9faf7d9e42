"""Own pictures in folders, and a backbone of torchvision or timm, as a problem to train on.

Training sees random-resized crops, evaluation the centre; both start from pictures that were
decoded once, with the shorter side resized to --resize. With --fit squeeze the picture's aspect
ratio is given up instead, and evaluation sees all of it.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from engine.fit import Pace
from engine.settings import Recipe, Settings, task_settings
from image_cache.batches import TaskData
from image_cache.decoding import Reading
from image_cache.orders import View
from image_folders.images import FolderImages, folder_name_of, load_folder, mean_and_std
from image_folders.listing import Listing
from models.backbones import DataConfig
from runtime.devices import Compute
from weights.backbone_weights import NONE, load_backbone
from weights.tensor_file import content_sha256


@dataclass(frozen=True)
class FolderPlace:
    """Where runs on folders leave their files, where they compute, and how often they are saved."""

    ckpdir: Path
    compute: Compute
    pace: Pace


@dataclass(frozen=True)
class Backbone:
    """A network's name and its weights: "imagenet", a file, or "none"; `sha256` of the weights."""

    name: str
    weights: str | Path
    config: DataConfig
    sha256: str

    @classmethod
    def opened(cls, name: str, weights: str | Path, crop: int) -> "Backbone":
        """Raises SpotTuneError as `load_backbone` does, before any data is looked at."""
        network, config = load_backbone(name, 2, weights, crop)
        tensors = {n: t for n, t in network.state_dict().items() if ".classifier." not in n}
        return cls(name, weights, config, "" if weights == NONE else content_sha256("", tensors))

    def network(self, num_classes: int, crop: int) -> nn.Module:
        """With a new classifier, drawn from PyTorch's generator."""
        return load_backbone(self.name, num_classes, self.weights, crop)[0]


@dataclass(frozen=True)
class Framing:
    """How pictures become what the network sees."""

    fit: str  # "crop" or "squeeze"
    min_area: float  # of random boxes, as a share of the picture
    own_mean_std: bool  # of the training pictures, instead of those of the weights


@dataclass(frozen=True)
class FolderProblem:
    """A folder's pictures, and the backbone to start from: see engine/training.py."""

    folder: Path
    images: FolderImages
    backbone: Backbone
    framing: Framing
    mean_std: tuple[tuple[float, ...], tuple[float, ...]]
    val_share: float
    weight_decay: float
    policy_size: int
    compute: Compute

    @classmethod
    def opened(
        cls,
        folder: Path,
        listing: Listing,
        cachedir: Path,
        recipe: Recipe,
        backbone: Backbone,
        framing: Framing,
        val_share: float,
        weight_decay: float,
        policy_size: int,
        compute: Compute,
    ) -> "FolderProblem":
        """Raises SpotTuneError for pictures that cannot be learnt from."""
        reading = reading_of(recipe.resize, framing.fit, backbone.config.interpolation)
        images = load_folder(
            folder, listing, cachedir, reading, val_share, recipe.subset, recipe.seed
        )
        config = backbone.config
        mean_std = (tuple(config.mean), tuple(config.std))
        if framing.own_mean_std:
            mean_std = mean_and_std(images.train)
        return cls(
            folder, images, backbone, framing, mean_std, val_share, weight_decay, policy_size,
            compute,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return folder_name_of(self.folder)

    def settings(self, kind: str, recipe: Recipe) -> Settings:
        mean, std = self.mean_std
        return task_settings(
            kind, recipe, weight_decay=self.weight_decay, mean=mean, std=std,
            source_sha256=self.backbone.sha256, backbone=self.backbone.name,
            fit=self.framing.fit, min_area=self.framing.min_area,
            interpolation=self.backbone.config.interpolation,
            val_share=self.val_share if self.images.val_is_aside else 0.0,
            policy_size=self.policy_size,
        )  # fmt: skip

    def data(self, settings: Settings) -> tuple[TaskData, TaskData, list[str]]:
        train, val = (
            TaskData(
                images, view_of_pictures(settings, training), (settings.mean, settings.std),
                self.compute.device, names=names, balanced=settings.balance == "sampling",
            )
            for images, names, training in (
                (self.images.train, self.images.train_names, True),
                (self.images.val, self.images.val_names, False),
            )
        )  # fmt: skip
        return train, val, self.images.classes

    def network(self, num_classes: int, settings: Settings) -> nn.Module:
        return self.backbone.network(num_classes, settings.crop)


def reading_of(resize: int, fit: str, interpolation: str) -> Reading:
    """How pictures are decoded."""
    return Reading(resize, interpolation, squeeze=fit == "squeeze", photographs=True)


def view_of_pictures(settings: Settings, training: bool) -> View:
    """Random boxes in training; in evaluation the centre, or all of a squeezed picture."""
    side, how = settings.crop, settings.interpolation
    if training:
        return View(side, side, flip=True, min_area=settings.min_area, interpolation=how)
    return View(side, side, whole=settings.fit == "squeeze", interpolation=how)
