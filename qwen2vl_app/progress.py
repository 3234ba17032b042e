"""Bars over the layers while a prompt is read, and a line before it if that will take long.

Hooks on the layers of both transformers count what is done. Nothing of the model is replaced, and
the hooks are gone before the first token is decoded. How long it will take is told by the first
layers themselves: they are timed on a few tokens, on the machine that it is about.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from qwen2vl import AttentionMask, Qwen2VLForConditionalGeneration, attention
from qwen2vl_extras.errors import note

DELAY = 2  # seconds before a bar is shown
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"

# With fewer patches nothing is timed: only much more than these keep a CPU busy for a minute.
LEAST_PATCHES = 4096
LONG = 60.0  # seconds from which on a line says so
SHORT = 30.0  # what the --max-pixels that it names should come down to
SUGGESTED_TOKENS = (1280, 640, 320, 160)  # of an image or a frame, 28 x 28 pixels each
PATCHES_PER_TOKEN = 4
PIXELS_PER_PATCH = 14 * 14


# --------------------------------------------------------------------------------------- bars


class ReadingBars:
    """A bar over the layers of the vision transformer, then one over those of the decoder.

    patches: of all images and videos that are encoded.
    """

    def __init__(self, model: Qwen2VLForConditionalGeneration, patches: int) -> None:
        blocks, layers = list(model.visual.blocks), list(model.model.layers)
        self.totals = {"vision": len(blocks) * patches, "prefill": len(layers)}
        self.bars: dict[str, tqdm] = {}
        self.hooks = [
            blocks[0].register_forward_pre_hook(self.begin_vision),
            layers[0].register_forward_pre_hook(self.begin_prefill),
        ]
        self.hooks += [block.register_forward_hook(self.after_block) for block in blocks]
        self.hooks += [layer.register_forward_hook(self.after_layer) for layer in layers]

    def begin_vision(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Hook: an image or video enters the vision transformer."""
        self.begin("vision")

    def begin_prefill(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Hook: the prompt enters the decoder."""
        self.begin("prefill")

    def begin(self, title: str) -> None:
        """Open the bar of this title, if it is not open yet, and close the one before it."""
        if title in self.bars:
            return
        for bar in self.bars.values():
            bar.close()
        total = self.totals[title]
        self.bars[title] = tqdm(
            total=total, desc=title, delay=DELAY, leave=False, bar_format=BAR, dynamic_ncols=True
        )

    def after_block(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Hook: a block has gone through the patches (t, P, D) of an image or video."""
        self.bars["vision"].update(output.shape[0] * output.shape[1])

    def after_layer(
        self, module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]
    ) -> None:
        """Hook: a decoder layer has gone through the prompt."""
        bar = self.bars["prefill"]
        bar.update()
        if bar.n == bar.total:  # what comes now is decoding, whose tokens show how it goes
            self.close()

    def close(self) -> None:
        """Leave the model and the screen as they were; a second call does nothing."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        for bar in self.bars.values():
            bar.close()


@contextlib.contextmanager
def reading_bars(
    model: Qwen2VLForConditionalGeneration, inputs: Mapping[str, Tensor]
) -> Iterator[None]:
    """Show on stderr how far the model has read a prompt, from two seconds on.

    inputs: what it is given; within the block it reads one prompt, or one batch of prompts.
    """
    bars = ReadingBars(model, sum(t * h * w for t, h, w in grids_of(inputs)))
    try:
        yield
    finally:
        bars.close()


def grids_of(inputs: Mapping[str, Tensor]) -> list[tuple[int, int, int]]:
    """The grids (t, h, w) of all images and videos of the model's inputs."""
    grids = []
    for name in ("image_grid_thw", "video_grid_thw"):
        if name in inputs:
            grids += [(t, h, w) for t, h, w in inputs[name].tolist()]
    return grids


# --------------------------------------------------------------------------------- how long


@dataclass(frozen=True)
class LayerTime:
    """Seconds that a layer takes for n tokens: linear * n + quadratic * n^2, for attention."""

    linear: float
    quadratic: float

    def seconds(self, n: int) -> float:
        return self.linear * n + self.quadratic * n**2


@dataclass(frozen=True)
class ReadingTime:
    """How long a model takes to read images and prompts on this machine."""

    vision: LayerTime
    vision_layers: int
    decoder: LayerTime
    decoder_layers: int

    def seconds(self, grids: list[tuple[int, int, int]], batch: int, length: int) -> float:
        """Of images and videos with these grids in a batch of so many rows of `length` tokens."""
        vision = sum(t * self.vision.seconds(h * w) for t, h, w in grids)
        decoder = batch * self.decoder.seconds(length)
        return self.vision_layers * vision + self.decoder_layers * decoder


