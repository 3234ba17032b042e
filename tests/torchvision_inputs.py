"""Pictures, clips and clip lengths for the comparison with torchvision: the same wherever they are drawn.

Whole numbers and Python's own generator only, for NumPy's streams and the last bit of a sine may change.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

SAMPLE = 2000  # values kept of each output
PICTURE_LIMITS = (56 * 56, 1280 * 784)  # the reference's defaults
FRAME_LIMITS = (128 * 784, 768 * 784)


@dataclass(frozen=True)
class Case:
    """A picture, or a clip of `frames` frames, to be drawn from `seed`; limits are in px."""

    seed: int
    height: int
    width: int
    limits: tuple[int, int]
    frames: int = 1

    def draw(self) -> list[Image.Image]:
        """The frames; a picture is a clip of one."""
        return [draw(self.height, self.width, 1000 * self.seed + i) for i in range(self.frames)]

    def places(self, count: int) -> np.ndarray:
        """Which SAMPLE of an output's `count` values are compared."""
        drawn = random.Random(self.seed).randbytes(8 * SAMPLE)
        return (np.frombuffer(drawn, "<u8") % count).astype(np.int64)


def draw(height: int, width: int, seed: int) -> Image.Image:
    """Smooth waves under noise, and squares of pure black and white, which make bicubic overshoot."""
    rng = random.Random(seed)
    y, x, c = np.ogrid[:height, :width, :3]
    phase, down, right, side = (rng.randrange(*span) for span in ((512,), (1, 9), (1, 9), (1, 9)))
    waves = np.abs((phase + down * y + right * x + x * y // 64 + 150 * c) % 512 - 256)  # (H, W, 3), 0 to 256
    noise = np.frombuffer(rng.randbytes(height * width * 3), np.uint8).reshape(height, width, 3)
    pixels = waves * 3 // 4 + noise // 4  # up to 255
    squares = (y // side + x // side + c) % 2 * 255
    corner = (2 * y < height) & (3 * x < width)
    return Image.fromarray(np.where(corner, squares, pixels).astype(np.uint8))


def pictures() -> list[Case]:
    """Sizes that are special to the rules, then random ones."""
    small, default = (784, 20 * 784), PICTURE_LIMITS
    fixed = [(112, 140, default), (56, 56, default), (28, 28, small), (4, 4, default), (84, 100, default)]
    fixed += [(100, 84, default), (70, 420, default), (420, 70, default), (31, 639, small), (639, 31, small)]
    fixed += [(4, 600, small), (780, 4, default), (561, 278, default), (27, 29, small), (29, 27, default)]
    fixed += [(876, 1300, default), (500, 700, (64**2, 512**2)), (1200, 300, small), (300, 1200, small)]
    cases, rng = [Case(seed, *one) for seed, one in enumerate(fixed)], random.Random(1)
    while len(cases) < 80:
        height, width = (rng.randrange(4, 2 ** rng.randrange(5, 10)) for _ in range(2))
        limits = [default, (784, 784 * rng.randrange(2, 60)), (50_000, 90_000), (3136, 16384 * 784)]
        if max(height, width) <= 100 * min(height, width):
            cases.append(Case(len(cases), height, width, rng.choice(limits)))
    return cases


def clips() -> list[Case]:
    """Every frame count from 1 to 13 and some larger ones; small limits, and the reference's own in a few."""
    cases, rng = [], random.Random(2)
    for frames in [*range(1, 14), *range(1, 14), 16, 17, 25, 32, 33, 2, 3, 5, 7, 8]:
        height, width = rng.randrange(20, 260), rng.randrange(20, 260)
        limits = [(784, 784 * rng.randrange(2, 40)), (3136, 784 * rng.randrange(8, 80))]
        own = len(cases) % 9 == 8 and frames < 10
        limit = FRAME_LIMITS if own else rng.choice(limits)
        cases.append(Case(100 + len(cases), height, width, limit, frames))
    return cases


def lengths() -> list[tuple[int, float, dict]]:
    """(frames of a clip, frames a second, fps or nframes asked for); the last 20 past 16,384 frames."""
    rng, asked = random.Random(3), []
    rates = (5.0, 10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0)
    for i in range(520):
        total = rng.randrange(2, 16385) if i % 2 else rng.randrange(2, 700)
        total = 8 * (total // 8 + 1) if i % 5 == 0 else total  # many exact quotients
        total = rng.randrange(16385, 400_000) if i >= 500 else total
        option = {"fps": rng.choice([0.5, 1.0, 2.0, 3.0, 10.0])}
        if i % 4 == 3:
            option = {"nframes": rng.randrange(2, min(total, 768) + 1)}
        asked.append((total, rng.choice(rates), option))
    return asked
