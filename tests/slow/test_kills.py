"""Real runs killed with SIGKILL at any moment end with the same bits as an undisturbed one.

Moments: at random inside training and evaluation, while a checkpoint is being written, while the
images are being packed, while a submission is being written.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.checkpoints import Checkpoint
from engine.records import TIMING_FIELDS
from sample_data import make
from weights.tensor_file import content_sha256

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--resize", "16", "--crop", "16", "--width", "4", "--batch_size", "4", "--device", "cpu"]
TASKS = ["imagenet12", "svhn", "dtd"]
EPOCHS = 30
PATIENCE = 300  # seconds, for a single wait


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made_up")
    flags = ["--classes", "2", "--images_per_class", "8", "--side", "16"]
    make.main([str(folder), *flags])
    return folder / "decathlon-1.0"


def arguments(root, folder):
    """Every step is saved, so that most of the time some checkpoint is being written."""
    flags = ["--datadir", root, "--ckpdir", folder / "ckp", "--cachedir", folder / "packed"]
    flags += ["--pretrained", "none", "--source_epochs", "4", "--nb_epochs", EPOCHS]
    flags += ["--tasks", *TASKS, "--checkpoint_minutes", "1e-9", "--eval_every", "4"]
    return [*map(str, flags), *SMALL]


def start(script, flags):
    """In a process group of its own, so that its workers can be killed with it."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finish(script, flags):
    process = start(script, flags)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said


