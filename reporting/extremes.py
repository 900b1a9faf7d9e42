"""The images of a task with the most and with the fewest fine-tuned blocks.

Decisions are those that a run left in decisions.json; the pixels are read as training reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from decathlon import TASK_BY_NAME
from image_cache.packed import DataFolders
from imdbfolder_coco import annotation_file, load_images
from reporting.runs import Run, Variant, opened
from reporting.study import Study
from runtime.errors import brief

EACH = 4  # images on either side
LONGEST_NAME = 18  # letters of a class that fit under an image


@dataclass(frozen=True)
class Example:
    """An image, H x W x 3 uint8, its decisions, "1" for a fine-tuned block, and its true class."""

    pixels: np.ndarray
    decisions: str
    category: str


Sides = tuple[Sequence[Example], Sequence[Example]]  # fewest, most


def find_extremes(
    study: Study, variant: Variant, folders: DataFolders
) -> tuple[dict[str, Sides], list[str]]:
    """By task the images with the fewest and with the most fine-tuned blocks, of the first seed.

    And remarks on the tasks whose images or decisions are not at hand.
    """
    found, missing = {}, {}
    for task in study.tasks:
        runs = [run for run in study.of(variant, task) if run.scored_variant == variant]
        if not runs:
            missing.setdefault("no run decided by --policy argmax", []).append(task)
        elif not has_images(task, folders, runs[0].settings.resize):
            missing.setdefault("the val images were not found in --datadir", []).append(task)
        elif sides := _sides(runs[0], folders):
            found[task] = sides
        else:
            missing.setdefault("--datadir holds other val images than the run's", []).append(task)
    return found, [f"without {', '.join(tasks)}: {reason}." for reason, tasks in missing.items()]


def has_images(task: str, folders: DataFolders, resize: int) -> bool:
    """Whether the task's val images are there, as files or packed, with their annotations."""
    images = folders.images_of(task).is_dir()
    packed = folders.pack_of(f"{task}_val", resize).is_file()
    return (images or packed) and annotation_file(folders.imdbdir, task, "val").is_file()


def _sides(run: Run, folders: DataFolders) -> Sides | None:
    """None where an image that was decided on is not among those in `folders`."""
    with opened(run.folder / "decisions.json") as found:
        decisions = {int(image_id): row for image_id, row in found["decisions"].items()}
        lengths = {len(row) for row in decisions.values()}
        if len(lengths) != 1 or not set("".join(decisions.values())) <= {"0", "1"}:
            raise ValueError("rows of 0 and 1 of one length were expected")
    images = load_images(TASK_BY_NAME[run.task], ["val"], folders, run.settings.resize)
    place = {int(image_id): index for index, image_id in enumerate(images.image_ids)}
    if not decisions.keys() <= place.keys():
        return None
    with opened(annotation_file(folders.imdbdir, run.task, "val")) as dataset:
        names = {row["id"]: row.get("name", row["id"]) for row in dataset["categories"]}

    def example(image_id: int) -> Example:
        index = place[image_id]
        corner, size = np.zeros(1, dtype=np.int64), (images.heights[index], images.widths[index])
        (pixels,) = images.crops(np.array([index]), corner, corner, *map(int, size))  # all of it
        category = int(images.categories[images.labels[index]])
        return Example(pixels, decisions[image_id], brief(names[category], LONGEST_NAME))

    fewest, most = extremes(decisions)
    return [example(image_id) for image_id in fewest], [example(image_id) for image_id in most]


def extremes(decisions: Mapping[int, str]) -> tuple[Sequence[int], Sequence[int]]:
    """The ids with the fewest and with the most fine-tuned blocks; of equal ones the smaller id.

    No image is among both.
    """
    each = min(EACH, len(decisions) // 2)
    number = {image_id: row.count("1") for image_id, row in decisions.items()}
    fewest = sorted(number, key=lambda image_id: (number[image_id], image_id))[:each]
    others = number.keys() - set(fewest)
    return fewest, sorted(others, key=lambda image_id: (-number[image_id], image_id))[:each]
