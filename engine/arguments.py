"""Command-line arguments that several scripts share, and their checks."""

import argparse
import difflib
from pathlib import Path

from decathlon import TASK_BY_NAME
from engine.data_layout import misplaced_annotations
from engine.settings import LARGEST
from gumbel_softmax import POLICIES
from image_cache.packed import DataFolders
from models.resnet26 import BLOCKS_PER_STAGE, SIDE_MULTIPLE
from runtime.cli import folder_name, number, whole_number
from runtime.errors import SpotTuneError

SMALLEST_SIDE = 2 * SIDE_MULTIPLE
NUM_BLOCKS = sum(BLOCKS_PER_STAGE)


number_of_blocks = number(
    int,
    lambda value: 0 <= value <= NUM_BLOCKS,
    f"0 to {NUM_BLOCKS}, the residual blocks of the ResNet-26",
)


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
    """Which tasks, how decisions are made at test time, and where to compute."""
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        type=task_name,
        default=list(TASK_BY_NAME),
        help=f"any of {', '.join(TASK_BY_NAME)}; unset: all",
    )
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
    if crop > resize:
        raise SpotTuneError(
            f"--crop {crop}: larger than the images' shorter side, --resize {resize}; expected at "
            f"most {resize}"
        )
