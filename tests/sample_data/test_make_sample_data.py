"""The made-up Decathlon holds to the official format, and never touches anything else."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from decathlon import TASKS
from runtime.errors import SpotTuneError
from sample_data import make
from sample_data.worlds import BEND, figure_of

SMALL = ("--classes", "3", "--images_per_class", "4", "--side", "16")
COUNTS = {"train": 4, "val": 2, "test": 2}  # of each class; a third of 4, rounded up


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    make.main([str(folder), *SMALL])
    return folder / "decathlon-1.0"


def annotations(root: Path, task_name: str, split: str) -> dict:
    return json.loads((root / "annotations" / f"{task_name}_{split}.json").read_text())


def every_byte(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_ids_names_classes_and_images_are_as_in_the_official_files(sample, task):
    num_classes = {"daimlerpedcls": 2, "imagenet12": 6}.get(task.name, 3)
    first = task.number * 10_000_000  # category ids begin one above
    index, sizes = 0, set()
    for split_number, (split, per_class) in enumerate(COUNTS.items()):
        content = annotations(sample, task.name, split)
        labels = [annotation["category_id"] - first for annotation in content["annotations"]]
        classes = [category["id"] - first for category in content["categories"]]
        assert classes == sorted(set(labels)) == list(range(1, num_classes + 1))
        assert (labels == sorted(labels)) == (split != "test")
        if (task.name, split) == ("daimlerpedcls", "train"):  # as many images, of fewer classes
            per_class = 6
        assert len(labels) == per_class * num_classes
        images = zip(content["images"], content["annotations"], labels, strict=True)
        for number, (image, annotation, label) in enumerate(images, start=1):
            index += 1  # runs on over the splits
            expected = first + split_number * 100_000 + index
            assert image["id"] == annotation["id"] == annotation["image_id"] == expected
            folder = f"{split}/{label:04}" if split != "test" else "test"
            assert image["file_name"] == f"data/{task.name}/{folder}/{number:06}.jpg"
            with Image.open(sample / image["file_name"]) as opened:
                assert (opened.format, opened.size) == ("JPEG", (image["width"], image["height"]))
                assert opened.mode == ("L" if task.name in ("omniglot", "daimlerpedcls") else "RGB")
            sizes.add(opened.size)
    assert {min(size) for size in sizes} == {16}
    fixed = {"daimlerpedcls": {(16, 32)}} | dict.fromkeys(("gtsrb", "omniglot", "svhn"), {(16, 16)})
    assert sizes == fixed.get(task.name, sizes)
    assert (len(sizes) == 1) == (task.name in fixed)  # what is cropped at random is not all square


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_pycocotools_reads_all_files_and_the_stripped_one_has_only_the_labels_missing(sample, task):
    for split in ("train", "val", "test", "test_stripped"):
        coco = COCO(sample / "annotations" / f"{task.name}_{split}.json")
        assert set(coco.getImgIds()) == {image["id"] for image in coco.dataset["images"]}
        assert bool(coco.anns) == (split != "test_stripped")
    stripped = annotations(sample, task.name, "test_stripped")
    assert set(stripped) == {"info", "images", "categories", "licenses"}
    assert stripped["images"] == annotations(sample, task.name, "test")["images"]
    assert isinstance(stripped["licenses"], dict)  # as in the official files


def test_images_differ_and_depend_on_the_seed_alone_and_nothing_else_is_written(sample, tmp_path):
    files = every_byte(sample)
    images = {name: content for name, content in files.items() if name.endswith(".jpg")}
    assert len(set(images.values())) == len(images)
    assert len(files) == len(images) + 4 * len(TASKS) + len(["MADE_UP"])
    assert [path.name for path in sample.parent.iterdir()] == ["decathlon-1.0"]
    make.main([str(tmp_path / "again"), *SMALL])
    assert every_byte(tmp_path / "again" / "decathlon-1.0") == files
    make.main([str(tmp_path / "other"), *SMALL, "--seed", "1"])
    other = every_byte(tmp_path / "other" / "decathlon-1.0")
    assert all(other[name] != images[name] for name in images)


def test_a_second_run_with_the_same_settings_touches_nothing(sample, capsys):
    before = sample.stat().st_mtime_ns
    make.main([str(sample.parent), *SMALL])
    assert sample.stat().st_mtime_ns == before
    assert "nothing to do" in capsys.readouterr().out


def test_other_settings_and_a_real_decathlon_leave_what_is_there_alone(sample, tmp_path):
    before = every_byte(sample)
    with pytest.raises(SpotTuneError, match='is there already: {"classes": 3'):
        make.main([str(sample.parent), *SMALL, "--seed", "1"])
    assert every_byte(sample) == before
    (tmp_path / "decathlon-1.0").mkdir()
    with pytest.raises(SpotTuneError, match="is there already: real images, perhaps"):
        make.main([str(tmp_path), *SMALL])
    assert list((tmp_path / "decathlon-1.0").iterdir()) == []


def test_a_run_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def break_off(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "write_annotations", break_off)
    with pytest.raises(KeyboardInterrupt):
        make.main([str(tmp_path), *SMALL])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [("--classes", "1"), ("--classes", "11"), ("--images_per_class", "0"), ("--side", "41"),
     ("--seed", "-1")],
)  # fmt: skip
def test_settings_out_of_range_are_named_before_anything_is_written(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        make.main([str(tmp_path / "out"), *wrong])
    assert f"argument {wrong[0]}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_kind_of_every_task_has_a_figure_of_its_own():
    figures = []
    for task in TASKS:
        kinds = set(make.Settings(10, 1, 16, 0).kinds(task, "train"))  # the most that it offers
        assert len(kinds) == {"daimlerpedcls": 2, "imagenet12": 20}.get(task.name, 10)
        figures += [figure_of(task, kind)[0] for kind in kinds]
    for one, other in itertools.combinations(figures, 2):
        assert np.abs(one - other).max() > 4 * BEND
