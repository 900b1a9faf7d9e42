"""One epoch as a user runs it, whole process, against the sum of its training steps (CPU).

    python benchmarks/whole_epoch.py               ucf101's 9,537 images: three minutes on two cores

Start-up, reading annotations, decoding all JPEGs, batches, a checkpoint and the curves are in the
process's time; only the training steps are in the sum. Images are made up, of the official size;
val, which is evaluated too, has 64 of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import main as training_script
from benchmarks.made_up import write_images
from decathlon import SOURCE, TASK_BY_NAME
from engine.checkpoints import Checkpoint
from engine.settings import Settings
from engine.step import Trainer
from methods.registry import build_method
from models.resnet26 import PAPER_WIDTH, resnet26
from runtime.cli import Parser, positive_int
from runtime.errors import SpotTuneError, run_script
from runtime.progress import say

TASK = TASK_BY_NAME["ucf101"]  # larger than three of the nine targets, smaller than five
NUM_VAL = 64


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Measure one epoch of main.py against the sum of its training steps.")
    parser.add_argument("--images", type=positive_int, default=TASK.num_train + TASK.num_val)
    parser.add_argument("--resize", type=positive_int, default=72)
    parser.add_argument("--crop", type=positive_int, default=64)
    parser.add_argument("--width", type=positive_int, default=PAPER_WIDTH)
    parser.add_argument("--run", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    sizes = [f"--{name}={getattr(args, name)}" for name in ("resize", "crop", "width")]
    if args.run:
        print(json.dumps(timed_training(args.run, sizes)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_task(folder, args.images, args.resize)
        write_source(folder / "source.safetensors", args.width)
        start = time.perf_counter()
        command = [sys.executable, __file__, f"--run={folder}", *sizes]
        done = subprocess.run(command, capture_output=True, text=True)
        whole = time.perf_counter() - start
    if done.returncode:
        raise SpotTuneError(f"the epoch failed: {done.stderr[-300:]}")
    steps = json.loads(done.stdout.splitlines()[-1])["seconds"]
    say(
        f"one epoch of {args.images:,} images: {whole:.1f} s, whole process; its training steps "
        f"{steps:.1f} s; ratio {whole / steps:.3f}"
    )


def timed_training(folder: Path, sizes: Sequence[str]) -> dict[str, float]:
    """Run main.py's main for one epoch; the seconds that it spent in training steps."""
    seconds = 0.0
    step = Trainer.step

    def timed_step(*arguments):
        nonlocal seconds
        start = time.perf_counter()
        result = step(*arguments)
        seconds += time.perf_counter() - start
        return result

    Trainer.step = timed_step
    training_script.main(
        ["--datadir", str(folder), "--ckpdir", str(folder / "checkpoints"), "--device", "cpu"]
        + [
            "--pretrained",
            str(folder / "source.safetensors"),
            "--tasks",
            TASK.name,
            "--nb_epochs",
            "1",
        ]
        + ["--train_split", "train", *sizes]
    )
    return {"seconds": seconds}


def write_task(folder: Path, count: int, side: int) -> None:
    """Annotations and JPEGs of a made-up task."""
    for split, number in (("train", count), ("val", NUM_VAL)):
        images_folder = folder / "data" / TASK.name / split
        images_folder.mkdir(parents=True)
        names = write_images(images_folder, number, side)
        first = TASK.first_category_id + (100_000 if split == "val" else 0)
        ids = range(first, first + number)
        classes = [TASK.first_category_id + label for label in range(TASK.num_classes)]
        content = {
            "images": [
                {"id": i, "file_name": f"data/{TASK.name}/{split}/{name}"}
                for i, name in zip(ids, names, strict=True)
            ],
            "annotations": [
                {"id": i, "image_id": i, "category_id": classes[i % len(classes)]} for i in ids
            ],
            "categories": [{"id": category_id} for category_id in classes],
        }
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{TASK.name}_{split}.json").write_text(json.dumps(content))


def write_source(path: Path, width: int) -> None:
    """A checkpoint of a source network that was never trained."""
    method = build_method("source", resnet26(10, width), width)
    categories = [SOURCE.first_category_id + label for label in range(10)]
    settings = Settings(
        epochs=0, milestones=(), lr=0.1, lr_agent=0.01, weight_decay=0.0, batch_size=128,
        resize=72, crop=64, width=width, seed=0, train_split="train", policy="argmax",
        precision="fp32", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), source_sha256="",
    )  # fmt: skip
    weights = method.state_dict()
    Checkpoint(SOURCE.name, "source", categories, settings, weights, {}, []).save(path)


if __name__ == "__main__":
    run_script(main)
