"""Checkers of notebook 00: the right answers come from the shipped processor and toy models."""

import random
from collections.abc import Callable

import torch
from course import Wrong
from PIL import Image
from plots import plots_00 as plots

from checks import watch
from processor import Qwen2VLImageProcessor

# ------------------------------------------------------------------ exercise 1: what an image costs


def _shipped_count(height: int, width: int, patch_size: int, merge_size: int) -> int:
    """How many tokens an image of this size becomes in the shipped processor."""
    processor = Qwen2VLImageProcessor(
        min_pixels=1, max_pixels=10**8, patch_size=patch_size, merge_size=merge_size
    )
    grid = processor(Image.new("RGB", (width, height)))["image_grid_thw"]
    return int(grid.prod()) // merge_size**2


def _sizes() -> list[tuple[int, int, int, int]]:
    """(height, width, patch_size, merge_size): the official patches first, then others."""
    sizes = [(height, width, 14, 2) for height, width in ((56, 56), (56, 112), (280, 196))]
    rng = random.Random(0)
    for _ in range(12):
        patch_size = rng.choice((4, 8, 14, 16))
        merge_size = rng.choice((1, 2, 3, 4))
        side = patch_size * merge_size
        sizes.append((side * rng.randint(1, 9), side * rng.randint(1, 9), patch_size, merge_size))
    return sizes


def count_tokens(answer: Callable[[int, int, int, int], int]) -> None:
    """Exercise 1: the number of tokens of an image."""
    sides = [28 * i for i in range(1, 21)]
    yours = [watch.whole_number(answer(side, side, 14, 2), f"{side} x {side} px") for side in sides]
    plots.draw_costs(sides, [_shipped_count(side, side, 14, 2) for side in sides], yours)

    for height, width, patch_size, merge_size in _sizes():
        case = f"{height} x {width} px, patches of {patch_size} px, merged "
        case += f"{merge_size} x {merge_size}"
        found = watch.whole_number(answer(height, width, patch_size, merge_size), case)
        right = _shipped_count(height, width, patch_size, merge_size)
        if found == right:
            continue
        hint = ""
        if found == merge_size**2 * right:
            hint = ": that is the number of patches, before the merger"
        raise Wrong(f"{case}: that gives {right} tokens, yours says {found}{hint}")


# --------------------------------------------------------------------- exercise 2: the greedy loop


class _ToyModel:
    """A model whose logits depend on all ids so far; from `stop_at` ids on it chooses `end`."""

    def __init__(self, seed: int, num_words: int, end: int, stop_at: int) -> None:
        self.seed = seed
        self.num_words = num_words
        self.end = end
        self.stop_at = stop_at

    def __call__(self, ids: list[int]) -> torch.Tensor:
        """(words,): the logits of the next word."""
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise Wrong(
                "`next_logits` takes a list of int: the prompt's ids and the new ones (int(...) "
                "makes a number of a tensor)"
            )
        rng = random.Random(f"{self.seed} {ids}")
        logits = torch.tensor([rng.uniform(-9, 3) for _ in range(self.num_words)])
        logits[self.end] = 5.0 if len(ids) >= self.stop_at else -10.0
        return logits

    def write(self, prompt: list[int], max_new_tokens: int) -> list[int]:
        """The greedy answer to a prompt."""
        new: list[int] = []
        for _ in range(max_new_tokens):
            new.append(int(self([*prompt, *new]).argmax()))
            if new[-1] == self.end:
                break
        return new


def generate_greedily(answer: Callable[..., list[int]]) -> None:
    """Exercise 2: answer(next_logits, ids, end_token, max_new_tokens) returns the new ids."""
    answer = watch.without_calls(answer, "check_00.write")
    rng = random.Random(1)
    for number in range(16):
        num_words = rng.randint(5, 40)
        end = rng.randrange(num_words)
        prompt = [rng.randrange(num_words) for _ in range(rng.randint(1, 6))]
        if number % 2:  # an end token in the prompt, as after an earlier turn
            prompt.insert(rng.randrange(len(prompt) + 1), end)
        length = rng.randint(1, 8)  # of the answer, if it may get so long
        limit = rng.choice((1, length, length + 1, 20, 5))
        model = _ToyModel(number, num_words, end, stop_at=len(prompt) + length - 1)
        right = model.write(prompt, limit)
        found = answer(model, list(prompt), end, limit)
        case = f"a toy model of {num_words} words, prompt {prompt}, end {end}, at most {limit} new"
        found = watch.whole_numbers(found, case)
        if number == 0 or found != right:
            plots.draw_tokens(right, found, end)
        if found != right:
            said = f"{case}: it writes {right}, yours writes {found}"
            raise Wrong(said + _loop_mistake(found, right, prompt))


def _loop_mistake(found: list[int], right: list[int], prompt: list[int]) -> str:
    """What a wrong answer shows of its mistake, or nothing."""
    if found[: len(prompt)] == prompt and len(found) > len(right):
        return ": the prompt stands in front, wanted are the new ids only"
    if not found:
        return ": it stops before the first new token; an end token in the prompt ends nothing"
    if found == right[:-1]:
        return ": the last token is missing"
    if found[: len(right)] == right:
        return ": it goes on behind the end"
    if right[: len(found)] == found:
        return ": it stops too early"
    equal = 0  # how many tokens are right from the start
    while found[equal] == right[equal]:
        equal += 1
    return f": token {equal} is the first wrong one; what does the model get at that step?"
