"""Ten little worlds to draw: made-up pictures that stand in for those of the Visual Decathlon.

A kind (a class: 0, 1, 2 ...) of a task is a figure: a few coloured polygons, drawn at random but
always the same. Each image shows the figure of its kind a little bent, turned and shifted. Tasks
differ in the ground and in how the figure is placed: once, as tiles, in a row, or in a ring like
petals. A narrow network learns them in minutes, since all tasks share edges and colours.

Points are complex numbers in a square from -1 - 1j, the upper left, to 1 + 1j.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.ImageDraw import Draw

from decathlon import DecathlonTask

SIDE = 100  # pixels of the square before it gets its size
POLYGONS, CORNERS = 3, 4  # of a figure
BEND = 0.07  # how far each corner moves from image to image, on average

Rng = np.random.Generator


@dataclass(frozen=True)
class World:
    """How the images of a task look."""

    ground: tuple[int, int, int] | None  # red, green and blue; None: another one in each image
    # Of the figure: each is turned and made smaller by one number, and shifted by the other.
    copies: Sequence[tuple[complex, complex]] = ((1, 0),)
    ratios: tuple[float, float] = (1.0, 1.0)  # between which width : height lies
    mode: str = "RGB"
    pen: int = 0  # width of the outlines, in pixels; 0: polygons are filled


TURNS = np.exp(2j * np.pi * np.arange(6) / 6).tolist()
GRID = [complex(x, y) for x in (-0.75, 0, 0.75) for y in (-0.75, 0, 0.75)]
WORLDS = {
    "aircraft": World((120, 180, 230), ratios=(1.1, 1.35)),
    "cifar100": World(None, [(0.8, 0)], (0.8, 1.25)),
    "daimlerpedcls": World((60, 60, 60), ratios=(0.5, 0.5), mode="L"),
    "dtd": World(None, [(0.4, place) for place in GRID], (0.7, 1.4)),
    "gtsrb": World((50, 60, 40), [(turn, 0) for turn in TURNS[::3]]),
    "imagenet12": World(None, ratios=(0.8, 1.25)),
    "omniglot": World((0, 0, 0), mode="L", pen=5),
    "svhn": World((200, 190, 170), [(0.6, shift) for shift in (-1, 0, 1)]),
    "ucf101": World((90, 90, 90), [(0.5, shift / 5) for shift in range(-2, 3)], (1.1, 1.3)),
    "vgg-flowers": World((40, 110, 40), [(turn / 2, turn / 2) for turn in TURNS], (0.8, 1.25)),
}


def draw_image(task: DecathlonTask, kind: int, side: int, rng: Rng) -> Image.Image:
    """One image whose shorter side is `side`."""
    world = WORLDS[task.name]
    image = clouds(world.ground or rng.uniform(40, 220, size=3), rng)
    figure, hues = figure_of(task, kind)
    bend, shift = complex_normal(rng, BEND, figure.shape), complex_normal(rng, 0.06)
    figure = (figure + bend) * np.exp(1j * rng.normal(0, 0.1)) + shift
    hues = hues + rng.normal(0, 0.02, size=hues.shape)
    for factor, place in world.copies:
        for corners, hue in zip(factor * figure + place, hues, strict=True):
            points = [((z.real + 1) * SIDE / 2, (z.imag + 1) * SIDE / 2) for z in corners]
            colour = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, 0.7, 0.95))
            fill = None if world.pen else colour
            Draw(image).polygon(points, fill, outline=colour, width=world.pen)
    ratio = rng.uniform(*world.ratios)
    size = round(side * max(ratio, 1)), round(side * max(1 / ratio, 1))
    pixels = np.asarray(image.resize(size, Image.Resampling.BOX), dtype=float)
    pixels = pixels + rng.normal(0, 5, size=pixels.shape)  # grain, so that no two areas are equal
    return as_image(pixels).convert(world.mode)


def figure_of(task: DecathlonTask, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """The figure of a kind, POLYGONS x CORNERS points, and the hue of each polygon, 0 to 1."""
    rng = np.random.default_rng([task.number, kind])  # does not depend on the seed
    angles = np.sort(rng.uniform(0, 2 * np.pi, size=(POLYGONS, CORNERS)))
    centres = rng.uniform(-0.4, 0.4, size=(2, POLYGONS, 1))
    return 0.55 * np.exp(1j * angles) + centres[0] + 1j * centres[1], rng.random(POLYGONS)


def complex_normal(rng: Rng, deviation: float, shape: tuple[int, ...] = ()) -> np.ndarray:
    return rng.normal(0, deviation, shape) + 1j * rng.normal(0, deviation, shape)


def clouds(colour: Sequence[float], rng: Rng) -> Image.Image:
    """A square in about this colour (red, green, blue), lighter here and darker there."""
    coarse = as_image(colour + rng.normal(0, 25, size=(4, 4, 1)))
    return coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
