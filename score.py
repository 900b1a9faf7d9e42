"""Score a results.json offline: accuracy per task, their mean, and S, beside published rows.

The labels are COCO-style files `<task>_<split>.json`, in a folder or a zip. Answers meet labels by
image id, never by position. An image is correct if it has one answer and that is its category:

    missing   no answer: wrong, because the challenge asks for an answer to every image
    doubled   several answers: wrong, even if one is right (our choice; the server's is unknown)
    foreign   an answer that is none of the task's categories: wrong, and named
    unknown   an image id without a label in this split: changes no figure, but is named

A task without labels is not scored; the mean and S are then over fewer than ten tasks, and say so.
Accuracies are in percent; a task is worth 0 to 1000 points.
"""

import argparse
import json
import reprlib
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import decathlon
from challenge.submissions import PUBLIC_LABELS, Answers, Labels, read_answers, read_labels
from decathlon import PUBLISHED, TASK_BY_NAME, TASKS, DecathlonTask
from runtime.cli import Parser
from runtime.errors import SpotTuneError, run_script
from runtime.files import check_place, write_whole

SPLITS = ("train", "val", "test")  # in the order of the split's digit in an image id
HEADS = ["ImNt", "Airc", "C100", "DPed", "DTD", "GTSR", "Flwr", "OGlt", "SVHN", "UCF", "mean", "S"]
ABOUT_PUBLISHED = [
    "Published figures are test accuracies of networks trained on the official data at 72 px.",
    "SpotTune (paper): only ImageNet, the mean and S are confirmed. SpotTune (startune): ImageNet "
    "was not reported; it is the paper's.",
]


@dataclass(frozen=True)
class TaskResult:
    """One task's counts, and for each kind of problem the images that have it, as text."""

    task: DecathlonTask
    classes: int
    images: int
    correct: int
    problems: Mapping[str, Sequence[str]]

    @property
    def accuracy(self) -> float:
        return 100 * self.correct / self.images

    @property
    def points(self) -> float:
        return decathlon.task_points(self.accuracy, self.task.max_error)


@dataclass(frozen=True)
class Report:
    """The results of the tasks that have labels, and what a reader must know about them."""

    split: str
    results: Sequence[TaskResult]
    notes: Sequence[str]

    @property
    def accuracies(self) -> dict[str, float]:
        return {result.task.name: result.accuracy for result in self.results}

    @property
    def score(self) -> float:
        return decathlon.decathlon_score(self.accuracies)


# Scoring.


def owner(any_id: int) -> str:
    """The name of the task whose number an image or category id carries, or "no task"."""
    return next((task.name for task in TASKS if task.owns(any_id)), "no task")


def score_task(
    task: DecathlonTask, labels: Labels, answers: Answers, unknown: Iterable[int]
) -> TaskResult:
    """Count right answers and name the problems; `unknown` are ids of the task without a label."""
    given = {image: answers.get(image, []) for image in labels.by_image}
    foreign = {image: set(own) - labels.categories for image, own in given.items()}
    problems = {
        "missing": [f"{image}" for image, own in given.items() if not own],
        "doubled": [f"{image} ({len(own)} times)" for image, own in given.items() if len(own) > 1],
        "foreign": [
            f"{image} (given {reprlib.repr(min(wrong))} of {owner(min(wrong))})"
            for image, wrong in foreign.items()
            if wrong
        ],
        "unknown": [f"{image}" for image in sorted(unknown)],
    }
    correct = sum(given[image] == [category] for image, category in labels.by_image.items())
    return TaskResult(task, len(labels.categories), len(given), correct, problems)


def score(answers: Answers, labels: Mapping[str, Labels], split: str) -> Report:
    """Compare the answers with the labels of each task (by name) that has any."""
    unknown: dict[str, list[int]] = {}
    for image in answers.keys() - {image for one in labels.values() for image in one.by_image}:
        unknown.setdefault(owner(image), []).append(image)
    results = [
        score_task(TASK_BY_NAME[name], one, answers, unknown.get(name, []))
        for name, one in labels.items()
    ]
    notes = split_notes(answers, unknown, split) + coverage_notes(labels, unknown, split)
    return Report(split, results, notes + likeness_notes(results, split) + ABOUT_PUBLISHED)


