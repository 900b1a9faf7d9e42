"""Images decoded once: a flat file of pixels with an index, mapped into memory, cropped by index.

Decoding every JPEG again in each of 110 epochs would waste time. Here each split is decoded once,
on all cores, its shorter side resized, and kept as raw RGB. The pixels are bit for bit those of
Pillow and torchvision's Resize.

File layout, little endian:
    64 bytes   magic, offset of the index, length of the file, CRC-32 of everything after the pixels
    pixels     image after image, each height x width x 3 uint8
    index      one INDEX record per image
    JSON       category ids, side, version; where the images came from: `origin`, a hash of the
               annotations, and a fingerprint of the folders that hold the image files

A file is packed again, with a message, when its annotations or its image files change, or when its
length or its index is not what it should be. Flipped bits among the pixels are not noticed.
"""

import errno
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from image_cache.decoding import Reading, write_pixels
from runtime.errors import MISFITS, SpotTuneError
from runtime.files import leads_outside, replacing
from runtime.progress import say, track

MAGIC = b"SPOTPACK"
VERSION = 2
HEADER = struct.Struct("<8sQQI36x")  # 64 bytes
INDEX = np.dtype(
    [("offset", "<u8"), ("image_id", "<i8"), ("label", "<i4"), ("height", "<u4"), ("width", "<u4")]
)


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says. Labels are positions in `categories`, or -1 if unknown."""

    categories: np.ndarray  # K category ids, ascending
    image_ids: np.ndarray  # N
    labels: np.ndarray  # N
    file_names: Sequence[str]  # N, relative to the data folder


@dataclass(frozen=True)
class DataFolders:
    """Where the images (`data/...` below datadir), annotations and packed files lie."""

    datadir: Path
    imdbdir: Path
    cachedir: Path

    def images_of(self, task: str) -> Path:
        """The folder of a task's images."""
        return self.datadir / "data" / task

    def pack_of(self, name: str, side: int) -> Path:
        """Where the packed images of e.g. "svhn_train" lie."""
        return self.cachedir / f"{name}_{side}.pack"


