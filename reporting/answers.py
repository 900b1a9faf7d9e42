"""What runs on own pictures answered on val after their last epoch, from their val_answers.csv."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.answers import COLUMNS, VAL_ANSWERS
from image_cache.decoding import Reading, all_decoded
from reporting.runs import Run, Variant, check_decisions, intact
from reporting.study import Study
from runtime.errors import brief
from runtime.files import leads_outside

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
        check_decisions([answer.decisions for answer in answers])
    return answers


def _answer(row: dict[str, str], classes: Sequence[str]) -> Answer:
    probability = float(row["probability"])
    if leads_outside(row["file"]):
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
    reading = Reading(SIDE, "bicubic", photographs=True)
    results = list(all_decoded((folder / file for file in files), reading))
    wrong = [result for result in results if isinstance(result, str)]
    return wrong[0] if wrong else dict(zip(files, results, strict=True))
