"""Source weights: matched by name, all of them, under the names of the released code."""

import pytest
import torch
from conftest import SHARED
from reference import resnet
from test_models import released_names

from engine.source_weights import SourceWeights, our_name, read_source_weights
from models.resnet26 import resnet26
from runtime.errors import SpotTuneError
from weights.legacy_t7 import read_legacy_weights

STAND_IN = SHARED / "mini-decathlon/resnet26_tinyimagenet.t7"
needs_stand_in = pytest.mark.skipif(
    not STAND_IN.is_file(), reason="real weights in the released format (shared/) are not here"
)


def weights_of(net):
    return SourceWeights(net.state_dict(), "", "here")


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


@pytest.mark.parametrize("name", ["linears.1.weight", "layer4.0.conv1.conv.weight", "x", ""])
def test_a_name_without_a_place_is_an_error(name):
    with pytest.raises(KeyError):
        our_name(name)


def test_a_target_gets_the_sources_weights_and_a_classifier_of_its_own():
    source = resnet26(5, width=4)
    target = weights_of(source).transferred(num_classes=3, width=4)
    ours, theirs = target.state_dict(), source.state_dict()
    fresh = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert fresh == {"head.linear.weight", "head.linear.bias"}
    assert target.head.linear.out_features == 3


def test_running_statistics_are_transferred_too():
    source = resnet26(5, width=4)
    source(torch.randn(8, 3, 16, 16) + 1)
    target = weights_of(source).transferred(3, 4)
    assert torch.equal(target.blocks[7].bn2.running_var, source.blocks[7].bn2.running_var)
    assert not torch.equal(target.blocks[7].bn2.running_var, torch.ones(32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("blocks.3.bn1.bias"), "1 tensors missing ['blocks.3.bn1.bias']"),
        (lambda w: w.update(extra=torch.ones(1)), "1 without a place ['extra']"),
        (lambda w: w.update({"head.bn.bias": torch.ones(7)}), "another shape ['head.bn.bias']"),
        (lambda w: w.pop("head.linear.bias"), "1 tensors missing ['head.linear.bias']"),
        (lambda w: w.update({"head.linear.bias": torch.ones(())}), "shape ['head.linear.bias'"),
        (lambda w: w.update({"head.linear.bias": torch.ones(0)}), "shape ['head.linear.bias'"),
    ],
)
def test_any_tensor_that_is_missing_or_foreign_is_named(change, words):
    weights = dict(resnet26(5, width=4).state_dict())
    change(weights)
    with pytest.raises(SpotTuneError) as caught:
        SourceWeights(weights, "", "here").network(4)
    assert words in str(caught.value)


@needs_stand_in
def test_the_real_weights_give_the_scores_of_the_slow_form():
    """The released file's own names in the slow form, ours in the network: the same scores."""
    net = SourceWeights.read(STAND_IN, width=32).network(32).train()
    released = {name: tensor.double() for name, tensor in read_legacy_weights(STAND_IN).items()}
    for size in ((64, 64), (144, 72)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        expected = resnet(images.double(), released).float()
        torch.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-4)


@needs_stand_in
def test_the_real_file_fills_every_tensor():
    weights = read_source_weights(STAND_IN)
    own = resnet26(200).state_dict()
    assert own.keys() == weights.keys()
