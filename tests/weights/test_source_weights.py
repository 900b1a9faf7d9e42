"""Source weights: matched by name, all of them, from every file that may hold them."""

import json
import os

import pytest
import torch
from conftest import SHARED
from reference import resnet
from released_files import CANARY, refusal_of, released_names
from safetensors.torch import save_file
from torch import nn

from methods.registry import SOURCE_KIND
from models.resnet26 import resnet26
from weights import source_weights
from weights.legacy_t7 import read_legacy_weights
from weights.source_weights import SourceWeights, our_name, weights_sha256
from weights.tensor_file import as_bytes

WIDTH, CLASSES = 2, 3
STAND_IN = SHARED / "mini-decathlon/resnet26_tinyimagenet.t7"
needs_stand_in = pytest.mark.skipif(
    not STAND_IN.is_file(), reason="real weights in the released format (shared/) are not here"
)


def test_every_tensor_has_one_name_in_the_released_file():
    ours = {name for name, _ in resnet26(10, width=4).named_parameters()}
    assert {our_name(name) for name in released_names(4)} == ours


@pytest.mark.parametrize(
    ("released", "ours"),
    [
        ("pre_layers_conv.conv.weight", "stem.conv.weight"),
        ("pre_layers_conv.bns.0.running_mean", "stem.bn.running_mean"),
        ("layer1.0.conv1.conv.weight", "blocks.0.conv1.weight"),
        ("layer2.0.conv2.1.conv.weight", "blocks.4.conv2.weight"),
        ("layer3.3.conv2.1.bns.0.bias", "blocks.11.bn2.bias"),
        ("end_bns.0.0.running_var", "head.bn.running_var"),
        ("linears.0.bias", "head.linear.bias"),
    ],
)
def test_released_names_and_ours(released, ours):
    assert our_name(released) == ours


# The files.


@pytest.fixture(scope="module")
def ours():
    """A network's weights by our names, running statistics of their own among them."""
    torch.manual_seed(0)
    net = resnet26(CLASSES, WIDTH)
    net(torch.randn(8, 3, 16, 16) + 1)
    return net.state_dict()


def released(weights):
    """The same under the released names, in the order of that file."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    names = list(released_names(4))
    bns = [name.removesuffix(".bias") for name in names if ".bns." in name or "end_bns" in name]
    names += {f"{bn.removesuffix('.weight')}.{buffer}" for bn in bns for buffer in buffers}
    return {name: weights[our_name(name)] for name in names}


def save_checkpoint(weights, path, **facts):
    """As engine/checkpoints.py does: momenta and the like stand beside the network."""
    facts = {"kind": SOURCE_KIND, "task": "imagenet12", "epochs done": 2, **facts}
    tensors = {f"weights.net.{name}": tensor for name, tensor in weights.items()}
    tensors |= {"optimizers.0.state.0.momentum_buffer": torch.ones(3)}
    path.write_bytes(as_bytes(json.dumps(facts), tensors))


def save_legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def prefixed(weights):
    return {f"module.{name}": tensor for name, tensor in weights.items()}


WRITERS = {
    "torch.save, our names": lambda w, path: torch.save(w, path),
    "torch.save, our names under net": lambda w, path: torch.save({"net": w, "epoch": 3}, path),
    "torch.save, released names": lambda w, path: torch.save(released(w), path),
    "torch.save, released names under net": lambda w, path: torch.save({"net": released(w)}, path),
    "torch.save, DataParallel": lambda w, path: torch.save(prefixed(released(w)), path),
    "torch.save, old format": lambda w, path: save_legacy({"net": prefixed(released(w))}, path),
    "safetensors, our names": lambda w, path: save_file(w, path),
    "safetensors, released names": lambda w, path: save_file(released(w), path),
    "our checkpoint": save_checkpoint,
}


@pytest.mark.parametrize("case", WRITERS)
def test_every_file_that_may_hold_source_weights_gives_them_under_our_names(case, ours, tmp_path):
    path = tmp_path / "weights"
    WRITERS[case](ours, path)
    read = SourceWeights.read(path, WIDTH)
    assert read.tensors.keys() == ours.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in ours.items())
    assert read.sha256 == weights_sha256(ours)
    assert read.num_classes == CLASSES


def test_a_file_without_counts_of_batches_will_do(ours, tmp_path):
    path = tmp_path / "old.pt"
    torch.save({n: t for n, t in ours.items() if not n.endswith("num_batches_tracked")}, path)
    net = SourceWeights.read(path, WIDTH).network(WIDTH)
    assert torch.equal(net.stem.bn.running_var, ours["stem.bn.running_var"])
    assert SourceWeights.read(path, WIDTH).sha256 == weights_sha256(ours)


def test_the_hash_is_the_one_that_earlier_records_hold():
    weights = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2])}
    weights |= {"bn.num_batches_tracked": torch.tensor(7)}
    assert weights_sha256(weights) == (
        "af87e75cab52b8e03561022d2b76b118dbb8e055719a8ed80c6775e67cca587b"
    )


def test_the_kind_of_a_source_is_the_registrys():
    assert source_weights.SOURCE_KIND == SOURCE_KIND


@needs_stand_in
def test_the_real_weights_give_the_scores_of_the_slow_form():
    """The released file's own names in the slow form, ours in the network: the same scores."""
    net = SourceWeights.read(STAND_IN, width=32).network(32).train()
    by_name = {
        name: tensor.double() for name, tensor in read_legacy_weights(STAND_IN.read_bytes()).items()
    }
    for size in ((64, 64), (144, 72)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        expected = resnet(images.double(), by_name).float()
        torch.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-4)


