"""What runs on own pictures answered on val after their last epoch, from their val_answers.csv."""

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from engine.answers import COLUMNS, VAL_ANSWERS
from image_cache.decoding import Reading, decoded, refuse_bombs
from reporting.runs import Run, Variant, intact
from reporting.study import Study
from runtime.errors import brief

MOST_CLASSES = 40  # of which all pairs are shown
MOST_MISTAKES = 6  # of a task
SIDE = 160  # pixels of a drawn picture's shorter side


@dataclass(frozen=True)
class Answer:
    """A picture's file, relative to the task's folder, and what it was taken for.

    `probability` is from 0 to 1; `decisions` has a "1" for each fine-tuned block, and is empty if
    none decides.
    """

    file: str
    category: str
    answer: str
    probability: float
    decisions: str


def read_answers(run: Run) -> list[Answer]:
    """SpotTuneError, naming the file, if it is damaged."""
    path = run.folder / VAL_ANSWERS
    with intact(path):
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            table = csv.DictReader(stream, strict=True)
            if tuple(table.fieldnames or ()) != COLUMNS:
                raise ValueError(f"columns {brief(table.fieldnames)}")
            answers = [_answer(row, run.classes) for row in table]
        lengths = {len(answer.decisions) for answer in answers}
        if len(lengths) != 1 or not set("".join(a.decisions for a in answers)) <= {"0", "1"}:
            raise ValueError("rows of 0 and 1 of one length were expected")
    return answers


def _answer(row: dict[str, str], classes: Sequence[str]) -> Answer:
    file, probability = PurePosixPath(row["file"]), float(row["probability"])
    if file.is_absolute() or ".." in file.parts:
        raise ValueError(f"{brief(row['file'])} is outside the task's folder")
    if not {row["class"], row["answer"]} <= set(classes) or not 0 <= probability <= 1:
        raise ValueError(f"{brief(list(row.values()))} is no answer")
    blocks = row["fine_tuned_blocks"]
    return Answer(row["file"], row["class"], row["answer"], probability, blocks)


def confusion(runs: Sequence[Run]) -> np.ndarray:
    """Numbers of val pictures, K classes x K answers, summed over the runs of a task."""
    label = {name: place for place, name in enumerate(runs[0].classes)}
    counts = np.zeros((len(label), len(label)), dtype=np.int64)
    for run in runs:
        for answer in read_answers(run):
            counts[label[answer.category], label[answer.answer]] += 1
    return counts


def confident_mistakes(study: Study, variant: Variant) -> dict[str, list[Answer]]:
    """By task the wrong answers of the first seed with the highest probabilities."""
    found = {}
    for task in study.tasks:
        for run in study.answered(variant, task)[:1]:
            wrong = [each for each in read_answers(run) if each.answer != each.category]
            wrong.sort(key=lambda answer: (-answer.probability, answer.file))
            if wrong:
                found[task] = wrong[:MOST_MISTAKES]
    return found


def read_pictures(folder: Path, files: Sequence[str]) -> dict[str, np.ndarray] | str:
    """Pixels H x W x 3 by file; or what is wrong, if not all of them can be read."""
    pixels = {}
    with warnings.catch_warnings():
        refuse_bombs()
        for file in files:
            pixels[file] = decoded(folder / file, Reading(SIDE, "bicubic", photographs=True))
            if isinstance(pixels[file], str):
                return pixels[file]
    return pixels
