"""A page of headings, paragraphs, lists, tables and figures, written as Markdown and as HTML.

The parts hold plain text; each of the two forms escapes it in its own way. The HTML page is one
file: its figures lie inside as data URIs, it asks for nothing from elsewhere and runs no script.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.errors import printable

FIGURES = "figures"  # the folder beside the page


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of short remarks."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """`header` and `rows` of equal lengths; the first column names the rows.

    `words`: the other columns, counted from 0, that hold words and not figures.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()

    def is_words(self, column: int) -> bool:
        return column == 0 or column in self.words


@dataclass(frozen=True)
class Picture:
    """A figure that lies as <name>.png and .svg in the folder of figures."""

    name: str
    caption: str


Part = Heading | Paragraph | Bullets | Table | Picture


# Markdown.


def as_markdown(parts: Sequence[Part]) -> str:
    return "\n\n".join(_markdown(part) for part in parts) + "\n"


def _markdown(part: Part) -> str:
    if isinstance(part, Heading):
        return f"{'#' * part.level} {_md(part.text)}"
    if isinstance(part, Bullets):
        return "\n".join(f"- {_md(item)}" for item in part.items)
    if isinstance(part, Table):
        return f"**{_md(part.caption)}**\n\n{_markdown_table(part)}"
    if isinstance(part, Picture):
        return f"![{_md(part.caption)}]({FIGURES}/{part.name}.png)\n\n*{_md(part.caption)}*"
    return _md(part.text)


def _markdown_table(table: Table) -> str:
    """Columns of even width, so that the text reads as a table too."""
    lines = [[_md(cell) for cell in line] for line in (table.header, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rules = [
        "-" * width if table.is_words(column) else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    padded = [
        [
            cell.ljust(widths[column]) if table.is_words(column) else cell.rjust(widths[column])
            for column, cell in enumerate(line)
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rules, *padded[1:]))


def _md(text: str) -> str:
    """`text` with nothing in it that Markdown or the HTML inside it would read as a sign."""
    return re.sub(r"([\\`*\[\]<>|&~]|(?<!\w)_|_(?!\w))", r"\\\1", printable(text))


# HTML.

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d5d9de;
  --page: #ffffff; --band: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa4af; --line: #3a414a;
  --page: #15181c; --band: #1e2329; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 84rem; background: var(--page);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 0.5rem; padding-bottom: 0.3rem;
  border-bottom: 1px solid var(--line); }
figure { max-width: 70rem; }
p, ul { max-width: 48rem; }
li { margin: 0.25rem 0; }
.scroll { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 0.5rem; }
th, td { padding: 0.35rem 0.6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; border-bottom-width: 2px;
  vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 400; }
.words { text-align: left; }
th:first-child { position: sticky; left: 0; background: var(--page); }
tbody tr:hover > * { background: var(--band); }
figure { margin: 1.5rem 0; }
figure .scroll { margin: 0; background: #ffffff; border: 1px solid var(--line);
  border-radius: 8px; padding: 0.5rem; }
img { display: block; width: 100%; min-width: 38rem; height: auto; }
figcaption { color: var(--soft); font-size: 0.9rem; margin-top: 0.5rem; max-width: 48rem; }
@media (max-width: 40rem) { th:first-child { min-width: 8.5rem; white-space: normal; } }
""".strip()
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def as_html(parts: Sequence[Part], figures: Mapping[str, bytes]) -> str:
    """The whole page; `figures` are the pictures' SVG files, by name."""
    title = next(part.text for part in parts if isinstance(part, Heading))
    body = "\n".join(_html(part, figures) for part in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html(part: Part, figures: Mapping[str, bytes]) -> str:
    if isinstance(part, Heading):
        return f"<h{part.level}>{_text(part.text)}</h{part.level}>"
    if isinstance(part, Bullets):
        items = "\n".join(f"<li>{_text(item)}</li>" for item in part.items)
        return f"<ul>\n{items}\n</ul>"
    if isinstance(part, Table):
        return _html_table(part)
    if isinstance(part, Picture):
        return _html_picture(part, figures[part.name])
    return f"<p>{_text(part.text)}</p>"


def _html_table(table: Table) -> str:
    head = "".join(_cell(table, column, cell, "col") for column, cell in enumerate(table.header))
    rows = [
        "".join(_cell(table, column, cell, "row") for column, cell in enumerate(row))
        for row in table.rows
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    caption = _text(table.caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n<table>\n'
        f"<caption>{caption}</caption>\n<thead>\n<tr>{head}</tr>\n</thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _cell(table: Table, column: int, text: str, scope: str) -> str:
    """A header cell in the header, and in the first column of the others."""
    style = ' class="words"' if table.is_words(column) else ""
    if scope == "col" or column == 0:
        return f'<th scope="{scope}"{style}>{_text(text)}</th>'
    return f"<td{style}>{_text(text)}</td>"


def _html_picture(picture: Picture, svg: bytes) -> str:
    caption = _text(picture.caption)
    data = base64.b64encode(svg).decode()
    return (
        f'<figure>\n<div class="scroll" role="region" tabindex="0" aria-label="{caption}">'
        f'<img alt="{caption}" src="data:image/svg+xml;base64,{data}"></div>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


def _text(text: str) -> str:
    return html.escape(printable(text))
