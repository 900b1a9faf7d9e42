"""Exact resume: checkpoints inside an epoch, the one before, signals, and what stops a step."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

import main
from decathlon import SOURCE
from engine.checkpoints import Checkpoint, content_sha256, previous_file
from engine.records import TIMING_FIELDS
from runtime.errors import SpotTuneError, Stopped
from runtime.signals import StopRequest

SMALL_SVHN = ["--tasks", "svhn", "--batch_size", "2"]  # 6 steps an epoch


@pytest.fixture(scope="module")
def base(trained):
    source = trained.ckpdir / SOURCE.name / "checkpoint.pt"
    return [*trained.arguments, "--pretrained", str(source), *SMALL_SVHN]


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):
    ckpdir = tmp_path_factory.mktemp("undisturbed")
    main.main([*base, "--ckpdir", str(ckpdir)])
    return ckpdir


def outcome(ckpdir):
    """A hash of everything that must be equal: weights, momenta, records."""
    checkpoint = Checkpoint.load(ckpdir / "svhn/checkpoint.pt")
    lines = (ckpdir / "svhn/records.jsonl").read_text().splitlines()
    for record in checkpoint.history:
        for name in TIMING_FIELDS:
            del record[name]
    recorded = [
        {k: v for k, v in json.loads(line).items() if k not in TIMING_FIELDS} for line in lines
    ]
    assert recorded == checkpoint.history
    assert checkpoint.unfinished is None
    decisions = (ckpdir / "svhn/decisions.json").read_text()
    return content_sha256(
        [dict(checkpoint.weights), checkpoint.optimizers, checkpoint.history, decisions]
    )


def stop_after(monkeypatch, checks):
    """A stop is asked for at the `checks`-th place where a stop is possible."""
    seen = [0]

    def raise_if_asked(self, group=None):
        seen[0] += 1
        if seen[0] == checks:
            raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(StopRequest, "raise_if_asked", raise_if_asked)


# Two epochs of 6 steps; after the first 2 batches of val and a save, after the second val under
# four policies. A stop is possible after each step, each batch of val, and each save.
@pytest.mark.parametrize("place", range(1, 25))
def test_stopped_at_any_step_or_in_evaluation_the_bits_are_the_same(
    place, base, undisturbed, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        stop_after(patched, place)
        with pytest.raises(Stopped):
            main.main([*base, "--ckpdir", str(tmp_path)])
    left = Checkpoint.load(tmp_path / "svhn/checkpoint.pt")
    assert (left.unfinished is None) == (place in (9, 24))  # between epochs
    main.main([*base, "--ckpdir", str(tmp_path)])
    assert outcome(tmp_path) == outcome(undisturbed)


def test_saving_inside_an_epoch_changes_nothing(base, undisturbed, tmp_path):
    """After every single step: far more often than any user would."""
    main.main([*base, "--ckpdir", str(tmp_path), "--checkpoint_minutes", "1e-9"])
    assert outcome(tmp_path) == outcome(undisturbed)
    before = Checkpoint.load(previous_file(tmp_path / "svhn/checkpoint.pt"))
    assert (len(before.history), before.unfinished["steps"]) == (1, 6)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used_aloud(
    damage, base, undisturbed, tmp_path, capsys
):
    main.main([*base, "--ckpdir", str(tmp_path)])
    path = tmp_path / "svhn/checkpoint.pt"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[len(data) // 3] ^= 0x10
    elif damage == "empty":
        data = b""
    path.write_bytes(data)
    if damage == "gone":
        path.unlink()
    capsys.readouterr()
    main.main([*base, "--ckpdir", str(tmp_path)])
    said = capsys.readouterr().out
    assert "Going on from the one before, checkpoint.previous.pt" in said
    assert "svhn: 1 of 2 epochs were finished before" in said
    assert outcome(tmp_path) == outcome(undisturbed)
    damaged = tmp_path / "svhn/checkpoint.damaged.pt"
    assert damaged.exists() == (damage != "gone")


def test_if_both_are_damaged_one_line_says_so(base, tmp_path):
    main.main([*base, "--ckpdir", str(tmp_path)])
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / "svhn" / name).write_bytes(b"x")
    with pytest.raises(SpotTuneError, match=r"checkpoint.previous.pt: not a readable checkpoint"):
        main.main([*base, "--ckpdir", str(tmp_path)])


def test_every_single_flipped_bit_of_a_number_is_noticed(undisturbed, tmp_path):
    """A weight that is only a little wrong: readable, finite, of the right shape."""
    path = undisturbed / "svhn/checkpoint.pt"
    weight = Checkpoint.load(path).weights["net.stem.conv.weight"]
    data = path.read_bytes()
    place = data.index(weight.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    copy = tmp_path / "copy.pt"
    for bit in range(8):
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        copy.write_bytes(changed)
        with pytest.raises(SpotTuneError, match="damaged|not a readable"):
            Checkpoint.load(copy)


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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_finishes_the_step_saves_says_so_and_exits_with_its_status(name, base, tmp_path):
    number = getattr(signal, name)
    process = start(base, tmp_path, "--nb_epochs", "100000")
    read_until(process, "svhn epoch 2/")
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"{name}: finishing this step, then saving" in rest
    assert f"{name}: stopped; the same command goes on" in rest
    left = Checkpoint.load(tmp_path / "svhn/checkpoint.pt")
    assert left.unfinished is not None or f"epoch {len(left.history)}/" in rest
    assert not list(tmp_path.glob("**/*.tmp"))


# A signal comes while the last line of a task is printed.
LATE_SIGNAL = """
import os, signal, sys
import main
from engine import fit as runs
from runtime.errors import run_script
say = runs.say
def say_and_stop(line):
    say(line)
    if line.startswith("svhn epoch 2/2"):
        os.kill(os.getpid(), signal.SIGTERM)
