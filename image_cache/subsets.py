"""Which images of a split are used: seeded shares of each class.

Labels: a number for each image, in the order of the split.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from runtime.errors import SpotTuneError
from runtime.randomness import generator


@dataclass(frozen=True)
class Subset:
    """Which of the training images are used: all of them, unless one of these is set."""

    images_per_class: int = 0  # at most so many of each class
    train_share: float = 1.0  # of each class


def few(labels: Sequence[int], subset: Subset, seed: int, name: str) -> list[int]:
    """Places of the images of a subset: the same share of each class, at least one.

    A smaller subset of the same seed is a part of a larger one.
    """
    kept = []
    for label, places in _by_class(labels).items():
        count = max(1, round(subset.train_share * len(places)))
        count = min(count, subset.images_per_class or count)
        kept += _shuffled(places, "subset", seed, name, label)[:count]
    return sorted(kept)


def divided(
    labels: Sequence[int], classes: Sequence[str], share: float, seed: int, name: str
) -> tuple[list[int], list[int]]:
    """Places of the images that stay in train, and of a share of each class for val.

    At least one of each class on either side. Raises SpotTuneError for a class with one image.
    """
    train, val = [], []
    for label, places in _by_class(labels).items():
        if len(places) < 2:
            raise SpotTuneError(
                f"{name}: the class {classes[label]} has one picture only, so none can be set "
                f"aside for val. Add one, or give a val folder"
            )
        shuffled = _shuffled(places, "val share", seed, name, label)
        count = min(max(1, round(share * len(places))), len(places) - 1)
        val += shuffled[:count]
        train += shuffled[count:]
    return sorted(train), sorted(val)


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    places = defaultdict(list)
    for place, label in enumerate(labels):
        places[int(label)].append(place)
    return dict(sorted(places.items()))


def _shuffled(places: Sequence[int], *seed: int | str) -> list[int]:
    order = torch.randperm(len(places), generator=generator(*seed)).tolist()
    return [places[i] for i in order]
