"""The Decathlon on a real SLURM: dependencies, preemption, requeueing, failure, two nodes."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import SMALL, outcome, run_script, wait_until
from private_slurm import slurm_in, squeue, what_is_missing

import main
from engine.checkpoints import checkpoint_file
from engine.records import epochs_recorded
from launch.slurm import launch_command

TASKS = ("imagenet12", "svhn", "dtd")
EPOCHS = 60


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A SLURM of two nodes with one core each, for every command of these tests."""
    if missing := what_is_missing():
        pytest.skip(f"no SLURM on this machine ({missing})")
    with slurm_in(tmp_path_factory.mktemp("slurm")) as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.delenv("OMP_NUM_THREADS", raising=False)
        yield


def arguments(root, ckpdir, *more):
    return [
        *["--datadir", str(root), "--ckpdir", str(ckpdir), *SMALL, "--train_split", "train"],
        *["--pretrained", "none", "--nb_epochs", str(EPOCHS), "--source_epochs", str(EPOCHS)],
        *more,
    ]


ON_SLURM = ["--gpus_per_node", "0", "--cpus_per_task", "1", "--timeout_min", "60"]


@pytest.fixture(scope="module")
def undisturbed(decathlon_root, tmp_path_factory):
    """What main.py makes of the same tasks, one after another, in one process."""
    ckpdir = tmp_path_factory.mktemp("undisturbed")
    main.main(arguments(decathlon_root, ckpdir, "--tasks", *TASKS))
    return ckpdir


@pytest.fixture
def follow(tmp_path, started):
    """Starts `cluster.py --wait` in the background."""

    def start(*argv):
        command = [sys.executable, "cluster.py", *ON_SLURM, "--wait", *argv]
        with (tmp_path / "said.txt").open("w") as stream:
            return started(command, stdout=stream, stderr=stream)

    return start


def said(folder):
    return (folder / "said.txt").read_text().splitlines()


def job_of(folder, task):
    """The number under which the task was submitted."""
    (line,) = [line for line in said(folder) if line.startswith(f"{task}: job ")]
    return line.split()[2].rstrip(",")


def in_the_middle(folder, task):
    """Wait until some epochs of the task are finished, and return its job."""
    of_task = folder / "checkpoints" / task
    wait_until(lambda: epochs_recorded(of_task) >= 3, 120)
    assert epochs_recorded(of_task) < EPOCHS
    return job_of(folder, task)


def log(ckpdir, job):
    """What was said on all nodes of a job."""
    return "".join(path.read_text() for path in sorted(ckpdir.glob(f"logs/{job}_*_log.out")))


def printed(ckpdir, task):
    """All that the task's processes printed."""
    return (ckpdir / task / "log.txt").read_text()


def command(*words):
    subprocess.run(words, check=True, timeout=60)


def test_requeued_jobs_end_with_the_same_bits(slurm, decathlon_root, undisturbed, tmp_path, follow):
    """The source by submitit's signal, one target by hand, one by a job that goes before it."""
    ckpdir = tmp_path / "checkpoints"
    follower = follow(*arguments(decathlon_root, ckpdir, "--tasks", *TASKS))
    source = in_the_middle(tmp_path, "imagenet12")
    assert {line.split()[1] for line in squeue("%i %r") if "_" in line} == {"Dependency"}
    command("scancel", "--signal=USR2", source)
    svhn = in_the_middle(tmp_path, "svhn")
    command("scontrol", "requeue", svhn)
    dtd = in_the_middle(tmp_path, "dtd")
    (node,) = squeue("%N", None, f"--jobs={dtd}")
    command("sbatch", "--partition=high", f"--nodelist={node}", "--output=/dev/null", "--wrap=true")

    assert follower.wait(300) == 0, said(tmp_path)
    for task, job in zip(TASKS, (source, svhn, dtd), strict=True):
        assert log(ckpdir, job).count("Starting with JobEnvironment") == 2, task
        assert f"of {EPOCHS} epochs were finished before" in printed(ckpdir, task), task
        assert "stopped; the same command continues" in printed(ckpdir, task), task
        assert outcome(ckpdir, task) == outcome(undisturbed, task)
    assert any(line.split()[:2] == ["dtd", str(EPOCHS)] for line in said(tmp_path))


