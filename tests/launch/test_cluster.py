"""Tasks as jobs, by submitit on this machine; tests/slow/test_slurm.py has a real SLURM."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import submitit
from conftest import REPOSITORY, refusal, wait_until
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmJobEnvironment

import cluster
from engine.checkpoints import checkpoint_file, previous_file
from launch import slurm
from launch.slurm import Shape, TaskJob, launch_command
from runtime.errors import SpotTuneError

# In the place of main.py: a script that tells its process and its parent's, the job.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[1])
with (folder / "starts").open("a") as stream:
    print(os.getpid(), os.getppid(), file=stream)
"""
# It continues until it may end, a minute at most, and stops in good order when it is asked to.
PATIENT = """
def stop(number, frame):
    (folder / "stopped").touch()
    sys.exit(128 + number)

for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, stop)
(folder / "ready").touch()
begin = time.monotonic()
while not (folder / "may_end").exists() and time.monotonic() < begin + 60:
    time.sleep(0.05)
"""
DIES_ONCE = """
if len((folder / "starts").read_text().splitlines()) < 2:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Submits a script that works in tmp_path as a job of this machine: code -> job."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    executor = submitit.LocalExecutor(tmp_path / "logs")
    executor.update_parameters(timeout_min=5, stderr_to_stdout=True)

    def submit(code):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT + code)
        program = [str(script), str(tmp_path)]
        return executor.submit(TaskJob("svhn", program, tmp_path, Shape(1, 0, 1), retries=1))

    return submit


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Puts a script in the place of SLURM's squeue, which is not on this machine."""

    def write(code):
        script = tmp_path / "squeue"
        script.write_text(f"#!/bin/sh\ncd {tmp_path}\n{code}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return write


def starts(folder):
    """Process, and job's process, of each start of the script."""
    path = folder / "starts"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def test_a_process_that_dies_is_started_again(submitted, tmp_path):
    job = submitted(DIES_ONCE)
    wait_until(job.done)
    assert len(starts(tmp_path)) == 2
    assert slurm.has_succeeded(job)


@pytest.mark.parametrize(
    ("name", "state", "goes_on"),
    [("SIGUSR2", "", True), ("SIGTERM", "RUNNING", True), ("SIGTERM", "COMPLETING", False)],
    ids=["time limit", "preempted", "cancelled"],
)
def test_a_job_runs_again_unless_cancelled(name, state, goes_on, submitted, squeue, tmp_path):
    squeue(f"echo {state}")
    job = submitted(PATIENT)
    wait_until((tmp_path / "ready").exists)
    os.kill(starts(tmp_path)[0][1], signal.Signals[name])
    if goes_on:
        wait_until(lambda: len(starts(tmp_path)) == 2)
        assert not job.paths.result_pickle.exists()
    (tmp_path / "may_end").touch()
    wait_until(job.done)
    assert (tmp_path / "stopped").exists()
    assert len(starts(tmp_path)) == 1 + goes_on
    assert slurm.has_succeeded(job) == goes_on


def test_a_node_without_scontrol_tells_how_to_go_on(tmp_path, monkeypatch, capsys):
    """With submitit's own answer to the signal, as on a node of SLURM."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", "")
    submission = DelayedSubmission(TaskJob("svhn", [], tmp_path, Shape(1, 0, 1), 2))
    submission.set_timeout(60, 20)
    place = SlurmJobEnvironment()
    handler = SignalHandler(place, JobPaths(tmp_path, "7"), submission)
    with pytest.raises(SystemExit) as stop:
        slurm.leave(place, signal.SIGTERM, handler.checkpoint_and_try_requeue)
    assert stop.value.code == 143
    said = capsys.readouterr().out
    assert "the work is saved, but job 7 could not be requeued from this node" in said
    assert "Run the same cluster.py command again" in said


@pytest.mark.parametrize(("rank", "requeued"), [(0, [True]), (1, [])])
def test_the_first_node_alone_puts_the_job_back(rank, requeued, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_PROCID", str(rank))
    asked = []
    with pytest.raises(SystemExit):
        slurm.leave(SlurmJobEnvironment(), slurm.preemption_signal(), lambda *_: asked.append(True))
    assert asked == requeued


@pytest.mark.parametrize(
    ("code", "is_running"),
    [
        ("echo RUNNING", True),  # preempted, or at its time limit
        ("echo COMPLETING", False),  # cancelled
        ("", False),  # no longer in the queue
        ("echo no controller >&2; exit 1", True),  # rather requeued for nothing than given up
        ("exec sleep 60", True),
    ],
)
def test_a_job_is_given_up_only_if_slurm_says_so(code, is_running, squeue, monkeypatch):
    squeue(code)
    monkeypatch.setattr(slurm, "ANSWER_SECONDS", 0.5)
    assert slurm.is_running_job("7") == is_running


def test_failed_tasks_are_named_with_their_logs_and_those_that_never_started(submitted, tmp_path):
    failing = submitted("sys.exit('error: no such weights')")
    wait_until(failing.done)
    jobs = {"svhn": failing, "dtd": submitit.LocalJob(tmp_path / "logs", "999")}
    logs = [tmp_path / "svhn/log.txt", slurm.log_of(failing)]
    assert all("error: no such weights" in log.read_text() for log in logs)
    line = f"2 of 2 tasks failed: svhn (see {logs[0]} and {logs[1]}), dtd (never started)."
    assert refusal(slurm.check_succeeded, jobs, tmp_path).startswith(line)


# --- How a node runs its part --------------------------------------------------------------------


def test_one_process_needs_no_torchrun_and_several_of_one_machine_are_started_once_by_it():
    program = ["main.py", "--seed", "1"]
    assert launch_command(program, 1, ["n1"], own=0, job=7) == [sys.executable, *program]
    command = launch_command(program, 4, ["n1"], own=0, job=7)
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--max-restarts=0", "--nnodes=1", "--nproc_per_node=4", "--standalone"} < set(command)
    assert command[-3:] == program


@pytest.mark.parametrize(("own", "is_host"), [(0, 1), (1, 0)])
def test_the_torchruns_of_several_machines_meet_at_the_first_and_wait_finitely(own, is_host):
    command = launch_command(["main.py"], 1, ["n3", "n8"], own, job=1234)
    expected = {"--signals-to-handle=SIGINT,SIGTERM,SIGHUP,SIGUSR1,SIGUSR2"}
    expected |= {"--max-restarts=0", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d"}
    expected |= {"--rdzv_endpoint=n3:21234", "--rdzv_id=1234"}
    expected |= {f"--rdzv_conf=is_host={is_host},join_timeout=600,read_timeout=600"}
    assert expected < set(command)


# --- Collecting ----------------------------------------------------------------------------------


def test_collecting_shows_a_table_and_names_what_is_missing(trained, tmp_path, capsys):
    """svhn's last checkpoint, and both of dtd."""
    for task in ("svhn", "dtd"):
        shutil.copytree(trained.ckpdir / task, tmp_path / task)
        checkpoint_file(tmp_path, task).write_bytes(b"x")
    before = previous_file(checkpoint_file(tmp_path, "dtd"))
    before.write_bytes(b"x")
    cluster.main(["--collect", "--ckpdir", str(tmp_path), "--tasks", "svhn", "dtd", "aircraft"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "svhn: 1 of 2 epochs are finished"
    assert said[1].startswith(f"dtd: {before}: not a readable")
    assert said[2] == "aircraft: no epoch is finished"
    assert said[5].split()[:2] == ["svhn", "1"]


# --- Arguments -----------------------------------------------------------------------------------


def test_no_two_programs_would_take_the_same_flag():
    """Else a flag for main.py would be swallowed here."""
    ours, rest = cluster.parse_args([])
    assert rest == []
    assert not vars(ours).keys() & vars(cluster.parse_training([])).keys()


def test_flags_that_are_not_named_here_reach_main_as_they_are():
    argv = ["--tasks", "svhn", "dtd", "--wait", "--re", "40", "--sbatch", "qos=high", "a=b=c"]
    args, rest = cluster.parse_args(argv)
    assert rest == ["--tasks", "svhn", "dtd", "--re", "40"]
    assert args.wait
    assert args.sbatch == [("qos", "high"), ("a", "b=c")]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--partiton", "gpu"], "--partiton"),
        (["--gpus_per_node", "-1"], "--gpus_per_node: -1 given"),
        (["--sbatch", "qos"], "qos given; expected KEY=VALUE"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as caught:
        cluster.main(flags)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "found no sbatch and srun here"),
        (["--pretrained", "nowhere.t7"], "nowhere.t7: no such file"),
        (["--nodes", "3"], "cannot be divided among 3 processes"),
        (["--datadir", "nowhere"], "nowhere: no such folder"),
        (["--collect"], "no task has a record there yet"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_submitted(
    flags, words, decathlon_root, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    common = ["--datadir", str(decathlon_root), "--ckpdir", str(tmp_path / "checkpoints")]
    assert words in refusal(cluster.main, [*common, *flags])
    assert not (tmp_path / "checkpoints/logs").exists()


def test_logs_whose_name_slurm_would_change_are_refused(tmp_path, monkeypatch):
    for name in ("sbatch", "srun"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpotTuneError, match="SLURM would replace the %; name another folder"):
        cluster.check_cluster(tmp_path / "%j")


def test_without_submitit_main_runs_and_cluster_says_what_to_install(decathlon_root, tmp_path):
    code = "import sys; sys.modules['submitit'] = None; import main, cluster\n"
    code += "from runtime.errors import run_script; run_script(cluster.main)"
    command = [sys.executable, "-c", code, "--datadir", str(decathlon_root), "--ckpdir", tmp_path]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: cluster.py needs submitit: install it with `pip install submitit`\n"
    )
