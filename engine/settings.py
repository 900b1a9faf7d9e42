"""The settings of a run and of each of its tasks."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import get_args

from gumbel_softmax import POLICIES, TEMPERATURE
from image_cache.subsets import Subset
from methods.optimizers import OPTIMIZERS
from methods.registry import METHODS, Options, TwoBranches, choose_policy
from models.spottune import KEPT_NORMS

LARGEST = 1024  # channels of a stem, pixels of a side, or blocks
TRAIN_SPLITS = {"trainval": ("train", "val"), "train": ("train",)}
RESNET26 = "resnet26"  # the Decathlon's backbone; others are for own pictures
SCHEDULES = ("step", "cosine")
BALANCES = ("none", "loss", "sampling")
FITS = ("crop", "squeeze")
INTERPOLATIONS = ("bilinear", "bicubic")
ONE_OF = {
    "policy": POLICIES,
    "train_split": TRAIN_SPLITS,
    "schedule": SCHEDULES,
    "optimizer": OPTIMIZERS,
    "kept_norm": KEPT_NORMS,
    "balance": BALANCES,
    "fit": FITS,
    "interpolation": INTERPOLATIONS,
}
TUPLES = ("milestones", "mean", "std")  # lists in JSON


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the arguments of a run say about each of its tasks."""

    epochs: int
    milestones: tuple[int, ...]  # epochs at which both learning rates drop tenfold
    lr: float  # of the network
    lr_agent: float  # of the policy network
    batch_size: int
    resize: int  # shorter side of the images
    crop: int  # side of random crops
    width: int  # channels of the stem
    seed: int
    train_split: str  # "trainval" or "train"
    policy: str  # at test time: one of POLICIES
    precision: str  # "fp32" or "bf16"
    compiled: bool = False  # training steps through torch.compile: other bits than without
    schedule: str = "step"  # of both learning rates: one of SCHEDULES
    warmup: float = 0.0  # epochs in which they rise from 0, before the schedule
    optimizer: str = "sgd"  # one of OPTIMIZERS
    label_smoothing: float = 0.0
    grad_clip: float = 0.0  # largest norm of all gradients together; 0: any
    temperature: float = TEMPERATURE  # of Gumbel-softmax, in the first epoch
    final_temperature: float = TEMPERATURE  # in the last; changed by equal steps
    kept_norm: str = "train"  # BatchNorm of kept blocks: trains, as released, or is "frozen"
    balance: str = "none"  # of classes: one of BALANCES
    keep_best: bool = False  # the checkpoint of the epoch with the best val accuracy too
    images_per_class: int = 0  # at most so many are trained on; 0: all
    train_share: float = 1.0  # of each class, that is trained on
    k: int = 0  # this and the following: see methods/registry.py
    l2sp_alpha: float = 0.0
    l2sp_beta: float = 0.0
    lambda_k: float = 0.0
    lambda_e: float = 0.0

    @property
    def subset(self) -> Subset:
        """Which of the training images are used."""
        return Subset(self.images_per_class, self.train_share)

    def as_released(self) -> "Recipe":
        """Without what goes beyond the released recipe."""
        return replace(self, **{**BEYOND_RELEASED, "compiled": self.compiled})


# What the released recipe lacks, with the values that leave it out.
BEYOND_RELEASED = {
    each.name: each.default for each in fields(Recipe) if each.default is not MISSING
}


@dataclass(frozen=True, kw_only=True)
class Settings(Recipe):
    """Everything that a task's result depends on: equal settings give the same result."""

    weight_decay: float  # of the network
    mean: tuple[float, ...]  # of the task's images: red, green, blue from 0 to 1
    std: tuple[float, ...]
    source_sha256: str  # of the pretrained weights; "" where there are none
    backbone: str = RESNET26  # or a name that models/backbones.py knows
    fit: str = "crop"  # of own pictures: one of FITS
    min_area: float = 0.0  # of random boxes that are resized; 0: crops are cut
    interpolation: str = "bilinear"  # of what is resized
    val_share: float = 0.0  # of train, set aside as val
    policy_size: int = 0  # side of what the policy network sees; 0: as the network
    data_sha256: str = ""  # of the training images' ids and labels
    val_sha256: str = ""  # of the val images' ids and labels

    @property
    def options(self) -> Options:
        """What the method needs to know."""
        return Options(**{field.name: getattr(self, field.name) for field in fields(Options)})

    @property
    def branches(self) -> TwoBranches:
        """What a method with two branches needs to know."""
        return TwoBranches(self.kept_norm, self.temperature, self.policy_size or None)

    def as_plain(self) -> dict:
        """Only types that JSON knows."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in TUPLES}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> "Settings":
        """The settings that `as_plain` gave, read back from a file that may have been edited.

        Raises TypeError unless `plain` has the fields and no others, each of its type and in its
        range. Those with a default may be missing: older runs did not record them.
        """
        if not isinstance(plain, Mapping):
            raise TypeError("the settings are not named values")
        tuples = {name: tuple(plain[name]) for name in TUPLES if name in plain}
        settings = cls(**{**plain, **tuples})
        for field in fields(cls):
            value = getattr(settings, field.name)
            values, expected = (value,), field.type
            if field.name in TUPLES:
                values, expected = value, get_args(field.type)[0]
            if not all(type(each) is expected for each in values):
                raise TypeError(f"{field.name} is not of type {expected.__name__}")
        allowed = {
            "width": 0 < settings.width <= LARGEST,
            "resize or crop": 0 < settings.crop <= settings.resize <= LARGEST,
            "k": 0 <= settings.k <= LARGEST,
            "policy_size": 0 <= settings.policy_size <= LARGEST,
            "temperature": settings.temperature > 0 and settings.final_temperature > 0,
            **{name: getattr(settings, name) in names for name, names in ONE_OF.items()},
            "mean": len(settings.mean) == 3 and all(map(math.isfinite, settings.mean)),
            "std": len(settings.std) == 3 and all(0 < each < math.inf for each in settings.std),
        }
        for name, is_allowed in allowed.items():
            if not is_allowed:
                raise TypeError(f"{name} has a value that main.py does not allow")
        return settings

    def difference(self, other: "Settings", done: int) -> tuple[str, object, object] | None:
        """Name and both values of the first setting that keeps `other` from continuing `self`.

        After `done` epochs. More of them continue from the last one. The test policy does not touch
        the weights; but while there are epochs to come, all records are to be of the same one.
        """
        free = {"epochs"} if done < other.epochs else {"epochs", "policy"}
        if self.schedule == "cosine" or self.temperature != self.final_temperature:
            free -= {"epochs"}  # whose number shapes every epoch
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name not in free and ours != theirs:
                return field.name, ours, theirs
        return None


def task_settings(kind: str, recipe: Recipe, **own: object) -> Settings:
    """The recipe and a task's own values; 0 for options that this kind of method does not use.

    `kind`: see methods/registry.py; `own`: the fields of Settings that Recipe lacks.
    """
    row = METHODS.get(kind)  # None for the source: it has no options, and decides nothing
    read, policies = (row.options, row.policies) if row else ((), ())
    unread = {field.name: field.type(0) for field in fields(Options) if field.name not in read}
    chosen = {field.name: getattr(recipe, field.name) for field in fields(Recipe)}
    return Settings(**{**chosen, **unread, "policy": choose_policy(policies, recipe.policy)}, **own)