def wait_until(condition, process):
    """Whether `condition` came true before the process ended."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.0002)
    return False


def outcome(root, folder):
    """Hashes of weights and momenta, records, decisions and both submissions."""
    found = {}
    for task in TASKS:
        place = folder / "ckp" / task
        checkpoint = Checkpoint.load(place / "checkpoint.safetensors")
        lines = [json.loads(line) for line in (place / "records.jsonl").read_text().splitlines()]
        assert lines == checkpoint.history
        for line in lines:
            for name in TIMING_FIELDS:
                del line[name]
        found[f"{task} weights"] = content_sha256("", checkpoint.weights)
        found[f"{task} momenta"] = content_sha256("", checkpoint.momenta)
        found[f"{task} records"] = content_sha256(str(lines), {})
        for name in ("decisions.json", "arguments.json", "cost.json"):
            if (place / name).exists():
                content = (place / name).read_bytes()
                found[f"{task} {name}"] = hashlib.sha256(content).hexdigest()
    for split in ("val", "test"):
        out = folder / split / "results.json"
        flags = ["--datadir", root, "--ckpdir", folder / "ckp", "--out", out]
        finish(f"submit_{split}.py", [*map(str, flags), "--tasks", *TASKS, "--device", "cpu"])
        found[f"{split} submission"] = hashlib.sha256(out.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish("main.py", arguments(root, folder))
    return outcome(root, folder)


def no_leftovers(folder):
    assert [path for path in folder.glob("**/.*.tmp") if "curves" not in path.name] == []


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_points_it_ends_with_the_same_bits(
    seed, root, undisturbed, tmp_path, capsys
):
    """12 kills a seed: one in four after the first line, the others once a step has been saved."""
    draw = random.Random(seed)
    flags = arguments(root, tmp_path)
    kills, inside_epochs = 0, 0
    while kills < 12:
        before = last_saved(tmp_path)
        process = start("main.py", flags)
        process.stdout.readline()
        if draw.random() < 0.75:
            assert wait_until(lambda before=before: last_saved(tmp_path) != before, process)
        time.sleep(draw.uniform(0, 0.8))
        assert process.poll() is None, "it finished before the last kill: give it more epochs"
        kill(process)
        kills += 1
        inside_epochs += is_inside_an_epoch(tmp_path)
    finish("main.py", flags)
    assert inside_epochs >= 3
    assert outcome(root, tmp_path) == undisturbed
    no_leftovers(tmp_path)
    with capsys.disabled():
        print(f"\nseed {seed}: {kills} kills survived, {inside_epochs} inside an epoch")


def last_saved(folder):
    """The checkpoint that was written last, and when; None before the first."""
    paths = folder.glob("ckp/*/checkpoint.safetensors")
    return max(((path.stat().st_mtime_ns, path) for path in paths), default=None)


def is_inside_an_epoch(folder):
    """Whether the checkpoint that was written last belongs to an unfinished epoch."""
    last = last_saved(folder)
    return last is not None and Checkpoint.load(last[1]).unfinished is not None


def test_killed_while_a_checkpoint_is_written(root, undisturbed, tmp_path, capsys):
    """The temporary file is there: the kill falls between its first byte and its renaming."""
    flags = arguments(root, tmp_path)
    caught = 0
    for task, number in (("imagenet12", 2), ("svhn", 3), ("svhn", 9), ("dtd", 2), ("dtd", 5)) * 2:
        process = start("main.py", flags)
        seen = set()

        def being_written(task=task, number=number, seen=seen):
            seen |= set((tmp_path / "ckp" / task).glob(".checkpoint.safetensors.*.tmp"))
            return len(seen) >= number

        if wait_until(being_written, process):
            kill(process)
            caught += bool(list((tmp_path / "ckp" / task).glob(".*.tmp")))
        else:
            process.communicate()
    finish("main.py", flags)
    assert outcome(root, tmp_path) == undisturbed
    no_leftovers(tmp_path)
    assert caught >= 1
    with capsys.disabled():
        print(f"\n10 kills around the writing of checkpoints, {caught} left a half-written one")


def test_killed_while_the_images_are_packed(tmp_path_factory, tmp_path, capsys):
    """Enough images that packing takes a while; the pack is made anew, bit for bit."""
    data = tmp_path_factory.mktemp("many")
    flags = ["--classes", "2", "--images_per_class", "600", "--side", "48"]
    make.main([str(data), *flags])
    root = data / "decathlon-1.0"

    def run_flags(folder):
        flags = ["--datadir", root, "--ckpdir", folder / "c", "--cachedir", folder / "packed"]
        flags += ["--tasks", "svhn", "--method", "scratch", "--nb_epochs", "1"]
        return [*map(str, flags), *SMALL, "--batch_size", "256"]

    caught = 0
    for number in range(4):
        process = start("main.py", run_flags(tmp_path))
        if wait_until(lambda: list((tmp_path / "packed").glob(".*.tmp")), process):
            time.sleep(0.03 * number)
            kill(process)
            caught += bool(list((tmp_path / "packed").glob(".*.tmp")))
    assert caught >= 2
    finish("main.py", run_flags(tmp_path))
    finish("main.py", run_flags(tmp_path / "undisturbed"))
    for pack in (tmp_path / "undisturbed/packed").iterdir():
        assert (tmp_path / "packed" / pack.name).read_bytes() == pack.read_bytes()
    ours, theirs = (Checkpoint.load(f / "c/svhn/checkpoint.safetensors") for f in
                    (tmp_path, tmp_path / "undisturbed"))  # fmt: skip
    assert content_sha256("", ours.weights) == content_sha256("", theirs.weights)
    no_leftovers(tmp_path)
    with capsys.disabled():
        print(f"\n4 kills around packing, {caught} left a half-written pack")


def test_a_killed_submission_leaves_the_whole_file_of_before_or_after(
    root, undisturbed, tmp_path, capsys
):
    finish("main.py", arguments(root, tmp_path))
    out = tmp_path / "val/results.json"
    flags = ["--datadir", root, "--ckpdir", tmp_path / "ckp", "--out", out, "--device", "cpu"]
    flags = [*map(str, flags), "--tasks", *TASKS]
    finish("submit_val.py", flags)
    before = out.read_bytes()
    draw = random.Random(3)
    for _ in range(4):
        process = start("submit_val.py", flags)
        process.stdout.readline()
        time.sleep(draw.uniform(0, 0.3))
        kill(process)
        assert out.read_bytes() == before
    finish("submit_val.py", flags)
    assert hashlib.sha256(before).hexdigest() == undisturbed["val submission"]
