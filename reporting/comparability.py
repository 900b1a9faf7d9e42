"""In which points a study is not what the published figures were measured on.

Published rows are test accuracies of networks that start from ImageNet's 1000 classes and learn
the official train and val images at 72 pixels, cropped to 64. Of their recipes only that of
SpotTune's released code is known, so it stands for all. Figures that differ in any of this never
share a table with them.
"""

from collections.abc import Iterator, Sequence

from decathlon import COLUMNS, SOURCE, TASK_BY_NAME
from methods.registry import METHODS
from models.resnet26 import PAPER_WIDTH
from reporting.runs import Run, own_policies
from reporting.study import Study

# By setting, what the published figures were measured with, what SpotTune's released code trains
# and tests with, and the setting in words.
PUBLISHED = {
    "resize": (72, "shorter side of the images, in pixels"),
    "crop": (64, "side of the crops, in pixels"),
    "width": (PAPER_WIDTH, "channels in the stem of the network"),
    "train_split": ("trainval", "images learnt from"),
}
RELEASED = {
    "epochs": (110, "epochs"),
    "milestones": ((40,), "epochs after which learning rates drop"),
    "batch_size": (128, "images per step"),
    "lr": (0.1, "learning rate"),
    "lr_agent": (0.01, "learning rate of the policy network"),
    "precision": ("fp32", "precision"),
    "policy": ("sample", "decisions at test time"),
}


def departures(study: Study) -> list[str]:
    """What differs besides the images that are scored; empty for runs as published."""
    absent = [task for task in COLUMNS if task not in (*study.tasks, SOURCE.name)]
    found = [f"tasks: without {', '.join(absent)} (published: all ten)"] if absent else []
    return [*_of_source(study), *_of_classes(study), *found, *_of_settings(study.runs)]


def _of_settings(runs: Sequence[Run]) -> Iterator[str]:
    """The settings that differ."""
    read = {
        "lr_agent": [run for run in runs if METHODS[run.method].has_policy_network],
        "policy": [run for run in runs if own_policies(run.method)],
    }
    for name, (expected, words) in (PUBLISHED | RELEASED).items():
        whose = "published" if name in PUBLISHED else "released code"
        if other := sorted({run.setting(name) for run in read.get(name, runs)} - {expected}):
            yield f"{words}: {', '.join(map(_text, other))} ({whose}: {_text(expected)})"
    decays = {(run.task, run.settings.weight_decay) for run in runs}
    official = {(task, TASK_BY_NAME[task].weight_decay) for task, _ in decays}
    for task, decay in sorted(decays - official):
        released = TASK_BY_NAME[task].weight_decay
        yield f"weight decay on {task}: {decay:g} (released code: {released:g})"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " and ".join(map(str, value)) or "never"
    return value if isinstance(value, str) else f"{value:g}"


def _of_source(study: Study) -> Iterator[str]:
    if not any(METHODS[run.method].from_source for run in study.runs):
        return
    official = f"{SOURCE.num_classes} classes of ImageNet"
    classes = study.source and study.source.num_classes
    if classes is None:
        yield f"source: how many classes it was trained on was not recorded (published: {official})"
    elif classes != SOURCE.num_classes:
        yield f"source: a network trained on {classes} classes (published: {official})"


def _of_classes(study: Study) -> Iterator[str]:
    """The targets with other classes than the official ones, as far as is known."""
    classes = {run.task: run.num_classes for run in study.runs if run.num_classes is not None}
    other = [
        f"{task} has {classes[task]} classes, officially {TASK_BY_NAME[task].num_classes}"
        for task in study.tasks
        if classes.get(task, TASK_BY_NAME[task].num_classes) != TASK_BY_NAME[task].num_classes
    ]
    if other:
        yield f"data: {'; '.join(other)}"
    unknown = [task for task in study.tasks if task not in classes]
    if unknown:
        yield f"data: numbers of classes were not recorded, for {', '.join(unknown)}"


def departures_on_test(study: Study) -> list[str]:
    """What keeps the study's test accuracies from sharing a table with published ones."""
    scored = [run for run in (*study.sources, *study.runs) if run.test]
    odd = dict.fromkeys(
        f"{run.task} was scored on {run.test['images']:,} test images, officially "
        f"{TASK_BY_NAME[run.task].num_test:,}"
        for run in scored
        if run.test["images"] != TASK_BY_NAME[run.task].num_test
    )
    tasks = {run.task for run in scored}
    unscored = [task for task in COLUMNS if task not in tasks]
    found = departures(study)
    if odd:
        found.append(f"data: {'; '.join(odd)}")
    if unscored:
        found.append(f"tasks: no test score of {', '.join(unscored)} (published: all ten)")
    return found
