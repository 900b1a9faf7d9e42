"""Ten little worlds to draw: made-up pictures that stand in for those of the Visual Decathlon.

A narrow network learns them in minutes. The source (imagenet12) shows things with a shape, a
texture and a colour; the nine targets share some of its edges, colours and textures: planes,
objects, pedestrians, textures, signs, glyphs, digits, motions and flowers.

Each world is a function that draws one image of a kind (its class: 0, 1, 2, ...) on a sketch; what
differs between images of a kind comes from the random generator, and so from the seed.
"""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

MOST_CLASSES = 6  # so many kinds each target task knows how to draw
DETAIL = 3  # drawn this many times larger, then averaged: soft edges

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

# --- Pen and paper ------------------------------------------------------------------------------


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """An RGB colour from hue (once round the circle: 0 to 1), saturation and value (0 to 1)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def grey(value: float) -> Colour:
    return hsv(0, 0, value)


def kind_hue(kind: int, rng: np.random.Generator) -> float:
    """A hue of its own for each kind, a little different in each image."""
    return kind * 0.382 + rng.normal(0, 0.015)  # the golden angle keeps neighbours far apart


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def oval(x: float, y: float, width: float, height: float) -> Points:
    """An ellipse round (x, y); width and height are half axes."""
    angles = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    return [(x + width * math.cos(a), y + height * math.sin(a)) for a in angles]


def star(corners: int, outer: float, inner: float, turn: float = 0.0) -> Points:
    """A star round the middle, its first corner on top; a regular polygon if inner = outer."""
    angles = turn - math.pi / 2 + np.arange(2 * corners) * math.pi / corners
    if inner == outer:
        angles = angles[::2]
    radii = [outer, inner] * corners
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=False)]


@cache
def font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(pixels)


class Sketch:
    """Paper measured in shorter sides from its middle: x and y in -0.5 .. 0.5 are always on it.

    What is drawn is shifted, scaled and turned by a small amount that differs between images.
    """

    def __init__(self, width: int, height: int, rng: np.random.Generator) -> None:
        self.size = (width * DETAIL, height * DETAIL)
        self.unit = min(self.size)
        self.image = Image.new("RGB", self.size)
        self.shift = rng.uniform(-0.05, 0.05, size=2)
        self.scale = rng.uniform(0.88, 1.08)
        self.turn = rng.uniform(-0.12, 0.12)

    def pixels(self, points: Sequence[tuple[float, float]]) -> Points:
        """Where points of the sketch lie in the image."""
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        xy = np.asarray(points, dtype=float) @ np.array([[cos, sin], [-sin, cos]]) * self.scale
        xy = (xy + self.shift) * self.unit + np.array(self.size) / 2
        return [(x, y) for x, y in xy.tolist()]

    def fill(self, points: Points, ink: Colour | Image.Image) -> None:
        """Fill an outline with a colour, or with a picture as large as the paper."""
        mask = Image.new("L", self.size)
        ImageDraw.Draw(mask).polygon(self.pixels(points), fill=255)
        self.image.paste(ink, (0, 0, *self.size), mask)

    def stroke(self, points: Points, ink: Colour, width: float) -> None:
        """Draw a line with round ends and corners."""
        pen, dots = max(1, round(width * self.unit)), self.pixels(points)
        draw = ImageDraw.Draw(self.image)
        draw.line(dots, fill=ink, width=pen, joint="curve")
        for x, y in (dots[0], dots[-1]):
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=ink)

    def text(self, text: str, x: float, height: float, ink: Colour) -> None:
        """Write bold letters with their middle at (x, 0)."""
        size = round(height * self.unit * self.scale)
        mask = Image.new("L", self.size)
        [middle] = self.pixels([(x, 0)])
        ImageDraw.Draw(mask).text(
            middle, text, fill=255, font=font(size), anchor="mm", stroke_width=size // 24
        )
        mask = mask.rotate(-math.degrees(self.turn), Image.Resampling.BILINEAR, center=middle)
        self.image.paste(ink, (0, 0, *self.size), mask)

    def cover(self, field: np.ndarray, low: Colour, high: Colour) -> None:
        """Cover the paper with two colours: `low` where the field is 0, `high` where it is 1."""
        self.image = mixture(field, low, high)


def mixture(field: np.ndarray, low: Colour, high: Colour) -> Image.Image:
    """A picture of two colours, `low` where the field is 0 and `high` where it is 1."""
    share = np.clip(field, 0, 1)[..., None]
    return Image.fromarray(((1 - share) * low + share * high).astype(np.uint8))


def clouds(sketch: Sketch, rng: np.random.Generator, cells: int = 4) -> np.ndarray:
    """A soft random field from 0 to 1, as large as the paper."""
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize(sketch.size, Image.Resampling.BICUBIC))


# --- Ten worlds ---------------------------------------------------------------------------------

# From coordinates in wavelengths to -1 .. 1; u runs to the right and v down, before turning.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "striped": lambda u, v: np.sin(u),
    "dotted": lambda u, v: 2 * (np.cos(u) + np.cos(v)) - 2,
    "chequered": lambda u, v: 6 * np.sin(u) * np.sin(v),
    "ringed": lambda u, v: np.sin(1.3 * np.hypot(u, v)),
    "zigzagged": lambda u, v: 2 * np.sin(v + 1.6 * np.arcsin(np.sin(u))),
    "gridded": lambda u, v: 3 * np.maximum(np.cos(u), np.cos(v)) - 2,
}


def texture(kind: int, sketch: Sketch, rng: np.random.Generator) -> np.ndarray:
    """A field from 0 to 1 with one of the textures; wavelength, phase and a slight turn vary."""
    width, height = sketch.size
    x, y = np.arange(width)[None, :] - width / 2, np.arange(height)[:, None] - height / 2
    turn = rng.uniform(-0.25, 0.25)
    frequency = 2 * math.pi / (rng.uniform(0.18, 0.26) * sketch.unit)
    shift_u, shift_v = rng.uniform(-2, 2, size=2)
    u = frequency * (x * math.cos(turn) + y * math.sin(turn)) + shift_u
    v = frequency * (y * math.cos(turn) - x * math.sin(turn)) + shift_v
    return (list(TEXTURES.values())[kind % len(TEXTURES)](u, v) + 1) / 2


def draw_imagenet12(kind: int, sketch: Sketch, rng: np.random.Generator) -> None:
    """Things with a silhouette and a texture of their own.

    Their colour tells little: a source that knows colours only would teach the targets nothing.
    """
    ground, hue = rng.random(2)
    if rng.random() < 0.3:
        hue = kind_hue(kind, rng)
    sketch.cover(clouds(sketch, rng), hsv(ground, 0.3, 0.35), hsv(ground + 0.2, 0.3, 0.8))
    dark = hsv(hue + 0.08, rng.uniform(0.3, 0.8), rng.uniform(0.05, 0.3))
    skin = mixture(texture(kind, sketch, rng), dark, hsv(hue, rng.uniform(0.1, 0.9), 0.97))
    corners, depth = 3 + kind % 5, (1.0, 0.5, 0.75)[kind % 3]
    sketch.fill(star(corners, 0.45, 0.45 * depth, turn=rng.uniform(-0.4, 0.4)), skin)


def draw_aircraft(kind: int, sketch: Sketch, rng: np.random.Generator) -> None:
    """Planes before a sky: livery, number of engines and height of the tailplane are the kind's."""
    down = np.linspace(0, 1, sketch.size[1])[:, None] + 0.5 * (clouds(sketch, rng, 6) - 0.5)
    sky = rng.uniform(0.52, 0.62)
    sketch.cover(down, hsv(sky, 0.55, rng.uniform(0.6, 0.9)), hsv(sky, 0.12, 0.95))
    sketch.turn *= 1.5
    livery, metal = hsv(kind_hue(kind, rng), 0.9, 0.8), grey(rng.uniform(0.35, 0.5))
    tailplane = -0.24 if kind % 2 else -0.04
    sketch.fill([(-0.44, -0.02), (-0.5, -0.26), (-0.37, -0.26), (-0.2, -0.05)], livery)
    sketch.fill(oval(0, 0, 0.46, 0.09), grey(0.97))
    sketch.fill([(-0.42, 0.0), (0.45, 0.0), (0.3, 0.07), (-0.3, 0.07)], livery)
    sketch.stroke([(-0.3, -0.035), (0.32, -0.035)], grey(0.3), 0.018)
    sketch.fill(box(-0.52, tailplane - 0.015, -0.34, tailplane + 0.02), metal)
    sketch.fill([(0.12, 0.02), (-0.02, 0.02), (-0.26, 0.22), (-0.17, 0.22)], metal)
    for engine in range(kind % 3):
        sketch.fill(oval(0.05 - 0.15 * engine, 0.12 + 0.07 * engine, 0.07, 0.035), livery)


