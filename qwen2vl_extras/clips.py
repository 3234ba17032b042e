"""Videos that are given as frames, in the forms in which other tools pass them on.

A clip is a list of frames, or one array of them. qwen-vl-utils gives arrays of floats from 0 to
255, with channels first, and on request a pair of such an array and what it knows about the file.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qwen2vl_extras.media import VideoSource, describe
from qwen2vl_extras.rgb import to_numpy

# How far a bicubic resize may carry a value over 0 and 255.
OVERSHOOT = 64


def list_videos(videos: object) -> list:
    """One video or several, also in a list for each row of a batch, as one flat list of them."""
    if videos is None:
        return []
    if isinstance(videos, (np.ndarray, Tensor)) and videos.ndim == 5:
        return list(videos)
    if not isinstance(videos, (list, tuple)) or has_metadata(videos) or is_clip_of_frames(videos):
        return [videos]
    flat = []
    for part in videos:
        flat += list_videos(part) if is_row(part) else [part]
    return flat


def has_metadata(part: object) -> bool:
    """Whether it is a pair of a clip and a description: a dict, or an object of transformers."""
    if not isinstance(part, (list, tuple)) or len(part) != 2:
        return False
    name = "total_num_frames"
    return name in part[1] if isinstance(part[1], Mapping) else hasattr(part[1], name)


def check_metadata(metadata: object, num_videos: int) -> None:
    """ValueError for a list of descriptions that has not one, or None, for each video."""
    if isinstance(metadata, (list, tuple)) and len(metadata) != num_videos:
        raise ValueError(f"video_metadata is a list of {len(metadata)} for {num_videos} videos")


def is_clip_of_frames(part: Sequence) -> bool:
    """Whether a list holds pictures. A path in a list of videos may be that of a video."""
    return bool(part) and all(is_picture(frame) for frame in part)


def is_picture(part: object) -> bool:
    """Whether it is a PIL image, or an array that is one image."""
    if isinstance(part, (np.ndarray, Tensor)):
        return part.ndim == 2 or (part.ndim == 3 and has_colours(part))
    return isinstance(part, Image.Image)


def has_colours(array: np.ndarray | Tensor) -> bool:
    """Whether three axes are one image in colour; else they are several in grey."""
    return array.shape[0] in (1, 3) or array.shape[2] in (3, 4)


def is_row(part: object) -> bool:
    """Whether it is a list of clips, and not a clip. A row may have none."""
    if not isinstance(part, (list, tuple)) or has_metadata(part):
        return False
    if not part:
        return True
    for one in part:
        is_array = isinstance(one, (np.ndarray, Tensor))
        if isinstance(one, (list, tuple)) or (is_array and one.ndim >= 4):
            return True
    return False


def frames_of(video: VideoSource) -> VideoSource:
    """A video without what a tool has said about it; one picture is a list of one frame.

    Position ids of Qwen2-VL count frames, so the description has nothing to say here.
    ValueError for an array that can't be frames.
    """
    source = video[0] if isinstance(video, (list, tuple)) and has_metadata(video) else video
    if isinstance(source, Image.Image):
        return [source]
    if not isinstance(source, (np.ndarray, Tensor)):
        return source
    if source.ndim not in (3, 4):
        raise ValueError(f"an array of frames has 3 or 4 axes: got {describe(source)}")
    if source.ndim == 3:
        return [source] if has_colours(source) else list(source)
    return source


def is_frames(source: object) -> bool:
    """Whether a source holds the frames of a video, and is no file that has to be decoded."""
    if isinstance(source, (str, bytes, bytearray, memoryview)):
        return False
    return isinstance(source, (Sequence, np.ndarray, Tensor, Image.Image))


def float_frames(source: object) -> list[Tensor]:
    """The frames of a clip of floats as float32 (3, height, width); [] for any other video.

    Their values keep their fractions. ValueError for shapes that are no frames, and for values
    that are not those of pixels, 0 to 255.
    """
    if not isinstance(source, (list, tuple, np.ndarray, Tensor)):
        return []
    frames = list(source)
    if not all(is_float_array(frame) for frame in frames):
        return []
    pixels = [channels_first(frame, source) for frame in frames]
    if pixels:
        check_values(pixels, source)
    return pixels


def is_float_array(frame: object) -> bool:
    if isinstance(frame, Tensor):
        return frame.is_floating_point()
    return isinstance(frame, np.ndarray) and frame.dtype.kind == "f"


def channels_first(frame: np.ndarray | Tensor, source: object) -> Tensor:
    """A frame (h, w), (1 or 3, h, w) or (h, w, 3) of floats as float32 (3, h, w)."""
    pixels = torch.from_numpy(np.array(to_numpy(frame), dtype=np.float32, order="C"))
    if pixels.ndim == 2:
        return pixels.expand(3, -1, -1)
    # The last axis is that of the colours if both would fit, as in image_from_array.
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels.permute(2, 0, 1)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        return pixels.expand(3, -1, -1)
    raise ValueError(
        f"frames of floats are (3, height, width) or (height, width, 3): got {describe(source)}"
    )


def check_values(frames: list[Tensor], source: object) -> None:
    """ValueError unless the values are those of pixels, 0 to 255 and some overshoot."""
    least = min(float(frame.min()) if frame.numel() else 0.0 for frame in frames)
    most = max(float(frame.max()) if frame.numel() else 0.0 for frame in frames)
    name = describe(source) if isinstance(source, (np.ndarray, Tensor)) else "the frames"
    # NaN is in no range.
    if not -OVERSHOOT <= least <= most <= 255 + OVERSHOOT:
        raise ValueError(f"floats of {name} are {least:.4g} to {most:.4g}, not from 0 to 255")
    # Scaled to 0 to 1, or normalised, which is done here.
    is_scaled = most <= 1 or (least < 0 and most <= 4)
    if is_scaled and any(bool((frame != frame.round()).any()) for frame in frames):
        raise ValueError(
            f"floats of {name} are {least:.4g} to {most:.4g}: give pixels from 0 to 255, "
            "which are not yet scaled or normalised"
        )