# What becomes of them.


def test_a_target_gets_the_sources_weights_and_statistics_and_a_classifier_of_its_own(ours):
    target = SourceWeights(ours, "", "here").transferred(num_classes=CLASSES, width=WIDTH)
    given = target.state_dict()
    fresh = {name for name in given if not torch.equal(given[name], ours[name])}
    assert fresh == {"head.linear.weight", "head.linear.bias"}
    other = SourceWeights(ours, "", "here").transferred(num_classes=7, width=WIDTH)
    assert other.head.linear.out_features == 7


# What is refused.


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


def bytes_of(data):
    return lambda weights, path: path.write_bytes(data)


def value(saved):
    return lambda weights, path: torch.save(saved, path)


def changed(**changes):
    """Writes the weights with these tensors instead; None leaves one out."""

    def write(weights, path):
        weights = weights | {name.replace("__", "."): each for name, each in changes.items()}
        torch.save({name: each for name, each in weights.items() if each is not None}, path)

    return write


def cut_short(writer):
    def write(weights, path):
        WRITERS[writer](weights, path)
        path.write_bytes(path.read_bytes()[:-1000])

    return write


def flipped(weights, path):
    save_checkpoint(weights, path)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


TARGET = {"kind": "spottune", "task": "svhn"}
TERABYTE = torch.zeros(1).expand(2**38)  # one number, over and over
NAN = torch.tensor([0.5, torch.nan, 0.5])
REFUSED = {
    # Files of other kinds.
    "absent": (lambda w, path: None, "no such file of pretrained weights"),
    "a web page": (bytes_of(b"\n<!DOCTYPE html>"), "found a web page"),
    "text": (bytes_of(b"# Weights\n"), "found a file that starts b'# Weight'"),
    "a zip file": (bytes_of(b"PK\x03\x04" + bytes(60)), "a damaged file"),
    "a whole module": (value(nn.Linear(2, 2)), "more than tensors"),
    "code": (value({"net": Hostile()}), "more than tensors"),
    "no network": (value({"acc": 1}), "other than tensors by name"),
    "an old checkpoint": (value({"format": "spottune-decathlon-2"}), "of an earlier version"),
    "a target": (lambda w, path: save_checkpoint(w, path, **TARGET), "spottune network of svhn"),
    "torch.save, cut short": (cut_short("torch.save, our names"), "a damaged file"),
    "safetensors, cut short": (cut_short("safetensors, our names"), "a damaged file"),
    "facts that are no dict": (bytes_of(as_bytes("[1]", {})), "a damaged file"),
    "a checkpoint with a flipped bit": (flipped, "a damaged file"),
    # Other networks.
    "a ResNet-18": (value({"conv1.weight": torch.ones(64, 3, 7, 7)}), "found 'conv1.weight', "),
    "a fourth stage": (value({"layer4.0.conv1.conv.weight": torch.ones(1)}), "which no ResNet-26"),
    "another width": (value(resnet26(CLASSES, 4).state_dict()), "width 4; expected width 2"),
    "one missing": (changed(blocks__3__bn1__bias=None), "1 tensors missing ['blocks.3.bn1.bias']"),
    "one too many": (changed(extra=torch.ones(1)), "1 without a place ['extra']"),
    "another shape": (changed(head__bn__bias=torch.ones(7)), "shape or type ['head.bn.bias']"),
    "no classifier": (changed(head__linear__bias=None), "missing ['head.linear.bias']"),
    "half precision": (changed(head__bn__bias=torch.ones(16).half()), "type ['head.bn.bias']"),
    "NaN": (changed(head__linear__bias=NAN), "weights that are not finite"),
    "a terabyte of one number": (changed(head__linear__bias=TERABYTE), "larger than the file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_resnet26_is_refused_in_one_line(case, ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer, words = REFUSED[case]
    path = tmp_path / "weights"
    writer(ours, path)
    assert words in refusal_of(lambda path: SourceWeights.read(path, WIDTH), path)
