"""Clips given as frames, and settings of frame counts, for two comparisons with stored values.

They are the same on every machine, and need neither this project nor transformers.
"""

import random
from dataclasses import dataclass

import numpy as np

# Beside the script that makes the arrays there is no package around this file.
try:
    from tests.helpers.torchvision_inputs import draw
except ImportError:
    from torchvision_inputs import draw

SAMPLE = 300  # values kept of each output
OFFICIAL_LIMITS = (56 * 56, 16384 * 784)  # pixels, those of the official checkpoints


@dataclass(frozen=True)
class Clip:
    """`count` frames of one size, drawn from `seed`.

    values: "bytes", "whole" for floats without fractions, as qwen-vl-utils gives them, or
    "fractions". limits: in pixels.
    """

    seed: int
    count: int
    height: int
    width: int
    values: str
    limits: tuple[int, int]

    def draw(self) -> np.ndarray:
        """The frames (count, 3, height, width), float32 or uint8."""
        frames = []
        for i in range(self.count):
            pixels = np.asarray(draw(self.height, self.width, 1000 * self.seed + i))
            frames.append(pixels.transpose(2, 0, 1))
        clip = np.stack(frames)
        if self.values == "bytes":
            return clip
        clip = clip.astype(np.float32)
        # Exact in binary, and below 255.
        return clip if self.values == "whole" else clip * np.float32(0.875) + np.float32(0.25)

    def sample_indices(self, count: int) -> np.ndarray:
        """Which SAMPLE of an output's `count` values are compared."""
        drawn = random.Random(self.seed).randbytes(8 * SAMPLE)
        return (np.frombuffer(drawn, "<u8") % count).astype(np.int64)


def clips() -> list[Clip]:
    """40 clips whose sides are multiples of 28 already, then 40 of any size with small limits."""
    rng = random.Random(7)
    drawn = []
    for seed in range(80):
        count = rng.randrange(1, 8)
        values = rng.choice(["whole", "whole", "fractions", "bytes"])
        if seed < 40:
            height = 28 * rng.randrange(2, 9)
            width = 28 * rng.randrange(2, 9)
            limits = OFFICIAL_LIMITS
        else:
            height = rng.randrange(20, 200)
            width = rng.randrange(20, 200)
            limits = (784 * rng.randrange(1, 5), 784 * rng.randrange(6, 40))
        drawn.append(Clip(seed, count, height, width, values, limits))
    return drawn


def frame_settings() -> list[tuple[int, float, dict]]:
    """1,500 times (frames of a video, frames a second, what an item asks for)."""
    rng = random.Random(11)
    rates = (5.0, 10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0)
    drawn = []
    for i in range(1500):
        total = rng.choice([rng.randrange(1, 20), rng.randrange(1, 300), rng.randrange(1, 20_000)])
        item: dict = {}
        if i % 2:
            number = rng.randrange(1, min(total, 800) + 8)
            item["nframes"] = rng.choice([number, float(number), number + 0.5])
        else:
            if rng.random() < 0.8:
                item["fps"] = rng.choice([0.1, 0.5, 1, 1.5, 2.0, 3, 8.0, 30])
            if rng.random() < 0.5:
                item["min_frames"] = rng.randrange(1, 30)
            if rng.random() < 0.5:
                item["max_frames"] = rng.randrange(1, 400)
        drawn.append((total, rng.choice(rates), item))
    return drawn
