"""Made-up JPEGs of the Decathlon's size and weight."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter


def write_images(folder: Path, count: int, side: int) -> list[str]:
    """JPEGs as the Decathlon has them: shorter side `side`, a third longer, of a photo's weight."""
    rng = np.random.default_rng(0)
    names = [f"{number:06}.jpg" for number in range(count)]
    for name in names:
        coarse = rng.integers(0, 256, (side // 6, side // 4, 3), np.uint8)
        image = Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
        image.filter(ImageFilter.SHARPEN).save(folder / name, quality=90)
    return names
