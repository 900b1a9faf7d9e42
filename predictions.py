"""Answers of trained networks for a split of all ten tasks: what both submit scripts share.

A submission is a JSON list of {"image_id": int, "category_id": int} over all ten tasks, named
results.json; the server takes it zipped.
"""

import argparse
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from arguments import (
    Parser,
    add_compute_arguments,
    add_data_arguments,
    data_folders,
    positive_int,
)
from checkpoints import CHECKPOINT, Checkpoint
from decathlon import TASKS, DecathlonTask
from devices import Compute, choose_compute, describe
from errors import SpotTuneError
from files import write_whole
from imdbfolder_coco import annotation_file, check_categories, load_images, view_of
from mean_std import read_mean_std
from methods import build_method
from packed import DataFolders
from progress import say
from training import TaskData, predict

MOST_POINTS = 1000  # that a task can bring


@dataclass(frozen=True)
class Question:
    """What is to be predicted, and how."""

    split: str  # "val" or "test"
    folders: DataFolders
    ckpdir: Path
    mean_std: dict
    policy: str
    seed: int
    batch_size: int


def submit(split: str, description: str, argv: Sequence[str] | None) -> None:
    """The straight path of both scripts, from arguments to results.json."""
    args = parse_args(description, argv)
    compute = choose_compute(args.device, args.precision)
    question = Question(
        split=split,
        folders=data_folders(args.datadir, args.imdbdir, args.cachedir),
        ckpdir=args.ckpdir,
        mean_std=read_mean_std(args.mean_std),
        policy=args.policy,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    say(f"predicting {split} with the networks in {args.ckpdir}, on {describe(compute)}")
    answers, missing = [], []
    for task in TASKS:
        if task.name not in args.tasks:
            missing.append(f"{task.name}: left out with --tasks")
        elif reason := why_missing(task, question):
            missing.append(f"{task.name}: {reason}")
        else:
            answers += predict_task(task, question, compute)
    for line in missing:
        say(f"missing  {line}; that costs up to {MOST_POINTS} points")
    if not answers:
        raise SpotTuneError(f"no task could be predicted, so {args.out} was not written")
    write_answers(answers, args.out, args.zip)
    num_answered = len(TASKS) - len(missing)
    say(f"{args.out}: {len(answers):,} answers for {num_answered} of {len(TASKS)} tasks")


def parse_args(description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description)
    add_data_arguments(parser)
    add_compute_arguments(parser)
    parser.add_argument("--batch_size", type=positive_int, default=128, help="images per step")
    parser.add_argument(
        "--out", type=Path, default=Path("results.json"), metavar="FILE", help="the file to write"
    )
    parser.add_argument(
        "--zip", action="store_true", help="also pack it beside itself, as the server takes it"
    )
    return parser.parse_args(argv)


def why_missing(task: DecathlonTask, question: Question) -> str | None:
    """Why a task cannot be predicted, or None if it can."""
    checkpoint = question.ckpdir / task.name / CHECKPOINT
    annotations = annotation_file(question.folders.imdbdir, task.name, question.split)
    images = question.folders.datadir / "data" / task.name
    if not checkpoint.exists():
        return f"no {checkpoint}"
    if not annotations.exists():
        return f"no {annotations}"
    if not images.is_dir():
        return f"no images in {images}"
    return None


def predict_task(task: DecathlonTask, question: Question, compute: Compute) -> list[dict[str, int]]:
    """One answer for every image of the split, in the annotations' order."""
    path = question.ckpdir / task.name / CHECKPOINT
    checkpoint = Checkpoint.load(path)
    settings = checkpoint.settings
    images = load_images(task.name, [question.split], question.folders, settings.resize)
    check_categories(task.name, checkpoint.categories, images.categories)
    method = build_method(checkpoint.kind, len(images.categories), settings.width)
    checkpoint.load_into(method, path)
    method.to(compute.device, memory_format=torch.channels_last)

    view = view_of(task, images, settings.resize, settings.crop, training=False)
    data = TaskData(images, view, question.mean_std[task.name])
    seed = (question.seed, task.name, question.split)
    predictions = predict(
        method, data, question.batch_size, question.policy, seed, compute, task.name
    )
    say(f"{task.name}: {len(images):,} images{remark(checkpoint, question.split)}")
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
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        say(f"{path} is replaced")
    write_whole(path, text)
    if zipped:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("results.json", text)
        write_whole(path.with_suffix(".zip"), content.getvalue())
