"""How long the whole Decathlon takes on several GPUs, computed from rates; nothing is trained.

The nine targets run as with main.py --jobs: one process a task, the longest first, on the next GPU
that becomes free. The source network is trained before them, by data-parallel steps: on G GPUs,

    max(images of one GPU / rate, LAUNCH) + 2 (G - 1) / G x 4 bytes x parameters / bandwidth

that is, its computation, or what the host needs to launch it, and a ring all-reduce of all
gradients that nothing hides. Its first process alone evaluates it.
"""

from argparse import ArgumentParser
from collections.abc import Sequence

from decathlon import SOURCE, TARGETS, DecathlonTask
from launch.side_by_side import official_view
from models.resnet26 import resnet26
from runtime.cli import positive_float

RESIZE, CROP = 72, 64
TARGET_EPOCHS, SOURCE_EPOCHS, BATCH_SIZE = 110, 120, 128
GPUS = {1: "1", 2: "2", 4: "4", 8: "8", 32: "4 machines of 8"}
ASSUMED = "ASSUMED: no GPU has been measured"
# Operations of a training step at 64 x 64 per image: SpotTune's 9.7 GFLOP, the plain network's 5.1.
PLAIN_TO_SPOTTUNE = 9.7 / 5.1
EVAL_TO_TRAIN = 311 / 73  # as measured on a CPU: evaluation at 72 x 72, training at 64 x 64
# Assumed too:
START = 30.0  # seconds from starting a task to its first step: imports, decoding
LAUNCH = 0.004  # seconds that a host needs at least for one training step
BANDWIDTH, NETWORK = 200e9, 25e9  # bytes a second between the GPUs of one machine, and of several


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    # fmt: off
    add("--train_rate", type=positive_float, default=5000.0, metavar="R",
        help="images/s of SpotTune's training on one GPU at 64 x 64")
    add("--eval_rate", type=positive_float, metavar="R",
        help="images/s of evaluation at 72 x 72; unset: 4.3 times --train_rate, as on a CPU")
    add("--rates_are", default=ASSUMED, metavar="TEXT", help="where these rates come from")
    # fmt: on


def measure(train_rate: float, eval_rate: float | None, rates_are: str) -> dict:
    """Seconds of each target; and by number of GPUs, of all targets and of the source."""
    eval_rate = eval_rate or train_rate * EVAL_TO_TRAIN
    seconds = {task.name: target_seconds(task, train_rate, eval_rate) for task in TARGETS}
    parameters = sum(parameter.numel() for parameter in resnet26(SOURCE.num_classes).parameters())
    rows = {}
    for gpus in GPUS:
        longest_first = sorted(seconds.values(), reverse=True)
        rows[gpus] = {
            "longest first": wall_clock(longest_first, gpus),
            "lower bound": max(sum(longest_first) / gpus, longest_first[0]),
            "source": source_seconds(train_rate * PLAIN_TO_SPOTTUNE, eval_rate, parameters, gpus),
        }
    return {"rates are": rates_are, "targets": seconds, "by GPUs": rows}


def target_seconds(task: DecathlonTask, train_rate: float, eval_rate: float) -> float:
    """Epochs of training on train and val and evaluation on val, and start-up."""
    trained, tested = (official_view(task, RESIZE, CROP, training) for training in (True, False))
    train = (task.num_train + task.num_val) * trained.height * trained.width / CROP**2 / train_rate
    evaluation = task.num_val * tested.height * tested.width / RESIZE**2 / eval_rate
    return TARGET_EPOCHS * (train + evaluation) + START


def wall_clock(seconds: Sequence[float], gpus: int) -> float:
    """Until the last of the tasks ends, each started in this order on the next GPU that is free."""
    busy_until = [0.0] * gpus
    for duration in seconds:
        first = busy_until.index(min(busy_until))
        busy_until[first] += duration
    return max(busy_until)


def source_seconds(rate: float, eval_rate: float, parameters: int, gpus: int) -> float:
    """The source network's training, BATCH_SIZE images a step in all, and its evaluations."""
    bandwidth = BANDWIDTH if gpus <= 8 else NETWORK
    all_reduce = 2 * (gpus - 1) / gpus * 4 * parameters / bandwidth
    step = max(BATCH_SIZE / gpus / rate, LAUNCH) + all_reduce
    steps = (SOURCE.num_train + SOURCE.num_val) / BATCH_SIZE
    return SOURCE_EPOCHS * (steps * step + SOURCE.num_val / eval_rate) + START


def table(figures: dict) -> str:
    """Hours by number of GPUs, as Markdown, and from where on more of them do not help."""
    targets, rows = figures["targets"], figures["by GPUs"]
    lines = [
        f"Rates: {figures['rates are']}.\n",
        "| GPUs | nine targets, h | lower bound, h | source, h |",
        "|---|---|---|---|",
    ]
    for gpus, row in rows.items():
        hours = (f"{seconds / 3600:,.2f}" for seconds in row.values())
        lines.append(f"| {GPUS[gpus]} | {' | '.join(hours)} |")
    longest = max(targets, key=targets.__getitem__)
    enough = next(gpus for gpus in rows if rows[gpus]["longest first"] <= targets[longest])
    quickest = min(rows, key=lambda gpus: rows[gpus]["source"])
    lines.append(
        f"\nThe targets stop scaling at {GPUS[enough]} GPUs: {longest} alone takes "
        f"{targets[longest] / 3600:,.2f} h, and a task is not divided, since that would change "
        f"BatchNorm's batches. The source is quickest on {GPUS[quickest]}."
    )
    return "\n".join(lines)
