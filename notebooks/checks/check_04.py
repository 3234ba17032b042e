"""Checkers and drawings of 04_mrope: the truth comes from the shipped positions and rotary table."""

import random
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace

import course
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from torch import Tensor

from qwen2vl import Qwen2VLConfig, Qwen2VLModel, get_rope_index

AXES = ("time", "row", "column")
Layout = list[int | tuple[int, int, int]]


@lru_cache
def config() -> Qwen2VLConfig:
    return Qwen2VLConfig.from_pretrained(course.MODEL)


# -------------------------------------------------------------------------------------------------- drawings


def on_picture(picture, where: Tensor, cell: int) -> None:
    """A picture of h x w cells, each with its token's position (3, h * w) written on it."""
    _, axes = plt.subplots(figsize=(7.5, 7.5 * picture.height / picture.width))
    axes.imshow(picture, alpha=0.6)
    columns = picture.width // cell
    for n, (t, h, w) in enumerate(where.T.tolist()):
        x, y = n % columns * cell, n // columns * cell
        axes.add_patch(Rectangle((x, y), cell, cell, fill=False, edgecolor="black", linewidth=0.8))
        axes.text(x + cell / 2, y + cell / 2, f"{t}, {h}, {w}", ha="center", va="center", fontsize=10)
    axes.set(xlabel="x (pixels)", ylabel="y (pixels)", title="time, row and column of every token")
    axes.grid(False)
    plt.show()


def table(where: Tensor, names: list[str]) -> None:
    """Positions (3, T) as a grid of numbers, the larger the darker."""
    _, axes = plt.subplots(figsize=(0.62 * len(names) + 1, 2))
    axes.imshow(where, vmin=0, vmax=2 * int(where.max()), aspect="auto")
    for row, values in enumerate(where.tolist()):
        for column, value in enumerate(values):
            axes.text(column, row, value, ha="center", va="center", fontsize=11)
    axes.set(xticks=range(len(names)), yticks=range(3), yticklabels=AXES, title="position of each token")
    axes.set_xticklabels(names, fontsize=9)
    axes.grid(False)
    plt.show()


