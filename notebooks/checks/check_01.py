"""Notebook 01: what its larger plots take, a meter for memory, and the checks of its exercises."""

import time
import weakref
from collections.abc import Callable

import course
import matplotlib.pyplot as plt
import numpy as np
import torch
from course import Wrong
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from processor import Qwen2VLImageProcessor, patchify, smart_resize

# ----------------------------------------------------------------------------------------------------- plots


def draw_sizes(pictures: dict[str, Image.Image], images: Qwen2VLImageProcessor) -> None:
    """Pictures at the size that the model sees, cut into patches; below, squashed to a square."""
    ps, factor = images.patch_size, images.patch_size * images.merge_size
    _, panels = plt.subplots(2, len(pictures), figsize=(10, 5.6))
    for (name, picture), (own, square) in zip(pictures.items(), panels.T, strict=True):
        limits = factor, images.min_pixels, images.max_pixels
        height, width = smart_resize(picture.height, picture.width, *limits)
        own.imshow(images.resize([picture], height, width)[0].permute(1, 2, 0), extent=(0, width, height, 0))
        for side, line in (width, own.axvline), (height, own.axhline):
            for edge in range(0, side + 1, ps):
                line(edge, color="black", linestyle="-", linewidth=0.4 if edge % factor else 1.4)
        tokens = height * width // factor**2
        title = f"{name}: {picture.width} × {picture.height} px\n→ {width} × {height} px, {tokens} tokens"
        own.set_title(title, fontsize=9)
        square.imshow(picture.resize((112, 112)))
        square.set_title("squashed to a square", fontsize=9)
        for axes in own, square:
            axes.grid(False)
            axes.set_axis_off()
    plt.show()


def draw_order(frame: Tensor, orders: dict[str, Tensor], w: int, ps: int, m: int) -> None:
    """Each patch's place over a resized picture (C, H, W); orders: patches (P,), numbered row by row."""
    _, panels = plt.subplots(len(orders), 1, figsize=(8, 4.2 * len(orders)))
    for axes, (title, order) in zip(panels, orders.items(), strict=True):
        axes.imshow(frame.permute(1, 2, 0), alpha=0.35)
        rows, columns = (order // w + 0.5) * ps - 0.5, (order % w + 0.5) * ps - 0.5
        axes.plot(columns, rows, color="grey", linewidth=1, linestyle="-")
        box = {"fc": "white", "ec": "none", "pad": 0.6}
        for place, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            axes.text(column, row, place, ha="center", va="center", fontsize=8, bbox=box)
        for side, ticks in (frame.shape[2], axes.set_xticks), (frame.shape[1], axes.set_yticks):
            ticks(np.arange(0, side + 1, ps * m) - 0.5, range(0, side + 1, ps * m))
        axes.grid(color="black", alpha=0.8, linestyle="-")
        axes.set(title=f"the places of the patches, {title}", xlabel="column [px]", ylabel="row [px]")
    plt.show()


def draw_patch(patch: Tensor, images: Qwen2VLImageProcessor) -> None:
    """One patch (D,) as the square that it is, and as the numbers that the model reads."""
    ps, m, tps = images.patch_size, images.merge_size, images.temporal_patch_size
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=(1, 4))
    block = picture_of(patch.expand(m * m, -1), (1, m, m), images)  # the same patch in a whole block
    left.imshow(block[:, :ps, :ps].permute(1, 2, 0))
    left.set(title="a patch as a picture", xlabel="column [px]", ylabel="row [px]")
    left.grid(False)
    right.plot(patch, linewidth=0.8)
    for i in range(3 * tps):
        right.axvline(i * ps * ps, color="grey", linewidth=1 if i % tps else 2, linestyle="-")
        name = f"{('red', 'green', 'blue')[i // tps]}\nframe {i % tps}"
        right.text((i + 0.5) * ps * ps, 2.5, name, ha="center", fontsize=8)
    right.set_ylim(-2.3, 3.6)
    right.set(
        title="the same patch as the model gets it", xlabel="place in the vector", ylabel="normalised value"
    )
    plt.show()


def draw_costs(budgets: list[int], costs: np.ndarray, factor: int) -> None:
    """A table and two plots of costs (budgets, 5): ms of processor, vision, prefill; MB of eager and sdpa."""
    print("max_pixels   tokens   processor ms   vision ms   prefill ms   eager MB   sdpa MB")
    for n, row in zip(budgets, costs, strict=True):
        print(f"{n * factor**2:10,}{n:9,}" + "{:15.1f}{:12.1f}{:13.1f}{:11.1f}{:10.1f}".format(*row))
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for i, name in enumerate(("processor", "vision transformer", "decoder, prefill")):
        left.loglog(budgets, costs[:, i], marker="osv"[i], label=name)
    left.set(title="Time, measured here", ylabel="time [ms]")
    for i, name in enumerate(("eager: stores all pairs", "sdpa: stores no pairs")):
        right.loglog(budgets, costs[:, 3 + i], marker="os"[i], label=name)
    right.set(title="Memory of the vision transformer, measured here", ylabel="tensors at their peak [MB]")
    for axes in left, right:
        axes.set_xlabel(f"tokens of the picture (max_pixels / {factor}²)")
        axes.set_xticks(budgets, budgets)
        axes.minorticks_off()
        axes.legend()
    plt.show()


# ----------------------------------------------------------------------------------------------------- tools


