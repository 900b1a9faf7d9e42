"""Annotations -> examples -> batches, against torchvision's transforms on Pillow images."""

import json
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest

from decathlon import TASK_BY_NAME
from image_cache.orders import View
from image_cache.packed import DataFolders
from imdbfolder_coco import UNLABELLED, load_images, read_annotations, require_labels, view_of
from runtime.errors import SpotTuneError


@pytest.fixture
def folders(decathlon_root, tmp_path):
    return DataFolders(decathlon_root, decathlon_root / "annotations", tmp_path / "packed")


@pytest.mark.parametrize(
    ("task", "training", "test"),
    [
        ("aircraft", View(8, 8, random=True), View(16, 16)),
        ("cifar100", View(8, 8, random=True), View(16, 16)),
        ("daimlerpedcls", View(32, 16), View(32, 16)),
        ("dtd", View(8, 8, random=True), View(16, 16)),
        ("gtsrb", View(16, 16), View(16, 16)),
        ("imagenet12", View(8, 8, random=True, flip=True), View(16, 16)),
        ("omniglot", View(16, 16), View(16, 16)),
        ("svhn", View(16, 16), View(16, 16)),
        ("ucf101", View(8, 8, random=True), View(16, 16)),
        ("vgg-flowers", View(8, 8, random=True), View(16, 16)),
    ],
)
def test_crops_of_each_task_are_those_of_the_released_code(task, training, test, folders):
    images = load_images(TASK_BY_NAME[task], ["train", "val"], folders, 16)
    assert view_of(TASK_BY_NAME[task], images, 16, 8, training=True) == training
    assert view_of(TASK_BY_NAME[task], images, 16, 8, training=False) == test


def test_labels_are_joined_by_image_id_and_not_by_position(decathlon_root, tmp_path):
    source = decathlon_root / "annotations/svhn_train.json"
    content = json.loads(source.read_text())
    content["annotations"].reverse()
    content["categories"].reverse()
    (tmp_path / "svhn_train.json").write_text(json.dumps(content))
    straight, mixed = read_annotations(source), read_annotations(tmp_path / "svhn_train.json")
    assert len(set(straight.labels.tolist())) > 1
    assert np.array_equal(straight.labels, mixed.labels)


def test_classes_are_the_files_own_categories(tmp_path, decathlon_root):
    """A folder with fewer classes than the official ones, with gaps between their ids."""
    content = json.loads((decathlon_root / "annotations/svhn_val.json").read_text())
    for entry in content["categories"] + content["annotations"]:
        key = "category_id" if "category_id" in entry else "id"
        entry[key] = 80_000_000 + 3 * (entry[key] - 80_000_000)
    path = tmp_path / "svhn_val.json"
    path.write_text(json.dumps(content))
    annotations = read_annotations(path)
    assert annotations.categories.tolist() == [80_000_003, 80_000_006]
    assert set(annotations.labels.tolist()) == {0, 1}


def test_test_images_have_no_label(folders):
    assert set(load_images(TASK_BY_NAME["svhn"], ["test"], folders, 16).labels) == {UNLABELLED}


def test_train_and_val_merge_in_this_order(folders):
    train, val = (
        load_images(TASK_BY_NAME["dtd"], [split], folders, 16) for split in ("train", "val")
    )
    merged = load_images(TASK_BY_NAME["dtd"], ["train", "val"], folders, 16)
    assert merged.image_ids.tolist() == [*train.image_ids, *val.image_ids]
    last = len(merged) - 1
    corner = np.array([0])
    ours = merged.crops(np.array([last]), corner, corner, 16, 16)
    assert np.array_equal(ours, val.crops(np.array([len(val) - 1]), corner, corner, 16, 16))


