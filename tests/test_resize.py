"""Resizing in bands gives Pillow's own pixels, and several images become one tensor."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from qwen2vl_extras import resize


@pytest.mark.parametrize("cores", [1, 2, 5, 64])
@pytest.mark.parametrize(
    ("size", "new_size"),
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
def test_resizing_in_bands_is_pillows_to_the_last_bit(monkeypatch, cores, size, new_size):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.fromarray(noise[::-1].copy())]

    new_width, new_height = new_size
    resized = resize.pillow_resize(images, new_height, new_width)
    resized = resized.permute(0, 2, 3, 1).numpy()  # (images, height, width, 3)
    for image, ours in zip(images, resized, strict=True):
        expected = np.asarray(image.resize(new_size, Image.Resampling.BICUBIC))
        assert np.array_equal(ours, expected)


def test_patches_of_several_images_are_concatenated():
    parts = [torch.randn(n, 3) for n in (2, 5, 1)]
    assert torch.equal(resize.concatenate(parts), torch.cat(parts))
    assert resize.concatenate(parts[:1]) is parts[0]
