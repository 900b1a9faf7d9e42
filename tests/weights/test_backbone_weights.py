"""Backbones with the weights of a file, of the library, or none."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from networks import perturb_
from safetensors.torch import save_file

from models.backbones import create, stem_blocks_head
from runtime.errors import SpotTuneError
from weights.backbone_weights import load_backbone, read_tensors

NAME = "timm:mobilenetv3_small_050"
SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="module")
def library_network():
    torch.manual_seed(0)
    network = create(NAME, 9)
    perturb_(network)
    return network.eval()


@pytest.fixture(scope="module")
def tensors(library_network):
    return library_network.state_dict()


def saved_in_the_old_format(tensors, path):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


FORMS = {
    "safetensors": save_file,
    "state dict": torch.save,
    "old format": saved_in_the_old_format,
    "under state_dict": lambda tensors, path: torch.save({"state_dict": tensors, "epoch": 3}, path),
    "under model": lambda tensors, path: torch.save({"model": tensors}, path),
    "under net, of DataParallel": lambda tensors, path: torch.save(
        {"net": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path
    ),
}


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_all_but_the_classifier_comes_from_the_file_in_whatever_form(
    form, library_network, tensors, tmp_path
):
    path = tmp_path / "weights"
    FORMS[form](dict(tensors), path)
    network, _ = load_backbone(NAME, 4, path)
    network.eval().head.classifier = library_network.classifier
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(images), library_network(images))


def test_the_classifier_is_a_new_one_drawn_from_pytorchs_generator(tensors, tmp_path):
    save_file(tensors, tmp_path / "weights")
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        network, _ = load_backbone(NAME, 9, tmp_path / "weights")  # as many classes as in the file
        drawn.append(network.classifier.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], tensors["classifier.weight"])
    assert network.classifier.bias.any()  # timm would set it to zero


def test_tensors_without_a_place_are_named_and_left_out(tensors, tmp_path, capsys):
    save_file({**tensors, "aux.weight": torch.ones(2)}, tmp_path / "weights")
    load_backbone(NAME, 4, tmp_path / "weights")
    assert f"1 tensors without a place in {NAME}: ['aux.weight']" in capsys.readouterr().out


def without(name):
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        (without("conv_stem.weight"), "1 tensors missing ['conv_stem.weight']"),
        (lambda t: t | {"blocks.9.0.conv.weight": torch.ones(2)}, "1 without a place ['blocks.9"),
        (lambda t: t | {"bn1.bias": torch.ones(3)}, "1 of another shape ['bn1.bias']"),
        (lambda t: t | {"bn1.bias": torch.full((16,), torch.nan)}, "weights that are not finite"),
        (lambda t: t | {"bn1.bias": "no tensor"}, "something other than tensors by name"),
        (lambda t: [1, 2], "something other than tensors by name"),
        (lambda t: {"state_dict": Path}, "more than tensors"),
    ],
)
def test_other_weights_are_refused_in_one_line(changed, found, tensors, tmp_path):
    torch.save(changed(dict(tensors)), tmp_path / "weights")
    refused_with(found, NAME, tmp_path / "weights")


def refused_with(found, *arguments):
    with pytest.raises(SpotTuneError) as caught:
        load_backbone(arguments[0], 4, *arguments[1:])
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\n<!DOCTYPE html>", "found a web page"),
        (b"PK\x03\x04 cut", "found a damaged file"),
        (b"\x10\0\0\0\0\0\0\0{ not json at all", "found a damaged file"),
        (b"", "found a damaged file"),
    ],
)
def test_other_files_are_refused_in_one_line(content, found, tmp_path):
    (tmp_path / "weights").write_bytes(content)
    refused_with(found, NAME, tmp_path / "weights")


def test_a_missing_file_and_a_side_that_no_patches_fit_are_refused(tmp_path):
    refused_with("no such file; expected --weights imagenet, none or a file", NAME, tmp_path / "no")
    vit = "timm:vit_tiny_patch16_224"
    refused_with("--crop 40: expected a multiple of 16, the patches of", vit, "none", 40)


@torch.no_grad()
def test_a_vision_transformer_takes_images_of_the_side_that_is_asked_for():
    network, config = load_backbone("timm:vit_tiny_patch16_224", 4, "none", 48)
    assert network(torch.randn(2, 3, 48, 48)).shape == (2, 4)
    assert config.side == 224  # of its weights


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet10t"])
def test_a_download_that_fails_is_told_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused_with(f"the weights of {name} could not be fetched", name, "imagenet")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", (224, 0.485, 0.229, "bilinear", 0.875)),
        ("timm:tf_efficientnet_lite0", (224, 0.5, 0.5, "bicubic", 0.875)),
        ("timm:vit_tiny_patch16_224", (224, 0.5, 0.5, "bicubic", 0.9)),
    ],
)
def test_the_pictures_are_those_that_the_weights_were_trained_for(name, expected):
    with torch.device("meta"):
        _, config = load_backbone(name, 4, "none")
    assert (
        config.side,
        config.mean[0],
        config.std[0],
        *list(vars(config).values())[3:],
    ) == expected


def test_efficientnet_lite0_from_its_safetensors_file():
    """The file of ../shared/photos, where it is there."""
    path = SHARED / "photos/efficientnet_lite0_imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    name = "timm:tf_efficientnet_lite0"
    whole = create(name, 1000).eval()
    whole.load_state_dict(read_tensors(path))
    network, _ = load_backbone(name, 4, path)
    network.eval().head.classifier = whole.classifier
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images), whole(images))
    assert len(stem_blocks_head(whole).blocks) == 16
