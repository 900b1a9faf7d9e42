"""Tasks as jobs of a SLURM cluster, through submitit: how they are submitted and what runs in one.

As with main.py --jobs, a process that dies is started again from its checkpoint, and a signal lets
it save before it ends. When the cluster wants the machine back, the job then returns to the queue
under its old number. Two signals ask for that:

    SIGUSR2   from SLURM some time before the time limit, and on clusters that preempt with it
    SIGTERM   before SLURM preempts, cancels or requeues a job. A preempted job that simply ended
              would count as failed, so it asks to be requeued too, unless it was cancelled

submitit (github.com/facebookincubator/submitit) keeps a job as a pickle beside its log, unpickles
its TaskJob on the node and calls it: the folder of the logs must be one's own.
"""

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import DelayedSubmission

from launch.side_by_side import log_file, run_tasks
from runtime.errors import SpotTuneError
from runtime.progress import say
from runtime.signals import STOP_SIGNALS, Stopped

REPOSITORY = Path(__file__).parents[1]
ALWAYS = {"requeue": True, "kill-on-invalid-dep": "yes"}  # whatever the cluster's defaults are
TIME_LIMITS = 20  # that a job may reach before it is given up
POLL_SECONDS = 10.0  # between two looks at the queue; also what a shared file may take to appear
ANSWER_SECONDS = 10.0  # SLURM leaves 30 to a job that it wants to end
MEETING_SECONDS = 600  # for the torchruns of all nodes to find each other
FIRST_PORT, PORTS = 20_000, 10_000  # below those that systems give to outgoing connections

Jobs = dict[str, submitit.Job]  # by task


# --- In a job ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What a job asks for."""

    nodes: int
    gpus: int  # of each node
    processes: int  # on each node