def least_seconds(function: Callable, arguments: tuple) -> float:
    """What function(*arguments) takes: the shorter of two calls, after one that isn't counted."""
    function(*arguments)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def measure_reading(model: Qwen2VLForConditionalGeneration) -> ReadingTime:
    """Time the first layer of each transformer, and attention by itself, on a few tokens."""
    blocks, layers = model.visual.blocks, model.model.layers
    return ReadingTime(measure_block(model), len(blocks), measure_layer(model), len(layers))


def measure_block(model: Qwen2VLForConditionalGeneration) -> LayerTime:
    """The time of a block of the vision transformer."""
    config, block = model.config.vision_config, model.visual.blocks[0]
    h, w = 32, 32
    n = h * w
    x = torch.ones(1, n, config.embed_dim, device=model.device, dtype=model.dtype)
    cos, sin = model.visual.rotary_table(h, w, x.device)
    # `forward` itself, past all hooks.
    whole = least_seconds(block.forward, (x, cos, sin, model.attn_implementation))

    head_dim = config.embed_dim // config.num_heads
    q = torch.ones(1, config.num_heads, n, head_dim, device=x.device, dtype=x.dtype)
    arguments = (q, q, q, AttentionMask(), model.attn_implementation)
    return layer_time(whole, least_seconds(attention, arguments), n)


def measure_layer(model: Qwen2VLForConditionalGeneration) -> LayerTime:
    """The time of a decoder layer."""
    config, layer = model.config, model.model.layers[0]
    n = 512
    x = torch.ones(1, n, config.hidden_size, device=model.device, dtype=model.dtype)
    positions = torch.arange(n, device=x.device).expand(3, 1, n)
    cos, sin = model.model.rotary_table(positions, x.dtype)
    mask = AttentionMask(causal=True)
    whole = least_seconds(layer.forward, (x, cos, sin, mask, model.attn_implementation))

    q_shape = (1, config.num_attention_heads, n, config.head_dim)
    k_shape = (1, config.num_key_value_heads, n, config.head_dim)
    q = torch.ones(q_shape, device=x.device, dtype=x.dtype)
    k = torch.ones(k_shape, device=x.device, dtype=x.dtype)
    arguments = (q, k, k, mask, model.attn_implementation)
    return layer_time(whole, least_seconds(attention, arguments), n)


def layer_time(whole: float, attending: float, n: int) -> LayerTime:
    """From the seconds of a layer for n tokens, and of attention alone."""
    attending = min(attending, whole)
    return LayerTime((whole - attending) / n, attending / n**2)


# --------------------------------------------------------------------------- the line before


def note_long_reading(model: Qwen2VLForConditionalGeneration, inputs: Mapping[str, Tensor]) -> None:
    """Say in a line if a CPU will read these inputs for over a minute, and what makes it less."""
    grids = grids_of(inputs)
    patches = sum(t * h * w for t, h, w in grids)
    if model.device.type != "cpu" or patches < LEAST_PATCHES:
        return
    if model.mesh is not None:  # a layer that is timed here alone would wait for other processes
        return
    batch, length = inputs["input_ids"].shape
    time_here = measure_reading(model)
    seconds = time_here.seconds(grids, batch, length)
    if seconds <= LONG:
        return

    text = f"{describe_media(grids)} {'takes' if len(grids) == 1 else 'take'} about "
    text += f"{in_words(seconds)} to read here"
    # The largest limit that makes it short, or else the smallest.
    for tokens in SUGGESTED_TOKENS:
        smaller = [shrink(grid, tokens) for grid in grids]
        fewer = sum(t * h * w for t, h, w in smaller)
        less = time_here.seconds(smaller, batch, length - (patches - fewer) // PATCHES_PER_TOKEN)
        if less <= SHORT:
            break
    if fewer < patches:
        pixels = tokens * PATCHES_PER_TOKEN * PIXELS_PER_PATCH
        text += f"; with --max-pixels {pixels} about {in_words(less)}"
    note(text)


def shrink(grid: tuple[int, int, int], tokens: int) -> tuple[int, int, int]:
    """The grid with frames of at most so many tokens, as one line of patches."""
    t, h, w = grid
    return t, 1, min(h * w, tokens * PATCHES_PER_TOKEN)


def describe_media(grids: list[tuple[int, int, int]]) -> str:
    """What is read, for a message."""
    if len(grids) > 1:
        return f"{len(grids)} images and videos"
    t, h, w = grids[0]
    name = "the image" if t == 1 else f"the video, {t} pairs of frames"
    return f"{name} of {w * 14} x {h * 14} pixels"


def in_words(seconds: float) -> str:
    """A time of which only the size is known."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours"
