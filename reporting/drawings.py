"""The figures of a study, drawn from numbers: what to draw is chosen in figures.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from reporting.plots import (
    FINE_TUNED,
    INK,
    KEPT,
    SOFT,
    decision_colours,
    marker_of,
    new_figure,
    plain_axes,
)

COLOURS = {
    "scratch": "#8c8c8c",
    "feature": "#3fa7c4",
    "finetune": KEPT,
    "lastk": "#3a8f5c",
    "stochastic": "#c29a1f",
    "l2sp": "#7a5ea8",
    "spottune": FINE_TUNED,
    "globalk": "#a83258",
}
DASHES = ("-", "--", ":", "-.")  # of a method with several k
COLUMNS = 3  # of small panels
TITLE_SIZE = 10.5
SMALLEST_RANGE = 2.0  # of accuracies, in percent


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every figure."""

    label: str
    colour: str
    dash: str = "-"


@dataclass(frozen=True)
class Curve:
    """One method's course on one task: mean over seeds and standard deviation, by epoch."""

    look: Look
    epochs: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class Point:
    """One method in a plane; the deviation is that of y."""

    look: Look
    x: float
    y: float
    deviation: float


@dataclass(frozen=True)
class Example:
    """An image, H x W x 3 uint8, and its decisions, "1" for a fine-tuned block."""

    pixels: np.ndarray
    decisions: str


def panels(count: int, height: float) -> tuple[Figure, list]:
    """A figure with `count` small panels, three in a row."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = new_figure(max(5.5, 3.4 * columns), height * rows + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])


def curves_figure(
    curves: Mapping[str, Sequence[Curve]], title: str, smallest_range: float = 0.0
) -> Figure:
    """A panel a task, a line a method, and a band of one standard deviation around it.

    No panel shows a smaller range of figures than `smallest_range`.
    """
    figure, grid = panels(len(curves), 2.5)
    known = {}
    for axes, (task, lines) in zip(grid, curves.items(), strict=True):
        for curve in lines:
            known[curve.look.label] = _draw_curve(axes, curve)
        plain_axes(axes)
        _keep_range(axes, smallest_range)
        axes.set_title(task, fontsize=TITLE_SIZE)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[-COLUMNS:]:
        axes.set_xlabel("epoch")
    figure.suptitle(title)
    figure.legend(
        known.values(),
        known.keys(),
        loc="outside lower center",
        ncols=min(len(known), COLUMNS),
        frameon=False,
        fontsize="small",
    )
    return figure


def _keep_range(axes, smallest: float) -> None:
    """Widen the y axis to a range that does not make much of small differences."""
    low, high = axes.get_ylim()
    if high - low < smallest:
        middle = (low + high) / 2
        axes.set_ylim(middle - smallest / 2, middle + smallest / 2)


def _draw_curve(axes, curve: Curve):
    """Draw the line and its band; returns the line."""
    look, mean, std = curve.look, np.array(curve.mean), np.array(curve.std)
    marker = marker_of(curve.epochs)
    (line,) = axes.plot(
        curve.epochs, mean, look.dash, color=look.colour, marker=marker, ms=2.5, linewidth=1.5
    )
    if std.any():
        axes.fill_between(
            curve.epochs, mean - std, mean + std, color=look.colour, alpha=0.15, linewidth=0
        )
    return line


def blocks_figure(shares: Mapping[str, Sequence[float]], title: str) -> Figure:
    """A panel a task: how many percent of its images fine-tune 0, 1, ... blocks."""
    figure, grid = panels(len(shares), 1.9)
    colours = decision_colours()
    highest = 100 * max(max(share) for share in shares.values())
    for axes, (task, share) in zip(grid, shares.items(), strict=True):
        counts = range(len(share))
        most = len(share) - 1
        axes.bar(
            counts,
            [100 * value for value in share],
            color=[colours(count / most) for count in counts],
            edgecolor=SOFT,
            linewidth=0.4,
        )
        mean = sum(count * value for count, value in enumerate(share))
        axes.axvline(mean, color=INK, linewidth=1, linestyle=":")
        plain_axes(axes)
        axes.grid(visible=False, axis="x")
        axes.set_title(f"{task}: mean {mean:.1f}", fontsize=TITLE_SIZE)
        axes.set(ylim=(0, 1.08 * highest), xlim=(-0.7, most + 0.7))
        axes.set_xticks(range(0, most + 1, 3))
    for axes in grid[-COLUMNS:]:
        axes.set_xlabel("fine-tuned blocks")
    for axes in grid[::COLUMNS]:
        axes.set_ylabel("images, %")
    figure.suptitle(title)
    return figure


def tradeoff_figure(
    points: Sequence[Point], source_size: float | None, xlabel: str, ylabel: str
) -> Figure:
    """Methods in the plane of stored parameters and accuracy, each named beside its point."""
    figure = new_figure(8.5, 5.2)
    axes = figure.subplots()
    for point in points:
        axes.errorbar(
            point.x,
            point.y,
            yerr=point.deviation or None,
            fmt="o",
            ms=8,
            color=point.look.colour,
            markeredgecolor="white",
            capsize=3,
            elinewidth=1.2,
        )
    plain_axes(axes)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(y=0.1)
    _keep_range(axes, SMALLEST_RANGE)
    axes.set_xlim(0, 1.08 * max(point.x for point in points))
    if source_size:
        top = axes.secondary_xaxis(
            "top", functions=(lambda x: x / source_size, lambda x: x * source_size)
        )
        top.set_xlabel("× source network")
    _name_points(axes, points)
    return figure


def _name_points(axes, points: Sequence[Point]) -> None:
    """Labels towards the middle of the axes, moved apart where they would overlap."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    middle, shift = (left + right) / 2, 0.03 * (right - left)
    for at_left in (True, False):
        side = [point for point in points if (point.x < middle) == at_left]
        heights = spread_apart([point.y for point in side], 0.05 * (high - low), low, high)
        for point, height in zip(side, heights, strict=True):
            axes.annotate(
                point.look.label,
                (point.x, point.y),
                (point.x + (shift if at_left else -shift), height),
                ha="left" if at_left else "right",
                va="center",
                fontsize=9,
                color=INK,
                arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.6},
            )


