"""Drawings of notebook 04."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from plots.lettering import show

AXES = ("time", "row", "column")
Layout = list[int | tuple[int, int, int]]  # so many text tokens, or the (t, h, w) of an image


def draw_image_positions(image: Image.Image, positions: Tensor, side: int) -> None:
    """An image with the position (3, tokens) of each token written on it; side: of a token."""
    columns = image.width // side
    _, axes = plt.subplots(figsize=(7.5, 7.5 * image.height / image.width))
    axes.imshow(image, alpha=0.6)
    for n, (time, row, column) in enumerate(positions.T.tolist()):
        x, y = n % columns * side, n // columns * side
        axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor="black", linewidth=0.8))
        text = f"{time}, {row}, {column}"
        axes.text(x + side / 2, y + side / 2, text, ha="center", va="center", fontsize=10)
    axes.set(xlabel="x (pixels)", ylabel="y (pixels)", title="time, row and column of every token")
    axes.grid(False)
    show()


def draw_position_table(positions: Tensor, names: Sequence[str]) -> None:
    """Positions (3, T) as a table of numbers, the larger the darker."""
    _, axes = plt.subplots(figsize=(0.62 * len(names) + 1, 2))
    axes.imshow(positions, vmin=0, vmax=2 * int(positions.max()), aspect="auto")
    for row, values in enumerate(positions.tolist()):
        for column, value in enumerate(values):
            axes.text(column, row, value, ha="center", va="center", fontsize=11)
    axes.set(xticks=range(len(names)), yticks=range(3), yticklabels=AXES)
    axes.set(title="position of each token")
    axes.set_xticklabels(names, fontsize=9)
    axes.grid(False)
    show()


def draw_layouts(layouts: dict[str, Layout], positions_of: Callable[[Layout], Tensor]) -> None:
    """The three coordinates of each layout's tokens as lines; images and videos are shaded."""
    looks = (("black", "-", 2.4), ("#d55e00", "--", 1.6), ("#0072b2", ":", 1.8))
    rows = -(-len(layouts) // 2)  # two panels in a row
    _, panels = plt.subplots(rows, 2, figsize=(10, 3 * rows), squeeze=False)
    for axes, (title, layout) in zip(panels.flat, layouts.items(), strict=True):
        start = 0
        for item in layout:
            if isinstance(item, int):
                start += item
                continue
            end = start + item[0] * item[1] * item[2]
            axes.axvspan(start - 0.5, end - 0.5, color="0.9")
            start = end
        axes.plot(range(start), color="0.6", linewidth=1, ls="-", label="one number per token")

        positions = positions_of(layout)
        for name, values, (colour, style, width) in zip(AXES, positions, looks, strict=True):
            axes.plot(values, color=colour, linestyle=style, linewidth=width, label=name)
        axes.set(title=title, xlabel="token", ylabel="position")
        axes.set_ylim(-1, 1.6 * int(positions.max()) + 3)
    panels[0, 0].legend(fontsize=8, loc="upper left")
    show()


def draw_next_positions(time_steps: Sequence[int], side: int) -> None:
    """The next free position behind a video, by its time steps of side x side tokens each."""
    _, axes = plt.subplots(figsize=(7, 3.4))
    one_number = [t * side**2 for t in time_steps]
    mrope = [max(t, side) for t in time_steps]
    axes.plot(time_steps, one_number, marker="s", label="one number per token")
    axes.plot(time_steps, mrope, marker="o", label="M-RoPE")
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel=f"time steps of {side} x {side} tokens each")
    axes.set(ylabel="position of the next text", title="The position of the text behind a video")
    axes.legend()
    show()


def draw_arrows(
    angles: Tensor, grid: tuple[int, int], pairs: Sequence[int], steps: Sequence[float]
) -> None:
    """A panel for each pair: where (1, 0) points after its rotation, for each token of an image.

    angles: (h * w, d/2); grid: (h, w) in tokens; steps: the radians per position of each pair.
    """
    h, w = grid
    _, panels = plt.subplots(1, len(pairs), figsize=(3.6 * len(pairs), 3.6 * h / w + 0.6))
    for axes, name, pair, step in zip(panels, AXES, pairs, steps, strict=True):
        angle = angles[:, pair].view(h, w)
        # In the drawing y points down, as rows do: an angle that grows rotates it clockwise.
        style = {"pivot": "mid", "scale": 8 * w / 6, "width": 0.012, "color": "black"}
        axes.quiver(angle.cos(), -angle.sin(), **style)
        axes.set(xlim=(-0.6, w - 0.4), ylim=(h - 0.4, -0.6), xlabel="column", ylabel="row")
        axes.set(xticks=range(w), yticks=range(h))
        axes.set_title(f"pair {pair}, rotated by the {name}:\n{step:.3g} rad a step", fontsize=10)
    show()


