"""The drawings of notebook 07: frames, sampling, change between frames, positions, costs."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from plots.lettering import show


def draw_frames(frames: Sequence[Image.Image], titles: Sequence[str], title: str) -> None:
    """Frames side by side, each with its title."""
    size = (1.45 * len(frames), 2.0)
    _, panels = plt.subplots(1, len(frames), figsize=size, squeeze=False)
    for axes, frame, text in zip(panels[0], frames, titles, strict=True):
        axes.imshow(frame)
        axes.set_title(text, fontsize=9)
        axes.set(xticks=[], yticks=[])
    plt.suptitle(title, fontsize=10)
    show()


# ---------------------------------------------------------------------------- which frames are read


def draw_sampling(sample: Callable[..., list[int]]) -> None:
    """Which frames of three short videos are read, and how many of videos up to hours.

    sample(total, rate, fps) gives the frames that are read.
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    videos = [
        ("0.4 s, 25 a second", 10, 25),
        ("1.2 s, 25 a second", 30, 25),
        ("3 s, 8 a second", 24, 8),
    ]
    for row, (name, total, rate) in enumerate(videos):
        times = [i / rate for i in range(total)]
        chosen = [i / rate for i in sample(total, rate)]
        left.plot(times, [row] * total, ls="", marker="|", color="0.6", ms=14)
        left.plot(chosen, [row] * len(chosen), "ko", ls="")
        left.text(0, row + 0.22, name, fontsize=9)
    left.set(xlabel="time in the video (s)", yticks=[], ylim=(-0.5, 2.7))
    left.set_title("frames that are read (dots)")

    seconds = [10 ** (i / 20) for i in range(-10, 88)]
    for fps in (0.5, 2, 8):
        counts = [len(sample(int(s * 30), 30, fps)) for s in seconds]
        right.loglog(seconds, counts, label=f"fps = {fps}")
    for y, text_y, side in ((4, 4.2, "bottom"), (768, 714, "top")):
        right.axhline(y, color="0.5", lw=0.8, ls="-")
        right.text(0.35, text_y, f"{y}", fontsize=9, va=side)
    right.set(xlabel="length of the video (s)", ylabel="frames")
    right.set_title("how many, of videos at 30 frames a second")
    right.legend()
    show()


def draw_lamp(is_lit: Sequence[bool], rate: int, sampled: dict[int, list[int]]) -> None:
    """A lamp that blinks, and what the frames that are read show of it, for each fps."""
    _, rows = plt.subplots(len(sampled), 1, figsize=(9, 4), sharex=True)
    times = [i / rate for i in range(len(is_lit))]
    for axes, (fps, chosen) in zip(rows, sampled.items(), strict=True):
        axes.step(times, is_lit, where="post", color="0.7", ls="-")
        axes.plot([times[i] for i in chosen], [is_lit[i] for i in chosen], "ko", ls=":", ms=4)
        axes.set(yticks=[0, 1], yticklabels=["off", "on"], ylim=(-0.3, 1.3), ylabel=f"fps = {fps}")
    rows[0].set_title(
        "a lamp that blinks twice a second (grey), and the frames that are read (dots)"
    )
    rows[-1].set_xlabel("time (s)")
    show()


# -------------------------------------------------------------------------------- change and spread


def draw_change(frames: Sequence[Image.Image], maps: Tensor, still: Tensor) -> None:
    """Pairs of frames, one over the other, and below how large their change is in each patch.

    maps: (pairs, h, w); still: (h, w), of the first frame repeated.
    """
    t = len(maps)
    columns = [(frames[2 * i], frames[2 * i + 1], maps[i], f"pair {i}") for i in range(t)]
    columns.append((frames[0], frames[0], still, "a still, repeated"))
    _, panels = plt.subplots(2, t + 1, figsize=(2.1 * (t + 1), 3.9))
    for (above, below), (first, second, change, name) in zip(panels.T, columns, strict=True):
        above.imshow(Image.blend(first, second, 0.5))
        above.set_title(name, fontsize=10)
        below.imshow(change, vmin=0, vmax=maps.max())
        below.set_xlabel(f"largest: {change.max():.0f}")
        for axes in (above, below):
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
    panels[0, 0].set_ylabel("both frames,\none over the other")
    panels[1, 0].set_ylabel("change part,\nby patch")
    show()


def draw_spread(spreads: dict[int, Tensor]) -> None:
    """For each painted pair (stages, pairs + 1): by how much the tokens changed."""
    stages, columns = next(iter(spreads.values())).shape
    _, panels = plt.subplots(1, len(spreads), figsize=(11, 0.42 * stages + 1.4))
    layers = [f"layer {i}" for i in range(stages - 2)]
    for axes, (pair, change) in zip(panels, spreads.items(), strict=True):
        axes.imshow(change, vmin=0, vmax=1, aspect="auto")
        for i in range(stages):
            for j in range(columns):
                value = "0" if change[i, j] == 0 else f"{change[i, j]:.2f}"
                colour = "white" if change[i, j] > 0.6 else "black"
                axes.text(j, i, value, ha="center", va="center", color=colour, fontsize=8)
        axes.set_yticks(range(stages), ["vision", *layers, "last, normed"], fontsize=8)
        axes.set_xticks(range(columns), [*[f"pair {i}" for i in range(columns - 1)], "text"])
        axes.set_title(f"painted over: pair {pair}")
        axes.grid(False)
    plt.suptitle("relative change of the tokens (0: not a single bit)", fontsize=11)
    show()


