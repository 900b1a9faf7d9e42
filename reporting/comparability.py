"""In which points a study is not what the published figures were measured on.

Published rows are test accuracies of networks that start from ImageNet's 1000 classes and learn
the official train and val images at 72 pixels, cropped to 64. Of their recipes only that of
SpotTune's released code is known, so it stands for all. Figures that differ in any of this never
share a table with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields

from decathlon import COLUMNS, SOURCE, TASK_BY_NAME
from engine.settings import BEYOND_RELEASED
from methods.registry import METHODS, Options
from models.resnet26 import PAPER_WIDTH
from reporting.runs import Run
from reporting.study import Study

PUBLISHED, RELEASED = "published", "released code"
# By setting: what it must be, who used it, and the setting in words.
EXPECTED = {
    "resize": (72, PUBLISHED, "shorter side of the images, in pixels"),
    "crop": (64, PUBLISHED, "side of the crops, in pixels"),
    "width": (PAPER_WIDTH, PUBLISHED, "channels in the stem of the network"),
    "train_split": ("trainval", PUBLISHED, "images learnt from"),
    "epochs": (110, RELEASED, "epochs"),
    "milestones": ((40,), RELEASED, "epochs after which learning rates drop"),
    "batch_size": (128, RELEASED, "images per step"),
    "lr": (0.1, RELEASED, "learning rate"),
    "lr_agent": (0.01, RELEASED, "learning rate of the policy network"),
    "precision": ("fp32", RELEASED, "precision"),
    "policy": ("sample", RELEASED, "decisions at test time"),
}
# These change no result on their own: torch.compile, a checkpoint more, and what belongs to a
# method.
UNCOUNTED = {"compiled", "keep_best", *(each.name for each in fields(Options))}
COUNTED = {name: value for name, value in BEYOND_RELEASED.items() if name not in UNCOUNTED}
EXPECTED |= {name: (value, RELEASED, name.replace("_", " ")) for name, value in COUNTED.items()}


def departures(study: Study) -> list[str]:
    """What differs; empty for test scores of runs as published. Of the Decathlon only."""
    return [*_of_scores(study), *_of_data(study), *_of_settings(study.runs)]


def _of_scores(study: Study) -> Iterator[str]:
    """Published figures are of the official test images of all ten tasks."""
    images = {(run.task, run.test["images"]) for run in (*study.sources, *study.runs) if run.test}
    if not images:
        yield "scored images: val (published: test)"
        return
    for task, number in sorted(images):
        if number != TASK_BY_NAME[task].num_test:
            official = f"{TASK_BY_NAME[task].num_test:,}"
            yield f"data: {task} was scored on {number:,} test images, officially {official}"
    if unscored := sorted(set(COLUMNS) - {task for task, _ in images}, key=COLUMNS.index):
        yield f"tasks: no test score of {', '.join(unscored)} (published: all ten)"


def _of_data(study: Study) -> Iterator[str]:
    """The source network, the classes of the targets, and targets that are not there."""
    source = study.source and study.source.num_classes
    starts_from_source = any(METHODS[run.method].from_source for run in study.runs)
    if starts_from_source and source != SOURCE.num_classes:
        found = f"a network trained on {source} classes" if source else "not among these runs"
        yield f"source: {found} (published: {SOURCE.num_classes} classes of ImageNet)"
    classes = {run.task: run.num_classes for run in study.runs}
    other = [
        f"{task} has {classes[task]} classes, officially {TASK_BY_NAME[task].num_classes}"
        for task in study.tasks
        if classes[task] != TASK_BY_NAME[task].num_classes
    ]
    if other:
        yield f"data: {'; '.join(other)}"
    if absent := [task for task in COLUMNS if task not in (*study.tasks, SOURCE.name)]:
        yield f"tasks: without {', '.join(absent)} (published: all ten)"


def _of_settings(runs: Sequence[Run]) -> Iterator[str]:
    readers = {
        "lr_agent": [run for run in runs if METHODS[run.method].has_policy_network],
        "policy": [run for run in runs if METHODS[run.method].policies],
    }
    for name, (expected, whose, words) in EXPECTED.items():
        if other := sorted({run.setting(name) for run in readers.get(name, runs)} - {expected}):
            yield f"{words}: {', '.join(map(_text, other))} ({whose}: {_text(expected)})"
    for task, decay in sorted({(run.task, run.settings.weight_decay) for run in runs}):
        released = TASK_BY_NAME[task].weight_decay
        if decay != released:
            yield f"weight decay on {task}: {decay:g} (released code: {released:g})"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " and ".join(map(str, value)) or "never"
    return value if isinstance(value, str) else f"{value:g}"