RED, ORANGE, YELLOW = hsv(0, 0.85, 0.85), hsv(0.08, 0.7, 0.9), hsv(0.14, 0.9, 0.95)
GREEN, BLUE, BROWN = hsv(0.33, 0.75, 0.6), hsv(0.6, 0.8, 0.85), hsv(0.07, 0.6, 0.45)
WHITE, DARK = grey(0.97), grey(0.12)

# What each object is put together from, in this order.
OBJECTS: dict[str, tuple[tuple[Points, Colour], ...]] = {
    "apple": (
        (oval(-0.09, 0.05, 0.21, 0.26), RED),
        (oval(0.09, 0.05, 0.21, 0.26), RED),
        (box(-0.02, -0.32, 0.02, -0.15), BROWN),
        (oval(0.11, -0.27, 0.1, 0.05), GREEN),
    ),
    "fish": (
        ([(0.15, 0), (0.4, -0.22), (0.4, 0.22)], BLUE),
        (oval(-0.07, 0, 0.31, 0.2), BLUE),
        (oval(-0.05, 0.05, 0.2, 0.09), WHITE),
        (oval(-0.24, -0.05, 0.035, 0.035), DARK),
    ),
    "house": (
        (box(-0.26, -0.06, 0.26, 0.36), YELLOW),
        ([(-0.36, -0.06), (0, -0.38), (0.36, -0.06)], BROWN),
        (box(-0.05, 0.1, 0.08, 0.36), DARK),
    ),
    "tree": (
        (box(-0.06, 0.1, 0.06, 0.42), BROWN),
        (oval(0, -0.12, 0.22, 0.26), GREEN),
        (oval(-0.15, 0.02, 0.18, 0.16), GREEN),
        (oval(0.15, 0.02, 0.18, 0.16), GREEN),
    ),
    "car": (
        ([(-0.2, -0.02), (-0.12, -0.2), (0.14, -0.2), (0.24, -0.02)], WHITE),
        (box(-0.4, -0.04, 0.4, 0.16), ORANGE),
        (oval(-0.22, 0.17, 0.09, 0.09), DARK),
        (oval(0.22, 0.17, 0.09, 0.09), DARK),
    ),
    "boat": (
        ([(0.02, -0.4), (0.02, 0.1), (0.34, 0.1)], WHITE),
        ([(-0.03, -0.28), (-0.03, 0.1), (-0.25, 0.1)], WHITE),
        ([(-0.4, 0.14), (0.4, 0.14), (0.26, 0.33), (-0.26, 0.33)], RED),
    ),
}