def picture_of(patches: Tensor, grid: tuple[int, int, int], images: Qwen2VLImageProcessor) -> Tensor:
    """The first frame (C, H, W), 0 to 1, that normalised patches show if they are in the model's order."""
    ps, tps, C = images.patch_size, images.temporal_patch_size, len(images.image_mean)
    t, h, w = grid
    numbers = torch.arange(t * tps * C * h * w * ps * ps).view(t * tps, C, h * ps, w * ps)
    came_from = patchify(numbers, ps, tps, images.merge_size)[0]  # (P, D): which pixel each value was
    mean, std = (torch.tensor(x)[:, None] for x in (images.image_mean, images.image_std))
    values = patches.float().cpu().view(len(patches), C, -1) * std + mean  # (P, C, tps*ps*ps)
    frames = torch.empty(numbers.numel())
    frames[came_from.flatten()] = values.flatten()
    return frames.view_as(numbers)[0].clamp(0, 1)


def seconds() -> float:
    """A clock that waits until the accelerator, where there is one, has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class _Alive(TorchDispatchMode):
    """Adds up the tensors that live at the same time: those that operations make while this is active."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def _freed(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            storage = x.untyped_storage() if isinstance(x, Tensor) else None
            if storage is not None and storage._cdata not in old:  # a view brings no memory of its own
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes()).atexit = False
        return out


def peak_memory(run: Callable) -> float:
    """MB of tensors that `run()` holds at its worst moment, beyond what was there before."""
    with _Alive() as alive:
        run()
    return alive.most / 1e6


# ------------------------------------------------------------------------------------------------- exercises


def _places(h: int, w: int, m: int) -> Tensor:
    """(h, w): the place in the sequence of the patch at each row and column, from the shipped code."""
    by_rows = torch.arange(h * w).view(1, 1, h, w)
    return patchify(by_rows, 1, 1, m)[0].flatten().argsort().view(h, w)


def _draw_places(got: Tensor, right: Tensor, m: int) -> None:
    h, w = got.shape
    _, axes = plt.subplots(figsize=(0.55 * w + 1.2, 0.55 * h + 0.7))
    axes.imshow((got != right).float(), cmap="Greys", vmin=0, vmax=2.5)
    for row in range(h):
        for column in range(w):
            axes.text(column, row, int(got[row, column]), ha="center", va="center", fontsize=9)
    for edge in range(0, w + 1, m):
        axes.axvline(edge - 0.5, color="black", linewidth=1.5)
    for edge in range(0, h + 1, m):
        axes.axhline(edge - 0.5, color="black", linewidth=1.5)
    axes.set(title="your places; grey: wrong", xlabel="column", ylabel="row", xticks=range(w))
    axes.set_yticks(range(h))
    axes.grid(False)
    plt.show()


def place(answer: Callable) -> None:
    for h, w, m in ((4, 6, 2), (4, 4, 2), (2, 8, 2), (8, 4, 2), (6, 9, 3)):
        right = _places(h, w, m)
        got = torch.tensor([[answer(row, column, w, m) for column in range(w)] for row in range(h)])
        if (h, w) == (4, 6) or not torch.equal(got, right):
            _draw_places(got, right, m)
        if not torch.equal(got, right):
            row, column = (got != right).nonzero()[0].tolist()
            raise Wrong(
                f"in a grid of {h} x {w} patches with {m} x {m} blocks, the patch in row {row}, "
                f"column {column} stands at place {right[row, column]}, not {got[row, column]} "
                f"({int((got != right).sum())} of {h * w} places are wrong)"
            )


def picture_from(answer: Callable) -> None:
    noise = torch.rand(56, 84, 3, generator=torch.Generator().manual_seed(0))
    noisy = Image.fromarray((noise * 255).byte().numpy())
    images = Qwen2VLImageProcessor()
    for source in (course.EXAMPLES / "shapes.png", noisy):
        made = images(source)
        grid = made.image_grid_thw[0].tolist()
        right = picture_of(made.pixel_values, grid, images)
        got = answer(made.pixel_values.clone(), grid, images)
        if not isinstance(got, Tensor) or got.shape != right.shape:
            shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise Wrong(f"a picture of {tuple(right.shape)} (C, H, W) is wanted, not {shape}")
        apart = (got.float() - right).abs()
        if source is not noisy or apart.max() > 1e-3:
            course.show([right, got.float().clamp(0, 1)], ["what went in", "what you made of the patches"])
        if got.min() < -0.1 or got.max() > 1.1:
            said = f"values run from {got.min():.2f} to {got.max():.2f}"
            raise Wrong(f"{said}: undo the normalisation (times std, plus mean)")
        if apart.max() > 1e-3:
            share = float((apart.amax(0) > 1e-3).float().mean())
            said = f"{share:.0%} of the pixels differ, by {apart.max():.2f} at most"
            if torch.allclose(got.float().flatten().sort().values, right.flatten().sort().values, atol=1e-3):
                said += ": all values are there, in other places; look at the order of the axes"
            raise Wrong(said)


WRONG = [
    # row by row, blocks forgotten
    """
def place(row, column, w, m):
    return row * w + column
""",
    # the two middle pairs of axes not swapped back
    """
def picture_from(patches, grid, images):
    _, h, w = grid
    ps, tps = images.patch_size, images.temporal_patch_size
    mean, std = (torch.tensor(x)[:, None] for x in (images.image_mean, images.image_std))
    x = (patches.view(len(patches), 3, -1) * std + mean).view(h, w, 3, tps, ps, ps)[:, :, :, 0]
    return x.permute(2, 0, 3, 1, 4).reshape(3, h * ps, w * ps)
""",
]
