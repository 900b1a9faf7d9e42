"""The images of a task with the most and with the fewest fine-tuned blocks.

Decisions and answers are those that a run left in decisions.json, and its pixels are read as
training reads them; for own pictures both come from val_answers.csv and the files themselves.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decathlon import TASK_BY_NAME
from image_cache.packed import DataFolders
from imdbfolder_coco import annotation_file, load_images
from reporting.answers import read_answers, read_pictures
from reporting.runs import Run, Variant, check_decisions, opened
from reporting.study import Study

EACH = 4  # images on either side


@dataclass(frozen=True)
class Example:
    """An image, H x W x 3 uint8, its decisions, "1" for a fine-tuned block, and its true class.

    `answer`: the class that it was taken for; None where the run has not recorded it.
    """

    pixels: np.ndarray
    decisions: str
    category: str
    answer: str | None


Sides = tuple[Sequence[Example], Sequence[Example]]  # fewest, most


def find_extremes(
    study: Study, variant: Variant, folders: DataFolders, pictures: Path | None = None
) -> tuple[dict[str, Sides], list[str]]:
    """By task the images with the fewest and with the most fine-tuned blocks, of the first seed.

    And remarks on the tasks whose images or decisions are not at hand. `pictures` holds the folders
    of own pictures.
    """
    found, missing = {}, {}
    for task in study.tasks:
        runs = study.answered(variant, task)
        if not runs:
            missing.setdefault("no run decided by --policy argmax", []).append(task)
            continue
        sides = _own_sides(runs[0], pictures) if study.is_own else _sides(runs[0], folders)
        if isinstance(sides, str):
            missing.setdefault(sides, []).append(task)
        else:
            found[task] = sides
    return found, [f"without {', '.join(tasks)}: {reason}." for reason, tasks in missing.items()]


def has_images(task: str, folders: DataFolders, resize: int) -> bool:
    """Whether the task's val images are there, as files or packed, with their annotations."""
    images = folders.images_of(task).is_dir()
    packed = folders.pack_of(f"{task}_val", resize).is_file()
    return (images or packed) and annotation_file(folders.imdbdir, task, "val").is_file()


def _own_sides(run: Run, pictures: Path | None) -> Sides | str:
    """Or why they cannot be shown."""
    answers = {answer.file: answer for answer in read_answers(run)}
    if pictures is None:
        return "--pictures was not given"
    fewest, most = extremes({file: answer.decisions for file, answer in answers.items()})
    pixels = read_pictures(pictures / run.task, [*fewest, *most])
    if isinstance(pixels, str):
        return pixels

    def example(file: str) -> Example:
        answer = answers[file]
        return Example(pixels[file], answer.decisions, answer.category, answer.answer)

    return [example(file) for file in fewest], [example(file) for file in most]


def _sides(run: Run, folders: DataFolders) -> Sides | str:
    """Or why they cannot be shown."""
    if not has_images(run.task, folders, run.settings.resize):
        return "the val images were not found in --datadir"
    with opened(run.folder / "decisions.json") as found:
        decisions = {int(image_id): row for image_id, row in found["decisions"].items()}
        # Older runs have not recorded them.
        answers = {int(image_id): label for image_id, label in found.get("answers", {}).items()}
        check_decisions(decisions.values())
        if answers and answers.keys() != decisions.keys():
            raise ValueError("answers to other images than decisions")
    images = load_images(TASK_BY_NAME[run.task], ["val"], folders, run.settings.resize)
    place = {int(image_id): index for index, image_id in enumerate(images.image_ids)}
    if not decisions.keys() <= place.keys():
        return "--datadir holds other val images than the run's"
    with opened(annotation_file(folders.imdbdir, run.task, "val")) as dataset:
        names = {row["id"]: str(row.get("name", row["id"])) for row in dataset["categories"]}

    def example(image_id: int) -> Example:
        index = place[image_id]
        category = int(images.categories[images.labels[index]])
        answer = names.get(answers[image_id], "another task's class") if answers else None
        return Example(images.whole(index), decisions[image_id], names[category], answer)

    fewest, most = extremes(decisions)
    return [example(image_id) for image_id in fewest], [example(image_id) for image_id in most]


def extremes(
    decisions: Mapping[Hashable, str],
) -> tuple[Sequence[Hashable], Sequence[Hashable]]:
    """The ids with the fewest and with the most fine-tuned blocks; of equal ones the smaller id.

    No image is among both.
    """
    each = min(EACH, len(decisions) // 2)
    number = {image_id: row.count("1") for image_id, row in decisions.items()}
    fewest = sorted(number, key=lambda image_id: (number[image_id], image_id))[:each]
    others = number.keys() - set(fewest)
    return fewest, sorted(others, key=lambda image_id: (-number[image_id], image_id))[:each]
