"""Resizing in bands gives Pillow's own pixels."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import pixels


@pytest.mark.parametrize("cores", [1, 2, 5, 64])
@pytest.mark.parametrize(
    ("size", "new"),
    [
        ((1001, 703), (560, 392)),
        ((640, 800), (1288, 1596)),
        ((1920, 1080), (1932, 1092)),
        ((90, 12000), (28, 3556)),  # narrower than there are cores
        ((12000, 90), (3556, 28)),  # lower than there are cores
        ((1200, 700), (1200, 364)),
        ((1000, 1400), (560, 784)),
        ((1200, 700), (1204, 700)),
    ],
)
def test_resizing_in_bands_is_pillows_to_the_last_bit(monkeypatch, cores, size, new):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pictures = [Image.fromarray(noise), Image.fromarray(noise[::-1].copy())]
    resized = pixels.pillow_resize(pictures, new[1], new[0]).permute(0, 2, 3, 1).numpy()
    for picture, ours in zip(pictures, resized, strict=True):
        assert np.array_equal(ours, np.asarray(picture.resize(new, Image.Resampling.BICUBIC)))


def test_joined_parts_are_their_concatenation():
    parts = [torch.randn(n, 3) for n in (2, 5, 1)]
    assert torch.equal(pixels.join(parts), torch.cat(parts))
    assert pixels.join(parts[:1]) is parts[0]
