"""Decathlon annotations -> labelled examples -> packed images, and what the network sees of them.

The Decathlon's COCO-style files are read with pycocotools. Image and label are joined by image id,
never by position. The classes are those of the file's own `categories`, in ascending order of id:
some folders in this format hold fewer classes than the official ones.
"""

import contextlib
import io
import json
import reprlib
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

import numpy as np
from pycocotools.coco import COCO

from decathlon import IDS_PER_TASK, DecathlonTask, TrainCrop
from image_cache.decoding import Reading
from image_cache.orders import View
from image_cache.packed import (
    Annotations,
    DataFolders,
    PackedImages,
    open_pack,
    sha256_of,
    write_pack,
)
from models.resnet26 import SIDE_MULTIPLE
from runtime.errors import SpotTuneError, brief
from runtime.files import leads_outside
from runtime.progress import say

UNLABELLED = -1
FETCH_AGAIN = "Remove the annotations folder and fetch it again with ./download_data.sh"
IDS = {"images": ("id",), "annotations": ("id", "image_id", "category_id"), "categories": ("id",)}
ANNOTATION_SUFFIX = {"train": "train", "val": "val", "test": "test_stripped"}


def annotation_file(imdbdir: Path, task: str, split: str) -> Path:
    """Where the annotations of a task's split are expected."""
    return imdbdir / f"{task}_{ANNOTATION_SUFFIX[split]}.json"


def read_annotations(path: Path) -> Annotations:
    """Read one annotation file; see `parse_annotations`."""
    return parse_annotations(path.read_bytes(), path)


