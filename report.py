"""Write a report of finished runs, as Markdown and as one HTML page, from their records.

    python report.py FOLDER [FOLDER ...] --out DIR

writes DIR/report.md, DIR/report.html and DIR/figures/. The same records give the same bytes. Runs
stand in one table only if they are comparable. They share one with published figures only if they
were trained and tested as those were; otherwise the page says what differs.
"""

from collections.abc import Sequence

from engine.arguments import add_image_arguments
from image_cache.packed import DataFolders
from reporting.extremes import find_extremes
from reporting.figures import accuracy_figures, decision_figures, extremes_picture, images_decide
from reporting.page import FIGURES, report_text
from reporting.plots import save
from reporting.study import read_study
from runtime.cli import Parser, folder_name
from runtime.errors import run_script
from runtime.files import write_whole
from runtime.progress import say


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Write a report of finished runs, as Markdown and as one HTML page.")
    add = parser.add_argument
    add("folders", nargs="+", type=folder_name, metavar="FOLDER",
        help="folders with runs of main.py anywhere below them")  # fmt: skip
    add("--out", type=folder_name, required=True, metavar="DIR", help="where to write")
    add_image_arguments(parser)
    args = parser.parse_args(argv)

    study = read_study(args.folders)
    of_accuracy, of_decisions = list(accuracy_figures(study)), list(decision_figures(study))
    annotations, packed = args.datadir / "annotations", args.datadir / "packed"
    folders = DataFolders(args.datadir, args.imdbdir or annotations, args.cachedir or packed)
    remarks = []
    for variant in filter(images_decide, study.methods):
        examples, missing = find_extremes(study, variant, folders)
        remarks += [f"Images of {variant.title}, {remark}" for remark in missing]
        if examples:
            of_decisions.append(extremes_picture(variant, examples))

    figures = args.out / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    for picture in (*of_accuracy, *of_decisions):
        for suffix in ("png", "svg"):
            save(picture.figure, figures / f"{picture.name}.{suffix}")
        say(f"{figures / picture.name}.png, .svg")
    for name, form in (("report.md", "markdown"), ("report.html", "html")):
        text = report_text(study, form, of_accuracy, of_decisions, remarks, figures)
        write_whole(args.out / name, text.encode())
        say(f"{args.out / name}")


if __name__ == "__main__":
    run_script(main)
