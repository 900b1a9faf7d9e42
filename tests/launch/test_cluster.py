"""Tasks as jobs, with submitit's local executor; tests/slow/test_slurm.py has a real SLURM."""

import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import PATIENCE, REPOSITORY, run_script, wait_until

import cluster
from decathlon import SOURCE, TASK_BY_NAME, TASKS
from engine.checkpoints import Checkpoint
from engine.records import TIMING_FIELDS
from launch import cluster_job
from launch.cluster_job import Nodes, TaskJob, launch_command
from launch.cluster_queue import Shape, Stage, executor, has_succeeded, log_of, run_here
from runtime.errors import SpotTuneError

LOCAL = ["--cluster", "local", "--gpus_per_node", "0", "--cpus_per_task", "1"]
ALONE = Shape(nodes=1, gpus=0, processes=1, cores=1)
ONE_NODE = Nodes(["n1"], own=0, job=7)


def records(ckpdir, task):
    lines = (ckpdir / task / "records.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMING_FIELDS}
        for line in lines
    ]


def test_jobs_give_the_bits_of_a_sequential_run_from_any_folder(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ["imagenet12", "svhn"]
    cluster.main([*LOCAL, *trained.arguments, "--ckpdir", "checkpoints", "--tasks", *names])
    ours = tmp_path / "checkpoints"
    for task in names:
        weights, expected = (
            Checkpoint.load(ckpdir / task / "checkpoint.safetensors").weights
            for ckpdir in (ours, trained.ckpdir)
        )
        assert weights.keys() == expected.keys()
        assert all(tensor.equal(expected[name]) for name, tensor in weights.items()), task
        assert records(ours, task) == records(trained.ckpdir, task)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if ": job " in line] == names
    table = {line.split()[0]: line.split()[1:4] for line in said if line}
    for task in names:
        environment = json.loads((ours / task / "environment.json").read_text())
        assert environment["threads"] == 1  # as --cpus_per_task
        last = records(ours, task)[-1]
        figures = [f"{last[f'{split}_accuracy']:.2f}" for split in ("train", "val")]
        assert table[task] == ["2", *figures]


# In the place of main.py: a script that tells its process and its parent's, the job.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[1])
with (folder / "starts").open("a") as stream:
    print(os.getpid(), os.getppid(), file=stream)
"""
# It goes on until it may end, a minute at most, and stops in good order when it is asked to.
PATIENT = """
def stop(number, frame):
    (folder / "stopped").touch()
    sys.exit(128 + number)

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
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
FAILS = "sys.exit('error: no such weights')"


@pytest.fixture
def local_job(tmp_path):
    """Makes a TaskJob of a script that works in tmp_path."""

    def make(task, body, retries=0):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT + body)
        return TaskJob(task, [str(script), str(tmp_path)], tmp_path, retries=retries)

    return make


def submitted(job, folder):
    return executor("local", folder / "logs", ALONE, {"timeout_min": 5}).submit(job)


def starts(folder):
    """Process, and job's process, of each start of the script."""
    path = folder / "starts"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


@pytest.mark.parametrize("retries", [0, 1])
def test_a_process_that_dies_is_started_again_as_often_as_allowed(retries, local_job, tmp_path):
    job = submitted(local_job("svhn", DIES_ONCE, retries), tmp_path)
    wait_until(job.done)
    assert len(starts(tmp_path)) == 1 + retries
    assert has_succeeded(job) == (retries == 1)


def test_a_preempted_job_stops_its_process_in_good_order_and_runs_again(local_job, tmp_path):
    job = submitted(local_job("svhn", PATIENT, retries=2), tmp_path)
    wait_until((tmp_path / "ready").exists)
    os.kill(starts(tmp_path)[0][1], signal.SIGUSR2)
    wait_until(lambda: len(starts(tmp_path)) == 2)
    assert (tmp_path / "stopped").exists()
    assert not job.paths.result_pickle.exists()
    (tmp_path / "may_end").touch()
    wait_until(job.done)
    assert has_succeeded(job)
    assert len(starts(tmp_path)) == 2


