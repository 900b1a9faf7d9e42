"""Made-up tasks in the Decathlon's format: annotations, and JPEGs of a photograph's weight."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from decathlon import IDS_PER_TASK, DecathlonTask
from imdbfolder_coco import annotation_file

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


def write_annotations(folder: Path, task: DecathlonTask, split: str, names: Sequence[str]) -> Path:
    """Write a file like the official ones, its images sorted by class; return its path."""
    first = task.first_category_id
    first_image = first + (IDS_PER_TASK // 2 if split == "val" else 0)
    images, annotations = [], []
    for number, name in enumerate(names):
        image_id = first_image + number
        images.append({"id": image_id, "width": 96, "height": 72, "file_name": name})
        category_id = first + number * task.num_classes // len(names)
        annotation = {"id": image_id, "image_id": image_id, "category_id": category_id}
        annotations.append({**annotation, "segmentation": [], "area": 0, "bbox": [], "iscrowd": 0})
    categories = [{"id": first + label, "name": str(label)} for label in range(task.num_classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = annotation_file(folder, task.name, split)
    path.write_text(json.dumps(content))
    return path
