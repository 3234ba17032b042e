"""Checkers of notebook 00: the right answers come from the shipped processor and a toy model."""

from collections.abc import Callable

import torch
from course import Wrong
from PIL import Image
from plots import plots_00 as plots

from processor import Qwen2VLImageProcessor


def _shipped_count(height: int, width: int, patch_size: int, merge_size: int) -> int:
    """How many tokens an image of this size becomes in the shipped processor."""
    processor = Qwen2VLImageProcessor(
        min_pixels=1, max_pixels=10**8, patch_size=patch_size, merge_size=merge_size
    )
    grid = processor(Image.new("RGB", (width, height)))["image_grid_thw"]
    return int(grid.prod()) // merge_size**2


def count_tokens(answer: Callable[[int, int, int, int], int]) -> None:
    """Exercise 1: the number of tokens of an image."""
    sides = [28 * i for i in range(1, 21)]
    yours = [answer(side, side, 14, 2) for side in sides]
    if None in yours:
        raise Wrong("it returns None: is the `return` missing?")
    plots.draw_costs(sides, [_shipped_count(side, side, 14, 2) for side in sides], yours)

    for height, width in ((56, 56), (56, 112), (112, 168), (140, 84), (168, 168), (280, 196)):
        found = answer(height, width, 14, 2)
        right = _shipped_count(height, width, 14, 2)
        if not isinstance(found, int):
            raise Wrong(f"{found!r} is no `int`: a number of tokens is whole, use //")
        if found != right:
            hint = (
                ": that is the number of patches, before the merger" if found == 4 * right else ""
            )
            raise Wrong(f"{height} x {width} px gives {right} tokens, yours says {found}{hint}")

    found = answer(224, 64, 8, 4)
    if found != 14:
        case = "with patches of 8 px and merging 4 x 4, 224 x 64 px gives 14 tokens"
        raise Wrong(f"{case}, yours says {found}")


# Two toy models of five words, 0 to 4; 4 is the end. The next word depends on the last one only:
# row i holds the logits behind word i. One writes 0 1 3 2 4, the other 0 2 0 2 ... without end.
ENDS = [
    [0.0, 2, 1, 0, 1],
    [0.0, 0, 1, 3, 0],
    [1.0, 0, 0, 0, 2],
    [0.0, 1, 2, 0, 1],
    [0.0, 9, 0, 0, 0],
]
CYCLES = [
    [0.0, 1, 3, 0, 1],
    [0.0, 0, 1, 3, 0],
    [4.0, 0, 0, 0, 2],
    [0.0, 1, 2, 0, 1],
    [0.0, 9, 0, 0, 0],
]


def _toy_model(rows: list[list[float]]) -> Callable[[list[int]], torch.Tensor]:
    """A function from the ids so far to the logits of the next word."""

    def next_logits(ids: list[int]) -> torch.Tensor:
        return torch.tensor(rows[ids[-1]])

    return next_logits


def generate_greedily(answer: Callable[..., list[int]]) -> None:
    """Exercise 2: answer(next_logits, ids, end_token, max_new_tokens) returns the new ids."""
    prompt = [3, 0]
    right = [1, 3, 2, 4]
    found = answer(_toy_model(ENDS), list(prompt), 4, 10)
    if found is None:
        raise Wrong("it returns None: is the `return` missing?")
    found = [int(token) for token in found]
    plots.draw_tokens(right, found, end=4)

    if found[:2] == prompt:
        raise Wrong(f"{found} has the prompt {prompt} in front: return the new ids only")
    if found == right[:-1]:
        raise Wrong(f"{found}: the end token is a token as well, it belongs to the answer")
    if found[:4] == right and len(found) > 4:
        raise Wrong(f"{found}: it goes on behind the end token, 4")
    if found != right:
        hint = "does each step get all words so far?"
        raise Wrong(f"the toy model writes {right}, yours writes {found}: {hint}")

    found = [int(token) for token in answer(_toy_model(CYCLES), [0], 4, 5)]
    if found != [2, 0, 2, 0, 2]:
        case = "a model that never ends has to be stopped after max_new_tokens = 5"
        raise Wrong(f"{case}; yours writes {found}")

    # A prompt that holds the end token, as it does after an earlier turn.
    found = [int(token) for token in answer(_toy_model(ENDS), [3, 4, *prompt], 4, 10)]
    if found != right:
        case = "with an end token in its prompt, too,"
        raise Wrong(f"{case} the model writes {right}, yours writes {found}")
