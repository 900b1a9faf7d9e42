"""The figures of a study: what is drawn from its records, and how.

learning_val, learning_train   learning curves, a panel a task, a line a method
accuracy_and_parameters        mean accuracy against stored parameters
fine_tuned_share_*             tasks x blocks: share of images that use the fine-tuned copy
blocks_per_image_*             number of fine-tuned blocks per image
extremes_*                     images with the fewest and the most fine-tuned blocks
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reporting.extremes import Example, Sides
from reporting.plots import (
    FINE_TUNED,
    INK,
    KEPT,
    marker_of,
    new_figure,
    plain_axes,
    recorded,
    save,
    share_figure,
)
from reporting.runs import Variant, own_policies
from reporting.statistics import (
    Spread,
    mean_blocks_per_image,
    mean_over_tasks,
    mean_share,
    shared_tasks,
    total_stored,
    val_scores,
)
from reporting.study import Study
from runtime.progress import say

COLOURS = {
    "scratch": "#a6a6a6",
    "feature": INK,
    "finetune": KEPT,
    "lastk": "#33a04a",
    "stochastic": "#d4b410",
    "l2sp": "#8a4fd3",
    "spottune": FINE_TUNED,
    "globalk": "#a8123f",
}
DASHES, MARKERS = ("-", "--", ":", "-."), "osD^"
COLUMNS = 3  # of small panels
TITLE_SIZE = 10.5
LEGEND = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": "small"}
SMALLEST_RANGE = 2.0  # of an axis of accuracies, in percent: small differences stay small
FIGURES = "figures"  # the folder beside the page


@dataclass(frozen=True)
class Picture:
    """A figure that lies as <name>.png and .svg in FIGURES.

    `caption` says what the title, which stands in the figure, does not.
    """

    name: str
    title: str
    caption: str


Drawn = tuple[Picture, Figure]


@dataclass(frozen=True)
class Style:
    """How a method is drawn in every figure."""

    label: str
    colour: str
    dash: str = "-"  # dash and marker tell a method's several k apart
    marker: str = "o"


Curve = tuple[Style, dict[int, Spread]]  # of one method on one task, by epoch


def styles(study: Study) -> dict[Variant, Style]:
    """A colour for each method, the same in every report."""
    found = {}
    for variant in study.methods:
        same = [other for other in study.methods if other.method == variant.method]
        place = same.index(variant) % len(DASHES)
        colour = COLOURS[variant.method]
        found[variant] = Style(variant.title, colour, DASHES[place], MARKERS[place])
    return found


def seen_in_training(study: Study) -> str:
    """What must be said beside every accuracy on val, if anything."""
    return " (images seen in training)" if study.settings.train_split == "trainval" else ""


# Learning curves.


def accuracy_figures(study: Study) -> Iterator[Drawn]:
    """Learning curves, and accuracy against stored parameters."""
    val, train = curves_of(study, "val_accuracy"), curves_of(study, "train_loss")
    caption = "Mean over seeds; band: one standard deviation. Each panel has its own range of y."
    if any(len(means) > 1 for lines in val.values() for _, means in lines):
        title = f"Accuracy on val, %{seen_in_training(study)}"
        yield Picture("learning_val", title, caption), curves_figure(val, title, SMALLEST_RANGE)
    title = "Cross-entropy in training, nats"
    yield Picture("learning_train", title, caption), curves_figure(train, title)
    yield from tradeoff(study)


def curves_of(study: Study, field: str) -> dict[str, list[Curve]]:
    """By task a curve of each method, over the epochs that all of its seeds recorded."""
    found = {task: [] for task in study.tasks}
    for variant, style in styles(study).items():
        for task in study.tasks:
            courses = [
                dict(zip(*recorded(run.history, field), strict=True))
                for run in study.of(variant, task)
                if run.scored_variant == variant or not field.startswith("val")
            ]
            if courses:
                epochs = sorted(set.intersection(*map(set, courses)))
                means = {epoch: Spread.of(one[epoch] for one in courses) for epoch in epochs}
                found[task].append((style, means))
    return found


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
    """A panel a task, a line a method, and a band of one standard deviation around it."""
    figure, grid = panels(len(curves), 2.5)
    known = {}
    for axes, (task, lines) in zip(grid, curves.items(), strict=True):
        for style, means in lines:
            known[style.label] = _draw_curve(axes, style, means)
        plain_axes(axes)
        _keep_range(axes, smallest_range)
        axes.set_title(task, fontsize=TITLE_SIZE)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[-COLUMNS:]:
        axes.set_xlabel("epoch")
    figure.suptitle(title if len(curves) == 1 else f"{title}: ranges of y differ")
    figure.legend(known.values(), known.keys(), **LEGEND)
    return figure


def _keep_range(axes, smallest: float) -> None:
    """Widen the y axis to a range that does not make much of small differences."""
    low, high = axes.get_ylim()
    if high - low < smallest:
        middle = (low + high) / 2
        axes.set_ylim(middle - smallest / 2, middle + smallest / 2)


def _draw_curve(axes, style: Style, means: Mapping[int, Spread]):
    """Draw the line and its band; returns the line."""
    epochs, mean = list(means), np.array([spread.mean for spread in means.values()])
    std = np.array([spread.std or 0.0 for spread in means.values()])
    form = {"color": style.colour, "marker": marker_of(epochs), "ms": 2.5, "linewidth": 1.5}
    (line,) = axes.plot(epochs, mean, style.dash, **form)
    if std.any():
        band = {"color": style.colour, "alpha": 0.15, "linewidth": 0}
        axes.fill_between(epochs, mean - std, mean + std, **band)
    return line


# Accuracy against parameters.


def tradeoff(study: Study) -> Iterator[Drawn]:
    """Mean accuracy and stored parameters over the tasks that all methods have."""
    tasks = shared_tasks(val_scores(study, variant) for variant in study.methods)
    points = tradeoff_points(study, tasks)
    if len(points) < 2:
        return
    figure = new_figure(8.5, 5.2)
    axes = figure.subplots()
    for style, stored, accuracy in points:
        form = {"color": style.colour, "marker": style.marker, "label": style.label}
        bar = {"yerr": accuracy.std, "capsize": 3, "elinewidth": 1.2}
        axes.errorbar(stored, accuracy.mean, linestyle="", ms=8, **form, **bar)
    plain_axes(axes)
    title = f"Mean accuracy on val, %{seen_in_training(study)}"
    axes.set(xlabel="parameters stored, millions", ylabel=title)
    axes.margins(y=0.1)
    _keep_range(axes, SMALLEST_RANGE)
    axes.set_xlim(0, 1.08 * max(stored for _, stored, _ in points))
    if study.source:
        source = study.source.cost["parameters"]
        top = axes.secondary_xaxis("top", functions=(lambda x: x / source, lambda x: x * source))
        top.set_xlabel("× source network")
    figure.legend(**LEGEND)
    caption = (
        f"Over {', '.join(tasks)}, which all methods have. Stored: what these targets add, and the "
        f"source network once. Bars: one standard deviation over seeds."
    )
    yield Picture("accuracy_and_parameters", f"{title}, and parameters stored", caption), figure


def tradeoff_points(study: Study, tasks: Sequence[str]) -> list[tuple[Style, float, Spread]]:
    """Millions of parameters and accuracy of each method that has a seed with all `tasks`."""
    points = []
    targets = [task for task in tasks if task in study.tasks]
    for variant, style in styles(study).items():
        accuracy = mean_over_tasks(val_scores(study, variant), tasks)
        stored = total_stored(study, variant, targets)
        if accuracy and stored:
            points.append((style, stored.mean, accuracy))
    return points


# Decisions.


def decision_figures(study: Study) -> Iterator[Drawn]:
    """Which blocks are fine-tuned, and how many an image; not of the coin's draws."""
    for variant in study.methods:
        shares = mean_share(study, variant)
        if shares and own_policies(variant.method)[:1] != ("sample",):
            title = f"{variant.title}: val images that use each fine-tuned block"
            caption = "Mean over seeds."
            picture = Picture(f"fine_tuned_share_{variant.slug}", title, caption)
            yield picture, share_figure(shares, title)
        if images_decide(variant) and shares:
            title = f"{variant.title}: number of fine-tuned blocks per val image"
            caption = "Mean over seeds; dotted: the mean over images. All panels share both ranges."
            figure = blocks_figure(mean_blocks_per_image(study, variant), title)
            yield Picture(f"blocks_per_image_{variant.slug}", title, caption), figure


