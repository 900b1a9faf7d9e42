"""The Python of docs/own_pictures.md runs as it stands."""

import re

import numpy as np
from conftest import REPOSITORY
from PIL import Image

import train_folder


def snippets():
    text = (REPOSITORY / "docs/own_pictures.md").read_text()
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
    building, predicting = snippets()
    names = {}
    exec(building, names)
    assert len(names["net"].blocks) == names["method"].num_blocks == 16
    exec(predicting, names)
    assert names["row"]["answer"] in ("crow", "owl")
