"""Images per second of data, training step and evaluation on this machine, beside a plain form.

    python benchmarks/throughput.py                 everything, about three minutes on two cores
    python benchmarks/throughput.py --json FILE     the same figures as JSON

Both forms take turns in one run, and medians of their times are compared, so that a machine's moods
strike both. Images are random pixels of the official sizes: speed does not depend on what they
show. Each form's peak memory is that of a process of its own.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from image_cache.cutting import cutter_for

from benchmarks.made_up import write_images
from benchmarks.memory import peak_mib
from benchmarks.plain_form import decode_batch, plain_optimizers, plain_predict, plain_train_step
from decathlon import TARGETS, DecathlonTask
from engine.step import Trainer
from gumbel_softmax import gumbel_noise
from image_cache.orders import View, normalise, training_order
from image_cache.packed import Annotations, DataFolders, open_packed
from launch.side_by_side import official_view
from methods.cost import macs_per_image
from methods.optimizers import Rates
from methods.registry import build_method
from models.resnet26 import PAPER_WIDTH, resnet26
from runtime.cli import Parser, positive_int
from runtime.devices import Compute, choose_compute, describe
from runtime.errors import SpotTuneError, run_script
from runtime.files import check_place, write_whole
from runtime.progress import say

MEAN_STD = ((0.48, 0.45, 0.41), (0.27, 0.26, 0.27))
RATES = Rates(network=0.01, policy=0.01, weight_decay=5e-4)
EPOCHS = 110
SIZES = ((64, 64), (72, 72), (144, 72))  # height and width of the official crops


@dataclass(frozen=True)
class Sizes:
    """What is measured: images per step, their crop, the networks' width, timed repetitions."""

    batch_size: int
    crop: int
    resize: int
    width: int
    repeats: int
    num_images: int  # JPEGs of the data part


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Measure data, training step and evaluation beside a plain form.")
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
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("--only_memory", choices=["plain", "fast"], help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.json:
        check_place(args.json)
    compute = choose_compute(args.device, args.precision, args.compile)
    on_gpu = compute.device.type == "cuda"
    sizes = Sizes(
        batch_size=args.batch_size,
        crop=args.crop,
        resize=args.resize,
        width=args.width,
        repeats=args.repeats or (50 if on_gpu else 5),
        num_images=args.num_images,
    )
    if args.only_memory:
        print(peak_memory(args.only_memory, sizes, compute))
        return
    say(f"{describe(compute)}; torch {torch.__version__}; batches of {sizes.batch_size}")
    figures = {
        "data": measure_data(sizes),
        "train": measure_training(sizes, compute),
        "evaluation": measure_evaluation(sizes, compute),
        "memory": measure_memory(sizes, compute),
    }
    figures["ratios"] = {part: figures[part]["ratio"] for part in ("data", "train", "evaluation")}
    figures["decathlon"] = estimate_decathlon(sizes, compute)
    figures["macs_per_image"] = macs_per_image(
        new_method(sizes, compute).eval().evaluator(), sizes.resize, sizes.resize
    )
    figures["environment"] = hardware(compute, sizes)
    say(table(figures))
    if args.json:
        write_whole(args.json, (json.dumps(figures, indent=2) + "\n").encode())


# --- Timing -------------------------------------------------------------------------------------


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's work included."""
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(
    plain: Callable[[], object], fast: Callable[[], object], images: int, sizes: Sizes, device
) -> dict[str, float]:
    """Images per second of both forms, from medians of alternating calls after a warm-up."""
    for _ in range(3 if device.type == "cuda" else 1):
        seconds_of(plain, device), seconds_of(fast, device)
    times = {"plain": [], "fast": []}
    for _ in range(sizes.repeats):
        times["plain"].append(seconds_of(plain, device))
        times["fast"].append(seconds_of(fast, device))
    plain_rate, fast_rate = (images / statistics.median(times[form]) for form in ("plain", "fast"))
    return {"plain": plain_rate, "fast": fast_rate, "ratio": fast_rate / plain_rate}


# --- Data ---------------------------------------------------------------------------------------


def measure_data(sizes: Sizes) -> dict[str, float]:
    """One core: batches ready for the network from JPEGs, against the packed file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return compare_data(Path(folder), sizes)
    finally:
        torch.set_num_threads(threads)


def compare_data(folder: Path, sizes: Sizes) -> dict[str, float]:
    device, num_images = torch.device("cpu"), sizes.num_images
    names = write_images(folder, num_images, sizes.resize)
    (folder / "made_up.json").write_text("made up")
    annotations = Annotations(
        categories=np.array([1]),
        image_ids=np.arange(num_images),
        labels=np.zeros(num_images, dtype=np.int64),
        file_names=names,
    )
    folders = DataFolders(folder, folder, folder)
    images = open_packed(
        folder / "made_up.json", "images", folders, sizes.resize, lambda path: annotations
    )
    view = View(sizes.crop, sizes.crop, random=True)

    mean, std = (torch.tensor(figures).view(3, 1, 1) for figures in MEAN_STD)

    def plain() -> None:
        paths = [folder / name for name in names]
        for start in range(0, num_images, sizes.batch_size):
            batch = paths[start : start + sizes.batch_size]
            decode_batch(batch, sizes.resize, sizes.crop, MEAN_STD)

    def fast() -> None:
        order = training_order(images, view, 0)
        cut = cutter_for(images, device)
        for batch in order.batches(images.labels, cut, view, sizes.batch_size):
            normalise(batch.images_NHW3, mean, std)

    return compare(plain, fast, num_images, sizes, device)


# --- Training and evaluation --------------------------------------------------------------------


def new_method(sizes: Sizes, compute: Compute, channels_last: bool = True) -> torch.nn.Module:
    """A SpotTune network for 100 classes with random weights, the same in each call."""
    torch.manual_seed(0)
    method = build_method("spottune", resnet26(100, sizes.width), sizes.width).to(compute.device)
    return method.to(memory_format=torch.channels_last) if channels_last else method


def random_batch(sizes: Sizes, height: int, width: int, device: torch.device) -> tuple:
    """Images N x 3 x H x W (NCHW), labels and Gumbel noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sizes.batch_size, 3, height, width, generator=generator)
    labels = torch.randint(0, 100, (sizes.batch_size,), generator=generator)
    noise = gumbel_noise((sizes.batch_size, 12, 2), generator)
    return images.to(device), labels.to(device), noise.to(device)


