"""Orders, windows and batches, against torchvision's transforms on Pillow images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from decathlon import TASK_BY_NAME, TASKS
from image_cache.batches import TaskData
from image_cache.decoding import Reading, decode_image
from image_cache.orders import View, evaluation_order, training_order
from image_cache.packed import PackedImages
from imdbfolder_coco import load_images, view_of
from runtime.distributed import ALONE, Group

CPU = torch.device("cpu")
MEAN_STD = ((0.48, 0.45, 0.4), (0.2, 0.21, 0.25))
RAW = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # leaves the bytes as they are


def image_files(root, task, split):
    """The path of each image by its id, read straight from the JSON."""
    content = json.loads((root / "annotations" / f"{task}_{split}.json").read_text())
    return {image["id"]: root / image["file_name"] for image in content["images"]}


def blank_images(count, height, width):
    """Images of one size without pixels, for the draws alone."""
    fields = ("offset", "image_id", "label", "height", "width")
    index = np.zeros(count, dtype=[(name, "<i8") for name in fields])
    index["height"], index["width"] = height, width
    return PackedImages([np.zeros(0, np.uint8)], [index], np.array([1]))


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_evaluation_images_are_those_of_torchvision_bit_for_bit(task, folders, decathlon_root):
    images = load_images(TASK_BY_NAME[task], ["val"], folders, 16)
    view = view_of(TASK_BY_NAME[task], images, 16, 8, training=False)
    as_torchvision = transforms.Compose(
        [
            transforms.Resize(16),
            transforms.CenterCrop((view.height, view.width)),
            transforms.ToTensor(),
            transforms.Normalize(*MEAN_STD),
        ]
    )
    files = image_files(decathlon_root, task, "val")
    seen = []
    for batch in TaskData(images, view, MEAN_STD, CPU).evaluation_batches(3, "val"):
        for image_id, pixels in zip(batch.image_ids, batch.images_N3HW, strict=True):
            expected = as_torchvision(Image.open(files[image_id]).convert("RGB"))
            assert torch.equal(pixels, expected)
            seen.append(image_id)
    assert seen == images.image_ids.tolist()


def test_a_training_batch_holds_windows_of_the_whole_image(folders, decathlon_root):
    images = load_images(TASK_BY_NAME["aircraft"], ["train"], folders, 16)
    view = View(8, 8, random=True)
    order = training_order(images, view, 0, "aircraft", 1)
    files = image_files(decathlon_root, "aircraft", "train")
    data = TaskData(images, view, RAW, CPU)
    (batch,) = data.training_batches(1000, (0, "aircraft", 1), "train", 0, ALONE)
    label_of = dict(zip(images.image_ids, images.labels, strict=True))
    for position, image_id in enumerate(batch.image_ids):
        whole = decode_image(files[image_id], Reading(16))
        top, left = order.tops[position], order.lefts[position]
        window = torch.tensor(whole[top : top + 8, left : left + 8]).permute(2, 0, 1)
        assert torch.equal(batch.images_N3HW[position].round(), window.float())
        assert batch.labels_N[position] == label_of[image_id]


def test_random_windows_reach_every_corner_evenly():
    order = training_order(blank_images(20_000, 72, 100), View(64, 64, random=True), 0)
    for corners, most in ((order.tops, 8), (order.lefts, 36)):
        counts = np.bincount(corners, minlength=most + 1)
        assert len(counts) == most + 1
        assert counts == pytest.approx(20_000 / (most + 1), rel=0.2)
    assert abs(np.corrcoef(order.tops, order.lefts)[0, 1]) < 0.05


def test_each_epoch_task_and_seed_has_an_order_crops_and_flips_of_its_own():
    images, view = blank_images(200, 72, 100), View(64, 64, random=True, flip=True)
    first = training_order(images, view, 0, "svhn", 1)
    again = training_order(images, view, 0, "svhn", 1)
    assert sorted(first.indices) == list(range(200))
    others = [(0, "svhn", 2), (0, "dtd", 1), (1, "svhn", 1)]
    for drawn in ("indices", "tops", "lefts", "flips"):
        assert np.array_equal(getattr(first, drawn), getattr(again, drawn))
        for seed in others:
            other = getattr(training_order(images, view, *seed), drawn)
            assert np.mean(getattr(first, drawn) == other) < 0.7, (drawn, seed)


def test_half_of_the_images_are_mirrored_where_the_view_says_so(folders):
    images = load_images(TASK_BY_NAME["imagenet12"], ["train"], folders, 16)
    plain, mirrored = (View(8, 8, random=True, flip=flip) for flip in (False, True))
    order = training_order(images, mirrored, 0)
    assert 0.2 < order.flips.mean() < 0.8
    assert not training_order(images, plain, 0).flips.any()
    (straight,), (flipped,) = (
        TaskData(images, view, RAW, CPU).training_batches(1000, (0,), "train", 0, ALONE)
        for view in (plain, mirrored)
    )
    pairs = zip(order.flips, straight.images_N3HW, flipped.images_N3HW, strict=True)
    for is_flipped, before, after in pairs:
        assert torch.equal(after, before.flip(2) if is_flipped else before)


def test_evaluation_never_draws():
    order = evaluation_order(blank_images(3, 72, 80), View(64, 64, random=True, flip=True))
    assert order.indices.tolist() == [0, 1, 2]
    assert (order.tops.tolist(), order.lefts.tolist()) == ([4] * 3, [8] * 3)
    assert not order.flips.any()


def test_an_epoch_is_entered_in_the_middle_with_the_same_batches(folders):
    images = load_images(TASK_BY_NAME["dtd"], ["train"], folders, 16)
    data = TaskData(images, View(8, 8, random=True), MEAN_STD, CPU)
    whole = list(data.training_batches(5, (0, "dtd", 3), "train", 0, ALONE))
    rest = list(data.training_batches(5, (0, "dtd", 3), "train", 2, ALONE))
    assert [len(batch.labels_N) for batch in whole] == [5, 5, 2]
    assert torch.equal(whole[2].images_N3HW, rest[0].images_N3HW)
    assert whole[2].positions == rest[0].positions == slice(10, 12, 1)


def test_processes_of_a_group_share_out_each_batch(folders):
    images = load_images(TASK_BY_NAME["dtd"], ["train"], folders, 16)
    data = TaskData(images, View(16, 16), MEAN_STD, CPU)
    (alone,) = data.training_batches(12, (0,), "train", 0, ALONE)
    (first,), (second,) = (
        data.training_batches(12, (0,), "train", 0, Group(rank, 2)) for rank in (0, 1)
    )
    assert torch.equal(first.images_N3HW, alone.images_N3HW[::2])
    assert torch.equal(second.labels_N, alone.labels_N[1::2])
    for batch in (first, second):  # a line about the batch names the same images on all
        assert batch.image_ids.tolist() == alone.image_ids.tolist()


def test_pixels_that_lie_on_the_device_are_cut_there_to_the_same_bytes(folders):
    """What a GPU with room does, on a CPU; two packs, merged."""
    images = load_images(TASK_BY_NAME["aircraft"], ["train", "val"], folders, 16)
    host, resident = (TaskData(images, View(16, 8, random=True), RAW, CPU) for _ in range(2))
    resident.put_on_device()
    order = training_order(images, host.view, 0)
    everything = slice(0, len(images))
    assert torch.equal(resident.windows(order, everything), host.windows(order, everything))
    order.tops[3] += 1
    for data in (host, resident):
        with pytest.raises(IndexError):
            data.windows(order, everything)
