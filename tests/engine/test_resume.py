"""Exact resume: a run that was stopped or killed anywhere ends with the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import REPOSITORY, left, outcome, stop_at

from engine import fit
from engine.checkpoints import Checkpoint, checkpoint_file, previous_file
from engine.run import Run
from runtime.errors import SpotTuneError
from runtime.signals import STOP_SIGNALS, Stopped, deferred_stop


@pytest.fixture
def svhn(trained, tmp_path):
    """Trains svhn in `tmp_path`, as the whole run did unless `changes` say otherwise."""
    return lambda *changes: trained.again(tmp_path, "--tasks", "svhn", *changes)


class Killed(BaseException):
    """Nothing is saved on its way out."""


def test_a_run_that_is_stopped_often_ends_the_same(svhn, trained, tmp_path, monkeypatch, capsys):
    """Two epochs of 3 steps; 2 batches of val after the first, 8 after the second (four policies).

    A stop is possible after each step, each batch of val, and each epoch's checkpoint.
    """
    stops = [  # the place, counted from the stop before; finished epochs, steps of the next
        (1, 0, 1),
        (4, 0, 3),  # in the evaluation
        (3, 1, None),  # between two epochs
        (2, 1, 2),
        (6, 1, 3),  # in the evaluation under another policy
        (9, 2, None),  # after the last epoch
    ]
    for place, epochs, steps in stops:
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_at(patched, place)
            svhn()
        checkpoint = left(tmp_path)
        assert len(checkpoint.history) == epochs
        assert (checkpoint.unfinished and checkpoint.unfinished["steps"]) == steps
    capsys.readouterr()
    svhn()
    assert "svhn: 2 of 2 epochs were finished before" in capsys.readouterr().out
    assert outcome(tmp_path) == outcome(trained.ckpdir)


def test_a_killed_run_goes_on_inside_its_epoch(svhn, trained, tmp_path, monkeypatch):
    """Saved after every single step: far more often than any user would."""
    with monkeypatch.context() as patched, pytest.raises(Killed):
        stop_at(patched, 3, how=Killed)
        svhn("--checkpoint_minutes", "1e-9")
    assert left(tmp_path).unfinished["steps"] == 2
    svhn("--checkpoint_minutes", "1e-9")
    assert outcome(tmp_path) == outcome(trained.ckpdir)
    before = Checkpoint.load(previous_file(checkpoint_file(tmp_path, "svhn")))
    assert (len(before.history), before.unfinished["steps"]) == (1, 3)


def test_a_finished_run_goes_on_to_more_epochs(svhn, trained, tmp_path, monkeypatch, capsys):
    """Meanwhile there are no decisions of a last epoch."""
    svhn("--nb_epochs", "1")
    assert (tmp_path / "svhn/decisions.json").exists()
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(patched, 1)
        svhn()
    assert not (tmp_path / "svhn/decisions.json").exists()
    svhn()
    said = capsys.readouterr().out
    assert "svhn: 1 of 2 epochs were finished before, and 1 of 3 steps of the next" in said
    assert outcome(tmp_path) == outcome(trained.ckpdir)


def test_what_made_each_stretch_of_epochs_is_recorded_and_said(svhn, tmp_path, capsys):
    svhn("--nb_epochs", "1")
    svhn("--threads", "2")
    torch.set_num_threads(1)
    assert "svhn: threads was 1 and is 2 from epoch 2 on" in capsys.readouterr().out
    file = tmp_path / "svhn/environment.json"
    now = json.loads(file.read_text())
    (before,) = now.pop("before")
    assert (before["from_epoch"], before["threads"]) == (1, 1)
    assert (now["from_epoch"], now["threads"]) == (2, 2)
    assert now == {**before, "from_epoch": 2, "threads": 2}
    file.write_text("{")
    with pytest.raises(SpotTuneError, match="environment.json: damaged"):
        svhn("--nb_epochs", "3")


def test_the_time_that_is_left_is_said_once_steps_were_timed(svhn, monkeypatch, capsys):
    monkeypatch.setattr(fit, "TIMED_SECONDS", 0.0)
    svhn()
    said = capsys.readouterr().out
    assert said.count("svhn: about 0 min left at this speed") == 1
    assert fit.hours_and_minutes(3 * 3600 + 5 * 60 + 20) == "3 h 05 min"


@pytest.mark.parametrize("damage", ["a flipped bit", "gone"])
def test_the_checkpoint_before_a_damaged_one_is_used(damage, svhn, trained, tmp_path, capsys):
    shutil.copytree(trained.ckpdir / "svhn", tmp_path / "svhn")
    path = checkpoint_file(tmp_path, "svhn")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.unlink()
    if damage == "a flipped bit":
        path.write_bytes(data)
    svhn()
    said = capsys.readouterr().out
    assert "Continuing from the one before, checkpoint.previous.safetensors" in said
    assert "svhn: 1 of 2 epochs were finished before" in said
    assert outcome(tmp_path) == outcome(trained.ckpdir)
    assert (tmp_path / "svhn/checkpoint.damaged.safetensors").exists() == (damage != "gone")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.2}, "lr 0.01, but this run asks for 0.2"),
        ({"milestones": (1,)}, r"milestones \(40,\), but this run asks for \(1,\)"),
        ({"data_sha256": "0"}, "trained on other images or labels than the annotations of svhn"),
        ({"val_sha256": "0"}, "evaluated on other images or labels than the annotations of svhn"),
        ({"compiled": True}, "compiled False, but this run asks for True"),
        ({"kind": "finetune"}, "method spottune, but this run asks for finetune"),
        ({"categories": [1, 2]}, "categories .* asks for .1, 2"),
    ],
)
def test_a_run_does_not_go_on_with_what_was_trained_differently(change, words, trained):
    found = left(trained.ckpdir)
    run = Run(trained.ckpdir, "svhn", found.kind, found.categories, found.settings)
    assert run.found().checkpoint.history == found.history
    of_run = {name: value for name, value in change.items() if name in ("kind", "categories")}
    settings = {name: value for name, value in change.items() if name not in of_run}
    other = replace(run, **of_run, settings=replace(run.settings, **settings))
    with pytest.raises(SpotTuneError, match=words) as told:
        other.found()
    assert "another --ckpdir" in str(told.value)


def test_a_run_that_has_epochs_left_keeps_its_test_policy(svhn, tmp_path, capsys):
    """Else its records would be of two policies, and say of one only."""
    svhn("--nb_epochs", "1")
    before = (tmp_path / "svhn/arguments.json").read_bytes()
    with pytest.raises(SpotTuneError, match="policy argmax, but this run asks for sample"):
        svhn("--policy", "sample")
    assert (tmp_path / "svhn/arguments.json").read_bytes() == before
    svhn("--nb_epochs", "1", "--policy", "sample")
    assert "its figures stay those of --policy argmax" in capsys.readouterr().out


# Signals.


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_one_stop_that_comes_by_two_ways_is_answered_at_the_next_possible_place(number, capfd):
    with pytest.raises(Stopped) as stopped, deferred_stop() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        stop.raise_if_asked()
    assert stopped.value.number == number
    assert capfd.readouterr().err.count("finishing this step, then saving") == 1


LATER_SIGNAL = """
import os, signal
from runtime import signals
signals.ONE_STOP_SECONDS = 0.0
with signals.deferred_stop():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_later_signal_has_its_usual_effect_which_is_to_end_at_once():
    done = subprocess.run([sys.executable, "-c", LATER_SIGNAL], cwd=REPOSITORY, timeout=60)
    assert done.returncode == -signal.SIGINT


def test_a_stop_after_the_last_epoch_is_not_forgotten(trained, tmp_path, monkeypatch):
    """The signal comes while the last line of a task is printed."""

    def say_and_stop(line):
        if line.startswith("svhn epoch 2/2"):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(fit, "say", say_and_stop)
    with pytest.raises(Stopped):
        trained.again(tmp_path, "--tasks", "svhn", "dtd")
    assert len(left(tmp_path).history) == 2
    assert not (tmp_path / "dtd").exists()
