"""Faults of machine and files, each made to happen for real to a run."""

import errno
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time

import pytest
from conftest import answers_of, drop_last_image, edit_json, files, left, limited, outcome, refusal

import submit_val
from engine.checkpoints import checkpoint_file
from image_cache.decoding import AS_SCRIPT
from runtime.errors import REMEDIES

EACH_STEP = ["--checkpoint_minutes", "1e-9"]  # is saved


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here; the file-size limit below is tried")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_a_whole_checkpoint_to_continue_from(trained, small_disk):
    """Room for one checkpoint of 1.4 MB and the next, but not for a third."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(800_000))
    with pytest.raises(OSError) as told:
        trained.again(small_disk, "--tasks", "svhn", *EACH_STEP)
    assert told.value.errno == errno.ENOSPC in REMEDIES  # which makes one line of it
    assert not list(small_disk.glob("**/*.tmp"))
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    trained.again(small_disk, "--tasks", "svhn", *EACH_STEP)
    assert outcome(small_disk) == outcome(trained.ckpdir)


def test_a_file_size_limit_leaves_the_checkpoint_before(trained, tmp_path):
    trained.again(tmp_path, "--tasks", "svhn", "--nb_epochs", "1")
    path = checkpoint_file(tmp_path, "svhn")
    before = path.read_bytes()
    with limited(resource.RLIMIT_FSIZE, 500_000), pytest.raises(OSError) as told:
        trained.again(tmp_path, "--tasks", "svhn")
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(path))
    assert told.value.errno in REMEDIES
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("**/*.tmp"))
    trained.again(tmp_path, "--tasks", "svhn")
    assert outcome(tmp_path) == outcome(trained.ckpdir)


def test_an_interrupted_submission_leaves_the_one_before(trained, tmp_path):
    out = tmp_path / "results.json"
    out.write_text("old")
    with limited(resource.RLIMIT_FSIZE, 2_000), pytest.raises(OSError) as told:
        answers_of(submit_val, trained.root, trained.ckpdir, out)
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(out))
    assert files(tmp_path) == {"results.json": b"old"}


@pytest.fixture
def without_root_powers():
    """A prefix for commands that makes file permissions bind root too."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write anywhere, and setpriv is not here to change that")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def test_an_image_that_may_not_be_read_is_named(decathlon_root, tmp_path, without_root_powers):
    original = next((decathlon_root / "data/svhn/train").rglob("*.jpg"))
    shutil.copyfile(original, tmp_path / "image.jpg")
    (tmp_path / "image.jpg").chmod(0)
    (tmp_path / "pack").touch()
    task = {"names": ["image.jpg"], "folder": str(tmp_path), "reading": {"side": 40}, "chunk": 1}
    (tmp_path / "task").write_text(json.dumps({**task, "file": str(tmp_path / "pack")}))
    command = [sys.executable, "-c", AS_SCRIPT, tmp_path / "task", "0", "1"]
    done = subprocess.run([*without_root_powers, *command], capture_output=True, check=True)
    assert f"{tmp_path}/image.jpg: permission was denied" in done.stdout.decode(errors="replace")
    assert done.stderr == b""


def test_a_loss_that_is_not_finite_stops_before_the_optimisers_step(trained, tmp_path):
    """Weights as they were after the step before; task, epoch, step and images are named."""
    line = refusal(trained.again, tmp_path, "--tasks", "svhn", "--lr", "1e30", *EACH_STEP)
    found = re.search(r"svhn epoch 1/2, step (\d): the loss became nan.* Images: ([\d, ]+)", line)
    images = found[2].split(", ")
    assert len(images) == 4
    assert all(image.startswith("8000") for image in images)
    assert left(tmp_path).unfinished["steps"] == int(found[1]) - 1


def infinite_gradient(weights):
    """Of a convolution of zeros: scales after it change no zero, but multiply its gradient."""
    block = "net.pairs.0.fine_tuned"
    values = {"conv1.weight": 0.0, "bn1.weight": 1e30, "bn1.bias": 1e-20, "conv2.weight": 1e15}
    for name, value in values.items():
        weights[f"{block}.{name}"].fill_(value)


def infinite_variance(weights):
    """Of activations beyond 10^19; the next BatchNorm divides them by it, so they become 0."""
    weights["net.stem.bn.weight"].fill_(1e30)


@pytest.mark.parametrize(
    ("change", "named", "minutes"),
    [
        (infinite_gradient, "net.stem.conv.weight", "1e-9"),  # noticed inside an epoch
        (infinite_variance, "net.pairs.0.kept.bn1.running_var", "10"),  # and after one
    ],
)
def test_weights_that_are_not_finite_are_not_saved(change, named, minutes, trained, tmp_path):
    """One step an epoch: the loss is that of the weights before it. The good checkpoints stay."""
    arguments = ["--tasks", "svhn", "--batch_size", "16", "--nb_epochs"]
    trained.again(tmp_path, *arguments, "1")
    good = left(tmp_path)
    change(good.weights)
    good.save(checkpoint_file(tmp_path, "svhn"))
    before = files(tmp_path / "svhn")
    line = refusal(trained.again, tmp_path, *arguments, "2", "--checkpoint_minutes", minutes)
    assert line.startswith("svhn epoch 2/2, step 1: after a finite loss ")
    assert named in line
    assert "--lr" in line
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors", "decisions.json"):
        assert (tmp_path / "svhn" / name).read_bytes() == before[name]


def test_a_run_with_a_clock_that_jumps_ends_the_same(trained, tmp_path, monkeypatch):
    """The wall clock leaps by days, forward and back, at every look."""
    leaps, real = itertools.cycle([0, 3e5, -9e5, 4e8]), time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(leaps))
    trained.again(tmp_path, "--tasks", "svhn")
    assert outcome(tmp_path) == outcome(trained.ckpdir)
    assert all(0 < line["seconds"] < 60 for line in left(tmp_path).history)


def test_annotations_that_changed_between_two_runs_are_noticed(trained, tmp_path):
    root = tmp_path / "decathlon-1.0"
    shutil.copytree(trained.root, root, ignore=shutil.ignore_patterns("packed"))
    svhn = ["--datadir", root, "--tasks", "svhn"]
    trained.again(tmp_path / "c", *svhn, "--nb_epochs", "1")
    path = root / "annotations/svhn_train.json"
    whole = path.read_text()

    def other_label(content):
        content["annotations"][0]["category_id"] = content["annotations"][-1]["category_id"]

    for change in (lambda path: edit_json(path, other_label), drop_last_image):
        change(path)
        told = refusal(trained.again, tmp_path / "c", *svhn)
        assert "trained on other images or labels than the annotations" in told
        path.write_text(whole)
