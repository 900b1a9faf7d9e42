"""Train the Visual Decathlon: the source network on imagenet12, then SpotTune on nine targets.

Guo et al., *SpotTune: Transfer Learning through Adaptive Fine-tuning*, CVPR 2019. Each task leaves
its checkpoint, records and curves in --ckpdir/<task>/. Started again with the same arguments, a run
that was stopped goes on after the last finished epoch.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from arguments import (
    HelpFormatter,
    add_compute_arguments,
    add_data_arguments,
    check_sides,
    data_folders,
    positive_float,
    positive_int,
)
from checkpoints import CHECKPOINT, load_checkpoint
from decathlon import SOURCE, TASK_BY_NAME, DecathlonTask
from devices import Compute, choose_compute, describe
from errors import SpotTuneError, run_script
from imdbfolder_coco import (
    annotation_file,
    check_categories,
    load_images,
    require_labels,
    view_of,
)
from mean_std import read_mean_std
from methods import PlainNetwork, SpotTune
from models.pretrained import SourceWeights
from models.resnet26 import PAPER_WIDTH, resnet26
from packed import DataFolders
from plots import draw_fine_tuned_share
from progress import say
from randomness import seeded_initialisation
from runs import Run, Settings, evaluate, fit, val_fields
from training import TaskData

RELEASED_WEIGHTS = Path("resnet26_pretrained.t7")
TRAIN_SPLITS = {"trainval": ("train", "val"), "train": ("train",)}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the source network and SpotTune on Visual Decathlon tasks.",
        formatter_class=HelpFormatter,
    )
    add_data_arguments(parser)
    add_compute_arguments(parser)
    add = parser.add_argument
    add(
        "--pretrained",
        type=Path,
        metavar="FILE",
        help="source weights: the released .t7, or a checkpoint of imagenet12; unset: "
        f"./{RELEASED_WEIGHTS} if it is there, else imagenet12 is trained",
    )
    add(
        "--train_split",
        choices=list(TRAIN_SPLITS),
        default="trainval",
        help="trainval, as the challenge allows: val accuracies are then on images seen in "
        "training; train gives honest ones",
    )
    add("--nb_epochs", type=positive_int, default=110, help="epochs on each target task")
    add("--lr", type=positive_float, default=0.1, help="initial learning rate of the network")
    add("--lr_agent", type=positive_float, default=0.01, help="the same of the policy network")
    add(
        "--step1",
        type=positive_int,
        default=40,
        metavar="EPOCH",
        help="both learning rates drop tenfold after so many epochs",
    )
    add(
        "--step2",
        type=positive_int,
        metavar="EPOCH",
        help="and again (the released code names 60, but never drops there)",
    )
    add("--step3", type=positive_int, metavar="EPOCH", help="and again (the released code: 80)")
    add("--source_epochs", type=positive_int, default=120, help="epochs on imagenet12")
    add(
        "--source_steps",
        type=positive_int,
        nargs="*",
        default=[80, 100],
        metavar="EPOCH",
        help="tenfold drops of imagenet12's learning rate",
    )
    add("--batch_size", type=positive_int, default=128, help="images per step")
    add("--resize", type=positive_int, default=72, help="shorter side of every image, in pixels")
    add("--crop", type=positive_int, default=64, help="side of random crops, in pixels")
    add(
        "--width",
        type=positive_int,
        default=PAPER_WIDTH,
        help="channels of the stem of network and policy network",
    )
    add(
        "--eval_every",
        type=positive_int,
        default=1,
        metavar="N",
        help="evaluate on val every N epochs, and after the last",
    )
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Workplace:
    """What all tasks of a run share: where things lie, and what computes."""

    folders: DataFolders
    ckpdir: Path
    mean_std: dict
    compute: Compute
    eval_every: int

    def data(self, task: DecathlonTask, splits: Sequence[str], settings: Settings) -> TaskData:
        """The labelled images of a task's splits, as training sees them if one is "train"."""
        images = load_images(task.name, splits, self.folders, settings.resize)
        require_labels(images, task.name)
        view = view_of(task, images, settings.resize, settings.crop, training="train" in splits)
        return TaskData(images, view, self.mean_std[task.name])

    def has(self, task: DecathlonTask) -> bool:
        """Whether the task's images and annotations are there at all."""
        return (self.folders.datadir / "data" / task.name).is_dir() and annotation_file(
            self.folders.imdbdir, task.name, "val"
        ).is_file()

    def checkpoint(self, task: DecathlonTask) -> Path:
        return self.ckpdir / task.name / CHECKPOINT


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_sides(args.resize, args.crop)
    place = Workplace(
        folders=data_folders(args.datadir, args.imdbdir, args.cachedir),
        ckpdir=args.ckpdir,
        mean_std=read_mean_std(args.mean_std),
        compute=choose_compute(args.device, args.precision),
        eval_every=args.eval_every,
    )
    settings = Settings(
        epochs=args.nb_epochs,
        milestones=tuple(step for step in (args.step1, args.step2, args.step3) if step),
        lr=args.lr,
        lr_agent=args.lr_agent,
        weight_decay=0.0,  # each task has its own
        batch_size=args.batch_size,
        resize=args.resize,
        crop=args.crop,
        width=args.width,
        seed=args.seed,
        train_split=args.train_split,
        policy=args.policy,
        precision=place.compute.precision,
        source_sha256="",
    )
    for_source = replace(
        settings,
        epochs=args.source_epochs,
        milestones=tuple(args.source_steps),
        weight_decay=SOURCE.weight_decay,
    )
    tasks = [TASK_BY_NAME[name] for name in dict.fromkeys(args.tasks)]
    pretrained = args.pretrained or (RELEASED_WEIGHTS if RELEASED_WEIGHTS.is_file() else None)
    check_tasks(tasks, place, pretrained)

    say(f"SpotTune on {describe(place.compute)}; seed {args.seed}, records in {args.ckpdir}")
    weights, histories = source_weights(place, for_source, pretrained, SOURCE in tasks)
    for task in tasks:
        if task is not SOURCE:
            histories[task.name] = train_target(place, task, settings, weights)
    report(histories, args.ckpdir)


