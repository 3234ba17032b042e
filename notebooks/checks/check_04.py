"""Checkers of notebook 04: the right answers come from the shipped positions and rotary table."""

import random
from collections.abc import Callable

import course
import torch
from course import Wrong
from plots import plots_04 as plots

from qwen2vl import Qwen2VLConfig, Qwen2VLModel, get_rope_index

Grid = tuple[int, int, int]  # (t, h, w) in patches


def _shipped_delta(config: Qwen2VLConfig, grids: list[Grid]) -> int:
    """The delta of a prompt with five text tokens before, between and behind these videos."""
    merge_size = config.vision_config.spatial_merge_size
    placeholders = (config.video_token_id, config.image_token_id)
    text = [token for token in range(9) if token not in placeholders][:5]
    ids = list(text)
    for t, h, w in grids:
        ids += [config.video_token_id] * (t * h * w // merge_size**2) + text
    video_grid_thw = torch.tensor(grids) if grids else None
    _, rope_deltas = get_rope_index(config, torch.tensor([ids]), None, video_grid_thw)
    return int(rope_deltas)


def _delta_cases(merge_size: int) -> dict[str, list[Grid]]:
    """Prompts by name: the grids of their images and videos."""
    m = merge_size
    cases = {
        "text only": [],
        "an image": [(1, 4 * m, 6 * m)],
        "a tall image": [(1, 9 * m, 2 * m)],
        "a long video": [(12, 2 * m, 3 * m)],
        "two images": [(1, 4 * m, 4 * m), (1, 2 * m, 8 * m)],
    }
    rng = random.Random(0)
    for n in (1, 2, 3):
        grids = []
        for _ in range(n):
            grids.append((rng.randint(1, 8), m * rng.randint(1, 6), m * rng.randint(1, 6)))
        cases[f"random, {n}"] = grids
    return cases


def rope_delta(answer: Callable[[list[Grid], int], int]) -> None:
    """Exercise 2: answer(grids, merge_size) is what decoding adds to the number of tokens."""
    config = Qwen2VLConfig.from_pretrained(course.MODEL)
    merge_size = config.vision_config.spatial_merge_size
    cases = _delta_cases(merge_size)
    right = [_shipped_delta(config, grids) for grids in cases.values()]
    found = [answer(list(grids), merge_size) for grids in cases.values()]
    if None in found:
        raise Wrong("it returns None: is the `return` missing?")
    plots.draw_deltas(list(cases), right, [float(value) for value in found])
    for (name, grids), yours, wanted in zip(cases.items(), found, right, strict=True):
        if yours != wanted:
            case = f"{name}, grids {grids} in patches: the delta is {wanted}, yours is {yours}"
            raise Wrong(case + _delta_mistake(grids, merge_size, yours))


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
    return ""


def axis_of(answer: Callable[[list[int]], list[int]]) -> None:
    """Exercise 1: which axis rotates each number of a head."""
    config = Qwen2VLConfig.from_pretrained(course.MODEL)
    with torch.device("meta"):  # no weights are needed
        decoder = Qwen2VLModel(config)
    # Three tokens: one at time 1, one at row 1, one at column 1. A sine is 0 unless its own
    # axis has moved.
    positions = torch.eye(3, dtype=torch.long)[:, None]  # (3, 1, 3)
    _, sines = decoder.rotary_table(positions, torch.float64)  # (1, 1, 3, d)
    right = sines[0, 0].abs().argmax(dim=0).tolist()
    found = [int(axis) for axis in answer(list(config.mrope_section))]
    plots.draw_axes(right, found)

    if len(found) != len(right):
        said = f"a head has {len(right)} numbers, your list {len(found)}"
        raise Wrong(f"{said}: two numbers make a pair")
    wrong = [i for i in range(len(right)) if found[i] != right[i]]
    if wrong:
        axis = plots.AXES[right[wrong[0]]]
        said = f"{len(wrong)} of {len(right)} are wrong, the first is number {wrong[0]}"
        pairing = f"Number i is paired with i + {len(right) // 2}"
        raise Wrong(f"{said}: it is rotated by the {axis}. {pairing}")
    other = [int(axis) for axis in answer([1, 2, 3])]
    if other != [0, 1, 1, 2, 2, 2] * 2:
        raise Wrong(f"right for this model, but sections [1, 2, 3] give {other}")
