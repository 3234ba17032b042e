"""Open images and videos from wherever they are; nothing here depends on Qwen2-VL.

`load_image` turns a path, URL, data: URI, bytes, open file, array or PIL image into an upright
8-bit RGB image. `read_video` decodes the frames of a video that its caller chooses, and keeps no
others in memory. Errors are one line that names the source: OSError if it can't be opened,
ValueError if it can't be decoded.
"""

import math
import warnings
from collections.abc import Sequence
from typing import BinaryIO, TypeAlias, cast

import numpy as np
from PIL import Image
from torch import Tensor

from qwen2vl_extras.rgb import frames_from_array, image_from_array, to_rgb
from qwen2vl_extras.sources import FileSource, describe, is_file_source, open_source
from qwen2vl_extras.video import ChooseFrames, Prepared, PrepareFrame, read_video_file

ImageSource: TypeAlias = FileSource | Image.Image | np.ndarray | Tensor
# A list or array holds the frames.
VideoSource: TypeAlias = FileSource | Sequence[ImageSource] | np.ndarray | Tensor


def load_image(source: ImageSource) -> Image.Image:
    """Return an image as upright 8-bit RGB.

    Of an animation it is the first frame; transparent pixels become white. Arrays and tensors:
    see `image_from_array`.
    """
    if isinstance(source, (np.ndarray, Tensor)):
        return to_rgb(image_from_array(source))
    if isinstance(source, Image.Image):
        return read_image(opened=source, source=source)
    if not is_file_source(source):
        raise ValueError(
            "an image is a path, a URL, bytes, an open file, a PIL image or an array, "
            f"not {describe(source)}"
        )
    with open_source(source, "image") as file:
        return read_image(opened=file, source=source)


def read_image(opened: BinaryIO | Image.Image, source: ImageSource) -> Image.Image:
    """An open file or a PIL image as RGB; ValueError names the source."""
    try:
        if isinstance(opened, Image.Image):
            return to_rgb(opened)
        with warnings.catch_warnings():  # of bad metadata, and of images that are merely large
            warnings.simplefilter("ignore")
            return decode_image(opened)
    except Image.UnidentifiedImageError:
        reason = "no format that Pillow knows"
    except Image.DecompressionBombError:
        reason = f"it has over {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, the limit of Pillow"
    except MemoryError:
        raise MemoryError(f"not enough memory for the image {describe(source)}") from None
    except Exception as error:  # on broken files Pillow's readers raise a dozen types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
    raise ValueError(f"cannot read the image {describe(source)}: {reason}")


def decode_image(file: BinaryIO) -> Image.Image:
    """An open image file as RGB."""
    image = Image.open(file)
    if image.format == "EPS":  # Pillow would have Ghostscript run it
        raise ValueError("PostScript is a program, which is not run here")
    return to_rgb(image)


def read_video(
    source: VideoSource,
    choose_frames: ChooseFrames,
    prepare_frame: PrepareFrame[Prepared],
    start: float = 0.0,
    end: float = math.inf,
) -> list[Prepared]:
    """Return what prepare_frame makes of each chosen frame of a video, while it is decoded.

    start, end: the part to look at, in seconds from the first frame; choose_frames is asked
    about the frames of that part. A list or array of frames is taken whole, without asking.
    """
    if is_file_source(source):
        with open_source(cast(FileSource, source), "video") as file:
            return read_video_file(file, describe(source), choose_frames, prepare_frame, start, end)
    if isinstance(source, (np.ndarray, Tensor)):
        frames: Sequence[ImageSource] = frames_from_array(source)
    elif isinstance(source, Sequence) and len(source) > 0:
        frames = cast(Sequence[ImageSource], source)
    else:
        raise ValueError(
            "a video is a path, a URL, bytes, an open file or a list of at least 1 frame, "
            f"not {describe(source)}"
        )
    if start > 0 or end < math.inf:
        raise ValueError(
            f"frames have no times: {describe(source)} takes no video_start, video_end"
        )
    return [prepare_frame(load_image(frame), len(frames)) for frame in frames]
