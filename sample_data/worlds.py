"""Ten little worlds to draw: made-up pictures that stand in for those of the Visual Decathlon.

A narrow network learns them in minutes. The source (imagenet12) shows things with a shape, a
texture and a colour; the nine targets share some of its edges, colours and textures.

Each function draws an image of a kind (its class: 0, 1, 2 ...) on a transparent square of SIDE
pixels, and returns the ground on which that is then put, a little shifted and turned.
"""

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageFont
from PIL.ImageDraw import Draw, ImageDraw

MOST_CLASSES = 6  # kinds that each target can draw; the source draws twice as many
SIDE = 100

Rng = np.random.Generator
Colour = tuple[float, ...]
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """An RGB colour from hue (once round the circle: 0 to 1), saturation and value (0 to 1)."""
    return tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def kind_hue(kind: int, rng: Rng) -> float:
    """A hue for each kind, a little different in each image; the golden angle keeps them apart."""
    return kind * 0.382 + rng.normal(0, 0.015)


def mixture(field: np.ndarray, low: Colour, high: Colour) -> Image.Image:
    """A picture in two colours: `low` where the field is 0, `high` where it is 1."""
    share = np.clip(field, 0, 1)[..., None]
    return Image.fromarray(((1 - share) * low + share * high).astype(np.uint8))


def clouds(rng: Rng, low: Colour, high: Colour) -> Image.Image:
    coarse = Image.fromarray(rng.random((4, 4)).astype(np.float32))
    return mixture(np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)), low, high)


# From coordinates in wavelengths to -1 .. 1.
TEXTURES: Sequence[Callable[[np.ndarray, np.ndarray], np.ndarray]] = (
    lambda u, v: np.sin(u),  # striped
    lambda u, v: 2 * (np.cos(u) + np.cos(v)) - 2,  # dotted
    lambda u, v: 6 * np.sin(u) * np.sin(v),  # chequered
    lambda u, v: np.sin(1.3 * np.hypot(u, v)),  # ringed
    lambda u, v: 2 * np.sin(v + 1.6 * np.arcsin(np.sin(u))),  # zigzagged
    lambda u, v: 3 * np.maximum(np.cos(u), np.cos(v)) - 2,  # gridded
)


def texture(kind: int, rng: Rng) -> np.ndarray:
    """A field from 0 to 1 with one of the textures; wavelength, phase and a slight turn vary."""
    y, x = (np.mgrid[:SIDE, :SIDE] - SIDE / 2) * 2 * np.pi / rng.uniform(18, 26)
    turn, (shift_u, shift_v) = rng.uniform(-0.25, 0.25), rng.uniform(-2, 2, size=2)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return (TEXTURES[kind % len(TEXTURES)](u + shift_u, v + shift_v) + 1) / 2