def test_targets_of_a_failed_source_never_start(slurm, decathlon_root, tmp_path, follow):
    ckpdir = tmp_path / "checkpoints"
    argv = arguments(decathlon_root, ckpdir, "--tasks", *TASKS, "--lr", "1e30")
    follower = follow(*argv)
    assert follower.wait(300) == 1
    error = said(tmp_path)[-1]
    assert error.startswith("error: 3 of 3 tasks failed: imagenet12 (see ")
    assert "svhn (never started), dtd (never started)" in error
    assert "the loss became nan" in log(ckpdir, job_of(tmp_path, "imagenet12"))
    assert squeue("%i") == []


def test_a_cancelled_job_stays_cancelled(slurm, decathlon_root, undisturbed, tmp_path, follow):
    """Though SLURM cancels with the signal with which it preempts."""
    source = checkpoint_file(undisturbed, "imagenet12")
    ckpdir = tmp_path / "checkpoints"
    argv = arguments(decathlon_root, ckpdir, "--tasks", "svhn", "--pretrained", str(source))
    follower = follow(*argv)
    svhn = in_the_middle(tmp_path, "svhn")
    command("scancel", svhn)
    assert follower.wait(300) == 1
    assert "1 of 1 tasks failed: svhn (see " in said(tmp_path)[-1]
    assert log(ckpdir, svhn).count("Starting with JobEnvironment") == 1
    assert squeue("%i") == []


def test_what_slurm_refuses_is_told_in_one_line_and_leaves_nothing(slurm, decathlon_root, tmp_path):
    argv = arguments(decathlon_root, tmp_path, "--tasks", *TASKS, "--partition", "nowhere")
    done = run_script("cluster.py", *ON_SLURM, *argv)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "invalid partition specified: nowhere" in line
    assert squeue("%i") == []


@pytest.fixture(scope="module")
def together(decathlon_root, tmp_path_factory):
    """imagenet12, trained by two processes of one machine that nobody disturbs."""
    ckpdir = tmp_path_factory.mktemp("together")
    program = [str(main.SCRIPT), *arguments(decathlon_root, ckpdir, "--tasks", "imagenet12")]
    torchrun = launch_command(program, 2, ["localhost"], own=0, job=0)
    subprocess.run(torchrun, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return ckpdir


def trainers(ckpdir):
    """The processes of main.py that torchrun started, on both nodes."""
    found = subprocess.run(["pgrep", "--full", "--list-full", str(ckpdir)], capture_output=True)
    lines = found.stdout.decode().splitlines()
    trains = [line for line in lines if "main.py" in line and "torch.distributed.run" not in line]
    return [int(line.split()[0]) for line in trains]


def test_the_source_on_two_nodes_survives_a_kill_and_preemption(
    slurm, decathlon_root, together, tmp_path, follow
):
    """Torchruns that meet, meet again after a process was killed, and again after a requeue."""
    ckpdir = tmp_path / "checkpoints"
    argv = arguments(decathlon_root, ckpdir, "--tasks", "imagenet12", "--nodes", "2")
    follower = follow(*argv)
    job = in_the_middle(tmp_path, "imagenet12")
    before = trainers(ckpdir)
    assert len(before) == 2
    os.kill(max(before), signal.SIGKILL)
    wait_until(lambda: printed(ckpdir, "imagenet12").count("finished before"), 120)
    epochs = epochs_recorded(ckpdir / "imagenet12")
    wait_until(lambda: epochs_recorded(ckpdir / "imagenet12") > epochs, 120)
    command("scancel", "--signal=USR2", job)

    assert follower.wait(300) == 0, said(tmp_path)
    assert log(ckpdir, job).count("started again from its checkpoint (1 of 2)") == 2  # on both
    assert printed(ckpdir, "imagenet12").count("finished before") == 2
    assert printed(ckpdir, "imagenet12").count("stopped; the same command continues") == 2
    assert log(ckpdir, job).count("Starting with JobEnvironment") == 4
    assert outcome(ckpdir, "imagenet12") == outcome(together, "imagenet12")
