"""Preprocessing: an opened image, or a video's file, to patches."""

import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

from benchmarks.models import Models
from benchmarks.settings import OURS, REFERENCE, is_installed
from benchmarks.stage import Contestant, Run, Stage
from processor import Qwen2VLImageProcessor, Qwen2VLImageProcessorFast, video_patches

MIN_PIXELS = 56 * 56
MAX_PIXELS = 12845056  # both as in the official preprocessor_config.json
FRAMES_PER_SECOND = 1.0  # taken from a video


def make_image(width: int, height: int) -> Image.Image:
    """Smooth colours under noise, so that neither a codec nor a filter has an easy case."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 224, (9, 16, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.integers(0, 32, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(smooth // 8 * 7 + noise)


def write_video(file: Path, seconds: int, rate: int = 4) -> None:
    """A video of 1080p in which an image slowly moves to the right."""
    image = np.asarray(make_image(1920, 1080))
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = 1920
        stream.height = 1080
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for i in range(seconds * rate):
            moved = np.roll(image, 8 * i, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())


class ImagePreprocessing:
    """One image, resized by Pillow (both plain processors) and by torch (both "Fast" ones)."""

    def __init__(self, models: Models, name: str, width: int, height: int) -> None:
        self.models = models
        self.name = name
        self.image = make_image(width, height)

    def stage(self) -> Stage:
        contestants = [
            Contestant(OURS, self.ours),
            Contestant(f"{OURS}, Fast", self.ours_fast, variant="Fast"),
        ]
        note = f"max_pixels {MAX_PIXELS:,}"
        if self.models.has_reference:
            contestants.insert(1, Contestant(REFERENCE, self.reference))
            if is_installed("torchvision"):
                name = f"{REFERENCE}, Fast"
                contestants.append(Contestant(name, self.reference_fast, variant="Fast"))
            else:
                note += f"; without torchvision {REFERENCE} has no Fast"
        return Stage(f"preprocessing, {self.name} image", contestants, note, rounds=9)

    def ours(self) -> Run:
        return self.time_ours(Qwen2VLImageProcessor(MIN_PIXELS, MAX_PIXELS))

    def ours_fast(self) -> Run:
        return self.time_ours(Qwen2VLImageProcessorFast(MIN_PIXELS, MAX_PIXELS))

    def reference(self) -> Run:
        assert self.models.transformers is not None
        return self.time_reference(self.models.transformers.Qwen2VLImageProcessor)

    def reference_fast(self) -> Run:
        assert self.models.transformers is not None
        return self.time_reference(self.models.transformers.Qwen2VLImageProcessorFast)

    def time_ours(self, processor: Qwen2VLImageProcessor) -> Run:
        start = time.perf_counter()
        processor([self.image])
        return Run(time.perf_counter() - start)

    def time_reference(self, processor_class: type) -> Run:
        processor = processor_class(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
        start = time.perf_counter()
        processor(images=[self.image], return_tensors="pt")
        return Run(time.perf_counter() - start)


class VideoPreprocessing:
    """A file of 1080p, of which one frame a second is taken.

    The reference keeps those frames at their full size (of ten minutes 3.7 GB) before it shrinks
    them: above two minutes it is left out.
    """

    def __init__(self, models: Models, seconds: int) -> None:
        self.models = models
        self.seconds = seconds
        self.folder = tempfile.TemporaryDirectory(prefix="benchmarks-")  # gone with this object
        self.file = Path(self.folder.name) / f"{seconds}.mp4"
        write_video(self.file, seconds)

    def stage(self) -> Stage:
        contestants = [Contestant(OURS, self.ours)]
        note = f"{FRAMES_PER_SECOND:g} frame(s) a second"
        if self.models.has_reference and self.seconds <= 120:
            if is_installed("torchvision"):
                contestants.append(Contestant(REFERENCE, self.reference))
            else:
                note += f"; without torchvision {REFERENCE} reads no videos"
        return Stage(f"preprocessing, clip of {self.seconds} s", contestants, note, rounds=2)

    def ours(self) -> Run:
        processor = Qwen2VLImageProcessor()
        start = time.perf_counter()
        video_patches(processor, str(self.file), [{"fps": FRAMES_PER_SECOND}])
        return Run(time.perf_counter() - start)

    def reference(self) -> Run:
        transformers = self.models.transformers
        assert transformers is not None
        processor = transformers.Qwen2VLVideoProcessor()
        start = time.perf_counter()
        frames, metadata = transformers.video_utils.load_video(
            str(self.file), fps=FRAMES_PER_SECOND, backend="pyav"
        )
        processor(
            videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
        )
        return Run(time.perf_counter() - start)
