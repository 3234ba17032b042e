"""The frames of a clip that the model sees, small and with their times, as the page shows them.

Browsers play only some codecs; these frames they can always show, and no other ones are sent.
"""

import base64
import io

from PIL import Image

from processor import Qwen2VLProcessor, VideoReader
from qwen2vl_app.web.uploads import Upload
from qwen2vl_extras.options import source_and_options

THUMBNAIL_SIDE = 160  # pixels, at most


class TimedReader(VideoReader):
    """Reads the frames that the model sees, and keeps their times in seconds."""

    times: list[float]

    def choose_frames(self, total: int, rate: float) -> list[int]:
        chosen = super().choose_frames(total, rate)
        self.times = [number / rate if rate > 0 else 0.0 for number in chosen]
        return chosen


def frames_shown(processor: Qwen2VLProcessor, upload: Upload) -> list[dict[str, object]]:
    """Of each frame that the model sees of a clip: "time" in seconds, and "source", a data: URI.

    ValueError for a clip that can't be read.
    """
    item = upload.item(None)
    _, options = source_and_options(item, "video", processor.video_defaults, {})
    reader = TimedReader(processor.image_processor, options)
    frames = reader.read(upload.content)  # (n, 3, height, width)
    shown: list[dict[str, object]] = []
    for time, frame in zip(reader.times, frames, strict=True):
        image = Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        shown.append({"time": round(time, 2), "source": as_png(image)})
    return shown


def as_png(image: Image.Image) -> str:
    """An image as a data: URI."""
    written = io.BytesIO()
    image.save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
