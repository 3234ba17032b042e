"""Pictures that answer to sliders, for what hands teach better than words.

Each function draws one picture from a few numbers. Run by a person, it stands below sliders for
these numbers and is drawn again whenever one moves. Where nobody can move them (QWEN2VL_STATIC=1,
which `execute.py` sets), there is the picture alone: that is what the repository shows.
"""

import math
import os
from collections.abc import Callable, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from PIL import Image
from torch import Tensor

from processor import Qwen2VLImageProcessor, sample_frames, smart_resize
from qwen2vl import Qwen2VLConfig

# What all sliders have: a picture is drawn when the hand lets go.
LOOK = {
    "continuous_update": False,
    "style": {"description_width": "10em"},
    "layout": {"width": "36em"},
}


def show(draw: Callable[..., None], controls: dict[str, ipywidgets.Widget]) -> None:
    """Sliders, and below them what draw(...) draws from their values."""
    if os.environ.get("QWEN2VL_STATIC"):
        draw(**{name: control.value for name, control in controls.items()})
        return
    picture = ipywidgets.interactive_output(draw, controls)
    display(ipywidgets.VBox([*controls.values(), picture]))


def whole(name: str, value: int, least: int, most: int, step: int = 1) -> ipywidgets.IntSlider:
    """A slider for a whole number, with its name in front."""
    return ipywidgets.IntSlider(
        value=value, min=least, max=most, step=step, description=name, **LOOK
    )


def decimal(
    name: str, value: float, least: float, most: float, step: float
) -> ipywidgets.FloatSlider:
    """A slider for a number with a fraction."""
    return ipywidgets.FloatSlider(
        value=value, min=least, max=most, step=step, description=name, **LOOK
    )


# -------------------------------------------------------------------------- 01: what an image costs


def choose_max_pixels(image: Image.Image, image_processor: Qwen2VLImageProcessor) -> None:
    """The image as the model gets it, for a limit of so many tokens."""
    side = image_processor.patch_size * image_processor.merge_size

    def draw(limit: int) -> None:
        max_pixels = limit * side**2
        height, width = smart_resize(image.height, image.width, side, side**2, max_pixels)
        rows, columns = height // side, width // side
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        plt.figure(figsize=(6, 4))
        plt.imshow(resized, extent=(0, columns, rows, 0))
        plt.xticks(range(columns + 1), [])
        plt.yticks(range(rows + 1), [])
        plt.grid(color="black", linewidth=0.8, alpha=1)
        plt.title(
            f"max_pixels = {max_pixels:,}: {width} × {height} pixels,\n"
            f"{4 * rows * columns} patches, {rows * columns} tokens (squares)"
        )
        plt.show()

    show(draw, {"limit": whole("limit in tokens", 24, 1, 100)})


# ------------------------------------------------------------------- 02 and 05: who attends to whom