def test_a_terminated_local_job_stops_its_process_and_stays_stopped(local_job, tmp_path):
    job = submitted(local_job("svhn", PATIENT, retries=2), tmp_path)
    wait_until((tmp_path / "ready").exists)
    os.kill(int(job.job_id), signal.SIGTERM)
    wait_until(job.done)
    assert (tmp_path / "stopped").exists()
    assert len(starts(tmp_path)) == 1
    assert not has_succeeded(job)


def test_ctrl_c_ends_local_jobs_in_good_order(local_job, tmp_path):
    """On a terminal, the signal goes to the script and to all that it has started."""
    job = local_job("svhn", PATIENT)
    program = f"""
from pathlib import Path, PosixPath
from launch.cluster_job import TaskJob
from launch.cluster_queue import Shape, Stage, executor, run_here
from runtime.errors import run_script
by = executor("local", Path({str(tmp_path)!r}) / "logs", Shape(1, 0, 1, 1), {{"timeout_min": 5}})
run_script(lambda: run_here([Stage(by, {{"svhn": {job!r}}})], 1))
"""
    command = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=REPOSITORY, start_new_session=True, stdout=pipe, stderr=pipe, text=True
    ) as script:
        wait_until((tmp_path / "ready").exists)
        os.killpg(script.pid, signal.SIGINT)
        _, errors = script.communicate(timeout=PATIENCE)
    assert script.returncode == 130
    assert errors == "SIGINT: stopped; the same command goes on where it can\n"
    assert (tmp_path / "stopped").exists()
    assert len(starts(tmp_path)) == 1


def test_targets_of_a_failed_source_are_not_started_and_all_are_named(local_job, tmp_path, capsys):
    by = executor("local", tmp_path / "logs", ALONE, {"timeout_min": 5})
    stages = [Stage(by, {task: local_job(task, FAILS)}) for task in ("imagenet12", "svhn")]
    jobs = run_here(stages, at_once=1)
    assert len(starts(tmp_path)) == 1
    logs = [tmp_path / "imagenet12/log.txt", log_of(jobs["imagenet12"])]
    assert all("error: no such weights" in log.read_text() for log in logs)
    with pytest.raises(SpotTuneError) as caught:
        cluster.conclude([SOURCE, TASK_BY_NAME["svhn"]], jobs, tmp_path)
    line = f"2 of 2 tasks failed: imagenet12 (see {logs[0]} and {logs[1]}), svhn (never started)."
    assert str(caught.value).startswith(line)
    assert "imagenet12: no epoch is finished" in capsys.readouterr().out


def test_collecting_prints_the_table_and_what_is_missing(trained, capsys):
    arguments = ["--collect", "--ckpdir", str(trained.ckpdir)]
    cluster.main(arguments)
    table = capsys.readouterr().out
    assert [line.split()[:2] for line in table.splitlines()[2:12]] == [[t.name, "2"] for t in TASKS]


def test_collecting_names_tasks_that_are_not_finished(trained, tmp_path, capsys):
    half = Checkpoint.load(trained.ckpdir / "svhn/checkpoint.safetensors")
    (tmp_path / "svhn").mkdir()
    half.history.pop()
    half.save(tmp_path / "svhn/checkpoint.safetensors")
    cluster.main(["--collect", "--ckpdir", str(tmp_path), "--tasks", "svhn", "dtd"])
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == ["svhn: 1 of 2 epochs are finished", "dtd: no epoch is finished"]


