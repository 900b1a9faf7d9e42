"""A checkpoint comes back as it was saved; a damaged, foreign or hostile file ends in one line."""

import json
import time
from dataclasses import replace

import pytest
import safetensors
import torch
from conftest import little_memory
from networks import BLOCKS, SETTINGS, batch
from released_files import ATTACKS, pickled

from engine.checkpoints import Checkpoint, checkpoint_file, momenta_of, previous_file
from engine.settings import Settings
from engine.step import EpochSums
from methods.optimizers import Rates
from methods.registry import build_method
from models.resnet26 import resnet26
from runtime.errors import SpotTuneError
from weights.tensor_file import content_sha256

CPU = torch.device("cpu")
RATES = Rates(0.1, 0.01, 5e-4)
RECORD = {"val_accuracy": 50.0, "val_loss": 0.1 + 0.2, "val_fine_tuned_share": [0.5] * BLOCKS}
RECORD |= {"train_loss": float("inf"), "val_seen_in_training": False}
RECORD |= {"val_policies": {"argmax": {"val_accuracy": None}}}


@pytest.fixture(scope="module")
def good():
    """In the middle of an epoch; two of the sums share their memory."""
    torch.manual_seed(0)
    method = build_method("spottune", resnet26(3, 2), 2).to(memory_format=torch.channels_last)
    optimizers = method.optimizers(RATES)
    images, _, noise = batch(count=2)
    method(images, noise)[0].square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    return Checkpoint(
        task="svhn",
        kind="spottune",
        categories=[70_000_001, 70_000_002, 70_000_003],
        settings=Settings.from_plain(SETTINGS),
        weights=method.state_dict(),
        momenta=momenta_of(method, optimizers),
        history=[{"epoch": 1, **RECORD}],
        unfinished={**EpochSums.zero(BLOCKS, CPU).state_dict(), "steps": 3, "seconds": 0.1},
    )


@pytest.fixture
def path(tmp_path):
    path = checkpoint_file(tmp_path, "svhn")
    path.parent.mkdir()
    return path


def parts_of(checkpoint):
    """Its tensors, and all else."""
    unfinished = checkpoint.unfinished.items()
    sums = {name: value for name, value in unfinished if torch.is_tensor(value)}
    rest = {**vars(checkpoint), "weights": None, "momenta": None}
    rest["unfinished"] = {name: value for name, value in unfinished if name not in sums}
    return (checkpoint.weights, checkpoint.momenta, sums), rest


def test_what_is_saved_comes_back_bit_by_bit(good, path):
    good.save(path)
    (ours, our_rest), (theirs, their_rest) = parts_of(Checkpoint.load(path)), parts_of(good)
    assert our_rest == their_rest
    assert len(good.momenta) > 100
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    replace(good, unfinished=None).save(path)
    assert Checkpoint.load(path).unfinished is None


def test_others_read_its_weights_and_what_they_are_with_safetensors_alone(good, path):
    good.save(path)
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["spottune"])
        stem = file.get_tensor("weights.net.stem.conv.weight")
    assert (about["kind"], about["task"]) == ("spottune", "svhn")
    assert torch.equal(stem, good.weights["net.stem.conv.weight"])


def refusal(path):
    """The one line with which a run that would continue from a file refuses it."""
    with pytest.raises(SpotTuneError) as told:
        found = Checkpoint.load(path)
        method = found.network(path)
        found.load_momenta(method, method.optimizers(RATES), path)
    line = str(told.value)
    assert str(path) in line
    assert line.endswith("Remove it to train the task again")
    assert "\n" not in line
    assert len(line) < len(str(path)) + 400
    return line


# Damage, which the checksum tells.


