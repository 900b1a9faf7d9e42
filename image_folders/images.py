"""A folder's pictures as packed images: decoded once, checked, and divided into train and val."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from image_cache.decoding import Reading
from image_cache.packed import Annotations, PackedImages, open_pack, write_pack
from image_cache.subsets import Subset, divided, few
from image_folders.listing import Listing, Pictures, warn_of_copies
from runtime.errors import SpotTuneError
from runtime.progress import say


@dataclass(frozen=True)
class FolderImages:
    """The pictures of a task, and their files' names in the same order."""

    classes: list[str]  # by label
    train: PackedImages
    train_names: list[str]
    val: PackedImages
    val_names: list[str]
    val_is_aside: bool  # a share of train


def load_folder(
    folder: Path,
    listing: Listing,
    cachedir: Path,
    reading: Reading,
    val_share: float,
    subset: Subset,
    seed: int,
) -> FolderImages:
    """Decode and divide a folder's listed pictures; raises SpotTuneError for any bad one.

    `val_share` of train is set aside where there is no val, before the `subset` is chosen.
    """
    name = folder_name_of(folder)
    train = _packed(folder, cachedir, "train", listing.train, listing, reading)
    stay = list(range(len(listing.train)))
    if listing.val is None:
        stay, aside = divided(listing.train.labels, listing.classes, val_share, seed, name)
        val, val_names = train.chosen(aside), listing.train.chosen(aside).files
        say(f"{name}: no val folder, so {len(aside)} of {len(train)} pictures of train are val")
        warn_of_copies(folder, listing.train.chosen(stay), listing.train.chosen(aside))
    else:
        val = _packed(folder, cachedir, "val", listing.val, listing, reading)
        val_names = listing.val.files
        warn_of_copies(folder, listing.train, listing.val)
    chosen = [stay[i] for i in few(train.labels[stay], subset, seed, name)]
    if subset != Subset():
        say(f"{name}: {len(chosen)} of {len(stay)} training pictures are used")
    names = listing.train.chosen(chosen).files
    is_aside = listing.val is None
    return FolderImages(listing.classes, train.chosen(chosen), names, val, val_names, is_aside)


def folder_name_of(folder: Path) -> str:
    """The task's name: the folder's own, also for "." and for a link's target."""
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name
    if not name:
        raise SpotTuneError(f"{folder}: a task cannot be named after it; name a folder below")
    return name


def mean_and_std(images: PackedImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of red, green and blue over all pixels of the images, from 0 to 1."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for place in range(len(images)):
        pixels = images.whole(place).reshape(-1, 3) / 255
        total += pixels.sum(axis=0)
        squares += np.square(pixels).sum(axis=0)
        count += len(pixels)
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


def _packed(
    folder: Path,
    cachedir: Path,
    split: str,
    pictures: Pictures,
    listing: Listing,
    reading: Reading,
) -> PackedImages:
    annotations = _annotations(pictures, listing.classes)
    origin = _origin(annotations, reading)
    how = f"{reading.side}{'_squeezed' if reading.squeeze else ''}_{reading.interpolation}"
    where = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]
    pack = cachedir / f"{folder_name_of(folder)}_{where}_{split}_{how}.pack"
    images = open_pack(pack, origin, folder, reading.side)
    if images is not None:
        return images
    return write_pack(pack, annotations, origin, folder, reading)


def _annotations(pictures: Pictures, classes: Sequence[str]) -> Annotations:
    return Annotations(
        categories=np.arange(len(classes)),
        image_ids=np.array([picture_id(name) for name in pictures.files], dtype=np.int64),
        labels=np.array(pictures.labels, dtype=np.int64),
        file_names=pictures.files,
    )


def picture_id(name: str) -> int:
    """A number of 63 bits for a file's name: the same in every list that holds the file."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _origin(annotations: Annotations, reading: Reading) -> str:
    labels = annotations.labels.tolist()
    facts = [list(annotations.file_names), labels, asdict(reading)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def check_names(folders: Sequence[Path]) -> None:
    """Raise SpotTuneError if two folders would be the same task."""
    seen = {}
    for folder in folders:
        name = folder_name_of(folder)
        if name in seen:
            if seen[name].resolve() == folder.resolve():
                raise SpotTuneError(f"{folder}: named twice")
            raise SpotTuneError(
                f"{seen[name]} and {folder} have the same name, which names a run's folder; rename "
                f"one, or train them one by one with another --ckpdir"
            )
        seen[name] = folder
