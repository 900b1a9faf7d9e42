"""The images of a task with the most and with the fewest fine-tuned blocks.

Decisions are those that a run left in decisions.json; the pixels are read as training reads them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from decathlon import TASK_BY_NAME
from engine.arguments import NUM_BLOCKS
from image_cache.packed import DataFolders, PackedImages
from imdbfolder_coco import annotation_file, load_images
from reporting.drawings import Example
from reporting.study import Study
from reporting.task_runs import Row, TaskRun, read_object
from runtime.errors import SpotTuneError

EACH = 4  # images on either side
Sides = tuple[list[Example], list[Example]]


def find_extremes(
    study: Study, row: Row, folders: DataFolders
) -> tuple[dict[str, Sides], list[str]]:
    """By task the images with the fewest and with the most fine-tuned blocks, of the first seed.

    And remarks on the tasks whose images or decisions are not at hand.
    """
    found, missing = {}, {}
    for task in study.tasks:
        runs = [run for run in study.of(row, task) if run.settings.policy == "argmax"]
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


def _sides(run: TaskRun, folders: DataFolders) -> Sides | None:
    """None where an image that was decided on is not among those in `folders`."""
    decisions = read_decisions(run)
    images = load_images(TASK_BY_NAME[run.task], ["val"], folders, run.settings.resize)
    place = {int(image_id): index for index, image_id in enumerate(images.image_ids)}
    if not decisions.keys() <= place.keys():
        return None
    return tuple(
        [Example(_pixels(images, place[image_id]), decisions[image_id]) for image_id in side]
        for side in extremes(decisions)
    )


def read_decisions(run: TaskRun) -> dict[int, str]:
    """Image id -> its decisions, "1" for a fine-tuned block, from block 1 on."""
    path = run.folder / "decisions.json"
    found = read_object(path, {"split": (str,), "decisions": (dict,)})["decisions"]
    for image_id, row in found.items():
        whole = type(row) is str and len(row) == NUM_BLOCKS and set(row) <= {"0", "1"}
        if not (image_id.isascii() and image_id.isdigit() and whole):
            raise SpotTuneError(
                f"{path}: image {image_id[:20]}; expected ids, each with {NUM_BLOCKS} decisions "
                f"0 or 1, as main.py writes them"
            )
    return {int(image_id): row for image_id, row in found.items()}


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