def draw_cifar100(kind: int, sketch: Sketch, rng: np.random.Generator) -> None:
    """Everyday objects, blurred like the tiny photographs that CIFAR's images are."""
    ground = rng.random()
    sketch.cover(clouds(sketch, rng, 3), hsv(ground, 0.25, 0.55), hsv(ground + 0.1, 0.25, 0.95))
    for outline, colour in list(OBJECTS.values())[kind]:
        sketch.fill(outline, colour)
    sketch.image = sketch.image.filter(ImageFilter.GaussianBlur(sketch.unit / 60))


def draw_daimlerpedcls(kind: int, sketch: Sketch, rng: np.random.Generator) -> None:
    """Grey upright streets: kind 0 has posts and boxes in it, kind 1 a pedestrian."""
    low, high = np.sort(rng.uniform(0.2, 0.95, size=2))
    sketch.cover(clouds(sketch, rng, 5), grey(low), grey(high))
    ink = grey(rng.uniform(0, 0.12) if low + high > 1.1 else rng.uniform(0.88, 1))
    (draw_pedestrian if kind else draw_street_furniture)(sketch, rng, ink)


def draw_pedestrian(sketch: Sketch, rng: np.random.Generator, ink: Colour) -> None:
    """A head, a trunk, arms and legs in mid-stride."""
    stride, reach = rng.uniform(0.05, 0.26), rng.uniform(0.1, 0.3)
    sketch.fill(oval(0, -0.6, 0.11, 0.13), ink)
    sketch.fill([(-0.19, -0.44), (0.19, -0.44), (0.13, 0.1), (-0.13, 0.1)], ink)
    sketch.stroke([(-0.16, -0.4), (-0.18 - reach / 2, -0.15), (-0.1 - reach, 0.06)], ink, 0.08)
    sketch.stroke([(0.16, -0.4), (0.18 + reach / 2, -0.15), (0.1 + reach, 0.06)], ink, 0.08)
    sketch.stroke([(-0.06, 0.05), (-stride, 0.4), (-1.3 * stride, 0.75)], ink, 0.12)
    sketch.stroke([(0.06, 0.05), (stride, 0.4), (1.2 * stride, 0.75)], ink, 0.12)