def images_decide(variant: Variant) -> bool:
    """Whether each image has decisions of its own that were learnt."""
    return own_policies(variant.method)[:1] == ("argmax",)


def blocks_figure(shares: Mapping[str, Sequence[float]], title: str) -> Figure:
    """A panel a task: how many percent of its images fine-tune 0, 1, ... blocks."""
    figure, grid = panels(len(shares), 1.9)
    highest = 100 * max(max(share) for share in shares.values())
    for axes, (task, share) in zip(grid, shares.items(), strict=True):
        most = len(share) - 1
        axes.bar(range(most + 1), [100 * value for value in share], color=FINE_TUNED)
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


def extremes_drawn(variant: Variant, examples: Mapping[str, Sides]) -> Drawn:
    title = f"{variant.title}: val images with the fewest and the most fine-tuned blocks"
    caption = (
        "Under each image: its decisions from the first block to the last, its class, how many "
        "blocks are fine-tuned, and whether the network recognised it, where that is known. First "
        "seed."
    )
    picture = Picture(f"extremes_{variant.slug}", title, caption)
    return picture, extremes_figure(examples, title)


def extremes_figure(examples: Mapping[str, Sides], title: str) -> Figure:
    """A row a task: the images with the fewest fine-tuned blocks, and those with the most."""
    each = max(len(side) for sides in examples.values() for side in sides)
    figure = new_figure(1.3 * (2 * each + 1), 1.65 * len(examples) + 1)
    columns = [*[8] * each, 1, *[8] * each]  # the narrow one in the middle stays empty
    heights = [8, 1] * len(examples)  # an image, and its decisions below
    form = {"squeeze": False, "width_ratios": columns, "height_ratios": heights}
    grid = figure.subplots(len(heights), len(columns), **form)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, (task, sides) in enumerate(examples.items()):
        for first, side, name in zip((0, each + 1), sides, ("fewest", "most"), strict=True):
            images, strips = grid[2 * row, first:], grid[2 * row + 1, first:]
            images[0].set_title(f"{task}: {name}", loc="left", fontsize=TITLE_SIZE)
            for image, strip, example in zip(images, strips, side, strict=False):
                _draw_example(image, strip, example)
    figure.suptitle(title)
    names = {"kept block": KEPT, "fine-tuned block": FINE_TUNED}
    keys = [Patch(color=colour, label=name) for name, colour in names.items()]
    figure.legend(handles=keys, **LEGEND)
    return figure


def _draw_example(image, strip, example: Example) -> None:
    image.imshow(example.pixels, interpolation="bicubic")
    decisions = [[int(decision) for decision in example.decisions]]
    colours = ListedColormap([KEPT, FINE_TUNED])
    strip.pcolormesh(decisions, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1)
    strip.set_xlabel(f"{example.category}\n{example.result}", fontsize=7.5, parse_math=False)


# Writing.


def write_figures(drawn: Iterable[Drawn], out: Path) -> list[Picture]:
    """Each as figures/<name>.png and .svg below `out`; returns what was drawn."""
    (out / FIGURES).mkdir(parents=True, exist_ok=True)
    written = []
    for picture, figure in drawn:
        path = out / FIGURES / picture.name
        for suffix in (".png", ".svg"):
            save(figure, path.with_suffix(suffix))
        say(f"{path}.png, .svg")
        written.append(picture)
    return written
