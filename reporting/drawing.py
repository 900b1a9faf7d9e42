"""A picture with its answer, and its decisions as a row of kept and fine-tuned blocks under it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reporting.plots import FINE_TUNED, FONT, INK, KEPT

WIDTH = 360  # pixels
MARGIN, LINE, SQUARE = 8, 20, 24


def draw_answer(pixels: np.ndarray, row: Mapping[str, object], folder: Path) -> Path:
    """Write a PNG of the picture H x W x 3 uint8 with its row of engine/answers.py; its path."""
    height = max(1, round(WIDTH * pixels.shape[0] / pixels.shape[1]))
    picture = Image.fromarray(pixels).resize((WIDTH, height), Image.Resampling.BICUBIC)
    font, blocks = ImageFont.truetype(FONT, 13), row["fine_tuned_blocks"]
    canvas = Image.new(
        "RGB", (WIDTH, height + 2 * MARGIN + 2 * LINE + (SQUARE + LINE) * bool(blocks)), "white"
    )
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    lines = [f"{row['answer']}  {100 * row['probability']:.1f} %"]
    lines.append(f"then {row['second']}  {100 * row['second_probability']:.1f} %")
    if row["class"]:
        lines[0] += "  right" if row["class"] == row["answer"] else f"  wrong: {row['class']}"
    if blocks:
        lines.append(f"{blocks.count('1')} of {len(blocks)} blocks fine-tuned (orange)")
    top = height + MARGIN
    for line in lines:
        draw.text((MARGIN, top), line, font=font, fill=INK)
        top += LINE
    size = (WIDTH - 2 * MARGIN) / max(1, len(blocks))
    for place, block in enumerate(blocks):
        left = MARGIN + place * size
        box = (left, top, left + size - 2, top + min(size - 2, SQUARE - MARGIN))
        draw.rectangle(box, fill=FINE_TUNED if block == "1" else KEPT)
    folder.mkdir(parents=True, exist_ok=True)
    file = Path(str(row["file"]))
    # Pictures of one name lie in different folders: a hash of the whole path tells them apart.
    mark = hashlib.sha256(str(file).encode(errors="surrogateescape")).hexdigest()[:6]
    path = folder / f"{file.stem}_{mark}.png"
    canvas.save(path)
    return path
