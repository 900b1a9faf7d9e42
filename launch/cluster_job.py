"""What runs inside a job of cluster.py: main.py on one task, as a process that is watched.

As with main.py --jobs, a process that dies is started again from its checkpoint, and a signal lets
it save before it ends. When the cluster wants the machine back, the job then returns to the queue
under its old number. Two signals ask for that:

    SIGUSR2   from SLURM some time before the time limit, and on clusters that preempt with it;
              submitit answers it by writing the job down again and calling `scontrol requeue`
    SIGTERM   before SLURM preempts, cancels or requeues a job. A preempted job that simply ended
              would count as failed, so it asks to be requeued too, unless it was cancelled

submitit (github.com/facebookincubator/submitit) unpickles the TaskJob of a job and calls it.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission

from launch.crew import run_tasks
from runtime.errors import STOP_SIGNALS
from runtime.progress import say

ASKING_SECONDS = 10.0  # of the 30 that SLURM leaves to a job which it wants to end
MEETING_SECONDS = 600  # for the torchruns of all nodes to find each other
FIRST_PORT, PORTS = 20_000, 10_000  # below those that systems give to outgoing connections


@dataclass(frozen=True)
class TaskJob:
    """One task, trained by `program`, a script and its arguments, on each node of a job."""

    task: str
    program: Sequence[str]
    ckpdir: Path
    processes: int = 1  # on each node
    retries: int = 0

    def __call__(self) -> None:
        """Return when the task is finished. Raises ChildProcessError if it failed."""
        place = submitit.JobEnvironment()
        requeue = signal.getsignal(preemption_signal())  # submitit's answer to it

        def command(task: str, device: str) -> list[str]:
            return launch_command(self.program, self.processes, Nodes.of(place))

        try:
            failed = run_tasks([self.task], ["its own"], command, self.ckpdir, self.retries)
        except SystemExit as stop:  # after a signal, with 128 + its number
            leave(place, stop.code - 128, requeue)
        if failed:
            raise ChildProcessError(f"{self.task} failed")

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts into the queue again: the same, since main.py goes on by itself."""
        return DelayedSubmission(self)


def preemption_signal() -> signal.Signals:
    """SIGUSR2, unless SUBMITIT_PREEMPT_SIGNAL names another."""
    return signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]


def leave(place: submitit.JobEnvironment, asked: int, requeue: Callable) -> None:
    """End this process, and put the job back into the queue if that is what is meant.

    Without an exception that submitit would take for the job's result. On several nodes the first
    one speaks for the job.
    """
    if place.global_rank != 0:
        sys.exit(0)
    if asked == preemption_signal() or is_running_job(place):
        requeue(preemption_signal(), None)
    sys.exit(128 + asked)


def is_running_job(place: submitit.JobEnvironment) -> bool:
    """Whether SLURM counts the job as running: preempted ones it does, cancelled ones not.

    One that SLURM does not tell of counts as running: requeued for nothing it finds its work done
    or goes on, whereas one that ends for nothing cancels all that wait for it.
    """
    if place.cluster != "slurm":
        return False
    command = ["squeue", "--noheader", f"--jobs={place.job_id}", "--format=%T"]
    asked_first = time.monotonic()
    while time.monotonic() - asked_first < ASKING_SECONDS:
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=ASKING_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        else:
            if found.returncode == 0:
                return found.stdout.strip() == "RUNNING"
            reason = " ".join(found.stderr.split())
        say(f"SLURM does not answer: {reason}")
        time.sleep(1.0)
    return True


@dataclass(frozen=True)
class Nodes:
    """The machines of one job, as one of them sees them."""

    names: Sequence[str]
    own: int  # place among them
    job: int

    @classmethod
    def of(cls, place: submitit.JobEnvironment) -> "Nodes":
        return cls(place.hostnames, place.node, int(place.raw_job_id))


def launch_command(program: Sequence[str], processes: int, nodes: Nodes) -> list[str]:
    """How one node runs its part of `program`.

    Plain Python for a single process, else torchrun, once for each try: after a kill, torchrun's
    own restarts may hang. The nodes' torchruns meet at the first one.
    """
    if processes == 1 and len(nodes.names) == 1:
        return [sys.executable, *program]
    signals = ",".join(number.name for number in STOP_SIGNALS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=0"]
    torchrun += [f"--signals-to-handle={signals}"]
    torchrun += [f"--nnodes={len(nodes.names)}", f"--nproc_per_node={processes}"]
    if len(nodes.names) == 1:
        return [*torchrun, "--standalone", *program]
    waits = [f"{kind}_timeout={MEETING_SECONDS}" for kind in ("join", "read")]
    # Said, since a node's name in SLURM need not be the name that the machine has for itself.
    host = f"is_host={int(nodes.own == 0)}"
    return [
        *torchrun,
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint={nodes.names[0]}:{FIRST_PORT + nodes.job % PORTS}",
        f"--rdzv_id={nodes.job}",
        f"--rdzv_conf={','.join([host, *waits])}",
        *program,
    ]
