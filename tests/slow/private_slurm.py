"""A SLURM of one's own on one machine: munge, a controller and two nodes, all on loopback.

Nothing of the machine's own configuration is read or changed; configuration, keys, state and logs
lie in one folder. It takes root, and the daemons of Debian's slurm-wlm and munge.
"""

import os
import secrets
import shutil
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

from conftest import wait_until

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])
# Names that resolve, since torchrun connects to one of them; SLURM wants the machine's own first.
NODES = (socket.gethostname(), "localhost")

CONF = """
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credential has expired: here for the least time that is allowed.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
# A cluster may forbid it, so cluster.py asks for it.
JobRequeue=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL State=UP PriorityTier=10
"""


def what_is_missing() -> str:
    """Why no SLURM can be started here, or nothing."""
    absent = [name for name in DAEMONS + COMMANDS if not shutil.which(name, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd starts jobs only for root"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def configure(folder: Path) -> Path:
    """Write the key and the configuration; returns the latter."""
    for name in ("munge", "state"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge/key-file"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    host = socket.gethostname()
    nodes = [
        f"NodeName={node} NodeAddr=127.0.0.1 NodeHostname={host} Port={free_port()} CPUs=1"
        for node in NODES
    ]
    conf = folder / "slurm.conf"
    values = {"folder": folder, "host": host, "controller_port": free_port()}
    conf.write_text(CONF.format(**values, nodes="\n".join(nodes)))
    return conf


def daemons(folder: Path, conf: Path) -> list[list[str]]:
    """The commands that start them, none of which goes into the background."""
    flags = ("socket", "key-file", "log-file", "pid-file", "seed-file")
    places = [f"--{flag}={folder}/munge/{flag}" for flag in flags]
    return [
        ["munged", "--foreground", "--force", *places],
        ["slurmctld", "-D", "-f", str(conf)],
        *(["slurmd", "-D", "-f", str(conf), "-N", node] for node in NODES),
    ]


@contextmanager
def running(command: list[str], log: Path):
    """A process that is there until the end of the block."""
    with log.open("ab") as stream:
        environment = {**os.environ, "PATH": PATH}
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def slurm_in(folder: Path):
    """A SLURM that takes jobs; yields the path of its configuration, for SLURM_CONF."""
    conf = configure(folder)
    with ExitStack() as stack:
        for number, command in enumerate(daemons(folder, conf)):
            stack.enter_context(running(command, folder / f"{number}-{command[0]}.out"))
        ask = {**os.environ, "SLURM_CONF": str(conf)}
        wait_for_nodes(ask)
        yield conf
        subprocess.run(["scancel", "--me"], env=ask, check=True)
        wait_until(lambda: not squeue("%i", ask))


def wait_for_nodes(environment: dict[str, str]) -> None:
    def all_idle() -> bool:
        command = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.stdout.split().count("idle") == len(NODES)

    wait_until(all_idle)  # else see the logs in the folder


def squeue(form: str, environment=None, *options: str) -> list[str]:
    """A line for each job in the queue."""
    command = ["squeue", "--noheader", "--array", f"--format={form}", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
