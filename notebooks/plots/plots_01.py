"""Drawings of notebook 01."""

from collections.abc import Sequence

import course
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from plots.lettering import show
from processor import Qwen2VLImageProcessor, smart_resize


def draw_sizes(images: dict[str, Image.Image], image_processor: Qwen2VLImageProcessor) -> None:
    """Images at the size that the model sees, cut into patches; below, squashed to a square."""
    _, panels = plt.subplots(2, len(images), figsize=(10, 5.6))
    for (name, image), (own_shape, squashed) in zip(images.items(), panels.T, strict=True):
        _draw_cut(own_shape, name, image, image_processor)
        squashed.imshow(image.resize((112, 112)))
        squashed.set_title("squashed to a square", fontsize=9)
        for axes in (own_shape, squashed):
            axes.grid(False)
            axes.set_axis_off()
    show()


def _draw_cut(
    axes: Axes, name: str, image: Image.Image, image_processor: Qwen2VLImageProcessor
) -> None:
    """An image at the model's size: thin lines between patches, thick lines between tokens."""
    patch_size = image_processor.patch_size
    factor = patch_size * image_processor.merge_size
    height, width = smart_resize(
        image.height, image.width, factor, image_processor.min_pixels, image_processor.max_pixels
    )
    resized = image_processor.resize_images([image], height, width)[0]
    axes.imshow(resized.permute(1, 2, 0), extent=(0, width, height, 0))
    for side, draw_line in ((width, axes.axvline), (height, axes.axhline)):
        for edge in range(0, side + 1, patch_size):
            line_width = 0.4 if edge % factor else 1.4
            draw_line(edge, color="black", linestyle="-", linewidth=line_width)
    tokens = height * width // factor**2
    title = f"{name}: {image.width} × {image.height} px\n→ {width} × {height} px, {tokens} tokens"
    axes.set_title(title, fontsize=9)


def draw_rounding(factor: int) -> None:
    """A side in pixels, rounded to multiples of the factor; the halves are marked."""
    sides = np.arange(14, 169)
    rounded = [round(int(side) / factor) * factor for side in sides]
    halves = np.arange(42, 169, factor)  # 1.5, 2.5, ... times the factor
    to_even = [round(float(side) / factor) * factor for side in halves]
    up = halves + factor / 2
    plt.plot(sides, rounded, drawstyle="steps-mid", label="rounded")
    plt.plot(sides, sides, ":", color="grey", label="unchanged")
    plt.plot(halves, up, "o", ms=10, mfc="white", color="#d55e00", label="half up: not used")
    plt.plot(halves, to_even, "ko", label="half to even: used")
    plt.xticks(halves)
    plt.yticks(range(0, 197, factor))
    plt.title("A side of the image, and the side that the model sees")
    plt.xlabel("side of the image [px]")
    plt.ylabel("rounded side [px]")
    plt.legend()
    show()


def draw_tokens(
    sides: Sequence[float], curves: dict[str, list[float]], image_processor: Qwen2VLImageProcessor
) -> None:
    """Tokens against the root of the image's area: a curve for each shape, and the limits."""
    factor = image_processor.patch_size * image_processor.merge_size
    least = image_processor.min_pixels / factor**2
    most = image_processor.max_pixels / factor**2
    for (label, counts), style in zip(curves.items(), ("-", "--"), strict=True):
        plt.loglog(sides, counts, style, label=label)
    for level in (least, most):
        plt.axhline(level, color="grey", linewidth=0.8, linestyle=":")
    plt.text(20, most * 1.06, f"max_pixels: {most:,.0f} tokens")
    plt.text(max(sides), least * 1.06, f"min_pixels: {least:,.0f} tokens", ha="right")
    ticks = [factor * 2**k for k in range(20) if factor * 2**k < max(sides)]
    plt.xticks(ticks, ticks)
    plt.minorticks_off()
    plt.ylim(least / 2, most * 2)
    plt.title("What an image costs in tokens")
    plt.xlabel("root of the image's area [px]")
    plt.ylabel("tokens")
    plt.legend(loc="center left")
    show()


def draw_kernel(x: Tensor, enlarging: Tensor, shrinking: Tensor, taps: Tensor, at: Tensor) -> None:
    """The weight of an old pixel against its distance x, enlarging and shrinking to half."""
    plt.plot(x, enlarging, label="enlarging: reaches 2 pixels")
    plt.plot(x, shrinking, label="shrinking to half: reaches 4 pixels")
    plt.plot(taps, at, "ko", label="the four weights from above")
    plt.axhline(0, color="grey", linewidth=0.8)
    plt.title("How much an old pixel counts (Keys' cubic kernel)")
    plt.xlabel("distance from the new pixel's centre [old pixels]")
    plt.ylabel("weight")
    plt.legend()
    show()


