"""Everything that a task's result depends on, besides its images."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from gumbel_softmax import POLICIES
from methods.registry import Options

LARGEST = 1024  # channels of a stem, or pixels of a side
TRAIN_SPLITS = {"trainval": ("train", "val"), "train": ("train",)}
TUPLES = ("milestones", "mean", "std")


@dataclass(frozen=True)
class Settings:
    """The settings of one task. Two runs with equal ones give the same result."""

    epochs: int
    milestones: tuple[int, ...]  # epochs at which both learning rates drop tenfold
    lr: float  # of the network
    lr_agent: float  # of the policy network
    weight_decay: float  # of the network
    batch_size: int
    resize: int  # shorter side of the images
    crop: int  # side of random crops
    width: int  # channels of the stem
    seed: int
    train_split: str  # "trainval" or "train"
    policy: str  # at test time: one of POLICIES
    precision: str  # "fp32" or "bf16"
    mean: tuple[float, ...]  # of the task's images: red, green, blue from 0 to 1
    std: tuple[float, ...]
    source_sha256: str  # of the pretrained weights; "" where there are none
    data_sha256: str = ""  # of the training images' ids and labels
    k: int = 0  # this and the following as in methods.Options
    l2sp_alpha: float = 0.0
    l2sp_beta: float = 0.0
    lambda_k: float = 0.0
    lambda_e: float = 0.0

    @property
    def options(self) -> Options:
        """What the method needs to know."""
        return Options(**{field.name: getattr(self, field.name) for field in fields(Options)})

    def as_plain(self) -> dict:
        """Only types that JSON and a checkpoint may hold."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in TUPLES}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> "Settings":
        """Raises TypeError unless `plain` has the fields and no others, each of its type.

        Those with a default may be missing: older runs did not record them.
        """
        if not isinstance(plain, Mapping):
            raise TypeError("the settings are not named values")
        tuples = {name: tuple(plain[name]) for name in TUPLES if name in plain}
        settings = cls(**{**plain, **tuples})
        for field in fields(cls):
            expected = tuple if field.name in TUPLES else field.type
            if type(getattr(settings, field.name)) is not expected:
                raise TypeError(f"{field.name} is not of type {expected.__name__}")
        settings.check_ranges()
        return settings

    def check_ranges(self) -> None:
        """Raise TypeError where a value cannot come from the command line."""
        if not (0 < self.width <= LARGEST and 0 < self.crop <= self.resize <= LARGEST):
            raise TypeError(f"width, crop and resize are not between 1 and {LARGEST}, in order")
        if self.policy not in POLICIES or self.train_split not in TRAIN_SPLITS:
            raise TypeError("policy or train_split is none of the known ones")
        if not all(type(epoch) is int for epoch in self.milestones):
            raise TypeError("milestones are not whole numbers")
        colours = self.mean + self.std
        if len(self.mean) != 3 or len(self.std) != 3:
            raise TypeError("mean and std are not three numbers each")
        if not all(type(c) is float and math.isfinite(c) for c in colours) or min(self.std) <= 0:
            raise TypeError("mean and std are not finite numbers, std above 0")

    def difference(self, other: "Settings", done: int) -> tuple[str, object, object] | None:
        """Name and both values of the first setting that keeps `other` from going on as `self`.

        After `done` epochs. More of them go on from the last one. The test policy does not touch
        the weights; but while there are epochs to come, all records are to be of the same one.
        """
        free = ("epochs",) if done < other.epochs else ("epochs", "policy")
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name not in free and ours != theirs:
                return field.name, ours, theirs
        return None
