"""What notebook 07 draws, what it borrows from the reference, and the checks of its exercises."""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import course
import matplotlib.pyplot as plt
import numpy as np
import torch
from course import Wrong
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from media import read_video
from processor import patchify, sample_frames, smart_resize, video_limits

WRONG = [
    """
def rebuild(patches, grid, ps, tps, m):
    t, h, w = grid
    x = patches.view(t, h, w, 3, tps, ps, ps)  # the 2 x 2 blocks are forgotten
    return x.permute(0, 4, 3, 1, 5, 2, 6).reshape(t * tps, 3, h * ps, w * ps)
""",
    """
def look(k, grid, m, chosen, rate):
    t, h, w = grid
    rows, columns = h // m, w // m
    pair, rest = divmod(k, rows * columns)
    return pair, pair + 0.5, rest // columns, rest % columns  # as if every clip were sampled twice a second
""",
    """
def longest(room, height, width):
    n = 2
    while n <= 768:
        limits = video_limits(n, {})
        H, W = smart_resize(height, width, min_pixels=limits["min_pixels"], max_pixels=limits["max_pixels"])
        if n * (H // 28) * (W // 28) > room:  # two frames cost one, not two
            break
        n += 2
    return n - 2
""",
]


# ------------------------------------------------------------------------------------------------------ plots


def strip(frames: list, titles: list[str], title: str) -> None:
    """Frames side by side, each with its title."""
    size = 1.45 * len(frames), 2.0
    _, panels = plt.subplots(1, len(frames), figsize=size, squeeze=False)
    for axes, frame, text in zip(panels[0], frames, titles, strict=True):
        axes.imshow(frame)
        axes.set_title(text, fontsize=9)
        axes.set(xticks=[], yticks=[])
    plt.suptitle(title, fontsize=10)
    plt.show()


def draw_sampling(my_frames: Callable) -> None:
    """Which frames of three short clips, and how many of clips up to hours."""
    _, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    examples = [("0.4 s, 25 a second", 10, 25), ("1.2 s, 25 a second", 30, 25), ("3 s, 8 a second", 24, 8)]
    for row, (name, total, rate) in enumerate(examples):
        chosen = my_frames(total, rate)
        left.plot([i / rate for i in range(total)], [row] * total, ls="", marker="|", color="0.6", ms=14)
        left.plot([i / rate for i in chosen], [row] * len(chosen), "ko", ls="")
        left.text(0, row + 0.22, name, fontsize=9)
    left.set(xlabel="time in the clip (s)", yticks=[], ylim=(-0.5, 2.7))
    left.set_title("frames that are looked at (dots)")
    seconds = [10 ** (i / 20) for i in range(-10, 88)]
    for fps in (0.5, 2, 8):
        right.loglog(seconds, [len(my_frames(int(s * 30), 30, fps)) for s in seconds], label=f"fps = {fps}")
    for y in (4, 768):
        right.axhline(y, color="0.5", lw=0.8, ls="-")
        right.text(0.35, y * 0.93 if y > 4 else 4.2, f"{y}", fontsize=9, va="top" if y > 4 else "bottom")
    right.set(
        xlabel="length of the clip (s)", ylabel="frames", title="how many, of clips at 30 frames a second"
    )
    right.legend()
    plt.show()


def draw_change(frames: list, maps: torch.Tensor, still: torch.Tensor) -> None:
    """Pairs of frames laid over each other, and below how strongly each patch feels their change."""
    t = len(maps)
    pairs = [(frames[2 * i], frames[2 * i + 1], maps[i], f"pair {i}") for i in range(t)]
    _, panels = plt.subplots(2, t + 1, figsize=(2.1 * (t + 1), 3.9))
    for axes, (one, two, heat, name) in zip(
        panels.T, [*pairs, (frames[0], frames[0], still, "a still, shown twice")], strict=True
    ):
        axes[0].imshow(Image.blend(one, two, 0.5))
        axes[0].set_title(name, fontsize=10)
        axes[1].imshow(heat, vmin=0, vmax=maps.max())
        axes[1].set_xlabel(f"largest: {heat.max():.0f}")
        for ax in axes:
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    panels[0, 0].set_ylabel("both frames,\none over the other")
    panels[1, 0].set_ylabel("change part,\nby patch")
    plt.show()


