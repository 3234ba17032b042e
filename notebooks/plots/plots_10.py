"""Drawings of notebook 10."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
from PIL import Image
from torch import Tensor

LONGEST_LABEL = 28  # letters


def draw_folder(images: dict[str, Image.Image]) -> None:
    """All images with their names."""
    columns = 8
    rows = math.ceil(len(images) / columns)
    _, panels = plt.subplots(rows, columns, figsize=(9, 1.3 * rows), squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (name, image) in zip(panels.flat, images.items(), strict=False):
        axes.imshow(image)
        axes.set_title(name, fontsize=8)
    plt.show()


def draw_side_by_side(
    images: dict[str, Image.Image],
    names: Sequence[str],
    left: Sequence[str],
    right: Sequence[str],
    titles: tuple[str, str] = ("before", "after"),
) -> None:
    """Each image with what was said about it at two times."""
    columns = 4
    rows = math.ceil(len(names) / columns)
    _, panels = plt.subplots(rows, columns, figsize=(9, 1.9 * rows), squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, name, first, second in zip(panels.flat, names, left, right, strict=False):
        axes.imshow(images[name])
        said = f"{titles[0]}: {plain(first)}\n{titles[1]}: {plain(second)}"
        axes.set_title(said, fontsize=8)
    plt.show()


def plain(answer: str) -> str:
    """An answer as a label: short, on one line, and nothing that matplotlib takes for a formula."""
    shown = "".join(letter if letter.isprintable() else " " for letter in answer)
    if len(shown) > LONGEST_LABEL:
        shown = shown[: LONGEST_LABEL - 1] + "…"
    return shown.replace("$", r"\$")


def draw_scores(scores: dict[str, float], guessing: float) -> None:
    """Shares of right answers, 0 to 1, beside the share that a guess gets."""
    shades = ["white" if "blind" in name else "0.5" for name in scores]
    hatches = ["//" if "blind" in name else "" for name in scores]
    plt.figure(figsize=(7, 3))
    bars = plt.bar(
        list(scores),
        [100 * share for share in scores.values()],
        color=shades,
        hatch=hatches,
        edgecolor="black",
    )
    plt.bar_label(bars, fmt="%.0f")
    plt.axhline(100 * guessing, color="black", linestyle=":", label="guessing one of the things")
    plt.title("Images that were kept from the training")
    plt.ylabel("right answers (%)")
    plt.ylim(0, 115)
    plt.legend()
    plt.show()


def draw_likeness(likeness: Tensor, words: Sequence[str]) -> None:
    """The cosine of the rows of each two tokens, (tokens, tokens)."""
    labels = [f"“{plain(word)}”" for word in words]
    _, axes = plt.subplots(figsize=(6, 4.6))
    shown = axes.imshow(likeness, vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_title("How like each other the rows of the tokens are")
    axes.grid(False)
    plt.colorbar(shown, label="cosine (1: the same direction)")
    plt.show()


def draw_memory(parts: dict[str, float], everything: float) -> None:
    """Gigabytes of a fine-tuning with LoRA, part by part, beside those of training all weights."""
    plt.figure(figsize=(8, 2.2))
    left = 0.0
    styles = (("0.3", ""), ("white", "//"), ("0.7", ""), ("white", ".."))
    for (name, size), (shade, hatch) in zip(parts.items(), styles, strict=True):
        label = f"{name}: {size:.2f}"
        plt.barh("LoRA", size, left=left, color=shade, hatch=hatch, edgecolor="black", label=label)
        left += size
    plt.barh("all weights", everything, color="0.9", edgecolor="black")
    plt.title("Memory of a fine-tuning of the 2B model, at least")
    plt.xlabel("GB")
    plt.legend(fontsize=8)
    plt.show()


def draw_halves(counts: dict[str, tuple[int, int]]) -> None:
    """How many images of each thing are in the two halves of an answer."""
    plt.figure(figsize=(6, 2.4))
    positions = range(len(counts))
    trained = [pair[0] for pair in counts.values()]
    kept = [pair[1] for pair in counts.values()]
    plt.bar([p - 0.2 for p in positions], trained, 0.4, color="0.4", label="trained on")
    plt.bar(
        [p + 0.2 for p in positions],
        kept,
        0.4,
        color="white",
        hatch="//",
        edgecolor="black",
        label="kept",
    )
    plt.xticks(positions, list(counts))
    plt.title("Your halves")
    plt.ylabel("images")
    plt.legend()
    plt.show()


def draw_outputs(right: Tensor, yours: Tensor) -> None:
    """The first row of what LoRA gives, and of a reader's answer."""
    _, axes = plt.subplots(figsize=(7, 2.4))
    axes.plot(right[0], "ko", mfc="white", markersize=8, label="right")
    axes.plot(yours[0], "x", color="#d55e00", markersize=6, label="yours")
    axes.set(title="y for the first token", xlabel="index", ylabel="value")
    axes.legend()
    plt.show()


def draw_counts(rows: Sequence[tuple[str, int, int]]) -> None:
    """Right numbers of trained values and those of an answer, on a logarithmic axis."""
    plt.figure(figsize=(7, 2.4))
    positions = range(len(rows))
    plt.bar([p - 0.2 for p in positions], [row[1] for row in rows], 0.4, color="0.4", label="right")
    yours = [max(1, row[2]) for row in rows]
    plt.bar(
        [p + 0.2 for p in positions],
        yours,
        0.4,
        color="white",
        hatch="//",
        edgecolor="black",
        label="yours",
    )
    plt.yscale("log")
    plt.xticks(positions, [row[0] for row in rows], fontsize=8)
    plt.ylabel("numbers")
    plt.legend()
    plt.show()
