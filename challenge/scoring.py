"""Score the answers to a split: accuracy per task, their mean, and S, beside the published rows.

Answers and labels are matched by image id, never by position. An image is correct if it has one
answer and that is its category:

    missing   no answer: wrong, because the challenge asks for an answer to every image
    doubled   several answers: wrong, even if one is right (our choice; the server's is unknown)
    foreign   an answer that is none of the task's categories: wrong, and named
    unknown   an image id without a label in this split: changes no figure, but is named

The mean is over the tasks that were answered at all. In S a task without answers costs its points.
A task without labels is not scored. Accuracies are in percent; a task is worth 0 to 1000 points.
"""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from challenge.submissions import Answers, Labels
from decathlon import (
    ABOUT_PUBLISHED,
    COLUMNS,
    IDS_PER_TASK,
    PUBLISHED,
    TARGETS,
    TASK_BY_NAME,
    TASKS,
    DecathlonTask,
    decathlon_score,
    task_points,
)

SPLITS = ("train", "val", "test")  # in the order of the split's digit in an image id
HEADS = ["ImNt", "Airc", "C100", "DPed", "DTD", "GTSR", "Flwr", "OGlt", "SVHN", "UCF", "mean"]


@dataclass(frozen=True)
class TaskResult:
    """One task's counts, and the ids of the images that have each kind of problem."""

    task: DecathlonTask
    classes: int
    images: int
    correct: int
    problems: Mapping[str, Sequence[int]]

    @property
    def is_answered(self) -> bool:
        return len(self.problems["missing"]) < self.images

    @property
    def accuracy(self) -> float:
        return 100 * self.correct / self.images

    @property
    def points(self) -> float:
        return task_points(self.accuracy, self.task.max_error)


@dataclass(frozen=True)
class Report:
    """The results of the tasks that have labels, and what a reader must know about them."""

    split: str
    results: Sequence[TaskResult]
    notes: Sequence[str]

    @property
    def accuracies(self) -> dict[str, float]:
        """Of the tasks that were answered, by name."""
        return {result.task.name: result.accuracy for result in self.results if result.is_answered}

    @property
    def mean(self) -> float | None:
        """None where no task was answered."""
        return fmean(self.accuracies.values()) if self.accuracies else None

    @property
    def score(self) -> float:
        return decathlon_score(self.accuracies)

    @property
    def coverage(self) -> str:
        """How many tasks the mean and S are of; empty where both are of all ten."""
        if len(self.accuracies) == len(TASKS):
            return ""
        return (
            f"mean over {len(self.accuracies)} of {len(TASKS)} tasks (those answered), "
            f"S over {len(self.results)} of {len(TASKS)}"
        )

    @property
    def problems(self) -> list[str]:
        """The first few images of each kind of problem in each task."""
        return [
            f"{result.task.name}, {kind}: {_first_few(ids)}"
            for result in self.results
            for kind, ids in result.problems.items()
            if ids
        ]


def score(
    answers: Answers, labels: Mapping[str, Labels], split: str, tasks: Sequence[str]
) -> Report:
    """Compare the answers with the labels, by task; `tasks` are those that were asked for."""
    unknown: dict[str, list[int]] = {}  # by the task whose number an id carries, or "no task"
    for image in answers.keys() - {image for one in labels.values() for image in one.by_image}:
        owner = next((task.name for task in TASKS if task.owns(image)), "no task")
        unknown.setdefault(owner, []).append(image)
    results = [
        score_task(TASK_BY_NAME[name], one, answers, sorted(unknown.get(name, [])))
        for name, one in labels.items()
    ]
    notes = [
        *_split_notes(answers, unknown, split),
        *_coverage_notes(results, unknown, split, tasks),
        *_likeness_notes(results, split),
        *ABOUT_PUBLISHED,
    ]
    return Report(split, results, notes)


def score_task(
    task: DecathlonTask, labels: Labels, answers: Answers, unknown: Sequence[int]
) -> TaskResult:
    """Count right answers and name the problems; `unknown` are ids of the task without a label."""
    correct, missing, doubled, foreign = 0, [], [], []
    for image, category in labels.by_image.items():
        given = answers.get(image, [])
        if not given:
            missing.append(image)
        elif len(given) > 1:
            doubled.append(image)
        elif given[0] not in labels.categories:
            foreign.append(image)
        correct += given == [category]
    problems = {"missing": missing, "doubled": doubled, "foreign": foreign, "unknown": unknown}
    return TaskResult(task, len(labels.categories), len(labels.by_image), correct, problems)


# Notes.


