"""Drawings that several notebooks share."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator
from PIL import Image
from torch import Tensor

from plots.lettering import show


def draw_images(
    images: Image.Image | Tensor | Sequence[Image.Image | Tensor],
    titles: Sequence[str] | None = None,
    height: float = 2.6,
) -> None:
    """Images side by side: PIL images, or tensors (3, height, width) or (height, width)."""
    if not isinstance(images, (list, tuple)):
        images = [images]
    if titles is None:
        titles = [""] * len(images)
    size = (height * 1.25 * len(images), height)
    _, panels = plt.subplots(1, len(images), figsize=size, squeeze=False)
    for axes, image, title in zip(panels[0], images, titles, strict=True):
        if isinstance(image, Tensor) and image.ndim == 3:
            image = image.permute(1, 2, 0)  # matplotlib wants the channels last
        axes.imshow(image)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    show()


def write_table(
    axes: Axes,
    shades: Tensor,
    texts: Sequence[Sequence[str]],
    rows: Sequence[object],
    columns: Sequence[object],
) -> None:
    """A table of texts in given axes; the higher a number of `shades` (0 to 1), the darker."""
    axes.imshow(shades, vmin=0, vmax=2, aspect="auto")
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            axes.text(j, i, text, ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)


def draw_table(
    shades: Tensor,
    texts: Sequence[Sequence[str]],
    rows: Sequence[object],
    columns: Sequence[object],
    title: str,
    xlabel: str = "",
    ylabel: str = "",
) -> None:
    """A table of texts; the higher a number of `shades` (0 to 1), the darker its cell."""
    _, axes = plt.subplots(figsize=(1.05 * len(columns) + 2, 0.4 * len(rows) + 1.2))
    write_table(axes, shades, texts, rows, columns)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    show()


def draw_bars(
    groups: dict[str, Sequence[float]],
    labels: Sequence[str],
    title: str,
    ylabel: str,
    xlabel: str = "",
    yscale: str = "linear",
    number_format: str = "",
) -> None:
    """Bars for each label, one of each group side by side, with their numbers on top."""
    _, axes = plt.subplots(figsize=(8, 3.3))
    positions = np.arange(len(labels))
    width = 0.8 / len(groups)
    styles = (("0.6", ""), ("0.9", "//"))
    for i, (name, heights) in enumerate(groups.items()):
        shade, hatch = styles[i]
        middles = positions + (i - (len(groups) - 1) / 2) * width
        bars = axes.bar(
            middles, heights, width, color=shade, hatch=hatch, edgecolor="black", label=name
        )
        if number_format:
            axes.bar_label(bars, fmt=number_format, padding=2, fontsize=9)
    axes.set_xticks(positions, labels, fontsize=9)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale=yscale)
    axes.margins(y=0.15)
    if len(groups) > 1:
        axes.legend()
    show()


def draw_lines(
    x: Sequence[float],
    curves: dict[str, Sequence[float] | Tensor],
    title: str,
    xlabel: str,
    ylabel: str,
    xscale: str = "linear",
    yscale: str = "linear",
    ylim: tuple[float, float] | None = None,
    marker: str | None = None,
    horizontal: tuple[float, str] | None = None,
    vertical: tuple[float, str] | None = None,
    legend_outside: bool = False,
) -> None:
    """A line for each curve.

    horizontal, vertical: a further straight line at this y or x, and the text beside it.
    """
    _, axes = plt.subplots(figsize=(8, 3.3))
    for label, y in curves.items():
        axes.plot(x, y, marker=marker, label=label)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale, ylim=ylim)
    if isinstance(x, range):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if xscale == "log":
        axes.set_xticks(list(x), [str(number) for number in x])
    if yscale == "log":
        lowest, highest = axes.get_ylim()
        if highest < 100 * lowest:  # powers of ten alone would name one or two values
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
    if horizontal is not None:
        y, text = horizontal
        axes.axhline(y, color="0.4", linewidth=1, linestyle="-")
        below = {"xytext": (0, -4), "textcoords": "offset points", "ha": "right", "va": "top"}
        axes.annotate(text, (max(x), y), **below)
    if vertical is not None:
        at, text = vertical
        axes.axvline(at, color="0.4", linewidth=1, linestyle="-")
        top = axes.get_ylim()[1]
        right = {"xytext": (4, -4), "textcoords": "offset points", "va": "top"}
        axes.annotate(text, (at, top), **right)
    axes.minorticks_off()
    if legend_outside:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.legend()
    show()
