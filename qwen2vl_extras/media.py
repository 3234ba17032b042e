"""Open images and videos from wherever they are; nothing here depends on Qwen2-VL.

`load_image` turns a path, URL, data: URI, array or PIL image into an upright 8-bit RGB image.
`read_video` decodes the frames of a video that its caller chooses, and keeps no others in memory.
Errors are one line that names the source: OSError if it can't be opened, ValueError if it can't be
decoded.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

# A path, file:// or http(s):// URL, or data: URI.
Location: TypeAlias = str | os.PathLike[str]
ImageSource: TypeAlias = Location | Image.Image | np.ndarray | Tensor
# A list or array holds the frames.
VideoSource: TypeAlias = Location | Sequence[ImageSource] | np.ndarray | Tensor
# What a caller makes of a frame.
Prepared = TypeVar("Prepared")
# (how many frames a video has, frames a second) -> the indices of those to keep, ascending.
ChooseFrames: TypeAlias = Callable[[int, float], list[int]]
# (a frame, how many are kept) -> what to keep of it.
PrepareFrame: TypeAlias = Callable[[Image.Image, int], Prepared]

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
TIMEOUT = 30  # seconds without an answer from a server
MAX_NAME = 200  # characters of a source that an error shows


def describe(source: object) -> str:
    """The name of a source for error messages; data: URIs and other long strings are cut."""
    if isinstance(source, (np.ndarray, Tensor)):
        return f"{type(source).__name__} of {source.dtype} {tuple(source.shape)}"
    name = repr(os.fspath(source)) if isinstance(source, os.PathLike) else repr(source)
    limit = 40 if name.startswith("'data:") else MAX_NAME
    if len(name) <= limit:
        return name
    return f"{name[:limit]}... ({len(name)} characters)"


def open_source(source: Location, kind: str) -> BinaryIO:
    """A path, file://, http(s):// or data: URI as an open file; errors name the `kind`."""
    from http.client import HTTPException  # here: slow to import and seldom needed

    place = os.fspath(source)
    try:
        # urllib opens a data: URI as if it were downloaded.
        if place.split(":", 1)[0].lower() in ("http", "https", "data"):
            return download(place)
        return open(local_path(place), "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"no such {kind}: {describe(source)}") from None
    except (OSError, ValueError, HTTPException) as error:
        raise OSError(f"cannot get the {kind} {describe(source)}: {reason_of(error)}") from error


def local_path(place: str) -> str:
    """The path of a file:// URL; any other string is a path already."""
    from urllib import parse, request

    if place.lower().startswith("file:"):
        return request.url2pathname(parse.urlsplit(place).path)
    return place


def download(url: str) -> BinaryIO:
    """The content of an http(s):// or data: URL, in a file that vanishes when closed."""
    from urllib import request

    headers = {"User-Agent": "Mozilla/5.0 qwen2vl"}  # some servers refuse urllib's own name
    with request.urlopen(request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
        shutil.copyfileobj(answer, file)
        file.seek(0)
        return file


def reason_of(error: Exception) -> object:
    """The part of an error that says what went wrong."""
    strerror = getattr(error, "strerror", None)
    if strerror:  # of the operating system: "Permission denied"
        return strerror
    if hasattr(error, "code"):  # an HTTP status: its text has number and name
        return error
    return getattr(error, "reason", None) or error  # urllib puts the reason of a failure there


# ----------------------------------------------------------------------------------- images


def load_image(source: ImageSource) -> Image.Image:
    """Return an image as upright 8-bit RGB.

    Of an animation it is the first frame; transparent pixels become white. An array is uint8 and
    (H, W), (H, W, 3) or (H, W, 4), also as a tensor.
    """
    if isinstance(source, (np.ndarray, Tensor)):
        return to_rgb(image_from_array(source))
    if isinstance(source, Image.Image):
        return read_image(opened=source, source=source)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"an image is a path, a URL, a PIL image or an array, not {describe(source)}"
        )
    with open_source(source, "image") as file:
        return read_image(opened=file, source=source)


def read_image(opened: BinaryIO | Image.Image, source: ImageSource) -> Image.Image:
    """An open file or a PIL image as RGB; ValueError names the source."""
    try:
        return to_rgb(opened if isinstance(opened, Image.Image) else Image.open(opened))
    except Image.UnidentifiedImageError:
        reason = "no format that Pillow knows"
        raise ValueError(f"cannot read the image {describe(source)}: {reason}") from None
    except Exception as error:  # on broken files Pillow's readers raise a dozen types
        raise ValueError(f"cannot read the image {describe(source)}: {error}") from error


def image_from_array(source: np.ndarray | Tensor) -> Image.Image:
    """A uint8 array (H, W), (H, W, 3) or (H, W, 4) as a PIL image."""
    pixels = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
    is_grey = pixels.ndim == 2
    is_colour = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if pixels.dtype != np.uint8 or pixels.size == 0 or not (is_grey or is_colour):
        wanted = "uint8 (H, W), (H, W, 3) or (H, W, 4)"
        raise ValueError(f"an array image is {wanted}: got {describe(source)}")
    return Image.fromarray(pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as upright RGB."""
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating point, of no fixed range: scale them to 8 bits first"
        )
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)

    # Modes I and I;16 hold 16 bits, which Pillow would clip at 255. 65535 / 257 is 255.
    if image.mode.startswith("I"):
        values = np.asarray(image).clip(0, 65535)
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))

    # Transparent pixels on white.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)

    image.load()  # now, since the caller closes the file
    return image if image.mode == "RGB" else image.convert("RGB")


# ----------------------------------------------------------------------------------- videos


def read_video(
    source: VideoSource, choose_frames: ChooseFrames, prepare_frame: PrepareFrame[Prepared]
) -> list[Prepared]:
    """Return what prepare_frame makes of each chosen frame of a video, while it is decoded.

    A list of frames is taken whole, without asking choose_frames.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_video_file(source, choose_frames, prepare_frame)
    if not isinstance(source, (Sequence, np.ndarray, Tensor)) or len(source) == 0:
        raise ValueError(
            f"a video is a path, a URL or a list of at least 1 frame, not {describe(source)}"
        )
    return [prepare_frame(load_image(frame), len(source)) for frame in source]


def read_video_file(
    source: Location, choose_frames: ChooseFrames, prepare_frame: PrepareFrame[Prepared]
) -> list[Prepared]:
    """`read_video` for a file, a URL or a data: URI."""
    import av  # here: slow to import and seldom needed

    with open_source(source, "video") as file:
        try:
            return decode_chosen(file, choose_frames, prepare_frame)
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"cannot read the video {describe(source)}: {reason}") from error


def decode_chosen(
    file: BinaryIO, choose_frames: ChooseFrames, prepare_frame: PrepareFrame[Prepared]
) -> list[Prepared]:
    """Decode the chosen frames of an open video file.

    If its header promises more frames than it has, choose once more, from those that are there.
    """
    total, rate = count_frames(file)
    chosen = choose_frames(total, rate)
    prepared, decoded = decode_frames(file, chosen, prepare_frame)
    if len(prepared) < len(chosen):
        if decoded == 0:
            raise ValueError("it has 0 frames")
        chosen = choose_frames(decoded, rate)
        prepared, _ = decode_frames(file, chosen, prepare_frame)
    return prepared


def count_frames(file: BinaryIO) -> tuple[int, float]:
    """Return how many frames a video file has by its header or packets, and frames a second."""
    import av

    with av.open(file, "r") as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        # A single image as a video may state no rate.
        rate = float(stream.average_rate or stream.guessed_rate or 1)
        total = stream.frames
        if total == 0:  # not stated: count the packets, which decodes nothing
            total = sum(packet.size > 0 for packet in container.demux(stream))
    if total < 1:
        raise ValueError("it has 0 frames")
    return total, rate


def decode_frames(
    file: BinaryIO, chosen: list[int], prepare_frame: PrepareFrame[Prepared]
) -> tuple[list[Prepared], int]:
    """Decode a video file up to the last chosen frame.

    Returns what prepare_frame made of the chosen frames, and how many frames were decoded.
    """
    import av

    file.seek(0)
    prepared: list[Prepared] = []
    decoded = 0
    with av.open(file, "r") as container:
        container.streams.video[0].thread_type = "AUTO"  # on all cores
        for frame in container.decode(video=0):
            next_chosen = chosen[len(prepared)]  # they are in ascending order
            if decoded == next_chosen:
                # Phones store frames sideways and note the rotation, counter-clockwise as Pillow.
                rotation = round(frame.rotation / 90) * 90
                image = frame.to_image().rotate(rotation, expand=True)
                prepared.append(prepare_frame(image, len(chosen)))
            decoded += 1
            if len(prepared) == len(chosen):
                break
    return prepared, decoded
