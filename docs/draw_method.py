"""Draw docs/method.svg and docs/method.png, the README's figure of the method.

    python docs/draw_method.py

One image on its two roads: through the policy network to twelve decisions, and through the
twelve residual blocks, each kept or fine-tuned as decided. What this image does not use is pale.
"""

import io
import math
import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon
from PIL import Image

HERE = Path(__file__).parent
LEFT, WIDTH, HEIGHT = -0.25, 20.1, 9.75  # of the drawing, in its own units

STAGES = ((1, 64), (2, 128), (3, 256))  # number, channels; four blocks each
DECISIONS = (0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 1)  # made up: 1 = the fine-tuned copy

COOL, COOL_FILL = "#2166ac", "#d6e6f4"  # kept, pretrained
WARM, WARM_FILL = "#c8501e", "#fbdfcd"  # fine-tuned
POLICY, POLICY_FILL = "#5b4a91", "#e6e1f3"
INK, GREY, PALE = "#222222", "#6b6b6b", "#cfcfcf"

STYLE = {
    "svg.hashsalt": "spottune",  # the same file every time
    "svg.fonttype": "path",  # the same look everywhere
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
}

# Heights of the rows, and where the blocks stand.
Y_KEPT, Y_MIDDLE, Y_TUNED = 5.05, 4.0, 2.95
Y_DECISION, Y_POLICY = 6.55, 8.75
BLOCK_WIDTH, BLOCK_HEIGHT = 0.8, 0.94