def look_from_patch(image: Image.Image, weights: Tensor, place: Tensor, h: int, w: int) -> None:
    """What one patch attends to, as light on the image.

    weights: (blocks, heads, P, P) in the order of the list of patches; place: (P,), the number of
    each patch of the list when counted row by row.
    """
    by_rows = torch.empty_like(weights)
    by_rows[:, :, place[:, None], place[None]] = weights

    def draw(row: int, column: int, block: int, head: int) -> None:
        light = by_rows[block, head, row * w + column].view(h, w)
        plt.figure(figsize=(6, 4))
        draw_light(image, light)
        plt.plot(column + 0.5, row + 0.5, "wx", markersize=11, markeredgewidth=4)
        plt.plot(column + 0.5, row + 0.5, "kx", markersize=10, markeredgewidth=1.5)
        plt.title(f"block {block}, head {head}: what the marked patch attends to")
        plt.show()

    blocks, heads = weights.shape[:2]
    controls = {
        "row": whole("row of the patch", h // 2, 0, h - 1),
        "column": whole("its column", w // 3, 0, w - 1),
        "block": whole("block", blocks - 1, 0, blocks - 1),
        "head": whole("head", 0, 0, heads - 1),
    }
    show(draw, controls)


def look_from_token(
    image: Image.Image,
    attentions: Sequence[Tensor],
    on_image: Tensor,
    size: tuple[int, int],
    steps: Sequence[int],
    labels: Sequence[str],
) -> None:
    """What a step of the answer attends to: the image's tokens as light, the rest as a share.

    attentions: of each layer (1, heads, S, S); on_image: (S,), which tokens are the image's; size:
    their rows and columns; steps: the positions that predict the answer, labels: what they say.
    """

    def draw(step: int, layer: int, head: int) -> None:
        attended = attentions[layer][0, head, steps[step]].float().cpu()  # (S,)
        light = attended[on_image].view(size)
        plt.figure(figsize=(6, 4))
        draw_light(image, light)
        plt.title(
            f"layer {layer}, head {head}, before {labels[step]}:\n"
            f"{float(light.sum()):.0%} of the attention goes to the image"
        )
        plt.show()

    # Begin with the layer and the head that look at the image most.
    first = min(1, len(steps) - 1)
    shares = torch.stack([a[0, :, steps[first]][:, on_image].sum(-1) for a in attentions])
    layer, head = divmod(int(shares.argmax()), shares.shape[1])
    controls = {
        "step": whole("step of the answer", first, 0, len(steps) - 1),
        "layer": whole("layer", layer, 0, len(attentions) - 1),
        "head": whole("head", head, 0, shares.shape[1] - 1),
    }
    show(draw, controls)


def draw_light(image: Image.Image, light: Tensor) -> None:
    """The image, lit where a map (rows, columns) is high. The root is drawn, to see small ones."""
    rows, columns = light.shape
    strength = 0.15 + 0.85 * (light / light.max().clamp(min=1e-9)).sqrt()
    mask = Image.fromarray((255 * strength).byte().numpy())
    mask = mask.resize(image.size, Image.Resampling.NEAREST)
    lit = Image.composite(image, Image.new("RGB", image.size), mask)
    plt.imshow(np.array(lit), extent=(0, columns, rows, 0))
    plt.axis("off")


# -------------------------------------------------------------------- 04: a position turned by hand


def turn_by_hand(config: Qwen2VLConfig) -> None:
    """The pairs of a head as clock hands, turned by the time, the row and the column of a token."""
    sections = list(config.mrope_section)
    num_pairs = sum(sections)
    frequencies = config.rope_theta ** -(torch.arange(num_pairs) / num_pairs)  # (d/2,)
    axis_of = [axis for axis, count in enumerate(sections) for _ in range(count)]
    names = ("time", "row", "column")
    step = math.ceil(max(sections) / 8)  # of large models every third hand or so is drawn
    columns = math.ceil(max(sections) / step)

    def draw(time: int, row: int, column: int) -> None:
        position = (time, row, column)
        angles = [float(frequencies[i]) * position[axis] for i, axis in enumerate(axis_of)]
        _, panels = plt.subplots(3, columns, figsize=(1.3 * columns, 4.6))
        for axes in panels.flat:
            axes.set_axis_off()
        shown = [0, 0, 0]
        for axis, angle in zip(axis_of, angles, strict=True):
            number = shown[axis]
            shown[axis] += 1
            if number % step == 0:
                axes = panels[axis][number // step]
                draw_clock(axes, angle)
                if number == 0:
                    axes.set_title(f"{names[axis]} {position[axis]}", fontsize=9)
        score = float(np.mean(np.cos(angles)))
        plt.suptitle(f"q at this position · k at (0, 0, 0), of equal vectors: {score:.2f} of 1")
        plt.show()

    controls = {
        "time": whole("time", 3, 0, 30),
        "row": whole("row", 5, 0, 30),
        "column": whole("column", 2, 0, 30),
    }
    show(draw, controls)


def draw_clock(axes: plt.Axes, angle: float) -> None:
    """A hand turned by an angle, and a dotted one that is not."""
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.6"))
    axes.plot([0, 1], [0, 0], "k:", linewidth=1)
    axes.plot([0, np.cos(angle)], [0, np.sin(angle)], "k-", linewidth=2.5)
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")


# -------------------------------------------------------------------- 06: which tokens may be drawn


def choose_sampling(logits: Tensor, words: Sequence[str]) -> None:
    """Probabilities of the most probable tokens by temperature and top-p.

    logits: (n,), highest first; words: of the first of them, which are drawn.
    """

    def draw(temperature: float, top_p: float) -> None:
        plain = logits.float().softmax(-1)
        p = (logits.float() / temperature).softmax(-1)
        before = p.cumsum(-1) - p  # what the more probable ones reach together
        p = p.masked_fill(before >= top_p, 0.0)
        p = p / p.sum()
        positions = np.arange(len(words))
        plt.figure(figsize=(8, 3.4))
        plt.bar(positions - 0.2, plain[: len(words)], 0.4, color="white", edgecolor="black")
        plt.bar(positions + 0.2, p[: len(words)], 0.4, color="0.4", edgecolor="black")
        plt.xticks(positions, [f"“{word}”" for word in words], rotation=30, fontsize=8)
        plt.ylim(0, 1)
        plt.title(
            f"temperature {temperature:.1f}, top-p {top_p:.2f}: {int((p > 0).sum())} of "
            f"{len(p)} tokens may be drawn (white: as it is)"
        )
        plt.ylabel("probability")
        plt.show()

    controls = {
        "temperature": decimal("temperature", 2.0, 0.1, 6.0, 0.1),
        "top_p": decimal("top-p", 0.9, 0.05, 1.0, 0.05),
    }
    show(draw, controls)


# ------------------------------------------------------------------------ 07: which frames are read


def choose_frames(rate: int = 24) -> None:
    """The frames that are read of a video, by its length and by fps."""

    def draw(length: int, fps: float) -> None:
        total = length * rate
        chosen = sample_frames(total, rate, fps)
        times = np.array(chosen) / rate
        _, axes = plt.subplots(figsize=(8, 1.9))
        axes.plot(np.arange(total) / rate, np.zeros(total), "|", color="0.7", markersize=12)
        axes.plot(times, np.zeros(len(times)), "ko", markersize=6)
        axes.set(xlabel="seconds", xlim=(-0.3, length + 0.3), yticks=[])
        axes.set_title(
            f"{len(chosen)} of {total} frames are read at fps = {fps:.1f}: "
            f"{len(chosen) // 2 or 1} in the model's time"
        )
        plt.show()

    controls = {
        "length": whole("length in seconds", 4, 1, 20),
        "fps": decimal("fps", 2.0, 0.5, 8.0, 0.5),
    }
    show(draw, controls)
