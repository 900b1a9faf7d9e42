"""Processes side by side, with small scripts in the place of trainings."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter

import pytest
from conftest import PATIENCE, REPOSITORY, is_held, wait_until

from launch.crew import run_tasks
from runtime.errors import ONE_STOP_SECONDS
from runtime.progress import epochs_done

SCRIPT = """
import os, signal, sys, time
signal.alarm(60)  # nothing is left behind by a test that fails
task, device, folder = sys.argv[1:]

def note(what):
    with open(folder + "/events", "a") as events:
        events.write(f"{what} {task} {device}\\n")

def noted(line):
    return line in open(folder + "/events").read().splitlines()

note("begin")
"""
PARENT = f"""
import sys
from pathlib import Path
from launch.crew import run_tasks
code, folder = sys.argv[1:]
def command(task, device):
    return [sys.executable, "-c", {SCRIPT!r} + code, task, device, folder]
print(run_tasks(["a", "b", "c"], ["cpu", "cpu"], command, Path(folder), 1))
"""


@pytest.fixture
def crew(tmp_path):
    """Runs scripts in the place of trainings: (tasks, code, retries) -> failed tasks."""

    def run(tasks, code, retries=2, devices=("one", "two")):
        def command(task, device):
            return [sys.executable, "-c", SCRIPT + code, task, device, str(tmp_path)]

        return run_tasks(tasks, devices, command, tmp_path, retries)

    return run


@pytest.fixture
def parent(tmp_path):
    """Starts the same as a process: code -> the process that watches the tasks a, b and c."""
    processes = []

    def start(code, **streams):
        command = [sys.executable, "-c", PARENT, code, str(tmp_path)]
        process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, **streams)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def events(folder):
    path = folder / "events"
    return path.read_text().splitlines() if path.exists() else []


def test_a_device_that_gets_free_takes_the_next_task(crew, tmp_path):
    code = "while task == 'long' and not noted('end c two'): time.sleep(0.01)\nnote('end')"
    assert crew(["long", "a", "b", "c"], code) == []
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
    "crash": ("os.kill(os.getpid(), signal.SIGSEGV)", 3),
    "terminated": ("sys.exit(143)", 3),
    "error-in-the-middle": ("print('error: but not the end'); print('more'); sys.exit(1)", 3),
}


def test_a_task_that_dies_is_tried_a_bounded_number_of_times_and_a_mistake_once(
    crew, tmp_path, capsys
):
    code = f"exec({ {task: ending for task, (ending, _) in ENDINGS.items()}!r}[task])"
    failed = crew(list(ENDINGS), code, retries=2)
    attempts = Counter(event.split()[1] for event in events(tmp_path))
    assert attempts == {task: count for task, (_, count) in ENDINGS.items()}
    assert set(failed) == ENDINGS.keys() - {"fine"}
    said = capsys.readouterr().out.splitlines()
    assert "mistake | error: a.json: no such file; check the path" in said
    assert "killed | was ended by signal 9 (Killed): given up after 3 attempts" in said
    assert "terminated | ended with status 143: started again from its checkpoint (1 of 2)" in said


def test_a_task_that_dies_once_is_started_again_at_once_and_has_not_failed(crew, tmp_path):
    code = "if task == 'a' and events_of_a() == 1: os.kill(os.getpid(), 9)"
    count = "events_of_a = lambda: open(folder + '/events').read().count('begin a')\n"
    assert crew(["a", "b"], count + code, devices=["one"]) == []
    assert events(tmp_path) == ["begin a one", "begin a one", "begin b one"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
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
    run = parent(code, stdout=subprocess.PIPE)
    wait_until(lambda: sum(event.startswith("ready") for event in events(tmp_path)) == 2)
    number = signal.Signals[name]
    os.killpg(run.pid, number)
    time.sleep(0.1)
    os.killpg(run.pid, signal.SIGTERM)
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 128 + number
    assert Counter(event.split()[0] for event in events(tmp_path)) == {
        "begin": 2,
        "ready": 2,
        "got": 2,
        "saved": 2,
    }
    assert f"stopped by {name}".encode() in said
    assert b"started again" not in said


def test_a_second_signal_kills_processes_that_do_not_end(parent, tmp_path):
    code = "signal.signal(signal.SIGTERM, lambda *_: note('got')); note('ready')\n"
    code += "while True: time.sleep(0.01)"
    run = parent(code, stdout=subprocess.PIPE)
    wait_until(lambda: sum(event.startswith("ready") for event in events(tmp_path)) == 2)
    run.terminate()
    wait_until(lambda: sum(event.startswith("got") for event in events(tmp_path)) == 2)
    assert run.poll() is None
    time.sleep(ONE_STOP_SECONDS + 0.1)  # at once it would be the same stop
    run.terminate()
    run.communicate(timeout=PATIENCE)
    assert run.returncode == 143


def test_a_process_that_does_not_heed_its_orphans_signal_is_ended_all_the_same(parent, tmp_path):
    code = f"""
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from launch import crew
from runtime.locks import claimed
crew.GRACE_SECONDS = 0.2
signal.signal(signal.SIGTERM, signal.SIG_IGN)
crew.end_with_parent()
with claimed(Path(folder) / task):
    note("ready")
    while True:
        time.sleep(0.01)