runs.say = say_and_stop
run_script(lambda: main.main(sys.argv[1:]))
"""


def test_a_stop_that_is_asked_for_after_the_last_epoch_is_not_forgotten(base, tmp_path):
    arguments = [*base, "--ckpdir", str(tmp_path), "--tasks", "svhn", "dtd"]
    command = [sys.executable, "-c", LATE_SIGNAL, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM: stopped; the same command goes on" in done.stderr
    assert len(Checkpoint.load(tmp_path / "svhn/checkpoint.pt").history) == 2
    assert not (tmp_path / "dtd").exists()


# A step that lasts until the test closes its standard input.
LONG_STEP = """
import sys
from runtime import signals
from runtime.errors import run_script
signals.ONE_STOP_SECONDS = float(sys.argv[1])
def main():
    with signals.deferred_stop() as stop:
        print("ready", flush=True)
        sys.stdin.read()
        stop.raise_if_asked()
run_script(main)
"""


def signalled_twice(one_stop_seconds):
    """How a long step ends that gets two signals half a second apart."""
    command = [sys.executable, "-c", LONG_STEP, str(one_stop_seconds)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        read_until(process, "ready")
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_one_stop_that_comes_by_two_ways_still_finishes_the_step():
    status, errors = signalled_twice(60)
    assert status == 128 + signal.SIGTERM
    assert errors.count("finishing this step") == 1


def test_a_later_signal_has_its_usual_effect_which_is_to_end_at_once():
    status, errors = signalled_twice(0.1)
    assert status == -signal.SIGINT
    assert "the same command goes on" not in errors


def test_a_killed_process_is_gone_on_from(base, undisturbed, tmp_path):
    process = start(base, tmp_path, "--checkpoint_minutes", "1e-9")
    read_until(process, "svhn epoch 1/2")
    process.kill()
    process.wait()
    process.stdout.close()
    again = start(base, tmp_path)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert outcome(tmp_path) == outcome(undisturbed)
