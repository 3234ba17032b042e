"""Images of noise, and videos whose frames tell their numbers."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

BLOCK = 16  # pixels; one block of a numbered frame is one bit of its number


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> Image.Image:
    """Smooth colours above, sharp noise below, so that every weight of a filter shows."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    pixels[: height // 2] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0])


def numbered_pixels(number: int, width: int, height: int) -> np.ndarray:
    """Pixels (H, W, 3) whose block i, line by line, is white if bit i of `number` is set."""
    rows, columns = height // BLOCK, width // BLOCK
    bits = [number >> i & 1 for i in range(rows * columns)]
    blocks = np.array(bits, np.uint8).reshape(rows, columns) * 255
    pixels = blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)  # (H, W)
    return np.stack([pixels] * 3, axis=-1)


def write_video(
    path: Path,
    count: int,
    rate: int = 10,
    codec: str = "mpeg4",
    size: tuple[int, int] = (64, 48),
    times: list[int] | None = None,
) -> Path:
    """A video of `count` numbered frames, at `times` if given, in units of 1 / rate; its path."""
    width, height = size
    frames = [numbered_pixels(number, width, height) for number in range(count)]
    return write_frames(path, frames, rate, codec, times)


def write_frames(
    path: Path,
    frames: list[np.ndarray],
    rate: int = 10,
    codec: str = "mpeg4",
    times: list[int] | None = None,
) -> Path:
    """A video of the given pixels, each (H, W, 3); its path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())  # what the encoder has held back
    return path


def frame_numbers(frames: list[Image.Image]) -> list[int]:
    """The numbers of the frames of `write_video`."""
    numbers = []
    for frame in frames:
        centres = np.asarray(frame.convert("L"))[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK].ravel()
        number = 0
        for i, brightness in enumerate(centres):
            if brightness > 127:
                number += 1 << i
        numbers.append(number)
    return numbers


def keep_frame(frame: Image.Image, num_frames: int) -> Image.Image:
    """For `read_video`: the frame as it is."""
    return frame