def broken(content, breakage):
    images, annotations, categories = (
        content[key] for key in ("images", "annotations", "categories")
    )
    breakages = {
        "no images": lambda: images.clear(),
        "image without id": lambda: images[0].pop("id"),
        "image without file": lambda: images[0].pop("file_name"),
        "image twice": lambda: images.append(dict(images[0])),
        "text as id": lambda: images[0].update(id="1"),
        "label missing": lambda: annotations.pop(),
        "label twice": lambda: annotations.append(dict(annotations[0])),
        "unknown category": lambda: annotations[0].update(category_id=10_000_001),
        "annotation without image": lambda: annotations[0].pop("image_id"),
        "category without id": lambda: categories[0].pop("id"),
        "absolute path": lambda: images[0].update(file_name="/etc/passwd"),
        "path outside": lambda: images[0].update(file_name="data/../../../etc/passwd"),
        "path outside, from Windows": lambda: images[0].update(file_name="data\\..\\..\\x.jpg"),
        "labels of null": lambda: content.update(annotations=None),
        "number as path": lambda: images[0].update(file_name=3),
        "category without end": lambda: annotations[0].update(category_id="x" * 3000),
        "label of a list": lambda: annotations[0].update(category_id=[1]),
        "id too large": lambda: (images[0].update(id=2**70), annotations[0].update(image_id=2**70)),
        "images as number": lambda: content.update(images=3),
        "no categories": lambda: content.pop("categories"),
    }
    breakages[breakage]()
    return breakages


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        ("no images", "lists no images"),
        ("image without id", "id"),
        ("image without file", "file_name"),
        ("image twice", "repeated"),
        ("text as id", "integers"),
        ("category without end", "category_id"),
        ("label of a list", "category_id"),
        ("label missing", "has 0 labels"),
        ("label twice", "has 2 labels"),
        ("unknown category", "category 10000001"),
        ("annotation without image", "image_id"),
        ("category without id", "id"),
        ("absolute path", "outside"),
        ("path outside", "outside"),
        ("path outside, from Windows", "outside"),
        ("labels of null", "annotations is None; expected a list"),
        ("number as path", "COCO-style"),
        ("id too large", "64 bits"),
        ("images as number", "TypeError"),
        ("no categories", "categories"),
    ],
)
def test_a_broken_annotation_file_is_refused_in_one_line(breakage, words, decathlon_root, tmp_path):
    content = json.loads((decathlon_root / "annotations/svhn_train.json").read_text())
    broken(content, breakage)
    path = tmp_path / "svhn_train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SpotTuneError, match=words) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 400


def test_ids_that_share_a_hash_are_refused_before_they_cost_time(decathlon_root, tmp_path):
    """Python's hash of these is 0; a dict of 100,000 of them would take minutes."""
    content = json.loads((decathlon_root / "annotations/svhn_train.json").read_text())
    content["categories"] = [{"id": (2**61 - 1) * k} for k in range(100_000)]
    path = tmp_path / "svhn_train.json"
    path.write_text(json.dumps(content))
    begin = time.monotonic()
    with pytest.raises(SpotTuneError, match="64 bits"):
        read_annotations(path)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\xff\xfe"])
def test_a_file_that_is_no_annotation_file_is_refused(text, tmp_path):
    path = tmp_path / "svhn_train.json"
    path.write_text(text, encoding="latin1")
    with pytest.raises(SpotTuneError, match="JSON"):
        read_annotations(path)


def test_ids_of_another_task_are_refused_before_any_image_is_decoded(folders, tmp_path):
    """The ids 1 to N of a plain COCO file, for example."""
    imdbdir = tmp_path / "annotations"
    imdbdir.mkdir()
    content = json.loads((folders.imdbdir / "svhn_train.json").read_text())
    for number, image in enumerate(content["images"], 1):
        image.update(id=number, file_name="data/nowhere.jpg")
    for number, label in enumerate(content["annotations"], 1):
        label["image_id"] = number
    (imdbdir / "svhn_train.json").write_text(json.dumps(content))
    plain = DataFolders(folders.datadir, imdbdir, folders.cachedir)
    with pytest.raises(SpotTuneError, match="image id 1; expected ids of svhn, from 80000000 on"):
        load_images(TASK_BY_NAME["svhn"], ["train"], plain, 16)


def test_labels_that_are_all_the_same_are_warned_of(folders, capsys):
    images = load_images(TASK_BY_NAME["svhn"], ["train"], folders, 16)
    images.labels[:] = 1
    require_labels(images, "svhn")
    assert "all 12 images of svhn have the same label" in capsys.readouterr().out


def test_splits_with_other_categories_are_not_merged(folders, decathlon_root, tmp_path):
    imdbdir = tmp_path / "annotations"
    shutil.copytree(decathlon_root / "annotations", imdbdir)
    path = imdbdir / "svhn_val.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 80_000_099, "name": "x", "supercategory": "svhn"})
    path.write_text(json.dumps(content))
    mixed = DataFolders(folders.datadir, imdbdir, folders.cachedir)
    with pytest.raises(SpotTuneError, match="3 categories that differ from the 2"):
        load_images(TASK_BY_NAME["svhn"], ["train", "val"], mixed, 16)


def test_uncropped_images_must_have_one_size():
    images = SimpleNamespace(heights=np.array([144, 144, 140]), widths=np.array([72, 72, 72]))
    with pytest.raises(SpotTuneError, match="one size"):
        view_of(TASK_BY_NAME["daimlerpedcls"], images, 72, 64, training=True)