def test_a_file_that_is_cut_short_anywhere_is_refused(good, path):
    good.save(path)
    data = path.read_bytes()
    for length in (*range(0, 20), *range(20, len(data), len(data) // 20), len(data) - 1):
        path.write_bytes(data[:length])
        assert "not a readable checkpoint" in refusal(path)


def test_a_flipped_bit_is_noticed(good, path):
    """In a weight too, where the file stays readable and the number finite."""
    good.save(path)
    data = path.read_bytes()
    stem = data.index(good.weights["net.stem.conv.weight"].contiguous().numpy().tobytes())
    places = [*range(8 * stem, 8 * stem + 32), *range(0, 8 * len(data), 8 * len(data) // 30 + 1)]
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        assert "not a readable checkpoint" in refusal(path)


def test_if_the_checkpoint_before_is_damaged_too_one_line_names_it(good, path):
    good.save(path)
    good.save(path)
    path.write_bytes(b"x")
    assert Checkpoint.latest(path).where == previous_file(path)
    previous_file(path).write_bytes(b"x")
    with pytest.raises(SpotTuneError, match="checkpoint.previous.safetensors: not a readable"):
        Checkpoint.latest(path)


# Files of others.


def file(header, data=b"", length=None):
    """The bytes of a safetensors file around any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape, end):
    return {"weights.a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


DEEP = "[" * 10**6
FOREIGN = {
    "nothing": b"",
    "text": b"not a checkpoint\n",
    "a pickle that runs a command": pickled(ATTACKS["os.system"]),
    "weights of another program": file(tensor([1], 4), bytes(4)),
    "a header longer than the file": file({}, length=10**6),
    "a header that is nested deeply": file(DEEP.encode()),
    "a tensor larger than the file": file(tensor([2**40], 2**42), bytes(4)),
    "a shape whose size overflows": file(tensor([2**62, 2**62], 4), bytes(4)),
    "metadata that is no text": file({"__metadata__": {"spottune": {}}}),
    "metadata that is nested deeply": file(
        {"__metadata__": {"spottune": DEEP, "sha256": content_sha256(DEEP, {})}}
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused_at_once_and_runs_nothing(kind, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    path.write_bytes(FOREIGN[kind])
    begin = time.monotonic()
    with little_memory(2**27):
        assert "not a readable checkpoint" in refusal(path)
    assert time.monotonic() - begin < 5
    assert path.read_bytes() == FOREIGN[kind]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_wide_network_that_the_weights_do_not_fill_is_refused_before_it_takes_memory(good, path):
    """Its first and last layer are there; the whole would take gigabytes."""
    linear = "net.head.linear.bias"
    weights = {"net.stem.conv.weight": torch.ones(512, 3, 3, 3), linear: good.weights[linear]}
    replace(good, settings=replace(good.settings, width=512), weights=weights).save(path)
    with little_memory(2**27):
        assert "do not fit the spottune network" in refusal(path)


def test_a_checkpoint_of_an_earlier_version_is_named_and_not_trained_over(path):
    assert Checkpoint.latest(path) is None
    earlier = path.with_name("checkpoint.pt")
    earlier.touch()
    for read in (Checkpoint.latest, Checkpoint.load):
        with pytest.raises(SpotTuneError, match=f"{earlier}: was written by an earlier version"):
            read(path)


# Content that is well sealed, but not what a run leaves.


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


def with_record(**changes):
    return lambda c: {"history": [{"epoch": 1, **RECORD, **changes}]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: {"weights": without(c.weights, "net.pairs.3.kept.bn1.bias")}, "do not fit"),
        (lambda c: {"weights": c.weights | {"\x1b[2J" * 20: torch.ones(1)}}, "do not fit"),
        (lambda c: {"weights": c.weights | {"net.stem.bn.bias": torch.ones(2).half()}}, "float32"),
        (lambda c: {"weights": c.weights | {"net.stem.bn.bias": torch.ones(2) / 0}}, "not finite"),
        (lambda c: {"categories": c.categories[1:]}, "do not fit"),
        (lambda c: {"categories": ["1", "2", "3"]}, "categories"),
        (lambda c: {"momenta": {}}, "momenta"),
        (lambda c: {"momenta": c.momenta | {"net.stem.bn.bias": torch.ones(7)}}, "momenta"),
        (lambda c: {"settings": replace(c.settings, width=4)}, "do not fit"),
        (lambda c: {"settings": replace(c.settings, lr="much")}, "lr is not of type float"),
        (lambda c: {"task": "\x1b[31msvhn"}, "task"),
        (lambda c: {"kind": None}, "kind"),
        (lambda c: {"history": {}}, "history"),
        (lambda c: {"history": [*c.history, {}]}, "record of epoch 2"),
        (with_record(epoch=2), "record of epoch 1"),
        (with_record(val_accuracy="abc"), "val_accuracy"),
        (with_record(val_accuracy=10**400), "val_accuracy"),
        (with_record(train_accuracy=[50.0]), "train_accuracy"),
        (with_record(val_fine_tuned_share=0.5), "val_fine_tuned_share"),
    ],
)
def test_content_that_does_not_fit_is_refused_and_named(change, words, good, path):
    replace(good, **change(good)).save(path)
    assert words in refusal(path)


@pytest.mark.parametrize(
    "changes",
    [{"loss": torch.ones(7)}, {"loss": 0.0}, {"steps": 7}, {"steps": [1]}, {"seconds": 1}],
)
def test_sums_that_an_epoch_of_six_steps_cannot_leave_are_refused(changes, good, path):
    replace(good, unfinished={**good.unfinished, **changes}).save(path)
    with pytest.raises(ValueError, match="epoch"):
        EpochSums.zero(12, CPU).load_state_dict(Checkpoint.load(path).unfinished, num_steps=6)
