"""Tasks side by side: the same bits as one after another, whatever happens to a process."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE, REPOSITORY, drop_last_image, is_held, left, outcome, wait_until

import main
from decathlon import SOURCE, TASK_BY_NAME
from engine.arguments import data_folders
from engine.checkpoints import checkpoint_file
from engine.records import epochs_recorded
from launch.side_by_side import job_command, longest_first, run_tasks
from runtime.devices import job_devices
from runtime.errors import SpotTuneError
from runtime.signals import ONE_STOP_SECONDS

# --- Processes, with small scripts in the place of trainings -------------------------------------

SCRIPT = """
import os, signal, sys, time
signal.alarm(60)  # nothing is left behind by a test that fails
task, device, folder = sys.argv[1:]

def note(what):
    with open(folder + "/events", "a") as events:
        events.write(f"{what} {task} {device}\\n")

def noted(line):
    return open(folder + "/events").read().splitlines().count(line)

note("begin")
"""
PARENT = f"""
import sys
from pathlib import Path
from launch.side_by_side import run_tasks
from runtime.errors import run_script
code, folder = sys.argv[1:]
def command(task, device):
    return [sys.executable, "-c", {SCRIPT!r} + code, task, device, folder]
run_script(lambda: run_tasks(["a", "b", "c"], ["cpu", "cpu"], command, Path(folder), 1))
"""


@pytest.fixture
def run(tmp_path):
    """Runs scripts in the place of trainings: (tasks, code) -> failed tasks."""

    def run(tasks, code, devices=("one", "two")):
        def command(task, device):
            return [sys.executable, "-c", SCRIPT + code, task, device, str(tmp_path)]

        return run_tasks(tasks, devices, command, tmp_path, retries=2)

    return run


@pytest.fixture
def parent(tmp_path, started):
    """Starts the same as a process: code -> the process that watches the tasks a, b and c."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def start(code):
        command = [sys.executable, "-c", PARENT, code, tmp_path]
        return started(command, start_new_session=True, **pipes)

    return start


def events(folder):
    path = folder / "events"
    return path.read_text().splitlines() if path.exists() else []


def both(what, folder):
    """Whether both processes have noted it."""
    return lambda: Counter(event.split()[0] for event in events(folder))[what] == 2


def test_a_device_that_gets_free_takes_the_next_task(run, tmp_path):
    code = "while task == 'long' and not noted('end c two'): time.sleep(0.01)\nnote('end')"
    assert run(["long", "a", "b", "c"], code) == []
    seen = events(tmp_path)
    expected = ["begin a two", "end a two", "begin b two", "end b two", "begin c two", "end c two"]
    assert [event for event in seen if "long" not in event] == expected
    assert seen[-1] == "end long one"


ENDINGS = {  # task: how its process ends, and how often it is then tried
    "fine": ("pass", 1),
    "mistake": ("sys.exit('error: a.json: no such file; check the path')", 1),
    "wrong-flag": ("print('error: no such flag'); sys.exit(2)", 1),
    "bug": ("raise KeyError('x')", 3),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", 3),
    "once": ("noted(f'begin once {device}') > 1 or os.kill(os.getpid(), signal.SIGKILL)", 2),
    "terminated": ("sys.exit(143)", 3),
    "killed-after-an-error": (
        "print('error: at last', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
        3,
    ),
    "error-in-the-middle": ("print('error: but not the end'); print('more'); sys.exit(1)", 3),
}


def test_a_task_that_dies_is_tried_again_and_a_mistake_is_not(run, tmp_path, capsys):
    code = f"exec({ {task: ending for task, (ending, _) in ENDINGS.items()}!r}[task])"
    failed = run(list(ENDINGS), code)
    attempts = Counter(event.split()[1] for event in events(tmp_path))
    assert attempts == {task: count for task, (_, count) in ENDINGS.items()}
    assert set(failed) == ENDINGS.keys() - {"fine", "once"}
    said = capsys.readouterr().out.splitlines()
    assert "mistake | error: a.json: no such file; check the path" in said
    assert "killed | was ended by signal 9 (Killed): given up after 3 attempts" in said
    assert "terminated | ended with status 143: started again from its checkpoint (1 of 2)" in said


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGUSR2"])
def test_a_signal_reaches_every_process_once_and_is_waited_for(name, parent, tmp_path):
    """Sent to the whole group of the parent, as a terminal or a batch system does; and then again
    by another name, as some batch systems do."""
    code = f"""
def stop(number, frame):
    note("got")
    time.sleep(0.4)  # in which a second one would be noted
    note("saved")
    sys.exit(128 + number)
signal.signal(signal.{name}, stop)
note("ready")
time.sleep(600)
"""
    process = parent(code)
    wait_until(both("ready", tmp_path))
    number = signal.Signals[name]
    os.killpg(process.pid, number)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    seen = Counter(event.split()[0] for event in events(tmp_path))
    assert seen == dict.fromkeys(["begin", "ready", "got", "saved"], 2)
    assert f"{name}: stopped; the same command continues" in said
    assert "started again" not in said