def block_x(block: int) -> float:
    """The middle of a block (0 to 11); a gap stands between the stages."""
    return 4.1 + 1.07 * block + 0.26 * (block // 4)


def faded(colour: str) -> tuple[float, ...]:
    """The colour of what this image does not use: mixed with white, but opaque."""
    return tuple(1 - 0.45 * (1 - channel) for channel in to_rgb(colour))


def draw_box(axes, x, y, width, height, edge, fill, strong=True, layer=3) -> None:
    """A rounded box round (x, y)."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height,
            boxstyle="round,pad=0,rounding_size=0.13",
            edgecolor=edge if strong else faded(edge), facecolor=fill,
            linewidth=1.7 if strong else 0.9, zorder=layer,
        )
    )  # fmt: skip


def draw_arrow(axes, start, end, colour=INK, width=1.7) -> None:
    style = {"arrowstyle": "-|>,head_width=0.22,head_length=0.4", "shrinkA": 0, "shrinkB": 0}
    axes.annotate(
        "", end, start, arrowprops={**style, "color": colour, "linewidth": width}, zorder=2
    )


def draw_text(axes, x, y, text, size=11, colour=INK, **more) -> None:
    axes.text(x, y, text, fontsize=size, color=colour,
              **{"ha": "center", "va": "center", "zorder": 5, **more})  # fmt: skip


def draw_picture(axes, x, y, half) -> None:
    """The input: a flower before a meadow and a sky."""
    for bottom, top, colour in ((-1.0, -0.3, "#a6cf8b"), (-0.3, 1.0, "#cfe5f5")):
        corners = [(-1, bottom), (1, bottom), (1, top), (-1, top)]
        axes.add_patch(Polygon([(x + a * half, y + b * half) for a, b in corners],
                               facecolor=colour, edgecolor="none", zorder=3))  # fmt: skip
    axes.plot([x, x], [y - half, y], color="#4c8a3f", linewidth=2.6, zorder=3)
    for angle in np.arange(8) * math.pi / 4:
        petal = (x + 0.34 * half * math.cos(angle), y + half * (0.15 + 0.34 * math.sin(angle)))
        axes.add_patch(Circle(petal, 0.21 * half, facecolor="#e889b4", edgecolor="#c75b8f",
                              linewidth=0.6, zorder=4))  # fmt: skip
    axes.add_patch(Circle((x, y + 0.15 * half), 0.24 * half, facecolor="#f4c542", zorder=5))
    frame = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    axes.add_patch(Polygon(frame, facecolor="none", edgecolor=INK, linewidth=1.2, zorder=6))


def draw_policy(axes) -> None:
    """The upper road: policy network, logits, Gumbel-softmax, twelve decisions."""
    middles = (4.95, 8.95, 13.1)
    labels = (
        ("policy network", "a small ResNet"),
        ("12 × 2 logits", "keep | fine-tune"),
        ("Gumbel-softmax", "a hard draw, soft gradients"),
    )
    for x, (name, note), width in zip(middles, labels, (2.9, 2.7, 3.7), strict=True):
        draw_box(axes, x, Y_POLICY, width, 1.25, POLICY, POLICY_FILL)
        draw_text(axes, x, Y_POLICY + 0.22, name, 12.5, POLICY, weight="bold")
        draw_text(axes, x, Y_POLICY - 0.26, note, 10, POLICY)
    draw_arrow(axes, (1.35, Y_POLICY), (3.5, Y_POLICY), POLICY)
    draw_arrow(axes, (6.4, Y_POLICY), (7.6, Y_POLICY), POLICY)
    draw_arrow(axes, (10.3, Y_POLICY), (11.25, Y_POLICY), POLICY)
    end = block_x(11)
    axes.plot([14.95, end, end], [Y_POLICY, Y_POLICY, Y_DECISION + 0.62], color=POLICY,
              linewidth=1.7, zorder=2)  # fmt: skip
    axes.plot([block_x(0), end], [Y_DECISION + 0.62] * 2, color=POLICY, linewidth=1.7, zorder=2)


def draw_decision(axes, block: int, decision: int) -> None:
    """One of the twelve decisions, and the branch it acts on."""
    x = block_x(block)
    colour = WARM if decision else COOL
    axes.plot([x, x], [Y_DECISION + 0.62, Y_DECISION + 0.3], color=POLICY, linewidth=1.2, zorder=2)
    axes.add_patch(Circle((x, Y_DECISION), 0.3, facecolor=colour, edgecolor="white", zorder=3))
    draw_text(axes, x, Y_DECISION - 0.015, str(decision), 12, "white", weight="bold")


def draw_block(axes, block: int, decision: int) -> None:
    """A kept block above its fine-tuned copy, and the identity shortcut between them."""
    x, name = block_x(block), block + 1
    rows = ((Y_KEPT, COOL, COOL_FILL, rf"$F_{{{name}}}$"),
            (Y_TUNED, WARM, WARM_FILL, rf"$\hat{{F}}_{{{name}}}$"))  # fmt: skip
    left, right = x - 0.5, x + 0.5
    for row, (y, edge, fill, label) in enumerate(rows):
        chosen = row == decision
        draw_box(axes, x, y, BLOCK_WIDTH, BLOCK_HEIGHT, edge, fill if chosen else "white", chosen)
        draw_text(axes, x, y, label, 13, edge if chosen else faded(edge))
        axes.plot([left, x, right], [Y_MIDDLE, y, Y_MIDDLE], color=edge if chosen else PALE,
                  linewidth=2.6 if chosen else 0.9, zorder=2 if chosen else 1)  # fmt: skip


def draw_stages(axes) -> None:
    """A frame round each four blocks, with the number of channels; what the two rows are."""
    for number, channels in STAGES:
        first, last = block_x(4 * number - 4), block_x(4 * number - 1)
        middle, width = (first + last) / 2, last - first + 1.13
        draw_box(axes, middle, Y_MIDDLE, width, 3.5, PALE, "#f8f8f8", layer=0)
        draw_text(axes, middle, 1.98, f"stage {number}: {channels} channels", 11.5, GREY)
    axes.plot([block_x(0) - 0.5, block_x(11) + 0.5], [Y_MIDDLE] * 2, color=GREY,
              linewidth=1.2, linestyle=(0, (2, 1.6)), zorder=1)  # fmt: skip
    for last in (3, 7):  # the path goes on from one stage to the next
        axes.plot([block_x(last) + 0.5, block_x(last + 1) - 0.5], [Y_MIDDLE] * 2, color=INK,
                  linewidth=1.7, zorder=2)  # fmt: skip
    for y, colour, label in (
        (Y_KEPT, COOL, "kept: frozen\nconvolutions"),
        (Y_TUNED, WARM, "fine-tuned copy:\ntrained"),
    ):
        draw_text(axes, block_x(11) + 0.85, y, label, 11.5, colour, ha="left")


def draw_ends(axes) -> None:
    """The image on the left with its two roads; stem, classifier and scores."""
    draw_picture(axes, 0.95, 6.4, 0.85)
    axes.plot([0.95, 0.95, 1.4], [7.25, Y_POLICY, Y_POLICY], color=POLICY, linewidth=1.7, zorder=2)
    axes.plot([0.95, 0.95], [5.55, Y_MIDDLE], color=INK, linewidth=1.7, zorder=2)
    draw_text(axes, 1.15, 7.6, "image $x$", 12, ha="left")
    draw_text(axes, 3.05, Y_DECISION, "$I_l(x)$", 15, POLICY)
    draw_arrow(axes, (0.95, Y_MIDDLE), (1.75, Y_MIDDLE))
    draw_box(axes, 2.4, Y_MIDDLE, 1.3, 1.0, INK, "white")
    draw_text(axes, 2.4, Y_MIDDLE, "stem\n3×3, 32", 11)
    draw_arrow(axes, (3.05, Y_MIDDLE), (block_x(0) - 0.53, Y_MIDDLE))
    end = block_x(11)
    draw_arrow(axes, (end + 0.53, Y_MIDDLE), (end + 1.0, Y_MIDDLE))
    draw_box(axes, end + 1.78, Y_MIDDLE, 1.56, 1.0, INK, "white")
    draw_text(axes, end + 1.78, Y_MIDDLE, "pool,\nclassifier", 11)


def draw_legend(axes) -> None:
    """Equation 2 of the paper, with its two terms in the colours of the blocks."""
    parts = (
        (4.2, r"$x_l\;=$", INK),
        (6.6, r"$I_l(x)\cdot\hat{F}_l(x_{l-1})$", WARM),
        (8.95, r"$+$", INK),
        (11.7, r"$(1-I_l(x))\cdot F_l(x_{l-1})$", COOL),
        (14.4, r"$+$", INK),
        (15.4, r"$x_{l-1}$", GREY),
    )
    for x, formula, colour in parts:
        draw_text(axes, x, 1.0, formula, 17, colour)
    draw_text(axes, 6.6, 0.3, "fine-tuned copy, if the decision is 1", 11, WARM)
    draw_text(axes, 11.7, 0.3, "kept pretrained block, if it is 0", 11, COOL)
    draw_text(axes, 15.4, 0.3, "shortcut", 11, GREY)


def draw_method() -> Figure:
    figure = Figure(figsize=(11.5, 11.5 * HEIGHT / WIDTH), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(LEFT, LEFT + WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()
    draw_stages(axes)
    draw_policy(axes)
    draw_ends(axes)
    for block, decision in enumerate(DECISIONS):
        draw_decision(axes, block, decision)
        draw_block(axes, block, decision)
    draw_legend(axes)
    return figure


def shorten(svg: str) -> str:
    """The same drawing in fewer bytes: four digits, no indents, nothing clipped."""
    svg = re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.4g}", svg)
    svg = re.sub(r' clip-path="[^"]*"', "", svg)
    return re.sub(r"\n +", "\n", svg)


def main() -> None:
    with matplotlib.rc_context(STYLE):
        figure = draw_method()
        vector = io.StringIO()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
        (HERE / "method.svg").write_text(shorten(vector.getvalue()), encoding="utf-8")
        pixels = io.BytesIO()
        figure.savefig(pixels, format="png", dpi=160)
        few_colours = Image.open(pixels).convert("RGB").quantize(240, dither=Image.Dither.NONE)
        few_colours.save(HERE / "method.png", optimize=True)


if __name__ == "__main__":
    main()
