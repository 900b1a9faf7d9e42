"""Tasks side by side: the same bits as one after another, whatever happens to a process."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE, REPOSITORY, is_held, run_script, wait_until

import main
from decathlon import SOURCE, TASK_BY_NAME
from engine.arguments import data_folders
from engine.checkpoints import Checkpoint
from engine.records import TIMING_FIELDS
from engine.settings import Settings
from launch.jobs import job_command, longest_first
from launch.workload import expected_work
from runtime.devices import choose_compute, job_devices
from runtime.errors import SpotTuneError
from runtime.progress import epochs_done


def records(ckpdir, task):
    path = ckpdir / task / "records.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING_FIELDS} for line in lines]


def assert_same_bits(task, ours, theirs):
    """Weights, momenta and records."""
    assert records(ours, task) == records(theirs, task)
    checkpoints = [
        Checkpoint.load(folder / task / "checkpoint.safetensors") for folder in (ours, theirs)
    ]
    states = [(c.weights, c.momenta) for c in checkpoints]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def from_source(trained, ckpdir, *more):
    """Arguments of a run of the targets alone, from the source that was trained before."""
    source = trained.ckpdir / SOURCE.name / "checkpoint.safetensors"
    return [*trained.arguments, "--ckpdir", str(ckpdir), "--pretrained", str(source), *more]


@pytest.fixture
def started():
    """Starts main.py as a process, that a test is going to do something to."""
    processes = []

    def start(*arguments):
        command = [sys.executable, str(REPOSITORY / "main.py"), *map(str, arguments)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def trainer_of(ckpdir, task):
    """The id of the process that holds the task."""
    return int((ckpdir / task / ".lock").read_text().split()[1])


# --- main.py --jobs ------------------------------------------------------------------------------


def test_side_by_side_the_tasks_end_with_the_bits_of_a_sequential_run(trained, tmp_path, capfd):
    tasks = [SOURCE.name, "svhn", "daimlerpedcls"]
    jobs = ["--jobs", "2", "--threads", "1", "--tasks", *tasks]
    main.main([*trained.arguments, "--ckpdir", str(tmp_path), *jobs])
    for task in tasks:
        assert_same_bits(task, tmp_path, trained.ckpdir)
    said = capfd.readouterr().out
    assert said.startswith("SpotTune on cpu, cpu; seed 0")
    rows = [line.split()[0] for line in said.partition("epochs  train")[2].splitlines()[1:4]]
    assert rows == tasks
    first = re.findall(r"^(\S+) \| finished; \d of \d tasks to go", said, re.MULTILINE)[0]
    assert first == SOURCE.name
    assert (tmp_path / "fine_tuned_share.png").exists()
    log = (tmp_path / "svhn/log.txt").read_text()
    assert [done for line in log.splitlines() if (done := epochs_done(line))] == [(1, 2), (2, 2)]


def test_a_task_that_is_killed_in_the_middle_goes_on_and_ends_with_the_same_bits(
    started, trained, tmp_path
):
    side, turn = tmp_path / "side by side", tmp_path / "in turn"
    more = ["--threads", "1", "--nb_epochs", "6", "--tasks"]
    run = started(*from_source(trained, side, "--jobs", "2", *more, "svhn", "dtd"))
    wait_until(lambda: records(side, "svhn"))
    os.kill(trainer_of(side, "svhn"), signal.SIGKILL)
    assert len(records(side, "svhn")) < 6
    said, errors = run.communicate()
    assert (run.returncode, errors) == (0, "")
    assert (
        "svhn | was ended by signal 9 (Killed): started again from its checkpoint (1 of 2)" in said
    )
    log = (side / "svhn/log.txt").read_text()
    assert len(re.findall(r"^\$ .*main\.py .* --tasks svhn ", log, re.MULTILINE)) == 2
    assert " of 6 epochs were finished before" in log
    main.main(from_source(trained, turn, *more, "svhn"))
    assert_same_bits("svhn", side, turn)
    assert len(records(side, "dtd")) == 6


def test_no_process_outlives_a_run_that_is_killed_and_its_folder_is_held_until_then(
    started, trained, tmp_path
):
    more = ["--jobs", "2", "--threads", "1", "--nb_epochs", "5000", "--tasks", "svhn"]
    run = started(*from_source(trained, tmp_path, *more))
    wait_until(lambda: records(tmp_path, "svhn"))
    trainer = trainer_of(tmp_path, "svhn")
    second = run_script("main.py", *from_source(trained, tmp_path, "--tasks", "svhn"))
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert f"svhn: process {trainer} on " in line
    run.kill()
    run.communicate()
    wait_until(lambda: not is_held(tmp_path / "svhn"))
    Checkpoint.load(tmp_path / "svhn/checkpoint.safetensors")
    assert not list((tmp_path / "svhn").glob(".*.tmp"))


def test_a_job_whose_parent_is_gone_ends_as_by_sigterm(trained, tmp_path):
    """Its standard input is at its end, as a pipe is whose other side is gone."""
    command = [sys.executable, str(REPOSITORY / "main.py"), *from_source(trained, tmp_path)]
    command += ["--tasks", "svhn", "--nb_epochs", "5000", "--is_job"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=PATIENCE)
    assert done.returncode == 143


def test_a_job_repeats_the_runs_arguments_and_ends_with_its_own():
    argv = ["--lr", "0.2", "--tasks", "svhn", "dtd", "--jobs", "8", "--source_steps"]
    command = job_command(Path("main.py"), argv, threads=3)("dtd", "cuda:5")
    assert command[:2] == [sys.executable, "main.py"]
    args = main.parse_args(command[2:])
    assert (args.lr, args.tasks, args.source_steps) == (0.2, ["dtd"], [])
    assert (args.jobs, args.device, args.threads, args.is_job) == (1, "cuda:5", 3, True)


def test_the_number_of_threads_is_that_of_pytorch():
    before = torch.get_num_threads()
    try:
        for threads in (3, 2):
            choose_compute("cpu", "fp32", threads=threads)
            assert torch.get_num_threads() == threads
        choose_compute("cpu", "fp32")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_mistake_in_one_task_is_told_with_its_log_and_the_others_finish(trained, tmp_path, capfd):
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd/checkpoint.safetensors").write_bytes(b"no checkpoint")
    more = ["--jobs", "2", "--threads", "1", "--nb_epochs", "1", "--tasks", "svhn", "dtd"]
    with pytest.raises(SpotTuneError, match="1 of 2 tasks failed, see .*/dtd/log.txt. The others"):
        main.main(from_source(trained, tmp_path, *more))
    said = capfd.readouterr().out
    assert f"dtd | error: {tmp_path}/dtd/checkpoint.safetensors: not a readable checkpoint" in said
    assert "started again" not in said
    assert "svhn                 1 " in said
    assert len(records(tmp_path, "svhn")) == 1


@pytest.mark.parametrize("flags", [["--jobs", "0"], ["--retries", "-1"], ["--threads", "none"]])
def test_numbers_of_jobs_retries_and_threads_that_make_no_sense_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(flags)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert flags[0] in line


def test_jobs_on_a_device_that_is_not_there_are_refused(trained, tmp_path):
    with pytest.raises(SpotTuneError, match="--device cuda:97: not available here"):
        main.main(from_source(trained, tmp_path, "--jobs", "2", "--device", "cuda:97"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "jobs", "tasks", "devices"),
    [
        ("auto", None, 9, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", None, 9, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", None, 2, ["cuda:0", "cuda:1"]),
        ("auto", 1, 9, ["cuda:0"]),
        ("auto", 4, 9, ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]),
        ("cuda:1", None, 9, ["cuda:1"]),
        ("cuda:1", 2, 9, ["cuda:1", "cuda:1"]),
        ("cpu", None, 9, ["cpu"]),
        ("cpu", 2, 9, ["cpu", "cpu"]),
    ],
)
def test_every_visible_gpu_gets_a_task_and_counting_them_opens_none(
    name, jobs, tasks, devices, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    was_open = torch.cuda.is_initialized()
    assert job_devices(name, jobs, tasks) == devices
    assert torch.cuda.is_initialized() == was_open


def test_without_a_gpu_there_is_one_job_unless_more_are_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert job_devices("auto", None, 9) == ["cpu"]
    assert job_devices("auto", 2, 9) == ["cpu", "cpu"]


# --- The order of the tasks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "split", "work"),
    [  # 2 classes of 6 train and 2 val images; images are 16 x 16, daimlerpedcls's 32 x 16
        ("dtd", "train", 5 * 12 * 16 * 16),  # random crops of 16 x 16 from 24 x 24
        ("dtd", "trainval", 5 * 16 * 16 * 16),
        ("svhn", "train", 5 * 12 * 24 * 24),  # centre crops
        ("daimlerpedcls", "train", 5 * 12 * 48 * 24),  # whole
    ],
)
def test_work_is_images_times_pixels_times_epochs(task, split, work, trained):
    settings = Checkpoint.load(trained.ckpdir / "dtd/checkpoint.safetensors").settings
    shared = Settings(**{**vars(settings), "resize": 24, "crop": 16, "train_split": split})
    folders = data_folders(trained.root, None, None)
    assert expected_work(TASK_BY_NAME[task], folders, shared, epochs=5) == work


def test_the_targets_with_the_most_work_left_come_first(trained, tmp_path):
    settings = Checkpoint.load(trained.ckpdir / "dtd/checkpoint.safetensors").settings
    folders = data_folders(trained.root, None, None)
    tasks = [TASK_BY_NAME[name] for name in ("dtd", SOURCE.name, "svhn", "daimlerpedcls")]
    order = [task.name for task in longest_first(tasks, folders, tmp_path, settings)]
    assert order == ["daimlerpedcls", "dtd", "svhn"]  # 2 epochs of 32 x 16 pixels, 16 x 16 twice
    for task, lines in (("daimlerpedcls", "{}\n{}\n"), ("dtd", "{}\n")):
        (tmp_path / task).mkdir()
        (tmp_path / task / "records.jsonl").write_text(lines)
    order = [task.name for task in longest_first(tasks, folders, tmp_path, settings)]
    assert order == ["svhn", "dtd", "daimlerpedcls"]
