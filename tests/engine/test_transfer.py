"""The source network: trained here, or taken from a file; and when its checkpoint is damaged."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import files, left, outcome, records

from decathlon import SOURCE
from engine.checkpoints import Checkpoint, checkpoint_file, previous_file
from runtime.errors import SpotTuneError


def cut_short(path):
    path.write_bytes(path.read_bytes()[:1000])


def test_targets_start_from_the_source_and_draw_the_rest_by_seed_and_task(trained, tmp_path):
    """Learning rates that move no weight leave what training started from."""
    still = ["--nb_epochs", "1", "--lr", "1e-30", "--lr_agent", "1e-30"]
    trained.again(tmp_path / "0", "--tasks", "dtd", "svhn", *still)
    trained.again(tmp_path / "1", "--tasks", "dtd", *still, "--seed", "1")
    runs = [("0", "dtd"), ("0", "svhn"), ("1", "dtd")]
    starts = [left(tmp_path / seed, task).weights for seed, task in runs]
    for name, tensor in left(trained.ckpdir, SOURCE.name).weights.items():
        if "head.linear" in name or "running" in name or "num_batches" in name:
            continue
        for copy in ("kept", "fine_tuned"):
            of_pair = re.sub(r"blocks\.(\d+)", rf"pairs.\1.{copy}", name)
            assert all(torch.equal(start[of_pair], tensor) for start in starts), of_pair
    for drawn in ("net.head.linear.weight", "policy_net.resnet.stem.conv.weight"):
        assert len({tuple(start[drawn].flatten().tolist()) for start in starts}) == 3, drawn


def test_weights_from_a_file_are_evaluated_once_and_serve_all_tasks(trained, tmp_path):
    trained.again(tmp_path, "--tasks", SOURCE.name)
    (record,) = records(tmp_path, SOURCE.name)
    assert record["epoch"] == 0
    assert record["val_accuracy"] == records(trained.ckpdir, SOURCE.name)[-1]["val_accuracy"]
    before = files(tmp_path / SOURCE.name)
    for task, lr in (("svhn", "0.1"), ("dtd", "0.2")):
        trained.again(tmp_path, "--tasks", task, "--nb_epochs", "1", "--lr", lr, "--step1", "7")
    assert files(tmp_path / SOURCE.name) == before
    with pytest.raises(SpotTuneError, match="was taken from a file, but --pretrained none asks"):
        trained.again(tmp_path, "--pretrained", "none")


def test_no_file_but_its_own_takes_the_place_of_a_trained_source(trained, tmp_path):
    before = trained.source.read_bytes()
    trained.again(trained.ckpdir, "--tasks", "svhn")
    source = Checkpoint.load(trained.source)
    weights = {name: 2 * tensor for name, tensor in source.weights.items()}
    replace(source, weights=weights).save(tmp_path / "other")
    with pytest.raises(SpotTuneError, match="holds a source network that was trained here"):
        trained.again(trained.ckpdir, "--pretrained", tmp_path / "other")
    assert trained.source.read_bytes() == before


# Damaged.


@pytest.fixture
def own(trained, tmp_path):
    """The checkpoint of a finished source, which was of epoch 1 of 2 before."""
    shutil.copytree(trained.source.parent, tmp_path / SOURCE.name)
    return checkpoint_file(tmp_path, SOURCE.name)


@pytest.mark.parametrize("named", [True, False])
def test_targets_do_not_start_from_an_unfinished_source(named, own, trained, tmp_path):
    cut_short(own)
    before = files(own.parent)
    for _ in range(2):
        with pytest.raises(SpotTuneError, match="1 of 2 epochs.*add imagenet12 to --tasks"):
            trained.again(tmp_path, "--pretrained", own if named else "none", "--tasks", "svhn")
    assert files(own.parent) == before
    assert not (tmp_path / "svhn").exists()


def test_a_damaged_source_continues_from_the_one_before(own, trained, tmp_path, capsys):
    cut_short(own)
    trained.again(tmp_path, "--pretrained", "none", "--tasks", SOURCE.name, "svhn")
    said = capsys.readouterr().out
    assert said.count("Continuing from the one before, checkpoint.previous.safetensors") == 1
    assert "imagenet12: 1 of 2 epochs were finished before" in said
    for task in (SOURCE.name, "svhn"):
        assert outcome(tmp_path, task) == outcome(trained.ckpdir, task)


def test_targets_start_from_the_source_kept_before_a_damaged_one(own, trained, tmp_path, capsys):
    """So that several, side by side, do not get in each other's way. Only its own run mends it."""
    shutil.copyfile(own, previous_file(own))
    cut_short(own)
    before = files(own.parent)
    trained.again(tmp_path, "--pretrained", own, "--tasks", "svhn")
    said = capsys.readouterr().out
    assert f"{own}: not a readable checkpoint" in said
    assert f"source weights: {previous_file(own)}" in said
    assert files(own.parent) == before
    assert outcome(tmp_path) == outcome(trained.ckpdir)
    trained.again(tmp_path, "--pretrained", "none", "--tasks", SOURCE.name)
    assert outcome(tmp_path, SOURCE.name) == outcome(trained.ckpdir, SOURCE.name)
    assert own.with_suffix(".damaged.safetensors").stat().st_size == 1000


@pytest.mark.parametrize("task", [SOURCE.name, "svhn"])
def test_damaged_weights_that_came_from_a_file_are_put_back(task, trained, tmp_path):
    adopted = checkpoint_file(tmp_path, SOURCE.name)
    trained.again(tmp_path, "--tasks", SOURCE.name)
    good = adopted.read_bytes()
    shutil.copyfile(adopted, previous_file(adopted))
    cut_short(adopted)
    with pytest.raises(SpotTuneError, match="was taken from a file"):  # still known
        trained.again(tmp_path, "--pretrained", "none", "--tasks", SOURCE.name)
    (adopted.parent / ".lock").unlink()
    trained.again(tmp_path, "--tasks", task, "--nb_epochs", "1")
    assert (adopted.parent / ".lock").exists()  # no other process did the same at that moment
    assert adopted.read_bytes() == good
    assert adopted.with_suffix(".damaged.safetensors").stat().st_size == 1000