@dataclass(frozen=True)
class TaskJob:
    """One task, trained by `program`, a script and its arguments, on each node of a job."""

    task: str
    program: Sequence[str]
    ckpdir: Path
    shape: Shape
    retries: int

    def __call__(self) -> None:
        """Return when the task is finished. Raises ChildProcessError if it failed."""
        place = submitit.JobEnvironment()
        requeue = signal.getsignal(preemption_signal())  # submitit's answer to it

        def command(task: str, device: str) -> list[str]:
            nodes, job = place.hostnames, int(place.raw_job_id)
            return launch_command(self.program, self.shape.processes, nodes, place.node, job)

        try:
            failed = run_tasks([self.task], ["its own"], command, self.ckpdir, self.retries)
        except Stopped as stop:
            leave(place, stop.number, requeue)
        if failed:
            raise ChildProcessError(f"{self.task} failed")

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts into the queue again: the same, since main.py continues by itself."""
        return DelayedSubmission(self)


def preemption_signal() -> signal.Signals:
    """SIGUSR2, unless SUBMITIT_PREEMPT_SIGNAL names another."""
    return signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]


def leave(place: submitit.JobEnvironment, number: int, requeue: Callable) -> NoReturn:
    """End this process after a signal, and put the job back into the queue if that is meant.

    On several nodes the first one speaks for the job. SystemExit is no result to submitit, so that
    the job does not count as finished.
    """
    if place.global_rank != 0:
        sys.exit(0)
    if number == preemption_signal() or is_running_job(place.job_id):
        try:
            requeue(preemption_signal(), None)
        except (OSError, subprocess.SubprocessError) as error:  # no scontrol on this node
            say(
                f"the work is saved, but job {place.job_id} could not be requeued from this node "
                f"({error}). Run the same cluster.py command again to continue"
            )
    sys.exit(128 + number)


def is_running_job(job_id: str) -> bool:
    """Whether SLURM counts the job as running: preempted ones it does, cancelled ones not.

    If SLURM does not tell, yes: a job that is requeued for nothing finds its work done, whereas one
    that ends for nothing cancels all that wait for it.
    """
    command = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]
    try:
        return subprocess.check_output(command, timeout=ANSWER_SECONDS).strip() == b"RUNNING"
    except (OSError, subprocess.SubprocessError) as error:  # no squeue on this node, for one
        say(f"SLURM does not answer: {error}")
        return True


def launch_command(
    program: Sequence[str], processes: int, nodes: Sequence[str], own: int, job: int
) -> list[str]:
    """How node number `own` of `nodes` runs its part of `program`.

    Plain Python for a single process, else torchrun, once for each try: after a kill, torchrun's
    own restarts may hang. The nodes' torchruns meet at the first one.
    """
    if processes == 1 and len(nodes) == 1:
        return [sys.executable, *program]
    signals = ",".join(number.name for number in STOP_SIGNALS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=0"]
    torchrun += [f"--signals-to-handle={signals}"]
    torchrun += [f"--nnodes={len(nodes)}", f"--nproc_per_node={processes}"]
    if len(nodes) == 1:
        return [*torchrun, "--standalone", *program]
    # The host is named, since SLURM's name of a node need not be the machine's own.
    conf = f"is_host={int(own == 0)},join_timeout={MEETING_SECONDS},read_timeout={MEETING_SECONDS}"
    torchrun += ["--rdzv_backend=c10d", f"--rdzv_id={job}", f"--rdzv_conf={conf}"]
    return [*torchrun, f"--rdzv_endpoint={nodes[0]}:{FIRST_PORT + job % PORTS}", *program]


# --- The queue -----------------------------------------------------------------------------------


def submit(
    stages: Sequence[Sequence[TaskJob]],
    logs: Path,
    cores: int,
    sbatch: Mapping[str, str],
    **parameters: object,
) -> Jobs:
    """Put all jobs into SLURM's queue, each stage to start once the one before has succeeded.

    Jobs of one stage have one shape, and run at the same time. `cores`: for each process; `sbatch`:
    further options of sbatch; `parameters`: submitit's. Raises SpotTuneError, and leaves nothing in
    the queue, if SLURM refuses a stage.
    """
    jobs: Jobs = {}
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    python = shlex.join(["env", f"PYTHONPATH={os.pathsep.join(paths)}", sys.executable])
    for stage in stages:
        shape = stage[0].shape
        by = submitit.AutoExecutor(
            folder=logs, cluster="slurm", slurm_max_num_timeout=TIME_LIMITS, slurm_python=python
        )
        cores_of_node = shape.processes * cores
        by.update_parameters(
            name="spottune",
            nodes=shape.nodes,
            tasks_per_node=1,
            gpus_per_node=shape.gpus or None,
            cpus_per_task=cores_of_node,
            stderr_to_stdout=True,
            # srun stopped taking sbatch's with 22.05
            slurm_srun_args=[f"--cpus-per-task={cores_of_node}"],
            slurm_additional_parameters={**ALWAYS, **sbatch},
            **parameters,
        )
        if jobs:
            numbers = ":".join(job.job_id for job in jobs.values())
            by.update_parameters(slurm_dependency=f"afterok:{numbers}")
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it is told below, in one line
                submitted = by.submit_array(list(stage))
        except (FailedJobError, FailedSubmissionError) as error:
            for job in jobs.values():
                job.cancel(check=False)
            reason = " ".join(str(error).split())
            raise SpotTuneError(f"SLURM took no job: {reason}. Change what is asked for") from error
        jobs |= zip((job.task for job in stage), submitted, strict=True)
    for task, job in jobs.items():
        say(f"{task}: job {job.job_id}, log {log_of(job)}")
    return jobs


def wait_for(jobs: Jobs) -> None:
    """Follow the jobs until none is in SLURM's queue any more, telling what becomes of each."""
    told: dict[str, str] = {}
    while set(told.values()) != {"ended"}:
        queue = states_in_queue()
        for task, job in jobs.items():
            state = queue.get(job.job_id, "ended")
            if state != told.get(task):
                say(f"{task}: {state}")
            told[task] = state
        time.sleep(POLL_SECONDS)


def states_in_queue() -> dict[str, str]:
    """The state of each of this user's jobs in SLURM's queue, by number.

    Not through submitit, which asks `sacct`: many clusters keep no accounts.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    while True:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            pairs = map(str.split, done.stdout.splitlines())
            return {number: state.lower() for number, state in pairs}
        say(f"SLURM does not answer, asking again: {' '.join(done.stderr.split())}")
        time.sleep(POLL_SECONDS)


def check_succeeded(jobs: Jobs, ckpdir: Path) -> None:
    """Raise SpotTuneError, naming the logs, if some of the ended jobs have failed."""
    failed = []
    for task, job in jobs.items():
        if not job.task(0).paths.stdout.exists():
            failed.append(f"{task} (never started)")
        elif not has_succeeded(job):
            failed.append(f"{task} (see {log_file(ckpdir, task)} and {log_of(job)})")
    if failed:
        raise SpotTuneError(
            f"{len(failed)} of {len(jobs)} tasks failed: {', '.join(failed)}. The same command "
            f"continues from their checkpoints"
        )


def log_of(job: submitit.Job) -> Path:
    """What the job says; with a * where each node has a log of its own."""
    first = job.task(0).paths.stdout
    return first if job.num_tasks == 1 else first.with_name(f"{job.job_id}_*_log.out")


def has_succeeded(job: submitit.Job) -> bool:
    """Whether all processes of an ended job have left the result of a success."""
    parts = [job.task(number) for number in range(job.num_tasks)]
    return all(part.paths.result_pickle.exists() and part.exception() is None for part in parts)
