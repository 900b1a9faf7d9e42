"""The report as a page: the text of templates/report.j2, written as Markdown and as HTML.

A study of the Decathlon and one of own pictures stand on it one after the other.

The text and what it shows are escaped for either form. The HTML page is one file: its figures lie
inside as data URIs, it asks for nothing from elsewhere and runs no script.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from decathlon import ABOUT_PUBLISHED, SOURCE
from reporting import statistics, tables
from reporting.comparability import departures
from reporting.figures import Picture, seen_in_training
from reporting.study import Study
from reporting.tables import Table
from runtime.errors import printable

TEMPLATES = Path(__file__).parent / "templates"
PIXELS_PER_INCH = 84  # of figures on the HTML page, at most
FIGURES = "figures"  # the folder beside the page that holds each picture as .png and .svg


@dataclass(frozen=True)
class Part:
    """A study and what is drawn of it; `remarks` tell which images could not be drawn."""

    study: Study
    of_accuracy: Sequence[Picture] = ()
    of_decisions: Sequence[Picture] = ()
    of_answers: Sequence[Picture] = ()  # on own pictures
    mistakes: Sequence[Table] = ()  # those that are not drawn
    remarks: Sequence[str] = ()


def report_text(parts: Sequence[Part], form: str, figures: Path | None = None) -> str:
    """The whole report; `form` is "markdown" or "html"; `figures` is where the pictures lie."""

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
        "width": lambda picture: round(PIXELS_PER_INCH * picture.figure.get_figwidth()),
        "svg": lambda picture: base64.b64encode(
            (figures / f"{picture.name}.svg").read_bytes()
        ).decode(),
    }
    text = environment.get_template("report.j2").render(
        form=f"{form}.j2",
        parts=parts,
        tables=tables,
        statistics=statistics,
        departures=departures,
        seen_in_training=seen_in_training,
        headings=headings,
        source=SOURCE.name,
        about_published=ABOUT_PUBLISHED,
        figures=FIGURES,
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def headings(part: Part, is_alone: bool) -> dict[str, str]:
    """By section its heading, in their order on the page; what is false for those it lacks."""
    study = part.study
    differs = not study.is_own and departures(study)
    known = {
        "val": f"Accuracy on val{seen_in_training(study)}",
        "classes": study.is_own and "Classes and answers",
        "test": statistics.test_scores(study) and "Accuracy on test",
        "published": differs and "Published figures",
        "decisions": tables.decision_tables(study) and "Decisions",
        "cost": "Cost",
        "settings": "Settings",
        "unfinished": study.unfinished and "Not finished, and left out",
    }
    of = "" if is_alone else f" of {'own pictures' if study.is_own else 'the Decathlon'}"
    return {name: title and f"{title}{of}" for name, title in known.items()}


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
