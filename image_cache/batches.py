"""The order and the crops of an epoch, and the batches that are cut from them.

Shapes (N images of a batch, H x W pixels): images N x H x W x 3 uint8, labels N int64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from image_cache.cutting import Cutter
from image_cache.packed import PackedImages
from runtime.devices import to_device
from runtime.distributed import ALONE, Group
from runtime.randomness import generator


@dataclass(frozen=True)
class View:
    """What the network sees of every image: a window of height x width pixels."""

    height: int
    width: int
    random: bool = False  # anywhere in the image, instead of its centre
    flip: bool = False  # mirrored left to right, with probability 1/2


@dataclass(frozen=True)
class Batch:
    """Pixels and labels of N images."""

    images_NHW3: Tensor  # uint8
    labels_N: Tensor  # int64
    positions: slice  # of these images in the epoch's order
    whole: int  # images of the batch, including those of other processes


@dataclass(frozen=True)
class EpochOrder:
    """All draws of an epoch about its data: the order of the images, their crops and flips."""

    indices: np.ndarray
    tops: np.ndarray
    lefts: np.ndarray
    flips: np.ndarray

    def batches(
        self,
        labels: np.ndarray,
        cut: Cutter,
        view: View,
        batch_size: int,
        first: int = 0,
        group: Group = ALONE,
    ) -> Iterator[Batch]:
        """Batches of `batch_size` images, from number `first` on; the last one may be smaller.

        `labels` are those of all images; `cut` gives windows of them (see cutting.py). The
        processes of a `group` share the images of a batch in turn; a last batch with fewer images
        than processes is left out.
        """
        for start in range(first * batch_size, len(self.indices), batch_size):
            end = min(start + batch_size, len(self.indices))
            if end - start < group.size:
                break
            part = slice(start + group.rank, end, group.size)
            index = self.indices[part]
            windows = cut(index, self.tops[part], self.lefts[part], view.height, view.width)
            if self.flips[part].any():
                flips = to_device(torch.from_numpy(self.flips[part]), windows.device)
                windows = torch.where(flips.view(-1, 1, 1, 1), windows.flip(2), windows)
            yield Batch(windows, torch.from_numpy(labels[index]), part, end - start)


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
    """Top left corners of centre crops; halves round to even, as torchvision's CenterCrop does."""
    tops = np.rint((images.heights[indices] - view.height) / 2).astype(np.int64)
    lefts = np.rint((images.widths[indices] - view.width) / 2).astype(np.int64)
    return tops, lefts


def normalise(images_NHW3: Tensor, mean_311: Tensor, std_311: Tensor) -> Tensor:
    """uint8 N x H x W x 3 -> float32 N x 3 x H x W, channels_last: (x / 255 - mean) / std.

    All on one device. Images are sent there as bytes, a quarter of their size in float32.
    """
    images_N3HW = images_NHW3.permute(0, 3, 1, 2)
    return images_N3HW.float().div_(255).sub_(mean_311).div_(std_311)
