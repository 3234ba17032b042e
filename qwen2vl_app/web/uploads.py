"""What visitors upload: files of images and clips, looked at before anything is decoded."""

import io
import warnings
from dataclasses import dataclass

import av
from PIL import Image

from processor import Item, Qwen2VLProcessor
from qwen2vl_app.web.limits import (
    MAX_CLIP_BYTES,
    MAX_CLIP_FRAMES,
    MAX_CLIP_PIXELS,
    MAX_CLIP_SECONDS,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    Refused,
)
from qwen2vl_extras.media import load_image
from qwen2vl_extras.video import open_video, video_stream

MAX_BYTES = {"image": MAX_IMAGE_BYTES, "video": MAX_CLIP_BYTES}


@dataclass
class Upload:
    """A file that a visitor has sent, as it came."""

    kind: str  # "image" or "video"
    content: bytes
    width: int
    height: int

    def item(self, max_pixels: int | None) -> Item:
        """The item of a message that shows it."""
        item: Item = {"type": self.kind, self.kind: self.content}
        if max_pixels is not None:
            item["max_pixels"] = max_pixels
        if self.kind == "video":
            item["max_frames"] = MAX_CLIP_FRAMES
        return item


def check_upload(kind: str, content: bytes) -> Upload:
    """Look at an uploaded file. Refused with one line if it is none, broken or too large."""
    if kind not in MAX_BYTES:
        raise Refused(f"an upload is an image or a video, not {kind[:40]!r}")
    if len(content) > MAX_BYTES[kind]:
        raise Refused(f"the {kind} has over {MAX_BYTES[kind] // 2**20} MB", 413)
    if not content:
        raise Refused(f"the {kind} is empty: 0 bytes")
    try:
        if kind == "image":
            return check_image(content)
        return check_clip(content)
    except Refused:
        raise
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from None


def check_image(content: bytes) -> Upload:
    """An image that can be decoded, and is small enough for that."""
    try:
        with warnings.catch_warnings():  # its size is judged here
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(content)).size  # reads its header only
    except Image.DecompressionBombError:
        raise Refused(f"the image has over {MAX_IMAGE_PIXELS} pixels", 413) from None
    except Exception:  # Pillow's readers raise a dozen types for broken files
        raise Refused("this file can't be read as an image: try PNG, JPEG, WebP or GIF") from None
    if width * height > MAX_IMAGE_PIXELS:
        raise Refused(f"the image has {width} x {height} pixels, over {MAX_IMAGE_PIXELS}", 413)
    image = load_image(content)  # damage inside it is found now; upright, so sides may swap
    return Upload("image", content, image.width, image.height)


def check_clip(content: bytes) -> Upload:
    """A clip that can be opened, and is neither too large nor too long."""
    try:
        with open_video(io.BytesIO(content)) as opened:
            stream = video_stream(opened.container)
            width, height = stream.width, stream.height
            length = opened.container.duration or 0
    except av.FFmpegError:
        raise Refused("this file can't be read as a clip: try MP4 or WebM") from None
    if width * height > MAX_CLIP_PIXELS:
        raise Refused(f"the clip has {width} x {height} pixels, over {MAX_CLIP_PIXELS}", 413)
    if length / av.time_base > MAX_CLIP_SECONDS:
        raise Refused(f"the clip takes over {MAX_CLIP_SECONDS:g} seconds", 413)
    return Upload("video", content, width, height)


def count_tokens(
    processor: Qwen2VLProcessor, width: int, height: int, max_pixels: int | None
) -> dict[str, object]:
    """What an image of this size costs: its size for the model, and its tokens."""
    image_processor = processor.image_processor
    options = {
        "min_pixels": image_processor.min_pixels,
        "max_pixels": image_processor.max_pixels if max_pixels is None else max_pixels,
    }
    new_height, new_width = image_processor.target_size(height, width, options)
    side = image_processor.patch_size * image_processor.merge_size
    return {
        "width": new_width,
        "height": new_height,
        "patches": new_width * new_height // image_processor.patch_size**2,
        "tokens": new_width * new_height // side**2,
    }
