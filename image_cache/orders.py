"""All draws of an epoch about its data: the order of the images, their crops and flips.

Shapes (N images of the epoch): indices, tops, lefts, flips N.
"""

from dataclasses import dataclass

import numpy as np
import torch

from image_cache.packed import PackedImages
from runtime.randomness import generator


@dataclass(frozen=True)
class View:
    """What the network sees of every image: a window of height x width pixels."""

    height: int
    width: int
    random: bool = False  # anywhere in the image, instead of its centre
    flip: bool = False  # mirrored left to right, with probability 1/2


@dataclass(frozen=True)
class EpochOrder:
    """One pass over the images."""

    indices: np.ndarray  # of the images, in the order in which they come
    tops: np.ndarray  # upper left corners of their windows, in pixels
    lefts: np.ndarray
    flips: np.ndarray  # bool


def training_order(images: PackedImages, view: View, *seed: int | str) -> EpochOrder:
    """A shuffled epoch, with random crops and flips if `view` has them.

    `seed` is e.g. (0, "svhn", epoch); the same parts give the same order, crops and flips.
    """
    count = len(images)
    indices = torch.randperm(count, generator=generator("order", *seed)).numpy()
    if not view.random:
        tops, lefts = _centre(images, view, indices)
    else:
        draws = torch.rand(2, count, generator=generator("crops", *seed), dtype=torch.float64)
        spare_rows = images.heights[indices] - view.height
        spare_columns = images.widths[indices] - view.width
        tops = (draws[0].numpy() * (spare_rows + 1)).astype(np.int64)
        lefts = (draws[1].numpy() * (spare_columns + 1)).astype(np.int64)
    flips = torch.rand(count, generator=generator("flips", *seed)).numpy() < 0.5
    return EpochOrder(indices, tops, lefts, flips & view.flip)


def evaluation_order(images: PackedImages, view: View) -> EpochOrder:
    """Every image once, in the order of the file, cut at its centre."""
    indices = np.arange(len(images))
    tops, lefts = _centre(images, view, indices)
    return EpochOrder(indices, tops, lefts, np.zeros(len(images), dtype=bool))


def _centre(images: PackedImages, view: View, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper left corners of centre crops; halves round to even, as in torchvision's CenterCrop."""
    tops = np.rint((images.heights[indices] - view.height) / 2).astype(np.int64)
    lefts = np.rint((images.widths[indices] - view.width) / 2).astype(np.int64)
    return tops, lefts
