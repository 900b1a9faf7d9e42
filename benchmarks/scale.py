"""How cost grows: annotations of imagenet12's size; epochs of more and more images (CPU).

Every figure is that of a process of its own, so that peak memory is its own too.
"""

import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.made_up import MEAN_STD, load_task, write_annotations, write_task
from benchmarks.measuring import RATES, in_own_process, peak_mib
from decathlon import SOURCE
from engine.step import EpochSums, Trainer, train_epoch
from image_cache.batches import TaskData
from image_cache.orders import View
from imdbfolder_coco import annotation_file, read_annotations
from methods.registry import build_method
from models.resnet26 import resnet26
from runtime.cli import positive_int
from runtime.devices import Compute

SIDE, STEM = 32, 8  # of the epochs: pixels, channels of the stem
CPU = Compute(torch.device("cpu"), "fp32")


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    # fmt: off
    add("--images", type=positive_int, default=SOURCE.num_train, metavar="N",
        help="images that the annotations list")
    add("--epochs_of", type=positive_int, nargs="+", default=[1000, 2000, 4000, 8000], metavar="N",
        help="images of the epochs")
    # fmt: on


def measure(images: int, epochs_of: Sequence[int]) -> dict:
    """Seconds and peak MiB of reading, and of each epoch."""
    with tempfile.TemporaryDirectory() as name:
        names = [f"data/imagenet12/train/{number:07}.jpg" for number in range(images)]
        write_annotations(Path(name), SOURCE, "train", names)
        figures = {"images": images, "read": in_own_process(read, Path(name)), "epochs": {}}
    for count in epochs_of:
        with tempfile.TemporaryDirectory() as name:
            write_task(Path(name), SOURCE, "train", count, SIDE)
            figures["epochs"][count] = in_own_process(train, Path(name))
    return figures


def read(folder: Path) -> dict[str, float]:
    start = time.perf_counter()
    read_annotations(annotation_file(folder, SOURCE.name, "train"))
    return {"seconds": time.perf_counter() - start, "peak MiB": peak_mib(CPU.device)}


def train(folder: Path) -> dict[str, float]:
    """One epoch of SpotTune."""
    images = load_task(folder, SOURCE, SIDE)
    data = TaskData(images, View(SIDE, SIDE, random=True, flip=True), MEAN_STD, CPU.device)
    method = build_method("spottune", resnet26(SOURCE.num_classes, STEM), STEM)
    trainer = Trainer(method, RATES, CPU, batch_size=128)
    sums = EpochSums.zero(method.num_blocks, CPU.device)
    start = time.perf_counter()
    for _ in train_epoch(trainer, data, (0, "scale", 0), "scale", sums):
        pass
    return {"seconds": time.perf_counter() - start, "peak MiB": peak_mib(CPU.device)}


def table(figures: dict) -> str:
    """The figures as lines of text."""
    lines = [
        f"annotations of {figures['images']:,} images: read in {figures['read']['seconds']:.1f} s "
        f"with {figures['read']['peak MiB']:,.0f} MiB",
        f"{'images':>10}{'seconds an epoch':>20}{'ms an image':>14}{'peak MiB':>11}",
    ]
    for count, row in figures["epochs"].items():
        seconds, peak = row["seconds"], row["peak MiB"]
        lines.append(f"{count:10,}{seconds:20.1f}{1000 * seconds / count:14.2f}{peak:11,.0f}")
    return "\n".join(lines)
