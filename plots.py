"""Pictures of a run: a task's curves, and which blocks each task fine-tunes."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from files import write_whole

KEPT, FINE_TUNED = "#2b6ca3", "#d9622b"  # cool and warm, as in the figure of the method


def draw_curves(history: Sequence[Mapping], task: str, path: Path) -> None:
    """Loss, accuracy and mean share of fine-tuned decisions over the epochs, as a PNG."""
    if not history:
        return
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
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
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(task)
    _save(figure, path)


def _line(axes, history: Sequence[Mapping], field: str, label: str, colour: str) -> None:
    """Draw `field` where it was recorded; a list of shares is drawn as its mean in percent."""
    points = [(record["epoch"], record.get(field)) for record in history]
    points = [(epoch, value) for epoch, value in points if value not in (None, [])]
    values = [
        100 * sum(value) / len(value) if isinstance(value, list) else value for _, value in points
    ]
    marker = "o" if len(points) < 20 else None
    axes.plot(
        [epoch for epoch, _ in points], values, label=label, color=colour, marker=marker, ms=3
    )


def draw_fine_tuned_share(shares: Mapping[str, Sequence[float]], path: Path) -> None:
    """Tasks x blocks: the share of val images that take the fine-tuned copy, as a PNG."""
    tasks = list(shares)
    num_blocks = len(shares[tasks[0]])
    figure = Figure(
        figsize=(2.6 + 0.55 * num_blocks, 1.4 + 0.42 * len(tasks)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    grid = [[100 * share for share in shares[task]] for task in tasks]
    image = axes.imshow(grid, cmap="YlOrRd", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(num_blocks), [str(block + 1) for block in range(num_blocks)])
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set(xlabel="residual block", title="val images that use the fine-tuned block, %")
    axes.tick_params(length=0)
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            ink = "white" if value > 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
    figure.colorbar(image, ax=axes, pad=0.02)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    write_whole(path, content.getvalue())
