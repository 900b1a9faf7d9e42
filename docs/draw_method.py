"""Draw docs/method.png, the README's figure of the method.

    python docs/draw_method.py

Above, an image goes through the policy network to twelve decisions; below, through twelve residual
blocks, each kept or fine-tuned as decided. What this image does not use is pale.
"""

import io
import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon
from PIL import Image

HERE = Path(__file__).parent
LEFT, WIDTH, HEIGHT = -0.25, 20.1, 9.75  # of the drawing, in its own units
DECISIONS = (0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 1)  # made up: 1 = the fine-tuned copy
COOL, COOL_FILL = "#2166ac", "#d6e6f4"  # kept, pretrained
WARM, WARM_FILL = "#c8501e", "#fbdfcd"  # fine-tuned
POLICY, POLICY_FILL = "#5b4a91", "#e6e1f3"
INK, GREY, PALE = "#222222", "#6b6b6b", "#cfcfcf"
Y_KEPT, Y_MIDDLE, Y_TUNED, Y_DECISION, Y_POLICY = 5.05, 4.0, 2.95, 6.55, 8.75
BLOCKS_X = [4.1 + 1.07 * block + 0.26 * (block // 4) for block in range(12)]  # gaps between stages
FIRST, LAST = BLOCKS_X[0], BLOCKS_X[-1]
STYLE = {"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}


def faded(colour: str) -> tuple[float, ...]:
    """The colour of what this image does not use: mixed with white, but opaque."""
    return tuple(1 - 0.45 * (1 - channel) for channel in to_rgb(colour))


def box(axes: Axes, x, y, width, height, edge, fill="white", linewidth=1.7, layer=3) -> None:
    """A rounded box round (x, y)."""
    corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.13"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, edgecolor=edge,
                                  facecolor=fill, linewidth=linewidth, zorder=layer))  # fmt: skip


def line(axes: Axes, points, colour=INK, width=1.7, layer=2, **more) -> None:
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=width, zorder=layer, **more)


def arrow(axes: Axes, start, end, colour=INK) -> None:
    style = {"arrowstyle": "-|>,head_width=0.22,head_length=0.4", "shrinkA": 0, "shrinkB": 0}
    style |= {"color": colour, "linewidth": 1.7}
    axes.annotate("", end, start, arrowprops=style, zorder=2)


def text(axes: Axes, x, y, words, size=11, colour=INK, **more) -> None:
    place = {"ha": "center", "va": "center", "zorder": 5, **more}
    axes.text(x, y, words, fontsize=size, color=colour, **place)


def draw_picture(axes: Axes, x, y, half) -> None:
    """The input: a flower before a meadow and a sky."""
    left, right, ground = x - half, x + half, y - 0.3 * half
    for bottom, top, colour in ((y - half, ground, "#a6cf8b"), (ground, y + half, "#cfe5f5")):
        corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
        axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="none", zorder=3))
    line(axes, [(x, y - half), (x, y)], "#4c8a3f", 2.6, layer=3)
    for angle in (number * math.pi / 4 for number in range(8)):
        petal = (x + 0.34 * half * math.cos(angle), y + half * (0.15 + 0.34 * math.sin(angle)))
        axes.add_patch(Circle(petal, 0.21 * half, facecolor="#e889b4", edgecolor="#c75b8f",
                              linewidth=0.6, zorder=4))  # fmt: skip
    axes.add_patch(Circle((x, y + 0.15 * half), 0.24 * half, facecolor="#f4c542", zorder=5))
    frame = [(left, y - half), (right, y - half), (right, y + half), (left, y + half)]
    axes.add_patch(Polygon(frame, facecolor="none", edgecolor=INK, linewidth=1.2, zorder=6))


def draw_policy(axes: Axes) -> None:
    """The upper way: policy network, logits, Gumbel-softmax, twelve decisions."""
    for x, width, name, note in (
        (4.95, 2.9, "policy network", "a small ResNet"),
        (8.95, 2.7, "12 × 2 logits", "keep | fine-tune"),
        (13.1, 3.7, "Gumbel-softmax", "a hard draw, soft gradients"),
    ):
        box(axes, x, Y_POLICY, width, 1.25, POLICY, POLICY_FILL)
        text(axes, x, Y_POLICY + 0.22, name, 12.5, POLICY, weight="bold")
        text(axes, x, Y_POLICY - 0.26, note, 10, POLICY)
    for start, end in ((1.35, 3.5), (6.4, 7.6), (10.3, 11.25)):
        arrow(axes, (start, Y_POLICY), (end, Y_POLICY), POLICY)
    bus = Y_DECISION + 0.62
    line(axes, [(14.95, Y_POLICY), (LAST, Y_POLICY), (LAST, bus)], POLICY)
    line(axes, [(FIRST, bus), (LAST, bus)], POLICY)
    text(axes, 3.05, Y_DECISION, "$I_l(x)$", 15, POLICY)
    for x, decision in zip(BLOCKS_X, DECISIONS, strict=True):
        line(axes, [(x, bus), (x, Y_DECISION + 0.3)], POLICY, 1.2)
        colour = WARM if decision else COOL
        axes.add_patch(Circle((x, Y_DECISION), 0.3, facecolor=colour, edgecolor="white", zorder=3))
        text(axes, x, Y_DECISION - 0.015, str(decision), 12, "white", weight="bold")


