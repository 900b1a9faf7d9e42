"""The figures of a study: learning curves, accuracy against parameters, and decisions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from methods.registry import METHODS
from reporting import plots, statistics
from reporting.extremes import Sides
from reporting.plots import FINE_TUNED, INK, KEPT
from reporting.runs import Variant
from reporting.statistics import Spread, mean_shares, over_tasks, shared_tasks, val_scores
from reporting.study import Study

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
DASHES, MARKERS = ("-", "--", ":", "-."), "osD^"  # tell a method's several k apart
COLUMNS = 3  # of small panels
TITLE_SIZE = 10.5
LEGEND = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": "small"}
SMALLEST_RANGE = 2.0  # of an axis of accuracies, in percent: small differences stay small


@dataclass(frozen=True)
class Picture:
    """A figure; `caption` says what the title, which stands in the figure, does not."""

    name: str  # of its files, without suffix
    title: str
    caption: str
    figure: Figure


Style = dict[str, str]  # matplotlib's label, color, linestyle and marker
Curve = tuple[Style, dict[int, Spread]]  # of one method on one task, by epoch


def styles(study: Study) -> dict[Variant, Style]:
    """How each method is drawn: its colour is the same in every report."""
    found = {}
    for variant in study.methods:
        same = [other for other in study.methods if other.method == variant.method]
        place = same.index(variant) % len(DASHES)
        form = {"linestyle": DASHES[place], "marker": MARKERS[place]}
        found[variant] = {"label": variant.title, "color": COLOURS[variant.method], **form}
    return found


def seen_in_training(study: Study) -> str:
    """What must be said beside every accuracy on val, if anything."""
    return " (images seen in training)" if study.settings.train_split == "trainval" else ""


def panels(tasks: Sequence[str], height: float, xlabel: str) -> tuple[Figure, list[Axes]]:
    """A figure with a small panel for each task, three in a row."""
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = plots.new_figure(max(5.5, 3.4 * columns), height * rows + 0.7)
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in grid[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(grid, tasks, strict=False):
        plots.plain_axes(axes)
        axes.set_title(task, fontsize=TITLE_SIZE)
    for axes in grid[: len(tasks)][-COLUMNS:]:
        axes.set_xlabel(xlabel)
    return figure, grid[: len(tasks)]


# Learning curves, and accuracy against parameters.


def accuracy_figures(study: Study) -> Iterator[Picture]:
    """Learning curves, and accuracy against stored parameters."""
    val, train = curves_of(study, "val_accuracy"), curves_of(study, "train_loss")
    caption = "Mean over seeds; band: one standard deviation. Each panel has its own range of y."
    if any(len(means) > 1 for lines in val.values() for _, means in lines):
        title = f"Accuracy on val, %{seen_in_training(study)}"
        figure = curves_figure(val, title, SMALLEST_RANGE)
        yield Picture("learning_val", title, caption, figure)
    title = "Cross-entropy in training, nats"
    yield Picture("learning_train", title, caption, curves_figure(train, title))
    tasks = shared_tasks(val_scores(study).get(variant, {}) for variant in study.methods)
    points = tradeoff_points(study, tasks)
    if len(points) > 1:
        title = f"Mean accuracy on val, %{seen_in_training(study)}"
        caption = (
            f"Over {', '.join(tasks)}, which all methods have. Stored: what these targets add, and "
            f"the source network once. Bars: one standard deviation over seeds."
        )
        figure = tradeoff_figure(points, title, study.source and study.source.cost["parameters"])
        name, title = "accuracy_and_parameters", f"{title}, and parameters stored"
        yield Picture(name, title, caption, figure)


def curves_of(study: Study, field: str) -> dict[str, list[Curve]]:
    """By task a curve of each method, over the epochs that all of its seeds recorded."""
    found = {task: [] for task in study.tasks}
    for variant, style in styles(study).items():
        for task in study.tasks:
            courses = [
                dict(zip(*plots.recorded(run.history, field), strict=True))
                for run in study.of(variant, task)
                if run.scored_variant == variant or not field.startswith("val")
            ]
            if courses:
                epochs = sorted(set.intersection(*map(set, courses)))
                means = {epoch: Spread.of(one[epoch] for one in courses) for epoch in epochs}
                found[task].append((style, means))
    return found


def curves_figure(
    curves: Mapping[str, Sequence[Curve]], title: str, smallest_range: float = 0.0
) -> Figure:
    """A panel a task, a line a method, and a band of one standard deviation around it."""
    figure, grid = panels(list(curves), 2.5, "epoch")
    known = {}
    for axes, lines in zip(grid, curves.values(), strict=True):
        for style, means in lines:
            epochs, mean = list(means), np.array([spread.mean for spread in means.values()])
            std = np.array([spread.std or 0.0 for spread in means.values()])
            form = style | {"marker": plots.marker_of(epochs)}
            (known[style["label"]],) = axes.plot(epochs, mean, **form, ms=2.5, linewidth=1.5)
            if std.any():
                band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
                axes.fill_between(epochs, mean - std, mean + std, **band)
        _keep_range(axes, smallest_range)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title if len(curves) == 1 else f"{title}: ranges of y differ")
    figure.legend(known.values(), known.keys(), **LEGEND)
    return figure


def _keep_range(axes: Axes, smallest: float) -> None:
    """Widen the y axis to a range that does not make much of small differences."""
    low, high = axes.get_ylim()
    if high - low < smallest:
        middle = (low + high) / 2
        axes.set_ylim(middle - smallest / 2, middle + smallest / 2)


def tradeoff_points(study: Study, tasks: Sequence[str]) -> list[tuple[Style, float, Spread]]:
    """Millions of parameters and accuracy of each method that has a seed with all `tasks`."""
    points = []
    targets = [task for task in tasks if task in study.tasks]
    for variant, style in styles(study).items():
        accuracy = over_tasks(val_scores(study).get(variant, {}), tasks)
        stored = statistics.total_stored(study, variant, targets)
        if accuracy and stored:
            points.append((style, stored.mean, accuracy))
    return points


def tradeoff_figure(
    points: Sequence[tuple[Style, float, Spread]], title: str, source: float | None
) -> Figure:
    """Accuracy against stored parameters; `source`: millions of them in the source network."""
    figure = plots.new_figure(8.5, 5.2)
    axes = figure.subplots()
    for style, stored, accuracy in points:
        bar = {"yerr": accuracy.std, "capsize": 3, "elinewidth": 1.2}
        axes.errorbar(stored, accuracy.mean, **style | {"linestyle": ""}, ms=8, **bar)
    plots.plain_axes(axes)
    axes.set(xlabel="parameters stored, millions", ylabel=title)
    axes.margins(y=0.1)
    _keep_range(axes, SMALLEST_RANGE)
    axes.set_xlim(0, 1.08 * max(stored for _, stored, _ in points))
    if source:
        top = axes.secondary_xaxis("top", functions=(lambda x: x / source, lambda x: x * source))
        top.set_xlabel("× source network")
    figure.legend(**LEGEND)
    return figure


# Decisions.


def decision_figures(study: Study) -> Iterator[Picture]:
    """Which blocks are fine-tuned, and how many an image; not of the coin's draws."""
    for variant in study.methods:
        shares = mean_shares(study, variant, "block shares")
        if shares and METHODS[variant.method].policies[:1] != ("sample",):
            title = f"{variant.title}: val images that use each fine-tuned block"
            figure, name = plots.share_figure(shares, title), f"fine_tuned_share_{variant.slug}"
            yield Picture(name, title, "Mean over seeds.", figure)
        if images_decide(variant) and shares:
            title = f"{variant.title}: number of fine-tuned blocks per val image"
            caption = "Mean over seeds; dotted: the mean over images. All panels share both ranges."
            figure = blocks_figure(mean_shares(study, variant, "count shares"), title)
            yield Picture(f"blocks_per_image_{variant.slug}", title, caption, figure)


