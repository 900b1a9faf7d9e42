"""Annotations -> examples -> batches, against torchvision's transforms on Pillow images."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from decathlon import TASK_BY_NAME, TASKS
from image_cache.batches import View, evaluation_order, normalise, training_order
from image_cache.cutting import ResidentImages, cutter_for
from image_cache.decoding import decode_image
from image_cache.packed import DataFolders, PackedImages
from imdbfolder_coco import UNLABELLED, load_images, read_annotations, view_of
from runtime.errors import SpotTuneError


@pytest.fixture
def folders(decathlon_root, tmp_path):
    return DataFolders(decathlon_root, decathlon_root / "annotations", tmp_path / "packed")


def batches(order, images, view, batch_size):
    cut = cutter_for(images, torch.device("cpu"))
    return order.batches(images.labels, cut, view, batch_size)


def image_files(root, task, split):
    """Path and category by image id, read straight from the JSON."""
    suffix = "test_stripped" if split == "test" else split
    content = json.loads((root / "annotations" / f"{task}_{suffix}.json").read_text())
    category_of = {a["image_id"]: a["category_id"] for a in content.get("annotations", [])}
    return {i["id"]: (root / i["file_name"], category_of.get(i["id"])) for i in content["images"]}


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_test_images_are_those_of_torchvisions_road_bit_for_bit(task, folders, decathlon_root):
    images = load_images(TASK_BY_NAME[task], ["val"], folders, 8)
    view = view_of(TASK_BY_NAME[task], images, 8, 8, training=False)
    mean_std = ((0.48, 0.45, 0.4), (0.2, 0.21, 0.25))
    steps = [transforms.Resize(8), transforms.CenterCrop((view.height, view.width))]
    road = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(*mean_std)])
    files = image_files(decathlon_root, task, "val")
    seen = 0
    for batch in batches(evaluation_order(images, view), images, view, 3):
        mean, std = (torch.tensor(row).view(3, 1, 1) for row in mean_std)
        ours = normalise(batch.images_NHW3, mean, std)
        for image_id, pixels in zip(images.image_ids[batch.positions], ours, strict=True):
            expected = road(Image.open(files[image_id][0]).convert("RGB"))
            assert torch.equal(pixels, expected)
            seen += 1
    assert seen == len(files)


def test_a_training_batch_holds_windows_of_the_whole_image(folders, decathlon_root):
    images = load_images(TASK_BY_NAME["aircraft"], ["train"], folders, 16)
    view = View(8, 8, random=True)
    order = training_order(images, view, 0, "aircraft", 1)
    files = image_files(decathlon_root, "aircraft", "train")
    (batch,) = batches(order, images, view, 1000)
    for position, index in enumerate(order.indices):
        whole = decode_image(files[images.image_ids[index]][0], 16)
        top, left = order.tops[position], order.lefts[position]
        window = whole[top : top + 8, left : left + 8]
        assert np.array_equal(batch.images_NHW3[position].numpy(), window)
        assert batch.labels_N[position] == images.labels[index]


def test_random_windows_reach_every_corner_evenly():
    images = blank_images(heights=[72] * 20_000, widths=[100] * 20_000)
    order = training_order(images, View(64, 64, random=True), 0)
    for corners, most in ((order.tops, 8), (order.lefts, 36)):
        counts = np.bincount(corners, minlength=most + 1)
        assert len(counts) == most + 1
        assert counts == pytest.approx(20_000 / (most + 1), rel=0.2)
    assert abs(np.corrcoef(order.tops, order.lefts)[0, 1]) < 0.05


def blank_images(heights, widths):
    index = np.zeros(
        len(heights), dtype=[(n, "<i8") for n in ("offset", "image_id", "label", "height", "width")]
    )
    index["height"], index["width"] = heights, widths
    return PackedImages([np.zeros(0, np.uint8)], [index], np.array([1]))


def test_an_epoch_is_every_image_once_in_an_order_of_its_own():
    images, view = blank_images([8] * 50, [8] * 50), View(8, 8)
    first, again, second = (training_order(images, view, 0, "svhn", epoch) for epoch in (1, 1, 2))
    assert sorted(first.indices) == list(range(50))
    assert np.array_equal(first.indices, again.indices)
    assert not np.array_equal(first.indices, second.indices)
    other_task = training_order(images, view, 0, "dtd", 1)
    assert not np.array_equal(first.indices, other_task.indices)


def test_only_the_source_is_flipped_and_half_of_its_images(folders):
    images = load_images(TASK_BY_NAME["imagenet12"], ["train"], folders, 16)
    view = view_of(TASK_BY_NAME["imagenet12"], images, 16, 8, training=True)
    assert view.flip
    order = training_order(images, view, 0)
    assert 0.2 < order.flips.mean() < 0.8
    plain = View(8, 8, random=True)
    (flipped,), (straight,) = (batches(order, images, v, 1000) for v in (view, plain))
    assert torch.equal(flipped.images_NHW3, straight.images_NHW3)  # the order holds the flips
    (unflipped,) = batches(training_order(images, plain, 0), images, plain, 1000)
    for position, is_flipped in enumerate(order.flips):
        expected = unflipped.images_NHW3[position]
        expected = expected.flip(1) if is_flipped else expected
        assert torch.equal(flipped.images_NHW3[position], expected)


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
        "number as path": lambda: images[0].update(file_name=3),
        "name with an escape code": lambda: images[0].update(file_name="data/\x1b[2J.jpg"),
        "name with a line break": lambda: images[0].update(file_name="data/a\nb.jpg"),
        "name that is no text": lambda: images[0].update(file_name="data/\ud800.jpg"),
        "name with a zero": lambda: images[0].update(file_name="data/a.jpg\0.png"),
        "name without end": lambda: images[0].update(file_name="data/" + "x/" * 3000),
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
        ("image twice", "more than once"),
        ("text as id", "integers"),
        ("name with an escape code", "cannot be printed"),
        ("name with a line break", "cannot be printed"),
        ("name that is no text", "cannot be printed"),
        ("name with a zero", "cannot be printed"),
        ("name without end", "too long"),
        ("category without end", "category_id"),
        ("label of a list", "category_id"),
        ("label missing", "has 0 labels"),
        ("label twice", "has 2 labels"),
        ("unknown category", "category 10000001"),
        ("annotation without image", "image_id"),
        ("category without id", "id"),
        ("absolute path", "outside"),
        ("path outside", "outside"),
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
    images = blank_images(heights=[144, 144, 140], widths=[72, 72, 72])
    with pytest.raises(SpotTuneError, match="one size"):
        view_of(TASK_BY_NAME["daimlerpedcls"], images, 72, 64, training=True)


def test_pixels_that_lie_on_the_device_are_cut_there_to_the_same_bytes(folders):
    """The road of a GPU with room for them, walked on a CPU; two files, merged."""
    images = load_images(TASK_BY_NAME["aircraft"], ["train", "val"], folders, 16)
    resident = ResidentImages(images, torch.device("cpu"))
    order = training_order(images, View(16, 8, random=True), 0)
    cut = (order.indices, order.tops, order.lefts, 16, 8)
    assert np.array_equal(resident.cut(*cut).numpy(), images.crops(*cut))
    with pytest.raises(IndexError):
        resident.cut(order.indices, order.tops + 1, order.lefts, 16, 8)
