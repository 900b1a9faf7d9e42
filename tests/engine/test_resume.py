"""Exact resume: a run that was stopped or killed anywhere ends with the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import REPOSITORY

import main
from decathlon import SOURCE
from engine.checkpoints import Checkpoint, checkpoint_file, previous_file
from engine.records import TIMING_FIELDS
from engine.run import Run
from runtime.errors import SpotTuneError
from runtime.signals import STOP_SIGNALS, Stopped, StopRequest, deferred_stop
from weights.tensor_file import content_sha256

SMALL_SVHN = ["--tasks", "svhn", "--batch_size", "2"]  # 6 steps an epoch


@pytest.fixture(scope="module")
def base(trained):
    source = checkpoint_file(trained.ckpdir, SOURCE.name)
    return [*trained.arguments, "--pretrained", str(source), *SMALL_SVHN]


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):
    ckpdir = tmp_path_factory.mktemp("undisturbed")
    main.main([*base, "--ckpdir", str(ckpdir)])
    return ckpdir


def svhn(ckpdir):
    return Checkpoint.load(checkpoint_file(ckpdir, "svhn"))


def outcome(ckpdir):
    """A hash of everything that must be equal: weights, momenta, records, decisions."""
    checkpoint = svhn(ckpdir)
    lines = (ckpdir / "svhn/records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == checkpoint.history
    assert checkpoint.unfinished is None
    for record in checkpoint.history:
        for name in TIMING_FIELDS:
            del record[name]
    decisions = (ckpdir / "svhn/decisions.json").read_text()
    weights = {f"weight of {name}": tensor for name, tensor in checkpoint.weights.items()}
    return content_sha256(f"{checkpoint.history}{decisions}", {**weights, **checkpoint.momenta})


def stop_at(monkeypatch, checks):
    """A stop is asked for at the `checks`-th place where a stop is possible."""
    seen = [0]

    def raise_if_asked(self, group=None):
        seen[0] += 1
        if seen[0] == checks:
            raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(StopRequest, "raise_if_asked", raise_if_asked)


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    base, undisturbed, tmp_path, monkeypatch, capsys
):
    """Two epochs of 6 steps; 2 batches of val after the first, 8 after the second (four policies).

    A stop is possible after each step, each batch of val, and each epoch's checkpoint.
    """
    stops = [  # the place, counted from the stop before; finished epochs, steps of the next
        (1, 0, 1),
        (2, 0, 3),
        (3, 0, 6),  # after the last step
        (1, 0, 6),  # in the evaluation
        (3, 1, None),  # between two epochs
        (4, 1, 4),
        (7, 1, 6),  # in the evaluation under another policy
        (9, 2, None),  # after the last epoch
    ]
    for place, epochs, steps in stops:
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_at(patched, place)
            main.main([*base, "--ckpdir", str(tmp_path)])
        left = svhn(tmp_path)
        assert len(left.history) == epochs
        assert (left.unfinished and left.unfinished["steps"]) == steps
    capsys.readouterr()
    main.main([*base, "--ckpdir", str(tmp_path)])
    assert "svhn: 2 of 2 epochs were finished before" in capsys.readouterr().out
    assert outcome(tmp_path) == outcome(undisturbed)


def test_saving_inside_an_epoch_changes_nothing(base, undisturbed, tmp_path):
    """After every single step: far more often than any user would."""
    main.main([*base, "--ckpdir", str(tmp_path), "--checkpoint_minutes", "1e-9"])
    assert outcome(tmp_path) == outcome(undisturbed)
    before = Checkpoint.load(previous_file(checkpoint_file(tmp_path, "svhn")))
    assert (len(before.history), before.unfinished["steps"]) == (1, 6)


def test_a_run_goes_on_to_more_epochs_than_were_asked_for_at_first(
    base, undisturbed, tmp_path, capsys
):
    main.main([*base, "--ckpdir", str(tmp_path), "--nb_epochs", "1"])
    main.main([*base, "--ckpdir", str(tmp_path)])
    assert "svhn: 1 of 2 epochs were finished before" in capsys.readouterr().out
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.parametrize("damage", ["cut short", "a flipped bit", "gone"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used_with_a_message(
    damage, base, undisturbed, tmp_path, capsys
):
    shutil.copytree(undisturbed / "svhn", tmp_path / "svhn")
    path = checkpoint_file(tmp_path, "svhn")
    data = bytearray(path.read_bytes())
    if damage == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "a flipped bit":
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
    else:
        path.unlink()
    main.main([*base, "--ckpdir", str(tmp_path)])
    said = capsys.readouterr().out
    assert "Going on from the one before, checkpoint.previous.safetensors" in said
    assert "svhn: 1 of 2 epochs were finished before" in said
    assert outcome(tmp_path) == outcome(undisturbed)
    damaged = tmp_path / "svhn/checkpoint.damaged.safetensors"
    assert damaged.exists() == (damage != "gone")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.2}, "lr 0.1, but this run asks for 0.2"),
        ({"milestones": (1,)}, r"milestones \(40,\), but this run asks for \(1,\)"),
        ({"data_sha256": "0"}, "other images or labels than the annotations of svhn list"),
        ({"kind": "finetune"}, "method spottune, but this run asks for finetune"),
        ({"categories": [1, 2]}, "categories .* asks for .1, 2"),
    ],
)
def test_a_run_does_not_go_on_with_what_was_trained_differently_and_names_it(
    change, words, undisturbed
):
    found = svhn(undisturbed)
    run = Run(undisturbed, "svhn", found.kind, found.categories, found.settings)
    assert run.found().checkpoint.history == found.history
    of_run = {name: value for name, value in change.items() if name in ("kind", "categories")}
    settings = {name: value for name, value in change.items() if name not in of_run}
    other = replace(run, **of_run, settings=replace(run.settings, **settings))
    with pytest.raises(SpotTuneError, match=words) as told:
        other.found()
    assert "another --ckpdir" in str(told.value)


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


def start(base, ckpdir, *flags):
    command = [sys.executable, str(REPOSITORY / "main.py"), *base, "--ckpdir", str(ckpdir)]
    return subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def read_until(process, text):
    said = ""
    while text not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


def test_a_signal_finishes_the_step_saves_says_so_and_ends_the_run_with_its_status(base, tmp_path):
    process = start(base, tmp_path, "--nb_epochs", "100000")
    before = read_until(process, "svhn epoch 2/")
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: finishing this step, then saving" in rest
    assert "SIGTERM: stopped; the same command goes on" in rest
    left = svhn(tmp_path)
    assert left.unfinished is not None or f"epoch {len(left.history)}/" in before + rest
    assert not list(tmp_path.glob("**/*.tmp"))


# A signal comes while the last line of a task is printed.
LATE_SIGNAL = """
import os, signal, sys
import main
from engine import fit
from runtime.errors import run_script
say = fit.say
def say_and_stop(line):
    say(line)
    if line.startswith("svhn epoch 2/2"):
        os.kill(os.getpid(), signal.SIGTERM)
fit.say = say_and_stop
run_script(lambda: main.main(sys.argv[1:]))
"""


def test_a_stop_that_is_asked_for_after_the_last_epoch_is_not_forgotten(base, tmp_path):
    arguments = [*base, "--ckpdir", str(tmp_path), "--tasks", "svhn", "dtd"]
    command = [sys.executable, "-c", LATE_SIGNAL, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM: stopped; the same command goes on" in done.stderr
    assert len(svhn(tmp_path).history) == 2
    assert not (tmp_path / "dtd").exists()


def test_a_run_whose_process_was_killed_ends_with_the_same_bits(base, undisturbed, tmp_path):
    process = start(base, tmp_path, "--checkpoint_minutes", "1e-9")
    read_until(process, "svhn epoch 1/2")
    process.kill()
    process.wait()
    process.stdout.close()
    main.main([*base, "--ckpdir", str(tmp_path)])
    assert outcome(tmp_path) == outcome(undisturbed)
