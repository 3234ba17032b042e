"""The checkers of the exercises of notebook 07."""

from collections.abc import Callable
from typing import NamedTuple

import course
import numpy as np
import torch
from course import Wrong
from PIL import Image
from plots import plots_07 as plots
from torch import Tensor

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
    frames, _ = _read_moving()
    patches, grid = patchify(frames)
    got = answer(patches, grid, 14, 2, 2)
    _compare_shapes(got, frames)
    plots.draw_rebuilt(frames, got)
    _compare_frames(got, frames)
    grids = [  # t, h, w, side, depth, m
        (1, 4, 6, 3, 2, 2),
        (3, 2, 4, 2, 2, 2),
        (2, 6, 3, 2, 3, 3),
        (2, 3, 2, 4, 1, 1),
    ]
    for t, h, w, side, depth, m in grids:
        shape = (t * depth, 3, h * side, w * side)
        frames = torch.arange(np.prod(shape)).view(shape).float()
        patches, grid = patchify(frames, side, depth, m)
        got = answer(patches, grid, side, depth, m)
        _compare_shapes(got, frames)
        _compare_frames(got, frames)


def _compare_shapes(got: Tensor, frames: Tensor) -> None:
    if not isinstance(got, Tensor) or got.shape != frames.shape:
        shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise Wrong(f"the frames should be {tuple(frames.shape)}, you gave {shape}")


def _compare_frames(got: Tensor, frames: Tensor) -> None:
    """Wrong, with a guess at the mistake, if frames (n, 3, height, width) differ."""
    wrong = (got != frames).flatten(1).float().mean(1)  # the share of wrong pixels, by frame
    if not wrong.any():
        return
    count = int((wrong > 0).sum())
    said = f"of {len(frames)} frames {count} are wrong, at worst in {wrong.max():.0%} of the pixels"
    num_different = len(got.flatten(1).unique(dim=0))
    if num_different < len(frames.flatten(1).unique(dim=0)):
        said += ". Some frames come twice: a patch holds `depth` different frames"
    elif all(any(torch.equal(frame, other) for other in frames) for frame in got):
        said += ". Each frame is there, but in another order: first the pair, then the frame in it"
    elif torch.equal(got.flip(1), frames):
        said += ". The colours come in the wrong order"
    else:
        said += ". Each square of m x m patches has its m * m patches one after another: did you"
        said += " take them apart into row and column of the square, row and column in the square?"
        said += " And the numbers of a patch are colour, frame, row, column, in this order."
    raise Wrong(said)


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
    for total, rate, fps, h, w, m in videos:
        chosen = sample_frames(total, rate, fps)
        num_tokens = len(chosen) // 2 * (h // m) * (w // m)
        for k in (0, 1, num_tokens // 2, num_tokens - 1):
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
SIZES = [  # room in tokens, height and width in pixels
    (24000, 1080, 1920),
    (4096, 480, 640),
    (16384, 720, 1280),
    (50, 720, 1280),  # nothing fits
    (10**6, 480, 640),  # everything fits
]


def _tokens(n: int, height: int, width: int) -> int:
    """The tokens of n frames."""
    limits = video_limits(n, {})
    new_height, new_width = smart_resize(
        height, width, min_pixels=limits["min_pixels"], max_pixels=limits["max_pixels"]
    )
    return n // 2 * (new_height // 28) * (new_width // 28)


def longest_video(answer: Callable[[int, int, int], int]) -> None:
    """answer(room, height, width): the largest number of frames that fits."""
    room, height, width = SIZES[0]
    got = answer(room, height, width)
    point = None
    if isinstance(got, int) and 2 <= got <= 768:
        point = (got, _tokens(got // 2 * 2, height, width))
    tokens = [_tokens(n, height, width) for n in COUNTS]
    plots.draw_longest(COUNTS, tokens, room, f"the longest video of {width} x {height} px", point)
    for room, height, width in SIZES:
        try:
            got = answer(room, height, width)
        except ValueError as error:
            said = f"with room for {room} tokens it stops ({error})"
            raise Wrong(f"{said}: where nothing fits, return 0") from error
        _compare_longest(got, room, height, width)


def _compare_longest(got: int, room: int, height: int, width: int) -> None:
    """Wrong if another number of frames fits."""
    fitting = [n for n in COUNTS if _tokens(n, height, width) <= room]
    right = max(fitting, default=0)
    if got == right:
        return
    said = f"into {room} tokens fit {right} frames of {width} x {height} px, you said {got}"
    if isinstance(got, int) and got >= 2 and _tokens(got // 2 * 2, height, width) > room:
        said += f"; that many cost {_tokens(got // 2 * 2, height, width)} tokens"
    elif isinstance(got, int) and got < right:
        said += f"; {right} of them cost only {_tokens(right, height, width)} tokens"
    raise Wrong(said)
