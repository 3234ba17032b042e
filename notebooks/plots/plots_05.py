"""The drawings of notebook 05: logits, attention scores and weights, attention maps."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plots.lettering import show
from plots.shared import write_table


def draw_top_tokens(
    image: Image.Image, logits: Tensor, tokens: Tensor, names: Sequence[str], title: str
) -> None:
    """An image, and beside it the logits (vocabulary,) of some tokens with their probabilities."""
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    left.imshow(image)
    left.set_axis_off()
    left.set_title("the image")
    bars = right.barh(names, logits[tokens].tolist(), color="0.6", edgecolor="black")
    probabilities = logits.softmax(-1)[tokens].tolist()
    right.bar_label(bars, [f"{p:.2%}" for p in probabilities], padding=3)
    right.invert_yaxis()
    right.margins(x=0.25)
    right.set(title=title, xlabel="logit (beside it: probability)")
    show()


def draw_scores(tables: dict[str, Tensor]) -> None:
    """Tables (queries, keys) of numbers side by side, by title; the larger, the darker."""
    _, panels = plt.subplots(1, len(tables), figsize=(9, 2.8))
    for axes, (title, numbers) in zip(panels, tables.items(), strict=True):
        texts = [[f"{x:.2f}".replace("-inf", "−∞") for x in row] for row in numbers.tolist()]
        rows, columns = numbers.shape
        write_table(axes, numbers.clamp(min=0), texts, range(rows), range(columns))
        axes.set(title=title, xlabel="key: token")
    panels[0].set_ylabel("query: token")
    show()


def draw_gate(g: Tensor, curves: dict[str, Tensor]) -> None:
    """Functions of g as lines."""
    _, axes = plt.subplots(figsize=(6, 2.8))
    for label, y in curves.items():
        axes.plot(g, y, label=label)
    axes.set(title="SiLU: how far the gate opens", xlabel="g", ylabel="gate")
    axes.legend()
    show()


def draw_stacked_bars(
    groups: dict[str, Sequence[float]], labels: Sequence[str], title: str, ylabel: str, xlabel: str
) -> None:
    """A bar for each label, made of a part for each group."""
    _, axes = plt.subplots(figsize=(8, 3.3))
    positions = np.arange(len(labels))
    bottom = np.zeros(len(labels))
    styles = (("0.4", ""), ("0.95", ""), ("0.75", "//"))
    for (name, heights), (shade, hatch) in zip(groups.items(), styles, strict=True):
        axes.bar(
            positions,
            heights,
            0.8,
            bottom=bottom,
            color=shade,
            hatch=hatch,
            edgecolor="black",
            label=name,
        )
        bottom = bottom + np.array(heights)
    axes.set_xticks(positions, labels, fontsize=9)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.margins(y=0)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    show()


def draw_attention_maps(
    image: Image.Image, maps: Tensor, rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Attention to the image's tokens, maps (rows, columns, h, w), over the image's outlines."""
    h, w = maps.shape[2:]
    grey = image.convert("L").resize((28 * w, 28 * h))
    level = sum(grey.getextrema()) / 2
    size = (9, 1.6 * len(rows))
    _, panels = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False)
    for i, (line, name) in enumerate(zip(panels, rows, strict=True)):
        for axes, weights, title in zip(line, maps[i], columns, strict=True):
            axes.imshow(weights, vmin=0, extent=(0, 28 * w, 28 * h, 0))
            axes.contour(grey, levels=[level], colors="#d55e00", linewidths=2)
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.set_xlabel(f"{weights.sum():.0%} on the image", fontsize=8)
            if i == 0:
                axes.set_title(title, fontsize=10)
        line[0].set_ylabel(name, fontsize=9)
    title = (
        "What the step that generates a word attends to (white: nothing, black: most, in each map)"
    )
    plt.suptitle(title, fontsize=10)
    show()


def draw_head_weights(yours: Tensor, right: Tensor, num_keys: int) -> None:
    """Attention weights (H, T, S) of each query head, of an answer and of the right one."""
    num_heads, num_queries, _ = right.shape
    _, panels = plt.subplots(2, num_heads, figsize=(8, 3))
    for line, name, weights in zip(panels, ("yours", "right"), (yours, right), strict=True):
        for head, axes in enumerate(line):
            axes.imshow(weights[head], vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
        line[0].set_ylabel(name)
    for head, axes in enumerate(panels[0]):
        axes.set_title(f"query head {head}", fontsize=9)
    panels[1, 0].set_xlabel(f"{num_keys} keys", fontsize=9)
    title = f"Attention weights of the last {num_queries} of {num_keys} tokens, in each query head"
    plt.suptitle(title, fontsize=10)
    show()


def draw_final_rows(tokens: Tensor, yours: Tensor, right: Tensor | None = None) -> None:
    """Tokens (rows, steps), with a square around an answer's rows and a circle around the right."""
    num_rows, num_steps = tokens.shape
    _, axes = plt.subplots(figsize=(0.9 * num_steps + 2.5, 0.5 * num_rows + 1.2))
    is_final = (tokens == tokens[-1]).float()
    axes.imshow(is_final, vmin=0, vmax=2.5, aspect="auto", origin="lower")
    for i, row in enumerate(tokens.tolist()):
        for j, token in enumerate(row):
            axes.text(j, i, token, ha="center", va="center")
    steps = torch.arange(num_steps)
    axes.plot(steps, yours, "s", ms=20, fillstyle="none", color="black", label="yours")
    if right is not None:
        axes.plot(steps, right, "o", ms=25, fillstyle="none", color="#d55e00", label="right")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), labelspacing=1.5, borderpad=1)
    axes.set(title="grey: the final token", xlabel="step", ylabel="row")
    axes.set(xticks=range(num_steps), yticks=range(num_rows))
    axes.grid(False)
    show()