def plain_step(sizes: Sizes, compute: Compute) -> Callable[[], object]:
    method = new_method(sizes, compute, channels_last=False).train()
    optimizers = plain_optimizers(method, RATES)
    images, labels, noise = random_batch(sizes, sizes.crop, sizes.crop, compute.device)
    return lambda: plain_train_step(images, labels, noise, method, optimizers)


def fast_step(sizes: Sizes, compute: Compute, height: int, width: int) -> Callable[[], object]:
    trainer = Trainer(new_method(sizes, compute).train(), RATES, compute, sizes.batch_size)
    images, labels, noise = random_batch(sizes, height, width, compute.device)
    images = images.contiguous(memory_format=torch.channels_last)
    return lambda: trainer.step(images, labels, noise)


def measure_training(sizes: Sizes, compute: Compute) -> dict[str, float]:
    """Updates of both networks, from images that are ready on the device."""
    fast = fast_step(sizes, compute, sizes.crop, sizes.crop)
    return compare(plain_step(sizes, compute), fast, sizes.batch_size, sizes, compute.device)


def plain_evaluation(sizes: Sizes, compute: Compute) -> Callable[[], object]:
    method = new_method(sizes, compute, channels_last=False).eval()
    images, _, noise = random_batch(sizes, sizes.resize, sizes.resize, compute.device)
    return lambda: plain_predict(images, noise, method)


def fast_evaluation(
    sizes: Sizes, compute: Compute, height: int, width: int
) -> Callable[[], object]:
    """With drawn decisions: they split every batch about in half, the routed form's worst case."""
    evaluator = new_method(sizes, compute).eval().evaluator()
    images, _, noise = random_batch(sizes, height, width, compute.device)
    images = images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> None:
        with compute.autocast():
            evaluator(images, noise)

    return run


def measure_evaluation(sizes: Sizes, compute: Compute) -> dict[str, float]:
    """Decisions and scores, from images that are ready on the device."""
    fast = fast_evaluation(sizes, compute, sizes.resize, sizes.resize)
    return compare(plain_evaluation(sizes, compute), fast, sizes.batch_size, sizes, compute.device)


# --- Memory -------------------------------------------------------------------------------------


