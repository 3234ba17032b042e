"""Drawings of notebook 00."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from PIL import Image

from plots.lettering import show

ARROW = {"arrowstyle": "-|>", "color": "black"}


def draw_patches(image: Image.Image, h: int, w: int, patch_size: int, merge_size: int) -> None:
    """An image cut into h x w patches by thin lines, and into tokens by thick ones."""
    height, width = h * patch_size, w * patch_size
    plt.figure(figsize=(6, 3.6))
    plt.imshow(image.resize((width, height)))
    for step, line_width in ((patch_size, 0.6), (patch_size * merge_size, 2.2)):
        style = {"color": "black", "linestyle": "-", "linewidth": line_width}
        plt.vlines(range(0, width + 1, step), 0, height, **style)
        plt.hlines(range(0, height + 1, step), 0, width, **style)
    square = f"{merge_size} × {merge_size}"
    plt.title(f"{h} × {w} patches (thin); each {square} of them will be one token (thick)")
    plt.xlabel("column (pixels)")
    plt.ylabel("row (pixels)")
    plt.axis((0, width, height, 0))
    plt.grid(False)
    show()


def draw_prompt(parts: dict[str, tuple[int, int]]) -> None:
    """The parts of a prompt as one bar; each part has a name, a first token and an end."""
    plt.figure(figsize=(9, 1.9))
    for (name, (start, end)), hatch in zip(parts.items(), ("//", "", ".."), strict=True):
        plt.barh(0, end - start, left=start, color="0.8", hatch=hatch, edgecolor="black")
        box = {"color": "white", "boxstyle": "round"}
        text = f"{name}\n{end - start} tokens"
        plt.text((start + end) / 2, 0, text, ha="center", va="center", bbox=box)
    plt.title("What the decoder reads, from left to right")
    plt.xlabel("token")
    plt.yticks([])
    plt.xlim(0, max(end for _, end in parts.values()))
    show()


def draw_positions(positions: Sequence[Sequence[int]], first: int, last: int) -> None:
    """Time, row and column of each token; the image's tokens are `first` to `last`."""
    plt.figure(figsize=(8, 3))
    for name, axis in zip(("time", "row", "column"), positions, strict=True):
        plt.plot(axis, label=name)
    plt.axvspan(first - 0.5, last + 0.5, color="0.92")
    plt.text((first + last) / 2, 1, "image", ha="center")
    plt.title("Each token's position has three parts")
    plt.xlabel("token")
    plt.ylabel("position")
    plt.legend(loc="upper left")
    show()


def draw_probabilities(words: Sequence[str], probabilities: Sequence[float]) -> None:
    """Bars for the most probable tokens, the first on top."""
    labels = [word.replace("$", r"\$") for word in words]  # $ would start a formula
    percent = [100 * p for p in probabilities]
    plt.figure(figsize=(6, 2.6))
    plt.barh(labels[::-1], percent[::-1], color="0.5", edgecolor="black")
    plt.title("The five most probable first tokens of the answer")
    plt.xlabel("probability (%), on a logarithmic axis")
    plt.xscale("log")
    show()


# The boxes of the map: centre (x, y), and the point at which the arrow from there ends.
BOXES = {
    "image": ((2, 9), (2, 8.38)),
    "patches": ((2, 8), (2, 7.38)),
    "vision transformer": ((2, 7), (2, 6.38)),
    "merger: 2 × 2 patches → 1": ((2, 6), (3.9, 5.38)),
    "question": ((6.6, 9), (6.6, 8.38)),
    "chat template, tokenizer": ((6.6, 8), (6.6, 6.38)),
    "embedding table": ((6.6, 6), (4.7, 5.38)),
    "splice: features replace placeholders": ((4.3, 5), (4.3, 4.38)),
    "positions (time, row, column)": ((1.1, 4), None),
    "decoder": ((4.3, 4), (4.3, 3.38)),
    "head: logits of the last token": ((4.3, 3), (4.3, 2.38)),
    "the most probable token": ((4.3, 2), (4.3, 1.38)),
    "answer": ((4.3, 1), None),
}


def draw_map(texts: dict[str, object]) -> None:
    """All stages from image and question to the answer, with a text in each of BOXES."""
    _, axes = plt.subplots(figsize=(8.4, 8))
    for name, ((x, y), end) in BOXES.items():
        grey = "0.8" if name == "answer" else "0.95"
        box = {"boxstyle": "round,pad=0.45", "facecolor": grey, "edgecolor": "black"}
        text = f"{name}\n{texts[name]}".replace("$", r"\$")
        axes.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box, zorder=3)
        if end is not None:
            axes.annotate("", end, (x, y - 0.35), arrowprops=ARROW)

    # Positions go into the decoder, and the new token goes back to the embedding table.
    axes.annotate("", (3.2, 4), (2.35, 4), arrowprops=ARROW)
    back = {**ARROW, "linestyle": "--", "connectionstyle": "angle,angleA=0,angleB=90"}
    axes.annotate("", (7.4, 5.65), (5.4, 2), arrowprops=back)
    axes.text(7.5, 3, "again,\nuntil the\nend token", fontsize=9)

    axes.set(xlim=(-0.7, 9), ylim=(0.5, 9.5))
    axes.set_title("From an image and a question to an answer")
    axes.set_axis_off()
    show()


def draw_costs(sides: Sequence[int], right: Sequence[int], yours: Sequence[float]) -> None:
    """Tokens of square images against their side: the processor's and a reader's."""
    plt.figure(figsize=(6, 3))
    plt.plot(sides, right, label="the processor")
    plt.plot(sides, yours, "o", color="grey", label="yours")
    plt.title("What a square image costs")
    plt.xlabel("side (pixels)")
    plt.ylabel("tokens")
    plt.legend()
    show()


def draw_tokens(right: Sequence[int], yours: Sequence[int], end: int) -> None:
    """The ids that a toy model writes, and a reader's; `end` is the end token."""
    plt.figure(figsize=(6, 3))
    plt.plot(range(1, len(right) + 1), right, "-", label="right")
    plt.plot(range(1, len(yours) + 1), yours, "o", color="grey", label="yours")
    plt.axhline(end, color="black", linewidth=0.8, linestyle=":")
    plt.title(f"Words of a toy model; {end} is the end")
    plt.xlabel("step")
    plt.ylabel("word (id)")
    plt.xticks(range(1, max(len(yours), len(right)) + 1))
    plt.legend()
    show()
