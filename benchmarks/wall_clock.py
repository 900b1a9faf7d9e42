"""How long the whole Decathlon takes on 1, 2, 4, 8 GPUs and on 4 machines of 8, on paper.

    python benchmarks/wall_clock.py                                    with assumed rates of a GPU
    python benchmarks/wall_clock.py --train_rate 73 --eval_rate 311 --rates_are "measured on ..."

Rates in, a table out; nothing is trained. The nine targets are packed as main.py --jobs packs them:
one process a task, the longest first, on the next GPU that gets free. A task takes

    epochs x (images / training rate x its pixels / 64^2 + val images / evaluation rate) + start-up

The source network is trained before them by data-parallel steps. On G GPUs a step takes

    max(images of one GPU / rate, launch) + 2 (G - 1) / G x 4 bytes x parameters / bandwidth

that is, its computation, or what the host needs to launch it, and a ring all-reduce of all
gradients that nothing hides. Its first process alone evaluates it.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from decathlon import SOURCE, TARGETS, DecathlonTask
from launch.side_by_side import official_view
from models.resnet26 import resnet26
from runtime.cli import Parser, positive_float, positive_int
from runtime.errors import run_script
from runtime.progress import say

RESIZE, CROP = 72, 64
GPUS = (1, 2, 4, 8, 32)
GPUS_OF_A_MACHINE = 8
SHUFFLES = 1000
ASSUMED = "ASSUMED: no GPU has been measured"
# Operations of a training step at 64 x 64 per image: SpotTune's 9.7 GFLOP, the plain network's 5.1.
PLAIN_TO_SPOTTUNE = 9.7 / 5.1
EVAL_TO_TRAIN = 311 / 73  # as measured on a CPU: evaluation at 72 x 72, training at 64 x 64


@dataclass(frozen=True)
class Rates:
    """What a GPU does in a second, and what comes on top."""

    train: float  # images of 64 x 64 that SpotTune trains on
    source: float  # the same of the plain network
    evaluation: float  # images of 72 x 72
    start: float  # seconds from starting a task to its first step
    launch: float  # seconds that a host needs at least for a training step
    bandwidth: float  # bytes a second between the GPUs of a machine
    network: float  # and between machines


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Work out the wall-clock time of the whole Decathlon on several GPUs.")
    add = parser.add_argument
    # fmt: off
    add("--train_rate", type=positive_float, default=5000.0, metavar="R",
        help="images/s of SpotTune's training on one GPU at 64 x 64")
    add("--source_rate", type=positive_float, metavar="R",
        help="the same of the plain network; unset: by its operations, 1.9 times as many")
    add("--eval_rate", type=positive_float, metavar="R",
        help="images/s of evaluation at 72 x 72; unset: 4.3 times --train_rate, as on a CPU")
    add("--rates_are", default=ASSUMED, metavar="TEXT", help="where these rates come from")
    add("--start", type=positive_float, default=30.0, metavar="S",
        help="seconds from starting a task to its first step: imports, decoding")
    add("--launch", type=positive_float, default=0.004, metavar="S",
        help="seconds that a host needs at least for one training step")
    add("--bandwidth", type=positive_float, default=200.0, metavar="GB/S",
        help="between the GPUs of one machine")
    add("--network", type=positive_float, default=25.0, metavar="GB/S", help="between machines")
    add("--nb_epochs", type=positive_int, default=110, help="epochs on each target")
    add("--source_epochs", type=positive_int, default=120, help="epochs on imagenet12")
    add("--batch_size", type=positive_int, default=128, help="images per step")
    # fmt: on
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    rates = Rates(
        train=args.train_rate,
        source=args.source_rate or args.train_rate * PLAIN_TO_SPOTTUNE,
        evaluation=args.eval_rate or args.train_rate * EVAL_TO_TRAIN,
        start=args.start,
        launch=args.launch,
        bandwidth=1e9 * args.bandwidth,
        network=1e9 * args.network,
    )
    targets = {task.name: target_seconds(task, rates, args.nb_epochs) for task in TARGETS}
    say(f"Rates: {args.rates_are}.\n")
    say(targets_table(targets))
    say(f"\n{where_targets_stop(targets)}\n")
    parameters = sum(p.numel() for p in resnet26(SOURCE.num_classes).parameters())
    say(source_table(rates, parameters, args.batch_size, args.source_epochs, targets))
    say(f"\n{where_source_stops(rates, parameters, args.batch_size)}")


# --- The nine targets ----------------------------------------------------------------------------


def target_seconds(task: DecathlonTask, rates: Rates, epochs: int) -> float:
    """Training on train and val, evaluation on val after each epoch, and start-up."""
    views = [official_view(task, RESIZE, CROP, training) for training in (True, False)]
    pixels, test_pixels = (view.height * view.width for view in views)
    trained = (task.num_train + task.num_val) * pixels / CROP**2 / rates.train
    tested = task.num_val * test_pixels / RESIZE**2 / rates.evaluation
    return epochs * (trained + tested) + rates.start


def wall_clock(seconds: Sequence[float], gpus: int) -> float:
    """Until the last of the tasks ends, each started in this order on the next GPU that is free."""
    busy_until = [0.0] * gpus
    for duration in seconds:
        first = busy_until.index(min(busy_until))
        busy_until[first] += duration
    return max(busy_until)


def longest_first(seconds: Sequence[float], gpus: int) -> float:
    """The wall-clock time of the order that main.py takes."""
    return wall_clock(sorted(seconds, reverse=True), gpus)


def lower_bound(seconds: Sequence[float], gpus: int) -> float:
    """No packing is quicker than an even share, or than the longest task."""
    return max(sum(seconds) / gpus, max(seconds))


def random_orders(seconds: Sequence[float], gpus: int) -> list[float]:
    """The wall-clock times of SHUFFLES random orders, seeded."""
    draw = random.Random(0)
    return [wall_clock(draw.sample(seconds, len(seconds)), gpus) for _ in range(SHUFFLES)]


def targets_table(targets: dict[str, float]) -> str:
    """Markdown: hours by number of GPUs; the bound; and what other orders would take."""
    seconds = list(targets.values())
    lines = [
        "| GPUs | nine targets, h | no packing under, h | GPUs at work, % "
        "| random order, h | worst |",
        "|---|---|---|---|---|---|",
    ]
    for gpus in GPUS:
        packed, orders = longest_first(seconds, gpus), random_orders(seconds, gpus)
        lines.append(
            f"| {name_of(gpus)} | {hours(packed)} | {hours(lower_bound(seconds, gpus))} "
            f"| {100 * sum(seconds) / gpus / packed:.0f} | {hours(sum(orders) / len(orders))} "
            f"| {hours(max(orders))} |"
        )
    return "\n".join(lines)


def where_targets_stop(targets: dict[str, float]) -> str:
    """The number of GPUs from which on the longest task alone is the wall-clock time."""
    longest = max(targets, key=targets.__getitem__)
    enough = next(
        gpus
        for gpus in range(1, len(targets) + 1)
        if longest_first(list(targets.values()), gpus) <= targets[longest]
    )
    return (
        f"The targets stop scaling at {enough} GPUs: {longest} alone takes "
        f"{hours(targets[longest])} h of the {hours(sum(targets.values()))} h of all, and a task "
        f"is not divided, since that would change BatchNorm's batches."
    )


# --- The source ----------------------------------------------------------------------------------


def all_reduce_seconds(parameters: int, gpus: int, bandwidth: float) -> float:
    """A ring all-reduce of float32 gradients: every GPU sends 2 (G - 1) / G of them."""
    return 2 * (gpus - 1) / gpus * 4 * parameters / bandwidth


def source_seconds(rates: Rates, parameters: int, images: float, gpus: int, epochs: int) -> float:
    """Data-parallel training of imagenet12 with `images` a step on each GPU."""
    bandwidth = rates.bandwidth if gpus <= GPUS_OF_A_MACHINE else rates.network
    step = max(images / rates.source, rates.launch)
    step += all_reduce_seconds(parameters, gpus, bandwidth)
    steps = (SOURCE.num_train + SOURCE.num_val) / (images * gpus)
    return epochs * (steps * step + SOURCE.num_val / rates.evaluation) + rates.start


def source_table(
    rates: Rates, parameters: int, batch: int, epochs: int, targets: dict[str, float]
) -> str:
    """Markdown: hours of the source, with the same batch in all and with one on each GPU."""
    lines = [
        f"| GPUs | source, {batch} images a step in all, h | speed-up "
        f"| source, {batch} on each GPU, h | speed-up | source and targets, h |",
        "|---|---|---|---|---|---|",
    ]
    alone = source_seconds(rates, parameters, batch, 1, epochs)
    for gpus in GPUS:
        shared = source_seconds(rates, parameters, batch / gpus, gpus, epochs)
        each = source_seconds(rates, parameters, batch, gpus, epochs)
        whole = shared + longest_first(list(targets.values()), gpus)
        lines.append(
            f"| {name_of(gpus)} | {hours(shared)} | {alone / shared:.1f} | {hours(each)} "
            f"| {alone / each:.1f} | {hours(whole)} |"
        )
    return "\n".join(lines)


def where_source_stops(rates: Rates, parameters: int, batch: int) -> str:
    """The number of GPUs that is quickest with the batch, and so the result, of one GPU."""
    counts = range(1, max(GPUS) + 1)
    best = min(counts, key=lambda gpus: source_seconds(rates, parameters, batch / gpus, gpus, 1))
    return (
        f"With {batch} images a step in all, the source is quickest on {best} GPUs; on more, a GPU "
        f"computes for less than the {1000 * rates.launch:g} ms in which a host launches a step, "
        f"or waits for the gradients. With {batch} on each GPU it goes on scaling, but the larger "
        f"batch is another training, with a learning rate that is still to be found."
    )


def name_of(gpus: int) -> str:
    """E.g. "8", or "4 machines of 8"."""
    machines = gpus // GPUS_OF_A_MACHINE
    return f"{machines} machines of {GPUS_OF_A_MACHINE}" if machines > 1 else str(gpus)


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}"


if __name__ == "__main__":
    run_script(main)