def measure_memory(sizes: Sizes, compute: Compute) -> dict[str, float]:
    """MiB at the peak of training and evaluating, each form in a process of its own."""
    figures = {}
    for form in ("plain", "fast"):
        command = [sys.executable, __file__, "--only_memory", form]
        command += ["--device", str(compute.device), "--precision", compute.precision]
        for name in ("batch_size", "crop", "resize", "width"):
            command += [f"--{name}", str(getattr(sizes, name))]
        command += ["--compile"] if compute.compiled else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SpotTuneError(f"measuring the {form} form's memory failed: {done.stderr[-300:]}")
        figures[form] = float(done.stdout)
    return figures


def peak_memory(form: str, sizes: Sizes, compute: Compute) -> float:
    """MiB of this process, or of its GPU, after two training steps and an evaluation."""
    if form == "plain":
        steps = [plain_step(sizes, compute), plain_evaluation(sizes, compute)]
    else:
        steps = [
            fast_step(sizes, compute, sizes.crop, sizes.crop),
            fast_evaluation(sizes, compute, sizes.resize, sizes.resize),
        ]
    for step in (steps[0], *steps):
        step()
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated(compute.device) / 2**20
    return peak_mib()


# --- The whole Decathlon ------------------------------------------------------------------------


def estimate_decathlon(sizes: Sizes, compute: Compute) -> dict[str, object]:
    """Hours of 110 epochs on the nine targets' train + val images, and of predicting val and test.

    From rates measured here on each image size: 64 x 64 and 72 x 72 crops, and the 144 x 72 of
    daimlerpedcls. Val is evaluated once, after the last epoch.
    """
    train, predict = {}, {}
    for height, width in SIZES:
        size = f"{height}x{width}"
        train[size] = rate(fast_step(sizes, compute, height, width), sizes, compute)
        predict[size] = rate(fast_evaluation(sizes, compute, height, width), sizes, compute)
    hours = 0.0
    for task in TARGETS:
        trained, tested = official_sizes(task)
        seen = EPOCHS * (task.num_train + task.num_val)
        hours += seen / train[trained] / 3600
        hours += (task.num_val + task.num_test) / predict[tested] / 3600
    return {"hours": hours, "train_images_per_second": train, "predict_images_per_second": predict}


def rate(run: Callable[[], object], sizes: Sizes, compute: Compute) -> float:
    """Images per second from the median of a few calls, after a warm-up."""
    for _ in range(2):
        run()
    rounds = max(3, sizes.repeats // 2)
    times = [seconds_of(run, compute.device) for _ in range(rounds)]
    return sizes.batch_size / statistics.median(times)


def official_sizes(task: DecathlonTask) -> tuple[str, str]:
    """Height x width of a task's training and test images."""
    trained, tested = (
        official_view(task, resize=72, crop=64, training=training) for training in (True, False)
    )
    return f"{trained.height}x{trained.width}", f"{tested.height}x{tested.width}"


# --- Telling ------------------------------------------------------------------------------------


def hardware(compute: Compute, sizes: Sizes) -> dict[str, object]:
    return {
        "device": describe(compute),
        "processor": platform.processor() or platform.machine(),
        "precision": compute.precision,
        "compiled": compute.compiled,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **vars(sizes),
    }


def table(figures: dict) -> str:
    """The figures as lines of text."""
    lines = [f"{'images/s':38}{'plain':>10}{'here':>10}{'ratio':>8}"]
    titles = {
        "data": "data, one core, ready for the network",
        "train": "training step",
        "evaluation": "evaluation",
    }
    for part, title in titles.items():
        row = figures[part]
        lines.append(f"{title:38}{row['plain']:10,.0f}{row['fast']:10,.0f}{row['ratio']:8.2f}")
    memory, macs = figures["memory"], figures["macs_per_image"]
    ratio = memory["fast"] / memory["plain"]
    lines.append(
        f"{'peak memory, MiB':38}{memory['plain']:10,.0f}{memory['fast']:10,.0f}{ratio:8.2f}"
    )
    hours = figures["decathlon"]["hours"]
    lines.append(f"nine targets x {EPOCHS} epochs, estimated: {hours:.1f} hours on this machine")
    for name, per_size in (("training", "train"), ("evaluation", "predict")):
        rates = figures["decathlon"][f"{per_size}_images_per_second"]
        listed = ", ".join(f"{size}: {value:,.0f}" for size, value in rates.items())
        lines.append(f"  {name} images/s by size: {listed}")
    lines.append(
        f"predicting one image: {macs['network'] / 1e9:.2f} GMAC in the network, "
        f"{macs['policy_network'] / 1e9:.2f} in the policy network"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
