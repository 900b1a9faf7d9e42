"""The images of a task with the most and with the fewest fine-tuned blocks.

Decisions are those that a run left in decisions.json; the pixels are read as training reads them.
Whether an image was recognised is known where the answers of submit_val.py lie in the --ckpdir as
results_val.json.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from decathlon import TASK_BY_NAME
from image_cache.packed import DataFolders, PackedImages
from imdbfolder_coco import annotation_file, load_images
from reporting.runs import Run, Variant, read_json
from reporting.study import Study
from runtime.errors import brief

EACH = 4  # images on either side
ANSWERS = "results_val.json"
LONGEST_NAME = 18  # letters of a class that fit under an image


@dataclass(frozen=True)
class Example:
    """An image, H x W x 3 uint8, and its decisions, "1" for a fine-tuned block."""

    pixels: np.ndarray
    decisions: str
    category: str = ""  # its true class
    recognised: bool | None = None  # None where that is not known

    @property
    def result(self) -> str:
        told = {True: ", right", False: ", wrong", None: ""}[self.recognised]
        return f"{self.decisions.count('1')} of {len(self.decisions)}{told}"


Sides = tuple[Sequence[Example], Sequence[Example]]  # fewest, most


def find_extremes(
    study: Study, variant: Variant, folders: DataFolders
) -> tuple[dict[str, Sides], list[str]]:
    """By task the images with the fewest and with the most fine-tuned blocks, of the first seed.

    And remarks on the tasks whose images or decisions are not at hand.
    """
    found, missing, unknown = {}, {}, []
    for task in study.tasks:
        runs = [run for run in study.of(variant, task) if run.scored_variant == variant]
        if not runs:
            missing.setdefault("no run decided by --policy argmax", []).append(task)
        elif not has_images(task, folders, runs[0].settings.resize):
            missing.setdefault("the val images were not found in --datadir", []).append(task)
        elif sides := _sides(runs[0], folders):
            found[task] = sides
            unknown += [task] if sides[0] and sides[0][0].recognised is None else []
        else:
            missing.setdefault("--datadir holds other val images than the run's", []).append(task)
    remarks = [f"without {', '.join(tasks)}: {reason}." for reason, tasks in missing.items()]
    if unknown:
        remarks.append(
            f"whether those of {', '.join(unknown)} were recognised is not known: there is no "
            f"{ANSWERS} in the --ckpdir (submit_val.py --out CKPDIR/{ANSWERS} writes it)."
        )
    return found, remarks


def has_images(task: str, folders: DataFolders, resize: int) -> bool:
    """Whether the task's val images are there, as files or packed, with their annotations."""
    images = folders.images_of(task).is_dir()
    packed = folders.pack_of(f"{task}_val", resize).is_file()
    return (images or packed) and annotation_file(folders.imdbdir, task, "val").is_file()


def _sides(run: Run, folders: DataFolders) -> Sides | None:
    """None where an image that was decided on is not among those in `folders`."""
    decisions = read_json(run.folder / "decisions.json", _decisions)
    images = load_images(TASK_BY_NAME[run.task], ["val"], folders, run.settings.resize)
    place = {int(image_id): index for index, image_id in enumerate(images.image_ids)}
    if not decisions.keys() <= place.keys():
        return None
    names = _class_names(folders, run.task)
    path = run.folder.parent / ANSWERS
    answers = read_json(path, _answers) if path.exists() else {}

    def example(image_id: int) -> Example:
        index = place[image_id]
        category = int(images.categories[images.labels[index]])
        recognised = answers[image_id] == category if image_id in answers else None
        name = brief(names.get(category, category), LONGEST_NAME)
        return Example(_pixels(images, index), decisions[image_id], name, recognised)

    fewest, most = extremes(decisions)
    return [example(image_id) for image_id in fewest], [example(image_id) for image_id in most]


def _decisions(found: Mapping) -> dict[int, str]:
    """Image id -> its decisions, "1" for a fine-tuned block, from block 1 on."""
    rows = {int(image_id): row for image_id, row in found["decisions"].items()}
    lengths = {len(row) for row in rows.values() if set(row) <= {"0", "1"}}
    if len(lengths) != 1 or not all(set(row) <= {"0", "1"} for row in rows.values()):
        raise ValueError("rows of 0 and 1 of one length were expected")
    return rows


def _answers(found: Sequence[Mapping]) -> dict[int, int]:
    return {int(row["image_id"]): int(row["category_id"]) for row in found}


def _class_names(folders: DataFolders, task: str) -> dict[int, str]:
    dataset = json.loads(annotation_file(folders.imdbdir, task, "val").read_bytes())
    return {row["id"]: row.get("name", row["id"]) for row in dataset["categories"]}


def extremes(decisions: Mapping[int, str]) -> tuple[Sequence[int], Sequence[int]]:
    """The ids with the fewest and with the most fine-tuned blocks; of equal ones the smaller id.

    No image is among both.
    """
    each = min(EACH, len(decisions) // 2)

    def number(image_id: int) -> int:
        return decisions[image_id].count("1")

    fewest = sorted(decisions, key=lambda image_id: (number(image_id), image_id))[:each]
    others = decisions.keys() - set(fewest)
    most = sorted(others, key=lambda image_id: (-number(image_id), image_id))[:each]
    return fewest, most


def _pixels(images: PackedImages, index: int) -> np.ndarray:
    """The whole image, H x W x 3."""
    corner = np.zeros(1, dtype=np.int64)
    height, width = int(images.heights[index]), int(images.widths[index])
    return images.crops(np.array([index]), corner, corner, height, width)[0]