def draw_spread(spreads: dict[int, torch.Tensor]) -> None:
    """For each painted pair (stages, pairs + 1): by how much the tokens changed."""
    stages, columns = next(iter(spreads.values())).shape
    _, panels = plt.subplots(1, len(spreads), figsize=(11, 0.42 * stages + 1.4))
    for axes, (pair, moved) in zip(panels, spreads.items(), strict=True):
        axes.imshow(moved, vmin=0, vmax=1, aspect="auto")
        for i in range(stages):
            for j in range(columns):
                value = "0" if moved[i, j] == 0 else f"{moved[i, j]:.2f}"
                shade = "white" if moved[i, j] > 0.6 else "black"
                axes.text(j, i, value, ha="center", va="center", color=shade, fontsize=8)
        layers = [f"layer {i}" for i in range(stages - 2)]
        axes.set_yticks(range(stages), ["tower", *layers, "last, normed"], fontsize=8)
        axes.set_xticks(range(columns), [*[f"pair {i}" for i in range(columns - 1)], "text"])
        axes.set_title(f"painted over: pair {pair}")
        axes.grid(False)
    plt.suptitle("relative change of the tokens (0: not a single bit)", fontsize=11)
    plt.show()


def draw_positions(prompts: dict[str, torch.Tensor]) -> None:
    """Time, row and column (3, T) of every token of some prompts, side by side."""
    _, panels = plt.subplots(1, len(prompts), figsize=(11, 3.6), sharey=True, squeeze=False)
    for axes, (name, positions) in zip(panels[0], prompts.items(), strict=True):
        for axis, label in zip(positions, ("time", "row", "column"), strict=True):
            axes.plot(axis, label=label, drawstyle="steps-mid")
        axes.set(title=name, xlabel="place of the token in the prompt")
    panels[0, 0].set_ylabel("position")
    panels[0, 0].legend()
    plt.show()


def draw_outcomes(results: dict[str, dict[str, list[int]]]) -> None:
    """For each kind of clip and way to tamper: how many answers are right, opposite and other."""
    _, panels = plt.subplots(1, len(results), figsize=(11, 3), sharey=True)
    styles = [
        ("right", "0.25", "", "white"),
        ("opposite", "0.75", "//", "black"),
        ("other", "1", "..", "black"),
    ]
    for axes, (kind, rows) in zip(panels, results.items(), strict=True):
        names, begin = list(rows)[::-1], np.zeros(len(rows))
        for i, (label, grey, hatch, ink) in enumerate(styles):
            counts = np.array([rows[name][i] for name in names])
            axes.barh(names, counts, left=begin, color=grey, hatch=hatch, edgecolor="black", label=label)
            for y in counts.nonzero()[0]:
                box = {"fc": grey, "ec": "none", "pad": 3}
                at = begin[y] + counts[y] / 2
                axes.text(at, y, counts[y], ha="center", va="center", color=ink, fontsize=10, bbox=box)
            begin = begin + counts
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="clips", title=f"something {kind}")
        axes.grid(False)
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    plt.show()


def draw_costs(clip_tokens: Callable) -> None:
    """Tokens of clips, and the size of a frame, against the number of frames."""
    _, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    counts = list(range(4, 769, 4))
    for width, height in [(1920, 1080), (640, 480), (320, 240)]:
        tokens = [clip_tokens(n, height, width)[0] for n in counts]
        left.plot(counts, tokens, label=f"{width} x {height} px")
    for y, name in [(24576, "24,576: the budget"), (32768, "32,768: the longest prompt")]:
        left.axhline(y, color="0.5", lw=0.8, ls="-")
        blank = {"fc": "white", "ec": "none", "pad": 1}
        left.text(768, y, name, fontsize=9, ha="right", va="center", bbox=blank)
    left.set(xlabel="frames looked at", ylabel="tokens", title="tokens of a clip")
    left.legend(loc="upper left", fontsize=9)
    sizes = [clip_tokens(n, 1080, 1920)[1] for n in counts]
    right.plot(counts, [width for _, width in sizes], label="width")
    right.plot(counts, [height for height, _ in sizes], label="height")
    right.set(xlabel="frames looked at", ylabel="pixels", ylim=(0, None))
    right.set_title("size of each frame of a 1920 x 1080 clip")
    right.legend()
    plt.show()


# -------------------------------------------------------------------------------------------- the reference


class Sampled(NamedTuple):
    """Which frames the reference looks at: of `total` frames at `rate` a second."""

    total: int
    rate: float
    options: dict
    frames: list[int]


def reference_frames() -> Iterator[Sampled]:
    """What `transformers` with torchvision gave, from the array that the repository's tests keep.

    Left out are clips past 16,384 frames, where the reference's float32 may be a frame ahead, and those where
    it takes one frame more or fewer than it meant to.
    """
    sys.path.append(str(course.ROOT / "tests"))
    try:
        from torchvision_inputs import lengths
    finally:
        sys.path.pop()
    stored = np.load(course.ROOT / "tests" / "torchvision_arrays.npz")
    steps = np.split(stored["index_steps"], np.cumsum(stored["index_counts"])[:-1])
    for (total, rate, options), step in zip(lengths(), steps, strict=True):
        if total <= 16384 and len(step) == len(sample_frames(total, rate, **options)):
            yield Sampled(total, rate, options, np.cumsum(step).tolist())