@pytest.mark.parametrize(
    ("squeue", "is_running"),
    [
        ("echo RUNNING", True),  # preempted, or at its time limit
        ("echo COMPLETING", False),  # cancelled
        ("", False),  # no longer in the queue
        ("test -e asked && echo COMPLETING || { touch asked; exit 1; }", False),
        ("echo no controller >&2; exit 1", True),  # rather requeued for nothing than given up
        ("sleep 60", True),
    ],
)
def test_a_job_is_given_up_only_if_slurm_says_that_it_does_not_run(
    squeue, is_running, tmp_path, monkeypatch
):
    script = tmp_path / "squeue"
    script.write_text(f"#!/bin/sh\ncd {tmp_path}\n{squeue}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(cluster_job, "ASKING_SECONDS", 2.0)
    place = SimpleNamespace(cluster="slurm", job_id="7")
    assert cluster_job.is_running_job(place) == is_running


def test_a_damaged_checkpoint_is_named_beside_the_other_tasks_lines(trained, tmp_path, capsys):
    for task in ("svhn", "dtd", "ucf101"):
        shutil.copytree(trained.ckpdir / task, tmp_path / task)
    for damaged in (
        "svhn/checkpoint.safetensors",
        "dtd/checkpoint.safetensors",
        "dtd/checkpoint.previous.safetensors",
    ):
        (tmp_path / damaged).write_bytes(b"x")
    tasks = ["svhn", "dtd", "ucf101"]
    cluster.main(["--collect", "--ckpdir", str(tmp_path), "--tasks", *tasks])
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[2:4]] == [["svhn", "1"], ["ucf101", "2"]]
    assert said[-3].startswith(f"svhn: {tmp_path / 'svhn/checkpoint.safetensors'}: not a readable")
    assert said[-2] == "svhn: 1 of 2 epochs are finished"
    assert said[-1].startswith(
        f"dtd: {tmp_path / 'dtd/checkpoint.previous.safetensors'}: not a readable"
    )
    with pytest.raises(SpotTuneError, match="3 of 3 tasks failed: svhn .never started., dtd"):
        cluster.conclude([TASK_BY_NAME[name] for name in tasks], {}, tmp_path)


def test_the_source_comes_first_and_alone_then_the_targets_with_most_images_first():
    names = [[task.name for task in stage] for stage in cluster.stage_members(TASKS)]
    assert names[0] == ["imagenet12"]
    assert names[1][:3] == ["svhn", "cifar100", "gtsrb"]
    assert names[1][-1] == "vgg-flowers"
    assert len(names[1]) == 9
    assert cluster.stage_members([TASK_BY_NAME["dtd"]]) == [[TASK_BY_NAME["dtd"]]]


def test_one_process_needs_no_torchrun():
    command = launch_command(["main.py", "--seed", "1"], 1, ONE_NODE)
    assert command == [sys.executable, "main.py", "--seed", "1"]


def test_several_processes_of_one_machine_are_started_once_by_torchrun():
    command = launch_command(["main.py", "--seed", "1"], 4, ONE_NODE)
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--max-restarts=0", "--nnodes=1", "--nproc_per_node=4", "--standalone"} < set(command)
    assert command[-3:] == ["main.py", "--seed", "1"]


@pytest.mark.parametrize(("own", "is_host"), [(0, 1), (1, 0)])
def test_the_torchruns_of_several_machines_meet_at_the_first_and_wait_finitely(own, is_host):
    command = launch_command(["main.py"], 1, Nodes(["n3", "n8"], own, job=1234))
    expected = {"--signals-to-handle=SIGINT,SIGTERM,SIGUSR1,SIGUSR2"}
    expected |= {"--max-restarts=0", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d"}
    expected |= {"--rdzv_endpoint=n3:21234", "--rdzv_id=1234"}
    expected |= {f"--rdzv_conf=is_host={is_host},join_timeout=600,read_timeout=600"}
    assert expected < set(command)


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
        (["--tasks", "mnist"], "'mnist'"),
        (["--partiton", "gpu"], "--partiton"),
        (["--cluster", "pbs"], "'pbs'"),
        (["--gpus_per_node", "-1"], "--gpus_per_node: -1 given"),
        (["--nodes", "0"], "--nodes: 0 given"),
        (["--sbatch", "qos"], "qos given; expected KEY=VALUE"),
        (["--logs", ""], "an empty name given"),
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
        (["--cluster", "local", "--nodes", "2"], "--nodes 2: --cluster local has one machine"),
        (["--cluster", "local", "--array_parallelism", "2"], "put all jobs on the first GPU"),
        (["--cluster", "slurm"], "found no sbatch and srun here"),
        (["--pretrained", "nowhere.t7"], "nowhere.t7: no such file"),
        (["--nproc_per_node", "3", "--cluster", "local"], "cannot be divided among 3 processes"),
        (["--resize", "70"], "--resize 70: expected a multiple of 8"),
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
    with pytest.raises(SpotTuneError) as caught:
        cluster.main([*common, *flags])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints/logs").exists()


def test_the_script_itself_ends_in_one_line_and_status_1(tmp_path):
    done = run_script("cluster.py", "--cluster", "local", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: data/decathlon-1.0: no such folder")
    assert done.stderr.count("\n") == 1
