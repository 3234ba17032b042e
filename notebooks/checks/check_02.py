"""Notebook 02: what its larger plots take, and the checks of its exercises."""

import textwrap
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from course import Wrong
from PIL import Image
from torch import Tensor

from qwen2vl import attention, rope_frequencies, rotate

# ----------------------------------------------------------------------------------------------------- plots


def draw_one(picture: Image.Image, row: int, column: int, ps: int) -> None:
    """A picture with one of its patches framed, and that patch alone."""
    _, (left, right) = plt.subplots(1, 2, figsize=(7, 3), width_ratios=(2, 1))
    left.imshow(picture)
    left.add_patch(plt.Rectangle((column * ps, row * ps), ps, ps, fill=False, linewidth=2))
    left.set_title(
        f"{picture.height // ps} × {picture.width // ps} patches of {ps} × {ps} pixels", fontsize=9
    )
    right.imshow(picture.crop((column * ps, row * ps, (column + 1) * ps, (row + 1) * ps)))
    right.set_title(f"the patch in row {row}, column {column}", fontsize=9)
    for axes in left, right:
        axes.set_axis_off()
    plt.show()


def draw_turns(rows: Tensor, columns: Tensor, angles: Tensor) -> None:
    """Over the grid, the hands of four pairs: fast and slow, turned by the row and by the column."""
    quarter = angles.shape[1] // 2  # d/4 frequencies
    slow = min(quarter - 1, max(1, quarter // 4))
    pairs = {
        "turned by the row, fast": 0,
        "turned by the row, slower": slow,
        "turned by the column, fast": quarter,
        "turned by the column, slower": quarter + slow,
    }
    _, panels = plt.subplots(2, 2, figsize=(9, 6.4))
    for axes, (title, pair) in zip(panels.flat, pairs.items(), strict=True):
        u, v = angles[:, pair].cos(), angles[:, pair].sin()
        axes.quiver(columns, rows, u, v, angles="xy", scale=1.25, scale_units="xy", width=0.006, pivot="mid")
        axes.set(title=f"pair {pair}: {title}", xlabel="column [patches]", ylabel="row [patches]")
        axes.set(xticks=range(int(columns.max()) + 1), yticks=range(int(rows.max()) + 1), aspect="equal")
        axes.set(xlim=(-0.7, int(columns.max()) + 0.7), ylim=(int(rows.max()) + 0.7, -0.7))
    plt.show()


def draw_scores(scores: list[Tensor], where: list[tuple[int, int]]) -> None:
    """Scores (h, w) of every key with the query at each of the places, marked by a cross."""
    _, panels = plt.subplots(1, len(scores), figsize=(10, 3))
    for axes, score, (row, column) in zip(panels, scores, where, strict=True):
        seen = axes.imshow(score, vmin=float(min(map(torch.min, scores))), vmax=float(scores[0].max()))
        axes.plot(column, row, "wx", markersize=9, markeredgewidth=2.5)
        axes.set(
            title=f"query in row {row}, column {column}", xlabel="column [patches]", ylabel="row [patches]"
        )
        axes.grid(False)
    plt.colorbar(seen, ax=panels, label="score (1: same place)")
    plt.show()


def draw_attention(picture: Image.Image, maps: Tensor, row: int, column: int, layers: list[int]) -> None:
    """Attention weights (layers, heads, h, w) of one patch, as light on the picture; a cross on the patch."""
    h, w = maps.shape[2:]
    _, panels = plt.subplots(
        len(maps), maps.shape[1], figsize=(10, 10 * len(maps) * h / w / maps.shape[1] + 0.6)
    )
    for line, layer, axes_row in zip(maps, layers, panels, strict=True):
        for head, (weights, axes) in enumerate(zip(line, axes_row, strict=True)):
            light = 0.15 + 0.85 * (weights / weights.max()).sqrt()  # the root lifts faint ones into sight
            pixels = torch.tensor(list(picture.convert("RGB").tobytes())).view(
                picture.height, picture.width, 3
            )
            at = [torch.arange(n) * m // n for n, m in ((picture.height, h), (picture.width, w))]
            axes.imshow((pixels * light[at[0]][:, at[1], None] / 255).numpy(), extent=(0, w, h, 0))
            axes.plot(column + 0.5, row + 0.5, "wx", markersize=9, markeredgewidth=4)
            axes.plot(column + 0.5, row + 0.5, "kx", markersize=8, markeredgewidth=1.5)
            axes.set_title(f"block {layer}, head {head}", fontsize=8)
            axes.set_axis_off()
    plt.show()


def draw_reach(reach: Tensor, alike: float) -> None:
    """The mean distance (blocks, heads) at which each head looks; alike: of all patches."""
    plt.figure(figsize=(8, 3.4))
    plt.plot(reach, "o", color="black", mfc="white")
    plt.axhline(alike, linestyle="--", color="grey", label="all patches alike")
    plt.xticks(range(len(reach)))
    plt.ylim(0, None)
    plt.title("How far each head looks (a circle is a head)")
    plt.xlabel("block")
    plt.ylabel("mean distance [patches]")
    plt.legend(loc="lower right")
    plt.show()


def draw_damage(name: str, damage: dict[str, tuple[Tensor, str]]) -> None:
    """For each mistake the relative change of every token (rows, columns), and the answer that came of it."""
    _, panels = plt.subplots(1, len(damage), figsize=(11, 3.1))
    for axes, (mistake, (change, answer)) in zip(panels, damage.items(), strict=True):
        axes.imshow(change, vmin=0, vmax=1.6)
        for row, column in torch.cartesian_prod(*map(torch.arange, change.shape)).tolist():
            value = float(change[row, column])
            colour = "white" if value > 0.8 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_title(f"{name}: {mistake}\n" + textwrap.fill(answer, 27), fontsize=9)
        axes.set(xlabel="column [tokens]", ylabel="row [tokens]")
        axes.set(xticks=range(change.shape[1]), yticks=range(change.shape[0]))
        axes.grid(False)
    plt.show()


# ------------------------------------------------------------------------------------------------- exercises


def turn(answer: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    for d in (32, 16, 80):
        frequencies = rope_frequencies(d // 2, 10_000.0, torch.device("cpu"))  # (d/4,)
        x = torch.randn(d, generator=generator)
        for row, column in ((0, 0), (1, 0), (0, 1), (3, 7), (11, 2)):
            angles = torch.cat((row * frequencies, column * frequencies)).repeat(2)  # (d,)
            right, got = rotate(x, angles.cos(), angles.sin()), answer(x.clone(), row, column, frequencies)
            if not isinstance(got, Tensor) or got.shape != right.shape:
                shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
                raise Wrong(f"a vector of {d} numbers is wanted, not {shape}")
            if (d, row, column) == (32, 3, 7) or not torch.allclose(got, right, atol=1e-4):
                _draw_turn(x, right, got, row, column)
            if not torch.allclose(got, right, atol=1e-4):
                raise Wrong(_what_is_wrong(x, right, got, row, column))


def _draw_turn(x: Tensor, right: Tensor, got: Tensor, row: int, column: int) -> None:
    _, axes = plt.subplots(figsize=(9, 2.8))
    axes.plot(x, color="grey", linewidth=1, linestyle=":", label="before")
    axes.plot(right, "ko", mfc="white", markersize=8, label="right")
    axes.plot(got.float(), "x", color="#d55e00", markersize=6, label="yours")
    axes.set(title=f"a vector of {len(x)} numbers turned to row {row}, column {column}")
    axes.set(xlabel="place in the vector", ylabel="value")
    axes.set_ylim(None, float(x.abs().max()) + 1.5)
    axes.legend(ncols=3, loc="upper center")
    plt.show()


def _what_is_wrong(x: Tensor, right: Tensor, got: Tensor, row: int, column: int) -> str:
    bad, d = ((got - right).abs() > 1e-4).nonzero().flatten().tolist(), len(x)
    where = f"row {row}, column {column}, d = {d}: {len(bad)} of {d} numbers are wrong"
    if abs(float(got.norm() - x.norm())) > 1e-3 * float(x.norm()):
        return f"{where}. A turn keeps the length {x.norm():.3f}, yours has {got.norm():.3f}"
    first = bad[0] % (d // 2)
    axis, number = ("row", first) if first < d // 4 else ("column", first - d // 4)
    return (
        f"{where}. Place {bad[0]} should hold {right[bad[0]]:.3f}, yours holds {got[bad[0]]:.3f}. "
        f"Places {first} and {first + d // 2} make a pair, and the {axis} turns it by frequencies[{number}]"
    )


def packed(answer: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    for H, d, sizes in ((2, 8, [4, 6, 2]), (1, 4, [5]), (3, 8, [12, 4, 4, 8])):
        q, k, v = torch.randn(3, H, sum(sizes), d, generator=generator)
        parts = zip(*(x[None].split(sizes, dim=2) for x in (q, k, v)), strict=True)
        right = torch.cat([attention(*part, "eager")[0][0] for part in parts])  # (P, H * d)
        right = right.view(-1, H, d).transpose(0, 1)  # (H, P, d)
        got = answer(q, k, v, sizes)
        if not isinstance(got, Tensor) or got.shape != right.shape:
            shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise Wrong(
                f"pictures of {sizes} patches, {H} heads: {tuple(right.shape)} is wanted, not {shape}"
            )
        apart, same = float((got - right).abs().max()), torch.block_diag(*(torch.ones(n, n) for n in sizes))
        if sizes == [4, 6, 2] or apart > 1e-4:
            seen = _who_sees_whom(answer, q, k, v, sizes)
            _draw_visible(same, seen)
            if strangers := int((seen * (1 - same)).sum()):
                said = (
                    f"pictures of {sizes} patches: {strangers} pairs from different pictures see each other"
                )
                raise Wrong(f"{said} (a score of 0 is no wall, for exp(0) is 1)")
            if missing := int((same * (1 - seen)).sum()):
                raise Wrong(
                    f"pictures of {sizes} patches: {missing} pairs of one picture don't see each other"
                )
        if apart > 1e-4:
            said = (
                f"pictures of {sizes} patches: the right ones see each other, but values miss by {apart:.2g}"
            )
            raise Wrong(
                f"{said}. Are scores divided by √{d} (q.shape[-1]), and do a patch's shares add up to 1?"
            )


def _draw_visible(right: Tensor, got: Tensor) -> None:
    _, panels = plt.subplots(1, 2, figsize=(7, 3.5))
    for axes, seen, title in zip(panels, (right, got), ("wanted", "yours"), strict=True):
        axes.imshow(seen, vmin=0, vmax=1.5)
        axes.set(title=f"{title} (grey: sees it)", xlabel="patch that is seen", ylabel="patch that looks")
        axes.set(xticks=range(len(seen)), yticks=range(len(seen)))
    plt.show()


def _who_sees_whom(answer: Callable, q: Tensor, k: Tensor, v: Tensor, sizes: list[int]) -> Tensor:
    """(P, P): 1 where the output of patch i moves when the value of patch j does."""
    before, moved = answer(q, k, v, sizes), []
    for j in range(v.shape[1]):
        other = v.clone()
        other[:, j] += 10
        moved.append(((answer(q, k, other, sizes) - before).abs().amax((0, 2)) > 1e-6).float())
    return torch.stack(moved, dim=1)


WRONG = [
    # neighbours make a pair, as in other implementations of rotary positions
    """
def turn(x, row, column, frequencies):
    angles = torch.cat((row * frequencies, column * frequencies))
    left, right = x[0::2], x[1::2]
    turned = left * angles.cos() - right * angles.sin(), left * angles.sin() + right * angles.cos()
    return torch.stack(turned, dim=1).flatten()
""",
    # all pictures see each other
    """
def packed(q, k, v, sizes):
    return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
""",
]