def reference_patches(processor, frames: list) -> torch.Tensor:
    """The patches that `transformers` cuts from frames that need no resize."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    ours = processor.image_processor
    theirs = Qwen2VLImageProcessor(image_mean=ours.image_mean, image_std=ours.image_std)
    patches, _ = theirs._preprocess(
        frames,
        do_resize=False,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=ours.image_mean,
        image_std=ours.image_std,
        patch_size=ours.patch_size,
        temporal_patch_size=ours.temporal_patch_size,
        merge_size=ours.merge_size,
    )
    return torch.from_numpy(patches)


def film() -> tuple[torch.Tensor, list[int], float]:
    """The example clip: its sampled frames (n, 3, H, W), which they are, and the clip's frames a second."""
    known = {}

    def choose(total: int, rate: float) -> list[int]:
        known.update(rate=rate, chosen=sample_frames(total, rate))
        return known["chosen"]

    kept = read_video(
        course.EXAMPLES / "moving.mp4", choose, lambda frame, n: torch.from_numpy(np.array(frame))
    )
    return torch.stack(kept).permute(0, 3, 1, 2), known["chosen"], known["rate"]


# ---------------------------------------------------------------------------------------- frames from patches


def rebuild(answer: Callable) -> None:
    """Exercise 1: patches back to frames."""
    frames = film()[0]  # (6, 3, 84, 112)
    patches, grid = patchify(frames)
    got = answer(patches, grid, 14, 2, 2)
    _shape(got, frames)
    _, panels = plt.subplots(2, len(frames), figsize=(1.4 * len(frames), 2.5))
    for axes, frame in zip(panels.T, zip(frames, got, strict=True), strict=True):
        for ax, picture in zip(axes, frame, strict=True):
            ax.imshow(picture.permute(1, 2, 0).to(torch.uint8))
            ax.set(xticks=[], yticks=[])
    panels[0, 0].set_ylabel("the clip")
    panels[1, 0].set_ylabel("rebuilt")
    plt.suptitle("six frames, cut into patches and put together again", fontsize=10)
    plt.show()
    _same(got, frames)
    for t, h, w, ps, tps, m in [
        (1, 4, 6, 3, 2, 2),
        (3, 2, 4, 2, 2, 2),
        (2, 6, 3, 2, 3, 3),
        (2, 3, 2, 4, 1, 1),
    ]:
        frames = torch.arange(t * tps * 3 * h * ps * w * ps).view(t * tps, 3, h * ps, w * ps).float()
        got = answer(*patchify(frames, ps, tps, m), ps, tps, m)
        _shape(got, frames)
        _same(got, frames)


def _shape(got: torch.Tensor, frames: torch.Tensor) -> None:
    if not isinstance(got, torch.Tensor) or got.shape != frames.shape:
        shape = tuple(got.shape) if isinstance(got, torch.Tensor) else type(got).__name__
        raise Wrong(f"the frames should be {tuple(frames.shape)}, you gave {shape}")


def _same(got: torch.Tensor, frames: torch.Tensor) -> None:
    wrong = (got != frames).flatten(1).float().mean(1)  # the share of wrong pixels, by frame
    if not wrong.any():
        return
    count = int((wrong > 0).sum())
    said = f"of {len(frames)} frames {count} are wrong, at worst in {wrong.max():.0%} of the pixels"
    if len(got.flatten(1).unique(dim=0)) < len(frames.flatten(1).unique(dim=0)):
        said += ". Some frames come twice: a patch holds tps different frames"
    elif all(any(torch.equal(frame, other) for other in frames) for frame in got):
        said += ". Each frame is there, but not in its place: the frame of a pair comes right behind the pair"
    elif torch.equal(got.flip(1), frames):
        said += ". The colours come in the wrong order"
    else:
        said += ". Each block of m x m patches has its four (m * m) patches one after another: did you take"
        said += " them apart into block row, block column, row and column in the block? And the numbers of a"
        said += " patch are colour, frame, row, column, in this order."
    raise Wrong(said)


# ---------------------------------------------------------------------------------------- where a token looks


