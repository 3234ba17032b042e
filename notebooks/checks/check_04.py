"""Checkers of notebook 04: the right answers come from the shipped positions and rotary table."""

import dataclasses
import random
from collections.abc import Callable

import course
import torch
from course import Wrong
from plots import plots_04 as plots

from checks import watch
from qwen2vl import Qwen2VLConfig, Qwen2VLModel, get_rope_index

Grid = tuple[int, int, int]  # (t, h, w) in patches


def _shipped_delta(config: Qwen2VLConfig, grids: list[Grid], merge_size: int) -> int:
    """The delta of a prompt with five text tokens before, between and behind these videos."""
    vision_config = dataclasses.replace(config.vision_config, spatial_merge_size=merge_size)
    config = dataclasses.replace(config, vision_config=vision_config)
    placeholders = (config.video_token_id, config.image_token_id)
    text = [token for token in range(9) if token not in placeholders][:5]
    ids = list(text)
    for t, h, w in grids:
        ids += [config.video_token_id] * (t * h * w // merge_size**2) + text
    video_grid_thw = torch.tensor(grids) if grids else None
    _, rope_deltas = get_rope_index(config, torch.tensor([ids]), None, video_grid_thw)
    return int(rope_deltas)


def _delta_cases(m: int) -> dict[str, tuple[list[Grid], int]]:
    """Prompts by name: the grids of their images and videos, and the merge size.

    m: the merge size of the prompts that the plot shows.
    """
    cases = {
        "text only": ([], m),
        "an image": ([(1, 4 * m, 6 * m)], m),
        "a tall image": ([(1, 9 * m, 2 * m)], m),
        "a long video": ([(12, 2 * m, 3 * m)], m),
        "two images": ([(1, 4 * m, 4 * m), (1, 2 * m, 8 * m)], m),
    }
    rng = random.Random(0)
    for number in range(12):
        merge_size = 1 + number % 4
        grids = []
        for _ in range(rng.randint(1, 4)):
            h, w = rng.randint(1, 6), rng.randint(1, 6)
            grids.append((rng.randint(1, 8), merge_size * h, merge_size * w))
        cases[f"random {number}"] = (grids, merge_size)
    return cases


def rope_delta(answer: Callable[[list[Grid], int], int]) -> None:
    """Exercise 2: answer(grids, merge_size) is what decoding adds to the number of tokens."""
    answer = watch.without_calls(answer, "qwen2vl.get_rope_index", "qwen2vl.prompt_positions")
    config = Qwen2VLConfig.from_pretrained(course.MODEL)
    cases = _delta_cases(config.vision_config.spatial_merge_size)
    right, found = [], []
    for name, (grids, merge_size) in cases.items():
        right.append(_shipped_delta(config, grids, merge_size))
        found.append(watch.whole_number(answer(list(grids), merge_size), name))
    plots.draw_deltas(list(cases)[:8], right[:8], [float(value) for value in found[:8]])
    for (name, case), yours, wanted in zip(cases.items(), found, right, strict=True):
        grids, merge_size = case
        if yours != wanted:
            said = f"{name}, grids {grids} in patches, merge_size {merge_size}: "
            said += f"the delta is {wanted}, yours is {yours}"
            raise Wrong(said + _delta_mistake(grids, merge_size, yours))


def _delta_mistake(grids: list[Grid], merge_size: int, found: int) -> str:
    """Which known mistake gives this number, if any."""
    m = merge_size
    in_patches = sum(max(t, h, w) - t * h * w for t, h, w in grids)
    time_merged = sum(
        max(t // m, h // m, w // m) - t // m * (h // m) * (w // m) for t, h, w in grids
    )
    wrong_sign = sum(t * h * w // m**2 - max(t, h // m, w // m) for t, h, w in grids)
    if found == in_patches:
        return " (the grids are in patches, merge_size x merge_size of them are a token)"
    if found == time_merged:
        return " (only rows and columns are merged, not time)"
    if found == wrong_sign:
        return " (the sign: more tokens than positions make it negative)"
    if not grids:
        return ""
    t, h, w = grids[0]
    tokens = t * h * w // m**2
    positions = max(t, h // m, w // m)
    return f" (the first of these takes {positions} numbers for its {tokens} tokens)"


def _shipped_axes(sections: list[int]) -> list[int]:
    """The axis that rotates each number of a head in a model with these sections."""
    config = Qwen2VLConfig.from_pretrained(course.MODEL)
    d = 2 * sum(sections)
    heads = config.num_attention_heads
    config = dataclasses.replace(config, mrope_section=sections, hidden_size=d * heads)
    with torch.device("meta"):  # no weights are needed
        decoder = Qwen2VLModel(config)
    # Three tokens: one at time 1, one at row 1, one at column 1. A sine is 0 unless its own
    # axis has moved.
    positions = torch.eye(3, dtype=torch.long)[:, None]  # (3, 1, 3)
    _, sines = decoder.rotary_table(positions, torch.float64)  # (1, 1, 3, d)
    return sines[0, 0].abs().argmax(dim=0).tolist()


def axis_of(answer: Callable[[list[int]], list[int]]) -> None:
    """Exercise 1: which axis rotates each number of a head."""
    answer = watch.without_calls(answer, "qwen2vl.rotary_table")
    rng = random.Random(0)
    all_sections = [list(Qwen2VLConfig.from_pretrained(course.MODEL).mrope_section), [1, 2, 3]]
    all_sections += [[rng.randint(1, 24) for _ in range(3)] for _ in range(5)]
    all_sections.append([16, 24, 24])  # the official ones
    for sections in all_sections:
        case = f"sections {sections}"
        right = _shipped_axes(sections)
        found = watch.whole_numbers(answer(list(sections)), case)
        if sections == all_sections[0] or found != right:
            plots.draw_axes(right, found)
        if len(found) != len(right):
            said = f"{case}: a head has {len(right)} numbers, your list {len(found)}"
            raise Wrong(f"{said}: two numbers make a pair")
        wrong = [i for i in range(len(right)) if found[i] != right[i]]
        if wrong:
            axis = plots.AXES[right[wrong[0]]]
            said = f"{case}: {len(wrong)} of {len(right)} are wrong, the first is number {wrong[0]}"
            raise Wrong(f"{said}: it is rotated by the {axis}. Which number makes a pair with it?")