def test_a_second_signal_kills_processes_that_do_not_end(parent, tmp_path):
    code = "signal.signal(signal.SIGTERM, lambda *_: note('got')); note('ready')\n"
    code += "while True: time.sleep(0.01)"
    process = parent(code)
    wait_until(both("ready", tmp_path))
    process.terminate()
    wait_until(both("got", tmp_path))
    assert process.poll() is None
    time.sleep(ONE_STOP_SECONDS + 0.1)  # at once it would be the same stop
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 143


def test_an_orphan_that_does_not_heed_its_signal_is_ended_all_the_same(parent, tmp_path):
    code = f"""
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from launch import side_by_side
from runtime.locks import claimed
side_by_side.GRACE_SECONDS = 0.2
signal.signal(signal.SIGTERM, signal.SIG_IGN)
side_by_side.end_with_parent()
with claimed(Path(folder) / task):
    note("ready")
    while True:
        time.sleep(0.01)
"""
    process = parent(code)
    wait_until(both("ready", tmp_path))
    assert is_held(tmp_path / "a")
    process.kill()
    wait_until(lambda: not is_held(tmp_path / "a") and not is_held(tmp_path / "b"))


def test_whatever_a_process_prints_is_logged_and_little_of_it_shown(run, tmp_path, capsys):
    rest = b"\n" * 1000 + b"caf\xc3\xa9 \xff\n" + b"an end \x1b[2J without newline"
    code = f"sys.stdout.buffer.write(b'x' * 3_000_000 + {rest!r})"
    assert run(["loud", "calm"], f"if task == 'loud': {code}\nelse: print('calm')") == []
    command, _, logged = (tmp_path / "loud/log.txt").read_bytes().partition(b"loud one")
    assert command.startswith(b"$ ")
    assert logged.partition(b"\n")[2] == b"x" * 3_000_000 + rest
    said = capsys.readouterr().out
    assert "loud | an end \\x1b[2J without newline\n" in said
    assert said.count("calm | calm\n") == 1
    assert "\x1b" not in said
    assert len(said) < 10_000


# --- main.py --jobs ------------------------------------------------------------------------------


