"""The drawings of notebook 09: labels, losses, a training, accuracies."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from plots.lettering import show


def draw_labels(labels: list[int]) -> None:
    """A bar for each token, dark where it has a label."""
    plt.figure(figsize=(8, 1.6))
    greys = ["0.9" if label == -100 else "0.4" for label in labels]
    plt.bar(range(len(labels)), 1, width=1, color=greys, edgecolor="white")
    count = len(labels) - labels.count(-100)
    plt.title(f"{count} of {len(labels)} tokens have a label (dark): the answer and its end")
    plt.xlabel("token")
    plt.yticks([])
    show()


def draw_token_losses(
    words: Sequence[str], untrained: Tensor, trained: Tensor, vocab_size: int
) -> None:
    """The loss of each token of an answer (tokens,), before and after training."""
    positions = np.arange(len(words))
    plt.figure(figsize=(8, 3))
    plt.bar(
        positions - 0.2,
        untrained,
        0.4,
        color="0.85",
        edgecolor="black",
        hatch="//",
        label="never trained",
    )
    plt.bar(positions + 0.2, trained, 0.4, color="0.3", edgecolor="black", label="embedded model")
    plt.axhline(math.log(vocab_size), label=f"ln {vocab_size}")
    plt.xticks(positions, words)
    plt.title("How surprising each token of the right answer is")
    plt.xlabel("token")
    plt.ylabel("loss (nats)")
    plt.yscale("log")
    plt.ylim(1e-6, 1e3)
    plt.legend(ncols=3, loc="upper left")
    show()


def draw_block_changes(changes: dict[str, list[float]]) -> None:
    """How much each vision block changes its input, a line for each model."""
    plt.figure(figsize=(6, 3))
    for (name, values), style in zip(changes.items(), ("o--", "o-", "s:"), strict=True):
        plt.plot(range(len(values)), values, style, label=name)
    plt.yscale("log")
    plt.xticks(range(len(values)))
    plt.title("How much each vision block changes its input")
    plt.xlabel("block")
    plt.ylabel("change / input")
    plt.ylim(0.05, 3)
    plt.legend(ncols=3, loc="upper center")
    show()


def draw_training(
    log: list[tuple[float, int, float, float]],
    curve: dict[str, list[float]],
    vocab_size: int,
    num_shapes: int,
) -> None:
    """The loss of each step, and the share of right answers on the way.

    log: (seconds, scenes, loss, learning rate) of each step; curve: the minutes of the tests,
    and for "colour" and "shape" the shares at these times.
    """
    scenes = [row[1] for row in log]
    losses = [row[2] for row in log]
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot([n / 1000 for n in scenes], losses, linewidth=0.8, label="loss of a batch")
    left.axhline(math.log(vocab_size), linestyle=":", label="ln V: knowing nothing")
    left.set_title(f"{len(losses)} steps, {scenes[-1]:,} images")
    left.set_xlabel("images so far (thousands)")
    left.set_ylabel("loss (nats a token)")
    left.set_ylim(0)
    left.legend()

    for task, style in (("colour", "o-"), ("shape", "s--")):
        right.plot(curve["minute"], [100 * share for share in curve[task]], style, label=task)
    guess = f"guessing one of {num_shapes} shapes"
    right.axhline(100 / num_shapes, linestyle=":", color="black", label=guess)
    right.set_title("Right answers on new scenes")
    right.set_xlabel("minutes")
    right.set_ylabel("right (%)")
    right.set_ylim(-3, 103)
    right.legend()
    show()


def draw_accuracies(accuracies: dict[str, dict[str, float]]) -> None:
    """Shares of right answers, 0 to 1: for each training a bar in each group of questions."""
    groups = list(next(iter(accuracies.values())))
    positions = np.arange(len(groups))
    width = 0.8 / len(accuracies)
    styles = (("white", ""), ("0.4", ""), ("0.8", "//"))
    plt.figure(figsize=(8, 3.2))
    for i, (label, shares) in enumerate(accuracies.items()):
        colour, hatch = styles[i]
        heights = [100 * shares[group] for group in groups]
        middles = positions + width * (i - (len(accuracies) - 1) / 2)
        bars = plt.bar(
            middles, heights, width, color=colour, hatch=hatch, edgecolor="black", label=label
        )
        plt.bar_label(bars, fmt="%.0f", fontsize=8)
    plt.xticks(positions, groups)
    plt.title("What fine-tuning gives and takes")
    plt.ylabel("right answers (%)")
    plt.ylim(0, 130)
    plt.yticks(range(0, 101, 20))
    plt.legend(ncols=3, loc="upper left")
    show()


# ---------------------------------------------------------------------------------------- exercises


def draw_label_rows(right: list[int], yours: list[int], turns: int) -> None:
    """Which tokens of a conversation have a label, in the right answer and in the given one."""
    has_label = [[label != -100 for label in row] for row in (right, yours)]
    plt.figure(figsize=(8, 1.9))
    plt.imshow(
        np.array(has_label, dtype=float), aspect="auto", vmin=0, vmax=1.4, interpolation="nearest"
    )
    plt.yticks([0, 1], ["right", "yours"])
    plt.title(f"A conversation of {turns} turns: dark tokens have a label")
    plt.xlabel("token")
    plt.grid(False)
    show()


def draw_part_losses(
    losses: list[float], counts: Sequence[int], whole: float, yours: float
) -> None:
    """The losses of parts of a batch, of the whole batch, and what an answer makes of them."""
    names = [f"part of\n{n} label{'' if n == 1 else 's'}" for n in counts]
    names += ["whole\nbatch", "yours"]
    greys = ["0.85"] * len(losses) + ["0.5", "white"]
    plt.figure(figsize=(6, 2.8))
    plt.bar(names, [*losses, whole, yours], color=greys, edgecolor="black")
    plt.title("Losses of the parts of a batch and of the whole batch")
    plt.ylabel("loss (nats a token)")
    show()


def draw_shapes(masks: dict[str, np.ndarray]) -> None:
    """Shapes as masks (side, side), by title."""
    _, panels = plt.subplots(1, len(masks), figsize=(2.5 * len(masks), 2.6))
    for axes, (title, mask) in zip(panels, masks.items(), strict=True):
        axes.imshow(mask)
        axes.set_title(title)
        axes.set_axis_off()
    show()
