"""Drawings of notebook 02."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from plots.lettering import show


def draw_one_patch(image: Image.Image, row: int, column: int, patch_size: int) -> None:
    """An image with a frame around one of its patches, and that patch alone."""
    x, y = column * patch_size, row * patch_size
    _, (whole, patch) = plt.subplots(1, 2, figsize=(7, 3), width_ratios=(2, 1))
    whole.imshow(image)
    whole.add_patch(Rectangle((x, y), patch_size, patch_size, fill=False, linewidth=2))
    grid = f"{image.height // patch_size} × {image.width // patch_size}"
    whole.set_title(f"{grid} patches of {patch_size} × {patch_size} pixels", fontsize=9)
    patch.imshow(image.crop((x, y, x + patch_size, y + patch_size)))
    patch.set_title(f"the patch in row {row}, column {column}", fontsize=9)
    for axes in (whole, patch):
        axes.set_axis_off()
    show()


def draw_rotations(rows: Tensor, columns: Tensor, angles: Tensor) -> None:
    """Four pairs as clock hands over the grid: fast and slow, rotated by row and by column."""
    num_frequencies = angles.shape[1] // 2  # d/4
    slow = min(num_frequencies - 1, max(1, num_frequencies // 4))
    pairs = {
        "rotated by the row, fast": 0,
        "rotated by the row, slower": slow,
        "rotated by the column, fast": num_frequencies,
        "rotated by the column, slower": num_frequencies + slow,
    }
    last_row, last_column = int(rows.max()), int(columns.max())
    style = {"angles": "xy", "scale_units": "xy", "scale": 1.25, "width": 0.006, "pivot": "mid"}
    _, panels = plt.subplots(2, 2, figsize=(9, 6.4))
    for axes, (title, pair) in zip(panels.flat, pairs.items(), strict=True):
        axes.quiver(columns, rows, angles[:, pair].cos(), angles[:, pair].sin(), **style)
        axes.set(title=f"pair {pair}: {title}", xlabel="column [patches]", ylabel="row [patches]")
        axes.set(xticks=range(last_column + 1), yticks=range(last_row + 1), aspect="equal")
        axes.set(xlim=(-0.7, last_column + 0.7), ylim=(last_row + 0.7, -0.7))
    show()


def draw_scores(scores: Sequence[Tensor], positions: Sequence[tuple[int, int]]) -> None:
    """Scores (h, w) of every key with the query at each of the positions, marked by a cross."""
    lowest = min(float(score.min()) for score in scores)
    highest = float(scores[0].max())
    _, panels = plt.subplots(1, len(scores), figsize=(10, 3))
    for axes, score, (row, column) in zip(panels, scores, positions, strict=True):
        shown = axes.imshow(score, vmin=lowest, vmax=highest)
        axes.plot(column, row, "wx", markersize=9, markeredgewidth=2.5)
        axes.set(title=f"query in row {row}, column {column}")
        axes.set(xlabel="column [patches]", ylabel="row [patches]")
        axes.grid(False)
    plt.colorbar(shown, ax=panels, label="score (1: same position)")
    show()


def draw_attention(
    image: Image.Image, maps: Tensor, row: int, column: int, layers: Sequence[int]
) -> None:
    """Attention weights (layers, heads, h, w) of one patch, as light on the image.

    A cross marks the patch. The root of a weight is drawn, so that small weights can be seen.
    """
    heads, h, w = maps.shape[1:]
    pixels = torch.from_numpy(np.array(image.convert("RGB")))  # (height, width, 3)
    # The patch row and column of every pixel.
    patch_row = torch.arange(image.height) * h // image.height
    patch_column = torch.arange(image.width) * w // image.width

    size = (10, 10 * len(maps) * h / w / heads + 0.6)
    _, panels = plt.subplots(len(maps), heads, figsize=size)
    for layer, layer_maps, axes_row in zip(layers, maps, panels, strict=True):
        for head, (weights, axes) in enumerate(zip(layer_maps, axes_row, strict=True)):
            light = 0.15 + 0.85 * (weights / weights.max()).sqrt()
            light = light[patch_row][:, patch_column, None]  # (height, width, 1)
            axes.imshow((pixels * light / 255).numpy(), extent=(0, w, h, 0))
            axes.plot(column + 0.5, row + 0.5, "wx", markersize=9, markeredgewidth=4)
            axes.plot(column + 0.5, row + 0.5, "kx", markersize=8, markeredgewidth=1.5)
            axes.set_title(f"block {layer}, head {head}", fontsize=8)
            axes.set_axis_off()
    show()


def draw_distances(distances: Tensor, uniform: float) -> None:
    """The mean distance (blocks, heads) to which each head attends; uniform: equal weights."""
    plt.figure(figsize=(8, 3.4))
    plt.plot(distances, "o", color="black", mfc="white")
    plt.axhline(uniform, linestyle="--", color="grey", label="equal weights")
    plt.xticks(range(len(distances)))
    plt.ylim(0, None)
    plt.title("How far away each head attends (a circle is a head)")
    plt.xlabel("transformer block")
    plt.ylabel("mean distance [patches]")
    plt.legend(loc="lower right")
    show()


def draw_damage(name: str, damage: dict[str, tuple[Tensor, str]]) -> None:
    """For each mistake the relative change of every token (rows, columns), and the answer."""
    _, panels = plt.subplots(1, len(damage), figsize=(11, 3.1))
    for axes, (mistake, (change, answer)) in zip(panels, damage.items(), strict=True):
        rows, columns = change.shape
        axes.imshow(change, vmin=0, vmax=1.6)
        for row in range(rows):
            for column in range(columns):
                value = float(change[row, column])
                style = {"color": "white" if value > 0.8 else "black", "fontsize": 8}
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", **style)
        axes.set_title(f"{name}: {mistake}\n" + textwrap.fill(answer, 27), fontsize=9)
        axes.set(xlabel="column [tokens]", ylabel="row [tokens]")
        axes.set(xticks=range(columns), yticks=range(rows))
        axes.grid(False)
    show()


def draw_rotation(x: Tensor, right: Tensor, yours: Tensor, row: int, column: int) -> None:
    """A vector before its rotation, after it, and as a reader has rotated it."""
    _, axes = plt.subplots(figsize=(9, 2.8))
    axes.plot(x, color="grey", linewidth=1, linestyle=":", label="before")
    axes.plot(right, "ko", mfc="white", markersize=8, label="right")
    axes.plot(yours.to(torch.float32), "x", color="#d55e00", markersize=6, label="yours")
    axes.set(title=f"a vector of {len(x)} numbers rotated to row {row}, column {column}")
    axes.set(xlabel="index in the vector", ylabel="value")
    axes.set_ylim(None, float(x.abs().max()) + 1.5)
    axes.legend(ncols=3, loc="upper center")
    show()


def draw_visibility(right: Tensor, yours: Tensor) -> None:
    """Which patch attends to which, (P, P) of 0 and 1: as it should be, and a reader's."""
    _, panels = plt.subplots(1, 2, figsize=(7, 3.5))
    for axes, attends, title in zip(panels, (right, yours), ("right", "yours"), strict=True):
        axes.imshow(attends, vmin=0, vmax=1.5)
        axes.set(
            title=f"{title} (grey: attends to it)", xlabel="key (patch)", ylabel="query (patch)"
        )
        axes.set(xticks=range(len(attends)), yticks=range(len(attends)))
    show()