def look(answer: Callable) -> None:
    """Exercise 2: a token's seconds, row and column."""
    frames, chosen, rate = film()
    t, h, w = grid = (len(frames) // 2, frames.shape[2] // 14, frames.shape[3] // 14)
    k = t * h * w // 4 // 2 - 1
    got = _place(answer(k, grid, 2, chosen, rate))
    _, panels = plt.subplots(1, len(frames), figsize=(1.5 * len(frames), 1.9))
    for axes, frame, i in zip(panels, frames, chosen, strict=True):
        axes.imshow(frame.permute(1, 2, 0))
        axes.set_title(f"{i / rate:g} s", fontsize=9)
        axes.set(xticks=[], yticks=[])
        if abs(i / rate - got[0]) < 1e-6 or abs(i / rate - got[1]) < 1e-6:
            box = Rectangle((got[3] * 28, got[2] * 28), 28, 28, fill=False, lw=3)
            axes.add_patch(box)
    plt.suptitle(f"where your answer finds token {k} of {t * h * w // 4}", fontsize=10)
    plt.show()
    cases = [(k, grid, 2, chosen, rate)]
    for total, rate, fps, h, w, m in [
        (24, 8.0, 2, 6, 8, 2),
        (30, 25.0, 2, 4, 10, 2),
        (900, 30.0, 0.5, 6, 9, 3),
    ]:
        chosen = sample_frames(total, rate, fps)
        tokens = len(chosen) // 2 * (h // m) * (w // m)
        cases += [(k, (len(chosen) // 2, h, w), m, chosen, rate) for k in (0, 1, tokens // 2, tokens - 1)]
    for case in cases:
        _compare_place(_place(answer(*case)), *case)


def _place(got) -> tuple[float, float, int, int]:
    if not isinstance(got, (tuple, list)) or len(got) != 4:
        raise Wrong(f"return (begin, end, row, column), not {got!r:.60}")
    return tuple(got)


def _compare_place(got: tuple, k: int, grid: tuple, m: int, chosen: list[int], rate: float) -> None:
    t, h, w = grid
    pair, row, column = (int(n) for n in np.unravel_index(k, (t, h // m, w // m)))
    what = f"token {k} of the grid {grid} with m = {m}"
    if (got[2], got[3]) != (row, column):
        raise Wrong(f"{what} is in row {row}, column {column} of tokens; you said {got[2]}, {got[3]}")
    frames = chosen[2 * pair], chosen[2 * pair + 1]
    true = frames[0] / rate, frames[1] / rate
    if max(abs(a - b) for a, b in zip(got[:2], true, strict=True)) > 1e-6:
        said = f"{what} belongs to pair {pair}: frames {frames[0]} and {frames[1]}, filmed at {true[0]:g} and"
        raise Wrong(f"{said} {true[1]:g} s ({rate:g} frames a second); you said {got[0]:g} and {got[1]:g} s")


# ------------------------------------------------------------------------------------------- the longest clip


def tokens_of(n: int, height: int, width: int) -> int:
    limits = video_limits(n, {})
    H, W = smart_resize(height, width, min_pixels=limits["min_pixels"], max_pixels=limits["max_pixels"])
    return n // 2 * (H // 28) * (W // 28)


# Room in tokens, height and width in pixels; in the last case the longest clip of all fits.
SIZES = [(24000, 1080, 1920), (4096, 480, 640), (16384, 720, 1280), (50, 720, 1280), (10**6, 480, 640)]


def longest(answer: Callable) -> None:
    """Exercise 3: the largest number of frames that fits."""
    counts = list(range(2, 769, 2))
    room, height, width = 24000, 1080, 1920
    costs = [tokens_of(n, height, width) for n in counts]
    got = answer(room, height, width)
    plt.figure(figsize=(8, 3.4))
    plt.plot(counts, costs, label="tokens of the clip")
    plt.axhline(room, color="0.5", lw=1)
    plt.text(counts[-1], room, f"room: {room:,}", ha="right", va="bottom", fontsize=9)
    if isinstance(got, int) and 2 <= got <= 768:
        cost = tokens_of(got // 2 * 2, height, width)
        plt.plot([got], [cost], "ko", ms=8, label=f"your answer: {got} frames")
    plt.xlabel("frames")
    plt.ylabel("tokens")
    plt.title(f"the longest clip of {width} x {height} px")
    plt.legend(loc="lower right")
    plt.show()
    for room, height, width in SIZES:
        try:
            got = answer(room, height, width)
        except ValueError as error:
            raise Wrong(
                f"with room for {room} tokens it stops ({error}): where nothing fits, return 0"
            ) from error
        true = max((n for n in counts if tokens_of(n, height, width) <= room), default=0)
        if got == true:
            continue
        said = f"into {room} tokens fit {true} frames of {width} x {height} px, you said {got}"
        if isinstance(got, int) and got >= 2 and (cost := tokens_of(got // 2 * 2, height, width)) > room:
            said += f"; that many cost {cost} tokens"
        elif isinstance(got, int) and got < true:
            said += f"; {true} of them cost only {tokens_of(true, height, width)} tokens"
        raise Wrong(said)
