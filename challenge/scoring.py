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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from challenge.submissions import Answers, Labels
from decathlon import (
    ABOUT_PUBLISHED,
    COLUMNS,
    PUBLISHED,
    TASK_BY_NAME,
    TASKS,
    decathlon_score,
    task_points,
)

PROBLEMS = ("missing", "doubled", "foreign", "unknown")
HEADS = ["ImNt", "Airc", "C100", "DPed", "DTD", "GTSR", "Flwr", "OGlt", "SVHN", "UCF", "mean"]


@dataclass(frozen=True)
class TaskScore:
    """One task's numbers of images, its accuracy in percent, its points."""

    images: int
    correct: int
    accuracy: float
    points: float
    missing: int
    doubled: int
    foreign: int
    unknown: int

    @property
    def is_answered(self) -> bool:
        return self.missing < self.images


@dataclass(frozen=True)
class Report:
    """The scores of the tasks that have labels, and what a reader must know about them."""

    split: str
    tasks: Mapping[str, TaskScore]
    mean: float | None  # None where no task was answered
    score: float
    coverage: str  # how many tasks the mean and S are of; empty where both are of all ten
    problems: Sequence[str]
    notes: Sequence[str]


def score(
    answers: Answers, labels: Mapping[str, Labels], split: str, asked: Sequence[str]
) -> Report:
    """Compare the answers with the labels, by task; `asked` are the tasks to be scored."""
    unknown: dict[str, list[int]] = {}  # by the task whose number an id carries, or "no task"
    for image in answers.keys() - {image for one in labels.values() for image in one.by_image}:
        owner = next((task.name for task in TASKS if task.owns(image)), "no task")
        unknown.setdefault(owner, []).append(image)
    tasks, problems = {}, []
    for name, one in labels.items():
        found = {image: problem_of(answers.get(image, []), one) for image in one.by_image}
        found |= dict.fromkeys(sorted(unknown.get(name, [])), "unknown")
        counts = {kind: list(found.values()).count(kind) for kind in PROBLEMS}
        correct = sum(answers.get(image) == [right] for image, right in one.by_image.items())
        accuracy = 100 * correct / len(one.by_image)
        points = task_points(accuracy, TASK_BY_NAME[name].max_error)
        tasks[name] = TaskScore(len(one.by_image), correct, accuracy, points, **counts)
        for kind in filter(counts.get, PROBLEMS):
            some = _first_few([image for image, problem in found.items() if problem == kind])
            problems.append(f"{name}, {kind}: {some}")
    if strays := sorted(unknown.get("no task", [])):
        problems.append(f"no task, unknown: {_first_few(strays)}")
    accuracies = answered_accuracies(tasks)
    coverage = (
        f"mean over {len(accuracies)} of {len(TASKS)} tasks (those answered), "
        f"S over {len(tasks)} of {len(TASKS)}"
    )
    return Report(
        split=split,
        tasks=tasks,
        mean=fmean(accuracies.values()) if accuracies else None,
        score=decathlon_score(accuracies),
        coverage=coverage if len(accuracies) < len(TASKS) else "",
        problems=problems,
        notes=[*_notes(answers, labels, split, asked), *ABOUT_PUBLISHED],
    )


def answered_accuracies(tasks: Mapping[str, TaskScore]) -> dict[str, float]:
    return {name: task.accuracy for name, task in tasks.items() if task.is_answered}


def problem_of(given: Sequence[int], labels: Labels) -> str | None:
    """The kind of problem that an image with these answers has."""
    if not given:
        return "missing"
    if len(given) > 1:
        return "doubled"
    return None if given[0] in labels.categories else "foreign"


def _first_few(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")


def _notes(
    answers: Answers, labels: Mapping[str, Labels], split: str, asked: Sequence[str]
) -> Iterator[str]:
    """What may be wrong with the answers, and why a comparison is not like for like."""
    unanswered = [name for name in labels if not answers.keys() & labels[name].by_image.keys()]
    if unanswered:
        names = ", ".join(unanswered)
        yield f"NOT ANSWERED: {names}. They count 0 points in S and are left out of the mean."
    if len(unanswered) == len(labels):
        yield f"NO TASK IS ANSWERED: was --split {split} meant?"
    if unlabelled := [name for name in asked if name not in labels]:
        names = ", ".join(unlabelled)
        yield f"NOT SCORED: {names}. There is no <task>_{split}.json with labels for them."

    reasons = ["yours are on val, not on test"] if split == "val" else []
    for name, one in labels.items():
        task, found = TASK_BY_NAME[name], (len(one.by_image), len(one.categories))
        official = (task.num_val if split == "val" else task.num_test, task.num_classes)
        if found != official:
            reasons.append(
                f"{name} has {found[0]:,} images, {found[1]:,} classes "
                f"(officially {official[0]:,}, {official[1]:,})"
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


def _task_table(report: Report) -> list[str]:
    lines = [f"{'task':<14}{'images':>8}{'correct':>9}{'accuracy %':>12}{'points':>9}  problems"]
    for name, task in report.tasks.items():
        counts = {kind: getattr(task, kind) for kind in PROBLEMS}
        remark = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count) or "-"
        lines.append(
            f"{name:<14}{task.images:>8,}{task.correct:>9,}{task.accuracy:>12.2f}"
            f"{task.points:>9.1f}  {remark if task.is_answered else 'not answered'}"
        )
    last = f"{'mean, and S':<31}{_figure(report.mean):>12}{report.score:>9.1f}  {report.coverage}"
    return [*lines, last.rstrip()]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _published_table(report: Report) -> list[str]:
    """The user's own row above the published ones."""
    own = f"yours ({report.split})" + (" +" if report.coverage else "")
    table = [(own, answered_accuracies(report.tasks), report.mean, f"{report.score:.0f}")]
    table += [(row.method, row.accuracies, row.mean, row.shown_score) for row in PUBLISHED]
    lines = [f"{'accuracy %':<23}" + "".join(f"{head:>7}" for head in HEADS) + f"{'S':>11}"]
    for name, accuracies, mean, points in table:
        cells = [_figure(accuracies.get(task)) for task in COLUMNS] + [_figure(mean)]
        lines.append(f"{name:<23}" + "".join(f"{cell:>7}" for cell in cells) + f"{points:>11}")
    return [*lines, *([f"+ {report.coverage}"] if report.coverage else [])]
