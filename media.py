"""Opening pictures and clips: nothing here knows Qwen2-VL, and a reader who is after the model can skip it.

`load_image` turns a path, URL, data: URI, array or PIL picture into an upright 8-bit RGB picture;
`read_video` turns a clip into the frames that its caller chooses, in one streaming pass that keeps no others.
Errors are one line that names the source: OSError if it can't be had, ValueError if it can't be read.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

Name = str | os.PathLike
# (a clip's frames, frames a second) -> which of them, ascending; (a frame, how many) -> what to keep of it
Choose = Callable[[int, float], list[int]]
Fit = Callable[[Image.Image, int], Any]
# What an item of a message, a call or `from_pretrained` may say of a picture or clip; where an item names it.
SIZING = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
SAMPLING = ("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end")
SOURCE_KEYS = {"image": ("path", "url", "image", "image_url"), "video": ("path", "url", "video")}


def settle(media: Any, kind: str, *levels: dict) -> tuple[Any, dict]:
    """The source in a message item, or a bare one, and its options: the item's outweigh those of `levels`."""
    item = media if isinstance(media, dict) else {kind: media}
    source = next((item[key] for key in SOURCE_KEYS[kind] if item.get(key) is not None), None)
    source = source.get("url") if isinstance(source, dict) else source  # {"image_url": {"url": ...}}
    if source is None:
        raise ValueError(f"no source in {item!r:.99}: a {kind} has one of {', '.join(SOURCE_KEYS[kind])}")
    known, levels = SIZING + SAMPLING, (*levels, item)
    return source, {key: level[key] for level in levels for key in known if level.get(key) is not None}


def flatten(media: Any) -> list:
    """One picture, a list of them, or nested lists, as one flat list."""
    return [one for part in media for one in flatten(part)] if isinstance(media, (list, tuple)) else [media]


def describe(source: Any) -> str:
    """A source's name for error messages, with data: URIs and other long strings cut."""
    if hasattr(source, "dtype"):
        return f"{type(source).__name__} of {source.dtype} {tuple(source.shape)}"
    name = repr(os.fspath(source) if isinstance(source, os.PathLike) else source)
    limit = 40 if name.startswith("'data:") else 200
    return name if len(name) <= limit else f"{name[:limit]}... ({len(name)} characters)"


def open_source(source: Name, kind: str) -> BinaryIO:
    """A path, file://, http(s):// or data: URI as an open binary file."""
    from http.client import HTTPException  # here: slow to import and seldom needed
    from urllib import parse, request

    place = os.fspath(source)
    scheme = place.split(":", 1)[0].lower()
    try:
        if scheme not in ("http", "https", "data"):
            return open(request.url2pathname(parse.urlsplit(place).path) if scheme == "file" else place, "rb")
        agent = {"User-Agent": "Mozilla/5.0 qwen2vl"}  # some hosts refuse urllib's own
        with request.urlopen(request.Request(place, headers=agent), timeout=30) as answer:
            file = tempfile.TemporaryFile()  # noqa: SIM115 (vanishes when the caller closes it)
            shutil.copyfileobj(answer, file)
            file.seek(0)
            return file
    except FileNotFoundError:
        raise FileNotFoundError(f"no such {kind}: {describe(source)}") from None
    except (OSError, ValueError, HTTPException) as error:
        inner = None if hasattr(error, "code") else getattr(error, "reason", None)  # of HTTP, of a connection
        reason = getattr(error, "strerror", None) or inner or error
        raise OSError(f"cannot get the {kind} {describe(source)}: {reason}") from error


# ------------------------------------------------------------------------------------------ pictures
def load_image(source: Any) -> Image.Image:
    """One picture as RGB: upright by its EXIF tag, the first frame if animated, white where transparent.

    From a path, URL, data: URI, PIL picture or uint8 array (H, W), (H, W, 3) or (H, W, 4).
    """
    if hasattr(source, "dtype"):
        pixels = np.asarray(source)
        colours = pixels.shape[2:] in ((3,), (4,))  # the last axis
        if pixels.dtype != np.uint8 or pixels.size == 0 or not (pixels.ndim == 2 or colours):
            wanted = "uint8 (H, W), (H, W, 3) or (H, W, 4)"
            raise ValueError(f"an array picture is {wanted}: got {describe(source)}")
        source = Image.fromarray(pixels)
    if not isinstance(source, (Name, Image.Image)):
        raise ValueError(f"a picture is a path, a URL, a PIL picture or an array, not {describe(source)}")
    given = isinstance(source, Image.Image)
    with nullcontext() if given else open_source(source, "picture") as file:
        try:
            return to_rgb(source if given else Image.open(file))
        except Image.UnidentifiedImageError:
            raise ValueError(
                f"cannot read the picture {describe(source)}: no format that Pillow knows"
            ) from None
        except Exception as error:  # on broken files Pillow's readers raise a dozen types
            raise ValueError(f"cannot read the picture {describe(source)}: {error}") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any Pillow mode as upright RGB."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating point, of no fixed range: scale them to 8 bits first")
    if picture.getexif().get(0x0112, 1) != 1:  # the tag "Orientation": how the camera was held
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255; 65535 / 257 = 255
        wide = np.asarray(picture).clip(0, 65535)
        picture = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture.load()  # before its file is closed
    return picture if picture.mode == "RGB" else picture.convert("RGB")


# ------------------------------------------------------------------------------------------ clips
def read_video(source: Any, choose: Choose, fit: Fit) -> list:
    """The chosen frames of a clip, each as `fit` made it while decoding: nothing else is kept.

    From a path, URL or data: URI, or a list of frames, of which every one is taken.
    """
    if not isinstance(source, Name):
        if not hasattr(source, "__len__") or len(source) == 0:
            raise ValueError(
                f"a video is a path, a URL or a list of at least 1 frame, not {describe(source)}"
            )
        return [fit(load_image(frame), len(source)) for frame in source]
    import av  # here: slow to import and seldom needed

    with open_source(source, "video") as file:
        try:
            return read_clip(file, choose, fit)
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"cannot read the video {describe(source)}: {reason}") from error


def read_clip(file: BinaryIO, choose: Choose, fit: Fit) -> list:
    """Decodes the chosen frames of an open file; once more if it holds fewer frames than it states."""
    import av

    with av.open(file) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 1)  # a single picture may state none
        total = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))  # none is decoded
    while True:
        if total < 1:
            raise ValueError("it has 0 frames")
        chosen = choose(total, rate)
        kept, total = decode_frames(file, chosen, fit)
        if len(kept) == len(chosen):
            return kept


def decode_frames(file: BinaryIO, chosen: list[int], fit: Fit) -> tuple[list, int]:
    """One pass over a clip: what `fit` made of the chosen frames, and how many frames it met on the way."""
    import av

    file.seek(0)
    kept, seen = [], 0
    with av.open(file) as container:
        container.streams.video[0].thread_type = "AUTO"  # decode on all cores
        for frame in container.decode(video=0):
            if seen == chosen[len(kept)]:
                turn = round(frame.rotation / 90) * 90  # phones store frames lying and note the turn
                kept.append(fit(frame.to_image().rotate(turn, expand=True), len(chosen)))
            seen += 1
            if len(kept) == len(chosen):
                break
    return kept, seen