def lines(layouts: dict[str, Layout], place: Callable[[Layout], Tensor]) -> None:
    """For each layout the three coordinates of its tokens against their number; pictures shaded."""
    _, panels = plt.subplots(-(-len(layouts) // 2), 2, figsize=(10, 3 * -(-len(layouts) // 2)), squeeze=False)
    for axes, (title, layout) in zip(panels.flat, layouts.items(), strict=True):
        where, start = place(layout), 0
        for item in layout:
            n = item if isinstance(item, int) else item[0] * item[1] * item[2]
            if not isinstance(item, int):
                axes.axvspan(start - 0.5, start + n - 0.5, color="0.9")
            start += n
        axes.plot(range(start), color="0.6", linewidth=1, linestyle="-", label="one number a token")
        looks = (("black", "-", 2.4), ("#d55e00", "--", 1.6), ("#0072b2", ":", 1.8))
        for name, values, (shade, style, wide) in zip(AXES, where, looks, strict=True):
            axes.plot(values, color=shade, linestyle=style, linewidth=wide, label=name)
        axes.set(title=title, xlabel="token", ylabel="position")
        axes.set_ylim(-1, 1.6 * int(where.max()) + 3)
    panels[0, 0].legend(fontsize=8, loc="upper left")
    plt.show()


def spent(frames: list[int], side: int) -> None:
    """The next free position behind a clip, by number of frames: one number a token, and M-RoPE."""
    _, axes = plt.subplots(figsize=(7, 3.4))
    axes.plot(frames, [n * side**2 for n in frames], marker="s", label="one number a token")
    axes.plot(frames, [max(n, side) for n in frames], marker="o", label="M-RoPE")
    axes.set(xscale="log", yscale="log", xlabel=f"frames (temporal patches of {side} x {side} tokens)")
    axes.set(ylabel="position of the text behind", title="How far a clip pushes the text behind it")
    axes.legend()
    plt.show()


def arrows(angles: Tensor, grid: tuple[int, int], pairs: list[int], steps: list[float]) -> None:
    """One panel a pair: for every token of a picture (h, w) the direction into which (1, 0) was turned."""
    h, w = grid
    _, panels = plt.subplots(1, len(pairs), figsize=(3.6 * len(pairs), 3.6 * h / w + 0.6))
    for axes, name, pair, step in zip(panels, AXES, pairs, steps, strict=True):
        turned = angles[:, pair].view(h, w)
        # y points down in the drawing, as rows do: an angle that grows turns the arrow clockwise
        axes.quiver(turned.cos(), -turned.sin(), pivot="mid", scale=8 * w / 6, width=0.012, color="black")
        axes.set(xlim=(-0.6, w - 0.4), ylim=(h - 0.4, -0.6), xlabel="column", ylabel="row")
        axes.set(xticks=range(w), yticks=range(h))
        axes.set_title(f"pair {pair} turns with the {name}:\n{step:.3g} rad a step", fontsize=10)
    plt.show()


def sections(angles: Tensor, sizes: list[int], start: int, stop: int) -> None:
    """cos of the angles (T, d/2) as a heat map; the picture is between start and stop."""
    _, axes = plt.subplots(figsize=(8, 4.6))
    image = axes.imshow(angles.cos(), cmap="gray", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    left = -0.5
    for name, size in zip(AXES, sizes, strict=True):
        axes.text(left + size / 2, -1.5, name, ha="center", va="bottom", fontsize=10)
        left += size
        axes.axvline(left, color="black", linewidth=2.5)
        axes.axvline(left, color="white", linewidth=1)
    for y in (start - 0.5, stop - 0.5):
        axes.axhline(y, color="black", linestyle="--", linewidth=1)
    axes.text(left + 0.2, (start + stop) / 2, "picture", va="center", fontsize=9, rotation=270)
    axes.set(xlabel="pair of the head (from fast to slow)", ylabel="token of the prompt")
    axes.set_title("cosine of the angle by which each pair is turned\n\n", fontsize=11)
    axes.set_xlim(-0.5, left + 0.01)
    axes.grid(False)
    plt.colorbar(image, ax=axes, pad=0.06)
    plt.show()


def closeness(maps: dict[str, Tensor], query: tuple[int, int]) -> None:
    """Scores of one query with every cell of a picture; the query's own cell is marked."""
    _, panels = plt.subplots(1, len(maps), figsize=(5 * len(maps), 3.4))
    for axes, (title, scores) in zip(panels, maps.items(), strict=True):
        image = axes.imshow(scores, cmap="gray")
        axes.plot(query[1], query[0], "x", color="black", markersize=10, markeredgewidth=2)
        axes.set(title=title, xlabel="column", ylabel="row")
        axes.grid(False)
        plt.colorbar(image, ax=axes, label="score with x, of at most 1", shrink=0.8)
    plt.show()


def misses(found: dict[str, float]) -> None:
    """How far the logits are off, a bar a mistake."""
    _, axes = plt.subplots(figsize=(8, 0.45 * len(found) + 1))
    axes.barh(list(found), list(found.values()), color="0.6", edgecolor="black")
    for y, value in enumerate(found.values()):
        axes.text(value + 0.01 * max(found.values()), y, f"{value:.1%}", va="center", fontsize=9)
    axes.set(
        xlim=(0, 1.15 * max(found.values())),
        xlabel="largest change of a logit, relative to the largest logit",
    )
    axes.set_title("What wrong positions do to the next token's logits")
    axes.invert_yaxis()
    plt.show()


def nine(answers: dict[str, list[str]], right: list[str]) -> None:
    """Answers for a thing in nine places, one panel a setting; wrong ones dark."""
    _, panels = plt.subplots(1, len(answers), figsize=(2.6 * len(answers), 2.9))
    for axes, (title, given) in zip(panels, answers.items(), strict=True):
        for n, (answer, wanted) in enumerate(zip(given, right, strict=True)):
            shade = "white" if answer == wanted else "0.35"
            axes.add_patch(Rectangle((n % 3, n // 3), 1, 1, facecolor=shade, edgecolor="black"))
            words = answer.removeprefix("At the ").removeprefix("In the ").rstrip(".").split()
            text = "\n".join(words[:3]) + ("\n…" if len(words) > 3 else "")
            ink = "black" if answer == wanted else "white"
            style = {"fontsize": 8, "color": ink, "parse_math": False}
            axes.text(n % 3 + 0.5, n // 3 + 0.5, text, ha="center", va="center", clip_on=True, **style)
        count = sum(a == b for a, b in zip(given, right, strict=True))
        axes.set(xlim=(-0.02, 3.02), ylim=(3.02, -0.02), xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"{title}\n{count} of 9 right", fontsize=9)
        axes.grid(False)
    plt.show()


# ------------------------------------------------------------------------------------------------- exercises


def shipped_delta(grids: list[tuple[int, int, int]]) -> int:
    """The delta of a prompt with five text tokens before, between and behind clips of these grids."""
    m, slot = config().vision_config.spatial_merge_size, config().video_token_id
    text = [i for i in range(9) if i not in (slot, config().image_token_id)][:5]
    ids = text + [i for t, h, w in grids for i in [slot] * (t * h * w // m**2) + text]
    grid = torch.tensor(grids) if grids else None
    return int(get_rope_index(config(), torch.tensor([ids]), None, grid)[1])


def delta(answer: Callable[[list[tuple], int], int]) -> None:
    """What decoding adds to the number of tokens: text, pictures, a long clip, several, random ones."""
    m, rng = config().vision_config.spatial_merge_size, random.Random(0)
    cases = {
        "text only": [],
        "a picture": [(1, 4 * m, 6 * m)],
        "a tall picture": [(1, 9 * m, 2 * m)],
        "a long clip": [(12, 2 * m, 3 * m)],
        "two pictures": [(1, 4 * m, 4 * m), (1, 2 * m, 8 * m)],
    }
    for n in range(3):
        sizes = [(rng.randint(1, 8), m * rng.randint(1, 6), m * rng.randint(1, 6)) for _ in range(n + 1)]
        cases[f"random, {n + 1}"] = sizes
    wanted = [shipped_delta(grids) for grids in cases.values()]
    found = [answer(list(grids), m) for grids in cases.values()]
    _, axes = plt.subplots(figsize=(8, 3.2))
    rows = range(len(cases))
    axes.barh([y - 0.2 for y in rows], wanted, 0.4, color="black", label="right")
    grey = {"color": "0.9", "edgecolor": "black", "hatch": "//", "label": "yours"}
    axes.barh([y + 0.2 for y in rows], [float(x) for x in found], 0.4, **grey)
    axes.set(yticks=rows, yticklabels=list(cases), xlabel="delta (positions)", title="What decoding adds")
    axes.invert_yaxis()
    axes.legend()
    plt.show()
    for (what, grids), x, y in zip(cases.items(), found, wanted, strict=True):
        if x != y:
            suspects = {
                "the grids are in patches, m x m of them are a token": [
                    max(g) - g[0] * g[1] * g[2] for g in grids
                ],
                "only rows and columns are merged, not time": [
                    max(t // m, h // m, w // m) - t // m * (h // m) * (w // m) for t, h, w in grids
                ],
                "the sign: more tokens than positions make it negative": [
                    t * h * w // m**2 - max(t, h // m, w // m) for t, h, w in grids
                ],
            }
            hint = next((f" ({why})" for why, each in suspects.items() if sum(each) == x), "")
            raise course.Wrong(f"{what}, grids {grids} in patches: the delta is {y}, yours is {x}{hint}")


def axis_of(answer: Callable[[list[int]], list[int]]) -> None:
    """Which axis turns each number of a head, found out from the shipped table by moving along one axis."""
    moved = torch.eye(3, dtype=torch.long)[:, None]  # (3, 1, 3): token 0 at time 1, token 1 at row 1 ...
    decoder = SimpleNamespace(config=config())  # all that the table needs to know of one
    sines = Qwen2VLModel.rotary_table(decoder, moved, torch.float64)[1][0, 0]  # (3, d)
    wanted = sines.abs().argmax(dim=0).tolist()
    found = [int(i) for i in answer(list(config().mrope_section))]
    _, axes = plt.subplots(figsize=(10, 1.6))
    for y, row in (0, wanted), (1, found):
        for x, axis in enumerate(row):
            shade = ("black", "0.6", "white")[axis] if axis in (0, 1, 2) else "red"
            axes.add_patch(Rectangle((x, y + 0.1), 1, 0.8, facecolor=shade, edgecolor="0.3"))
    axes.set(
        xlim=(0, max(len(found), len(wanted))), ylim=(0, 2), yticks=[0.5, 1.5], xlabel="number of the head"
    )
    axes.set_yticklabels(["right", "yours"])
    axes.set_title("time black, row grey, column white", fontsize=10, loc="left")
    axes.grid(False)
    plt.show()
    if len(found) != len(wanted):
        raise course.Wrong(
            f"a head has {len(wanted)} numbers, your list {len(found)}: two numbers make a pair"
        )
    off = [i for i, (x, y) in enumerate(zip(found, wanted, strict=True)) if x != y]
    if off:
        name = AXES[wanted[off[0]]]
        where = (
            f"{len(off)} of {len(wanted)} are wrong, the first is number {off[0]}: it turns with the {name}"
        )
        raise course.Wrong(f"{where}. Number i is paired with i + {len(wanted) // 2}")
    other = [int(i) for i in answer([1, 2, 3])]
    if other != [0, 1, 1, 2, 2, 2] * 2:
        raise course.Wrong(f"right for this model, but sections [1, 2, 3] give {other}")


WRONG = [
    """
def axis_of(sections):
    return [axis for axis, size in enumerate(sections) for _ in range(2 * size)]
""",
    """
def delta(grids, m):
    return sum(max(h // m, w // m) - t * h * w // m**2 for t, h, w in grids)
""",
]
