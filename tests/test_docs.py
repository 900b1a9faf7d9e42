"""The Python of README and docs/own_pictures.md runs."""

import re

import numpy as np
import torch
from conftest import REPOSITORY
from PIL import Image

import train_folder
from methods.registry import build_method
from weights.backbone_weights import load_backbone


def snippets(page):
    text = (REPOSITORY / page).read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_snippets_of_own_pictures_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("crow", "owl") * 4):
        path = tmp_path / f"birds/train/{name}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    Image.fromarray(pixels).save(tmp_path / "bird.jpg")
    network = ["--backbone", "timm:test_resnet", "--weights", "none", "--width", "16"]
    size = ["--resize", "36", "--crop", "32", "--policy_size", "16", "--nb_epochs", "1"]
    train_folder.main(["birds", *network, *size, "--device", "cpu"])
    building, predicting = snippets("docs/own_pictures.md")
    names = {}
    exec(building, names)
    assert len(names["net"].blocks) == names["method"].num_blocks == 16
    exec(predicting, names)
    assert names["row"]["answer"] in ("crow", "owl")


def test_the_three_lines_of_the_readme_run():
    """With another network of 16 blocks, which is quicker, and without a download."""
    (lines,) = snippets("README.md")
    lines = lines.replace('"resnet50", num_classes=10', '"timm:tf_efficientnet_lite0", 10, "none"')
    names = {
        "images": torch.rand(2, 3, 64, 64),
        "torch": torch,
        "load_backbone": load_backbone,
        "build_method": build_method,
    }
    exec(lines, names)
    assert names["scores"].shape == (2, 10)
    assert names["decisions"].shape == (2, 16)
