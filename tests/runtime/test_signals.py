"""What stops a run saves it first, also where nobody reads what it says."""

import os
import pty
import shlex
import signal
import subprocess
import sys

import pytest
from conftest import PATIENCE, REPOSITORY, left, wait_until

from engine.records import epochs_recorded


@pytest.fixture
def svhn(trained, tmp_path):
    """The command line that trains svhn for so many epochs."""
    flags = ["--tasks", "svhn", "--nb_epochs"]
    return lambda epochs, ckpdir=tmp_path: trained.command(ckpdir, *flags, epochs)


def test_a_closed_terminal_lets_the_step_finish_and_be_saved(svhn, started, tmp_path):
    """The kernel sends SIGHUP, and nothing can be written there any more."""
    ours, theirs = pty.openpty()
    terminal = os.ttyname(theirs)
    line = f"exec {shlex.join(svhn(100_000))} <{terminal} >{terminal} 2>&1"
    process = started(["sh", "-c", line], start_new_session=True)
    wait_until(lambda: epochs_recorded(tmp_path / "svhn"))
    os.close(theirs)
    os.close(ours)
    assert process.wait(PATIENCE) == 128 + signal.SIGHUP
    assert len(left(tmp_path).history) == epochs_recorded(tmp_path / "svhn")


def test_under_nohup_a_closed_terminal_changes_nothing(svhn, started, tmp_path):
    process = started(["nohup", *svhn(100_000)], stdout=subprocess.DEVNULL)
    wait_until(lambda: epochs_recorded(tmp_path / "svhn"))
    process.send_signal(signal.SIGHUP)
    epochs = epochs_recorded(tmp_path / "svhn")
    wait_until(lambda: epochs_recorded(tmp_path / "svhn") > epochs + 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_a_run_goes_on_without_its_reader_and_is_saved_when_it_is_stopped(svhn, started, tmp_path):
    """As with `2>&1 | head -1`, and `2>&1 | tee log` on Ctrl-C, which ends tee first."""
    process = started(svhn(100_000), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline().startswith("SpotTune on cpu")
    process.stdout.close()
    wait_until(lambda: epochs_recorded(tmp_path / "svhn") > 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 128 + signal.SIGINT  # as it ends only once it is saved
    assert len(left(tmp_path).history) == epochs_recorded(tmp_path / "svhn")


def test_a_run_with_closed_standard_streams_ends_as_any_other(svhn, tmp_path):
    subprocess.run(["sh", "-c", f"{shlex.join(svhn(1))} >&- 2>&- <&-"], check=True)
    assert epochs_recorded(tmp_path / "svhn") == 1


def test_letters_that_the_locale_cannot_print_are_replaced(svhn, tmp_path):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    ckpdir = tmp_path / "wörk"
    told = subprocess.check_output(svhn(1, ckpdir), env={**os.environ, **locale}, text=True)
    assert f"records in {tmp_path}/w\\" in told
    assert epochs_recorded(ckpdir / "svhn") == 1


def test_a_stopped_script_leaves_nothing_half_written(tmp_path):
    """The script sends itself the signal in the middle of writing a file."""
    (tmp_path / "file").write_text("old")
    code = """
import os, signal, sys
from pathlib import Path
from runtime.errors import run_script
from runtime.files import replacing
def main():
    with replacing(Path(sys.argv[1])) as stream:
        stream.write(b'half')
        os.kill(os.getpid(), signal.SIGTERM)
run_script(main)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 143
    assert done.stderr == "SIGTERM: stopped; the same command continues where it can\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"
