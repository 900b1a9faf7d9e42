"""The settings of a run and of each of its tasks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import get_args

from decathlon import DecathlonTask
from gumbel_softmax import POLICIES
from methods.registry import METHODS, Options, choose_policy
from models.resnet26 import BLOCKS_PER_STAGE

LARGEST = 1024  # channels of a stem, or pixels of a side
TRAIN_SPLITS = {"trainval": ("train", "val"), "train": ("train",)}
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
    k: int = 0  # this and the following: see methods/registry.py
    l2sp_alpha: float = 0.0
    l2sp_beta: float = 0.0
    lambda_k: float = 0.0
    lambda_e: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Settings(Recipe):
    """Everything that a task's result depends on: equal settings give the same result."""

    weight_decay: float  # of the network
    mean: tuple[float, ...]  # of the task's images: red, green, blue from 0 to 1
    std: tuple[float, ...]
    source_sha256: str  # of the pretrained weights; "" where there are none
    data_sha256: str = ""  # of the training images' ids and labels
    val_sha256: str = ""  # of the val images' ids and labels

    @property
    def options(self) -> Options:
        """What the method needs to know."""
        return Options(**{field.name: getattr(self, field.name) for field in fields(Options)})

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
            "k": 0 <= settings.k <= sum(BLOCKS_PER_STAGE),
            "policy": settings.policy in POLICIES,
            "train_split": settings.train_split in TRAIN_SPLITS,
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
        free = ("epochs",) if done < other.epochs else ("epochs", "policy")
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name not in free and ours != theirs:
                return field.name, ours, theirs
        return None


def task_settings(
    task: DecathlonTask,
    kind: str,
    recipe: Recipe,
    mean_std: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    source_sha256: str,
) -> Settings:
    """The recipe and the task's own values; 0 for options that this kind of method does not use.

    `kind`: see methods/registry.py; `mean_std` by task.
    """
    mean, std = mean_std[task.name]
    row = METHODS.get(kind)  # None for the source: it has no options, and decides nothing
    read, policies = (row.options, row.policies) if row else ((), ())
    unread = {field.name: field.type(0) for field in fields(Options) if field.name not in read}
    chosen = {field.name: getattr(recipe, field.name) for field in fields(Recipe)}
    return Settings(
        **{**chosen, **unread, "policy": choose_policy(policies, recipe.policy)},
        weight_decay=task.weight_decay,
        mean=tuple(mean),
        std=tuple(std),
        source_sha256=source_sha256,
    )
