"""Jobs that depend on each other, handed to SLURM or run on this machine, through submitit.

submitit keeps jobs and their results as pickles beside their logs: that folder must be one's own.
"""

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch.cluster_job import TaskJob
from runtime.errors import SpotTuneError
from runtime.progress import say

REPOSITORY = Path(__file__).parents[1]
TIME_LIMITS = 20  # that a job may reach before it is given up
LOCAL_POLL = 0.2  # seconds
LONGEST_POLL = 30.0  # seconds between two questions to SLURM
LATE_FILE_SECONDS = 10.0  # that a shared file system may take to show a file

Jobs = dict[str, submitit.Job]  # by task


@dataclass(frozen=True)
class Shape:
    """What a job asks for."""

    nodes: int
    gpus: int  # of each node, as are the processes
    processes: int
    cores: int  # for each process


@dataclass(frozen=True)
class Stage:
    """Jobs that may run at the same time, by task, and what submits them."""

    executor: submitit.AutoExecutor
    jobs: Mapping[str, TaskJob]


def executor(
    cluster: str, logs: Path, shape: Shape, parameters: Mapping[str, object]
) -> submitit.AutoExecutor:
    """What submits jobs of one shape. Their files in `logs` begin with the number of the job."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    python = shlex.join(["env", f"PYTHONPATH={os.pathsep.join(paths)}", sys.executable])
    made = submitit.AutoExecutor(
        folder=logs,
        cluster=cluster,
        slurm_max_num_timeout=TIME_LIMITS,
        slurm_python=python,
        local_python=python,
    )
    cores = shape.processes * shape.cores
    made.update_parameters(
        name="spottune",
        nodes=shape.nodes,
        tasks_per_node=1,
        gpus_per_node=shape.gpus or None,
        cpus_per_task=cores,
        stderr_to_stdout=True,
        slurm_srun_args=[f"--cpus-per-task={cores}"],  # srun stopped taking sbatch's with 22.05
        **parameters,
    )
    return made


def submit(stages: Sequence[Stage]) -> Jobs:
    """Put all jobs into SLURM's queue, each stage to start once the one before has succeeded.

    Raises SpotTuneError, and leaves nothing in the queue, if SLURM refuses a stage.
    """
    jobs: Jobs = {}
    for stage in stages:
        if jobs:
            numbers = ":".join(job.job_id for job in jobs.values())
            stage.executor.update_parameters(slurm_dependency=f"afterok:{numbers}")
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it is told below, in one line
                submitted = stage.executor.submit_array(list(stage.jobs.values()))
        except (FailedJobError, FailedSubmissionError) as error:
            for job in jobs.values():
                job.cancel(check=False)
            reason = " ".join(str(error).split())
            raise SpotTuneError(f"SLURM took no job: {reason}. Change what is asked for") from error
        jobs |= dict(zip(stage.jobs, submitted, strict=True))
    for task, job in jobs.items():
        announce(task, job)
    return jobs


def run_here(stages: Sequence[Stage], at_once: int) -> Jobs:
    """Run the jobs on this machine to their end, a stage only if the one before has succeeded."""
    jobs: Jobs = {}
    for stage in stages:
        if not all(map(has_succeeded, jobs.values())):
            break
        waiting = list(stage.jobs)
        running: Jobs = {}
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    task = waiting.pop(0)
                    running[task] = jobs[task] = start_here(stage.executor, stage.jobs[task])
                    announce(task, jobs[task])
                time.sleep(LOCAL_POLL)
                running = {task: job for task, job in running.items() if not job.done()}
        finally:
            stop_here(running.values())
    return jobs


def start_here(by: submitit.AutoExecutor, job: TaskJob) -> submitit.Job:
    """Start a process that Ctrl-C does not reach: it is for this script, which stops its jobs."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    started = by.submit(job)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return started


def stop_here(running: Collection[submitit.Job]) -> None:
    """Stop what still runs because this script was interrupted."""
    for job in running:
        os.kill(int(job.job_id), signal.SIGTERM)
    while not all(job.done() for job in running):
        time.sleep(LOCAL_POLL)


def announce(task: str, job: submitit.Job) -> None:
    say(f"{task}: job {job.job_id}, log {log_of(job)}")


def log_of(job: submitit.Job) -> Path:
    """What the job says; with a * where each node has a log of its own."""
    first = job.task(0).paths.stdout
    return first if job.num_tasks == 1 else first.with_name(f"{job.job_id}_*_log.out")


def has_started(job: submitit.Job) -> bool:
    return job.task(0).paths.stdout.exists()


def wait_for(jobs: Jobs) -> None:
    """Follow the jobs until none is in SLURM's queue any more, telling what becomes of each."""
    told = dict.fromkeys(jobs, "")
    pause = 1.0
    while set(told.values()) != {"ended"}:
        queue = states_in_queue()
        states = {task: queue.get(job.job_id, "ended") for task, job in jobs.items()}
        changed = [task for task in jobs if states[task] != told[task]]
        for task in changed:
            say(f"{task}: {states[task]}")
        told = states
        pause = 1.0 if changed else min(1.5 * pause, LONGEST_POLL)
        time.sleep(pause)
    if not all(map(has_succeeded, jobs.values())):
        time.sleep(LATE_FILE_SECONDS)


def states_in_queue() -> dict[str, str]:
    """The state of each of this user's jobs in SLURM's queue, by number.

    Not through submitit, which asks `sacct`: many a cluster keeps no accounts.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    while True:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return {
                number: state.lower() for number, state in map(str.split, done.stdout.splitlines())
            }
        say(f"SLURM does not answer, asking again: {' '.join(done.stderr.split())}")
        time.sleep(LONGEST_POLL)


def has_succeeded(job: submitit.Job) -> bool:
    """Whether all processes of an ended job have left the result of a success."""
    parts = [job.task(number) for number in range(job.num_tasks)]
    return all(part.paths.result_pickle.exists() and part.exception() is None for part in parts)
