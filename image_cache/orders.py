"""All draws of an epoch about its data: the order of the images, their crops and flips.

Shapes (N images of the epoch): indices, tops, lefts, flips N.
"""

from dataclasses import dataclass

import numpy as np
import torch

from image_cache.packed import PackedImages
from runtime.randomness import generator, seeded_globally

RATIOS = [3 / 4, 4 / 3]  # width by height of random boxes: torchvision's default


@dataclass(frozen=True)
class View:
    """What the network sees of every image: a window of height x width pixels."""

    height: int
    width: int
    random: bool = False  # anywhere in the image, instead of its centre
    flip: bool = False  # mirrored left to right, with probability 1/2
    min_area: float = 0.0  # if not 0: a random box, of this share of the image or more, is resized
    whole: bool = False  # the whole image is resized
    interpolation: str = "bilinear"  # of what is resized

    @property
    def is_resized(self) -> bool:
        """Whether windows are made by resizing boxes; else they are cut as they are."""
        return self.whole or self.min_area > 0


@dataclass(frozen=True)
class EpochOrder:
    """One pass over the images."""

    indices: np.ndarray  # of the images, in the order in which they come
    tops: np.ndarray  # upper left corners of their windows, or boxes, in pixels
    lefts: np.ndarray
    flips: np.ndarray  # bool
    heights: np.ndarray | None = None  # of the boxes, where they are resized
    widths: np.ndarray | None = None


def training_order(
    images: PackedImages, view: View, *seed: int | str, balanced: bool = False
) -> EpochOrder:
    """A shuffled epoch, with random crops and flips if `view` has them.

    `seed` is e.g. (0, "svhn", epoch); the same parts give the same order, crops and flips.
    `balanced`: as many images, drawn so that each class is equally likely.
    """
    count, draw = len(images), generator("order", *seed)
    if balanced:
        shares = torch.from_numpy(1 / np.bincount(images.labels)[images.labels])
        indices = torch.multinomial(shares, count, replacement=True, generator=draw).numpy()
    else:
        indices = torch.randperm(count, generator=draw).numpy()
    flips = torch.rand(count, generator=generator("flips", *seed)).numpy() < 0.5
    if view.is_resized:
        boxes = _random_boxes(images, view, indices, *seed)
        return EpochOrder(indices, boxes[0], boxes[1], flips & view.flip, boxes[2], boxes[3])
    if not view.random:
        tops, lefts = _centre(images, view, indices)
    else:
        draws = torch.rand(2, count, generator=generator("crops", *seed), dtype=torch.float64)
        spare_rows = images.heights[indices] - view.height
        spare_columns = images.widths[indices] - view.width
        tops = (draws[0].numpy() * (spare_rows + 1)).astype(np.int64)
        lefts = (draws[1].numpy() * (spare_columns + 1)).astype(np.int64)
    return EpochOrder(indices, tops, lefts, flips & view.flip)


def evaluation_order(images: PackedImages, view: View) -> EpochOrder:
    """Every image once, in the order of the file, cut at its centre."""
    indices, none = np.arange(len(images)), np.zeros(len(images), dtype=np.int64)
    if view.whole:
        return EpochOrder(indices, none, none, none > 0, images.heights, images.widths)
    tops, lefts = _centre(images, view, indices)
    return EpochOrder(indices, tops, lefts, none > 0)


def _centre(images: PackedImages, view: View, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper left corners of centre crops; halves round to even, as in torchvision's CenterCrop."""
    tops = np.rint((images.heights[indices] - view.height) / 2).astype(np.int64)
    lefts = np.rint((images.widths[indices] - view.width) / 2).astype(np.int64)
    return tops, lefts


def _random_boxes(
    images: PackedImages, view: View, indices: np.ndarray, *seed: int | str
) -> np.ndarray:
    """Tops, lefts, heights and widths, 4 x N, as torchvision's RandomResizedCrop draws them."""
    from torchvision.transforms import RandomResizedCrop  # a slow import

    sizes = zip(images.heights[indices].tolist(), images.widths[indices].tolist(), strict=True)
    one = torch.zeros(1)
    with seeded_globally("crops", *seed):
        boxes = [
            RandomResizedCrop.get_params(one.expand(3, *size), [view.min_area, 1.0], RATIOS)
            for size in sizes
        ]
    return np.array(boxes, dtype=np.int64).T
