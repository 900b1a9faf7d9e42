"""What stops a run saves it first, also where nobody reads what it says."""

import os
import pty
import shlex
import signal
import subprocess
import sys

import pytest
from conftest import PATIENCE, REPOSITORY, wait_until

from engine.checkpoints import Checkpoint, checkpoint_file
from runtime.signals import STOP_SIGNALS


@pytest.fixture
def svhn(trained, tmp_path):
    """The command line that trains svhn for so many epochs."""

    def command(epochs, ckpdir=tmp_path):
        source = checkpoint_file(trained.ckpdir, "imagenet12")
        words = [sys.executable, str(REPOSITORY / "main.py"), *trained.arguments, "--tasks", "svhn"]
        words += ["--ckpdir", str(ckpdir), "--pretrained", str(source), "--nb_epochs", str(epochs)]
        return [*words, "--threads", "1"]

    return command


@pytest.fixture
def started():
    """Starts a process that does not outlive its test."""
    processes = []

    def start(command, **streams):
        processes.append(subprocess.Popen(command, start_new_session=True, **streams))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def epochs_done(ckpdir):
    path = ckpdir / "svhn/records.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def epochs_saved(ckpdir):
    return len(Checkpoint.load(checkpoint_file(ckpdir, "svhn")).history)


def test_a_closed_terminal_lets_the_step_finish_and_be_saved(svhn, started, tmp_path):
    """The kernel sends SIGHUP, and nothing can be written there any more."""
    ours, theirs = pty.openpty()
    terminal = os.ttyname(theirs)
    process = started(
        ["sh", "-c", f"exec {shlex.join(svhn(100_000))} <{terminal} >{terminal} 2>&1"]
    )
    wait_until(lambda: epochs_done(tmp_path))
    os.close(theirs)
    os.close(ours)
    assert process.wait(PATIENCE) == 128 + signal.SIGHUP
    assert epochs_saved(tmp_path) == epochs_done(tmp_path)


def test_under_nohup_a_closed_terminal_changes_nothing(svhn, started, tmp_path):
    process = started(["nohup", *svhn(100_000)], stdout=subprocess.DEVNULL)
    wait_until(lambda: epochs_done(tmp_path))
    process.send_signal(signal.SIGHUP)
    epochs = epochs_done(tmp_path)
    wait_until(lambda: epochs_done(tmp_path) > epochs + 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_a_run_goes_on_without_its_reader_and_is_saved_when_it_is_stopped(svhn, started, tmp_path):
    """As with `2>&1 | head -1`, and `2>&1 | tee log` on Ctrl-C, which ends tee first."""
    process = started(svhn(100_000), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline().startswith(b"SpotTune on cpu")
    process.stdout.close()
    wait_until(lambda: epochs_done(tmp_path) > 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 128 + signal.SIGINT  # as it ends only once it is saved
    assert epochs_saved(tmp_path) == epochs_done(tmp_path)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_run_with_closed_standard_streams_ends_as_any_other(closed, svhn, tmp_path):
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(svhn(1))} {closed}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert epochs_done(tmp_path) == 1


def test_letters_that_the_locale_cannot_print_are_replaced(svhn, tmp_path):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    ckpdir = tmp_path / "wörk"
    done = subprocess.run(
        svhn(1, ckpdir), env={**os.environ, **locale}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"records in {tmp_path}/w\\" in done.stdout
    assert epochs_done(ckpdir) == 1


def test_a_system_without_some_of_the_signals_has_the_others():
    """As Windows has only the first two."""
    code = "import signal; del signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP\n"
    code += "from runtime.errors import run_script; from runtime.signals import STOP_SIGNALS\n"
    code += "run_script(lambda: print(*STOP_SIGNALS))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"{signal.SIGINT:d} {signal.SIGTERM:d}\n", "")
    assert len(STOP_SIGNALS) == 5


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_stopped_script_leaves_nothing_half_written(name, status, tmp_path):
    """The script sends itself the signal in the middle of writing a file."""
    (tmp_path / "file").write_text("old")
    code = f"""
import os, signal
from pathlib import Path
from runtime.errors import run_script
from runtime.files import replacing
def main():
    with replacing(Path({str(tmp_path / "file")!r})) as stream:
        stream.write(b'half')
        os.kill(os.getpid(), signal.{name})
run_script(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == status
    assert done.stderr == f"{name}: stopped; the same command goes on where it can\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"
