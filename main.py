"""Train the Visual Decathlon: the source network on imagenet12, then a method on nine targets.

Guo et al., *SpotTune: Transfer Learning through Adaptive Fine-tuning*, CVPR 2019. The method is
SpotTune unless --method names one of its variants or of the paper's baselines. Each task leaves
its checkpoint, records and curves in --ckpdir/<task>/. Started again with the same arguments, a run
that was stopped continues from the last step that was saved, inside an epoch too.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from decathlon import SOURCE, TASK_BY_NAME, DecathlonTask
from engine.arguments import (
    RECIPE_FLAGS,
    RELEASED,
    add_compute_arguments,
    add_data_arguments,
    add_method_arguments,
    add_run_arguments,
    add_training_arguments,
    channels,
    check_sides,
    data_folders,
    number_of_blocks,
    recipe_of,
)
from engine.data_layout import misplaced_images
from engine.events import check_tensorboard
from engine.fit import Pace
from engine.settings import TRAIN_SPLITS, Recipe
from engine.transfer import Workspace, refuse_adopted, source_weights, train_task
from launch.side_by_side import (
    check_finished,
    end_with_parent,
    job_command,
    longest_first,
    train_side_by_side,
)
from methods.registry import METHODS, MethodRow
from models.resnet26 import BLOCKS_PER_STAGE, PAPER_WIDTH
from reporting.plots import draw_curves
from reporting.run_table import show_results
from runtime.cli import Parser, positive_int
from runtime.devices import choose_compute, describe, job_devices
from runtime.distributed import check_group, group_of_processes, own_device
from runtime.errors import SpotTuneError, run_script
from runtime.locks import refuse_claimed
from runtime.progress import say
from weights.mean_std import find_mean_std, read_mean_std

SCRIPT = Path(__file__).resolve()  # it may be started through a link
OWN_MEAN_STD = SCRIPT.parent / "decathlon_mean_std.pickle"
RELEASED_WEIGHTS = "resnet26_pretrained.t7"  # looked for here and beside this script


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Train the source network, and SpotTune or a baseline, on Decathlon tasks.")
    add_data_arguments(parser)
    add_compute_arguments(parser)
    add_method_arguments(parser, number_of_blocks)
    add = parser.add_argument
    # fmt: off
    add("--pretrained", type=Path, metavar="FILE",
        help="source weights: the released .t7, a checkpoint of imagenet12, or none; unset: "
             f"./{RELEASED_WEIGHTS} if it is there, else imagenet12 is trained")
    add("--mean_std", type=Path, metavar="FILE",
        help="mean and std of every task, to normalise with; unset: decathlon_mean_std.pickle in "
             "--datadir if it is there, else the one beside this script")
    add("--train_split", choices=list(TRAIN_SPLITS), default="trainval",
        help="trainval, as the challenge allows: val accuracies are then on images seen in "
             "training; train gives honest ones")
    add("--source_epochs", type=positive_int, default=120, help="epochs on imagenet12")
    add("--source_steps", type=positive_int, nargs="*", default=[80, 100], metavar="EPOCH",
        help="tenfold drops of imagenet12's learning rate")
    add("--resize", type=positive_int, default=72, help="shorter side of every image, in pixels")
    add("--crop", type=positive_int, default=64, help="side of random crops, in pixels")
    add("--width", type=channels, default=PAPER_WIDTH,
        help="channels of the stem of network and policy network")
    # fmt: on
    add_training_arguments(parser, RELEASED)
    add_run_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.is_job:
        end_with_parent()
    if args.tensorboard:
        check_tensorboard()
    check_sides(args.resize, args.crop)
    tasks = [TASK_BY_NAME[name] for name in dict.fromkeys(args.tasks)]
    devices = job_devices(args.device, args.jobs, len(tasks))
    is_alone = len(devices) == 1
    device = own_device(args.device) if is_alone else "cpu"  # the parent of others opens no GPU
    compute = choose_compute(device, args.precision, args.compile, args.threads)
    method = METHODS[args.method]
    recipe = recipe_of(compute=compute, **{name: getattr(args, name) for name in RECIPE_FLAGS})
    for_source = replace(
        recipe.as_released(), epochs=args.source_epochs, milestones=tuple(args.source_steps)
    )
    pretrained = pretrained_file(args.pretrained)
    with group_of_processes(compute.device) as group:
        only_source = tasks == [SOURCE] and pretrained is None
        check_group(group, args.batch_size, only_source, args.compile)
        mean_std = find_mean_std(args.mean_std, args.datadir, OWN_MEAN_STD)
        space = Workspace(
            folders=data_folders(args.datadir, args.imdbdir, args.cachedir),
            ckpdir=args.ckpdir,
            mean_std=read_mean_std(mean_std),
            compute=replace(compute, group=group),
            pace=Pace(args.eval_every, 60 * args.checkpoint_minutes, args.tensorboard),
        )
        check_tasks(tasks, space, pretrained, method.from_source)
        if str(args.pretrained) == "none":
            refuse_adopted(space.checkpoint(SOURCE))
        where = describe(space.compute) if is_alone else ", ".join(devices)
        say(f"{method.title} on {where}; seed {args.seed}, records in {args.ckpdir}")
        say(f"mean and std of the images: {mean_std}")
        if is_alone:
            histories = train_in_turn(space, tasks, method, recipe, for_source, pretrained)
        else:
            threads = args.threads or max(1, torch.get_num_threads() // len(devices))
            command = job_command(SCRIPT, sys.argv[1:] if argv is None else argv, threads)
            splits = TRAIN_SPLITS[args.train_split]
            targets = longest_first(
                tasks, space.folders, args.ckpdir, splits, args.nb_epochs, args.resize, args.crop
            )
            histories = train_side_by_side(
                tasks, targets, args.ckpdir, devices, command, args.retries
            )
        if group.is_first and not args.is_job:
            show_results(histories, args.ckpdir, BLOCKS_PER_STAGE)
    check_finished([task.name for task in tasks], histories, args.ckpdir)


def train_in_turn(
    space: Workspace,
    tasks: Sequence[DecathlonTask],
    method: MethodRow,
    recipe: Recipe,
    for_source: Recipe,
    pretrained: Path | None,
) -> dict[str, list[dict]]:
    """The source network first, then the method on each target; their histories."""
    weights, histories = None, {}
    if method.from_source or SOURCE in tasks:
        weights, history = source_weights(space, for_source, pretrained, SOURCE in tasks)
        histories = {SOURCE.name: history} if SOURCE in tasks else {}
        if SOURCE in tasks and history and "train_loss" in history[-1]:  # else it was not trained
            draw_task_curves(space, SOURCE, history)
    weights = weights if method.from_source else None
    for task in tasks:
        if task is not SOURCE:
            histories[task.name] = train_task(space, task, method.name, recipe, weights)
            draw_task_curves(space, task, histories[task.name])
    return histories


def draw_task_curves(space: Workspace, task: DecathlonTask, history: list[dict]) -> None:
    if space.compute.group.is_first:
        draw_curves(history, task.name, space.checkpoint(task).with_name("curves.png"))


def pretrained_file(named: Path | None) -> Path | None:
    """The file of source weights: the one named, or the released one if it is here."""
    if named is None:
        places = (Path(RELEASED_WEIGHTS), SCRIPT.parent / RELEASED_WEIGHTS)
        return next((place for place in places if place.is_file()), None)
    if str(named) == "none":
        return None
    if not named.is_file():
        raise SpotTuneError(
            f"--pretrained {named}: no such file of source weights. Give the right path, or train "
            f"the source network with --pretrained none --tasks imagenet12"
        )
    return named


def check_tasks(
    tasks: Sequence[DecathlonTask], space: Workspace, pretrained: Path | None, from_source: bool
) -> None:
    """Raise SpotTuneError at once if something that the run needs is missing."""
    space.ckpdir.mkdir(parents=True, exist_ok=True)
    if not os.access(space.ckpdir, os.W_OK):
        raise SpotTuneError(f"--ckpdir {space.ckpdir}: cannot be written to; name another folder")
    has_source = pretrained is not None or space.checkpoint(SOURCE).exists()
    if from_source and SOURCE not in tasks and not has_source:
        raise SpotTuneError(
            f"no source weights: {space.checkpoint(SOURCE)} does not exist. Name some with "
            f"--pretrained, put the released {RELEASED_WEIGHTS} here, or add imagenet12 to "
            f"--tasks; only --method scratch needs none"
        )
    normalised = {task.name for task in (*tasks, *([SOURCE] if from_source else []))}
    if lacking := sorted(normalised - space.mean_std.keys()):
        raise SpotTuneError(
            f"--mean_std: the file has no mean and std for {', '.join(lacking)}. Add them, or "
            f"leave --mean_std out"
        )
    for task in tasks:
        if task is SOURCE and has_source:
            continue
        images = space.folders.images_of(task.name)
        if advice := misplaced_images(images, space.folders.datadir):
            raise SpotTuneError(f"{task.name}: expected images in {images}, but {advice}")
        if not space.has(task, ["train", "val"]):
            raise SpotTuneError(
                f"{task.name}: expected images in {images} and "
                f"{task.name}_train.json and _val.json in {space.folders.imdbdir}. Fetch them "
                f"with `./download_data.sh ./data/`, or leave the task out with "
                f"--tasks; `make demo` shows a run on made-up data"
                + (", or give source weights with --pretrained" if task is SOURCE else "")
            )
    for task in tasks:
        if space.compute.group.is_first:  # which holds the folders for all processes
            refuse_claimed(space.checkpoint(task).parent)


if __name__ == "__main__":
    run_script(main)
