"""Views that resize boxes, against torchvision's transforms; and draws of balanced classes."""

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import InterpolationMode, resized_crop

from image_cache.batches import TaskData
from image_cache.orders import View, evaluation_order, training_order
from image_cache.packed import PackedImages
from runtime.distributed import ALONE

CPU = torch.device("cpu")
RAW = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # leaves the bytes as they are


def random_images(count=6, height=40, width=52):
    draws = np.random.default_rng(0)
    arrays = [draws.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]
    return arrays, PackedImages.of_arrays(arrays, 3)


def test_a_random_box_is_resized_as_torchvision_does():
    arrays, images = random_images()
    view = View(16, 16, flip=True, min_area=0.3, interpolation="bicubic")
    data = TaskData(images, view, RAW, CPU)
    order = training_order(images, view, 0, "birds", 1)
    (batch,) = data.training_batches(100, (0, "birds", 1), "train", 0, ALONE)
    for place, index in enumerate(order.indices):
        box = (order.tops[place], order.lefts[place], order.heights[place], order.widths[place])
        pixels = torch.from_numpy(arrays[index]).permute(2, 0, 1)
        mode = InterpolationMode.BICUBIC
        expected = resized_crop(pixels, *map(int, box), [16, 16], mode, antialias=True)
        expected = expected.flip(2) if order.flips[place] else expected
        assert torch.equal(batch.images_N3HW[place].round().to(torch.uint8), expected)


def test_boxes_have_at_least_the_smallest_area_and_usual_shapes_and_lie_inside():
    _, images = random_images(400)
    order = training_order(images, View(16, 16, min_area=0.3), 0, "birds", 1)
    areas = order.heights * order.widths / (40 * 52)
    assert 0.28 < areas.min() < 0.4  # whole pixels
    assert areas.max() > 0.9
    ratios = order.widths / order.heights
    assert 0.7 < ratios.min() < 0.85
    assert 1.2 < ratios.max() < 1.42
    assert (order.tops >= 0).all()
    assert (order.tops + order.heights <= 40).all()
    assert (order.lefts + order.widths <= 52).all()


def test_boxes_are_those_of_seed_task_and_epoch():
    _, images = random_images(20)
    view = View(16, 16, min_area=0.1)
    first, again = (training_order(images, view, 0, "birds", 1) for _ in range(2))
    assert np.array_equal(first.heights, again.heights)
    for seed in ((1, "birds", 1), (0, "cars", 1), (0, "birds", 2)):
        assert not np.array_equal(first.heights, training_order(images, view, *seed).heights)


def test_drawing_boxes_leaves_pytorchs_own_generator_as_it_was():
    _, images = random_images()
    before = torch.random.get_rng_state()
    training_order(images, View(16, 16, min_area=0.1), 0, "birds", 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_squeezed_pictures_are_seen_whole_in_evaluation():
    arrays, images = random_images(3, 40, 40)
    view = View(16, 16, whole=True, interpolation="bilinear")
    order = evaluation_order(images, view)
    assert order.heights.tolist() == [40] * 3
    (batch,) = TaskData(images, view, RAW, CPU).evaluation_batches(10, "val")
    for seen, pixels in zip(batch.images_N3HW, arrays, strict=True):
        whole = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(whole)).permute(2, 0, 1).int()
        assert (seen.round().int() - expected).abs().max() <= 1  # Pillow rounds in between


def test_balanced_draws_come_from_all_classes_alike_and_differ_by_epoch():
    _, images = random_images(1000, 2, 2)
    images.labels[:] = [0] * 800 + [1] * 150 + [2] * 50
    view = View(2, 2)
    order = training_order(images, view, 0, "birds", 1, balanced=True)
    counts = np.bincount(images.labels[order.indices])
    assert len(order.indices) == 1000
    assert abs(counts - 1000 / 3).max() < 60  # four standard deviations
    other = training_order(images, view, 0, "birds", 2, balanced=True)
    assert not np.array_equal(order.indices, other.indices)


def test_chosen_images_of_several_parts_keep_their_pixels_and_labels():
    arrays, first = random_images(3, 4, 4)
    others, second = random_images(2, 4, 5)
    both = PackedImages.merged([first, second])
    chosen = both.chosen([0, 2, 4])
    assert chosen.image_ids.tolist() == [0, 2, 1]
    corner = np.zeros(1, dtype=np.int64)
    for place, expected in enumerate((arrays[0], arrays[2], others[1])):
        height, width = expected.shape[:2]
        (pixels,) = chosen.crops(np.array([place]), corner, corner, height, width)
        assert np.array_equal(pixels, expected)