def draw_street_furniture(sketch: Sketch, rng: np.random.Generator, ink: Colour) -> None:
    """One to three posts, each perhaps with a plate, and a low wall."""
    for _ in range(rng.integers(1, 4)):
        x, top, thick = rng.uniform(-0.35, 0.35), rng.uniform(-0.9, -0.3), rng.uniform(0.02, 0.06)
        sketch.fill(box(x - thick, top, x + thick, 1), ink)
        if rng.random() < 0.5:
            plate = rng.uniform(0.1, 0.25)
            sketch.fill(box(x - plate, top, x + plate, top + rng.uniform(0.1, 0.4)), ink)
    wall = rng.uniform(0.45, 0.8)
    sketch.fill(box(-0.7, wall, 0.7, wall + rng.uniform(0.05, 0.2)), ink)


def draw_dtd(kind: int, sketch: Sketch, rng: np.random.Generator) -> None:
    """Nothing but texture, in any two colours."""
    hue = rng.random()
    dark = hsv(hue, rng.uniform(0.3, 0.8), rng.uniform(0.15, 0.4))
    light = hsv(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.1, 0.6), rng.uniform(0.75, 1))
    sketch.cover(texture(kind, sketch, rng), dark, light)


@dataclass(frozen=True)
class Sign:
    """A traffic sign: a regular polygon (40 corners: a disc) with a rim and a mark."""

    corners: int
    turn: float  # of the polygon, in degrees
    rim: Colour
    face: Colour
    mark: str = ""
    mark_colour: Colour = DARK
    mark_height: float = 0.46


SIGNS = {
    "limit 30": Sign(40, 0, RED, WHITE, "30", mark_height=0.34),
    "give way": Sign(3, 180, RED, WHITE),
    "turn right": Sign(40, 0, WHITE, BLUE, ">", WHITE),
    "priority": Sign(4, 0, WHITE, YELLOW),
    "no entry": Sign(40, 0, WHITE, RED, "-", WHITE, mark_height=1.1),
    "danger": Sign(3, 0, RED, WHITE, "!", mark_height=0.36),
}


