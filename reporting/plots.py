"""Drawing: the colours and the form of all figures, and the pictures that a run leaves."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from models.resnet26 import BLOCKS_PER_STAGE
from runtime.files import write_whole

KEPT, FINE_TUNED = "#2b6ca3", "#d9622b"  # cool and warm, as in the figure of the method
INK, SOFT, PALE = "#222222", "#6b6b6b", "#dddddd"
DPI = 130
FIXED = {"svg.hashsalt": "spottune", "svg.fonttype": "path"}  # the same file every time


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """An empty figure of that many inches; it lays itself out, unless `layout` is "none"."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG or SVG, as the name ends; the same figure gives the same bytes."""
    content, suffix = io.BytesIO(), path.suffix[1:]
    with matplotlib.rc_context(FIXED):
        metadata = {"Date": None} if suffix == "svg" else {}
        figure.savefig(content, format=suffix, dpi=DPI, metadata=metadata)
    write_whole(path, content.getvalue())


def plain_axes(axes) -> None:
    """Without the upper and right frame, on a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def draw_curves(history: Sequence[Mapping], task: str, path: Path) -> None:
    """Loss, accuracy and mean share of fine-tuned decisions over the epochs, as a PNG."""
    if not history:
        return
    figure = new_figure(10, 3.2)
    loss, accuracy, share = figure.subplots(1, 3)
    seen = " (seen in training)" if history[0]["val_seen_in_training"] else ""
    for axes, field, title in (
        (loss, "loss", "cross-entropy"),
        (accuracy, "accuracy", "accuracy, %"),
    ):
        _line(axes, history, f"train_{field}", "train", KEPT)
        _line(axes, history, f"val_{field}", f"val{seen}", FINE_TUNED)
        axes.set(title=title, xlabel="epoch")
        axes.legend(frameon=False, fontsize="small")
    _line(share, history, "val_fine_tuned_share", "", FINE_TUNED)
    share.set(title="fine-tuned decisions on val, %", xlabel="epoch", ylim=(0, 100))
    for axes in (loss, accuracy, share):
        plain_axes(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(task)
    save(figure, path)


def recorded(history: Sequence[Mapping], field: str) -> tuple[list[int], list]:
    """The epochs in which `field` was recorded, and its values."""
    points = [(record["epoch"], record.get(field)) for record in history]
    points = [(epoch, value) for epoch, value in points if value not in (None, [])]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _line(axes, history: Sequence[Mapping], field: str, label: str, colour: str) -> None:
    """Draw `field` where it was recorded; a list of shares is drawn as its mean in percent."""
    epochs, found = recorded(history, field)
    values = [
        100 * sum(value) / len(value) if isinstance(value, list) else value for value in found
    ]
    axes.plot(epochs, values, label=label, color=colour, marker=marker_of(epochs), ms=3)


def marker_of(epochs: Sequence[int]) -> str | None:
    """A dot for each of a few points, none where they are many."""
    return "o" if len(epochs) < 20 else None


def share_figure(shares: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Tasks x blocks: the share of val images that take the fine-tuned copy."""
    tasks = list(shares)
    num_blocks = len(shares[tasks[0]])
    figure = new_figure(2.6 + 0.55 * num_blocks, max(3.4, 1.4 + 0.42 * len(tasks)))
    axes = figure.subplots()
    grid = [[100 * share for share in shares[task]] for task in tasks]
    colours = LinearSegmentedColormap.from_list("decisions", [KEPT, "#f7f7f7", FINE_TUNED])
    lines = {"edgecolors": "white", "linewidth": 1.5}
    image = axes.pcolormesh(grid, cmap=colours, vmin=0, vmax=100, **lines)
    axes.set_xticks([block + 0.5 for block in range(num_blocks)], range(1, num_blocks + 1))
    axes.set_yticks([row + 0.5 for row in range(len(tasks))], tasks)
    axes.invert_yaxis()
    axes.set_xlabel("residual block")
    axes.set_title(title, pad=20)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    mark_stages(axes, num_blocks)
    form = {"ha": "center", "va": "center", "fontsize": 8}
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            ink = "white" if abs(value - 50) > 35 else INK
            axes.text(column + 0.5, row + 0.5, f"{value:.0f}", color=ink, **form)
    figure.colorbar(image, ax=axes, pad=0.02, label="images that use the fine-tuned block, %")
    return figure


def mark_stages(axes, num_blocks: int) -> None:
    """Lines between the network's stages on an axis of blocks, and their names above it.

    None where the blocks are not those of the Decathlon's ResNet-26.
    """
    if num_blocks != sum(BLOCKS_PER_STAGE):
        return
    begin = 0
    for stage, size in enumerate(BLOCKS_PER_STAGE, start=1):
        place = (begin + size / 2) / num_blocks
        axes.text(place, 1.02, f"stage {stage}", transform=axes.transAxes, ha="center", fontsize=9)
        begin += size
        if stage < len(BLOCKS_PER_STAGE):
            axes.axvline(begin, color=INK, linewidth=1.2)


def draw_fine_tuned_share(shares: Mapping[str, Sequence[float]], path: Path) -> None:
    """The share of val images that take each fine-tuned block, by task, as a PNG."""
    save(share_figure(shares, "val images that use the fine-tuned block, %"), path)