def check_tasks(tasks: Sequence[DecathlonTask], place: Workplace, pretrained: Path | None) -> None:
    """Raise SpotTuneError at once if something that the run will need is missing."""
    has_source = pretrained is not None or place.checkpoint(SOURCE).exists()
    if SOURCE not in tasks and not has_source:
        raise SpotTuneError(
            f"no source weights: {place.checkpoint(SOURCE)} does not exist. Name some with "
            f"--pretrained, put the released {RELEASED_WEIGHTS} here, or add imagenet12 to --tasks"
        )
    for task in tasks:
        if not place.has(task) and not (task is SOURCE and has_source):
            raise SpotTuneError(
                f"{task.name}: expected images in {place.folders.datadir / 'data' / task.name} and "
                f"annotations in {place.folders.imdbdir}. Fetch them with `./download_data.sh "
                f"./data/`, leave the task out with --tasks, or see `make demo`"
                + (", or give source weights with --pretrained" if task is SOURCE else "")
            )
        if task.name not in place.mean_std:
            raise SpotTuneError(f"--mean_std: the file has no mean and std for {task.name}")


def source_weights(
    place: Workplace, settings: Settings, pretrained: Path | None, wanted: bool
) -> tuple[SourceWeights, dict[str, list]]:
    """The source network's weights, read, trained or found in --ckpdir, and its history.

    `wanted`: imagenet12 is one of the tasks, so it is trained or evaluated too.
    """
    checkpoint = place.checkpoint(SOURCE)
    if pretrained is not None:
        weights = SourceWeights.read(pretrained, settings.width)
        history = adopt_source(place, settings, weights, wanted)
    elif wanted and not was_adopted(checkpoint):
        history = train_source(place, settings)
        weights = SourceWeights.read(checkpoint, settings.width)
    else:
        history = load_checkpoint(checkpoint)["history"]
        weights = SourceWeights.read(checkpoint, settings.width)
    return weights, {SOURCE.name: history} if wanted and history else {}


def was_adopted(checkpoint: Path) -> bool:
    """Whether the source's checkpoint holds weights that an earlier run took from a file."""
    return checkpoint.exists() and load_checkpoint(checkpoint)["settings"]["source_sha256"] != ""