def split_notes(answers: Answers, unknown: Mapping[str, list[int]], split: str) -> list[str]:
    """A hint when nearly all answers are to unknown images, and most of those to another split's.

    Ids tell their split where the running index stays under 100,000: not in imagenet12.
    """
    ids = [image for task in decathlon.TARGETS for image in unknown.get(task.name, [])]
    digits = Counter(image % decathlon.IDS_PER_TASK // 100_000 for image in ids)
    nearly_all = sum(map(len, unknown.values())) > 0.9 * len(answers)
    for digit, other in enumerate(SPLITS):
        if nearly_all and other != split and digits[digit] > len(ids) / 2:
            hint = f"was --split {other} meant?" if other != "train" else "it is not scored."
            return [f"WRONG SPLIT? These look like answers to the {other} split; {hint}"]
    return []


def coverage_notes(
    labels: Mapping[str, Labels], unknown: Mapping[str, list[int]], split: str
) -> list[str]:
    """Which tasks are not scored, and which image ids are of no task at all."""
    notes = []
    if absent := [task.name for task in TASKS if task.name not in labels]:
        notes.append(
            f"NOT SCORED, having no <task>_{split}.json with labels: {', '.join(absent)} "
            f"({sum(len(unknown.get(name, [])) for name in absent):,} images answered). Your mean "
            f"and S are over {len(labels)} of {len(TASKS)} tasks, the published ones over all."
        )
    if strays := unknown.get("no task"):
        some = reprlib.repr(sorted(strays))
        notes.append(
            f"Answered image ids that carry the number of no task, {len(strays):,}: {some}"
        )
    return notes


def likeness_notes(results: Iterable[TaskResult], split: str) -> list[str]:
    """Why a comparison with published rows is not like for like."""
    reasons = ["yours are on val, not on test"] if split == "val" else []
    for result in results:
        task = result.task
        official = {"val": task.num_val, "test": task.num_test}[split]
        if (result.images, result.classes) != (official, task.num_classes):
            reasons.append(
                f"{task.name} has {result.images:,} images, {result.classes:,} classes "
                f"(officially {official:,}, {task.num_classes:,})"
            )
    return [f"Not like for like with the published rows: {'; '.join(reasons)}."] if reasons else []


def mean(accuracies: Mapping[str, float]) -> float:
    return sum(accuracies.values()) / len(accuracies)


# Telling.


def coverage(report: Report) -> str:
    """Empty for a whole Decathlon, or else over how many tasks the mean and S are."""
    whole = len(report.results) == len(TASKS)
    return "" if whole else f"{len(report.results)} of {len(TASKS)} tasks"


def task_table(report: Report) -> list[str]:
    lines = [f"{'task':<14}{'images':>8}{'correct':>9}{'accuracy %':>12}{'points':>9}  problems"]
    for result in report.results:
        counts = [f"{len(named):,} {kind}" for kind, named in result.problems.items() if named]
        lines.append(
            f"{result.task.name:<14}{result.images:>8,}{result.correct:>9,}"
            f"{result.accuracy:>12.2f}{result.points:>9.1f}  {', '.join(counts) or '-'}"
        )
    mean_and_score = f"{mean(report.accuracies):>12.2f}{report.score:>9.1f}"
    return [*lines, f"{'mean, and S':<31}{mean_and_score}  {coverage(report)}".rstrip()]


def problem_lines(report: Report) -> list[str]:
    """The first few images of each kind of problem, by id."""
    return [
        f"{result.task.name}, {kind}: {', '.join(named[:3])}{', ...' if len(named) > 3 else ''}"
        for result in report.results
        for kind, named in result.problems.items()
        if named
    ]


def published_table(report: Report) -> list[str]:
    """The user's own row above the published ones; their means are of their ten accuracies."""
    own = f"yours ({report.split})" + (" *" if coverage(report) else "")
    table = [(own, report.accuracies, report.score)]
    table += [(row.method, row.accuracies, row.score) for row in PUBLISHED]
    lines = [f"{'accuracy %':<21}" + "".join(f"{head:>7}" for head in HEADS)]
    for name, accuracies, points in table:
        cells = [f"{accuracies[t]:.2f}" if t in accuracies else "-" for t in decathlon.COLUMNS]
        cells += [f"{mean(accuracies):.2f}", f"{points:.0f}"]
        lines.append(f"{name:<21}" + "".join(f"{cell:>7}" for cell in cells))
    return lines + ([f"* mean and S over {coverage(report)}"] if coverage(report) else [])


def as_text(report: Report) -> str:
    notes = [textwrap.fill(f"- {note}", 100, subsequent_indent="  ") for note in report.notes]
    parts = [task_table(report), problem_lines(report), published_table(report), notes]
    return "\n\n".join("\n".join(part) for part in parts if part)


def as_record(report: Report) -> dict[str, object]:
    """The same figures for a machine to read; of each kind of problem the number of images."""
    tasks = {
        result.task.name: {
            "images": result.images,
            "correct": result.correct,
            "accuracy": result.accuracy,
            "points": result.points,
            **{kind: len(named) for kind, named in result.problems.items()},
        }
        for result in report.results
    }
    return {
        "split": report.split,
        "tasks_scored": len(tasks),
        "mean": mean(report.accuracies),
        "score": report.score,
        "tasks": tasks,
        "problems": problem_lines(report),
        "published": [vars(row) | {"mean": mean(row.accuracies)} for row in PUBLISHED],
        "notes": report.notes,
    }


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse early what could not be written, or would replace what is being scored."""
    check_place(path)
    if any(path.resolve() == other.resolve() for other in inputs):
        raise SpotTuneError(f"--json {path}: this is the file to be scored; name another")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Score answers to the Visual Decathlon, for any split whose labels you have.")
    parser.epilog = f"The {PUBLIC_LABELS}."
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        help="the answers, or a .zip that holds them as results.json; unset: "
        "results.json in a folder named as the split, where submit_*.py write",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        default=Path("data/decathlon-1.0/annotations"),
        metavar="FOLDER_OR_ZIP",
        help="holds the labels, <task>_<split>.json",
    )
    parser.add_argument("--split", choices=SPLITS[1:], default="val", help="what was answered")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    results = args.results or Path(args.split) / "results.json"
    if args.json:
        check_output(args.json, inputs=[results, args.annotations])
    answers = read_answers(results)
    report = score(answers, read_labels(args.annotations, args.split), args.split)
    if args.json:
        write_whole(args.json, (json.dumps(as_record(report), indent=2) + "\n").encode())
    print(as_text(report))


if __name__ == "__main__":
    run_script(main)
