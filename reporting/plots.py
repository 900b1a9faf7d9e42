"""Drawing: the colours and the form of all figures, and the pictures that a run leaves."""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font

from runtime.errors import brief
from runtime.files import write_whole

KEPT, FINE_TUNED = "#2b6ca3", "#d9622b"  # cool and warm, as in the figure of the method
INK, PALE = "#222222", "#dddddd"
DPI = 130
FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")  # matplotlib's default
LARGEST_GRID = 13.0  # inches of a grid of blocks
FIXED = {"svg.hashsalt": "spottune", "svg.fonttype": "path"}  # the same file every time


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, which lays itself out."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG or SVG, as the name ends; the same figure gives the same bytes."""
    content, suffix = io.BytesIO(), path.suffix[1:]
    with matplotlib.rc_context(FIXED):
        metadata = {"Date": None} if suffix == "svg" else {}
        figure.savefig(content, format=suffix, dpi=DPI, metadata=metadata)
    write_whole(path, content.getvalue())


def whole_epochs(axes: Axes) -> None:
    """Mark whole numbers on the x axis, also if there is one epoch only."""
    low, high = axes.get_xlim()
    if high - low < 1:
        axes.set_xticks([round(low)])
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)


@cache
def letters() -> frozenset[int]:
    """The codes of all letters that the font has."""
    return frozenset(get_font(FONT).get_charmap())


def drawable(name: object, length: int) -> str:
    """A file's, folder's or class's name as a figure can show it; "?" for what the font lacks.

    Draw it with parse_math=False, since it may hold dollar signs.
    """
    return brief("".join(c if ord(c) in letters() else "?" for c in str(name)), length)


def plain_axes(axes: Axes) -> None:
    """Without the upper and right frame, on a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def draw_curves(history: Sequence[Mapping], task: str, path: Path) -> None:
    """Loss, accuracy and mean share of fine-tuned decisions over the epochs, as a PNG."""
    if not history:
        return
    figure = new_figure(10, 3.2)
    val = "val (seen in training)" if history[0]["val_seen_in_training"] else "val"
    panels = {
        "cross-entropy": {"train_loss": "train", "val_loss": val},
        "accuracy, %": {"train_accuracy": "train", "val_accuracy": val},
        "fine-tuned decisions on val, %": {"val_fine_tuned_share": val},
    }
    for axes, (title, lines) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for field, label in lines.items():
            epochs, values = recorded(history, field)
            if field == "val_fine_tuned_share":
                values = [100 * sum(shares) / len(shares) for shares in values]
                axes.set_ylim(0, 100)
            form = {"color": KEPT if label == "train" else FINE_TUNED, "marker": marker_of(epochs)}
            axes.plot(epochs, values, label=label, ms=3, **form)
        axes.set(title=title, xlabel="epoch")
        axes.legend(frameon=False, fontsize="small")
        whole_epochs(axes)
        plain_axes(axes)
    figure.suptitle(drawable(task, 60), parse_math=False)
    save(figure, path)


def recorded(history: Sequence[Mapping], field: str) -> tuple[list[int], list]:
    """The epochs in which `field` was recorded, and its values."""
    points = [(record["epoch"], record.get(field)) for record in history]
    points = [(epoch, value) for epoch, value in points if value not in (None, [])]
    return [epoch for epoch, _ in points], [value for _, value in points]


def marker_of(epochs: Sequence[int]) -> str | None:
    """A dot for each of a few points, none where they are many."""
    return "o" if len(epochs) < 20 else None


def share_figure(
    shares: Mapping[str, Sequence[float]], title: str, stages: Sequence[int] = ()
) -> Figure:
    """Tasks x blocks: the share of val images that take the fine-tuned copy.

    `stages`: numbers of blocks in each, where they are known. They are marked.
    """
    tasks = list(shares)
    num_blocks = len(shares[tasks[0]])
    side = min(0.55, LARGEST_GRID / num_blocks)
    figure = new_figure(max(6.4, 2.6 + side * num_blocks), max(3.4, 1.4 + 0.42 * len(tasks)))
    axes = figure.subplots()
    grid = [[100 * share for share in shares[task]] for task in tasks]
    colours = LinearSegmentedColormap.from_list("decisions", [KEPT, "#f7f7f7", FINE_TUNED])
    lines = {"edgecolors": "white", "linewidth": 1.5}
    image = axes.pcolormesh(grid, cmap=colours, vmin=0, vmax=100, **lines)
    marked = range(0, num_blocks, 1 if side > 0.3 else 5)
    axes.set_xticks([block + 0.5 for block in marked], [block + 1 for block in marked])
    names = [drawable(task, 24) for task in tasks]
    axes.set_yticks([row + 0.5 for row in range(len(tasks))], names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("residual block")
    axes.set_title(title, pad=20)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    begin = 0
    for stage, size in enumerate(stages, start=1):
        place = (begin + size / 2) / num_blocks
        axes.text(place, 1.02, f"stage {stage}", transform=axes.transAxes, ha="center", fontsize=9)
        begin += size
        if begin < num_blocks:
            axes.axvline(begin, color=INK, linewidth=1.2)
    form = {"ha": "center", "va": "center", "fontsize": 8 if side > 0.4 else 6}
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            ink = "white" if abs(value - 50) > 35 else INK
            axes.text(column + 0.5, row + 0.5, f"{value:.0f}", color=ink, **form)
    figure.colorbar(image, ax=axes, pad=0.02, label="images that use the fine-tuned block, %")
    return figure