def _split_notes(
    answers: Answers, unknown: Mapping[str, Sequence[int]], split: str
) -> Iterator[str]:
    """A hint when nearly all answers are to unknown images, and most of those to another split's.

    Ids tell their split where the running index stays under 100,000: not in imagenet12.
    """
    ids = [image for task in TARGETS for image in unknown.get(task.name, [])]
    digits = Counter(image % IDS_PER_TASK // 100_000 for image in ids)
    nearly_all = sum(map(len, unknown.values())) > 0.9 * len(answers)
    for digit, other in enumerate(SPLITS):
        if nearly_all and other != split and digits[digit] > len(ids) / 2:
            hint = f"was --split {other} meant?" if other != "train" else "it is not scored."
            yield f"WRONG SPLIT? These look like answers to the {other} split; {hint}"


def _coverage_notes(
    results: Sequence[TaskResult],
    unknown: Mapping[str, Sequence[int]],
    split: str,
    tasks: Sequence[str],
) -> Iterator[str]:
    """Which tasks are not answered or not scored, and which image ids are of no task at all."""
    if unanswered := [result.task.name for result in results if not result.is_answered]:
        yield (
            f"NOT ANSWERED: {', '.join(unanswered)}. They count 0 points in S and are left out "
            f"of the mean."
        )
    scored = [result.task.name for result in results]
    for names, reason in (
        (tasks, f"there is no <task>_{split}.json with labels for"),
        ([task.name for task in TASKS if task.name not in tasks], "left out with --tasks:"),
    ):
        if names := [name for name in names if name not in scored]:
            answered = sum(len(unknown.get(name, [])) for name in names)
            yield f"NOT SCORED, {reason} {', '.join(names)} ({answered:,} images answered)."
    if strays := unknown.get("no task"):
        some = _first_few(sorted(strays))
        yield f"Answered image ids that carry the number of no task, {len(strays):,}: {some}"


def _likeness_notes(results: Sequence[TaskResult], split: str) -> Iterator[str]:
    """Why a comparison with published rows is not like for like."""
    reasons = ["yours are on val, not on test"] if split == "val" else []
    for result in results:
        task = result.task
        official = task.num_val if split == "val" else task.num_test
        if (result.images, result.classes) != (official, task.num_classes):
            reasons.append(
                f"{task.name} has {result.images:,} images, {result.classes:,} classes "
                f"(officially {official:,}, {task.num_classes:,})"
            )
    if reasons:
        yield f"Not like for like with the published rows: {'; '.join(reasons)}."


# Showing.


def as_text(report: Report) -> str:
    """The tables and notes to print."""
    form = {"width": 100, "subsequent_indent": "  ", "break_on_hyphens": False}
    notes = [textwrap.fill(f"- {note}", **form) for note in report.notes]
    parts = [_task_table(report), report.problems, _published_table(report), notes]
    return "\n\n".join("\n".join(part) for part in parts if part)


def as_record(report: Report) -> dict[str, object]:
    """The same figures as --json writes them."""
    tasks = {
        result.task.name: {
            "images": result.images,
            "correct": result.correct,
            "accuracy": result.accuracy,
            "points": result.points,
            **{kind: len(images) for kind, images in result.problems.items()},
        }
        for result in report.results
    }
    return {
        "split": report.split,
        "tasks_scored": len(tasks),
        "tasks_answered": len(report.accuracies),
        "mean": report.mean,
        "score": report.score,
        "tasks": tasks,
        "problems": report.problems,
        "notes": report.notes,
    }


def _task_table(report: Report) -> list[str]:
    lines = [f"{'task':<14}{'images':>8}{'correct':>9}{'accuracy %':>12}{'points':>9}  problems"]
    for result in report.results:
        counts = [f"{len(images):,} {kind}" for kind, images in result.problems.items() if images]
        remark = (", ".join(counts) or "-") if result.is_answered else "not answered"
        lines.append(
            f"{result.task.name:<14}{result.images:>8,}{result.correct:>9,}"
            f"{result.accuracy:>12.2f}{result.points:>9.1f}  {remark}"
        )
    last = f"{'mean, and S':<31}{_figure(report.mean):>12}{report.score:>9.1f}  {report.coverage}"
    return [*lines, last.rstrip()]


def _first_few(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _published_table(report: Report) -> list[str]:
    """The user's own row above the published ones."""
    own = f"yours ({report.split})" + (" +" if report.coverage else "")
    table = [(own, report.accuracies, report.mean, f"{report.score:.0f}")]
    table += [(row.method, row.accuracies, row.mean, row.shown_score) for row in PUBLISHED]
    lines = [f"{'accuracy %':<23}" + "".join(f"{head:>7}" for head in HEADS) + f"{'S':>11}"]
    for name, accuracies, mean, points in table:
        cells = [_figure(accuracies.get(task)) for task in COLUMNS] + [_figure(mean)]
        lines.append(f"{name:<23}" + "".join(f"{cell:>7}" for cell in cells) + f"{points:>11}")
    return [*lines, *([f"+ {report.coverage}"] if report.coverage else [])]
