"""How much work a task is, compared with the others, so that the longest can start first.

The measure is the number of pixels that training looks at: a convolution's time grows with it. What
evaluation and start-up add is left out.
"""

from dataclasses import dataclass

import numpy as np

from decathlon import DecathlonTask, TrainCrop
from engine.settings import TRAIN_SPLITS, Recipe
from image_cache.decoding import decode_image
from image_cache.packed import DataFolders
from imdbfolder_coco import annotation_file, read_annotations, view_of


@dataclass(frozen=True)
class Sizes:
    """Heights and widths of images in pixels."""

    heights: np.ndarray
    widths: np.ndarray


OFFICIAL_WHOLE = Sizes(np.array([144]), np.array([72]))  # daimlerpedcls at the paper's 72 pixels


def pixels_of_image(task: DecathlonTask, sizes: Sizes, resize: int, crop: int) -> int:
    """What training sees of one image; `sizes` matters only where images are not cropped."""
    view = view_of(task, sizes, resize, crop, training=True)
    return view.height * view.width


def expected_work(task: DecathlonTask, folders: DataFolders, recipe: Recipe, epochs: int) -> int:
    """Pixels in `epochs` epochs on the splits that are trained on, from the annotations.

    Raises SpotTuneError where those break the format.
    """
    splits = TRAIN_SPLITS[recipe.train_split]
    listed = [
        read_annotations(annotation_file(folders.imdbdir, task.name, split)) for split in splits
    ]
    height = width = recipe.resize
    if task.train_crop is TrainCrop.WHOLE:  # all of one size, or the training will say so
        first = decode_image(folders.datadir / listed[0].file_names[0], recipe.resize)
        height, width = first.shape[:2]
    sizes = Sizes(np.array([height]), np.array([width]))
    pixels = pixels_of_image(task, sizes, recipe.resize, recipe.crop)
    return epochs * pixels * sum(len(annotations.image_ids) for annotations in listed)
