"""Windows of packed images on the computing device: cut there, or sent there.

If a GPU has room, the pixels of a whole split are copied to it once, and windows are cut by one
gather. Otherwise they are cut on the host and sent from pinned memory. Both give the same bytes. A
CPU cuts in its own memory. (The GPU's part has been tested on a CPU only.)

Shapes (n windows of H x W pixels): indices, tops, lefts n; windows n x H x W x 3 uint8.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from image_cache.packed import PackedImages
from runtime.devices import to_device

SHARE_OF_FREE_MEMORY = 0.25  # that resident pixels of one split may take

Cutter = Callable[[np.ndarray, np.ndarray, np.ndarray, int, int], Tensor]


def cutter_for(images: PackedImages, device: torch.device) -> Cutter:
    """The fastest way to get windows of `images` to `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.num_bytes <= SHARE_OF_FREE_MEMORY * free:
            return ResidentImages(images, device).cut

    def cut_on_host(
        indices: np.ndarray, tops: np.ndarray, lefts: np.ndarray, height: int, width: int
    ) -> Tensor:
        windows = images.crops(indices, tops, lefts, height, width)
        return to_device(torch.from_numpy(windows), device)

    return cut_on_host


class ResidentImages:
    """All pixels of an image set on a device, cut by index arithmetic there."""

    def __init__(self, images: PackedImages, device: torch.device) -> None:
        self.images = images
        self.pixels = torch.empty(images.num_bytes, dtype=torch.uint8, device=device)
        place = 0
        for part in images.parts:
            self.pixels[place : place + len(part)] = torch.from_numpy(np.array(part))
            place += len(part)

    def cut(
        self, indices: np.ndarray, tops: np.ndarray, lefts: np.ndarray, height: int, width: int
    ) -> Tensor:
        """The same windows as PackedImages.crops; raises IndexError if one does not fit."""
        rows = self.images.row_places(indices, tops, lefts, height, width)
        row_places = to_device(torch.from_numpy(rows.reshape(-1)), self.pixels.device)
        run = 3 * width
        runs = self.pixels.as_strided((len(self.pixels) - run + 1, run), (1, 1))
        return runs.index_select(0, row_places).view(len(indices), height, width, 3)
