"""Notebook 09: what its larger plots take, and the checks of its exercises."""

import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from course import Wrong
from PIL import Image, ImageDraw

from processor import Qwen2VLProcessor
from tiny.train import answer_labels
from tiny.world import SHAPES

# ----------------------------------------------------------------------------------------------------- plots


def bars(trials: dict[str, dict[str, float]]) -> None:
    """Shares of right answers, 0 to 1: for each trial a bar in each group of questions."""
    groups = list(next(iter(trials.values())))
    places, width = np.arange(len(groups)), 0.8 / len(trials)
    plt.figure(figsize=(8, 3.2))
    for i, (label, shares) in enumerate(trials.items()):
        look = {"color": ("white", "0.4", "0.8")[i], "hatch": ("", "", "//")[i], "edgecolor": "black"}
        heights = [100 * shares[group] for group in groups]
        middle = places + width * (i - (len(trials) - 1) / 2)
        plt.bar_label(plt.bar(middle, heights, width, label=label, **look), fmt="%.0f", fontsize=8)
    plt.xticks(places, groups)
    plt.title("What fine-tuning gives and takes")
    plt.ylabel("right answers (%)")
    plt.ylim(0, 130)
    plt.yticks(range(0, 101, 20))
    plt.legend(ncols=3, loc="upper left")
    plt.show()


# ------------------------------------------------------------------------------------------------- exercises

TALKS = (
    (("Describe this image.", "A red circle."),),
    (("What colour is the star?", "Blue."), ("Where is it?", "At the left.")),
    (("assistant\nSay yes.", "Yes."),),  # what a user writes may look like an opening, but for its `start`
    (("Hello!", "Hello!"), ("What does the assistant say?", "Nothing."), ("Is there a ring?", "No.")),
)


def labels_of(answer: Callable) -> None:
    """answer(ids, start, end, opening) labels all of the assistant's answers in a row of ids."""
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    start, end = (processor.tokenizer.token_to_id(f"<|im_{edge}|>") for edge in ("start", "end"))
    opening = processor.tokenizer.encode("assistant\n").ids
    pairs = []
    for talk in TALKS:
        chat = [
            {"role": role, "content": text}
            for exchange in talk
            for role, text in zip(("user", "assistant"), exchange, strict=True)
        ]
        ids = processor.apply_chat_template(chat, tokenize=True)
        said = answer(ids[0].tolist(), start, end, list(opening))
        if said is None:
            raise Wrong("it returns None: is the `return` missing?")
        if len(said) != ids.shape[1]:
            raise Wrong(f"{ids.shape[1]} ids need as many labels, yours gives {len(said)}")
        pairs.append((ids[0].tolist(), answer_labels(ids, processor)[0].tolist(), [int(i) for i in said]))
    strips = np.array([[label != -100 for label in row] for row in pairs[-1][1:]], dtype=float)
    plt.figure(figsize=(8, 1.9))
    plt.imshow(strips, aspect="auto", vmin=0, vmax=1.4, interpolation="nearest")
    plt.yticks([0, 1], ["right", "yours"])
    plt.title(f"A chat of {len(TALKS[-1])} turns: dark tokens have a label")
    plt.xlabel("token")
    plt.grid(False)
    plt.show()
    for talk, (ids, true, said) in zip(TALKS, pairs, strict=True):
        for i, (token, right, yours) in enumerate(zip(ids, true, said, strict=True)):
            if right != yours:
                name, turns = repr(processor.decode([token])), f"in a chat of {len(talk)} turn(s)"
                what = {-100: "no label (-100)"}
                wanted, given = (what.get(label, f"the label {label}") for label in (right, yours))
                raise Wrong(f"{turns}, token {i}, {name}, should have {wanted}; yours has {given}")


