"""Predict the classes of pictures with a network that train_folder.py or main.py has trained.

    python predict.py cv/birds photos/birds/test --csv answers.csv --draw pictures/

One line a picture: file, answer, probability, runner-up, and which blocks were fine-tuned ones. A
picture that cannot be read is named, the others are answered, and the exit status is 1.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from decathlon import TASK_BY_NAME
from engine.answers import answers, as_csv
from engine.arguments import add_device_arguments
from engine.checkpoints import Checkpoint, best_file, checkpoint_file
from engine.evaluation import predict
from engine.own_pictures import reading_of, view_of_pictures
from engine.settings import RESNET26
from image_cache.batches import TaskData
from image_cache.decoding import Reading, all_decoded
from image_cache.packed import PackedImages
from image_folders.listing import pictures_below
from imdbfolder_coco import view_of
from methods.registry import METHODS, choose_policy
from reporting.drawing import draw_answer
from runtime.cli import Parser, positive_int
from runtime.devices import Compute, choose_compute
from runtime.errors import SpotTuneError, run_script
from runtime.files import check_place, write_whole
from runtime.progress import say, track

AT_ONCE = 512  # pictures in memory


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Predict the classes of pictures with a trained network.")
    add = parser.add_argument
    # fmt: off
    add("run", type=Path, metavar="RUN",
        help="a run's folder, such as cv/birds, or a checkpoint in it")
    add("pictures", type=Path, nargs="+", metavar="PICTURES",
        help="files, and folders, with the folders in them")
    add("--csv", type=Path, metavar="FILE", help="write the answers there; unset: they are printed")
    add("--json", type=Path, metavar="FILE", help="write them there as JSON")
    add("--draw", type=Path, metavar="DIR",
        help="draw each picture there, with its answer and its blocks")
    add("--best", action="store_true",
        help="the epoch with the best val accuracy, which --keep best has kept")
    add("--batch_size", type=positive_int, default=32, help="pictures at once")
    # fmt: on
    add_device_arguments(parser)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Predictor:
    """A trained network, and how pictures are made ready for it."""

    checkpoint: Checkpoint
    method: nn.Module
    classes: list[str]
    reading: Reading
    compute: Compute

    @classmethod
    def opened(cls, path: Path, device: str = "auto", precision: str = "auto") -> "Predictor":
        """Of a checkpoint's file; raises SpotTuneError if it is none.

        `precision` "auto": that of the training.
        """
        if not path.is_file():
            raise SpotTuneError(
                f"{path}: no such checkpoint; name a run's folder, such as cv/birds"
            )
        checkpoint = Checkpoint.load(path, advice="Name a run's folder, such as cv/birds")
        settings = checkpoint.settings
        compute = choose_compute(device, settings.precision if precision == "auto" else precision)
        if settings.backbone == RESNET26:
            reading = Reading(settings.resize)
        else:
            reading = reading_of(settings.resize, settings.fit, settings.interpolation)
        method = checkpoint.network(path).to(compute.device)
        return cls(checkpoint, method, [*map(str, checkpoint.categories)], reading, compute)

    def rows(
        self,
        pictures: Mapping[str, np.ndarray],
        policy: str | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ) -> list[dict]:
        """The columns of engine/answers.py for pictures H x W x 3 uint8, by their names."""
        if not pictures:
            return []
        settings, kind = self.checkpoint.settings, self.checkpoint.kind
        images = PackedImages.of_arrays(list(pictures.values()), len(self.classes))
        if settings.backbone == RESNET26:
            task = TASK_BY_NAME[self.checkpoint.task]
            view = view_of(task, images, settings.resize, settings.crop, training=False)
        else:
            view = view_of_pictures(settings, training=False)
        data = TaskData(images, view, (settings.mean, settings.std), self.compute.device)
        policies = METHODS[kind].policies if kind in METHODS else ()
        asked = policy or (settings.policy if policies else None)
        predictions = predict(
            self.method, data, batch_size, choose_policy(policies, asked),
            (seed, self.checkpoint.task, "predict", *pictures), self.compute, "pictures",
            details=True,
        )  # fmt: skip
        return list(answers(list(pictures), self.classes, predictions))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    for path in filter(None, (args.csv, args.json)):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_place(path)
    files = files_of(args.pictures)
    predictor = Predictor.opened(checkpoint_of(args.run, args.best), args.device, args.precision)
    rows, broken = [], []
    for pictures in in_chunks(track(files, len(files), "pictures", unit="picture")):
        pixels = decode(pictures, predictor.reading, broken)
        if not pixels:
            continue
        found = predictor.rows(pixels, args.policy, args.batch_size, args.seed)
        if args.draw:
            for row in found:
                draw_answer(pixels[row["file"]], row, args.draw)
        rows += found
    for path, content in ((args.csv, as_csv(rows)), (args.json, json.dumps(rows, indent=1) + "\n")):
        if path:
            write_whole(path, content.encode(errors="surrogateescape"))
            say(f"{len(rows)} answers: {path}")
    if not args.csv and not args.json:
        sys.stdout.write(as_csv(rows))
    if args.draw and rows:
        say(f"{len(rows)} pictures: {args.draw}")
    if broken:
        for line in broken:
            print(line, file=sys.stderr)
        raise SpotTuneError(f"{len(broken)} of {len(files)} pictures could not be read: see above")


def checkpoint_of(run: Path, best: bool) -> Path:
    """The checkpoint's file of a run's folder; a file as it is."""
    path = run
    if run.is_dir():
        path = checkpoint_file(run.parent, run.name)
        if best and not best_file(path).is_file():
            raise SpotTuneError(f"{best_file(path)}: no such file; train with --keep best")
    is_named = path.name == best_file(path.with_name("checkpoint.safetensors")).name
    return best_file(path) if best and not is_named else path


def files_of(named: Sequence[Path]) -> list[Path]:
    """The files named, and all pictures in the folders named. Raises SpotTuneError for neither."""
    files = []
    for path in named:
        if path.is_dir():
            found, others = pictures_below(path)
            files += [path / name for name in found]
            if others:
                print(f"{path}: {others} files that are no pictures are skipped", file=sys.stderr)
        elif path.exists():
            files.append(path)
        else:
            raise SpotTuneError(f"{path}: no such picture or folder")
    if not files:
        raise SpotTuneError(f"{', '.join(map(str, named))}: no pictures in it")
    return list(dict.fromkeys(files))


def in_chunks(files: Iterator[Path]) -> Iterator[list[Path]]:
    chunk = []
    for file in files:
        chunk.append(file)
        if len(chunk) == AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def decode(files: Sequence[Path], reading: Reading, broken: list[str]) -> dict[str, np.ndarray]:
    """Pixels by file; what is wrong with the others is added to `broken`."""
    pixels = {}
    for file, result in zip(files, all_decoded(files, reading), strict=True):
        if isinstance(result, str):
            broken.append(result)
        else:
            pixels[str(file)] = result
    return pixels


if __name__ == "__main__":
    run_script(main)
