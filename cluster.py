"""Run the Decathlon's tasks as jobs of a SLURM cluster, through submitit.

    python cluster.py --partition gpu --gpus_per_node 8 --wait --ckpdir /shared/checkpoints

imagenet12 is trained first, on all GPUs of --nodes machines; the target tasks start when it has
succeeded, as one job array, each on one GPU. A job that is preempted or reaches its time limit
returns to the queue and goes on from its checkpoint. Arguments that are not named here are those of
main.py, for every task. With --cluster local the jobs are processes of this machine.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from decathlon import SOURCE, TASK_BY_NAME, DecathlonTask
from engine.arguments import check_sides, data_folders
from engine.checkpoints import Checkpoint, checkpoint_file
from engine.fit import Pace
from engine.transfer import Workspace
from launch.cluster_job import TaskJob
from launch.cluster_queue import (
    Jobs,
    Shape,
    Stage,
    executor,
    has_started,
    has_succeeded,
    log_of,
    run_here,
    submit,
    wait_for,
)
from launch.crew import log_file
from launch.jobs import job_command
from main import SCRIPT, check_tasks, pretrained_file
from main import parse_args as parse_training
from methods.registry import METHODS
from reporting.run_table import show_results
from runtime.cli import Parser, folder_name, non_negative_int, positive_float, positive_int
from runtime.devices import Compute
from runtime.distributed import Group, check_group
from runtime.errors import SpotTuneError, run_script
from runtime.progress import say
from weights.mean_std import read_mean_std

SBATCH = {"requeue": True, "kill-on-invalid-dep": "yes"}  # whatever the cluster's defaults are


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The arguments named here, and all others."""
    parser = Parser("Run main.py's tasks as jobs of a SLURM cluster: imagenet12, then the targets.")
    parser.allow_abbrev = False  # an abbreviated flag of main.py is not meant for us
    parser.epilog = "All other arguments are main.py's: see main.py --help."
    add = parser.add_argument
    # fmt: off
    add("--cluster", choices=["slurm", "local"], default="slurm",
        help="local: processes of this machine, on its first GPUs, to try a command out")
    add("--partition", help="SLURM's; unset: the cluster's default")
    add("--nodes", type=positive_int, default=1,
        help="machines on which imagenet12 is trained; a target task runs on one")
    add("--gpus_per_node", type=non_negative_int, default=1,
        help="GPUs of each machine for imagenet12, 0 for none; a target task takes one")
    add("--nproc_per_node", type=positive_int, metavar="N",
        help="processes of imagenet12 on each machine; unset: one for each GPU")
    add("--cpus_per_task", type=positive_int, default=4,
        help="cores for each process, and its threads, unless --threads says otherwise")
    add("--mem_gb", type=positive_float,
        help="memory of each machine; unset: the cluster's default")
    add("--timeout_min", type=positive_int, default=1440,
        help="time limit of a job in minutes; it returns to the queue when that is reached")
    add("--array_parallelism", type=positive_int, metavar="N",
        help="target tasks at the same time; unset: all on SLURM, one locally")
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
    """An argparse type: KEY=VALUE, as two."""
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
    place = Workspace(
        folders=data_folders(training.datadir, training.imdbdir, training.cachedir),
        ckpdir=training.ckpdir,
        mean_std=read_mean_std(training.mean_std),
        compute=Compute(torch.device("cpu"), "fp32"),  # nothing is computed here
        pace=Pace(training.eval_every, 60 * training.checkpoint_minutes),
    )
    check_tasks(tasks, place, pretrained, METHODS[training.method].from_source)
    at_once = args.array_parallelism or (1 if args.cluster == "local" else len(tasks))
    check_cluster(args.cluster, args.nodes, args.gpus_per_node, at_once)

    logs = args.logs or training.ckpdir / "logs"
    parameters = {
        "timeout_min": args.timeout_min,
        "mem_gb": args.mem_gb,
        "slurm_partition": args.partition,
        "slurm_array_parallelism": at_once,
        "slurm_additional_parameters": {**SBATCH, **dict(args.sbatch)},
    }
    processes = args.nproc_per_node or max(1, args.gpus_per_node)
    together = Shape(args.nodes, args.gpus_per_node, processes, args.cpus_per_task)
    alone = Shape(1, min(1, args.gpus_per_node), 1, args.cpus_per_task)
    command = job_command(SCRIPT, training_argv, training.threads or args.cpus_per_task)

    def program(task: str) -> list[str]:
        _, *rest = command(task, training.device)  # without the Python
        return rest

    stages = []
    for members in stage_members(tasks):
        trains_source = members == [SOURCE] and pretrained is None
        if trains_source:
            check_group(Group(size=args.nodes * processes), training.batch_size, trains_source)
        shape = together if trains_source else alone
        jobs = {
            name: TaskJob(name, program(name), training.ckpdir, shape.processes, training.retries)
            for name in (task.name for task in members)
        }
        stages.append(Stage(executor(args.cluster, logs, shape, parameters), jobs))

    if args.cluster == "local":
        conclude(tasks, run_here(stages, at_once), training.ckpdir)
        return
    jobs = submit(stages)
    if args.wait:
        say("following the jobs; Ctrl-C ends this, but not the jobs")
        wait_for(jobs)
        conclude(tasks, jobs, training.ckpdir)


