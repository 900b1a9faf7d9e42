"""How cost grows: annotations and packed images of imagenet12's size; epochs of more images.

    python benchmarks/scale.py                 both, about five minutes on two cores
    python benchmarks/scale.py --json FILE     the same figures as JSON

Every figure is that of a process of its own, so that peak memory is its own too. The images of the
first part are a hole in a file (25 GB that take no disk): what is measured is reading and mapping.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from image_cache.cutting import cutter_for

from benchmarks.memory import peak_mib
from decathlon import SOURCE
from engine.step import EpochSums, Trainer, train_epoch
from image_cache.batches import TaskData
from image_cache.orders import View, training_order
from image_cache.packed import HEADER, DataFolders, finish, new_index, pack_file, sha256_of
from imdbfolder_coco import annotation_file, load_images, read_annotations
from methods.optimizers import Rates
from methods.registry import build_method
from models.resnet26 import resnet26
from runtime.cli import Parser, positive_int
from runtime.devices import Compute
from runtime.errors import SpotTuneError, run_script
from runtime.files import check_place, replacing, write_whole
from runtime.progress import say

HEIGHT, WIDTH = 72, 96  # of the made-up images
SIDE, CROP = 32, 32  # of the growing epochs
CPU = Compute(torch.device("cpu"), "fp32")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Measure how cost grows with the number of images.")
    parser.add_argument(
        "--images",
        type=positive_int,
        default=SOURCE.num_train,
        help="images of the made-up imagenet12",
    )
    parser.add_argument(
        "--epochs_of",
        type=positive_int,
        nargs="+",
        default=[1000, 2000, 4000, 8000],
        help="images of the growing epochs",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.json:
        check_place(args.json)
    if args.part:
        name, folder = args.part
        print(json.dumps(PARTS[name](folders_in(Path(folder)))))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = {"imagenet12": measure_imagenet(folders_in(Path(folder)), args.images)}
    figures["epochs"] = [measure_epoch(count) for count in args.epochs_of]
    say(table(figures))
    if args.json:
        write_whole(args.json, (json.dumps(figures, indent=2) + "\n").encode())


def folders_in(folder: Path) -> DataFolders:
    return DataFolders(folder, folder, folder)


def in_own_process(part: str, folders: DataFolders) -> dict[str, float]:
    """Run one part as a process; its figures, with its peak memory in MiB."""
    command = [sys.executable, __file__, "--part", part, str(folders.datadir)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SpotTuneError(f"the part {part} failed: {done.stderr[-300:]}")
    return json.loads(done.stdout)


# --- Annotations and packed images of imagenet12's size -----------------------------------------


def measure_imagenet(folders: DataFolders, count: int) -> dict[str, dict[str, float]]:
    path = write_annotations(folders, count)
    say(f"made-up annotations of {count:,} images: {path.stat().st_size / 2**20:,.0f} MiB")
    first = in_own_process("read annotations", folders)
    pack_hole(folders)
    return {"first": first, "packed": in_own_process("open packed", folders)}


def write_annotations(folders: DataFolders, count: int) -> Path:
    """A train file of imagenet12 as the official one: `count` images sorted by class."""
    classes = SOURCE.num_classes
    images, annotations = [], []
    for number in range(count):
        label = number * classes // count + 1
        image_id = SOURCE.first_category_id + number
        name = f"data/imagenet12/train/{label:04}/{number + 1:06}.jpg"
        images.append({"id": image_id, "width": WIDTH, "height": HEIGHT, "file_name": name})
        category_id = SOURCE.first_category_id + label - 1
        annotation = {"id": image_id, "image_id": image_id, "category_id": category_id}
        annotations.append({**annotation, "segmentation": [], "area": 0, "bbox": [], "iscrowd": 0})
    ids = range(SOURCE.first_category_id, SOURCE.first_category_id + classes)
    content = {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i), "supercategory": SOURCE.name} for i in ids],
        "licenses": [],
    }
    path = annotation_file(folders.imdbdir, SOURCE.name, "train")
    path.write_text(json.dumps(content))
    return path


def pack_hole(folders: DataFolders) -> None:
    """A packed file whose pixels were never written: black images that take no room."""
    path = annotation_file(folders.imdbdir, SOURCE.name, "train")
    annotations = read_annotations(path)
    index = new_index(annotations)
    index["height"], index["width"] = HEIGHT, WIDTH
    index["offset"] = HEADER.size + np.arange(len(index), dtype=np.uint64) * (3 * HEIGHT * WIDTH)
    with replacing(pack_file(folders, "imagenet12_train", HEIGHT)) as stream:
        stream.seek(HEADER.size + len(index) * 3 * HEIGHT * WIDTH)
        finish(stream, index, annotations.categories, sha256_of(path), HEIGHT)


def part_read_annotations(folders: DataFolders) -> dict[str, float]:
    start = time.perf_counter()
    annotations = read_annotations(annotation_file(folders.imdbdir, SOURCE.name, "train"))
    seconds = time.perf_counter() - start
    return {"images": len(annotations.image_ids), "seconds": seconds, "peak_mib": peak_mib()}


def part_open_packed(folders: DataFolders) -> dict[str, float]:
    start = time.perf_counter()
    images = load_images(SOURCE, ["train"], folders, HEIGHT)
    seconds = time.perf_counter() - start
    view = View(64, 64, random=True, flip=True)
    start = time.perf_counter()
    cut = cutter_for(images, CPU.device)
    next(training_order(images, view, 0).batches(images.labels, cut, view, 128))
    first_batch = time.perf_counter() - start
    return {"seconds": seconds, "seconds_to_first_batch": first_batch, "peak_mib": peak_mib()}


# --- Epochs of more images ----------------------------------------------------------------------


def measure_epoch(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        folders = folders_in(Path(folder))
        write_annotations(folders, count)
        path = annotation_file(folders.imdbdir, SOURCE.name, "train")
        annotations = read_annotations(path)
        write_noise(folders, annotations, sha256_of(path))
        return {"images": count, **in_own_process("train epoch", folders)}


def write_noise(folders: DataFolders, annotations, digest: str) -> None:
    """A packed file of square images of random pixels."""
    index = new_index(annotations)
    index["height"] = index["width"] = SIDE
    index["offset"] = HEADER.size + np.arange(len(index), dtype=np.uint64) * (3 * SIDE * SIDE)
    pixels = np.random.default_rng(0).integers(0, 256, len(index) * 3 * SIDE * SIDE, np.uint8)
    with replacing(pack_file(folders, "imagenet12_train", SIDE)) as stream:
        stream.write(bytes(HEADER.size) + pixels.tobytes())
        finish(stream, index, annotations.categories, digest, SIDE)


def part_train_epoch(folders: DataFolders) -> dict[str, float]:
    """One epoch of SpotTune at width 8."""
    images = load_images(SOURCE, ["train"], folders, SIDE)
    data = TaskData(images, View(CROP, CROP, random=True), ((0.5,) * 3, (0.25,) * 3))
    method = build_method("spottune", resnet26(SOURCE.num_classes, 8), 8)
    trainer = Trainer(method, Rates(0.01, 0.01, 0.0), CPU, batch_size=128)
    start = time.perf_counter()
    sums = EpochSums.zero(method.num_blocks, CPU.device)
    train_epoch(trainer, data, (0, "growth", 0), "growth", sums, after_step=lambda: None)
    return {"seconds": time.perf_counter() - start, "peak_mib": peak_mib()}


PARTS = {
    "read annotations": part_read_annotations,
    "open packed": part_open_packed,
    "train epoch": part_train_epoch,
}


# --- Telling ------------------------------------------------------------------------------------


def table(figures: dict) -> str:
    """The figures as lines of text."""
    first, packed = figures["imagenet12"]["first"], figures["imagenet12"]["packed"]
    lines = [
        f"imagenet12, {first['images']:,} images: annotations read in {first['seconds']:.1f} s "
        f"with {first['peak_mib']:,.0f} MiB; already packed: opened in {packed['seconds']:.1f} s, "
        f"first batch {packed['seconds_to_first_batch']:.1f} s later, with "
        f"{packed['peak_mib']:,.0f} MiB",
        f"{'images':>10}{'seconds an epoch':>20}{'ms an image':>14}{'peak MiB':>11}",
    ]
    for row in figures["epochs"]:
        each = 1000 * row["seconds"] / row["images"]
        lines.append(
            f"{row['images']:10,}{row['seconds']:20.1f}{each:14.2f}{row['peak_mib']:11,.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