def adopt_source(
    place: Workplace, settings: Settings, weights: SourceWeights, evaluated: bool
) -> list[dict]:
    """Put pretrained weights into --ckpdir, where the submit scripts look for imagenet12's.

    They are evaluated on val once, if that is wanted and the images are there.
    """
    categories = [SOURCE.first_category_id + label for label in range(weights.num_classes)]
    settings = replace(settings, epochs=0, source_sha256=weights.sha256)
    run = Run(place.ckpdir / SOURCE.name, SOURCE.name, "source", categories, settings)
    found = run.resume()
    history = found["history"] if found else []
    method = PlainNetwork(weights.network(settings.width))
    run.write_surroundings(place.compute)
    if evaluated and not history and place.has(SOURCE):
        history = [adopted_record(run, method, place)]
    elif evaluated and not history:
        say(f"{SOURCE.name}: its images are not in {place.folders.datadir}, so it is not evaluated")
    run.save(method, [], history)
    return history


def adopted_record(run: Run, method: PlainNetwork, place: Workplace) -> dict:
    """The one record of weights that were not trained here."""
    val_data = place.data(SOURCE, ("val",), run.settings)
    check_categories(run.task, run.categories, val_data.images.categories)
    method.to(place.compute.device, memory_format=torch.channels_last)
    tested = evaluate(run, method, val_data, 0, place.compute)
    say(f"{SOURCE.name}: the pretrained weights reach {tested.accuracy:.1f} % on val")
    return {"epoch": 0, **val_fields(tested, seen_in_training=False)}


def train_source(place: Workplace, settings: Settings) -> list[dict]:
    """Train imagenet12 with a plain ResNet-26 from random weights."""

    def build(num_classes: int) -> PlainNetwork:
        return PlainNetwork(resnet26(num_classes, settings.width))

    return train_task(place, SOURCE, "source", settings, build)


def train_target(
    place: Workplace, task: DecathlonTask, settings: Settings, weights: SourceWeights
) -> list[dict]:
    """Train SpotTune on one target task, from the source's weights."""
    settings = replace(settings, weight_decay=task.weight_decay, source_sha256=weights.sha256)

    def build(num_classes: int) -> SpotTune:
        return SpotTune(weights.transferred(num_classes, settings.width), settings.width)

    return train_task(place, task, "spottune", settings, build)


def train_task(
    place: Workplace,
    task: DecathlonTask,
    kind: str,
    settings: Settings,
    build: Callable[[int], nn.Module],
) -> list[dict]:
    """Data, initial weights and training of one task; returns its history."""
    train_data = place.data(task, TRAIN_SPLITS[settings.train_split], settings)
    val_data = place.data(task, ("val",), settings)
    categories = train_data.images.categories
    check_categories(task.name, categories.tolist(), val_data.images.categories)
    with seeded_initialisation(settings.seed, task.name):
        method = build(len(categories))
    run = Run(place.ckpdir / task.name, task.name, kind, categories.tolist(), settings)
    return fit(run, method, train_data, val_data, place.compute, place.eval_every)


def report(histories: dict[str, list[dict]], ckpdir: Path) -> None:
    """Print one table over the tasks, and draw which blocks each fine-tunes."""
    last = {task: history[-1] for task, history in histories.items()}
    say(table(last))
    shares = {
        task: record["val_fine_tuned_share"]
        for task, record in last.items()
        if record["val_fine_tuned_share"]
    }
    if shares:
        picture = ckpdir / "fine_tuned_share.png"
        draw_fine_tuned_share(shares, picture)
        say(f"share of images that use each fine-tuned block: {picture}")


def table(last: dict[str, dict]) -> str:
    """The last record of every task as lines of text."""
    lines = [f"\n{'task':14}{'epochs':>8}{'train %':>9}{'val %':>8}{'fine-tuned %':>14}"]
    for task, record in last.items():
        shares = record["val_fine_tuned_share"]
        fine_tuned = f"{100 * sum(shares) / len(shares):14.1f}" if shares else f"{'-':>14}"
        trained = record.get("train_accuracy")
        train = f"{'-':>9}" if trained is None else f"{trained:9.2f}"
        lines.append(
            f"{task:14}{record['epoch']:8}{train}{record['val_accuracy']:8.2f}{fine_tuned}"
        )
    mean = sum(record["val_accuracy"] for record in last.values()) / len(last)
    lines.append(f"{'mean':14}{'':17}{mean:8.2f}")
    if any(record["val_seen_in_training"] for record in last.values()):
        lines.append("trained on train and val: the val column is on images seen in training")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