def parse_annotations(data: bytes, where: object) -> Annotations:
    """What the bytes of an annotation file say; raises SpotTuneError if they break the format.

    A test file, which has no `annotations`, gives the label -1 for every image. `where` names the
    file in messages.
    """
    coco = _parsed_coco(data, where)
    try:
        category_ids = _category_ids(coco, where)
        image_ids = [image["id"] for image in coco.dataset["images"]]
        file_names = [
            image["file_name"].replace("\\", "/")  # as Windows writes them
            for image in coco.dataset["images"]
        ]
        _check_images(image_ids, file_names, where)
        return Annotations(
            categories=np.array(category_ids, dtype=np.int64),
            image_ids=np.array(image_ids, dtype=np.int64),
            labels=np.array(_labels(coco, image_ids, category_ids, where), dtype=np.int64),
            file_names=file_names,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SpotTuneError(
            f"{where}: not in the Decathlon's COCO-style form ({type(error).__name__}: "
            f"{brief(error)}); expected images with id and file_name, annotations with image_id "
            f"and category_id, and categories with id. {FETCH_AGAIN}"
        ) from error


def _parsed_coco(data: bytes, where: object) -> COCO:
    """The parsed file with pycocotools' index; its chatter on standard output is dropped."""
    try:
        dataset = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SpotTuneError(
            f"{where}: not a readable JSON file ({error}); it may be cut short. {FETCH_AGAIN}"
        ) from error
    if not isinstance(dataset, dict) or not {"images", "categories"} <= dataset.keys():
        raise SpotTuneError(
            f"{where}: expected a JSON object with images and categories, as in the Decathlon's "
            f"annotations; found something else. {FETCH_AGAIN}"
        )
    if not isinstance(dataset.get("annotations", []), list):
        raise SpotTuneError(
            f"{where}: annotations is {brief(reprlib.repr(dataset['annotations']))}; expected a "
            f"list, or no annotations at all. {FETCH_AGAIN}"
        )
    coco = COCO()
    coco.dataset = dataset
    try:
        _check_ids(dataset, where)
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
    except (KeyError, TypeError, AttributeError) as error:
        raise SpotTuneError(
            f"{where}: an entry of images, annotations or categories lacks its id "
            f"({type(error).__name__}: {brief(error)}). {FETCH_AGAIN}"
        ) from error
    return coco


def _check_ids(dataset: dict, where: object) -> None:
    """Raise SpotTuneError unless all ids are integers of 64 bits.

    Longer ones could be made to share a hash, and pycocotools' index would take forever to build.
    """
    for kind, keys in IDS.items():
        for entry in dataset.get(kind, ()):
            for key in keys:
                if type(entry[key]) is not int or not -(2**63) <= entry[key] < 2**63:
                    raise SpotTuneError(
                        f"{where}: expected integers of 64 bits as {key} of all {kind}; found "
                        f"{brief(reprlib.repr(entry[key]))}. {FETCH_AGAIN}"
                    )


def _category_ids(coco: COCO, where: object) -> list[int]:
    """The file's category ids, distinct, in ascending order."""
    category_ids = [category["id"] for category in coco.dataset["categories"]]
    if not category_ids:
        raise SpotTuneError(f"{where}: lists no categories. {FETCH_AGAIN}")
    if len(set(category_ids)) < len(category_ids):
        raise SpotTuneError(f"{where}: a category id is listed more than once; expected once")
    return sorted(category_ids)


def _check_images(image_ids: Sequence[int], file_names: Sequence[str], where: object) -> None:
    """Raise SpotTuneError unless ids are distinct and file names stay in the data folder."""
    if not image_ids:
        raise SpotTuneError(f"{where}: lists no images. {FETCH_AGAIN}")
    if len(set(image_ids)) < len(image_ids):
        raise SpotTuneError(
            f"{where}: {len(image_ids) - len(set(image_ids))} image ids are repeated; expected "
            f"each image once"
        )
    for name in file_names:
        if leads_outside(name):
            raise SpotTuneError(
                f"{where}: the file name {brief(repr(name))} leads outside the data folder; "
                f"expected names such as data/svhn/train/0001/000001.jpg"
            )


def _labels(
    coco: COCO, image_ids: Sequence[int], category_ids: list[int], where: object
) -> list[int]:
    """Each image's class, 0 to K - 1, found through its id."""
    if coco.dataset.get("annotations", []) == []:
        return [UNLABELLED] * len(image_ids)
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    labels = []
    for image_id in image_ids:
        annotations = coco.imgToAnns.get(image_id, ())
        if len(annotations) != 1:
            raise SpotTuneError(
                f"{where}: image {image_id} has {len(annotations)} labels; expected exactly one"
            )
        category_id = annotations[0]["category_id"]
        if category_id not in label_of:
            raise SpotTuneError(
                f"{where}: image {image_id} has category {category_id}, which is not among the "
                f"file's {len(category_ids)} categories ({category_ids[0]} to {category_ids[-1]}). "
                f"Does this file belong to another task?"
            )
        labels.append(label_of[category_id])
    return labels


def load_images(
    task: DecathlonTask, splits: Sequence[str], folders: DataFolders, resize: int
) -> PackedImages:
    """The images of one or several splits (e.g. train and val, merged), decoded once and mapped.

    Raises SpotTuneError if files are missing or broken, or if the splits' categories differ.
    """
    parts = [_load_split(task, split, folders, resize) for split in splits]
    for split, part in zip(splits, parts, strict=True):
        if not np.array_equal(part.categories, parts[0].categories):
            raise SpotTuneError(
                f"{annotation_file(folders.imdbdir, task.name, split)}: {len(part.categories)} "
                f"categories that differ from the {len(parts[0].categories)} of "
                f"{task.name}_{splits[0]}; expected the same. Are they of two different downloads?"
            )
    return PackedImages.merged(parts)


def _load_split(task: DecathlonTask, split: str, folders: DataFolders, resize: int) -> PackedImages:
    path = annotation_file(folders.imdbdir, task.name, split)
    if not path.is_file():
        raise SpotTuneError(
            f"{path}: no such annotation file. Give its folder with --imdbdir, fetch the data "
            f"with ./download_data.sh ./data/, or leave the task out with --tasks"
        )
    pack, origin = folders.pack_of(f"{task.name}_{split}", resize), sha256_of(path)
    images = open_pack(pack, origin, folders.datadir, resize)
    if images is not None:
        return images
    annotations = read_annotations(path)
    _check_owner(task, annotations, path)
    return write_pack(pack, annotations, origin, folders.datadir, Reading(resize))


def _check_owner(task: DecathlonTask, annotations: Annotations, path: Path) -> None:
    """Raise SpotTuneError unless all ids carry the task's number, as answers to it must."""
    for ids, what in ((annotations.image_ids, "image"), (annotations.categories, "category")):
        foreign = [i for i in (ids.min(), ids.max()) if not task.owns(int(i))]
        if foreign:
            raise SpotTuneError(
                f"{path}: holds the {what} id {foreign[0]}; expected ids of {task.name}, from "
                f"{task.number * IDS_PER_TASK} on. Does this file belong to another task?"
            )


def require_labels(images: PackedImages, task: str) -> None:
    """Raise SpotTuneError unless every image has a label."""
    unlabelled = int((images.labels == UNLABELLED).sum())
    if unlabelled:
        raise SpotTuneError(
            f"{task}: {unlabelled} of {len(images)} images have no label, so they cannot be "
            f"trained on or scored; expected annotations for train and val. "
            f"Fetch them with ./download_data.sh"
        )
    if len(np.unique(images.labels)) == 1:
        say(f"warning: all {len(images)} images of {task} have the same label")


class ImageSizes(Protocol):
    """Anything with the heights and widths of N images, in pixels, such as PackedImages."""

    heights: np.ndarray
    widths: np.ndarray


def view_of(
    task: DecathlonTask, images: ImageSizes, resize: int, crop: int, training: bool
) -> View:
    """What the network sees of a task's images in training or test, as in the released code."""
    if task.train_crop is TrainCrop.WHOLE:
        return _whole_view(task.name, images)
    if training and task.train_crop is TrainCrop.RANDOM:
        return View(crop, crop, random=True, flip=task.train_flip)
    return View(resize, resize, flip=training and task.train_flip)


def _whole_view(task: str, images: ImageSizes) -> View:
    heights, widths = np.unique(images.heights), np.unique(images.widths)
    if len(heights) > 1 or len(widths) > 1:
        raise SpotTuneError(
            f"{task}: images of {heights.min()} to {heights.max()} x {widths.min()} to "
            f"{widths.max()} pixels; expected one size, since this task's images are not cropped"
        )
    if heights[0] % SIDE_MULTIPLE or widths[0] % SIDE_MULTIPLE:
        raise SpotTuneError(
            f"{task}: images of {heights[0]} x {widths[0]} pixels after --resize; expected sides "
            f"that are multiples of {SIDE_MULTIPLE}, since this task's images are not cropped"
        )
    return View(int(heights[0]), int(widths[0]))


def check_categories(task: str, known: Sequence[int], found: Sequence[int]) -> None:
    """Raise SpotTuneError unless a network's `known` categories are those `found` in the data."""
    differing = [pair for pair in zip_longest(known, found) if pair[0] != pair[1]]
    if differing:
        raise SpotTuneError(
            f"{task}: the network knows {len(known)} categories, the annotations list "
            f"{len(found)}; expected the same, but the first that differ are {differing[0][0]} "
            f"and {differing[0][1]}. Do network and data belong together? If not, leave {task} "
            f"out with --tasks"
        )
