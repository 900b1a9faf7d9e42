"""Images per second of data, training step and evaluation on this machine, beside a plain form.

Both forms take turns, and medians of their times are compared. Each form's peak memory is that of a
process of its own.
"""

import tempfile
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.made_up import MEAN_STD, TASK, load_task, write_task
from benchmarks.measuring import (
    FORMS,
    Sizes,
    evaluation_step,
    in_own_process,
    median_seconds,
    new_method,
    peak_mib,
    training_step,
)
from benchmarks.plain_form import decode_batch
from image_cache.batches import TaskData
from image_cache.orders import View
from methods.cost import macs_per_image
from models.resnet26 import PAPER_WIDTH
from runtime.cli import positive_int
from runtime.devices import Compute, choose_compute, describe
from runtime.distributed import ALONE


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto: a GPU if there is one")
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the fast form")
    add("--compile", action="store_true", help="the fast form through torch.compile")
    add("--batch_size", type=positive_int, default=128, help="images per step")
    add("--crop", type=positive_int, default=64, help="side of training crops")
    add("--resize", type=positive_int, default=72, help="side of evaluation crops")
    add("--width", type=positive_int, default=PAPER_WIDTH, help="channels of the stem")
    add("--repeats", type=positive_int, help="timed rounds; unset: 5 on a CPU, 50 on a GPU")
    add("--num_images", type=positive_int, default=512, help="JPEGs of the data part")


def measure(
    device: str, precision: str, compile: bool, batch_size: int, crop: int, resize: int,
    width: int, repeats: int | None, num_images: int,
) -> dict:  # fmt: skip
    """Images per second and peak MiB of both forms; MACs of predicting one image."""
    compute = choose_compute(device, precision, compile)
    rounds = repeats or (50 if compute.device.type == "cuda" else 5)
    trained = Sizes(batch_size, crop, crop, width)
    tested = Sizes(batch_size, resize, resize, width)

    def rates(images: int, runs: dict[str, Callable], where: torch.device) -> dict[str, float]:
        return {form: images / s for form, s in median_seconds(runs, rounds, where).items()}

    train = {form: training_step(form, trained, compute) for form in FORMS}
    predict = {form: evaluation_step(form, tested, compute) for form in FORMS}
    peaks = {
        part: peak_flops(sizes, compute, rounds)
        for part, sizes in (("training step", trained), ("evaluation", tested))
    }
    steps = {"training step": train["fast"], "evaluation": predict["fast"]}
    work = {part: flops_of(step) for part, step in steps.items()}
    threads = torch.get_num_threads()
    figures = {
        "machine": f"{describe(compute)}; torch {torch.__version__}; batches of {batch_size}",
        "training step": rates(batch_size, train, compute.device),
        "evaluation": rates(batch_size, predict, compute.device),
    }
    figures["share of peak"] = {
        part: figures[part]["fast"] / batch_size * work[part] / peaks[part] for part in peaks
    }
    figures["peak GFLOP/s"] = {part: peak / 1e9 for part, peak in peaks.items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        read = epochs_of_data(Path(folder), num_images, batch_size, crop, resize)
        figures["data, one core"] = rates(num_images, read, torch.device("cpu"))
        torch.set_num_threads(threads)
    chosen = (str(compute.device), compute.precision, compile)
    figures["peak MiB"] = {
        form: in_own_process(peak_of, form, trained, tested, *chosen) for form in FORMS
    }
    evaluator = new_method(tested, compute.device).eval().evaluator()
    return figures | {"MACs of an image": macs_per_image(evaluator, resize, resize)}


def flops_of(run: Callable[[], object]) -> int:
    """Of all matrix products and convolutions, forwards and backwards."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_flops(sizes: Sizes, compute: Compute, rounds: int) -> float:
    """Per second, when the device does nothing but the 3 x 3 convolutions of the three stages.

    Of the same shapes, precision and memory layout as in a step: its limit on this machine.
    """

    def convolution(stage: int) -> Callable[[], object]:
        channels, shrunk = sizes.stem * 2**stage, 2**stage
        shape = (sizes.batch_size, channels, sizes.height // shrunk, sizes.width // shrunk)
        dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
        kept = {"dtype": dtype, "device": compute.device}
        images = torch.randn(shape, **kept).contiguous(memory_format=torch.channels_last)
        weights = torch.randn(channels, channels, 3, 3, **kept)
        weights = weights.contiguous(memory_format=torch.channels_last)
        return lambda: F.conv2d(images, weights, padding=1)

    runs = {stage: convolution(stage) for stage in (1, 2, 3)}
    flops = sum(flops_of(run) for run in runs.values())
    return flops / sum(median_seconds(runs, rounds, compute.device).values())


def epochs_of_data(
    folder: Path, num_images: int, batch_size: int, crop: int, resize: int
) -> dict[str, Callable[[], None]]:
    """An epoch's batches, ready for the network: from JPEGs, and from the packed file."""
    write_task(folder, TASK, "train", num_images, resize)
    images = load_task(folder, TASK, resize)
    data = TaskData(images, View(crop, crop, random=True), MEAN_STD, torch.device("cpu"))
    paths = sorted((folder / "data" / TASK.name / "train").iterdir())

    def plain() -> None:
        for start in range(0, num_images, batch_size):
            decode_batch(paths[start : start + batch_size], resize, crop, MEAN_STD)

    def fast() -> None:
        for _ in data.training_batches(batch_size, (0,), "data", 0, ALONE):
            pass

    return {"plain": plain, "fast": fast}


def peak_of(
    form: str, trained: Sizes, tested: Sizes, device: str, precision: str, compiled: bool
) -> float:
    """MiB of this process, or of its GPU, after two training steps and an evaluation."""
    compute = choose_compute(device, precision, compiled)
    train, predict = training_step(form, trained, compute), evaluation_step(form, tested, compute)
    for step in (train, train, predict):
        step()
    return peak_mib(compute.device)


def table(figures: dict) -> str:
    """The figures as lines of text."""
    lines = [figures["machine"], f"{'images/s':20}{'plain':>10}{'here':>10}{'ratio':>8}"]
    for part in ("data, one core", "training step", "evaluation", "peak MiB"):
        plain, fast = (figures[part][form] for form in FORMS)
        lines.append(f"{part:20}{plain:10,.0f}{fast:10,.0f}{fast / plain:8.2f}")
    macs = {name: count / 1e9 for name, count in figures["MACs of an image"].items()}
    lines.append(
        f"predicting one image: {macs['network']:.2f} GMAC in the network, "
        f"{macs['policy_network']:.2f} in the policy network"
    )
    for part, share in figures["share of peak"].items():
        lines.append(
            f"{part}: {100 * share:.0f} % of the {figures['peak GFLOP/s'][part]:,.0f} GFLOP/s that "
            f"its 3 x 3 convolutions reach alone"
        )
    return "\n".join(lines)
