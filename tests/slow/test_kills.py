"""Real runs killed with SIGKILL at any moment end with the same bits as an undisturbed one.

Moments: at random inside training and evaluation, while a checkpoint is being written, while the
images are being packed, while a submission is being written.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import PATIENCE, REPOSITORY, SMALL, left, outcome

from decathlon import TASK_BY_NAME
from sample_data import make

TASKS = ["imagenet12", "svhn", "dtd"]
RANDOM_KILLS, KILLS_WHILE_SAVING, KILLS_WHILE_PACKING, KILLS_OF_A_SUBMISSION = 12, 5, 3, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made_up")
    make.make_sample(folder, make.Settings(classes=2, images_per_class=8, side=16, seed=0))
    return folder / "decathlon-1.0"


def training(root, folder):
    """Every step is saved, so that most of the time some checkpoint is being written."""
    flags = ["main.py", "--datadir", root, "--ckpdir", folder / "ckp", "--cachedir", folder]
    flags += ["--pretrained", "none", "--source_epochs", 4, "--nb_epochs", 30, "--eval_every", 4]
    return [*flags, "--checkpoint_minutes", 1e-9, "--tasks", *TASKS, *SMALL]


def submission(root, folder, split):
    flags = [f"submit_{split}.py", "--datadir", root, "--ckpdir", folder / "ckp", "--device", "cpu"]
    flags += ["--cachedir", folder, "--out", folder / split / "results.json"]
    return [*flags, "--tasks", *TASKS]


def start(script, *flags):
    """In a process group of its own, so that its workers can be killed with it."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *map(str, flags)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def kill(process):
    assert process.poll() is None, "it finished before the kill: give it more to do"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finish(script, *flags):
    process = start(script, *flags)
    said, _ = process.communicate(timeout=5 * PATIENCE)
    assert process.returncode == 0, said


def wait_for(condition, process):
    """Until `condition` is true, looking often enough to see a file that is being written."""
    while not condition():
        assert process.poll() is None, "it finished before the moment to kill it"
        time.sleep(0.0002)


def outcomes(root, folder):
    """Of all tasks and both submissions; nothing half-written is left."""
    for split in ("val", "test"):
        finish(*submission(root, folder, split))
    assert not half_written(folder)
    answers = [(folder / split / "results.json").read_text() for split in ("val", "test")]
    return [outcome(folder / "ckp", task) for task in TASKS], answers


def half_written(folder, name="*"):
    """Temporary files; the curves' are drawn again by whoever goes on."""
    return [path for path in folder.glob(f"**/.{name}.*.tmp") if "curves" not in path.name]


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(*training(root, folder))
    return folder, outcomes(root, folder)


def last_saved(folder):
    """When a checkpoint was last written, and its task; None before the first."""
    paths = (folder / "ckp").glob("*/checkpoint.safetensors")
    return max(((path.stat().st_mtime_ns, path.parent.name) for path in paths), default=None)


def test_killed_in_training_or_saving_the_bits_are_the_same(root, undisturbed, tmp_path, capsys):
    """Of the kills at random one in four falls early, the others once a step has been saved."""
    draw, inside_epochs, caught = random.Random(0), 0, 0
    for is_random in draw.sample([True] * RANDOM_KILLS + [False] * KILLS_WHILE_SAVING, k=17):
        before = last_saved(tmp_path)
        process = start(*training(root, tmp_path))
        process.stdout.readline()
        if not is_random or draw.random() < 0.75:
            wait_for(lambda before=before: last_saved(tmp_path) != before, process)
        if is_random:
            time.sleep(draw.uniform(0, 0.6))
        else:
            wait_for(lambda: half_written(tmp_path / "ckp", "checkpoint.safetensors"), process)
        kill(process)
        caught += bool(half_written(tmp_path / "ckp"))
        last = last_saved(tmp_path)
        inside_epochs += last is not None and left(tmp_path / "ckp", last[1]).unfinished is not None
    finish(*training(root, tmp_path))
    assert outcomes(root, tmp_path) == undisturbed[1]
    assert inside_epochs >= 3 and caught >= 2
    with capsys.disabled():
        print(f"\n17 kills, {inside_epochs} inside an epoch, {caught} left a half-written file")


def test_killed_while_the_images_are_packed_they_are_packed_bit_for_bit(tmp_path):
    """Enough images that it takes a while."""
    root = tmp_path / "decathlon-1.0"
    (root / "annotations").mkdir(parents=True)
    many = make.Settings(classes=2, images_per_class=600, side=48, seed=0)
    make.write_task(root, TASK_BY_NAME["svhn"], many)

    def flags(folder):
        flags = ["main.py", "--datadir", root, "--ckpdir", folder, "--cachedir", folder / "packed"]
        flags += ["--tasks", "svhn", "--method", "scratch", "--nb_epochs", 1]
        return [*flags, *SMALL, "--batch_size", 256]

    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for number in range(KILLS_WHILE_PACKING):
        process = start(*flags(killed))
        wait_for(lambda: half_written(killed / "packed"), process)
        time.sleep(0.03 * number)
        kill(process)
    for folder in (killed, undisturbed):
        finish(*flags(folder))
    packs = [{path.name: path.read_bytes() for path in (folder / "packed").iterdir()}
             for folder in (killed, undisturbed)]  # fmt: skip
    assert packs[0] == packs[1]
    assert outcome(killed) == outcome(undisturbed)


def test_a_killed_submission_leaves_the_whole_file_of_before(root, undisturbed):
    folder, (_, answers) = undisturbed
    draw = random.Random(0)
    for _ in range(KILLS_OF_A_SUBMISSION):
        process = start(*submission(root, folder, "val"))
        process.stdout.readline()
        time.sleep(draw.uniform(0, 0.2))
        kill(process)
        assert (folder / "val/results.json").read_text() == answers[0]
    finish(*submission(root, folder, "val"))
    assert (folder / "val/results.json").read_text() == answers[0]
