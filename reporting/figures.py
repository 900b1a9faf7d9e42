"""The figures of a study: learning curves, accuracy against parameters, and decisions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from methods.registry import METHODS
from reporting import plots, statistics
from reporting.answers import MOST_CLASSES, MOST_MISTAKES, Answer, confusion
from reporting.extremes import Sides
from reporting.plots import FINE_TUNED, INK, KEPT, drawable
from reporting.runs import Variant, file_name
from reporting.statistics import Spread, mean_shares, over_tasks, shared_tasks, val_scores
from reporting.study import Study

COLOURS = {
    "scratch": "#a6a6a6",
    "feature": INK,
    "finetune": KEPT,
    "lastk": "#33a04a",
    "bn": "#27c4c9",
    "bn_lastk": "#f47ac4",
    "stochastic": "#d4b410",
    "l2sp": "#8a4fd3",
    "spottune": FINE_TUNED,
    "globalk": "#a8123f",
}
DASHES, MARKERS = ("-", "--", ":", "-."), "osD^"  # tell a method's several k apart
COLUMNS = 3  # of small panels
TITLE_SIZE = 10.5
# Letters of a name that fit: in a title, under a small picture, and beside an axis.
LONGEST_TASK, LONGEST_CLASS, LONGEST_ON_AXIS = 24, 20, 30
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
        axes.set_title(drawable(task, LONGEST_TASK), fontsize=TITLE_SIZE, parse_math=False)
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
        yield Picture(_name(study, "learning_val"), title, caption, figure)
    title = "Cross-entropy in training, nats"
    yield Picture(_name(study, "learning_train"), title, caption, curves_figure(train, title))
    tasks = shared_tasks(study, (val_scores(study).get(each, {}) for each in study.methods))
    points = tradeoff_points(study, tasks)
    if len(points) > 1:
        title = f"Mean accuracy on val, %{seen_in_training(study)}"
        caption = (
            f"Over {', '.join(tasks)}, which all methods have. Stored: what these targets add"
            f"{', and the source network once' if study.source else ''}. Bars: one standard "
            f"deviation over seeds."
        )
        figure = tradeoff_figure(points, title, study.source and study.source.cost["parameters"])
        name, title = "accuracy_and_parameters", f"{title}, and parameters stored"
        yield Picture(_name(study, name), title, caption, figure)


def _name(study: Study, name: str) -> str:
    """A file's name that the other study on the page does not use."""
    return f"own_{name}" if study.is_own else name


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
        plots.whole_epochs(axes)
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
            figure = plots.share_figure(shares, title, study.stages)
            name = _name(study, f"fine_tuned_share_{variant.slug}")
            yield Picture(name, title, "Mean over seeds.", figure)
        if images_decide(variant) and shares:
            title = f"{variant.title}: number of fine-tuned blocks per val image"
            caption = "Mean over seeds; dotted: the mean over images. All panels share both ranges."
            figure = blocks_figure(mean_shares(study, variant, "count shares"), title)
            name = _name(study, f"blocks_per_image_{variant.slug}")
            yield Picture(name, title, caption, figure)


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
        title_of = f"{drawable(task, LONGEST_TASK)}: mean {mean:.1f}"
        axes.set_title(title_of, fontsize=TITLE_SIZE, parse_math=False)
        axes.set(ylim=(0, 1.08 * highest), xlim=(-0.7, most + 0.7))
        axes.set_xticks(range(0, most + 1, 3 if most < 20 else 10))
    for axes in grid[::COLUMNS]:
        axes.set_ylabel("images, %")
    figure.suptitle(title)
    return figure


def extremes_picture(study: Study, variant: Variant, examples: Mapping[str, Sides]) -> Picture:
    """A row a task: the images with the fewest fine-tuned blocks, and those with the most."""
    title = f"{variant.title}: val images with the fewest and the most fine-tuned blocks"
    caption = (
        "Under each image: its decisions from the first block to the last, its class, what it was "
        "taken for if that was recorded, and how many blocks are fine-tuned. First seed."
    )
    each = max(len(side) for sides in examples.values() for side in sides)
    figure = plots.new_figure(1.3 * (2 * each + 1), 1.8 * len(examples) + 1)
    columns = [*[8] * each, 1, *[8] * each]  # the narrow one in the middle stays empty
    heights = [8, 1] * len(examples)  # an image, and its decisions below
    form = {"squeeze": False, "width_ratios": columns, "height_ratios": heights}
    grid = empty_panels(figure, len(heights), len(columns), **form)
    colours = {"cmap": ListedColormap([KEPT, FINE_TUNED]), "vmin": 0, "vmax": 1}
    for row, (task, sides) in enumerate(examples.items()):
        for first, side, name in zip((0, each + 1), sides, ("fewest", "most"), strict=True):
            images, strips = grid[2 * row, first:], grid[2 * row + 1, first:]
            head = f"{drawable(task, LONGEST_TASK)}: {name}"
            images[0].set_title(head, loc="left", fontsize=TITLE_SIZE, parse_math=False)
            for image, strip, example in zip(images, strips, side, strict=False):
                image.imshow(example.pixels, interpolation="bicubic")
                decisions = [int(decision) for decision in example.decisions]
                strip.pcolormesh([decisions], **colours, edgecolors="white", linewidth=1)
                lines = [drawable(example.category, LONGEST_CLASS)]
                if example.answer is not None:
                    lines.append(_correctness(example.category, example.answer))
                lines.append(f"{sum(decisions)} of {len(decisions)}")
                strip.set_xlabel("\n".join(lines), fontsize=7.5, parse_math=False)
    figure.suptitle(title)
    names = {"kept block": KEPT, "fine-tuned block": FINE_TUNED}
    keys = [Patch(color=colour, label=name) for name, colour in names.items()]
    figure.legend(handles=keys, **LEGEND)
    return Picture(_name(study, f"extremes_{variant.slug}"), title, caption, figure)