def draw_gtsrb(kind: int, sketch: Sketch, rng: np.random.Generator) -> None:
    """Traffic signs by day and by dusk."""
    sketch.cover(clouds(sketch, rng, 5), grey(0.05), hsv(rng.uniform(0.05, 0.6), 0.35, 0.55))
    sign = list(SIGNS.values())[kind]
    turn = math.radians(sign.turn)
    sketch.fill(star(sign.corners, 0.42, 0.42, turn), sign.rim)
    face = 0.26 if sign.corners == 3 else 0.33
    sketch.fill(star(sign.corners, face, face, turn), sign.face)
    sketch.text(sign.mark, 0, sign.mark_height, sign.mark_colour)
    light = rng.uniform(0.45, 1)
    sketch.image = sketch.image.point(lambda value: round(value * light))


def draw_omniglot(kind: int, sketch: Sketch, rng: np.random.Generator) -> None:
    """A character of an invented alphabet in white chalk: the same strokes, never the same hand."""
    alphabet = np.random.default_rng([5, kind])  # the characters do not depend on the seed
    for _ in range(3):
        start, bend, end = alphabet.choice([-0.3, 0.0, 0.3], size=(3, 2)) * (0.9, 1.1)
        start, bend, end = (point + rng.normal(0, 0.025, size=2) for point in (start, bend, end))
        t = np.linspace(0, 1, 12)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * 1.4 * bend + t**2 * end
        sketch.stroke([(x, y) for x, y in curve.tolist()], WHITE, rng.uniform(0.05, 0.07))


def draw_svhn(kind: int, sketch: Sketch, rng: np.random.Generator) -> None:
    """A house number: the digit in the middle counts, its neighbours are cut off."""
    wall, contrast = rng.random(), rng.uniform(0.45, 0.6)
    dark, light = hsv(wall, 0.5, 0.85 - contrast), hsv(wall + rng.uniform(0.2, 0.8), 0.3, 0.95)
    ground, ink = (dark, light) if rng.random() < 0.5 else (light, dark)
    sketch.cover(clouds(sketch, rng, 3) * 0.25, ground, grey(0.6))
    sketch.text(str(kind), 0, 0.85, ink)
    for side in (-0.58, 0.58):
        if rng.random() < 0.4:
            sketch.text(str(rng.integers(10)), side, 0.85, ink)
    sketch.image = sketch.image.filter(ImageFilter.GaussianBlur(sketch.unit / 90))


# Where the mover is at time t, from 0 to 1.
MOTIONS: dict[str, Callable[[float], tuple[float, float]]] = {
    "run": lambda t: (0.8 * t - 0.4, 0.1),
    "jump": lambda t: (0.1, 0.35 - 0.75 * t),
    "turn": lambda t: (0.28 * math.cos(6 * t), 0.28 * math.sin(6 * t)),
    "bounce": lambda t: (0.8 * t - 0.4, 0.35 - 0.6 * abs(math.sin(2 * math.pi * t))),
    "dive": lambda t: (0.7 * t - 0.35, 0.7 * t - 0.35),
    "climb": lambda t: (0.7 * t - 0.35, 0.35 - 0.7 * t),
}


def draw_ucf101(kind: int, sketch: Sketch, rng: np.random.Generator) -> None:
    """A motion summed up in one grey picture: where the mover was is dark, where it is, bright."""
    sketch.cover(clouds(sketch, rng, 6), grey(0.45), grey(0.57))
    motion, size = list(MOTIONS.values())[kind], rng.uniform(0.06, 0.09)
    for time in np.linspace(0, 1, 25):
        tint = hsv(rng.random(), 0.15, 0.15 + 0.75 * time)
        sketch.fill(oval(*motion(time), size, 1.3 * size), tint)
    sketch.image = sketch.image.filter(ImageFilter.GaussianBlur(sketch.unit / 80))


