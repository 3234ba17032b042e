"""Resize images on all cores of a CPU, and allocate memory that is filled quickly."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MIN_BAND_PIXELS = 2**17  # smaller bands are not worth a thread


def pillow_resize(images: list[Image.Image], height: int, width: int) -> Tensor:
    """RGB images of one size to uint8 (images, 3, height, width), by Pillow."""
    resized = [np.asarray(resize_in_bands(image, height, width)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def resize_in_bands(image: Image.Image, height: int, width: int) -> Image.Image:
    """Pillow's bicubic resize of an RGB image, equal to it bit by bit, on all cores.

    Pillow works in two steps: first every row to the new width, then every column to the new
    height. Rows don't depend on each other, nor do columns, so each step can be done in bands.
    Pillow 13 and later start with the columns of some images; those are resized in one call.
    """
    # No more bands than cores, than rows in the first step, and than columns in the second.
    num_pixels = image.width * image.height
    cores = os.cpu_count() or 1
    num_bands = min(cores, num_pixels // MIN_BAND_PIXELS, image.height, width)

    # Where Pillow 13 may start with the columns.
    is_tall = image.height > 1.5 * image.width
    shrinks_more_in_height = width * image.height > 1.1 * height * image.width
    if num_bands < 2 or is_tall or shrinks_more_in_height:
        return image.resize((width, height), Image.Resampling.BICUBIC)

    resized_rows = Image.new("RGB", (width, image.height))  # after the first step
    resized = Image.new("RGB", (width, height))

    def resize_rows(top: int, bottom: int) -> None:
        band = image.crop((0, top, image.width, bottom))
        resized_rows.paste(band.resize((width, band.height), Image.Resampling.BICUBIC), (0, top))

    def resize_columns(left: int, right: int) -> None:
        band = resized_rows.crop((left, 0, right, resized_rows.height))
        resized.paste(band.resize((band.width, height), Image.Resampling.BICUBIC), (left, 0))

    with ThreadPoolExecutor(num_bands) as threads:
        for_each_band(threads, resize_rows, image.height, num_bands)
        for_each_band(threads, resize_columns, width, num_bands)
    return resized


def for_each_band(
    threads: ThreadPoolExecutor, work: Callable[[int, int], None], side: int, num_bands: int
) -> None:
    """Call work(start, end) in parallel for bands that cover 0 to `side`; wait for all."""
    edges = [side * i // num_bands for i in range(num_bands + 1)]
    results = threads.map(work, edges[:-1], edges[1:])
    list(results)  # waits, and raises what a thread has raised


def torch_resize(
    images: list[Image.Image], height: int, width: int, device: str | torch.device = "cpu"
) -> Tensor:
    """RGB images of one size to uint8 (images, 3, height, width) by torch's bicubic filter."""
    pixels = np.stack([np.asarray(image) for image in images])
    frames = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    if tuple(frames.shape[2:]) == (height, width):
        return frames
    if frames.device.type != "cpu":  # only the CPU resizes bytes, and rounds by itself
        frames = frames.float()
    resized = torch.nn.functional.interpolate(
        frames, (height, width), mode="bicubic", antialias=True
    )
    return resized.round().clamp(0, 255).to(torch.uint8)


def float_resize(
    frames: Tensor, height: int, width: int, device: str | torch.device = "cpu"
) -> Tensor:
    """Frames (n, 3, old height, old width) of float32 to another size, neither rounded nor cut."""
    frames = frames.to(device)
    if tuple(frames.shape[2:]) == (height, width):
        return frames
    return torch.nn.functional.interpolate(frames, (height, width), mode="bicubic", antialias=True)


def empty_float32(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """An uninitialised float32 tensor.

    Its memory is numpy's: on Linux that has huge pages and is filled twice as fast.
    """
    if torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=torch.float32, device=device)
    return torch.from_numpy(np.empty(shape, np.float32))


def concatenate(parts: list[Tensor]) -> Tensor:
    """The patches (P, values) of several images as one tensor; a single part stays as it is."""
    if len(parts) == 1:
        return parts[0]
    num_patches = sum(len(part) for part in parts)
    together = empty_float32((num_patches, parts[0].shape[1]), parts[0].device)
    return torch.cat(parts, out=together)
