"""One epoch as a user runs it, whole process, against its training loop alone (CPU).

Start-up, reading annotations, decoding all JPEGs, a checkpoint and the curves are in the process's
time; the loop, as the run's record has it, is cutting batches and training steps. Val, which is
evaluated too, has one image of each class.
"""

import json
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

import torch

from benchmarks.made_up import write_task
from decathlon import SOURCE, TASK_BY_NAME
from main import SCRIPT
from models.resnet26 import PAPER_WIDTH, resnet26
from runtime.cli import positive_int
from runtime.errors import SpotTuneError

TASK = TASK_BY_NAME["ucf101"]  # larger than three of the nine targets, smaller than five


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", type=positive_int, default=TASK.num_train + TASK.num_val, help="of the epoch")
    add("--resize", type=positive_int, default=72, help="shorter side of the images")
    add("--crop", type=positive_int, default=64, help="side of training crops")
    add("--width", type=positive_int, default=PAPER_WIDTH, help="channels of the stem")


def measure(images: int, resize: int, crop: int, width: int) -> dict[str, float]:
    """Seconds of the whole process and of its training loop."""
    with tempfile.TemporaryDirectory() as name:
        write_task(Path(name), TASK, "train", images, resize)
        write_task(Path(name), TASK, "val", TASK.num_classes, resize)
        source = Path(name) / "source.pt"
        torch.save(resnet26(SOURCE.num_classes, width).state_dict(), source)  # random weights
        flags = ["--tasks", TASK.name, "--datadir", name, "--imdbdir", name, "--ckpdir", name]
        flags += ["--pretrained", str(source), "--train_split", "train", "--nb_epochs", "1"]
        flags += [f"--resize={resize}", f"--crop={crop}", f"--width={width}", "--device", "cpu"]
        start = time.perf_counter()
        command = [sys.executable, str(SCRIPT), *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        whole = time.perf_counter() - start
        if done.returncode:
            raise SpotTuneError(f"main.py failed: {done.stderr[-300:]}")
        record = json.loads((Path(name) / TASK.name / "records.jsonl").read_text())
    loop = images / record["images_per_second"]
    return {"images": images, "process": whole, "loop": loop, "ratio": whole / loop}


def table(figures: dict) -> str:
    """The figures as a line of text."""
    return (
        f"one epoch of {figures['images']:,} images: {figures['process']:.1f} s, whole process; "
        f"its training loop {figures['loop']:.1f} s; ratio {figures['ratio']:.3f}"
    )
