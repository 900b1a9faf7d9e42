"""Command-line arguments that several scripts share, and their checks."""

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from decathlon import TASK_BY_NAME
from engine.data_layout import misplaced_annotations
from engine.settings import BALANCES, LARGEST, SCHEDULES, Recipe
from gumbel_softmax import POLICIES, TEMPERATURE
from image_cache.packed import DataFolders
from methods.optimizers import OPTIMIZERS
from methods.registry import METHODS, choose_policy
from models.resnet26 import BLOCKS_PER_STAGE, SIDE_MULTIPLE
from models.spottune import KEPT_NORMS
from runtime.cli import (
    folder_name,
    non_negative_float,
    non_negative_int,
    number,
    positive_float,
    positive_int,
    share,
    whole_number,
)
from runtime.devices import Compute
from runtime.errors import SpotTuneError

SMALLEST_SIDE = 2 * SIDE_MULTIPLE
NUM_BLOCKS = sum(BLOCKS_PER_STAGE)


number_of_blocks = number(
    int,
    lambda value: 0 <= value <= NUM_BLOCKS,
    f"0 to {NUM_BLOCKS}, the residual blocks of the ResNet-26",
)


channels = number(int, lambda value: 1 <= value <= LARGEST, f"1 to {LARGEST} channels")


