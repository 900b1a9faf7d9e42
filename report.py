"""Write a report of finished runs, as Markdown and as one HTML page, from their records.

    python report.py FOLDER [FOLDER ...] --out DIR

writes DIR/report.md, DIR/report.html and DIR/figures/. The same records give the same bytes. Runs
stand in one table only if they are comparable. They share one with published figures only if they
were trained and tested as those were; otherwise the page says what differs. Runs on own pictures
have tables of their own, with their classes, and --pictures shows what was mistaken for what.
"""

from collections.abc import Sequence
from pathlib import Path

from engine.arguments import add_image_arguments
from image_cache.packed import DataFolders
from reporting.answers import confident_mistakes, read_pictures
from reporting.extremes import find_extremes
from reporting.figures import (
    Picture,
    accuracy_figures,
    confusion_pictures,
    decision_figures,
    extremes_picture,
    images_decide,
    mistakes_picture,
)
from reporting.page import FIGURES, Part, report_text
from reporting.plots import save
from reporting.study import Study, read_studies
from reporting.tables import Table, mistakes_table
from runtime.cli import Parser, folder_name
from runtime.errors import run_script
from runtime.files import write_whole
from runtime.progress import say


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Write a report of finished runs, as Markdown and as one HTML page.")
    add = parser.add_argument
    # fmt: off
    add("folders", nargs="+", type=folder_name, metavar="FOLDER",
        help="folders with runs of main.py or train_folder.py anywhere below them")
    add("--out", type=folder_name, required=True, metavar="DIR", help="where to write")
    add("--pictures", type=folder_name, metavar="DIR",
        help="holds the folders that train_folder.py was given, to draw some of their pictures; "
             "unset: their names are listed")
    # fmt: on
    add_image_arguments(parser)
    args = parser.parse_args(argv)

    studies = read_studies(args.folders)
    annotations, packed = args.datadir / "annotations", args.datadir / "packed"
    folders = DataFolders(args.datadir, args.imdbdir or annotations, args.cachedir or packed)
    parts = [part_of(study, folders, args.pictures) for study in studies]
    figures = args.out / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for picture in (*part.of_accuracy, *part.of_answers, *part.of_decisions):
            for suffix in ("png", "svg"):
                save(picture.figure, figures / f"{picture.name}.{suffix}")
            say(f"{figures / picture.name}.png, .svg")
    for name, form in (("report.md", "markdown"), ("report.html", "html")):
        text = report_text(parts, form, figures)
        write_whole(args.out / name, text.encode())
        say(f"{args.out / name}")


def part_of(study: Study, folders: DataFolders, pictures: Path | None) -> Part:
    """A study with all its figures; `pictures` holds the folders of own pictures."""
    of_decisions, remarks = list(decision_figures(study)), []
    for variant in filter(images_decide, study.methods):
        examples, missing = find_extremes(study, variant, folders, pictures)
        remarks += [f"Images of {variant.title}, {remark}" for remark in missing]
        if examples:
            of_decisions.append(extremes_picture(study, variant, examples))
    of_answers, mistakes = [], []
    if study.is_own:
        of_answers, mistakes, more = own_answers(study, pictures)
        remarks += more
    of_accuracy = list(accuracy_figures(study))
    return Part(study, of_accuracy, of_decisions, of_answers, mistakes, remarks)


def own_answers(
    study: Study, pictures: Path | None
) -> tuple[list[Picture], list[Table], list[str]]:
    """Confusions, and the most confident mistakes: drawn, or in a table with a remark why."""
    drawn, listed, remarks = list(confusion_pictures(study)), [], []
    for variant in study.methods:
        mistakes, pixels, unseen = confident_mistakes(study, variant), {}, {}
        for task, answers in mistakes.items():
            found = pictures and read_pictures(pictures / task, [each.file for each in answers])
            (pixels if isinstance(found, dict) else unseen)[task] = found
        if pixels:
            seen = {task: mistakes[task] for task in pixels}
            drawn.append(mistakes_picture(study, variant, seen, pixels))
        if unseen:
            listed.append(mistakes_table(variant, {task: mistakes[task] for task in unseen}))
        remarks += [
            f"Mistakes of {variant.title} on {t} are not drawn: {why}."
            for t, why in unseen.items()
            if why
        ]
    if listed and pictures is None:
        remarks.append("They are drawn with --pictures DIR, which holds the tasks' folders.")
    return drawn, listed, remarks


if __name__ == "__main__":
    run_script(main)