def draw_order(
    frame: Tensor, orders: dict[str, Tensor], w: int, image_processor: Qwen2VLImageProcessor
) -> None:
    """The index of each patch, written over a resized image (3, height, width).

    An order is a tensor (P,): the patches, numbered row by row, in the order of a list. w: patches
    in a row.
    """
    patch_size = image_processor.patch_size
    factor = patch_size * image_processor.merge_size
    box = {"fc": "white", "ec": "none", "pad": 0.6}
    _, panels = plt.subplots(len(orders), 1, figsize=(8, 4.2 * len(orders)))
    for axes, (title, order) in zip(panels, orders.items(), strict=True):
        axes.imshow(frame.permute(1, 2, 0), alpha=0.35)
        rows = (order // w + 0.5) * patch_size - 0.5
        columns = (order % w + 0.5) * patch_size - 0.5
        axes.plot(columns, rows, color="grey", linewidth=1, linestyle="-")
        for index, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            axes.text(column, row, index, ha="center", va="center", fontsize=8, bbox=box)
        for side, set_ticks in (
            (frame.shape[2], axes.set_xticks),
            (frame.shape[1], axes.set_yticks),
        ):
            edges = np.arange(0, side + 1, factor)
            set_ticks(edges - 0.5, edges)
        axes.grid(color="black", alpha=0.8, linestyle="-")
        axes.set(title=f"the index of each patch, {title}", xlabel="column [px]", ylabel="row [px]")
    show()


def draw_patch(patch: Tensor, image_processor: Qwen2VLImageProcessor) -> None:
    """One patch (1176,) as the square that it is, and as the numbers that the model reads."""
    patch_size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    merge_size = image_processor.merge_size
    _, (as_image, as_vector) = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=(1, 4))

    # A grid is made of whole squares of patches: repeat the patch, and show one of them.
    square = patch.expand(merge_size**2, -1)
    image = course.image_from_patches(square, (1, merge_size, merge_size), image_processor)
    as_image.imshow(image[:, :patch_size, :patch_size].permute(1, 2, 0))
    as_image.set(title="a patch as an image", xlabel="column [px]", ylabel="row [px]")
    as_image.grid(False)

    as_vector.plot(patch, linewidth=0.8)
    for i in range(3 * depth):  # channel by channel, frame by frame
        start = i * patch_size**2
        channel = ("red", "green", "blue")[i // depth]
        line_width = 1 if i % depth else 2
        as_vector.axvline(start, color="grey", linewidth=line_width, linestyle="-")
        middle = start + patch_size**2 / 2
        as_vector.text(middle, 2.5, f"{channel}\nframe {i % depth}", ha="center", fontsize=8)
    as_vector.set_ylim(-2.3, 3.6)
    as_vector.set(title="the same patch as the model gets it")
    as_vector.set(xlabel="index in the vector", ylabel="normalised value")
    show()


def draw_costs(budgets: Sequence[int], costs: np.ndarray, factor: int) -> None:
    """A table and two plots of costs (budgets, 5), for `budgets` tokens of an image.

    Columns: milliseconds of processor, vision transformer and prefill; megabytes of the vision
    transformer with eager attention and with sdpa.
    """
    print("max_pixels   tokens   processor ms   vision ms   prefill ms   eager MB   sdpa MB")
    for n, row in zip(budgets, costs, strict=True):
        figures = "{:15.1f}{:12.1f}{:13.1f}{:11.1f}{:10.1f}".format(*row)
        print(f"{n * factor**2:10,}{n:9,}{figures}")

    _, (time, memory) = plt.subplots(1, 2, figsize=(10, 4))
    for i, name in enumerate(("processor", "vision transformer", "decoder, prefill")):
        time.loglog(budgets, costs[:, i], marker="osv"[i], label=name)
    time.set(title="Time, measured here", ylabel="time [ms]")
    for i, name in enumerate(("eager: stores all pairs", "sdpa: stores no pairs")):
        memory.loglog(budgets, costs[:, 3 + i], marker="os"[i], label=name)
    memory.set(title="Memory of the vision transformer, measured here")
    memory.set(ylabel="tensors at their peak [MB]")
    for axes in (time, memory):
        axes.set_xlabel(f"tokens of the image (max_pixels / {factor}²)")
        axes.set_xticks(budgets, budgets)
        axes.minorticks_off()
        axes.legend()
    show()


def draw_indices(yours: Tensor, right: Tensor, merge_size: int) -> None:
    """A reader's index of each patch (h, w), wrong ones grey; lines between the squares."""
    h, w = yours.shape
    _, axes = plt.subplots(figsize=(0.55 * w + 1.2, 0.55 * h + 0.7))
    axes.imshow((yours != right).to(torch.float32), cmap="Greys", vmin=0, vmax=2.5)
    for row in range(h):
        for column in range(w):
            index = int(yours[row, column])
            axes.text(column, row, index, ha="center", va="center", fontsize=9)
    for edge in range(0, w + 1, merge_size):
        axes.axvline(edge - 0.5, color="black", linewidth=1.5)
    for edge in range(0, h + 1, merge_size):
        axes.axhline(edge - 0.5, color="black", linewidth=1.5)
    axes.set(title="your indices; grey: wrong", xlabel="column", ylabel="row", xticks=range(w))
    axes.set_yticks(range(h))
    axes.grid(False)
    show()
