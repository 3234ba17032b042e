"""Images, videos and lengths of videos for the comparison with torchvision.

They are the same on every machine: drawn with whole numbers and Python's own generator only,
since NumPy's streams and the last bit of a sine may change.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

SAMPLE = 2000  # values kept of each output
IMAGE_LIMITS = (56 * 56, 1280 * 784)  # the reference's defaults, in pixels
FRAME_LIMITS = (128 * 784, 768 * 784)


@dataclass(frozen=True)
class Case:
    """An image, or a video of `frames` frames, to be drawn from `seed`; limits are in pixels."""

    seed: int
    height: int
    width: int
    limits: tuple[int, int]
    frames: int = 1

    def draw(self) -> list[Image.Image]:
        """The frames; of an image the image itself."""
        return [draw(self.height, self.width, 1000 * self.seed + i) for i in range(self.frames)]

    def sample_indices(self, count: int) -> np.ndarray:
        """Which SAMPLE of an output's `count` values are compared."""
        drawn = random.Random(self.seed).randbytes(8 * SAMPLE)
        return (np.frombuffer(drawn, "<u8") % count).astype(np.int64)


def draw(height: int, width: int, seed: int) -> Image.Image:
    """Smooth waves under noise, and squares of pure black and white, which make bicubic
    overshoot.
    """
    rng = random.Random(seed)
    y, x, c = np.ogrid[:height, :width, :3]
    phase = rng.randrange(512)
    down = rng.randrange(1, 9)
    right = rng.randrange(1, 9)
    side = rng.randrange(1, 9)

    # Waves (H, W, 3) of 0 to 256; with the noise up to 255.
    waves = np.abs((phase + down * y + right * x + x * y // 64 + 150 * c) % 512 - 256)
    drawn = np.frombuffer(rng.randbytes(height * width * 3), np.uint8)
    noise = drawn.reshape(height, width, 3)
    pixels = waves * 3 // 4 + noise // 4

    squares = (y // side + x // side + c) % 2 * 255
    corner = (2 * y < height) & (3 * x < width)
    return Image.fromarray(np.where(corner, squares, pixels).astype(np.uint8))


def images() -> list[Case]:
    """Sizes that are special to the rules, then random ones."""
    small = (784, 20 * 784)
    default = IMAGE_LIMITS
    fixed = [
        (112, 140, default),
        (56, 56, default),
        (28, 28, small),
        (4, 4, default),
        (84, 100, default),
        (100, 84, default),
        (70, 420, default),
        (420, 70, default),
        (31, 639, small),
        (639, 31, small),
        (4, 600, small),
        (780, 4, default),
        (561, 278, default),
        (27, 29, small),
        (29, 27, default),
        (876, 1300, default),
        (500, 700, (64**2, 512**2)),
        (1200, 300, small),
        (300, 1200, small),
    ]
    cases = []
    for seed, (height, width, limits) in enumerate(fixed):
        cases.append(Case(seed, height, width, limits))

    rng = random.Random(1)
    while len(cases) < 80:
        height = rng.randrange(4, 2 ** rng.randrange(5, 10))
        width = rng.randrange(4, 2 ** rng.randrange(5, 10))
        upper = 784 * rng.randrange(2, 60)
        choices = [default, (784, upper), (50_000, 90_000), (3136, 16384 * 784)]
        if max(height, width) <= 100 * min(height, width):
            cases.append(Case(len(cases), height, width, rng.choice(choices)))
    return cases


def videos() -> list[Case]:
    """Every number of frames from 1 to 13, and some larger ones.

    Most have small limits, a few the reference's own.
    """
    counts = [*range(1, 14), *range(1, 14), 16, 17, 25, 32, 33, 2, 3, 5, 7, 8]
    rng = random.Random(2)
    cases = []
    for frames in counts:
        height = rng.randrange(20, 260)
        width = rng.randrange(20, 260)
        small = (784, 784 * rng.randrange(2, 40))
        medium = (3136, 784 * rng.randrange(8, 80))
        if len(cases) % 9 == 8 and frames < 10:
            limits = FRAME_LIMITS
        else:
            limits = rng.choice([small, medium])
        cases.append(Case(100 + len(cases), height, width, limits, frames))
    return cases


def lengths() -> list[tuple[int, float, dict]]:
    """(frames of a video, frames a second, fps or nframes asked for).

    The last 20 videos have more than 16,384 frames.
    """
    rates = (5.0, 10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0)
    rng = random.Random(3)
    asked = []
    for i in range(520):
        total = rng.randrange(2, 16385) if i % 2 else rng.randrange(2, 700)
        if i % 5 == 0:  # many exact quotients
            total = 8 * (total // 8 + 1)
        if i >= 500:
            total = rng.randrange(16385, 400_000)
        option = {"fps": rng.choice([0.5, 1.0, 2.0, 3.0, 10.0])}
        if i % 4 == 3:
            option = {"nframes": rng.randrange(2, min(total, 768) + 1)}
        asked.append((total, rng.choice(rates), option))
    return asked