"""
    run = parent(code, stdout=subprocess.DEVNULL)
    wait_until(lambda: sum(event.startswith("ready") for event in events(tmp_path)) == 2)
    assert is_held(tmp_path / "a")
    run.kill()
    wait_until(lambda: not is_held(tmp_path / "a") and not is_held(tmp_path / "b"))


def test_whatever_a_process_prints_is_logged_and_little_of_it_shown(crew, tmp_path, capsys):
    rest = b"\n" * 1000 + b"caf\xc3\xa9 \xff\n" + b"an end \x1b[2J without newline"
    code = f"sys.stdout.buffer.write(b'x' * 3_000_000 + {rest!r})"
    assert crew(["loud", "calm"], f"if task == 'loud': {code}\nelse: print('calm')") == []
    command, _, logged = (tmp_path / "loud/log.txt").read_bytes().partition(b"loud one")
    assert command.startswith(b"$ ")
    assert logged.partition(b"\n")[2] == b"x" * 3_000_000 + rest
    said = capsys.readouterr().out
    assert "loud | an end \\x1b[2J without newline\n" in said
    assert "calm | calm\n" in said
    assert "\x1b" not in said
    assert len(said) < 100_000


def test_on_a_terminal_every_running_task_has_a_bar_of_its_epochs(parent, tmp_path):
    code = """
print({"a": "a epoch 1/4: 1 of 2 steps", "b": "b epoch 3/4  loss 0.5", "c": "c val"}[task])
sys.stdout.flush()
time.sleep(1.2)
"""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    run = parent(code, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 10_000)
        except OSError:  # the terminal of a process that has ended
            break
    os.close(ours)
    assert run.wait() == 0
    text = seen.decode()
    assert re.search(r"a +12 %\|.*epoch 1/4: 1 of 2 steps", text)
    assert re.search(r"b +75 %\|.*epoch 3/4  loss 0.5", text)
    assert "\x1b[A" in text  # two lines, one above the other
    assert "c | finished; 0 of 3 tasks to go" in text


@pytest.mark.parametrize(
    ("line", "done"),
    [
        ("svhn epoch 3/110: 1,000 of 4,000 steps", (2.25, 110)),
        ("svhn epoch 3/110  loss 0.033  train 98.9 %", (3, 110)),
        ("svhn val: 10 of 20 steps", None),
        ("packing svhn_train: 1,000 of 4,000 images", None),
    ],
)
def test_the_place_in_a_training_is_read_from_what_it_says(line, done):
    assert epochs_done(line) == done
