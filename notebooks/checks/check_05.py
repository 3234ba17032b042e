"""What the exercises of notebook 05 are checked with, and how its tables, bars and maps are drawn."""

import math
from unittest import mock

import matplotlib.pyplot as plt
import torch
from course import Wrong
from matplotlib.ticker import MaxNLocator

from qwen2vl import attention

COPIES = ("repeat", "repeat_interleave", "expand")


def table(axes, shades, texts, rows, columns, **names):
    """A grid of texts; the higher a number of `shades` (0 to 1, or a little more), the darker."""
    axes.imshow(shades, vmin=0, vmax=2, aspect="auto")
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            axes.text(j, i, text, ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    axes.set(**names)


def bars(groups, labels, form="", stacked=False, **names):
    """Bars for each label, one of each group: side by side with their numbers, or stacked."""
    _, axes = plt.subplots(figsize=(8, 3.3))
    places, width, bottom = (
        torch.arange(len(labels)),
        0.8 if stacked else 0.8 / len(groups),
        torch.zeros(len(labels)),
    )
    styles = (
        (("0.4", ""), ("0.95", ""), ("0.75", "//"), ("0.55", ".."))
        if stacked
        else (("0.6", ""), ("0.9", "//"))
    )
    for k, ((name, heights), (shade, hatch)) in enumerate(zip(groups.items(), styles, strict=False)):
        x = places if stacked else places + (k - (len(groups) - 1) / 2) * width
        look = {"color": shade, "hatch": hatch, "edgecolor": "black", "label": name}
        drawn = axes.bar(x, heights, width, bottom=bottom if stacked else None, **look)
        bottom = bottom + torch.tensor(heights)
        if form:
            axes.bar_label(drawn, fmt=form, padding=2, fontsize=9)
    axes.set_xticks(places, labels, fontsize=9)
    axes.set(**names)
    axes.margins(y=0 if stacked else 0.15)
    if len(groups) > 1:
        axes.legend(**({"loc": "center left", "bbox_to_anchor": (1, 0.5)} if stacked else {}))
    plt.show()


def lines(x, curves, note=None, marker=None, scales=(), outside=False, **names):
    """A line for each curve (label to numbers); note: (x or None, y, text), with a line at x, else at y."""
    _, axes = plt.subplots(figsize=(8, 3.3))
    for label, y in curves.items():
        axes.plot(x, y, marker=marker, label=label)
    axes.set(**names)
    if isinstance(x, range):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if "log x" in scales:
        axes.set_xscale("log")
        axes.set_xticks(list(x), list(x))
    if "log y" in scales:
        axes.set_yscale("log")
    if note:
        where, y, text = note
        if where is None:
            axes.axhline(y, color="0.4", linewidth=1)
            axes.annotate(text, (max(x), y), (0, -4), textcoords="offset points", ha="right", va="top")
        else:
            axes.axvline(where, color="0.4", linewidth=1)
            axes.annotate(text, (where, y), (4, 0), textcoords="offset points")
    axes.minorticks_off()
    axes.legend(**({"loc": "center left", "bbox_to_anchor": (1, 0.5)} if outside else {}))
    plt.show()


def draw_next(picture, words, logits, title):
    """A picture, and beside it the logits of a few tokens with their probabilities."""
    top = logits.topk(6)
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    left.imshow(picture)
    left.set_axis_off()
    left.set_title("the picture")
    bars = right.barh(words(top.indices), top.values.tolist(), color="0.6", edgecolor="black")
    shares = logits.softmax(-1)[top.indices].tolist()
    right.bar_label(bars, [f"{p:.2%}" for p in shares], padding=3)
    right.invert_yaxis()
    right.margins(x=0.25)
    right.set(title=title, xlabel="logit (beside it: probability)")
    plt.show()


def draw_looks(picture, maps, rows, columns):
    """Attention on the picture's tokens, maps (rows, columns, h, w), over the outlines of what it shows."""
    h, w = maps.shape[2:]
    grey = picture.convert("L").resize((28 * w, 28 * h))
    level = sum(grey.getextrema()) / 2
    _, panels = plt.subplots(len(rows), len(columns), figsize=(9, 1.6 * len(rows)), squeeze=False)
    for line, row, name in zip(panels, maps, rows, strict=True):
        for axes, look, title in zip(line, row, columns, strict=True):
            axes.imshow(look, vmin=0, extent=(0, 28 * w, 28 * h, 0))
            axes.contour(grey, levels=[level], colors="#d55e00", linewidths=2)
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.set_xlabel(f"{look.sum():.0%} on the picture", fontsize=8)
            axes.set_title(title if name == rows[0] else "", fontsize=10)
        line[0].set_ylabel(name, fontsize=9)
    plt.suptitle(
        "Where the step that says a word looks (white: not at all, black: most, in each map)", fontsize=10
    )
    plt.show()


def attend(q, k, v, tiled=False, seen=None, scale=True):
    """The right answer with one mistake at a time, to name it."""
    G, (T, S) = q.shape[1] // k.shape[1], (q.shape[2], k.shape[2])
    k, v = (x.repeat(1, G, 1, 1) if tiled else x.repeat_interleave(G, 1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) / (math.sqrt(q.shape[-1]) if scale else 1)
    seen = torch.ones(T, S).tril(S - T) if seen is None else seen
    return (scores.masked_fill(seen == 0, -math.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)


def mistake(q, k, v, found):
    """What the numbers give away, or nothing."""
    T, S = q.shape[2], k.shape[2]
    rows = torch.ones(T, S).tril(S - T).repeat_interleave(q.shape[1] // k.shape[1], 0)
    suspects = {
        "each head's T queries need the T rows of the mask in order, yours are each repeated":
            {"seen": rows.view(-1, T, S).repeat(k.shape[1], 1, 1)},
        "query head h should read key-value head h // (H / K): neighbours share; yours are dealt out in turn":
            {"tiled": True},
        "no query may see a later key, yours see all of them": {"seen": torch.ones(T, S)},
        f"{T} queries are the LAST of {S} tokens: query 0 sees {S - T + 1} keys; shift the mask's diagonal":
            {"seen": torch.ones(T, S).tril()},
        "the scores aren't divided by √d": {"scale": False},
    }  # fmt: skip
    for what, change in suspects.items():
        if torch.allclose(attend(q, k, v, **change), found, atol=1e-4):
            return f": {what}"
    swapped = attend(q, k, v).unflatten(-1, (q.shape[1], -1)).transpose(1, 2).reshape(found.shape)
    if torch.allclose(swapped, found, atol=1e-4):
        return ": heads and tokens are in the wrong order, (B, H, T, d) has to become (B, T, H, d) first"
    return ""


def draw_weights(grouped, H=4, K=2, T=3, S=5):
    """An answer's attention weights: with the identity for values, what is collected is the weights."""
    q, k = 2 * torch.randn(1, H, T, S), torch.randn(1, K, S, S)  # d = S
    v = torch.eye(S).expand(1, K, S, S)
    rows = [("yours", grouped(q, k, v)), ("right", attend(q, k, v))]
    _, panels = plt.subplots(2, H, figsize=(8, 3))
    for line, (name, collected) in zip(panels, rows, strict=True):
        for head, axes in enumerate(line):
            axes.imshow(collected.view(T, H, S)[:, head], vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"query head {head}" if name == "yours" else "", fontsize=9)
            axes.grid(False)
        line[0].set_ylabel(name)
        line[0].set_xlabel(f"{S} keys" if name == "right" else "", fontsize=9)
    plt.suptitle(
        f"Weights of the last {T} of {S} tokens, {H} query heads on {K} key-value heads", fontsize=10
    )
    plt.show()


def grouped(answer):
    """Exercise 1: grouped-query attention without copies."""
    torch.manual_seed(0)
    for B, H, K, T, S, d in (
        (1, 4, 2, 3, 3, 4), (2, 6, 2, 4, 4, 8), (1, 6, 3, 2, 7, 4), (3, 6, 2, 1, 5, 4), (1, 3, 3, 4, 6, 8),
    ):  # fmt: skip
        q, k, v = torch.randn(B, H, T, d), torch.randn(B, K, S, d), torch.randn(B, K, S, d)
        copied = [mock.patch.object(torch.Tensor, name) for name in COPIES]
        found = answer(q, k, v)
        sizes = f"{B=}, {H=}, {K=}, {T=}, {S=}, {d=}"
        if not isinstance(found, torch.Tensor) or found.shape != (B, T, H * d):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise Wrong(f"with {sizes} it gives {shape}, wanted is {(B, T, H * d)}")
        right = attention(q, k, v, "eager", causal=True)[0]
        if (apart := float((found - right).abs().max())) > 1e-5 or not found.isfinite().all():
            if not found.isfinite().all():
                raise Wrong(f"with {sizes} it has NaN: does the mask leave a query that may see nothing?")
            draw_weights(answer)
            raise Wrong(f"with {sizes} it is {apart:.2g} off{mistake(q, k, v, found)}")
        for patch, name in zip(copied, COPIES, strict=True):
            with patch as spy:
                spy.side_effect = Wrong(
                    f"it calls `{name}` on a tensor: leave k and v as they are, and let the mask broadcast"
                )
                answer(q, k, v)
    draw_weights(answer)


def settled(answer):
    """Exercise 2: from which row on the top token stays the final one."""
    generator = torch.Generator().manual_seed(0)
    examples = [torch.tensor([[7, 7, 5, 1], [9, 7, 7, 2], [3, 5, 5, 3], [9, 7, 5, 4]])]
    examples += [torch.randint(2, (rows, 6), generator=generator) for rows in (1, 2, 5, 9)]
    for tops in examples:
        rows, steps = tops.shape
        right = torch.tensor(
            [next(r for r in range(rows) if (tops[r:, s] == tops[-1, s]).all()) for s in range(steps)]
        )
        found = torch.as_tensor(answer(tops.clone()))
        if found.shape != right.shape:
            raise Wrong(f"for tops {tuple(tops.shape)} it gives {tuple(found.shape)}, wanted is {(steps,)}")
        if (found != right).any():
            column = int((found != right).nonzero()[0, 0])
            draw_settled(tops, found, right)
            raise Wrong(
                f"the column {tops[:, column].tolist()} has settled in row {int(right[column])}, "
                f"yours says {found[column].item()}: from there on all rows must be {int(tops[-1, column])}"
            )
    draw_settled(examples[0], torch.as_tensor(answer(examples[0])), None)


def draw_settled(tops, found, right):
    """The table of tokens, with the answer's rows framed and the right ones dashed."""
    _, axes = plt.subplots(figsize=(0.9 * tops.shape[1] + 2.5, 0.5 * len(tops) + 1.2))
    axes.imshow((tops == tops[-1]).float(), vmin=0, vmax=2.5, aspect="auto", origin="lower")
    for i, row in enumerate(tops.tolist()):
        for j, token in enumerate(row):
            axes.text(j, i, token, ha="center", va="center")
    columns = range(tops.shape[1])
    axes.plot(columns, found, "s", markersize=20, fillstyle="none", color="black", label="yours")
    if right is not None:
        axes.plot(columns, right, "o", markersize=25, fillstyle="none", color="#d55e00", label="right")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), labelspacing=1.5, borderpad=1)
    axes.set(
        title="grey: the final token", xlabel="step", ylabel="row", xticks=columns, yticks=range(len(tops))
    )
    axes.grid(False)
    plt.show()


WRONG = [
    """
def grouped(q, k, v):
    (B, H, T, d), (K, S) = q.shape, k.shape[1:3]
    q = q.view(B, H // K, K, T, d).transpose(1, 2)  # deals the heads out in turn
    scores = q @ k[:, :, None].transpose(-2, -1) / math.sqrt(d)
    scores = scores.masked_fill(~torch.ones(T, S, dtype=torch.bool).tril(S - T), -math.inf)
    collected = scores.softmax(-1) @ v[:, :, None]
    return collected.transpose(1, 2).reshape(B, H, T, d).transpose(1, 2).flatten(2)
""",
    """
def settled(tops):
    return (tops == tops[-1]).long().argmax(0)  # the first time, though it may be lost again
""",
]
