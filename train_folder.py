"""Train SpotTune, or a method that it is compared with, on folders of your own pictures.

    python train_folder.py photos/birds --backbone resnet50

Each folder is a task: photos/birds/train/CLASS/..., and photos/birds/val/CLASS/... if there is such
a part. The backbone is one of torchvision's ResNets or of timm's residual networks, with ImageNet
weights unless --weights says otherwise. A run leaves what main.py leaves, in --ckpdir/<folder>/,
and continues in the same way.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from engine.arguments import (
    RECIPE_FLAGS,
    Defaults,
    add_device_arguments,
    add_method_arguments,
    add_run_arguments,
    add_training_arguments,
    channels,
    check_crop,
    recipe_of,
)
from engine.checkpoints import Checkpoint, checkpoint_file
from engine.events import check_tensorboard
from engine.fit import Pace
from engine.own_pictures import Backbone, FolderPlace, FolderProblem, Framing
from engine.settings import FITS, LARGEST
from engine.training import train
from image_folders.images import check_names, folder_name_of
from image_folders.listing import read_listing
from launch.side_by_side import check_finished, end_with_parent, job_command, run_tasks
from methods.registry import METHODS
from models.resnet26 import PAPER_WIDTH
from reporting.plots import draw_curves
from reporting.run_table import show_results
from runtime.cli import Parser, folder_name, non_negative_float, non_negative_int, number
from runtime.devices import choose_compute, describe, job_devices
from runtime.errors import SpotTuneError, run_script
from runtime.locks import refuse_claimed
from runtime.progress import say
from weights.backbone_weights import IMAGENET, NONE

SCRIPT = Path(__file__).resolve()  # it may be started through a link
OURS = Defaults(nb_epochs=30, lr=None, lr_agent=None, step1=None, batch_size=32, schedule="cosine")
# By optimiser: learning rate of the network, of the policy network, and weight decay.
RATES = {"sgd": (0.01, 0.01, 1e-4), "adamw": (1e-4, 1e-3, 0.05)}
SMALLEST_SIDE = 16

side = number(
    int, lambda value: SMALLEST_SIDE <= value <= LARGEST, f"{SMALLEST_SIDE} to {LARGEST} pixels"
)
policy_side = number(
    int,
    lambda value: value == 0 or SMALLEST_SIDE <= value <= LARGEST,
    f"0, or {SMALLEST_SIDE} to {LARGEST} pixels",
)
area = number(float, lambda value: 0 < value <= 1, "a number above 0 and up to 1")
val_share = number(float, lambda value: 0 < value < 1, "a number between 0 and 1")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Train SpotTune, or another method, on folders of your own pictures.")
    add = parser.add_argument
    # fmt: off
    add("folders", nargs="+", type=folder_name, metavar="FOLDER",
        help="holds train/CLASS/... and, if there is such a part, val/CLASS/...; each is a task")
    add("--ckpdir", type=folder_name, default=Path("cv"), metavar="DIR",
        help="one folder per task: checkpoint, records, curves")
    add("--cachedir", type=folder_name, metavar="DIR",
        help="folder for the decoded pictures; unset: packed/ below --ckpdir")
    add("--backbone", default="resnet50", metavar="NAME",
        help="resnet18 to resnet152, wide_resnet..., resnext... of torchvision, or timm:NAME")
    add("--weights", default=IMAGENET, metavar="FILE",
        help=f"{IMAGENET}, which the library downloads; a file (.safetensors, or .pth with a state "
             f"dict); or {NONE}")
    add("--resize", type=side, default=256, help="shorter side of every picture, in pixels")
    add("--crop", type=side, default=224, help="side of what the network sees, in pixels")
    add("--fit", choices=FITS, default="crop",
        help="squeeze: pictures become squares, for objects that fill the width; nothing is cut "
             "off in evaluation")
    add("--min_area", type=area, default=0.08,
        help="of the random boxes in training, as a share of the picture")
    add("--val_share", type=val_share, default=0.2,
        help="share of train that is set aside, chosen by --seed, where there is no val")
    add("--mean_std", choices=["weights", "own"], default="weights",
        help="to normalise with: those of the weights, or of the training pictures")
    add("--weight_decay", type=non_negative_float,
        help="of the network; unset: 0.0001 with sgd, 0.05 with adamw")
    add("--width", type=channels, default=PAPER_WIDTH,
        help="channels of the policy network's stem")
    add("--policy_size", type=policy_side, default=64,
        help="the policy network sees pictures of this side, in pixels; 0: as the backbone")
    # fmt: on
    add_method_arguments(parser, non_negative_int)
    add_training_arguments(parser, OURS)
    add_device_arguments(parser)
    add_run_arguments(parser)
    add("--only", help=argparse.SUPPRESS)  # the task of one of the processes of --jobs
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.is_job:
        end_with_parent()
    if args.tensorboard:
        check_tensorboard()
    check_crop(args.resize, args.crop, "pictures")
    check_names(args.folders)
    folders = [each for each in args.folders if args.only in (None, folder_name_of(each))]
    names = [folder_name_of(folder) for folder in folders]
    listings = [read_listing(folder) for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        refuse_claimed(checkpoint_file(args.ckpdir, name).parent)
        for split in ("train", "val"):
            if args.ckpdir.resolve().is_relative_to((folder / split).resolve()):
                raise SpotTuneError(
                    f"--ckpdir {args.ckpdir}: lies in {folder / split}, where it would become a "
                    f"class; name another folder"
                )
    devices = job_devices(args.device, args.jobs, len(names))
    is_alone = len(devices) == 1
    device = args.device if is_alone else "cpu"  # the parent of others opens no GPU
    compute = choose_compute(device, args.precision, args.compile, args.threads)
    lr, lr_agent, weight_decay = RATES[args.optimizer]
    flags = {name: getattr(args, name) for name in RECIPE_FLAGS if name != "train_split"}
    recipe = recipe_of(compute=compute, train_split="train", **flags)
    recipe = replace(recipe, lr=args.lr or lr, lr_agent=args.lr_agent or lr_agent)
    method = METHODS[args.method]
    weights = args.weights if method.from_source else NONE
    where = describe(compute) if is_alone else ", ".join(devices)
    say(f"{method.title} of {args.backbone} on {where}; seed {args.seed}, records in {args.ckpdir}")
    if is_alone:
        backbone = Backbone.opened(args.backbone, weights, args.crop)
        framing = Framing(args.fit, args.min_area, own_mean_std=args.mean_std == "own")
        pace = Pace(args.eval_every, 60 * args.checkpoint_minutes, args.tensorboard)
        place = FolderPlace(args.ckpdir, compute, pace)
        decay = weight_decay if args.weight_decay is None else args.weight_decay
        problems = [
            FolderProblem.opened(
                folder, listing, args.cachedir or args.ckpdir / "packed", recipe, backbone,
                framing, args.val_share, decay, args.policy_size, compute,
            )
            for folder, listing in zip(folders, listings, strict=True)
        ]  # fmt: skip
        histories = {}
        for problem in problems:
            histories[problem.name] = train(problem, method.name, recipe, place)
            curves = checkpoint_file(args.ckpdir, problem.name).with_name("curves.png")
            draw_curves(histories[problem.name], problem.name, curves)
    else:
        threads = args.threads or max(1, torch.get_num_threads() // len(devices))
        own_arguments = sys.argv[1:] if argv is None else argv
        command = job_command(SCRIPT, own_arguments, threads, "--only")
        failed = run_tasks(names, devices, command, args.ckpdir, args.retries)
        paths = {n: checkpoint_file(args.ckpdir, n) for n in names if n not in failed}
        histories = {name: Checkpoint.load(path).history for name, path in paths.items()}
    if not args.is_job:
        show_results(histories, args.ckpdir)
        check_finished(names, histories, args.ckpdir)


if __name__ == "__main__":
    run_script(main)
