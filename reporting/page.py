"""The report as a page: the text of templates/report.j2, written as Markdown and as HTML.

The text and what it shows are escaped for either form. The HTML page is one file: its figures lie
inside as data URIs, it asks for nothing from elsewhere and runs no script.
"""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from decathlon import ABOUT_PUBLISHED, SOURCE
from reporting import statistics, tables
from reporting.comparability import departures
from reporting.figures import Picture, seen_in_training
from reporting.study import Study
from runtime.errors import printable

TEMPLATES = Path(__file__).parent / "templates"
FIGURES = "figures"  # the folder beside the page that holds each picture as .png and .svg


def report_text(
    study: Study,
    form: str,
    of_accuracy: Sequence[Picture] = (),
    of_decisions: Sequence[Picture] = (),
    remarks: Sequence[str] = (),
    figures: Path | None = None,
) -> str:
    """The whole report; `form` is "markdown" or "html".

    `remarks` tell which images could not be drawn; `figures` is where the pictures lie.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_shown_in_html if form == "html" else _shown_in_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def svg(picture: Picture) -> str:
        return base64.b64encode((figures / f"{picture.name}.svg").read_bytes()).decode()

    environment.filters |= {"one_line": _one_line, "anchor": _anchor, "svg": svg}
    text = environment.get_template("report.j2").render(
        form=f"{form}.j2",
        study=study,
        tables=tables,
        statistics=statistics,
        departures=departures(study),
        seen=seen_in_training(study),
        source=SOURCE.name,
        about_published=ABOUT_PUBLISHED,
        of_accuracy=of_accuracy,
        of_decisions=of_decisions,
        remarks=remarks,
        figures=FIGURES,
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _shown_in_html(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _shown_in_markdown(value: object) -> object:
    """Text with nothing in it that Markdown or the HTML inside it would read as a sign."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return Markup(re.sub(r"([\\`*\[\]<>|&~]|(?<!\w)_|_(?!\w))", r"\\\1", printable(value)))


def _one_line(text: Markup) -> Markup:
    return Markup(" ".join(text.split()))


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
