"""What a run shows at its end: a table over the tasks, and which blocks each of them fine-tunes."""

from collections.abc import Sequence
from pathlib import Path

from reporting.plots import save, share_figure
from runtime.progress import say


def show_results(
    histories: dict[str, list[dict]], ckpdir: Path, stages: Sequence[int] = ()
) -> None:
    """Print one table over the tasks, and draw which blocks each fine-tunes.

    `stages`: numbers of blocks in each, where they are known.
    """
    last = {task: history[-1] for task, history in histories.items() if history}
    if last:
        say(table(last))
    shares = {task: record["val_fine_tuned_share"] for task, record in last.items()}
    shares = {task: share for task, share in shares.items() if share}
    if shares:
        picture = ckpdir / "fine_tuned_share.png"
        title = "val images that use the fine-tuned block, %"
        save(share_figure(shares, title, stages), picture)
        say(f"share of images that use each fine-tuned block: {picture}")


def table(last: dict[str, dict]) -> str:
    """The last record of every task, and the mean over them, as lines of text."""
    lines = [f"\n{'task':14}{'epochs':>8}{'train %':>9}{'val %':>9}{'fine-tuned %':>14}"]
    for task, record in last.items():
        shares = record["val_fine_tuned_share"]
        fine_tuned = 100 * sum(shares) / len(shares) if shares else None
        lines.append(
            f"{task:14}{record['epoch']:8}{figure(record.get('train_accuracy'), 9, 2)}"
            f"{figure(record['val_accuracy'], 9, 2)}{figure(fine_tuned, 14, 1)}"
        )
    tested = [record["val_accuracy"] for record in last.values()]
    tested = [accuracy for accuracy in tested if accuracy is not None]
    if tested:
        lines.append(f"{'mean':14}{'':17}{figure(sum(tested) / len(tested), 9, 2)}")
    if any(record["val_seen_in_training"] for record in last.values()):
        lines.append("trained on train and val: the val column is on images seen in training")
    return "\n".join(lines)


def figure(value: float | None, width: int, digits: int) -> str:
    """A number, or a dash where there is none, at the right of a column."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
