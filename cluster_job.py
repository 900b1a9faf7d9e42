"""What runs inside a job of cluster.py: main.py on one task, in a process of its own.

The process is started anew if it dies, and goes on from its checkpoint. When the cluster wants the
machine back, the process is asked to stop with SIGTERM, which main.py and torchrun know, and the
job returns to the queue under its old number. Two signals ask for that:

    SIGUSR2   from SLURM some time before the time limit, and on clusters that preempt with it;
              submitit answers it by writing the job down again and calling `scontrol requeue`
    SIGTERM   before SLURM preempts, cancels or requeues a job. A preempted job that simply ended
              would count as failed, so it asks to be requeued too, unless it was cancelled

submitit (github.com/facebookincubator/submitit) unpickles the TaskJob of a job and calls it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission

from progress import say

MAIN = Path(__file__).parent / "main.py"
POLL_SECONDS = 1.0
STOP_SECONDS = 60.0  # for main.py to stop; the time limit comes 90 s after its signal
RETRY_SECONDS = 1.0
MEETING_SECONDS = 600  # for the torchruns of all nodes to find each other
FIRST_PORT, PORTS = 20_000, 10_000  # below those that systems give to outgoing connections


@dataclass(frozen=True)
class TaskJob:
    """main.py with some arguments, on each node of a job; a process that dies is started again."""

    arguments: Sequence[str]
    processes: int = 1  # on each node
    threads: int = 1  # of each process
    tries: int = 1
    script: Path = MAIN

    def __call__(self) -> None:
        """Return when the script has succeeded. Raises ChildProcessError after the last try."""
        place = submitit.JobEnvironment()
        requeue = signal.getsignal(preemption_signal())  # submitit's answer to it
        heard = listen((signal.SIGTERM, preemption_signal()))
        program = [str(self.script), *self.arguments]
        command = launch_command(program, self.processes, Nodes.of(place))
        # Bits are equal for equal thread counts, on whichever machine the job goes on.
        environment = {"OMP_NUM_THREADS": str(self.threads), **os.environ}
        for number in range(1, self.tries + 1):
            status = run_child(command, environment, heard)
            if status == 0:
                return
            if not heard:
                time.sleep(RETRY_SECONDS)  # what ended the process may be on its way to us too
            if heard:
                leave(place, heard[0], requeue)
            say(f"{self.script.name} ended with status {status}, try {number} of {self.tries}")
        raise ChildProcessError(f"{self.script.name} ended with status {status}")

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts into the queue again: the same, since main.py goes on by itself."""
        return DelayedSubmission(self)


def preemption_signal() -> signal.Signals:
    """SIGUSR2, unless SUBMITIT_PREEMPT_SIGNAL names another."""
    return signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]


def listen(numbers: Sequence[int]) -> list[int]:
    """From now on these signals do nothing but enter the list that is returned."""
    heard: list[int] = []
    for number in numbers:
        signal.signal(number, lambda received, _frame: heard.append(received))
    return heard


def run_child(command: Sequence[str], environment: Mapping[str, str], heard: list[int]) -> int:
    """Run `command` until it ends, or stop it once a signal is heard; returns its status."""
    # SLURM may send its signal to every process of a job. Blocked here, it stays blocked in the
    # child, which would die of it before it could save anything.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {preemption_signal()})
    process = subprocess.Popen(command, env=environment)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        while not heard:
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    finally:
        stop(process)
    return process.returncode


def stop(process: subprocess.Popen) -> None:
    """Ask a process to end, and make it end if it does not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
    """Whether SLURM counts the job as running: preempted ones it does, cancelled ones not."""
    if place.cluster != "slurm":
        return False
    command = ["squeue", "--noheader", f"--jobs={place.job_id}", "--format=%T"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return found.stdout.strip() == "RUNNING"


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
    """How one node runs its part of `program`, a script and its arguments.

    Plain Python for a single process, else torchrun, once for each try: after a kill, torchrun's
    own restarts may hang. The nodes' torchruns meet at the first one.
    """
    if processes == 1 and len(nodes.names) == 1:
        return [sys.executable, *program]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=0"]
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
