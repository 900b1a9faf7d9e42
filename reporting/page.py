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

    def finalize(value: object) -> object:
        """Text as the page shows it, with nothing in it that Markdown would read as a sign."""
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        text = printable(value)
        if form == "markdown":
            text = Markup(re.sub(r"([\\`*\[\]<>|&~]|(?<!\w)_|_(?!\w))", r"\\\1", text))
        return text

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "one_line": lambda text: Markup(" ".join(text.split())),
        "anchor": _anchor,
        "svg": lambda picture: base64.b64encode(
            (figures / f"{picture.name}.svg").read_bytes()
        ).decode(),
    }
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


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
