"""The source network's weights, when the checkpoint that holds them is damaged."""

import shutil

import pytest
import torch

import main
from decathlon import SOURCE
from engine.checkpoints import Checkpoint, previous_file
from runtime.errors import SpotTuneError


def cut_short(path):
    path.write_bytes(path.read_bytes()[:1000])


def files(folder):
    """All files but the lock, with their content."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}


def assert_same_weights(ours, theirs):
    ours, theirs = (Checkpoint.load(path).weights for path in (ours, theirs))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.fixture
def own(trained, tmp_path):
    """The checkpoint of a finished source, which was of epoch 1 of 2 before."""
    shutil.copytree(trained.ckpdir / SOURCE.name, tmp_path / SOURCE.name)
    return tmp_path / SOURCE.name / "checkpoint.safetensors"


@pytest.fixture
def train(trained, tmp_path):
    """Trains the tasks in tmp_path."""

    def run(pretrained, *tasks):
        more = ["--ckpdir", str(tmp_path), "--pretrained", str(pretrained), "--tasks", *tasks]
        main.main([*trained.arguments, *more])

    return run


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("named", [True, False])
def test_targets_do_not_start_from_an_epoch_before_the_last_and_are_told_how_to_go_on(
    times, named, own, train, tmp_path
):
    cut_short(own)
    before = files(own.parent)
    for _ in range(times):
        with pytest.raises(SpotTuneError, match="1 of 2 epochs.*add imagenet12 to --tasks") as told:
            train(own if named else "none", "svhn")
        assert "\n" not in str(told.value)
    assert files(own.parent) == before
    assert not (tmp_path / "svhn").exists()


def test_a_damaged_source_that_is_a_task_goes_on_from_the_one_before(
    own, train, trained, tmp_path, capsys
):
    cut_short(own)
    train("none", SOURCE.name, "svhn")
    said = capsys.readouterr().out
    assert said.count("Going on from the one before, checkpoint.previous.safetensors") == 1
    assert "imagenet12: 1 of 2 epochs were finished before" in said
    for task in (SOURCE.name, "svhn"):
        assert_same_weights(
            *(d / task / "checkpoint.safetensors" for d in (tmp_path, trained.ckpdir))
        )


def test_targets_start_from_a_finished_source_that_was_kept_and_leave_it_as_it_is(
    own, train, trained, tmp_path, capsys
):
    """So that several, side by side, do not get in each other's way."""
    shutil.copyfile(own, previous_file(own))
    cut_short(own)
    before = files(own.parent)
    train(own, "svhn")
    said = capsys.readouterr().out
    assert f"{own}: not a readable checkpoint" in said
    assert f"source weights: {previous_file(own)}" in said
    assert files(own.parent) == before
    assert_same_weights(
        tmp_path / "svhn/checkpoint.safetensors", trained.ckpdir / "svhn/checkpoint.safetensors"
    )


def test_a_finished_task_whose_last_checkpoint_is_damaged_gets_the_one_before_in_its_place(
    own, train, trained
):
    shutil.copyfile(own, previous_file(own))
    cut_short(own)
    train("none", SOURCE.name)
    assert_same_weights(own, trained.ckpdir / SOURCE.name / "checkpoint.safetensors")
    assert own.with_suffix(".damaged.safetensors").stat().st_size == 1000


@pytest.mark.parametrize("tasks", [[SOURCE.name], ["svhn"]])
def test_damaged_weights_that_came_from_a_file_are_put_back(tasks, train, trained, tmp_path):
    file = trained.ckpdir / SOURCE.name / "checkpoint.safetensors"
    adopted = tmp_path / SOURCE.name / "checkpoint.safetensors"
    train(file, SOURCE.name)
    good = adopted.read_bytes()
    shutil.copyfile(adopted, previous_file(adopted))
    cut_short(adopted)
    (adopted.parent / ".lock").unlink()
    train(file, *tasks)
    assert (adopted.parent / ".lock").exists()  # no other process did the same at that moment
    assert adopted.read_bytes() == good
    assert adopted.with_suffix(".damaged.safetensors").stat().st_size == 1000


def test_a_damaged_checkpoint_of_weights_from_a_file_is_still_not_taken_for_one_trained_here(
    train, trained, tmp_path
):
    adopted = tmp_path / SOURCE.name / "checkpoint.safetensors"
    train(trained.ckpdir / SOURCE.name / "checkpoint.safetensors", SOURCE.name)
    shutil.copyfile(adopted, previous_file(adopted))
    cut_short(adopted)
    with pytest.raises(SpotTuneError, match="was taken from a file"):
        train("none", SOURCE.name)