def check_cluster(cluster: str, nodes: int, gpus: int, at_once: int) -> None:
    """Raise SpotTuneError if jobs cannot be submitted from here."""
    if cluster == "local" and nodes > 1:
        raise SpotTuneError(f"--nodes {nodes}: --cluster local has one machine; leave --nodes out")
    if cluster == "local" and gpus and at_once > 1:
        raise SpotTuneError(
            f"--array_parallelism {at_once}: --cluster local would put all jobs on the first GPU; "
            f"`python main.py` uses every GPU of a machine, or try with --gpus_per_node 0"
        )
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise SpotTuneError(
            "--cluster slurm: found no sbatch and srun here. Run this on a login node of the "
            "cluster, or try it on this machine with --cluster local"
        )


def stage_members(tasks: Sequence[DecathlonTask]) -> list[list[DecathlonTask]]:
    """Which tasks may run at the same time: the source alone, then its targets.

    Those with most images come first, so that no long one is left over at the end.
    """
    targets = [task for task in tasks if task is not SOURCE]
    targets.sort(key=lambda task: task.num_train, reverse=True)
    members = [[SOURCE] if SOURCE in tasks else [], targets]
    return [stage for stage in members if stage]


def collect(tasks: Sequence[DecathlonTask], ckpdir: Path) -> bool:
    """Print the table over the checkpoints, and what is missing; False if there are no records."""
    histories, missing = {}, []
    for task in tasks:
        try:
            found = Checkpoint.latest(checkpoint_file(ckpdir, task.name))
        except SpotTuneError as error:
            missing.append(f"{task.name}: {error}")
            continue
        if found is None:
            missing.append(f"{task.name}: no epoch is finished")
            continue
        if found.damage:
            missing.append(f"{task.name}: {found.damage}")
        checkpoint = found.checkpoint
        done, asked = len(checkpoint.history), checkpoint.settings.epochs
        if done < asked:
            missing.append(f"{task.name}: {done} of {asked} epochs are finished")
        if checkpoint.history:
            histories[task.name] = checkpoint.history
    show_results(histories, ckpdir)
    for line in missing:
        say(line)
    return bool(histories)


def conclude(tasks: Sequence[DecathlonTask], jobs: Jobs, ckpdir: Path) -> None:
    """Print the table; raises SpotTuneError, naming the logs, if a task's job has failed."""
    collect(tasks, ckpdir)
    failed = []
    for task in tasks:
        job = jobs.get(task.name)
        if job is None or not has_started(job):
            failed.append(f"{task.name} (never started)")
        elif not has_succeeded(job):
            logs = [log_file(ckpdir, task.name), log_of(job)]
            failed.append(f"{task.name} (see {' and '.join(map(str, logs))})")
    if failed:
        raise SpotTuneError(
            f"{len(failed)} of {len(tasks)} tasks failed: {', '.join(failed)}. The same command "
            f"goes on from their checkpoints"
        )


if __name__ == "__main__":
    run_script(main)