@pytest.fixture
def training(trained, tmp_path, started):
    """Starts main.py --jobs 2, as a process that a test does something to."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return lambda *flags: started(trained.command(tmp_path, "--jobs", 2, *flags), **pipes)


def trainer_of(ckpdir, task):
    """The id of the process that holds the task."""
    return int((ckpdir / task / ".lock").read_text().split()[1])


def test_side_by_side_the_tasks_end_with_the_bits_of_a_sequential_run(trained, tmp_path, capfd):
    tasks = [SOURCE.name, "svhn", "daimlerpedcls"]
    jobs = ["--jobs", "2", "--threads", "1", "--tasks", *tasks]
    main.main([*trained.arguments, "--ckpdir", str(tmp_path), *jobs])
    for task in tasks:
        assert outcome(tmp_path, task) == outcome(trained.ckpdir, task)
    said = capfd.readouterr().out
    assert said.startswith("SpotTune on cpu, cpu; seed 0")
    rows = [line.split()[0] for line in said.partition("epochs  train")[2].splitlines()[1:4]]
    assert rows == tasks
    assert re.findall(r"^(\S+) \| finished; \d tasks to go", said, re.MULTILINE)[0] == SOURCE.name
    assert (tmp_path / "fine_tuned_share.png").exists()
    assert "svhn epoch 2/2  loss" in (tmp_path / "svhn/log.txt").read_text()


def test_a_task_that_is_killed_ends_with_the_same_bits(training, trained, tmp_path):
    process = training("--nb_epochs", 6, "--tasks", "svhn", "dtd")
    wait_until(lambda: epochs_recorded(tmp_path / "svhn"))
    os.kill(trainer_of(tmp_path, "svhn"), signal.SIGKILL)
    assert epochs_recorded(tmp_path / "svhn") < 6
    said, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    again = "was ended by signal 9 (Killed): started again from its checkpoint (1 of 2)"
    assert f"svhn | {again}" in said
    log = (tmp_path / "svhn/log.txt").read_text()
    assert len(re.findall(r"^\$ .*main\.py .* --tasks svhn ", log, re.MULTILINE)) == 2
    assert " of 6 epochs were finished before" in log
    trained.again(tmp_path / "alone", "--nb_epochs", "6", "--tasks", "svhn")
    assert outcome(tmp_path) == outcome(tmp_path / "alone")
    assert epochs_recorded(tmp_path / "dtd") == 6


def test_no_process_outlives_a_run_that_is_killed(training, trained, tmp_path):
    process = training("--nb_epochs", 5000, "--tasks", "svhn")
    wait_until(lambda: epochs_recorded(tmp_path / "svhn"))
    with pytest.raises(SpotTuneError, match=f"svhn: process {trainer_of(tmp_path, 'svhn')} on "):
        trained.again(tmp_path, "--tasks", "svhn")
    process.kill()
    process.communicate()
    wait_until(lambda: not is_held(tmp_path / "svhn"))
    left(tmp_path)
    assert not list((tmp_path / "svhn").glob(".*.tmp"))


def test_a_mistake_in_one_task_is_told_with_its_log_and_the_others_finish(trained, tmp_path, capfd):
    damaged = checkpoint_file(tmp_path, "dtd")
    damaged.parent.mkdir()
    damaged.write_bytes(b"no checkpoint")
    flags = ["--jobs", "2", "--nb_epochs", "1", "--tasks", "svhn", "dtd"]
    with pytest.raises(SpotTuneError, match="1 of 2 tasks failed, see .*/dtd/log.txt. The others"):
        trained.again(tmp_path, *flags)
    said = capfd.readouterr().out
    assert f"dtd | error: {damaged}: not a readable checkpoint" in said
    assert "started again" not in said
    assert damaged.read_bytes() == b"no checkpoint"
    assert "svhn                 1 " in said
    assert epochs_recorded(tmp_path / "svhn") == 1


def test_a_job_repeats_the_runs_arguments_and_ends_with_its_own():
    argv = ["--lr", "0.2", "--tasks", "svhn", "dtd", "--jobs", "8", "--source_steps"]
    command = job_command(Path("main.py"), argv, threads=3)("dtd", "cuda:5")
    assert command[:2] == [sys.executable, "main.py"]
    args = main.parse_args(command[2:])
    assert (args.lr, args.tasks, args.source_steps) == (0.2, ["dtd"], [])
    assert (args.jobs, args.device, args.threads, args.is_job) == (1, "cuda:5", 3, True)


# --- Devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "name", "jobs", "tasks", "devices"),
    [
        (3, "auto", None, 9, ["cuda:0", "cuda:1", "cuda:2"]),
        (3, "auto", None, 2, ["cuda:0", "cuda:1"]),
        (3, "auto", 1, 9, ["cuda:0"]),
        (3, "auto", 4, 9, ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]),
        (3, "cuda:1", None, 9, ["cuda:1"]),
        (3, "cuda:1", 2, 9, ["cuda:1", "cuda:1"]),
        (3, "cpu", 2, 9, ["cpu", "cpu"]),
        (0, "auto", None, 9, ["cpu"]),
        (0, "auto", 2, 9, ["cpu", "cpu"]),
    ],
)
def test_every_gpu_gets_a_task_and_none_is_opened(gpus, name, jobs, tasks, devices, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    was_open = torch.cuda.is_initialized()
    assert job_devices(name, jobs, tasks) == devices
    assert torch.cuda.is_initialized() == was_open


# --- The order of the tasks ----------------------------------------------------------------------


def test_the_targets_with_the_most_pixels_left_come_first(decathlon_root, tmp_path):
    """12 training images, but of aircraft 11; 2 epochs of 64 x 32, 32 x 32 and 16 x 16 pixels."""
    shutil.copytree(decathlon_root / "annotations", tmp_path / "annotations")
    drop_last_image(tmp_path / "annotations/aircraft_train.json")
    folders = data_folders(decathlon_root, tmp_path / "annotations", None)
    names = ("aircraft", "dtd", SOURCE.name, "svhn", "daimlerpedcls")
    tasks = [TASK_BY_NAME[name] for name in names]

    def order():
        ordered = longest_first(tasks, folders, tmp_path, ("train",), 2, 32, 16)
        return [task.name for task in ordered]

    assert order() == ["daimlerpedcls", "svhn", "dtd", "aircraft"]
    for task, lines in (("daimlerpedcls", "{}\n{}\n"), ("dtd", "{}\n")):
        (tmp_path / task).mkdir()
        (tmp_path / task / "records.jsonl").write_text(lines)
    assert order() == ["svhn", "aircraft", "dtd", "daimlerpedcls"]
