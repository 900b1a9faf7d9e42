"""Draw the figures of a study from the records that main.py left: PNG and SVG.

    python figures.py FOLDER [FOLDER ...] --out DIR

    learning_val, learning_train   the course of training, a panel a task, a line a method
    accuracy_and_parameters        mean accuracy against stored parameters
    fine_tuned_share_*             tasks x blocks: share of images that use the fine-tuned copy
    blocks_per_image_*             number of fine-tuned blocks per image
    extremes_*                     images with the most and the fewest fine-tuned blocks

report.py draws the same ones.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from decathlon import COLUMNS, SOURCE
from engine.arguments import add_image_arguments
from image_cache.packed import DataFolders
from reporting.drawings import (
    COLOURS,
    DASHES,
    SMALLEST_RANGE,
    Curve,
    Look,
    Point,
    blocks_figure,
    curves_figure,
    extremes_figure,
    tradeoff_figure,
)
from reporting.extremes import find_extremes
from reporting.pages import FIGURES, Picture
from reporting.plots import recorded, save, share_figure
from reporting.results import (
    Spread,
    mean_blocks_per_image,
    mean_over_tasks,
    mean_share,
    source_millions,
    total_stored,
    val_scores,
)
from reporting.study import Study, read_study
from reporting.task_runs import Row, own_policies
from runtime.cli import Parser, folder_name
from runtime.errors import run_script
from runtime.progress import say

Drawn = tuple[Picture, Figure]


def looks(study: Study) -> dict[Row, Look]:
    """A colour for each method, the same in every report; dashes tell its k's apart."""
    found = {}
    for row in study.methods:
        same = [other for other in study.methods if other.method == row.method]
        dash = DASHES[same.index(row) % len(DASHES)]
        found[row] = Look(row.title, COLOURS[row.method], dash)
    return found


def seen_in_training(study: Study) -> str:
    """What must be said beside every accuracy on val, if anything."""
    return " (images seen in training)" if study.settings.train_split == "trainval" else ""


# Accuracy.


def accuracy_figures(study: Study) -> Iterator[Drawn]:
    """Learning curves, and accuracy against stored parameters."""
    val, train = curves_of(study, "val_accuracy"), curves_of(study, "train_loss")
    band = "Mean over seeds; the band is one standard deviation"
    if any(len(curve.epochs) > 1 for lines in val.values() for curve in lines):
        title = f"accuracy on val, %{seen_in_training(study)}"
        picture = Picture("learning_val", f"Learning curves: {title}. {band}.")
        yield picture, curves_figure(val, title, SMALLEST_RANGE)
    title = "cross-entropy in training"
    yield (
        Picture("learning_train", f"Learning curves: {title}. {band}."),
        curves_figure(train, title),
    )
    points = tradeoff_points(study)
    if len(points) > 1:
        tasks = "one task" if len(study.tasks) == 1 else f"{len(study.tasks)} tasks"
        title = f"mean accuracy on val, %{seen_in_training(study)}"
        caption = (
            f"{title[0].upper()}{title[1:]}, against the parameters stored for {tasks} and the "
            f"source network. Bars: one standard deviation over seeds."
        )
        figure = tradeoff_figure(
            points, source_millions(study), "parameters stored, millions", title
        )
        yield Picture("accuracy_and_parameters", caption), figure


def curves_of(study: Study, field: str) -> dict[str, list[Curve]]:
    """By task a curve of each method, over the epochs that all of its seeds recorded."""
    found = {task: [] for task in study.tasks}
    for row, look in looks(study).items():
        for task in study.tasks:
            courses = [
                dict(zip(*recorded(run.history, field), strict=True))
                for run in study.of(row, task)
                if run.recorded_its_own_way or not field.startswith("val")
            ]
            if not courses:
                continue
            epochs = sorted(set.intersection(*map(set, courses)))
            spreads = [Spread.of(course[epoch] for course in courses) for epoch in epochs]
            mean, std = ([s.mean for s in spreads], [s.std or 0.0 for s in spreads])
            found[task].append(Curve(look, epochs, mean, std))
    return found


def tradeoff_points(study: Study) -> list[Point]:
    """The methods that have a figure on every task."""
    shared = [SOURCE.name] if study.evaluated_sources else []
    tasks = [task for task in COLUMNS if task in (*shared, *study.tasks)]
    points = []
    for row, look in looks(study).items():
        accuracy = mean_over_tasks(val_scores(study, row), tasks)
        stored = total_stored(study, row)
        if accuracy and stored:
            points.append(Point(look, stored.mean, accuracy.mean, accuracy.std or 0.0))
    return points


# Decisions.


def decision_figures(study: Study) -> Iterator[Drawn]:
    """Which blocks are fine-tuned, and how many an image; not of the fair coin's draws."""
    for row in study.methods:
        shares = mean_share(study, row)
        if shares and own_policies(row.method)[:1] != ("sample",):
            title = f"{row.title}: val images that use the fine-tuned block, %"
            yield Picture(f"fine_tuned_share_{row.slug}", f"{title}."), share_figure(shares, title)
        if _images_decide(row) and shares:
            title = f"{row.title}: number of fine-tuned blocks per val image"
            caption = f"{title}. Dotted: the mean."
            figure = blocks_figure(mean_blocks_per_image(study, row), title)
            yield Picture(f"blocks_per_image_{row.slug}", caption), figure


def _images_decide(row: Row) -> bool:
    """Whether each image has decisions of its own that were learnt."""
    return own_policies(row.method)[:1] == ("argmax",)


def extremes_figures(study: Study, folders: DataFolders) -> tuple[list[Drawn], list[str]]:
    """The images with the fewest and the most fine-tuned blocks, and remarks on what is missing."""
    drawn, remarks = [], []
    for row in filter(_images_decide, study.methods):
        found, missing = find_extremes(study, row, folders)
        remarks += [f"Images of {row.title}, {remark}" for remark in missing]
        if found:
            title = f"{row.title}: val images with the fewest and the most fine-tuned blocks"
            caption = f"{title}. Under each image its decisions; first seed."
            picture = Picture(f"extremes_{row.slug}", caption)
            drawn.append((picture, extremes_figure(found, title)))
    return drawn, remarks


# Writing.


def write_figures(drawn: Iterable[Drawn], out: Path) -> list[Picture]:
    """Each as figures/<name>.png and .svg below `out`; returns what was drawn."""
    folder = out / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for picture, figure in drawn:
        for suffix in ("png", "svg"):
            save(figure, folder / f"{picture.name}.{suffix}")
        say(f"{folder / picture.name}.png, .svg")
        written.append(picture)
    return written


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """What figures.py and report.py ask for."""
    parser.add_argument(
        "folders",
        nargs="+",
        type=folder_name,
        metavar="FOLDER",
        help="folders with runs of main.py anywhere below them",
    )
    parser.add_argument(
        "--out", type=folder_name, required=True, metavar="DIR", help="where to write"
    )
    add_image_arguments(parser)


def image_folders(args: argparse.Namespace) -> DataFolders:
    """Where the images of the extremes lie, if they are there."""
    datadir = args.datadir
    return DataFolders(
        datadir, args.imdbdir or datadir / "annotations", args.cachedir or datadir / "packed"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Draw the figures of a study from the records that main.py left.")
    add_study_arguments(parser)
    args = parser.parse_args(argv)
    study = read_study(args.folders)
    extremes, remarks = extremes_figures(study, image_folders(args))
    drawn = [*accuracy_figures(study), *decision_figures(study), *extremes]
    write_figures(drawn, args.out)
    for remark in remarks:
        say(remark)


if __name__ == "__main__":
    run_script(main)
