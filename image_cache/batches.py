"""One split of a task as the network sees it: normalised batches on the computing device.

If a GPU has room, the pixels of a whole split are copied to it once, and windows are cut by one
gather. Otherwise they are cut on the host and sent from pinned memory. Both give the same bytes.

Shapes (N images of a batch, H x W pixels): images N x 3 x H x W float32, channels_last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from image_cache.orders import EpochOrder, View, evaluation_order, training_order
from image_cache.packed import PackedImages
from runtime.devices import to_device
from runtime.distributed import ALONE, Group
from runtime.progress import track

SHARE_OF_FREE_MEMORY = 0.25  # that the pixels of one split may take on a GPU
PIECE_BYTES = 1 << 26  # copied to a GPU at a time


@dataclass(frozen=True)
class Batch:
    """N images and labels, on the device."""

    images_N3HW: Tensor
    labels_N: Tensor  # int64
    positions: slice  # of these images in the epoch's order
    # Of the whole batch: other processes may have some of its images. Files' names of own pictures.
    image_ids: np.ndarray


class TaskData:
    """The images of a split, what the network sees of them, and their normalisation.

    `mean_std`: red, green and blue from 0 to 1, three numbers each. `names`: of the files, of own
    pictures. `balanced`: in training all classes come equally often; images then repeat. `share`:
    of a GPU's free memory that the pixels may take; with 0 they stay on the host.
    """

    def __init__(
        self,
        images: PackedImages,
        view: View,
        mean_std: tuple[Sequence[float], Sequence[float]],
        device: torch.device,
        share: float = SHARE_OF_FREE_MEMORY,
        names: Sequence[str] | None = None,
        balanced: bool = False,
    ) -> None:
        self.images, self.view, self.device, self.share = images, view, device, share
        self.names, self.balanced = names, balanced
        self._mean, self._std = (
            torch.tensor(figures, device=device).view(3, 1, 1) for figures in mean_std
        )
        self._resident: Tensor | None = None  # all pixels, once they lie on a GPU
        self._is_undecided = device.type == "cuda"  # whether they will

    def training_batches(
        self, batch_size: int, seed: tuple[int | str, ...], label: str, first: int, group: Group
    ) -> Iterator[Batch]:
        """A shuffled epoch from batch `first` on; the same `seed`, the same batches."""
        order = training_order(self.images, self.view, *seed, balanced=self.balanced)
        return self._batches(order, batch_size, label, first, group)

    def evaluation_batches(self, batch_size: int, label: str) -> Iterator[Batch]:
        """Every image once, in the order of the annotations."""
        return self._batches(evaluation_order(self.images, self.view), batch_size, label, 0, ALONE)

    def _batches(
        self, order: EpochOrder, batch_size: int, label: str, first: int, group: Group
    ) -> Iterator[Batch]:
        """Batches from number `first` on; the last one may be smaller.

        The processes of a `group` share the images of a batch in turn; a last batch with fewer
        images than processes is left out.
        """
        ids = self.images.image_ids if self.names is None else np.array(self.names)
        count = len(order.indices)
        starts = range(first * batch_size, count, batch_size)
        for start in track(starts, -(-count // batch_size), label, first=first):
            end = min(start + batch_size, count)
            if end - start < group.size:
                break
            part = slice(start + group.rank, end, group.size)
            labels = torch.from_numpy(self.images.labels[order.indices[part]])
            yield Batch(
                images_N3HW=self._normalised(self.windows(order, part)),
                labels_N=to_device(labels, self.device),
                positions=part,
                image_ids=ids[order.indices[start:end]],
            )

    def windows(self, order: EpochOrder, part: slice) -> Tensor:
        """The pixels of a part of an epoch, N x H x W x 3 uint8 on the device."""
        height, width = self.view.height, self.view.width
        where = (order.indices[part], order.tops[part], order.lefts[part], height, width)
        if self.view.is_resized:
            windows = to_device(self._resized(order, part), self.device)
        elif self._is_on_device():
            windows = self._cut_on_device(*where)
        else:
            windows = to_device(torch.from_numpy(self.images.crops(*where)), self.device)
        if order.flips[part].any():
            flips = to_device(torch.from_numpy(order.flips[part]), self.device)
            windows = torch.where(flips.view(-1, 1, 1, 1), windows.flip(2), windows)
        return windows

    def _resized(self, order: EpochOrder, part: slice) -> Tensor:
        """The boxes of a part of an epoch, each resized to the view's size by torchvision."""
        from torchvision.transforms.v2.functional import InterpolationMode, resize  # a slow import

        size = [self.view.height, self.view.width]
        mode = InterpolationMode(self.view.interpolation)
        resized_N3HW = []
        for place in range(part.start, min(part.stop, len(order.indices)), part.step or 1):
            corner = slice(place, place + 1)
            (pixels,) = self.images.crops(
                order.indices[corner], order.tops[corner], order.lefts[corner],
                int(order.heights[place]), int(order.widths[place]),
            )  # fmt: skip
            box = torch.from_numpy(pixels).permute(2, 0, 1)
            resized_N3HW.append(resize(box, size, interpolation=mode, antialias=True))
        return torch.stack(resized_N3HW).permute(0, 2, 3, 1)

    def _normalised(self, windows_NHW3: Tensor) -> Tensor:
        """(x / 255 - mean) / std. Images are sent as bytes, a quarter of their size in float32."""
        images_N3HW = windows_NHW3.permute(0, 3, 1, 2)
        return images_N3HW.float().div_(255).sub_(self._mean).div_(self._std)

    def _is_on_device(self) -> bool:
        """Whether all pixels lie on the device: decided at the first batch, since asking waits."""
        if self._is_undecided:
            self._is_undecided = False
            free, _ = torch.cuda.mem_get_info(self.device)
            if self.images.num_bytes <= self.share * free:
                self.put_on_device()
        return self._resident is not None

    def put_on_device(self) -> None:
        """Copy all pixels to the device, in pieces: the host holds one of them at a time."""
        self._is_undecided = False
        self._resident = torch.empty(self.images.num_bytes, dtype=torch.uint8, device=self.device)
        place = 0
        for part in self.images.parts:
            for start in range(0, len(part), PIECE_BYTES):
                piece = torch.from_numpy(np.array(part[start : start + PIECE_BYTES]))
                self._resident[place : place + len(piece)] = piece
                place += len(piece)

    def _cut_on_device(
        self, indices: np.ndarray, tops: np.ndarray, lefts: np.ndarray, height: int, width: int
    ) -> Tensor:
        """The same windows as PackedImages.crops; raises IndexError if one does not fit."""
        rows = self.images.row_places(indices, tops, lefts, height, width)
        row_places = to_device(torch.from_numpy(rows.reshape(-1)), self.device)
        run = 3 * width
        runs = self._resident.as_strided((len(self._resident) - run + 1, run), (1, 1))
        return runs.index_select(0, row_places).view(len(indices), height, width, 3)