def draw_angles(angles: Tensor, sections: Sequence[int], start: int, stop: int) -> None:
    """The cosine of the angles (T, d/2) as a map; the image's tokens are start to stop."""
    _, axes = plt.subplots(figsize=(8, 4.6))
    cosines = axes.imshow(
        angles.cos(), cmap="gray", vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
    )
    edge = -0.5
    for name, size in zip(AXES, sections, strict=True):
        axes.text(edge + size / 2, -1.5, name, ha="center", va="bottom", fontsize=10)
        edge += size
        axes.axvline(edge, color="black", linewidth=2.5)
        axes.axvline(edge, color="white", linewidth=1)
    for y in (start - 0.5, stop - 0.5):
        axes.axhline(y, color="black", linestyle="--", linewidth=1)
    axes.text(edge + 0.2, (start + stop) / 2, "image", va="center", fontsize=9, rotation=270)
    axes.set(xlabel="pair of the head (from fast to slow)", ylabel="token of the prompt")
    axes.set_title("cosine of the angle by which each pair is rotated\n\n", fontsize=11)
    axes.set_xlim(-0.5, edge + 0.01)
    axes.grid(False)
    plt.colorbar(cosines, ax=axes, pad=0.06)
    show()


def draw_scores(maps: dict[str, Tensor], query: tuple[int, int]) -> None:
    """Scores (h, w) of one query with every cell of an image; a cross marks the query's cell."""
    _, panels = plt.subplots(1, len(maps), figsize=(4.2 * len(maps), 2.4))
    for axes, (title, scores) in zip(panels, maps.items(), strict=True):
        shown = axes.imshow(scores, cmap="gray")
        axes.plot(query[1], query[0], "x", color="black", markersize=10, markeredgewidth=2)
        axes.set(title=title, xlabel="column", ylabel="row")
        axes.grid(False)
        plt.colorbar(shown, ax=axes, label="score with x, of at most 1", shrink=0.8)
    show()


def draw_changes(changes: dict[str, float]) -> None:
    """How far the logits are off, a bar for each mistake."""
    largest = max(changes.values())
    _, axes = plt.subplots(figsize=(8, 0.45 * len(changes) + 1))
    axes.barh(list(changes), list(changes.values()), color="0.6", edgecolor="black")
    for y, value in enumerate(changes.values()):
        axes.text(value + 0.01 * largest, y, f"{value:.1%}", va="center", fontsize=9)
    axes.set(xlim=(0, 1.15 * largest))
    axes.set(xlabel="largest change of a logit, relative to the largest logit")
    axes.set_title("What wrong positions do to the next token's logits")
    axes.invert_yaxis()
    show()


def draw_nine(answers: dict[str, list[str]], right: Sequence[str]) -> None:
    """Answers for a thing at nine positions, one panel a setting; wrong ones dark."""
    _, panels = plt.subplots(1, len(answers), figsize=(2.6 * len(answers), 2.9))
    for axes, (title, given) in zip(panels, answers.items(), strict=True):
        is_right = [answer == wanted for answer, wanted in zip(given, right, strict=True)]
        for n, answer in enumerate(given):
            x, y = n % 3, n // 3
            shade, text_colour = ("white", "black") if is_right[n] else ("0.35", "white")
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=shade, edgecolor="black"))
            words = answer.removeprefix("At the ").removeprefix("In the ").rstrip(".").split()
            text = "\n".join(words[:3])
            if len(words) > 3:
                text += "\n…"
            style = {"fontsize": 8, "color": text_colour, "parse_math": False, "clip_on": True}
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", **style)
        axes.set(xlim=(-0.02, 3.02), ylim=(3.02, -0.02), xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"{title}\n{sum(is_right)} of 9 right", fontsize=9)
        axes.grid(False)
    show()


def draw_deltas(names: Sequence[str], right: Sequence[int], yours: Sequence[float]) -> None:
    """Bars for the rope delta of some prompts: as it should be, and a reader's."""
    _, axes = plt.subplots(figsize=(8, 3.2))
    rows = range(len(names))
    style = {"color": "0.9", "edgecolor": "black", "hatch": "//"}
    axes.barh([y - 0.2 for y in rows], right, 0.4, color="black", label="right")
    axes.barh([y + 0.2 for y in rows], yours, 0.4, label="yours", **style)
    axes.set(yticks=rows, yticklabels=names, xlabel="delta (positions)")
    axes.set(title="What decoding adds")
    axes.invert_yaxis()
    axes.legend()
    show()


def draw_axes(right: Sequence[int], yours: Sequence[int]) -> None:
    """The axis of each number of a head: time black, row grey, column white; else red."""
    _, axes = plt.subplots(figsize=(10, 1.6))
    shades = {0: "black", 1: "0.6", 2: "white"}
    for y, row in ((0, right), (1, yours)):
        for x, axis in enumerate(row):
            shade = shades.get(axis, "red")
            axes.add_patch(Rectangle((x, y + 0.1), 1, 0.8, facecolor=shade, edgecolor="0.3"))
    axes.set(xlim=(0, max(len(yours), len(right))), ylim=(0, 2), yticks=[0.5, 1.5])
    axes.set(xlabel="number of the head")
    axes.set_yticklabels(["right", "yours"])
    axes.set_title("time black, row grey, column white", fontsize=10, loc="left")
    axes.grid(False)
    show()