@dataclass(frozen=True)
class Flower:
    """Petals round a heart."""

    petals: int
    width: float  # of a petal, as a share of its length
    hue: float
    saturation: float = 0.75


FLOWERS = {
    "daisy": Flower(14, 0.14, 0.15, 0.05),
    "rose": Flower(6, 0.5, 0.97),
    "iris": Flower(3, 0.42, 0.73),
    "sunflower": Flower(18, 0.16, 0.13, 0.95),
    "cornflower": Flower(9, 0.2, 0.62),
    "poppy": Flower(4, 0.65, 0.02, 0.95),
}


def draw_vgg_flowers(kind: int, sketch: Sketch, rng: np.random.Generator) -> None:
    """One flower before dark leaves."""
    leaves = clouds(sketch, rng, 7) * rng.uniform(0.6, 1)
    sketch.cover(leaves, hsv(0.36, 0.8, 0.12), hsv(rng.uniform(0.22, 0.34), 0.6, 0.55))
    flower = list(FLOWERS.values())[kind]
    hue, start = flower.hue + rng.normal(0, 0.012), rng.uniform(0, 6)
    first = oval(0.22, 0, 0.21, 0.42 * flower.width)
    for number in range(flower.petals):
        angle = start + 2 * math.pi * number / flower.petals
        cos, sin = math.cos(angle), math.sin(angle)
        petal = [(x * cos - y * sin, x * sin + y * cos) for x, y in first]
        sketch.fill(petal, hsv(hue, flower.saturation, 0.98 if number % 2 else 0.82))
    sketch.fill(oval(0, 0, 0.1, 0.1), BROWN if flower.hue < 0.145 else YELLOW)


@dataclass(frozen=True)
class World:
    """How one task's images are drawn."""

    draw: Callable[[int, Sketch, np.random.Generator], None]
    kinds: Sequence[str] = ()  # names of the classes; numbered where there are none
    width_to_height: tuple[float, float] = (0.8, 1.25)  # drawn between the two
    mode: str = "RGB"  # or "L", single-channel


SQUARE, UPRIGHT = (1.0, 1.0), (0.5, 0.5)
WORLDS = {
    "aircraft": World(draw_aircraft, width_to_height=(1.1, 1.35)),
    "cifar100": World(draw_cifar100, tuple(OBJECTS)),
    "daimlerpedcls": World(draw_daimlerpedcls, ("nonped", "ped"), UPRIGHT, mode="L"),
    "dtd": World(draw_dtd, tuple(TEXTURES), width_to_height=(0.7, 1.4)),
    "gtsrb": World(draw_gtsrb, tuple(SIGNS), SQUARE),
    "imagenet12": World(draw_imagenet12),
    "omniglot": World(draw_omniglot, width_to_height=SQUARE, mode="L"),
    "svhn": World(draw_svhn, tuple("0123456789"), SQUARE),
    "ucf101": World(draw_ucf101, tuple(MOTIONS), width_to_height=(1.05, 1.3)),
    "vgg-flowers": World(draw_vgg_flowers, tuple(FLOWERS)),
}


def draw_image(world: World, kind: int, side: int, rng: np.random.Generator) -> Image.Image:
    """One image whose shorter side is `side`."""
    ratio = math.exp(rng.uniform(*map(math.log, world.width_to_height)))
    width, height = (round(side * max(ratio, 1)), round(side * max(1 / ratio, 1)))
    sketch = Sketch(width, height, rng)
    world.draw(kind, sketch, rng)
    pixels = np.asarray(sketch.image.reduce(DETAIL), dtype=float)
    pixels = pixels + rng.normal(0, 5, size=pixels.shape)  # grain, so that no two areas are equal
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(world.mode)