def whole_loss(answer: Callable) -> None:
    """answer(parts) joins (mean loss, number of labels) of parts of a batch to the loss of the whole."""
    generator = torch.Generator().manual_seed(0)
    for counts in ((4, 4), (2, 30), (1, 5, 60), (7,)):
        logits = [torch.randn(n, 50, generator=generator) * (1 + n / 8) for n in counts]
        labels = [torch.randint(50, (n,), generator=generator) for n in counts]
        losses = [F.cross_entropy(x, y).item() for x, y in zip(logits, labels, strict=True)]
        true = F.cross_entropy(torch.cat(logits), torch.cat(labels)).item()
        said = answer(list(zip(losses, counts, strict=True)))
        if said is None:
            raise Wrong("it returns None: is the `return` missing?")
        if len(counts) == 3:
            names = [f"part of\n{n} label{'s' * (n > 1)}" for n in counts] + ["whole\nbatch", "yours"]
            greys = ["0.85"] * 3 + ["0.5", "white"]
            plt.figure(figsize=(6, 2.8))
            plt.bar(names, [*losses, true, float(said)], color=greys, edgecolor="black")
            plt.title("Losses of three parts and of the batch that they make up")
            plt.ylabel("loss (nats a token)")
            plt.show()
        if not math.isclose(float(said), true, rel_tol=1e-4):
            mean = sum(losses) / len(losses)
            hint = "; that is the plain mean of the parts" if math.isclose(said, mean, rel_tol=1e-4) else ""
            parts = " and ".join(str(n) for n in counts)
            raise Wrong(f"parts of {parts} labels have the loss {true:.4f} together, not {said:.4f}{hint}")


def mask_of(paint: Callable, side: int = 128) -> np.ndarray:
    """Where a painter of tiny.world puts paint: (side, side), True or False."""
    image = Image.new("L", (side, side))
    paint(ImageDraw.Draw(image), side / 2)
    return np.array(image) > 127


def my_shape(answer: Callable) -> None:
    """answer() gives a new shape: its name and its corners in a square from -1 to 1."""
    given = answer()
    if not (isinstance(given, tuple) and len(given) == 2):
        raise Wrong(f"return a name and a list of corners; yours returns {given!s:.60}")
    name, corners = given
    if not (isinstance(name, str) and name.isalpha() and name.islower()):
        raise Wrong(f"the name has to be one word in small letters; yours is {name!r}")
    if len(corners) < 3 or any(len(corner) != 2 for corner in corners):
        raise Wrong(f"a polygon has three corners (x, y) or more; yours: {corners!s:.60}")
    if outside := [corner for corner in corners if max(map(abs, corner)) > 1]:
        raise Wrong(f"the corner {outside[0]} lies outside of the square from -1 to 1")
    known = {shape: mask_of(paint) for shape, paint in SHAPES.items() if shape != name}
    mine = mask_of(lambda draw, r: draw.polygon([(r + x * r, r + y * r) for x, y in corners], fill=255))
    likeness = {shape: float((mine & mask).sum() / (mine | mask).sum()) for shape, mask in known.items()}
    nearest = max(likeness, key=likeness.get)
    titles = name, f"{nearest}, the nearest"
    _, panels = plt.subplots(1, 2, figsize=(5, 2.6))
    for axes, mask, title in zip(panels, (mine, known[nearest]), titles, strict=True):
        axes.imshow(mask)
        axes.set_title(title)
        axes.set_axis_off()
    plt.show()
    if mine.mean() < 0.15:
        raise Wrong(
            f"it covers {mine.mean():.0%} of its square: with less than 15 % it can't be seen when small"
        )
    if likeness[nearest] > 0.8:
        raise Wrong(
            f"it is too much like a {nearest}: they share {likeness[nearest]:.0%} of their joint area"
        )


WRONG = [
    """
def labels_of(ids, start, end, opening):
    head = [start, *opening]
    first = max(i for i in range(len(ids)) if ids[i : i + len(head)] == head) + len(head)
    last = ids.index(end, first) + 1
    return [-100] * first + ids[first:last] + [-100] * (len(ids) - last)
""",
    """
def whole_loss(parts):
    return sum(loss for loss, _ in parts) / len(parts)
""",
    """
def my_shape():
    return "box", [(-0.8, -0.9), (0.8, -0.9), (0.8, 0.9), (-0.8, 0.9)]
""",
]
