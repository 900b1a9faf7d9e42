"""Only one process at a time works in a task's folder."""

import errno
import fcntl
import os
import socket
import sys
import threading
import time
from subprocess import PIPE

import pytest

from engine.checkpoints import checkpoint_file
from runtime.errors import SpotTuneError
from runtime.files import write_whole
from runtime.locks import claimed, refuse_claimed

HOLD = "from pathlib import Path; from runtime.locks import claimed; import sys, time\n"
HOLD += "with claimed(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"


@pytest.fixture
def holding(tmp_path, started):
    """Starts a process that holds the lock of a task's folder until it is killed."""

    def start(task):
        process = started([sys.executable, "-c", HOLD, tmp_path / task], stdout=PIPE)
        assert process.stdout.readline() == "held\n"
        return process

    return start


@pytest.fixture
def other_process(holding):
    return holding("svhn")


def test_a_second_process_is_refused_and_told_who_is_at_work(other_process, tmp_path):
    who = f"process {other_process.pid} on {socket.gethostname()} is at work there"
    for refusing in (refuse_claimed, lambda folder: claimed(folder).__enter__()):
        with pytest.raises(SpotTuneError, match=who):
            refusing(tmp_path / "svhn")


def test_the_lock_of_a_killed_process_is_free_at_once(other_process, tmp_path):
    other_process.kill()
    other_process.wait()
    refuse_claimed(tmp_path / "svhn")
    with claimed(tmp_path / "svhn"):
        name = (tmp_path / "svhn/.lock").read_text()
    assert name == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_patient_process_waits_and_says_for_whom(other_process, tmp_path, capsys):
    threading.Timer(0.3, other_process.kill).start()
    start = time.monotonic()
    with claimed(tmp_path / "svhn", patient=True):
        assert time.monotonic() - start > 0.2
    assert f"process {other_process.pid}" in capsys.readouterr().out


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_with_a_message(reason, monkeypatch, tmp_path, capsys):
    def flock(file, operation):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", flock)
    refuse_claimed(tmp_path)
    with claimed(tmp_path):
        write_whole(tmp_path / "file", b"new")
    (line,) = capsys.readouterr().out.splitlines()
    assert f"cannot be locked here ({os.strerror(reason)})" in line
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_task_that_another_process_trains_is_refused(other_process, trained, tmp_path):
    """Before any of the run's tasks is trained, not only when it is that one's turn."""
    with pytest.raises(SpotTuneError, match=f"svhn: process {other_process.pid} on"):
        trained.again(tmp_path, "--tasks", "dtd", "svhn")
    assert not (tmp_path / "dtd").exists()


def test_weights_that_another_process_adopts_are_waited_for(holding, trained, tmp_path, capsys):
    """So that tasks started side by side can share one file of source weights."""
    process = holding("imagenet12")
    threading.Timer(0.5, process.kill).start()
    trained.again(tmp_path, "--tasks", "dtd")
    assert f"imagenet12: process {process.pid} on " in capsys.readouterr().out
    assert checkpoint_file(tmp_path, "imagenet12").exists()


def test_source_weights_that_were_adopted_before_are_only_read(trained, tmp_path):
    """So that they can lie in a folder that this user may not write to."""
    trained.again(tmp_path, "--nb_epochs", "1", "--tasks", "dtd")
    (tmp_path / "imagenet12/.lock").unlink()
    trained.again(tmp_path, "--nb_epochs", "1", "--tasks", "svhn")
    assert not (tmp_path / "imagenet12/.lock").exists()