def empty_panels(figure: Figure, rows: int, columns: int, **form: object) -> np.ndarray:
    """Axes without frames and ticks, for images."""
    grid = figure.subplots(rows, columns, **form)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return grid


def _correctness(category: str, answer: str) -> str:
    return "right" if answer == category else f"wrong: {drawable(answer, LONGEST_CLASS - 7)}"


# Answers on own pictures.


def confusion_pictures(study: Study) -> Iterator[Picture]:
    """Classes against answers, of each method on each task with not too many classes."""
    for place, task in enumerate(study.tasks):
        for variant in study.methods:
            runs = study.answered(variant, task)
            if not runs or runs[0].num_classes > MOST_CLASSES:
                continue
            title = f"{variant.title} on {task}: val pictures by class and answer"
            seeds = " Summed over seeds." if len(runs) > 1 else ""
            caption = f"Right answers lie on the diagonal.{seeds}"
            shown = f"{variant.title} on {drawable(task, LONGEST_TASK)}: val pictures"
            figure = confusion_figure(confusion(runs), runs[0].classes, shown)
            name = f"confusion_{place}_{file_name(task)}_{variant.slug}"
            yield Picture(name, title, caption, figure)


def confusion_figure(counts: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """`counts`: K classes x K answers. The colour is the share of a row; zeros are left empty."""
    side = 0.27 * len(classes) if len(classes) > 12 else 0.42 * len(classes)
    figure = plots.new_figure(max(5.5, side + 2.8), max(4.2, side + 2.2))
    axes = figure.subplots()
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = LinearSegmentedColormap.from_list("share", ["#ffffff", KEPT])
    lines = {"edgecolors": plots.PALE, "linewidth": 0.5}
    image = axes.pcolormesh(shares, cmap=colours, vmin=0, vmax=100, **lines)
    places = np.arange(len(classes)) + 0.5
    names = [drawable(name, LONGEST_ON_AXIS) for name in classes]
    axes.set_xticks(places, names, rotation=90, parse_math=False, fontsize=8)
    axes.set_yticks(places, names, parse_math=False, fontsize=8)
    axes.set(xlabel="answer", ylabel="class", aspect="equal")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    form = {"ha": "center", "va": "center", "fontsize": 8 if len(classes) <= 12 else 6}
    for row, column in zip(*counts.nonzero(), strict=True):
        ink = "white" if shares[row, column] > 60 else INK
        axes.text(column + 0.5, row + 0.5, str(counts[row, column]), color=ink, **form)
    axes.set_title(title, fontsize=TITLE_SIZE, parse_math=False)
    figure.colorbar(image, ax=axes, pad=0.02, shrink=0.8, label="share of the class, %")
    return figure


def mistakes_picture(
    study: Study,
    variant: Variant,
    mistakes: Mapping[str, Sequence[Answer]],
    pixels: Mapping[str, Mapping[str, np.ndarray]],
) -> Picture:
    """A row a task: its wrong answers with the highest probabilities.

    `pixels`: H x W x 3 uint8, by task and file.
    """
    title = f"{variant.title}: the most confident mistakes on val"
    caption = (
        "Under each picture: its class, what it was taken for, how probable that seemed, and the "
        "file's name. First seed."
    )
    figure = plots.new_figure(1.55 * MOST_MISTAKES, 2.15 * len(mistakes) + 0.5)
    grid = empty_panels(figure, len(mistakes), MOST_MISTAKES, squeeze=False)
    for row, (task, answers) in zip(grid, mistakes.items(), strict=True):
        head = drawable(task, LONGEST_TASK)
        row[0].set_title(head, loc="left", fontsize=TITLE_SIZE, parse_math=False)
        for axes, answer in zip(row, answers, strict=False):
            axes.imshow(pixels[task][answer.file], interpolation="bicubic")
            axes.set_anchor("S")  # so that the lines below stand at one height
            lines = [drawable(answer.category, LONGEST_CLASS)]
            lines.append(_correctness(answer.category, answer.answer))
            lines.append(f"{100 * answer.probability:.1f} %")
            lines.append(drawable(answer.file.rpartition("/")[2], LONGEST_CLASS))
            axes.set_xlabel("\n".join(lines), fontsize=7.5, parse_math=False)
    figure.suptitle(title)
    return Picture(f"mistakes_{variant.slug}", title, caption, figure)