def draw_positions(prompts: dict[str, Tensor]) -> None:
    """Time, row and column (3, T) of every token of some prompts, side by side."""
    _, panels = plt.subplots(1, len(prompts), figsize=(11, 3.6), sharey=True, squeeze=False)
    for axes, (name, positions) in zip(panels[0], prompts.items(), strict=True):
        for axis, label in zip(positions, ("time", "row", "column"), strict=True):
            axes.plot(axis, label=label, drawstyle="steps-mid")
        axes.set(title=name, xlabel="number of the token in the prompt")
    panels[0, 0].set_ylabel("position")
    panels[0, 0].legend()
    show()


# -------------------------------------------------------------------------------- answers and costs


def draw_outcomes(results: dict[str, dict[str, tuple[int, int, int]]]) -> None:
    """For each kind of video and change of time: how many answers are right, opposite, other."""
    _, panels = plt.subplots(1, len(results), figsize=(11, 3), sharey=True)
    styles = [
        ("right", "0.25", "", "white"),
        ("opposite", "0.75", "//", "black"),
        ("other", "1", "..", "black"),
    ]
    for axes, (kind, rows) in zip(panels, results.items(), strict=True):
        names = list(rows)[::-1]
        left = np.zeros(len(names))
        for i, (label, grey, hatch, ink) in enumerate(styles):
            counts = np.array([rows[name][i] for name in names])
            axes.barh(
                names, counts, left=left, color=grey, hatch=hatch, edgecolor="black", label=label
            )
            for y in counts.nonzero()[0]:
                axes.text(
                    left[y] + counts[y] / 2,
                    y,
                    counts[y],
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=10,
                    bbox={"fc": grey, "ec": "none", "pad": 3},
                )
            left = left + counts
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="videos", title=f"something {kind}")
        axes.grid(False)
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    show()


def draw_costs(video_tokens: Callable[..., tuple[int, tuple[int, int]]]) -> None:
    """Tokens of videos, and the size of a frame, against the number of frames.

    video_tokens(n, height, width) gives the tokens and a frame's (height, width).
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    counts = list(range(4, 769, 4))
    for width, height in ((1920, 1080), (640, 480), (320, 240)):
        tokens = [video_tokens(n, height, width)[0] for n in counts]
        left.plot(counts, tokens, label=f"{width} x {height} px")
    for y, name in ((24576, "24,576: the total"), (32768, "32,768: the longest prompt")):
        left.axhline(y, color="0.5", lw=0.8, ls="-")
        blank = {"fc": "white", "ec": "none", "pad": 1}
        left.text(768, y, name, fontsize=9, ha="right", va="center", bbox=blank)
    left.set(xlabel="frames that are read", ylabel="tokens", title="tokens of a video")
    left.legend(loc="upper left", fontsize=9)

    sizes = [video_tokens(n, 1080, 1920)[1] for n in counts]
    right.plot(counts, [width for _, width in sizes], label="width")
    right.plot(counts, [height for height, _ in sizes], label="height")
    right.set(xlabel="frames that are read", ylabel="pixels", ylim=(0, None))
    right.set_title("size of each frame of a 1920 x 1080 video")
    right.legend()
    show()


# ---------------------------------------------------------------------------------------- exercises


def draw_rebuilt(frames: Tensor, rebuilt: Tensor) -> None:
    """Frames (n, 3, height, width) of a video, and below them those put together from patches."""
    _, panels = plt.subplots(2, len(frames), figsize=(1.4 * len(frames), 2.5))
    for row, images in zip(panels, (frames, rebuilt), strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(image.permute(1, 2, 0).byte())
            axes.set(xticks=[], yticks=[])
    panels[0, 0].set_ylabel("the video")
    panels[1, 0].set_ylabel("rebuilt")
    plt.suptitle("six frames, cut into patches and put together again", fontsize=10)
    show()


def draw_located(
    frames: Tensor, times: Sequence[float], located: tuple[float, float, int, int], title: str
) -> None:
    """Frames (n, 3, height, width) at their times, with a box where an answer locates a token."""
    begin, end, row, column = located
    _, panels = plt.subplots(1, len(frames), figsize=(1.5 * len(frames), 1.9))
    for axes, frame, time in zip(panels, frames, times, strict=True):
        axes.imshow(frame.permute(1, 2, 0))
        axes.set_title(f"{time:g} s", fontsize=9)
        axes.set(xticks=[], yticks=[])
        if min(abs(time - begin), abs(time - end)) < 1e-6:
            axes.add_patch(Rectangle((column * 28, row * 28), 28, 28, fill=False, lw=3))
    plt.suptitle(title, fontsize=10)
    show()


def draw_longest(
    counts: Sequence[int],
    tokens: Sequence[int],
    room: int,
    title: str,
    answer: tuple[int, int] | None,
) -> None:
    """Tokens of a video against its frames, the room, and an answer's (frames, tokens)."""
    plt.figure(figsize=(8, 3.4))
    plt.plot(counts, tokens, label="tokens of the video")
    plt.axhline(room, color="0.5", lw=1, ls="-")
    plt.text(counts[-1], room, f"room: {room:,}", ha="right", va="bottom", fontsize=9)
    if answer is not None:
        plt.plot(*answer, "ko", ms=8, label=f"your answer: {answer[0]} frames")
    plt.xlabel("frames")
    plt.ylabel("tokens")
    plt.title(title)
    plt.legend(loc="lower right")
    show()