class PackedImages:
    """N images of one or several packed files.

    labels, image_ids, heights, widths: N int64 each; categories: K category ids.
    """

    def __init__(
        self, pixels: Sequence[np.ndarray], index: Sequence[np.ndarray], categories
    ) -> None:
        self.parts = list(pixels)  # flat uint8, one per file, header included
        self._part = np.repeat(np.arange(len(index)), [len(part) for part in index])
        self._part_begins = np.cumsum([0] + [len(part) for part in self.parts])
        self._index = list(index)
        joined = np.concatenate(self._index)
        self._places = joined["offset"].astype(np.int64) + self._part_begins[self._part]
        self.image_ids = joined["image_id"].astype(np.int64)
        self.labels = joined["label"].astype(np.int64)
        self.heights = joined["height"].astype(np.int64)
        self.widths = joined["width"].astype(np.int64)
        self.categories = categories

    @classmethod
    def merged(cls, parts: Sequence["PackedImages"]) -> "PackedImages":
        """Several sets with the same categories as one, in this order."""
        pixels = [flat for part in parts for flat in part.parts]
        index = [records for part in parts for records in part._index]
        return cls(pixels, index, parts[0].categories)

    @classmethod
    def of_arrays(cls, pixels: Sequence[np.ndarray], num_classes: int) -> "PackedImages":
        """Images H x W x 3 uint8 in memory, without labels; their ids count from 0."""
        index = np.zeros(len(pixels), dtype=INDEX)
        index["image_id"], index["label"] = np.arange(len(pixels)), -1
        place(index, np.array([image.shape[:2] for image in pixels], dtype=np.int64))
        header = np.zeros(HEADER.size, dtype=np.uint8)
        flat = np.concatenate([header, *(image.reshape(-1) for image in pixels)])
        return cls([flat], [index], np.arange(num_classes))

    def chosen(self, places: Sequence[int]) -> "PackedImages":
        """Some of the images, in their own order."""
        is_chosen = np.isin(np.arange(len(self)), places)
        parts = [
            records[is_chosen[self._part == number]] for number, records in enumerate(self._index)
        ]
        return PackedImages(self.parts, parts, self.categories)

    def whole(self, place: int) -> np.ndarray:
        """All pixels of an image, H x W x 3 uint8."""
        corner, height, width = np.zeros(1, dtype=np.int64), self.heights[place], self.widths[place]
        (pixels,) = self.crops(np.array([place]), corner, corner, int(height), int(width))
        return pixels

    def __len__(self) -> int:
        return len(self._places)

    @property
    def num_bytes(self) -> int:
        """Length of all parts together."""
        return int(self._part_begins[-1])

    def sha256(self) -> str:
        """Hash of which images these are, in which order, and of their labels; not of pixels."""
        digest = hashlib.sha256(self.image_ids.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def crops(
        self, indices: np.ndarray, tops: np.ndarray, lefts: np.ndarray, height: int, width: int
    ) -> np.ndarray:
        """Windows with the given corners of the given images, n x height x width x 3 uint8.

        Raises IndexError if a window does not lie inside its image.
        """
        rows = self.row_places(indices, tops, lefts, height, width)
        out = np.empty((len(indices), height, 3 * width), dtype=np.uint8)
        part_of = self._part[indices]
        for part, pixels in enumerate(self.parts):
            chosen = part_of == part
            if chosen.any():
                rows_here = rows[chosen] - self._part_begins[part]
                # Row i is pixels[i : i + 3 * width]: a view, so one gather copies whole rows.
                runs = np.lib.stride_tricks.sliding_window_view(pixels, 3 * width)
                out[chosen] = runs[rows_here]
        return out.reshape(len(indices), height, width, 3)

    def row_places(
        self, indices: np.ndarray, tops: np.ndarray, lefts: np.ndarray, height: int, width: int
    ) -> np.ndarray:
        """Where each row of each window begins among the bytes of all parts, n x height int64."""
        image_widths = self.widths[indices]
        rows_fit = (tops >= 0) & (tops + height <= self.heights[indices])
        columns_fit = (lefts >= 0) & (lefts + width <= image_widths)
        if not (rows_fit & columns_fit).all():
            raise IndexError(f"a window of {height} x {width} pixels reaches outside its image")
        first_row = self._places[indices] + 3 * (tops * image_widths + lefts)
        return first_row[:, None] + 3 * image_widths[:, None] * np.arange(height)


def open_pack(path: Path, origin: str, datadir: Path, side: int) -> PackedImages | None:
    """The images packed in `path`, or None, with a message, if they must be packed anew."""
    if not path.exists():
        return None
    try:
        return _map(path, origin, datadir, side)
    except StalePackError as reason:
        say(f"{path}: {reason}; packing the images again")
    except MISFITS:
        say(f"{path}: its index is not valid; packing the images again")
    return None


def write_pack(
    path: Path, annotations: Annotations, origin: str, datadir: Path, reading: Reading
) -> PackedImages:
    """Decode all images into `path`, whole or not at all, and open it.

    `origin`: a hash of all that decides which images these are, and their labels. Raises
    SpotTuneError, naming the files, where images are missing or broken.
    """
    folders = sorted({str(Path(name).parent) for name in annotations.file_names})
    facts = {
        "version": VERSION,
        "side": reading.side,
        "origin": origin,
        "folders": folders,
        "fingerprint": fingerprint(datadir, folders),
        "categories": annotations.categories.tolist(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            _write(stream, annotations, facts, datadir, reading, f"packing {path.stem}")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise SpotTuneError(
            f"{path.parent}: the decoded images cannot be kept there ({error.strerror}); name "
            f"another folder with --cachedir"
        ) from error
    return _map(path, origin, datadir, reading.side)


def _write(
    stream: IO[bytes],
    annotations: Annotations,
    facts: dict[str, object],
    datadir: Path,
    reading: Reading,
    label: str,
) -> None:
    """Pixels, index and facts, and at last the header, which tells where they are."""
    names = annotations.file_names
    index = np.zeros(len(names), dtype=INDEX)
    index["image_id"], index["label"] = annotations.image_ids, annotations.labels
    stream.write(bytes(HEADER.size))
    sizes = track(write_pixels(stream, names, datadir, reading), len(names), label, "image")
    sizes = np.fromiter(sizes, np.dtype((np.int64, 2)), len(names))
    place(index, sizes)
    finish(stream, index, facts)


def finish(stream: IO[bytes], index: np.ndarray, facts: dict[str, object]) -> None:
    """Write index and facts after the pixels, at the stream's position, and the header first."""
    tail = struct.pack("<Q", len(index)) + index.tobytes() + json.dumps(facts).encode()
    index_offset = stream.tell()
    stream.write(tail)
    stream.seek(0)
    stream.write(HEADER.pack(MAGIC, index_offset, index_offset + len(tail), zlib.crc32(tail)))


def place(index: np.ndarray, sizes: np.ndarray) -> None:
    """Put heights and widths, N x 2, into the index, and where each image begins."""
    index["height"], index["width"] = sizes.T
    lengths = 3 * sizes.prod(axis=1)
    index["offset"] = HEADER.size + lengths.cumsum() - lengths


def fingerprint(datadir: Path, folders: Iterable[str]) -> str:
    """A hash over names, sizes and times of the files in `folders`; "" if none of these exists."""
    digest, found = hashlib.sha256(), False
    for folder in folders:
        if not (datadir / folder).is_dir():
            continue
        found = True
        for entry in sorted(os.scandir(datadir / folder), key=lambda entry: entry.name):
            if entry.is_file():
                status = entry.stat()
                facts = (folder, entry.name, status.st_size, status.st_mtime_ns)
                digest.update(repr(facts).encode())
    return digest.hexdigest() if found else ""


class StalePackError(Exception):
    """A packed file that is damaged, or belongs to other annotations or images."""


def _map(path: Path, origin: str, datadir: Path, side: int) -> PackedImages:
    with path.open("rb") as stream:
        length = os.fstat(stream.fileno()).st_size
        header = stream.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise StalePackError("not a packed file, or cut short")
        _, index_offset, whole_length, crc = HEADER.unpack(header)
        if length != whole_length or not HEADER.size <= index_offset <= length:
            raise StalePackError(f"{length:,} bytes found, {whole_length:,} expected")
        stream.seek(index_offset)
        tail = stream.read()
        if zlib.crc32(tail) != crc:
            raise StalePackError("its index is damaged")
        pixels = np.memmap(stream, np.uint8, mode="r", offset=0, shape=(index_offset,))
    (num_images,) = struct.unpack_from("<Q", tail)
    index = np.frombuffer(tail, INDEX, count=num_images, offset=8)
    facts = json.loads(tail[8 + index.nbytes :])
    if (facts["version"], facts["side"], facts["origin"]) != (VERSION, side, origin):
        raise StalePackError("made from other annotations, or by another version")
    if any(map(leads_outside, facts["folders"])):
        raise StalePackError("its images lie outside the data folder")
    found = fingerprint(datadir, facts["folders"])
    if not found:
        say(f"{path}: its image files are gone from {datadir}; using the packed ones")
    elif found != facts["fingerprint"]:
        raise StalePackError("made from other image files")
    categories = np.array(facts["categories"], dtype=np.int64)
    if not _makes_sense(index, categories, side, index_offset):
        raise StalePackError("its index points outside its pixels or categories")
    return PackedImages([pixels], [index], categories)


def _makes_sense(index: np.ndarray, categories: np.ndarray, side: int, index_offset: int) -> bool:
    """Whether every image lies among the pixels and every label among the categories."""
    if not len(index) or categories.ndim != 1 or not len(categories):
        return False
    sizes = 3.0 * index["height"] * index["width"]  # as float, which does not wrap around
    inside = (index["offset"] >= HEADER.size) & (index["offset"] + sizes <= index_offset)
    sides = np.minimum(index["height"], index["width"]) == side
    labels = (index["label"] >= -1) & (index["label"] < len(categories))
    return bool((inside & sides & labels).all())


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