def spread_apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places close to `values`, in the same order, at least `gap` apart and from low to high.

    Where there is no room for all, the gaps shrink evenly.
    """
    if not values:
        return []
    gap = min(gap, (high - low) / len(values))
    order = sorted(range(len(values)), key=lambda index: values[index])
    places = [values[index] for index in order]
    for number in range(len(places)):  # upwards ...
        floor = places[number - 1] + gap if number else low + gap / 2
        places[number] = max(places[number], floor)
    for number in reversed(range(len(places))):  # ... and back down from the top
        ceiling = places[number + 1] - gap if number + 1 < len(places) else high - gap / 2
        places[number] = min(places[number], ceiling)
    found = dict(zip(order, places, strict=True))
    return [found[index] for index in range(len(values))]


# Images and their decisions. Sizes in inches.

SIDE, GAP, MIDDLE = 1.0, 0.14, 0.45  # of an image, between two, between fewest and most
STRIP, UNDER, NAME, TOP = 0.12, 0.26, 1.25, 0.75  # decisions, their row's height, margins


def extremes_figure(
    examples: Mapping[str, tuple[Sequence[Example], Sequence[Example]]], title: str
) -> Figure:
    """A row a task: the images with the fewest fine-tuned blocks, and those with the most."""
    each = max(len(side) for sides in examples.values() for side in sides)
    half = each * (SIDE + GAP)
    width = NAME + 2 * half + MIDDLE
    row_height = SIDE + UNDER + GAP
    height = TOP + row_height * len(examples) + 0.3
    figure = new_figure(width, height, layout="none")
    for number, (task, (fewest, most)) in enumerate(examples.items()):
        top = height - TOP - number * row_height
        figure.text(0.12 / width, (top - SIDE / 2) / height, task, va="center", fontsize=11)
        for place, example in enumerate(fewest):
            _draw_example(figure, example, NAME + place * (SIDE + GAP), top)
        for place, example in enumerate(most):
            _draw_example(figure, example, NAME + half + MIDDLE + place * (SIDE + GAP), top)
    for left, text in ((NAME, "fewest"), (NAME + half + MIDDLE, "most")):
        place = (left + half / 2 - GAP / 2) / width
        figure.text(place, (height - 0.6) / height, f"{text} fine-tuned blocks", ha="center")
    figure.text(0.5, (height - 0.28) / height, title, ha="center", fontsize=12)
    _draw_key(figure, width, height)
    return figure


def _draw_example(figure: Figure, example: Example, left: float, top: float) -> None:
    """The image in a square with its upper left corner there, its decisions under it."""
    width, height = figure.get_size_inches()
    box = (left / width, (top - SIDE) / height, SIDE / width, SIDE / height)
    axes = figure.add_axes(box)
    axes.imshow(example.pixels, interpolation="bicubic")
    axes.set_anchor("S")
    axes.set_axis_off()
    strip = (left / width, (top - SIDE - 0.05 - STRIP) / height, SIDE / width, STRIP / height)
    under = figure.add_axes(strip)
    count = len(example.decisions)
    under.set(xlim=(0, count), ylim=(0, 1))
    under.set_axis_off()
    for block, decision in enumerate(example.decisions):
        colour = FINE_TUNED if decision == "1" else KEPT
        under.add_patch(Rectangle((block + 0.06, 0), 0.88, 1, color=colour, linewidth=0))


def _draw_key(figure: Figure, width: float, height: float) -> None:
    axes = figure.add_axes((NAME / width, 0.1 / height, (width - NAME) / width, 0.2 / height))
    axes.set(xlim=(0, width - NAME), ylim=(0, 0.2))
    axes.set_axis_off()
    keys = ((0, KEPT, "kept block"), (1.2, FINE_TUNED, "fine-tuned block"))
    for left, colour, text in keys:
        axes.add_patch(Rectangle((left, 0.05), STRIP, STRIP, color=colour, linewidth=0))
        axes.text(left + 0.2, 0.1, text, va="center", fontsize=9, color=INK)
    axes.text(2.8, 0.1, "blocks 1 to 12 from left to right", va="center", fontsize=9, color=SOFT)
