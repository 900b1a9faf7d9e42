"""One task's split as the network sees it: batches on the device, normalised."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from image_cache.batches import Batch, EpochOrder, View, normalise
from image_cache.cutting import Cutter, cutter_for
from image_cache.packed import PackedImages
from runtime.devices import to_device
from runtime.distributed import ALONE, Group
from runtime.progress import track


@dataclass(frozen=True)
class TaskData:
    """The images of one task's split, what the network sees of them, and their normalisation."""

    images: PackedImages
    view: View
    mean_std: tuple[Sequence[float], Sequence[float]]
    _cutters: dict[torch.device, Cutter] = field(default_factory=dict, repr=False, compare=False)

    def on_device(
        self,
        order: EpochOrder,
        batch_size: int,
        device: torch.device,
        label: str,
        first: int = 0,
        group: Group = ALONE,
    ) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Batches from number `first` on, with normalised images and labels on `device`."""
        mean, std = (
            torch.tensor(figures, device=device).view(3, 1, 1) for figures in self.mean_std
        )
        num_batches = -(-len(self.images) // batch_size)
        if device not in self._cutters:
            self._cutters[device] = cutter_for(self.images, device)
        cut = self._cutters[device]
        batches = order.batches(self.images.labels, cut, self.view, batch_size, first, group)
        for batch in track(batches, num_batches, label, first=first):
            images = normalise(batch.images_NHW3, mean, std)
            yield batch, images, to_device(batch.labels_N, device)