def images_decide(variant: Variant) -> bool:
    """Whether each image has decisions of its own that were learnt."""
    return METHODS[variant.method].policies[:1] == ("argmax",)


def blocks_figure(shares: Mapping[str, Sequence[float]], title: str) -> Figure:
    """A panel a task: how many percent of its images fine-tune 0, 1, ... blocks."""
    figure, grid = panels(list(shares), 1.9, "fine-tuned blocks")
    highest = 100 * max(max(share) for share in shares.values())
    for axes, (task, share) in zip(grid, shares.items(), strict=True):
        most = len(share) - 1
        axes.bar(range(most + 1), [100 * value for value in share], color=FINE_TUNED)
        mean = sum(count * value for count, value in enumerate(share))
        axes.axvline(mean, color=INK, linewidth=1, linestyle=":")
        axes.grid(visible=False, axis="x")
        axes.set_title(f"{task}: mean {mean:.1f}", fontsize=TITLE_SIZE)
        axes.set(ylim=(0, 1.08 * highest), xlim=(-0.7, most + 0.7))
        axes.set_xticks(range(0, most + 1, 3))
    for axes in grid[::COLUMNS]:
        axes.set_ylabel("images, %")
    figure.suptitle(title)
    return figure


def extremes_picture(variant: Variant, examples: Mapping[str, Sides]) -> Picture:
    """A row a task: the images with the fewest fine-tuned blocks, and those with the most."""
    title = f"{variant.title}: val images with the fewest and the most fine-tuned blocks"
    caption = (
        "Under each image: its decisions from the first block to the last, its class, and how many "
        "blocks are fine-tuned. First seed."
    )
    each = max(len(side) for sides in examples.values() for side in sides)
    figure = plots.new_figure(1.3 * (2 * each + 1), 1.65 * len(examples) + 1)
    columns = [*[8] * each, 1, *[8] * each]  # the narrow one in the middle stays empty
    heights = [8, 1] * len(examples)  # an image, and its decisions below
    form = {"squeeze": False, "width_ratios": columns, "height_ratios": heights}
    grid = figure.subplots(len(heights), len(columns), **form)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    colours = {"cmap": ListedColormap([KEPT, FINE_TUNED]), "vmin": 0, "vmax": 1}
    for row, (task, sides) in enumerate(examples.items()):
        for first, side, name in zip((0, each + 1), sides, ("fewest", "most"), strict=True):
            images, strips = grid[2 * row, first:], grid[2 * row + 1, first:]
            images[0].set_title(f"{task}: {name}", loc="left", fontsize=TITLE_SIZE)
            for image, strip, example in zip(images, strips, side, strict=False):
                image.imshow(example.pixels, interpolation="bicubic")
                decisions = [int(decision) for decision in example.decisions]
                strip.pcolormesh([decisions], **colours, edgecolors="white", linewidth=1)
                text = f"{example.category}\n{sum(decisions)} of {len(decisions)}"
                strip.set_xlabel(text, fontsize=7.5, parse_math=False)
    figure.suptitle(title)
    names = {"kept block": KEPT, "fine-tuned block": FINE_TUNED}
    keys = [Patch(color=colour, label=name) for name, colour in names.items()]
    figure.legend(handles=keys, **LEGEND)
    return Picture(f"extremes_{variant.slug}", title, caption, figure)
