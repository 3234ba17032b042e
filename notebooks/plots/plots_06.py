"""The drawings of notebook 06: work with and without a cache, sampling, padded rows."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Patch
from torch import Tensor

from plots.lettering import show


def draw_work(T: int, steps: int) -> None:
    """The attention scores of each step: computed now (dark), before (light), or masked (white)."""
    _, panels = plt.subplots(2, steps, figsize=(2 * steps + 1.5, 4.3))
    for line, name in zip(panels, ("without a cache", "with a cache"), strict=True):
        for i, axes in enumerate(line):
            S = T + i
            shades = torch.ones(S, S)
            if name == "with a cache" and i > 0:
                shades[:-1] = 0.4
            shades = shades.tril()
            axes.imshow(shades, vmin=0, vmax=1.5)
            axes.set(xticks=range(S), yticks=range(S))
            axes.tick_params(labelsize=8)
            axes.grid(False)
            computed = int((shades == 1).sum())
            axes.set_title(f"step {i + 1}: {computed} scores", fontsize=9)
        line[0].set_ylabel(f"{name}\nquery of token", fontsize=9)
    for axes in panels[1]:
        axes.set_xlabel("key of token", fontsize=9)
    title = "Scores of one head: dark = computed in this step, light = not needed again"
    plt.suptitle(title, fontsize=10)
    show()


def draw_choices(
    words: Sequence[str], settings: Sequence[str], probabilities: Tensor, counted: Tensor
) -> None:
    """A panel for each setting: probabilities (settings, n) as bars, counted shares as crosses."""
    _, panels = plt.subplots(1, len(settings), figsize=(11, 3.2), sharey=True)
    x = range(len(words))
    for i, axes in enumerate(panels):
        p, share = probabilities[i, : len(words)], counted[i, : len(words)]
        axes.bar(x, p, color="0.8", edgecolor="black", label="probability")
        axes.plot(x, share, "x", color="black", ms=8, markeredgewidth=2, label="counted")
        axes.set_xticks(x, words, rotation=60, fontsize=9)
        axes.set_title(settings[i].replace(", ", ",\n"), fontsize=10)
    panels[0].set_ylabel("share of 2,000 draws")
    panels[0].legend(fontsize=9)
    show()


def draw_rows(
    batches: dict[str, Mapping[str, Tensor]], names: Sequence[str], image_token_id: int
) -> None:
    """Which columns of each row are padding, text and image tokens, for each batch."""
    size = (9, 1.75 * len(batches))
    _, panels = plt.subplots(len(batches), 1, figsize=size, sharex=True)
    for axes, (title, batch) in zip(panels, batches.items(), strict=True):
        ids = batch["input_ids"].cpu()
        mask = batch["attention_mask"].cpu()
        shades = torch.full(ids.shape, 0.1)
        shades = shades.masked_fill(ids == image_token_id, 0.4)
        shades = shades.masked_fill(mask == 0, 0.9)
        axes.imshow(shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.axvline(ids.shape[1] - 1.5, color="#d55e00", linewidth=2)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title)
        axes.grid(False)
    panels[-1].set_xlabel("column (the next token is predicted at the last one, right of the line)")
    shades = {"text": "0.9", "image": "0.6", "padding": "0.1"}
    legend = [
        Patch(facecolor=shade, edgecolor="black", label=kind) for kind, shade in shades.items()
    ]
    panels[0].legend(handles=legend, loc="center left", bbox_to_anchor=(1, 0.5))
    show()


def draw_passes(yours: Sequence[int], enough: Sequence[int] | None = None) -> None:
    """How many tokens each pass through the decoder reads, and how many would be enough."""
    _, axes = plt.subplots(figsize=(7, 2.8))
    axes.plot(range(1, len(yours) + 1), yours, "s", color="black", ms=8, label="yours")
    if enough is not None:
        axes.plot(range(1, len(enough) + 1), enough, "x", color="#d55e00", ms=9, label="enough")
    axes.set(title="Tokens read in each pass", xlabel="pass", ylabel="tokens", yscale="log")
    axes.legend()
    show()


def draw_cut(p: Tensor, share: float, yours: Tensor, right: Tensor | None = None) -> None:
    """Probabilities (n,) before and after a min-p cut, and its threshold."""
    order = p.argsort(descending=True)
    x = range(len(p))
    _, axes = plt.subplots(figsize=(7, 3))
    axes.bar(x, p[order], color="0.9", edgecolor="black", label="before")
    axes.plot(x, yours[order], "s", color="black", label="yours")
    if right is not None:
        axes.plot(x, right[order], "x", color="#d55e00", ms=9, label="right")
    label = f"threshold: {share} of the highest"
    axes.axhline(share * float(p.max()), color="0.3", linestyle="--", label=label)
    axes.set(title="min-p", xlabel="tokens, the most probable first", ylabel="probability")
    axes.set_xticks(x)
    axes.legend()
    show()
