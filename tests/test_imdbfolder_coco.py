"""Annotations -> examples -> what the network sees of them."""

import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import edit_json, refusal

from decathlon import TASK_BY_NAME
from image_cache.orders import View
from image_cache.packed import DataFolders
from imdbfolder_coco import UNLABELLED, load_images, read_annotations, require_labels, view_of
from runtime.errors import SpotTuneError

SVHN = TASK_BY_NAME["svhn"]


@pytest.fixture
def edited(folders, tmp_path):
    """A copy of one of svhn's annotation files, after `change` of its content."""

    def edit(change, split="train"):
        path = tmp_path / f"svhn_{split}.json"
        shutil.copyfile(folders.imdbdir / path.name, path)
        edit_json(path, change)
        return path

    return edit


RANDOM = View(8, 8, random=True)
CENTRE = View(16, 16)


@pytest.mark.parametrize(
    ("task", "training", "test"),
    [
        ("aircraft", RANDOM, CENTRE),
        ("cifar100", RANDOM, CENTRE),
        ("daimlerpedcls", View(32, 16), View(32, 16)),
        ("dtd", RANDOM, CENTRE),
        ("gtsrb", CENTRE, CENTRE),
        ("imagenet12", View(8, 8, random=True, flip=True), CENTRE),
        ("omniglot", CENTRE, CENTRE),
        ("svhn", CENTRE, CENTRE),
        ("ucf101", RANDOM, CENTRE),
        ("vgg-flowers", RANDOM, CENTRE),
    ],
)
def test_crops_of_each_task_are_those_of_the_released_code(task, training, test, folders):
    images = load_images(TASK_BY_NAME[task], ["train", "val"], folders, 16)
    assert view_of(TASK_BY_NAME[task], images, 16, 8, training=True) == training
    assert view_of(TASK_BY_NAME[task], images, 16, 8, training=False) == test


def test_uncropped_images_must_have_one_size():
    images = SimpleNamespace(heights=np.array([144, 144, 140]), widths=np.array([72, 72, 72]))
    with pytest.raises(SpotTuneError, match="one size"):
        view_of(TASK_BY_NAME["daimlerpedcls"], images, 72, 64, training=True)


def test_labels_are_joined_by_image_id_and_not_by_position(folders, edited):
    def reverse(content):
        content["annotations"].reverse()
        content["categories"].reverse()

    straight = read_annotations(folders.imdbdir / "svhn_train.json")
    assert straight.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert np.array_equal(read_annotations(edited(reverse)).labels, straight.labels)


def test_classes_are_the_files_own_categories(edited):
    """A folder with fewer classes than the official ones, with gaps between their ids."""

    def spread(content):
        for entry in content["categories"] + content["annotations"]:
            key = "category_id" if "category_id" in entry else "id"
            entry[key] = 80_000_000 + 3 * (entry[key] - 80_000_000)

    annotations = read_annotations(edited(spread))
    assert annotations.categories.tolist() == [80_000_003, 80_000_006, 80_000_009]
    assert set(annotations.labels.tolist()) == {0, 1, 2}


def test_test_images_have_no_label(folders):
    assert set(load_images(SVHN, ["test"], folders, 16).labels) == {UNLABELLED}


def test_train_and_val_merge_in_this_order(folders):
    train, val = (load_images(SVHN, [split], folders, 16) for split in ("train", "val"))
    merged = load_images(SVHN, ["train", "val"], folders, 16)
    assert merged.image_ids.tolist() == [*train.image_ids, *val.image_ids]
    first = np.array([0])
    ours, theirs = (
        images.crops(np.array([len(images) - 1]), first, first, 16, 16) for images in (merged, val)
    )
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["images"].clear(), "lists no images"),
        (lambda c: c["images"][0].pop("id"), "id"),
        (lambda c: c["images"][0].pop("file_name"), "file_name"),
        (lambda c: c["images"].append(c["images"][0]), "repeated"),
        (lambda c: c["images"][0].update(id="1"), "integers"),
        (lambda c: c["annotations"].pop(), "has 0 labels"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "has 2 labels"),
        (lambda c: c["annotations"][0].update(category_id=10_000_001), "category 10000001"),
        (lambda c: c["annotations"][0].update(category_id="x" * 3000), "category_id"),
        (lambda c: c["images"][0].update(file_name="/etc/passwd"), "outside"),
        (lambda c: c["images"][0].update(file_name="data/../../../etc/passwd"), "outside"),
        (lambda c: c["images"][0].update(file_name="data\\..\\..\\x.jpg"), "outside"),
        (lambda c: c.update(annotations=None), "annotations is None; expected a list"),
        (lambda c: c.update(images=3), "TypeError"),
        (lambda c: c.pop("categories"), "categories"),
    ],
)
def test_a_broken_annotation_file_is_refused_in_one_line(change, words, edited):
    path = edited(change)
    told = refusal(read_annotations, path)
    assert str(path) in told
    assert words in told


def test_ids_that_share_a_hash_are_refused_before_they_cost_time(edited):
    """Python's hash of these is 0; a dict of 100,000 of them would take minutes."""
    same_hash = [{"id": (2**61 - 1) * k} for k in range(100_000)]
    path = edited(lambda content: content.update(categories=same_hash))
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


def test_ids_of_another_task_are_refused_before_any_image_is_decoded(folders, edited):
    """The ids 1 to N of a plain COCO file, for example."""

    def from_1(content):
        for number, image in enumerate(content["images"], 1):
            image.update(id=number, file_name="data/nowhere.jpg")
        for number, label in enumerate(content["annotations"], 1):
            label["image_id"] = number

    plain = DataFolders(folders.datadir, edited(from_1).parent, folders.cachedir)
    with pytest.raises(SpotTuneError, match="image id 1; expected ids of svhn, from 80000000 on"):
        load_images(SVHN, ["train"], plain, 16)


def test_labels_that_are_all_the_same_are_warned_of(folders, capsys):
    images = load_images(SVHN, ["train"], folders, 16)
    images.labels[:] = 1
    require_labels(images, "svhn")
    assert "all 12 images of svhn have the same label" in capsys.readouterr().out


def test_splits_with_other_categories_are_not_merged(folders, edited):
    edited(lambda content: content["categories"].append({"id": 80_000_099, "name": "x"}), "val")
    imdbdir = edited(lambda content: None).parent
    mixed = DataFolders(folders.datadir, imdbdir, folders.cachedir)
    with pytest.raises(SpotTuneError, match="4 categories that differ from the 3"):
        load_images(SVHN, ["train", "val"], mixed, 16)