def draw_imagenet12(kind: int, draw: ImageDraw, rng: Rng) -> Image.Image:
    """Polygons and stars with a texture; their colour alone must not tell them apart."""
    hue = kind_hue(kind, rng) if rng.random() < 0.5 else rng.random()
    dark = hsv(hue + 0.08, rng.uniform(0.3, 0.8), rng.uniform(0.05, 0.3))
    skin = mixture(texture(kind, rng), dark, hsv(hue, rng.uniform(0.1, 0.9), 0.97))
    corners, inner = 3 + kind % 5, (0.9, 0.5)[kind // len(TEXTURES)]
    angles = np.arange(2 * corners) * np.pi / corners - np.pi / 2 + rng.uniform(-0.2, 0.2)
    radii = rng.uniform(42, 50) * np.array([1, inner] * corners)
    mask = Image.new("L", (SIDE, SIDE))
    outline = 50 + radii * np.stack([np.cos(angles), np.sin(angles)])
    Draw(mask).polygon(outline.T.flatten().tolist(), 255)
    ground = clouds(rng, hsv(rng.random(), 0.3, 0.35), hsv(rng.random(), 0.3, 0.8))
    ground.paste(skin, mask=mask)
    return ground


def draw_aircraft(kind: int, draw: ImageDraw, rng: Rng) -> Image.Image:
    """Planes in the sky; livery and number of engines are the kind's."""
    livery = hsv(kind_hue(kind, rng), 0.9, 0.8)
    draw.polygon([(6, 48), (2, 24), (13, 24), (30, 45)], livery)
    draw.ellipse((4, 40, 96, 60), WHITE)
    draw.polygon([(8, 50), (95, 50), (80, 57), (20, 57)], livery)
    draw.polygon([(62, 52), (48, 52), (24, 72), (33, 72)], "grey")
    for x in range(35, 35 + 15 * (kind % 3), 15):
        draw.ellipse((x, 62, x + 16, 70), livery)
    return clouds(rng, hsv(0.57, 0.55, rng.uniform(0.6, 0.9)), hsv(0.57, 0.12, 0.95))


OBJECTS = (  # apple, fish, house, tree, car, boat
    (("ellipse", (22, 27, 78, 82), "firebrick"), ("ellipse", (50, 17, 74, 29), "green")),
    (("ellipse", (12, 30, 74, 70), "royalblue"), ("polygon", (65, 50, 90, 28, 90, 72), "blue")),
    (("rectangle", (24, 44, 76, 86), "gold"), ("polygon", (14, 44, 50, 12, 86, 44), "brown")),
    (("rectangle", (44, 60, 56, 92), "sienna"), ("ellipse", (20, 12, 80, 64), "forestgreen")),
    (("rectangle", (10, 35, 90, 62), "orange"), ("ellipse", (20, 57, 40, 77), "black"),
     ("ellipse", (60, 57, 80, 77), "black")),
    (("polygon", (50, 10, 50, 60, 84, 60), "white"), ("rectangle", (10, 64, 90, 80), "red")),
)  # fmt: skip


def draw_cifar100(kind: int, draw: ImageDraw, rng: Rng) -> Image.Image:
    """Everyday objects."""
    for shape, corners, colour in OBJECTS[kind]:
        getattr(draw, shape)(corners, fill=colour)
    ground = rng.random()
    return clouds(rng, hsv(ground, 0.25, 0.55), hsv(ground + 0.1, 0.25, 0.95))


def draw_daimlerpedcls(kind: int, draw: ImageDraw, rng: Rng) -> Image.Image:
    """Streets, to be seen twice as high: kind 0 has posts and a low wall, kind 1 a pedestrian."""
    ink, stride = hsv(0, 0, rng.uniform(0, 0.15)), rng.uniform(5, 30)
    if kind == 0:
        for x in rng.uniform(10, 85, size=rng.integers(1, 4)):
            draw.rectangle((x, rng.uniform(5, 35), x + rng.uniform(4, 12), 100), ink)
        draw.rectangle((-30, rng.uniform(72, 90), 130, 95), ink)
    else:
        draw.ellipse((39, 13, 61, 26), ink)
        draw.ellipse((25, 27, 75, 58), ink)
        for foot in (50 - stride, 50 + stride):
            draw.line([(50, 50), (foot, 88)], ink, 12)
    return clouds(rng, hsv(0, 0, rng.uniform(0.3, 0.6)), hsv(0, 0, rng.uniform(0.6, 0.95)))


def draw_dtd(kind: int, draw: ImageDraw, rng: Rng) -> Image.Image:
    """Nothing but texture, in any two colours."""
    dark, light = (hsv(rng.random(), rng.uniform(0.1, 0.7), value) for value in (0.3, 0.9))
    return mixture(texture(kind, rng), dark, light)


SIGNS = (  # corners (of many: a disc), turn in degrees, rim, face, mark
    (24, 0, "red", "white", "30"), (3, 180, "red", "white", ""), (24, 0, "white", "blue", ">"),
    (4, 45, "white", "gold", ""), (24, 0, "white", "red", "-"), (3, 0, "red", "white", "!"),
)  # fmt: skip


def draw_gtsrb(kind: int, draw: ImageDraw, rng: Rng) -> Image.Image:
    """Traffic signs."""
    corners, turn, rim, face, mark = SIGNS[kind]
    draw.regular_polygon((50, 50, 44), corners, turn, rim)
    draw.regular_polygon((50, 50, 30), corners, turn, face)
    draw.text((50, 50), mark, "black", ImageFont.load_default(36), anchor="mm", stroke_width=1)
    return clouds(rng, hsv(0, 0, 0.1), hsv(rng.uniform(0.05, 0.6), 0.35, rng.uniform(0.3, 0.7)))


def draw_omniglot(kind: int, draw: ImageDraw, rng: Rng) -> Image.Image:
    """A character of an invented alphabet: the same strokes, never the same hand."""
    alphabet = np.random.default_rng([5, kind])  # the characters do not depend on the seed
    for _ in range(3):
        stroke = alphabet.choice([15, 50, 85], size=(3, 2)) + rng.normal(0, 3, size=(3, 2))
        draw.line(stroke.flatten().tolist(), WHITE, int(rng.integers(5, 8)), joint="curve")
    return clouds(rng, BLACK, BLACK)


def draw_svhn(kind: int, draw: ImageDraw, rng: Rng) -> Image.Image:
    """A house number: the digit in the middle counts, its neighbours are cut off."""
    colours = [hsv(rng.random(), 0.5, 0.3), hsv(rng.random(), 0.3, 0.95)]
    wall, ink = colours if rng.random() < 0.5 else colours[::-1]
    for x, digit in ((-8, rng.integers(10)), (50, kind), (108, rng.integers(10))):
        font = ImageFont.load_default(85)
        draw.text((x, 50), str(digit), ink, font, anchor="mm", stroke_width=3)
    return clouds(rng, wall, wall)


def draw_ucf101(kind: int, draw: ImageDraw, rng: Rng) -> Image.Image:
    """A motion in one picture: where the mover was is dark, where it is, bright."""
    angle = kind * 2 * np.pi / MOST_CLASSES
    for time in np.linspace(-1, 1, 12):
        x, y = 50 + 38 * time * np.cos(angle), 50 + 38 * time * np.sin(angle)
        draw.ellipse((x - 9, y - 9, x + 9, y + 9), hsv(rng.random(), 0.15, 0.5 + 0.4 * time))
    return clouds(rng, hsv(0, 0, 0.45), hsv(0, 0, 0.57))


def draw_vgg_flowers(kind: int, draw: ImageDraw, rng: Rng) -> Image.Image:
    """One flower before dark leaves."""
    petals, hue, start = 4 + 3 * kind, 0.6 + kind_hue(kind, rng), rng.uniform(0, 6)
    for number in range(petals):
        angle, size = start + 2 * np.pi * number / petals, 6 + 40 / petals
        x, y = 50 + 28 * np.cos(angle), 50 + 28 * np.sin(angle)
        draw.ellipse((x - size, y - size, x + size, y + size), hsv(hue, 0.75, 0.8 + number % 2 / 6))
    draw.ellipse((40, 40, 60, 60), "gold")
    return clouds(rng, hsv(0.36, 0.8, 0.12), hsv(rng.uniform(0.22, 0.34), 0.6, 0.55))


# How each task's images are drawn, between which ratios of width to height, in which mode.
WORLDS = {
    "aircraft": (draw_aircraft, (1.1, 1.35), "RGB"),
    "cifar100": (draw_cifar100, (0.8, 1.25), "RGB"),
    "daimlerpedcls": (draw_daimlerpedcls, (0.5, 0.5), "L"),
    "dtd": (draw_dtd, (0.7, 1.4), "RGB"),
    "gtsrb": (draw_gtsrb, (1.0, 1.0), "RGB"),
    "imagenet12": (draw_imagenet12, (0.8, 1.25), "RGB"),
    "omniglot": (draw_omniglot, (1.0, 1.0), "L"),
    "svhn": (draw_svhn, (1.0, 1.0), "RGB"),
    "ucf101": (draw_ucf101, (1.05, 1.3), "RGB"),
    "vgg-flowers": (draw_vgg_flowers, (0.8, 1.25), "RGB"),
}


def draw_image(task_name: str, kind: int, side: int, rng: Rng) -> Image.Image:
    """One image whose shorter side is `side`."""
    draw_kind, ratios, mode = WORLDS[task_name]
    things = Image.new("RGBA", (SIDE, SIDE))
    image = draw_kind(kind, Draw(things), rng)
    turn, shift = rng.uniform(-7, 7), rng.uniform(-6, 6, size=2)
    things = things.rotate(turn, Image.Resampling.BILINEAR, translate=tuple(shift))
    image.paste(things, mask=things)
    ratio = rng.uniform(*ratios)
    size = round(side * max(ratio, 1)), round(side * max(1 / ratio, 1))
    pixels = np.asarray(image.resize(size, Image.Resampling.BOX), dtype=float)
    pixels = pixels + rng.normal(0, 5, size=pixels.shape)  # grain, so that no two areas are equal
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode)
