"""Answers about own pictures as a CSV file: what predict.py gives, and a run's last epoch on val.

file                  as it was given
class                 the true class; empty if it is not known
answer, probability   the predicted class; from 0 to 1
second, second_probability
fine_tuned_blocks     "0" for a kept and "1" for a fine-tuned block; empty if none decides
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from engine.evaluation import Predictions
from runtime.files import csv_text, write_whole

VAL_ANSWERS = "val_answers.csv"
COLUMNS = ("file", "class", "answer", "probability", "second", "second_probability")
COLUMNS += ("fine_tuned_blocks",)


def answers(
    names: Sequence[str],
    classes: Sequence[str],
    predictions: Predictions,
    truth: Sequence[str] | None = None,
) -> Iterator[dict[str, object]]:
    """A row for each picture, with the columns above."""
    for place, (name, row) in enumerate(zip(names, predictions.decision_rows, strict=True)):
        first, second = map(float, predictions.probabilities[place])
        yield {
            "file": name,
            "class": truth[place] if truth else "",
            "answer": classes[predictions.labels[place]],
            "probability": round(first, 6),
            "second": classes[predictions.runners_up[place]],
            "second_probability": round(second, 6),
            "fine_tuned_blocks": row,
        }


def write_answers(
    path: Path,
    names: Sequence[str],
    classes: Sequence[str],
    predictions: Predictions,
    truth: Sequence[str] | None = None,
) -> None:
    """Write the rows of `answers` to a CSV file, whole or not at all."""
    text = as_csv(answers(names, classes, predictions, truth))
    write_whole(path, text.encode(errors="surrogateescape"))


def as_csv(rows: Iterable[dict[str, object]]) -> str:
    """The rows of `answers` under the names of the columns."""
    return csv_text(COLUMNS, rows)
