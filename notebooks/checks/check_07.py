"""The checkers of the exercises of notebook 07."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import course
import numpy as np
import torch
from course import Wrong
from PIL import Image
from plots import plots_07 as plots
from torch import Tensor

from checks import watch
from processor import patchify, sample_frames, smart_resize, video_limits
from qwen2vl_extras.media import read_video

MOVING = course.EXAMPLES / "moving.mp4"  # 24 frames at 8 a second
MOVING_TOTAL, MOVING_RATE = 24, 8.0


def _read_moving() -> tuple[Tensor, list[int]]:
    """The frames of the example that are read, (6, 3, 84, 112), and their numbers."""

    def to_tensor(frame: Image.Image, num_frames: int) -> Tensor:
        return torch.from_numpy(np.array(frame)).permute(2, 0, 1)

    frames = torch.stack(read_video(MOVING, sample_frames, to_tensor))
    return frames, sample_frames(MOVING_TOTAL, MOVING_RATE)


# ---------------------------------------------------------- exercise 1: from patches back to frames


def patches_to_frames(answer: Callable) -> None:
    """answer(patches, grid, side, depth, m): patches back to frames."""
    answer = watch.without_calls(answer, "processor.patchify", "course.image_from_patches")
    frames, _ = _read_moving()
    patches, grid = patchify(frames)
    got = watch.tensor_like(answer(patches, grid, 14, 2, 2), frames, f"grid {grid}")
    plots.draw_rebuilt(frames, got)
    _compare_frames("examples/moving.mp4", got, frames, side=14, depth=2)
    rng = random.Random(0)
    for _ in range(10):
        t, side, depth = rng.randint(1, 4), rng.randint(1, 4), rng.randint(1, 3)
        m = rng.randint(1, 3)
        h, w = m * rng.randint(1, 4), m * rng.randint(1, 4)
        shape = (t * depth, 3, h * side, w * side)
        frames = torch.arange(np.prod(shape)).view(shape).float()
        patches, grid = patchify(frames, side, depth, m)
        case = f"grid {grid}, side {side}, depth {depth}, m {m}"
        got = watch.tensor_like(answer(patches, grid, side, depth, m), frames, case)
        _compare_frames(case, got, frames, side, depth)


def _compare_frames(case: str, got: Tensor, frames: Tensor, side: int, depth: int) -> None:
    """Wrong, with a guess at the mistake, if frames (n, 3, height, width) differ."""
    wrong = (got != frames).flatten(1).float().mean(1)  # the share of wrong pixels, by frame
    if not wrong.any():
        return
    count = int((wrong > 0).sum())
    said = f"{case}: of {len(frames)} frames {count} are wrong, "
    said += f"at worst in {wrong.max():.0%} of the pixels"
    num_different = len(got.flatten(1).unique(dim=0))
    if num_different < len(frames.flatten(1).unique(dim=0)):
        said += ". Some frames come twice"
    elif all(any(torch.equal(frame, other) for other in frames) for frame in got):
        said += ". Each frame is there, but in another order"
    elif torch.equal(got.flip(1), frames):
        said += ". The colours come in the wrong order"
    elif torch.equal(_by_patch(got, side, depth), _by_patch(frames, side, depth)):
        said += ". Each patch is in its place; in which order do its numbers come?"
    else:
        said += ". In which order do the patches come? Squares of m × m lie together"
    raise Wrong(said)


def _by_patch(frames: Tensor, side: int, depth: int) -> Tensor:
    """The numbers of each patch of frames (n, 3, height, width), in order of size."""
    n, _, height, width = frames.shape
    cut = frames.view(n // depth, depth, 3, height // side, side, width // side, side)
    return cut.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).sort(-1).values


# --------------------------------------------------- exercise 2: which part of the video is a token


class _Token(NamedTuple):
    """The arguments of exercise 2."""

    k: int
    grid: tuple[int, int, int]
    m: int
    chosen: list[int]
    rate: float


def locate_token(answer: Callable) -> None:
    """answer(k, grid, m, chosen, rate): a token's seconds, row and column."""
    frames, chosen = _read_moving()
    grid = (len(frames) // 2, frames.shape[2] // 14, frames.shape[3] // 14)
    num_tokens = grid[0] * grid[1] * grid[2] // 4
    k = num_tokens // 2 - 1
    token = _Token(k, grid, 2, chosen, MOVING_RATE)
    got = _check_located(answer(*token))
    times = [i / MOVING_RATE for i in chosen]
    title = f"the part that your answer finds for token {k} of {num_tokens}"
    plots.draw_located(frames, times, got, title)
    _compare_located(got, token)
    videos = [  # total, rate, fps, h, w, m
        (24, 8.0, 2, 6, 8, 2),
        (30, 25.0, 2, 4, 10, 2),
        (900, 30.0, 0.5, 6, 9, 3),
    ]
    rng = random.Random(0)
    for _ in range(8):
        m = rng.randint(1, 4)
        h, w = m * rng.randint(1, 5), m * rng.randint(1, 5)
        rate = rng.choice((8.0, 12.5, 23.976, 25.0, 60.0))
        videos.append((rng.randint(8, 900), rate, rng.choice((0.5, 1, 2, 4)), h, w, m))
    for total, rate, fps, h, w, m in videos:
        chosen = sample_frames(total, rate, fps)
        num_tokens = len(chosen) // 2 * (h // m) * (w // m)
        for k in (0, num_tokens // 2, num_tokens - 1, rng.randrange(num_tokens)):
            token = _Token(k, (len(chosen) // 2, h, w), m, chosen, rate)
            _compare_located(_check_located(answer(*token)), token)


def _check_located(got: object) -> tuple[float, float, int, int]:
    if not isinstance(got, (tuple, list)) or len(got) != 4:
        raise Wrong(f"return (begin, end, row, column), not {got!r:.60}")
    return tuple(got)


def _compare_located(got: tuple[float, float, int, int], token: _Token) -> None:
    """Wrong if an answer's times, row or column are not the right ones."""
    t, h, w = token.grid
    indices = np.unravel_index(token.k, (t, h // token.m, w // token.m))
    pair, row, column = (int(index) for index in indices)
    what = f"token {token.k} of the grid {token.grid} with m = {token.m}"
    watch.whole_number(got[2], f"{what}, its row")
    watch.whole_number(got[3], f"{what}, its column")
    if (got[2], got[3]) != (row, column):
        said = f"{what} is in row {row}, column {column} of tokens"
        raise Wrong(f"{said}; you said {got[2]}, {got[3]}")
    first, second = token.chosen[2 * pair], token.chosen[2 * pair + 1]
    begin, end = first / token.rate, second / token.rate
    if abs(got[0] - begin) > 1e-6 or abs(got[1] - end) > 1e-6:
        said = (
            f"{what} belongs to pair {pair}: frames {first} and {second}, filmed at {begin:g} and"
        )
        said += f" {end:g} s ({token.rate:g} frames a second)"
        raise Wrong(f"{said}; you said {got[0]:g} and {got[1]:g} s")


# -------------------------------------------------------------------- exercise 3: the longest video

COUNTS = range(2, 769, 2)
Size = tuple[int, int]  # height and width


def _tokens(n: int, height: int, width: int) -> tuple[int, Size]:
    """The tokens of n frames, and the size of each."""
    limits = video_limits(n, {})
    size = smart_resize(
        height, width, min_pixels=limits["min_pixels"], max_pixels=limits["max_pixels"]
    )
    return n // 2 * (size[0] // 28) * (size[1] // 28), size


def _rooms() -> list[tuple[int, int, int]]:
    """(room in tokens, height, width): also such that fewer frames cost more than the longest."""
    rooms = [
        (24000, 1080, 1920),
        (50, 720, 1280),  # nothing fits
        (10**6, 480, 640),  # everything fits
        (21722, 720, 1280),
    ]
    rng = random.Random(0)
    for _ in range(6):
        height, width = rng.randint(100, 2000), rng.randint(100, 2000)
        tokens = [_tokens(n, height, width)[0] for n in COUNTS]
        # As much room as a video takes that is cheaper than one with fewer frames.
        cheaper = [b for a, b in pairwise(tokens) if b < a]
        rooms.append((rng.choice(cheaper or tokens), height, width))
        rooms.append((rng.randint(200, 40000), height, width))
    return rooms


def longest_video(answer: Callable[[int, int, int], tuple[int, Size | None]]) -> None:
    """answer(room, height, width): the largest number of frames that fits, and their size."""
    for number, (room, height, width) in enumerate(_rooms()):
        case = f"room for {room} tokens, frames {width} px wide and {height} px high"
        try:
            got = answer(room, height, width)
        except ValueError as error:
            said = f"{case}: it stops ({error})"
            raise Wrong(f"{said}: where nothing fits, return (0, None)") from error
        n = _frames_of(got, case)
        tokens = [_tokens(n, height, width)[0] for n in COUNTS]
        if number == 0:
            point = (n, _tokens(n // 2 * 2, height, width)[0]) if 2 <= n <= 768 else None
            title = f"the longest video of {width} x {height} px"
            plots.draw_longest(COUNTS, tokens, room, title, point)
        fitting = [n for n, cost in zip(COUNTS, tokens, strict=True) if cost <= room]
        right = max(fitting, default=0)
        if n != right:
            raise Wrong(f"{case}: {right} frames fit, you said {n}{_cost(n, height, width)}")
        size = _tokens(right, height, width)[1] if right else None
        if got[1] != size:
            wanted = "None" if size is None else f"{size} (height, width)"
            raise Wrong(f"{case}: with {right} frames their size is {wanted}, you said {got[1]}")


def _frames_of(got: object, case: str) -> int:
    """The number of frames in an answer; Wrong if it hasn't the form (frames, size)."""
    if not isinstance(got, tuple) or len(got) != 2:
        raise Wrong(f"{case}: return (frames, size), not {got!r:.60}")
    return watch.whole_number(got[0], f"{case}, the frames")


def _cost(n: int, height: int, width: int) -> str:
    """What n frames cost, as the end of a message."""
    if n < 2 or n % 2:
        return ""
    return f", which take {_tokens(n, height, width)[0]} tokens"
