"""The study on a small Decathlon of real images: five methods, three seeds, nine tasks.

One command repeats it, from images and source weights to records, test submissions and page:

    python study/study.py --datadir DIR --pretrained FILE

Each task of a method and seed is a run of main.py, several at a time; what was done before is not
done again. The runs (checkpoints, about 12 GB) stay in --workdir; what the repository keeps goes to
--out: the records, results.zip of every method and seed, the page that report.py makes of them.

A second part asks whether SpotTune is behind fine-tuning for want of steps: both once more, on
three tasks and the first seed, with every schedule four times as long. Its records and page lie in
--out/longer.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # so that it can be started from anywhere, as the other scripts

from runtime.cli import Parser, positive_int  # noqa: E402
from runtime.errors import SpotTuneError, run_script  # noqa: E402
from runtime.files import keep_copy  # noqa: E402
from runtime.progress import say  # noqa: E402

RECORDS = ("arguments.json", "cost.json", "decisions.json", "environment.json", "records.jsonl")
SHARED = ["--train_split", "train", "--resize", "32", "--crop", "24", "--batch_size", "32"]
SOURCE = "imagenet12"


@dataclass(frozen=True)
class Row:
    """A method of the study: its name here, its flags, and how its images decide at test time."""

    name: str
    flags: tuple[str, ...]
    policies: tuple[str, ...] = ("",)  # "": the method's own


# Learning rates were chosen on val with seed 0, from 0.3, 0.1, 0.03 and 0.01 (README).
ROWS = (
    Row("feature", ("--method", "feature", "--lr", "0.1")),
    Row("finetune", ("--method", "finetune", "--lr", "0.03")),
    Row("stochastic", ("--method", "stochastic", "--lr", "0.03")),
    Row("spottune", ("--method", "spottune", "--lr", "0.03"), policies=("argmax", "sample")),
    Row("global3", ("--method", "globalk", "--k", "3", "--lr", "0.1")),
)


@dataclass(frozen=True)
class Length:
    """Epochs of a task, and the epoch after which learning rates drop: 342 to 750 steps of 32."""

    epochs: int
    drop: int


LENGTHS = {
    "aircraft": Length(14, 10),
    "cifar100": Length(9, 7),
    "daimlerpedcls": Length(6, 4),
    "dtd": Length(36, 27),
    "gtsrb": Length(6, 4),
    "omniglot": Length(7, 5),
    "svhn": Length(30, 22),
    "ucf101": Length(13, 10),
    "vgg-flowers": Length(10, 7),
}

LONGER = 4
LONGER_ROWS = ("finetune", "spottune")
LONGER_LENGTHS = {
    task: Length(LONGER * LENGTHS[task].epochs, LONGER * LENGTHS[task].drop)
    for task in ("aircraft", "cifar100", "vgg-flowers")
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Repeat the study on a small Decathlon of real images.")
    add = parser.add_argument
    add("--datadir", type=Path, required=True, metavar="DIR", help="the unpacked small Decathlon")
    add("--pretrained", type=Path, required=True, metavar="FILE", help="the source weights")
    add("--workdir", type=Path, default=HERE / "work", metavar="DIR", help="checkpoints")
    add("--out", type=Path, default=HERE, metavar="DIR", help="records, submissions and page")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="one run each")
    add("--methods", nargs="+", choices=[row.name for row in ROWS], metavar="METHOD",
        default=[row.name for row in ROWS], help="any of %(choices)s; unset: all")  # fmt: skip
    add("--jobs", type=positive_int, default=os.cpu_count(), help="runs at a time, a thread each")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    rows = [row for row in ROWS if row.name in args.methods]
    data = ["--datadir", str(args.datadir)]
    flags = [*data, "--pretrained", str(args.pretrained), *SHARED, "--eval_every", "3"]
    records, longer = args.out / "records", args.out / "longer" / "records"

    for seed, row in itertools.product(args.seeds, rows):  # so that a seed's table is there early
        folder = args.workdir / row.name / f"seed{seed}"
        names = [f"{row.name}_{policy}" if policy else row.name for policy in row.policies]
        archives = [args.out / "submissions" / name / f"seed{seed}.zip" for name in names]
        if all(archive.exists() for archive in archives):
            say(f"{row.name}, seed {seed}: done before")
            continue
        train(row, seed, LENGTHS, flags, folder, args.jobs)
        keep_records(folder, records / row.name / f"seed{seed}", LENGTHS)
        for policy, archive in zip(row.policies, archives, strict=True):
            submit([*data, "--seed", str(seed)], folder, policy, archive)
        say(f"{row.name}, seed {seed}: done")

    for seed, row in itertools.product(args.seeds[:1], rows):
        kept = longer / row.name / f"seed{seed}"
        if row.name not in LONGER_ROWS or kept.exists():
            continue
        folder = args.workdir / "longer" / row.name / f"seed{seed}"
        train(row, seed, LONGER_LENGTHS, flags, folder, args.jobs)
        keep_records(folder, kept, LONGER_LENGTHS)
        say(f"{row.name}, seed {seed}, {LONGER} times as long: done")

    log = args.workdir / "report_log.txt"
    no_images = ["--datadir", HERE]
    run("report.py", records, "--out", args.out / "page", *no_images, log=log)
    run("report.py", records, "--out", args.workdir / "page", *data, log=log)  # with images
    if longer.exists():
        run("report.py", longer, "--out", longer.parent / "page", *no_images, log=log)
    say(f"{args.out / 'page' / 'report.html'}; with images of extremes: {args.workdir / 'page'}")


def train(
    row: Row,
    seed: int,
    lengths: Mapping[str, Length],
    flags: Sequence[str],
    folder: Path,
    jobs: int,
) -> None:
    """The source, then one run of main.py a task, `jobs` at a time."""
    flags = [*flags, *row.flags, "--seed", str(seed), "--ckpdir", str(folder)]
    run("main.py", *flags, "--tasks", SOURCE, log=folder / "log.txt")

    def target(task: str) -> None:
        length = lengths[task]
        own = ["--tasks", task, "--nb_epochs", str(length.epochs), "--step1", str(length.drop)]
        run("main.py", *flags, *own, log=folder / f"{task}_log.txt")

    with ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(target, task) for task in lengths]
        try:
            for done in as_completed(runs):
                done.result()
        finally:  # after a failure or a signal no other is begun
            pool.shutdown(wait=False, cancel_futures=True)


def keep_records(folder: Path, kept: Path, tasks: Iterable[str]) -> None:
    """Copy what is small and tells everything: no weights, no images. All of it, or nothing."""
    partial = kept.with_name(f"{kept.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for task in (SOURCE, *tasks):
        (partial / task).mkdir(parents=True)
        for name in RECORDS:
            if (folder / task / name).exists():
                shutil.copyfile(folder / task / name, partial / task / name)
    if kept.exists():
        shutil.rmtree(kept)
    partial.rename(kept)


def submit(flags: Sequence[str], folder: Path, policy: str, archive: Path) -> None:
    """A zipped results.json over the test images of all ten tasks."""
    out = folder / "test" / "results.json"
    flags = [*flags, *(["--policy", policy] if policy else [])]
    log = folder / "submit_log.txt"
    run("submit_test.py", *flags, "--ckpdir", folder, "--out", out, "--zip", log=log)
    archive.parent.mkdir(parents=True, exist_ok=True)
    keep_copy(out.with_suffix(".zip"), archive)


def run(script: str, *arguments: object, log: Path) -> None:
    """Run a script of the repository in one thread; raises SpotTuneError if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    with log.open("a") as stream:
        done = subprocess.run(
            command, stdout=stream, stderr=stream, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    if done.returncode:
        raise SpotTuneError(f"{script} ended with status {done.returncode}; {log} tells why")


if __name__ == "__main__":
    run_script(main)
