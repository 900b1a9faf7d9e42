"""Run the Decathlon's tasks as jobs of a SLURM cluster, through submitit.

    python cluster.py --partition gpu --gpus_per_node 8 --wait --ckpdir /shared/checkpoints

imagenet12 is trained first, on all GPUs of --nodes machines; the target tasks start when it has
succeeded, as one job array, each on one GPU. A job that is preempted or reaches its time limit
returns to the queue and continues from its checkpoint. Arguments that are not named here are
main.py's, for every task.
"""

import argparse
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from decathlon import SOURCE, TASK_BY_NAME, DecathlonTask
from engine.arguments import check_sides, data_folders
from engine.checkpoints import Checkpoint, checkpoint_file
from engine.fit import Pace
from engine.settings import TRAIN_SPLITS
from engine.transfer import Workspace
from launch.side_by_side import job_command, longest_first
from main import OWN_MEAN_STD, SCRIPT, check_tasks, pretrained_file
from main import parse_args as parse_training
from methods.registry import METHODS
from models.resnet26 import BLOCKS_PER_STAGE
from reporting.run_table import show_results
from runtime.cli import Parser, folder_name, non_negative_int, positive_float, positive_int
from runtime.devices import Compute
from runtime.distributed import Group, check_group
from runtime.errors import SpotTuneError, run_script
from runtime.progress import say
from weights.mean_std import find_mean_std, read_mean_std


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The arguments named here, and all others."""
    parser = Parser("Run main.py's tasks as jobs of a SLURM cluster: imagenet12, then the targets.")
    parser.allow_abbrev = False  # an abbreviated flag of main.py is not meant for us
    parser.epilog = "All other arguments are main.py's: see main.py --help."
    add = parser.add_argument
    # fmt: off
    add("--partition", help="SLURM's; unset: the cluster's default")
    add("--nodes", type=positive_int, default=1,
        help="machines on which imagenet12 is trained; a target task runs on one")
    add("--gpus_per_node", type=non_negative_int, default=1,
        help="GPUs of each machine for imagenet12, a process on each, 0 for none; a target task "
             "takes one")
    add("--cpus_per_task", type=positive_int, default=4,
        help="cores for each process, and its threads, unless --threads says otherwise")
    add("--mem_gb", type=positive_float,
        help="memory of each machine; unset: the cluster's default")
    add("--timeout_min", type=positive_int, default=1440,
        help="time limit of a job in minutes; it returns to the queue when that is reached")
    add("--array_parallelism", type=positive_int, metavar="N",
        help="target tasks at the same time; unset: all")
    add("--sbatch", type=sbatch_option, nargs="+", default=[], metavar="KEY=VALUE",
        help="more options for sbatch, such as account=vision qos=high")
    add("--logs", type=folder_name, metavar="DIR",
        help="folder for the jobs' logs, seen by all machines; unset: logs/ below --ckpdir")
    add("--wait", action="store_true",
        help="follow the jobs to their end and print the table; unset: only submit them")
    add("--collect", action="store_true",
        help="submit nothing; print the table of what has been trained so far")
    # fmt: on
    return parser.parse_known_args(argv)


def sbatch_option(text: str) -> tuple[str, str]:
    """An argparse type: KEY=VALUE, as a pair."""
    key, _, value = text.partition("=")
    if not (key and value):
        raise argparse.ArgumentTypeError(f"{text} given; expected KEY=VALUE, such as qos=high")
    return key, value


def main(argv: Sequence[str] | None = None) -> None:
    args, training_argv = parse_args(argv)
    training = parse_training(training_argv)
    tasks = [TASK_BY_NAME[name] for name in dict.fromkeys(training.tasks)]
    if args.collect:
        if not collect(tasks, training.ckpdir):
            raise SpotTuneError(f"--ckpdir {training.ckpdir}: no task has a record there yet")
        return
    check_sides(training.resize, training.crop)
    pretrained = pretrained_file(training.pretrained)
    mean_std = find_mean_std(training.mean_std, training.datadir, OWN_MEAN_STD)
    space = Workspace(
        folders=data_folders(training.datadir, training.imdbdir, training.cachedir),
        ckpdir=training.ckpdir,
        mean_std=read_mean_std(mean_std),
        compute=Compute(torch.device("cpu"), "fp32"),  # nothing is computed here
        pace=Pace(training.eval_every, 60 * training.checkpoint_minutes),
    )
    check_tasks(tasks, space, pretrained, METHODS[training.method].from_source)
    trains_source = SOURCE in tasks and pretrained is None
    processes = max(1, args.gpus_per_node)
    if trains_source:
        group = Group(size=args.nodes * processes)
        check_group(group, training.batch_size, only_source=True, compiled=training.compile)
    logs = args.logs or training.ckpdir / "logs"
    check_cluster(logs)
    from launch import slurm  # not at the top: it needs submitit, and --collect does not

    alone = slurm.Shape(1, min(1, args.gpus_per_node), 1)
    together = slurm.Shape(args.nodes, args.gpus_per_node, processes)
    command = job_command(SCRIPT, training_argv, training.threads or args.cpus_per_task)

    def job(task: DecathlonTask) -> slurm.TaskJob:
        _, *program = command(task.name, training.device)  # without the Python
        shape = together if task is SOURCE and trains_source else alone
        return slurm.TaskJob(task.name, program, training.ckpdir, shape, training.retries)

    targets = longest_first(
        tasks, space.folders, training.ckpdir, TRAIN_SPLITS[training.train_split],
        training.nb_epochs, training.resize, training.crop,
    )  # fmt: skip
    stages = [[job(SOURCE)] if SOURCE in tasks else [], list(map(job, targets))]
    jobs = slurm.submit(
        [stage for stage in stages if stage],
        logs,
        args.cpus_per_task,
        dict(args.sbatch),
        timeout_min=args.timeout_min,
        mem_gb=args.mem_gb,
        slurm_partition=args.partition,
        slurm_array_parallelism=args.array_parallelism or len(tasks),
    )
    if args.wait:
        say("following the jobs; Ctrl-C ends this, but not the jobs")
        slurm.wait_for(jobs)
        collect(tasks, training.ckpdir)
        slurm.check_succeeded(jobs, training.ckpdir)


def check_cluster(logs: Path) -> None:
    """Raise SpotTuneError if jobs cannot be submitted from here."""
    if importlib.util.find_spec("submitit") is None:
        raise SpotTuneError("cluster.py needs submitit: install it with `pip install submitit`")
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise SpotTuneError(
            "found no sbatch and srun here. Run this on a login node of the cluster; on a single "
            "machine, `python main.py --jobs N` trains N tasks at a time"
        )
    if "%" in str(logs):
        raise SpotTuneError(f"{logs}: SLURM would replace the %; name another folder with --logs")


def collect(tasks: Sequence[DecathlonTask], ckpdir: Path) -> bool:
    """Say what is missing, and print the table over all records; False if there are none."""
    histories = {}
    for task in tasks:
        try:
            found = Checkpoint.latest(checkpoint_file(ckpdir, task.name))
        except SpotTuneError as error:
            say(f"{task.name}: {error}")
            continue
        if found is None:
            say(f"{task.name}: no epoch is finished")
            continue
        history, asked = found.checkpoint.history, found.checkpoint.settings.epochs
        if len(history) < asked:
            say(f"{task.name}: {len(history)} of {asked} epochs are finished")
        if history:
            histories[task.name] = history
    show_results(histories, ckpdir, BLOCKS_PER_STAGE)
    return bool(histories)


if __name__ == "__main__":
    run_script(main)