def task_name(text: str) -> str:
    """An argparse type: the name of a task; for another word, the closest name is suggested."""
    if text in TASK_BY_NAME:
        return text
    close = difflib.get_close_matches(text.lower(), TASK_BY_NAME, n=1, cutoff=0.7)
    advice = f"did you mean {close[0]}?" if close else f"expected {', '.join(TASK_BY_NAME)}"
    raise argparse.ArgumentTypeError(f"no task is named {text!r} ({advice})")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Where images, annotations and checkpoints lie."""
    add_image_arguments(parser)
    parser.add_argument(
        "--ckpdir",
        type=folder_name,
        default=Path("cv"),
        metavar="DIR",
        help="one folder per task: checkpoint, records, curves",
    )


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Where images and annotations lie."""
    parser.add_argument(
        "--datadir",
        type=folder_name,
        default=Path("data/decathlon-1.0"),
        metavar="DIR",
        help="the unpacked Decathlon, holding data/<task>/...",
    )
    parser.add_argument(
        "--imdbdir",
        type=folder_name,
        metavar="DIR",
        help="folder of <task>_<split>.json; unset: annotations/ below --datadir",
    )
    parser.add_argument(
        "--cachedir",
        type=folder_name,
        metavar="DIR",
        help="folder for the decoded images; unset: packed/ below --datadir",
    )


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tasks of the Decathlon, and all that add_device_arguments adds."""
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        type=task_name,
        default=list(TASK_BY_NAME),
        help=f"any of {', '.join(TASK_BY_NAME)}; unset: all",
    )
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """How decisions are made at test time, the seed, and where to compute."""
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        help="at test time: the likelier decision, a seeded draw (the released code draws, "
        "unseeded), or all blocks fine-tuned or all kept; unset: argmax, and sample for "
        "--method stochastic",
    )
    parser.add_argument(
        "--seed",
        type=whole_number,
        default=0,
        help="fixes initial weights, batch order, crops and sampled decisions",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ...; auto: a GPU if there is one"
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="of convolutions; auto: bf16 where the device has instructions for it",
    )


def data_folders(datadir: Path, imdbdir: Path | None, cachedir: Path | None) -> DataFolders:
    """The three folders; raises SpotTuneError, with advice, if there are no data."""
    imdbdir = imdbdir or datadir / "annotations"
    for folder, flag in ((datadir, "--datadir"), (imdbdir, "--imdbdir")):
        if not folder.is_dir():
            if datadir.is_dir() and (advice := misplaced_annotations(datadir)):
                raise SpotTuneError(f"{folder}: no such folder, but {advice}")
            raise SpotTuneError(
                f"{folder}: no such folder, so there are no data. Fetch them with "
                f"`./download_data.sh ./data/`, name their folder with {flag}, or see a run on "
                f"made-up data with `make demo`"
            )
    return DataFolders(datadir, imdbdir, cachedir or datadir / "packed")


def check_sides(resize: int, crop: int) -> None:
    """Raise SpotTuneError unless both are multiples of 8 and the crop fits into the image."""
    for flag, side in (("--resize", resize), ("--crop", crop)):
        if not SMALLEST_SIDE <= side <= LARGEST:
            raise SpotTuneError(f"{flag} {side}: expected between {SMALLEST_SIDE} and {LARGEST}")
        if side % SIDE_MULTIPLE:
            below = side // SIDE_MULTIPLE * SIDE_MULTIPLE
            raise SpotTuneError(
                f"{flag} {side}: expected a multiple of {SIDE_MULTIPLE}, since a block's pooled "
                f"shortcut and its strided convolution differ in size otherwise. "
                f"Try {below + SIDE_MULTIPLE}"
            )
    check_crop(resize, crop, "images")


def check_crop(resize: int, crop: int, what: str) -> None:
    """Raise SpotTuneError unless the crop fits into the images, called `what` in the message."""
    if crop > resize:
        raise SpotTuneError(
            f"--crop {crop}: larger than the {what}' shorter side, --resize {resize}; expected at "
            f"most {resize}"
        )


# The flags that recipe_of takes; those that are named as in Recipe go into it as they are.
DERIVED = {"epochs", "milestones", "precision", "compiled", "keep_best"}
RECIPE_FLAGS = ("method", "nb_epochs", "step1", "step2", "step3", "keep")
RECIPE_FLAGS += tuple(field.name for field in fields(Recipe) if field.name not in DERIVED)


@dataclass(frozen=True)
class Defaults:
    """What is trained with unless a flag says otherwise."""

    nb_epochs: int
    lr: float | None  # None: depends on the optimiser
    lr_agent: float | None
    step1: int | None
    batch_size: int
    schedule: str


RELEASED = Defaults(110, 0.1, 0.01, 40, 128, "step")


def add_method_arguments(parser: argparse.ArgumentParser, k_type: Callable[[str], int]) -> None:
    """The method, and the settings of single methods."""
    add = parser.add_argument
    # fmt: off
    add("--method", choices=list(METHODS), default="spottune",
        help="; ".join(f"{row.name}: {row.title}" for row in METHODS.values()))
    add("--k", type=k_type, default=3, help="blocks that lastk, bn_lastk or globalk fine-tunes")
    add("--l2sp_alpha", type=non_negative_float, default=0.1,
        help="l2sp: penalty on the distance from the pretrained weights")
    add("--l2sp_beta", type=non_negative_float, default=0.01,
        help="l2sp: penalty on the new classifier")
    add("--lambda_k", type=non_negative_float, default=1.0,
        help="globalk: weight of (number of fine-tuned blocks - k)^2")
    add("--lambda_e", type=non_negative_float, default=1.0,
        help="globalk: weight of the entropy of the blocks' shares")
    add("--temperature", type=positive_float, default=TEMPERATURE, metavar="T",
        help="of Gumbel-softmax")
    add("--final_temperature", type=positive_float, metavar="T",
        help="of the last epoch, reached by equal steps; unset: as --temperature")
    add("--kept_norm", choices=KEPT_NORMS, default="train",
        help="BatchNorm of kept blocks: it trains in the released code; the paper freezes kept "
             "blocks")
    # fmt: on


def add_training_arguments(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """How the target tasks are trained. Beyond the released recipe, all is off by default."""
    add = parser.add_argument
    # fmt: off
    add("--nb_epochs", type=positive_int, default=defaults.nb_epochs,
        help="epochs on each target task")
    add("--lr", type=positive_float, default=defaults.lr,
        help="initial learning rate of the network")
    add("--lr_agent", type=positive_float, default=defaults.lr_agent,
        help="the same of the policy network")
    add("--step1", type=positive_int, default=defaults.step1, metavar="EPOCH",
        help="both learning rates drop tenfold after so many epochs")
    add("--step2", type=positive_int, metavar="EPOCH",
        help="and again (the released code names 60, but never drops there)")
    add("--step3", type=positive_int, metavar="EPOCH", help="and again (the released code: 80)")
    add("--schedule", choices=SCHEDULES, default=defaults.schedule,
        help="of both learning rates: step, as released, or cosine, which falls to 0 and has no "
             "use for the steps")
    add("--warmup", type=non_negative_float, default=0.0, metavar="EPOCHS",
        help="in which the learning rates rise from 0")
    add("--optimizer", choices=OPTIMIZERS, default="sgd",
        help="sgd with momentum, as released, or adamw, which needs much smaller learning rates")
    add("--label_smoothing", type=share, default=0.0, help="of the cross-entropy in training")
    add("--grad_clip", type=non_negative_float, default=0.0, metavar="NORM",
        help="largest norm of all gradients together; 0: any")
    add("--balance", choices=BALANCES, default="none",
        help="for classes of unequal size: loss weighs the cross-entropy, sampling draws each "
             "class equally often")
    add("--images_per_class", type=non_negative_int, default=0, metavar="N",
        help="train on at most so many images of each class, chosen by --seed; 0: all")
    add("--train_share", type=share, default=1.0,
        help="train on this share of each class, chosen by --seed")
    add("--keep", choices=["last", "best"], default="last",
        help="best: also keep the checkpoint of the epoch with the best val accuracy")
    add("--batch_size", type=positive_int, default=defaults.batch_size, help="images per step")
    # fmt: on


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """How a run proceeds; but for --compile and --threads, without any influence on its result."""
    add = parser.add_argument
    # fmt: off
    add("--compile", action="store_true",
        help="train through torch.compile with CUDA graphs; for GPUs, pays from some minutes on")
    add("--eval_every", type=positive_int, default=1, metavar="N",
        help="evaluate on val every N epochs, and after the last")
    add("--checkpoint_minutes", type=positive_float, default=10.0, metavar="MINUTES",
        help="save inside an epoch too, after so many minutes")
    add("--tensorboard", action="store_true",
        help="write the records as TensorBoard's events too, into each task's folder")
    add("--jobs", type=positive_int, metavar="N",
        help="tasks that are trained side by side, each as a process on a GPU of its own; unset: "
             "as many as there are visible GPUs, or one")
    add("--retries", type=non_negative_int, default=2, metavar="N",
        help="how often a task whose process dies is started again from its checkpoint, with "
             "several --jobs")
    add("--threads", type=positive_int, metavar="N",
        help="CPU threads of each process; unset: as many as PyTorch takes, divided by the jobs. "
             "On a CPU, bits are equal for equal numbers of threads only")
    add("--is_job", action="store_true", help=argparse.SUPPRESS)  # set for the processes of --jobs
    # fmt: on


def recipe_of(
    method: str,
    compute: Compute,
    nb_epochs: int,
    step1: int | None,
    step2: int | None,
    step3: int | None,
    temperature: float,
    final_temperature: float | None,
    keep: str,
    policy: str | None,
    **same: object,
) -> Recipe:
    """What the flags named in RECIPE_FLAGS say. Raises SpotTuneError if they do not go together."""
    if compute.compiled and (final_temperature or temperature) != temperature:
        raise SpotTuneError(
            "--compile with --final_temperature: each epoch would be compiled anew; leave one out"
        )
    return Recipe(
        epochs=nb_epochs,
        milestones=tuple(step for step in (step1, step2, step3) if step),
        temperature=temperature,
        final_temperature=final_temperature or temperature,
        keep_best=keep == "best",
        policy=choose_policy(METHODS[method].policies, policy),
        precision=compute.precision,
        compiled=compute.compiled,
        **same,
    )
