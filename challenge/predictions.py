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


def submit(split: str, description: str, argv: Sequence[str] | None) -> None:
    """The straight path of both scripts, from arguments to results.json; `split`: val or test."""
    args = parse_args(split, description, argv)
    check_output(args.out, args.zip)
    compute = choose_compute(args.device, args.precision)
    folders = data_folders(args.datadir, args.imdbdir, args.cachedir)
    say(f"predicting {split} with the networks in {args.ckpdir}, on {describe(compute)}")
    answers, missing = [], []
    for task in TASKS:
        named = compact_file if args.compact and task is not SOURCE else checkpoint_file
        path = named(args.ckpdir, task.name)  # the source has no compact network
        needed = (path, annotation_file(folders.imdbdir, task.name, split))
        lacking = [p for p in (*needed, folders.images_of(task.name)) if not p.exists()]
        if task.name not in args.tasks:
            missing.append(f"{task.name}: left out with --tasks")
        elif lacking:
            missing.append(f"{task.name}: no {lacking[0]}")
        else:
            answers += predict_task(
                task, split, path, folders, compute, args.batch_size, args.policy, args.seed
            )
    for line in missing:
        say(f"missing  {line}; that costs up to {MOST_POINTS} points")
    if not answers:
        raise SpotTuneError(f"no task could be predicted, so {args.out} was not written")
    write_answers(answers, args.out, args.zip)
    advice = f"score them with `python score.py {args.out}`"
    if split == "test":
        packed = args.out.with_suffix(".zip") if args.zip else "it, packed with --zip,"
        advice = f"upload {packed} to the challenge's server"
    answered = f"{len(TASKS) - len(missing)} of {len(TASKS)} tasks"
    say(f"{args.out}: {len(answers):,} answers for {answered}; {advice}")


def parse_args(split: str, description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description)
    add_data_arguments(parser)
    add_compute_arguments(parser)
    # fmt: off
    add = parser.add_argument
    add("--batch_size", type=positive_int, default=128, help="images per step")
    add("--out", type=Path, default=Path(split) / "results.json", metavar="FILE",
        help="what to write")
    add("--compact", action="store_true",
        help="predict with compact.safetensors, what Global-k leaves of each target's network")
    add("--zip", action="store_true", help="also pack it beside itself, as the server takes it")
    # fmt: on
    return parser.parse_args(argv)


def check_output(path: Path, zipped: bool) -> None:
    """Raise SpotTuneError before any work if the answers could not be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise SpotTuneError(f"--out {path}: that folder cannot be written to; name another")
    if path.is_dir() or (zipped and path.suffix == ".zip"):
        raise SpotTuneError(f"--out {path}: expected the name of a file such as results.json")


def predict_task(
    task: DecathlonTask,
    split: str,
    path: Path,
    folders: DataFolders,
    compute: Compute,
    batch_size: int,
    policy: str | None,
    seed: int,
) -> list[dict[str, int]]:
    """One answer of the checkpoint in `path` for every image, in the annotations' order.

    `policy` None: the method's own.
    """
    checkpoint = Checkpoint.load(path)
    if checkpoint.task != task.name:
        raise SpotTuneError(f"{path}: is of {checkpoint.task}; expected {task.name}")
    settings = checkpoint.settings
    images = load_images(task, [split], folders, settings.resize)
    check_categories(task.name, checkpoint.categories, images.categories.tolist())
    method = checkpoint.network(path)
    method.to(compute.device, memory_format=torch.channels_last)

    view = view_of(task, images, settings.resize, settings.crop, training=False)
    data = TaskData(images, view, (settings.mean, settings.std), compute.device)
    policy = choose_policy(method.policies, policy)
    predictions = predict(
        method, data, batch_size, policy, (seed, task.name, split), compute, task.name
    )
    say(f"{task.name}: {len(images):,} images{remark(checkpoint, split)}")
    image_ids = images.image_ids.tolist()
    category_ids = images.categories[predictions.labels].tolist()
    return [
        {"image_id": image, "category_id": category}
        for image, category in zip(image_ids, category_ids, strict=True)
    ]


def remark(checkpoint: Checkpoint, split: str) -> str:
    """What a reader should know about a network before trusting its answers."""
    done, planned = len(checkpoint.history), checkpoint.settings.epochs
    found = f"; training stopped after {done} of {planned} epochs" if done < planned else ""
    if split == "val" and done and checkpoint.history[-1]["val_seen_in_training"]:
        found += "; trained on train and val, so these images were seen in training"
    return found


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
