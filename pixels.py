"""Resizing on all cores, and memory that is quickly filled: a reader who is after the model can skip it."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image


def pillow_resize(pictures: list[Image.Image], height: int, width: int) -> torch.Tensor:
    """RGB pictures of one size to uint8 (n, C, height, width) by Pillow's bicubic filter."""
    resized = np.stack([resize(picture, height, width) for picture in pictures])  # (n, H, W, C)
    return torch.from_numpy(resized).permute(0, 3, 1, 2)


def resize(picture: Image.Image, height: int, width: int) -> Image.Image:
    """An RGB picture by Pillow's bicubic filter, to the last bit, in bands that all cores work on.

    As Pillow does it inside: first every row to the new width, then every column to the new height. Pillow 13
    starts with the columns of tall pictures, and where the height shrinks more; those it gets whole.
    """
    n = min(os.cpu_count() or 1, picture.width * picture.height // 2**17, picture.height, width)
    rows_first = picture.height <= 1.5 * picture.width
    rows_first &= width * picture.height <= 1.1 * height * picture.width
    if n < 2 or not rows_first:
        return picture.resize((width, height), Image.Resampling.BICUBIC)

    def bands(side: int) -> Iterator[tuple[int, int]]:
        return ((side * i // n, side * (i + 1) // n) for i in range(n))

    def rows(band: tuple[int, int]) -> None:
        part = picture.crop((0, band[0], picture.width, band[1]))
        wide.paste(part.resize((width, part.height), Image.Resampling.BICUBIC), (0, band[0]))

    def columns(band: tuple[int, int]) -> None:
        part = wide.crop((band[0], 0, band[1], picture.height))
        resized.paste(part.resize((part.width, height), Image.Resampling.BICUBIC), (band[0], 0))

    wide, resized = Image.new("RGB", (width, picture.height)), Image.new("RGB", (width, height))
    with ThreadPoolExecutor(n) as threads:
        for step, side in (rows, picture.height), (columns, width):
            list(threads.map(step, bands(side)))
    return resized


def torch_resize(pictures: list[Image.Image], height: int, width: int, device="cpu") -> torch.Tensor:
    """RGB pictures of one size to uint8 (n, C, height, width) by torch's filter, as in the reference."""
    frames = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2)  # (n, C, H, W)
    frames = frames if frames.device.type == "cpu" else frames.float()  # only the CPU has an 8-bit kernel
    wide = torch.nn.functional.interpolate(frames, (height, width), mode="bicubic", antialias=True)
    return wide.round().clamp(0, 255).to(torch.uint8)


def fresh(shape: tuple, device: torch.device) -> torch.Tensor:
    """Unwritten float32 memory: numpy's, for on Linux it has huge pages and is filled twice as fast."""
    return torch.from_numpy(np.empty(shape, np.float32)).to(device)


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    """Patches (P, D) of several pictures as one tensor; of one as it is."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, out=fresh((sum(map(len, parts)), parts[0].shape[1]), parts[0].device))
