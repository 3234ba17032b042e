"""Notebook 00: what its drawings take, and the checks of its exercises."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from course import Wrong
from PIL import Image

from checks.check_01 import picture_of  # noqa: F401 (the notebook takes it from here)
from processor import Qwen2VLImageProcessor

# ----------------------------------------------------------------------------------------------------- plots


def box(axes: plt.Axes, x: float, y: float, name: str, shape: object, end=None, grey: str = "0.95") -> None:
    """A stage and its shape, centred at x, y; `end` is where the arrow from it ends."""
    frame = {"boxstyle": "round,pad=0.45", "facecolor": grey, "edgecolor": "black"}
    axes.text(x, y, f"{name}\n{shape}", ha="center", va="center", fontsize=9, bbox=frame, zorder=3)
    if end:
        axes.annotate("", end, (x, y - 0.35), arrowprops={"arrowstyle": "-|>", "color": "black"})


# ------------------------------------------------------------------------------------------------- exercises

SIZES = ((56, 56), (56, 112), (112, 168), (140, 84), (168, 168), (280, 196))  # height and width in pixels


def shipped_tokens(height: int, width: int, patch: int, merge: int) -> int:
    """What the shipped processor makes of a picture of that size."""
    processor = Qwen2VLImageProcessor(min_pixels=1, max_pixels=10**8, patch_size=patch, merge_size=merge)
    grid = processor(Image.new("RGB", (width, height)))["image_grid_thw"]
    return int(grid.prod()) // merge**2


def tokens_of(answer: Callable) -> None:
    """answer(height, width, patch, merge) counts the tokens of a picture."""
    sides = [28 * i for i in range(1, 21)]
    yours = [answer(side, side, 14, 2) for side in sides]
    if None in yours:
        raise Wrong("it returns None: is the `return` missing?")
    plt.figure(figsize=(6, 3))
    plt.plot(sides, [shipped_tokens(side, side, 14, 2) for side in sides], label="the processor")
    plt.plot(sides, yours, "o", color="grey", label="yours")
    plt.title("What a square picture costs")
    plt.xlabel("side (pixels)")
    plt.ylabel("tokens")
    plt.legend()
    plt.show()
    for height, width in SIZES:
        said, true = answer(height, width, 14, 2), shipped_tokens(height, width, 14, 2)
        if not isinstance(said, int):
            raise Wrong(f"{said!r} is no `int`: a number of tokens is whole, use //")
        if said != true:
            hint = "that is the number of patches, before the merger" if said == 4 * true else "not so"
            raise Wrong(f"{height} x {width} px gives {true} tokens, yours says {said}: {hint}")
    said, true = answer(96, 64, 8, 4), 6
    if said != true:
        raise Wrong(f"with patches of 8 px and merging 4 x 4, 96 x 64 px gives {true} tokens, not {said}")


def chain(rows: list[list[float]]) -> Callable[[list[int]], torch.Tensor]:
    """A model of a few words whose next word depends on the last one; row i: the logits behind word i."""
    return lambda ids: torch.tensor(rows[ids[-1]])


# Words are 0 to 4, and 4 is the end. The first goes 0 1 3 2 4; the second 0 2 0 2 … and never ends.
ENDS = [[0.0, 2, 1, 0, 1], [0.0, 0, 1, 3, 0], [1.0, 0, 0, 0, 2], [0.0, 1, 2, 0, 1], [0.0, 9, 0, 0, 0]]
CIRCLES = [[0.0, 1, 3, 0, 1], [0.0, 0, 1, 3, 0], [4.0, 0, 0, 0, 2], [0.0, 1, 2, 0, 1], [0.0, 9, 0, 0, 0]]


def grow(answer: Callable) -> None:
    """answer(next_logits, ids, end, most) writes on, greedily, and returns the new ids only."""
    prompt = [3, 0]
    said = answer(chain(ENDS), list(prompt), 4, 10)
    if said is None:
        raise Wrong("it returns None: is the `return` missing?")
    said, true = [int(token) for token in said], [1, 3, 2, 4]
    plt.figure(figsize=(6, 3))
    plt.plot(range(1, len(true) + 1), true, "-", label="right")
    plt.plot(range(1, len(said) + 1), said, "o", color="grey", label="yours")
    plt.axhline(4, color="black", linewidth=0.8, linestyle=":")
    plt.title("Words of a toy model; 4 is the end")
    plt.xlabel("step")
    plt.ylabel("word (id)")
    plt.xticks(range(1, max(len(said), len(true)) + 1))
    plt.yticks(range(5))
    plt.legend()
    plt.show()
    if said[:2] == prompt:
        raise Wrong(f"{said} has the prompt {prompt} in front: return the new ids only")
    if said == true[:-1]:
        raise Wrong(f"{said}: the end token is a token as well, it belongs to the answer")
    if said[:4] == true and len(said) > 4:
        raise Wrong(f"{said}: it goes on behind the end token, 4")
    if said != true:
        raise Wrong(f"the toy model writes {true}, yours writes {said}: does each step see the words so far?")
    said = [int(token) for token in answer(chain(CIRCLES), [0], 4, 5)]
    if said != [2, 0, 2, 0, 2]:
        raise Wrong(f"a model that never ends has to be stopped after most = 5 tokens; yours: {said}")
    said = [int(token) for token in answer(chain(ENDS), [3, 4, *prompt], 4, 10)]  # as behind an earlier turn
    if said != true:
        raise Wrong(f"with the end token in its prompt, too, the model writes {true}, yours {said}")


WRONG = [
    """
def tokens_of(height, width, patch, merge):
    return (height // patch) * (width // patch)
""",
    """
def grow(next_logits, ids, end, most):
    new = []
    for _ in range(most):
        new.append(int(next_logits(ids + new).argmax()))
    return new
""",
]