def draw_blocks(axes: Axes) -> None:
    """Kept blocks above their fine-tuned copies, and the identity shortcut between them."""
    for number, channels in ((1, 64), (2, 128), (3, 256)):
        first, last = BLOCKS_X[4 * number - 4], BLOCKS_X[4 * number - 1]
        middle = (first + last) / 2
        box(axes, middle, Y_MIDDLE, last - first + 1.13, 3.5, PALE, "#f8f8f8", layer=0)
        text(axes, middle, 1.98, f"stage {number}: {channels} channels", 11.5, GREY)
    ends = [(FIRST - 0.5, Y_MIDDLE), (LAST + 0.5, Y_MIDDLE)]
    line(axes, ends, GREY, 1.2, layer=1, linestyle=(0, (2, 1.6)))
    for last in (3, 7):  # the path continues from one stage to the next
        line(axes, [(BLOCKS_X[last] + 0.5, Y_MIDDLE), (BLOCKS_X[last + 1] - 0.5, Y_MIDDLE)])
    for block, (x, decision) in enumerate(zip(BLOCKS_X, DECISIONS, strict=True), start=1):
        kept = (Y_KEPT, COOL, COOL_FILL, rf"$F_{{{block}}}$")
        tuned = (Y_TUNED, WARM, WARM_FILL, rf"$\hat{{F}}_{{{block}}}$")
        for row, (y, edge, fill, name) in enumerate((kept, tuned)):
            path = [(x - 0.5, Y_MIDDLE), (x, y), (x + 0.5, Y_MIDDLE)]
            if row == decision:
                box(axes, x, y, 0.8, 0.94, edge, fill)
                text(axes, x, y, name, 13, edge)
                line(axes, path, edge, 2.6)
            else:
                box(axes, x, y, 0.8, 0.94, faded(edge), linewidth=0.9)
                text(axes, x, y, name, 13, faded(edge))
                line(axes, path, PALE, 0.9, layer=1)
    text(axes, LAST + 0.85, Y_KEPT, "kept: frozen\nconvolutions", 11.5, COOL, ha="left")
    text(axes, LAST + 0.85, Y_TUNED, "fine-tuned copy:\ntrained", 11.5, WARM, ha="left")


def draw_ends(axes: Axes) -> None:
    """The image on the left with its two ways; stem and classifier."""
    draw_picture(axes, 0.95, 6.4, 0.85)
    text(axes, 1.15, 7.6, "image $x$", 12, ha="left")
    line(axes, [(0.95, 7.25), (0.95, Y_POLICY), (1.4, Y_POLICY)], POLICY)
    line(axes, [(0.95, 5.55), (0.95, Y_MIDDLE)])
    for start, end in ((0.95, 1.75), (3.05, FIRST - 0.53), (LAST + 0.53, LAST + 1.0)):
        arrow(axes, (start, Y_MIDDLE), (end, Y_MIDDLE))
    for x, width, words in ((2.4, 1.3, "stem\n3×3, 32"), (LAST + 1.78, 1.56, "pool,\nclassifier")):
        box(axes, x, Y_MIDDLE, width, 1.0, INK)
        text(axes, x, Y_MIDDLE, words)


def draw_equation(axes: Axes) -> None:
    """Equation 2 of the paper, with its two terms in the colours of the blocks."""
    for x, formula, colour, note in (
        (4.2, r"$x_l\;=$", INK, ""),
        (6.6, r"$I_l(x)\cdot\hat{F}_l(x_{l-1})$", WARM, "fine-tuned copy, if the decision is 1"),
        (8.95, r"$+$", INK, ""),
        (11.7, r"$(1-I_l(x))\cdot F_l(x_{l-1})$", COOL, "kept pretrained block, if it is 0"),
        (14.4, r"$+$", INK, ""),
        (15.4, r"$x_{l-1}$", GREY, "shortcut"),
    ):
        text(axes, x, 1.0, formula, 17, colour)
        text(axes, x, 0.3, note, 11, colour)


def main() -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 11.5 * HEIGHT / WIDTH), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(LEFT, LEFT + WIDTH), ylim=(0, HEIGHT))
        axes.set_axis_off()
        for draw in (draw_policy, draw_ends, draw_blocks, draw_equation):
            draw(axes)
        pixels = io.BytesIO()
        figure.savefig(pixels, format="png", dpi=160)
    few_colours = Image.open(pixels).convert("RGB").quantize(240, dither=Image.Dither.NONE)
    few_colours.save(HERE / "method.png", optimize=True)


if __name__ == "__main__":
    main()
