"""Made-up tasks in the Decathlon's format: annotations, and JPEGs of a photograph's weight."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from decathlon import TASK_BY_NAME, DecathlonTask
from image_cache.packed import DataFolders, PackedImages
from imdbfolder_coco import load_images
from sample_data import make

TASK = TASK_BY_NAME["aircraft"]  # for steps and epochs; any would do

MEAN_STD = ((0.48, 0.45, 0.41), (0.27, 0.26, 0.27))  # of photographs: red, green, blue


def write_task(folder: Path, task: DecathlonTask, split: str, count: int, side: int) -> None:
    """Write `count` images with shorter side `side`, a third longer, and their annotations."""
    names = [f"data/{task.name}/{split}/{number:06}.jpg" for number in range(count)]
    (folder / "data" / task.name / split).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        coarse = rng.integers(0, 256, (side // 6, side // 4, 3), np.uint8)
        image = Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
        image.filter(ImageFilter.SHARPEN).save(folder / name, quality=90)
    write_annotations(folder, task, split, names)


def load_task(folder: Path, task: DecathlonTask, side: int) -> PackedImages:
    """The train images that `write_task` has written, decoded and packed in the same folder."""
    return load_images(task, ["train"], DataFolders(folder, folder, folder), side)


def write_annotations(folder: Path, task: DecathlonTask, split: str, names: Sequence[str]) -> None:
    """Write a file like the official ones, its images sorted by class."""
    first, count = task.first_category_id, len(names)
    images = [
        {"id": first + number, "width": 96, "height": 72, "file_name": name}
        for number, name in enumerate(names)
    ]
    labels = [first + number * task.num_classes // count for number in range(count)]
    categories = [{"id": first + label, "name": str(label)} for label in range(task.num_classes)]
    make.write_annotations(folder, f"{task.name}_{split}", images, labels, categories)
