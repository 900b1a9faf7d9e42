"""Answers of trained networks for a split of all ten tasks: what both submit scripts share.

A submission is a JSON list of {"image_id": int, "category_id": int} over all ten tasks, named
results.json; the server takes it zipped.
"""

import argparse
import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from decathlon import MOST_POINTS, SOURCE, TASKS, DecathlonTask
from engine.arguments import add_compute_arguments, add_data_arguments, data_folders
from engine.checkpoints import Checkpoint, checkpoint_file, compact_file
from engine.evaluation import predict
from image_cache.batches import TaskData
from image_cache.packed import DataFolders
from imdbfolder_coco import annotation_file, check_categories, load_images, view_of
from methods.registry import choose_policy
from runtime.cli import Parser, positive_int
from runtime.devices import Compute, choose_compute, describe
from runtime.errors import SpotTuneError
from runtime.files import write_whole
from runtime.progress import say


@dataclass(frozen=True)
class Request:
    """What is to be predicted, and how."""

    split: str  # "val" or "test"
    folders: DataFolders
    ckpdir: Path
    policy: str | None  # None: each method's own
    seed: int
    batch_size: int
    compact: bool  # Global-k's compact networks

    def path(self, task: DecathlonTask) -> Path:
        """The checkpoint to predict a task with; the source has no compact one."""
        of = compact_file if self.compact and task is not SOURCE else checkpoint_file
        return of(self.ckpdir, task.name)


def submit(split: str, description: str, argv: Sequence[str] | None) -> None:
    """The straight path of both scripts, from arguments to results.json."""
    args = parse_args(split, description, argv)
    check_output(args.out, args.zip)
    compute = choose_compute(args.device, args.precision)
    request = Request(
        split=split,
        folders=data_folders(args.datadir, args.imdbdir, args.cachedir),
        ckpdir=args.ckpdir,
        policy=args.policy,
        seed=args.seed,
        batch_size=args.batch_size,
        compact=args.compact,
    )
    say(f"predicting {split} with the networks in {args.ckpdir}, on {describe(compute)}")
    answers, missing = [], []
    for task in TASKS:
        try:
            check_is_there(task, request, args.tasks)
            answers += predict_task(task, request, compute)
        except TaskMissingError as reason:
            missing.append(f"{task.name}: {reason}")
    for line in missing:
        say(f"missing  {line}; that costs up to {MOST_POINTS} points")
    if not answers:
        raise SpotTuneError(f"no task could be predicted, so {args.out} was not written")
    write_answers(answers, args.out, args.zip)
    num_answered = len(TASKS) - len(missing)
    advice = f"; score them with `python score.py {args.out}`"
    if split == "test":
        packed = args.out.with_suffix(".zip") if args.zip else "it, packed with --zip,"
        advice = f"; upload {packed} to the challenge's server"
    say(f"{args.out}: {len(answers):,} answers for {num_answered} of {len(TASKS)} tasks{advice}")


def parse_args(split: str, description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description)
    add_data_arguments(parser)
    add_compute_arguments(parser)
    parser.add_argument("--batch_size", type=positive_int, default=128, help="images per step")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(split) / "results.json",
        metavar="FILE",
        help="what to write",
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="predict with compact.safetensors, what Global-k leaves of each target's network",
    )
    parser.add_argument(
        "--zip", action="store_true", help="also pack it beside itself, as the server takes it"
    )
    return parser.parse_args(argv)


def check_output(path: Path, zipped: bool) -> None:
    """Raise SpotTuneError before any work if the answers could not be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise SpotTuneError(f"--out {path}: that folder cannot be written to; name another")
    if path.is_dir() or (zipped and path.suffix == ".zip"):
        raise SpotTuneError(f"--out {path}: expected the name of a file such as results.json")


class TaskMissingError(Exception):
    """Why a task cannot be predicted; the others still can."""


def check_is_there(task: DecathlonTask, request: Request, wanted: Sequence[str]) -> None:
    """Raise TaskMissingError unless the task is wanted and its network and images are there."""
    annotations = annotation_file(request.folders.imdbdir, task.name, request.split)
    if task.name not in wanted:
        raise TaskMissingError("left out with --tasks")
    for path in (
        request.path(task),
        annotations,
        request.folders.images_of(task.name),
    ):
        if not path.exists():
            raise TaskMissingError(f"no {path}")


def predict_task(task: DecathlonTask, request: Request, compute: Compute) -> list[dict[str, int]]:
    """One answer for every image of the split, in the annotations' order."""
    path = request.path(task)
    checkpoint = Checkpoint.load(path)
    if checkpoint.task != task.name:
        raise SpotTuneError(f"{path}: is of {checkpoint.task}; expected {task.name}")
    settings = checkpoint.settings
    images = load_images(task, [request.split], request.folders, settings.resize)
    check_categories(task.name, checkpoint.categories, images.categories.tolist())
    method = checkpoint.network(path)
    method.to(compute.device, memory_format=torch.channels_last)

    view = view_of(task, images, settings.resize, settings.crop, training=False)
    data = TaskData(images, view, (settings.mean, settings.std), compute.device)
    seed = (request.seed, task.name, request.split)
    policy = choose_policy(method.policies, request.policy)
    predictions = predict(method, data, request.batch_size, policy, seed, compute, task.name)
    say(f"{task.name}: {len(images):,} images{remark(checkpoint, request.split)}")
    category_ids = images.categories[predictions.labels]
    return [
        {"image_id": image_id, "category_id": category_id}
        for image_id, category_id in zip(
            images.image_ids.tolist(), category_ids.tolist(), strict=True
        )
    ]


def remark(checkpoint: Checkpoint, split: str) -> str:
    """What a reader should know about a network before trusting its answers."""
    done, planned = len(checkpoint.history), checkpoint.settings.epochs
    remarks = []
    if done < planned:
        remarks.append(f"training stopped after {done} of {planned} epochs")
    if split == "val" and done and checkpoint.history[-1]["val_seen_in_training"]:
        remarks.append("trained on train and val, so these images were seen in training")
    return "".join(f"; {text}" for text in remarks)


def write_answers(answers: list[dict[str, int]], path: Path, zipped: bool) -> None:
    """Write results.json whole or not at all, and FILE.zip beside it if `zipped`."""
    text = json.dumps(answers).encode()
    if path.exists():
        say(f"{path} is replaced")
    write_whole(path, text)
    if zipped:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("results.json", text)
        write_whole(path.with_suffix(".zip"), content.getvalue())
        say(f"{path.with_suffix('.zip')}: the same, packed for the server")
