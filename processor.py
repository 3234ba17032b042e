"""Turn images, videos and a conversation into the model's inputs: patches and token ids.

  patches   An image keeps its proportions and, within limits, its size ("naive dynamic
            resolution", section 2.1 of arXiv 2409.12191). Its sides are rounded to multiples of
            28 pixels, and it is cut into patches of 14 x 14 pixels, two frames deep; an image
            stands for both frames. The four patches of a 2 x 2 square are adjacent in the
            sequence, because the model merges them into one token.
  video     A few frames, evenly spread over the video, are cut the same way; all of them share
            one budget of pixels.
  template  The conversation is written out between control tokens, with a placeholder for each
            image or video, <|image_pad|> or <|video_pad|>.
  tokens    Text becomes ids, and each placeholder is repeated once for every token that its
            image or video becomes.

"The reference" is the implementation in `transformers`. Shapes are written in these
letters:

  B  batch         T  tokens      P  patches      n  frames
  t, h, w          a grid in patches: pairs of frames, rows, columns
  height, width    in pixels
  1176             values of a patch: 3 channels * 2 frames * 14 * 14 pixels
"""

import codecs
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

import load
from qwen2vl_extras import lora, processor_files
from qwen2vl_extras.added_tokens import role_texts
from qwen2vl_extras.chat_template import (
    choose_template,
    plain_messages,
    read_templates,
    render_conversations,
    template_variables,
    writes_the_same,
)
from qwen2vl_extras.clips import check_metadata, float_frames, frames_of, is_frames, list_videos
from qwen2vl_extras.errors import shorten
from qwen2vl_extras.media import VideoSource, describe, load_image, read_video
from qwen2vl_extras.media_settings import check_token_ids
from qwen2vl_extras.options import (
    image_options,
    image_settings,
    item_options,
    kind_of_item,
    merged,
    options_of_images,
    options_of_videos,
    processor_options,
    source_and_options,
)
from qwen2vl_extras.repeats import first_of_same
from qwen2vl_extras.resize import (
    concatenate,
    empty_float32,
    float_resize,
    pillow_resize,
    torch_resize,
)

Message: TypeAlias = dict  # {"role": "user", "content": a string, or a list of items}
Item: TypeAlias = dict  # {"type": "text", "text": ...}, {"type": "image", "path": ...}, ...
Options: TypeAlias = dict  # {"max_pixels": 501760, "fps": 1}: any of ALL_OPTIONS


class BatchFeature(dict[str, Tensor]):
    """A dict of tensors, as in `transformers`: inputs.input_ids is inputs["input_ids"]."""

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(f"no entry {name!r}: there are {', '.join(self)}")

    def __setattr__(self, name: str, value: Tensor) -> None:
        self[name] = value

    @property
    def data(self) -> dict[str, Tensor]:
        """The entries; the name is that of `transformers`."""
        return self

    def copy(self) -> "BatchFeature":
        return BatchFeature(self)

    def to(
        self,
        device: str | int | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> "BatchFeature":
        """Move all tensors to a device and cast those of floats; returns this same object.

        As in torch, a dtype may stand in the first place.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if not isinstance(device, (str, int, torch.device, type(None))):
            raise ValueError(f"to() takes a device and a dtype, not a {type(device).__name__}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"to() casts to floating dtypes only, not to {dtype}")
        for key, value in self.items():
            # Ids, masks and grids stay integers.
            new_dtype = dtype if value.is_floating_point() else None
            self[key] = value.to(device=device, dtype=new_dtype, non_blocking=non_blocking)
        return self


# ------------------------------------------------------------- options of an image or video

# They may be set for one image or video, in its message item, or for all, in a call. ALL_OPTIONS
# of qwen2vl_extras/options.py names them, and says what their values may be; an option that would
# be ignored is an error.


def check_options(padding: bool | str, return_tensors: str, options: Options, what: str) -> Options:
    """The options of a call of `what` that act, checked.

    padding, return_tensors: taken because `transformers` has them; rows are always padded
    to the longest, and tensors are those of PyTorch. ValueError for what is not supported.
    """
    if padding not in (True, "longest") or return_tensors != "pt":
        raise ValueError(
            "only padding=True and return_tensors='pt' are supported: "
            f"got {padding=}, {return_tensors=}"
        )
    return processor_options(options, what)


def flatten_nested(media: object) -> list:
    """One image, an array (n, ...) of several, or nested lists of them as one flat list."""
    if isinstance(media, (np.ndarray, Tensor)) and media.ndim == 4:
        return list(media)
    if not isinstance(media, (list, tuple)):
        return [media]
    flat = []
    for part in media:
        flat += flatten_nested(part)
    return flat


# ------------------------------------------------------------------------- image to patches


def round_by_factor(number: float, factor: int) -> int:
    """The multiple of factor nearest to number; ties go to the even one (70 / 28 = 2.5: 56)."""
    return round(number / factor) * factor


def floor_by_factor(number: float, factor: int) -> int:
    """The largest multiple of factor that is not above number."""
    return math.floor(number / factor) * factor


def ceil_by_factor(number: float, factor: int) -> int:
    """The smallest multiple of factor that is not below number."""
    return math.ceil(number / factor) * factor


# More than any prompt of the family holds. A larger image or video is refused before its memory
# is taken.
MAX_MEDIA_TOKENS = 131_072


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: float = 56 * 56,
    max_pixels: float = 1280 * 28 * 28,
) -> tuple[int, int]:
    """The (height, width) to which an image is resized.

    Multiples of `factor` with nearly the same proportions and an area within the limits. A
    very thin image may exceed max_pixels, since no side gets shorter than `factor`.
    ValueError for a side of 0, for one side over 200 times the other, and for limits that
    exclude each other.
    """
    shorter, longer = min(height, width), max(height, width)
    if shorter < 1 or longer > 200 * shorter:
        raise ValueError(
            f"an image of {width} x {height} pixels: one side is 0 or over 200 times the other"
        )
    if max_pixels < max(min_pixels, factor**2):  # the smallest result is factor x factor
        raise ValueError(
            f"max_pixels {max_pixels} is below min_pixels {min_pixels} or {factor} x {factor}"
        )

    # Each side to the nearest multiple.
    new_height = round_by_factor(height, factor)  # may be 0 for a thin image
    new_width = round_by_factor(width, factor)
    # Too large or too small: scale both sides alike, then round down or up.
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = floor_by_factor(height / scale, factor)
        new_width = floor_by_factor(width / scale, factor)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = ceil_by_factor(height * scale, factor)
        new_width = ceil_by_factor(width * scale, factor)
    return max(factor, new_height), max(factor, new_width)


def patchify(
    frames: Tensor, patch_size: int = 14, temporal_patch_size: int = 2, merge_size: int = 2
) -> tuple[Tensor, tuple[int, int, int]]:
    """Cut frames (n, channels, height, width) into patches (t * h * w, 1176).

    Also returns their grid (t, h, w). Patches come in the order that the model's merger
    needs: pair of frames, square of 2 x 2 patches, patch in the square. The values of a
    patch come in the order of the Conv3d weight: channel, frame, row, column.
    """
    # Repeat the last frame until the patches are full. -n % k is what n lacks to a multiple of k.
    missing = -len(frames) % temporal_patch_size
    if missing:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    n, channels, height, width = frames.shape
    t = n // temporal_patch_size
    h = height // patch_size
    w = width // patch_size

    # Split the axes of time, rows and columns. The new axes are numbered in the comments.
    frames = frames.reshape(
        t, temporal_patch_size,  # 0 pair, 1 frame in the pair
        channels,  # 2 channel
        h // merge_size, merge_size, patch_size,  # rows: 3 of squares, 4 of patches, 5 of pixels
        w // merge_size, merge_size, patch_size,  # columns: 6 of squares, 7 of patches, 8 of pixels
    )  # fmt: skip
    # Patches in order (pair, square, patch in it), and in each its values (channel, frame,
    # pixel).
    patches = frames.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return patches.reshape(t * h * w, -1), (t, h, w)


@dataclass
class Qwen2VLImageProcessor:
    """Turns images into normalised patches.

    All fields but `device` are those of preprocessor_config.json.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    device: str | torch.device = "cpu"  # where torch resizes: videos, and images of the Fast class

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, use_fast: bool | None = None, **given: object
    ) -> "Qwen2VLImageProcessor":
        """The settings of images in a checkpoint's files; `given` fields override them.

        use_fast: True for Qwen2VLImageProcessorFast, False for Qwen2VLImageProcessor, by
        default the class that it is called on.
        """
        of_images, _ = load.read_media_config(load.find_checkpoint(name, weights=False))
        return cls.from_settings(of_images, use_fast, given)

    @classmethod
    def from_settings(
        cls, of_images: Options, use_fast: bool | None, given: Options
    ) -> "Qwen2VLImageProcessor":
        """The settings of images as `load.read_media_config` reads them; see from_pretrained."""
        if use_fast is not None:
            cls = Qwen2VLImageProcessorFast if use_fast else Qwen2VLImageProcessor
        # An argument that is no field would be ignored.
        names = [f.name for f in fields(cls)]
        given = image_settings(given, names)

        # A file may lack any of them.
        settings: dict = {}
        for stated in (of_images, given):  # the later overrides
            for setting in names:
                if stated.get(setting) is not None:
                    settings[setting] = stated[setting]
        return cls(**settings)

    def settings(self) -> dict[str, object]:
        """The content of a preprocessor_config.json that says what this processor does."""
        content: dict[str, object] = {"image_processor_type": type(self).__name__}
        for f in fields(self):
            if f.name != "device":  # where to compute, not what
                content[f.name] = getattr(self, f.name)
        return content

    def target_size(self, height: int, width: int, options: Options) -> tuple[int, int]:
        """The (height, width) to which an image or frame of the given size is resized.

        options: min_pixels and max_pixels; resized_height and resized_width, where they are
        given, take the place of the image's own size.
        """
        # The factor: 28 pixels are the side of a token.
        factor = self.patch_size * self.merge_size
        if options.get("do_resize") is False:
            if height % factor or width % factor:
                raise ValueError(
                    f"do_resize=False is for sides that are multiples of {factor}: "
                    f"got {width} x {height} pixels"
                )
            return height, width
        # An explicit size ignores the limits: it is only rounded, to at least one token.
        min_pixels, max_pixels = options["min_pixels"], options["max_pixels"]
        if "resized_height" in options or "resized_width" in options:
            height = max(factor, options.get("resized_height", height))
            width = max(factor, options.get("resized_width", width))
            min_pixels, max_pixels = 0, math.inf
        new_height, new_width = smart_resize(height, width, factor, min_pixels, max_pixels)
        num_tokens = new_height * new_width // factor**2
        if num_tokens > MAX_MEDIA_TOKENS:
            raise ValueError(
                f"an image resized to {new_width} x {new_height} pixels is {num_tokens} tokens, "
                f"over {MAX_MEDIA_TOKENS}: lower max_pixels"
            )
        return new_height, new_width

    def resize_images(self, images: list[Image.Image], height: int, width: int) -> Tensor:
        """RGB images of one size to uint8 (images, 3, height, width), by Pillow."""
        return pillow_resize(images, height, width)

    def frames_to_patches(
        self, frames: Tensor, still: bool = False
    ) -> tuple[Tensor, tuple[int, int, int]]:
        """Cut frames into normalised float32 patches (t * h * w, 1176) and their grid.

        frames: (n, 3, height, width), uint8 or float32 from 0 to 255. still: the frames are
        images, each of which fills both frames of its patches (section 2.1).
        """
        # A still is cut one frame deep, and the frame is repeated afterwards.
        depth = 1 if still else self.temporal_patch_size
        patches, grid = patchify(frames, self.patch_size, depth, self.merge_size)
        num_patches, channels = len(patches), len(self.image_mean)
        # Each channel has its own mean and spread.
        patches = patches.view(num_patches, channels, depth, -1)  # (P, 3, frames, 14 * 14)
        if still:
            patches = patches.expand(-1, -1, self.temporal_patch_size, -1)
        return self.normalise(patches).flatten(1), grid

    def normalise(self, patches: Tensor) -> Tensor:
        """Pixels (P, channels, frames, 14 * 14) to (value / 255 - mean) / std of the channel."""
        device = patches.device
        mean = torch.tensor(self.image_mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        std = torch.tensor(self.image_std, dtype=torch.float32, device=device).view(-1, 1, 1)
        # In place and in blocks of 256 patches, which stay in the CPU's cache.
        values = empty_float32(tuple(patches.shape), device)
        for source, target in zip(patches.split(256), values.split(256), strict=True):
            target.copy_(source).div_(255).sub_(mean).div_(std)
        return values

    def preprocess(
        self, images: object, videos: None = None, return_tensors: str = "pt", **options: object
    ) -> BatchFeature:
        """The same as calling the processor, under its name in `transformers`.

        videos: None only, since they are given to Qwen2VLProcessor.
        """
        if videos is not None:
            raise ValueError("preprocess takes videos=None only: give videos to Qwen2VLProcessor")
        return self(images, return_tensors, **options)

    def fixed_options(self) -> dict[str, list[object]]:
        """What is settled when it is made; a call may only repeat it. Each with its values."""
        return {
            "patch_size": [self.patch_size],
            "temporal_patch_size": [self.temporal_patch_size],
            "merge_size": [self.merge_size],
            "image_mean": [list(self.image_mean), tuple(self.image_mean)],
            "image_std": [list(self.image_std), tuple(self.image_std)],
            "device": [self.device, str(self.device)],
        }

    def __call__(
        self, images: object, return_tensors: str = "pt", **options: object
    ) -> BatchFeature:
        """Turn images, one or a list, into pixel_values and image_grid_thw.

        These are (P, 1176) and (images, 3). An image is a source or a message item with a
        source. options: any of IMAGE_OPTIONS; those in an item override them.
        """
        if return_tensors != "pt":
            raise ValueError(f"only return_tensors='pt' is supported: got {return_tensors=}")
        options = image_options(options, self.fixed_options())
        # This processor's limits are the weakest defaults.
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        given = flatten_nested(images)
        if not given:
            raise ValueError("an image processor needs at least 1 image: got 0")
        # What is given several times, say for several questions, is opened once.
        first = first_of_same(given)
        opened: dict[int, Image.Image] = {}
        sizes: dict[int, tuple[int, int]] = {}
        for i in sorted(set(first)):
            source, own_options = source_and_options(given[i], "image", [limits], options)
            opened[i] = load_image(source)
            sizes[i] = self.target_size(opened[i].height, opened[i].width, own_options)

        # Images of equal sizes are resized, cut and normalised together.
        patches_of: dict[int, Tensor] = {}
        for indices in self.group_by_size(opened, sizes):
            height, width = sizes[indices[0]]
            resized = self.resize_images([opened[i] for i in indices], height, width)
            values, _ = self.frames_to_patches(resized, still=True)
            parts = values.chunk(len(indices))  # each image has the same number of patches
            patches_of.update(zip(indices, parts, strict=True))

        # Back in the order of the caller.
        pixel_values = concatenate([patches_of[i] for i in first])
        side = self.patch_size
        grids = [(1, sizes[i][0] // side, sizes[i][1] // side) for i in first]
        image_grid_thw = torch.tensor(grids, dtype=torch.long, device="cpu")
        return BatchFeature(pixel_values=pixel_values, image_grid_thw=image_grid_thw)

    def group_by_size(
        self, images: dict[int, Image.Image], new_sizes: dict[int, tuple[int, int]]
    ) -> list[list[int]]:
        """Group the indices of images that have the same size and get the same new size."""
        groups: dict[tuple, list[int]] = {}
        for i, image in images.items():
            both_sizes = (image.size, new_sizes[i])
            groups.setdefault(both_sizes, []).append(i)
        return list(groups.values())


class Qwen2VLImageProcessorFast(Qwen2VLImageProcessor):
    """A Qwen2VLImageProcessor that resizes with torch, on any `device`.

    Pixels may differ from Pillow's by a few of 255 levels. To use it, give it to
    Qwen2VLProcessor.
    """

    def resize_images(self, images: list[Image.Image], height: int, width: int) -> Tensor:
        return torch_resize(images, height, width, self.device)


# ------------------------------------------------------------------------- video to patches


def sample_frames(
    total: int,
    rate: float,
    fps: float = 2.0,
    nframes: float | None = None,
    min_frames: float = 4,
    max_frames: float = 768,
) -> list[int]:
    """Choose n frames of a video's `total`, evenly spread: i * total // n for i < n.

    rate: the video's frames a second. n is `nframes`, rounded to an even number, since two
    frames make a patch, or else what `fps` frames a second give, within the limits and the
    length of the video, rounded down. max_frames wins over min_frames. n is at least 1.
    """
    if nframes is None:
        if not (rate > 0 and 0 < fps < math.inf):
            raise ValueError(
                f"fps {fps} must be above 0 and finite, for a video of {rate} a second"
            )
        # A max_frames below the default of min_frames is all right.
        if min_frames > max(4, max_frames):
            raise ValueError(f"min_frames {min_frames} is above max_frames {max_frames}")
        least = max(1, ceil_by_factor(min_frames, 2))
        wanted = min(max(total / rate * fps, least), max_frames, total)
        n = floor_by_factor(wanted, 2)
    else:
        wanted = nframes
        n = round_by_factor(nframes, 2)
    n = max(1, n)
    if wanted < 1 or n > total:
        raise ValueError(
            f"nframes {wanted:g} does not fit a video of {total} frames: it is at least 1, "
            "rounded to an even number, and at most all frames"
        )
    # They are spread over the whole video.
    return [i * total // n for i in range(n)]


# Default limits of videos, those of qwen-vl-utils.
MIN_FRAME_PIXELS = 128 * 28 * 28
MAX_FRAME_PIXELS = 768 * 28 * 28
TOTAL_PIXELS = 24576 * 28 * 28  # of all frames together


def video_limits(num_frames: int, options: Options) -> Options:
    """The options, with limits of a frame such that all frames stay within total_pixels.

    The rule is that of fetch_video in qwen-vl-utils.
    """
    # A default lower limit never excludes a stated upper one.
    stated_max = options.get("max_pixels")
    min_pixels = options.get("min_pixels", MIN_FRAME_PIXELS)
    if stated_max is not None and "min_pixels" not in options:
        min_pixels = min(min_pixels, stated_max)

    # A frame's share of the total, times 2 since two frames make one patch.
    share = options.get("total_pixels", TOTAL_PIXELS) / num_frames * 2
    max_pixels = min(share, MAX_FRAME_PIXELS if stated_max is None else stated_max)
    # Even a small share leaves some room above the lower limit, but no more than is stated.
    max_pixels = max(max_pixels, int(1.05 * min_pixels))
    if stated_max is not None:
        max_pixels = min(max_pixels, stated_max)
    return {**options, "min_pixels": min_pixels, "max_pixels": max_pixels}


# Of a clip that is sized already, only limits that someone states are kept.
NO_LIMITS = {"min_pixels": 0, "max_pixels": math.inf, "total_pixels": math.inf}


class VideoReader:
    """Reads the frames of one video that the model sees, already resized.

    Its methods answer what `read_video` asks while it decodes: which frames to keep, and in
    which size. Of a list of frames all are kept. options: any of ALL_OPTIONS, checked.
    """

    def __init__(self, processor: Qwen2VLImageProcessor, options: Options) -> None:
        self.processor = processor
        self.options = options
        self.is_given = False  # as frames, not as a file

    def read(self, video: VideoSource) -> Tensor:
        """The frames (n, 3, height, width): uint8, or float32 for a clip of floats."""
        self.is_given = is_frames(video)
        floats = float_frames(video)
        if floats:
            frames = [self.prepare_floats(frame, len(floats)) for frame in floats]
        elif self.is_given:
            frames = read_video(video, self.choose_frames, self.prepare_frame)
        else:
            # Each frame is resized as soon as it is decoded.
            start = self.options.get("video_start", 0)
            end = self.options.get("video_end", math.inf)
            frames = read_video(video, self.choose_frames, self.prepare_frame, start, end)
        sizes = {tuple(frame.shape[2:]) for frame in frames}
        if len(sizes) > 1:
            names = " and ".join(str(size) for size in sizes)
            raise ValueError(f"the frames of {describe(video)} differ in size: {names}")
        return torch.cat(frames)

    def choose_frames(self, total: int, rate: float) -> list[int]:
        """Indices of the frames to keep of `total` frames, `rate` a second.

        They are the frames between video_start and video_end.
        """
        if self.options.get("do_sample_frames") is False:
            return list(range(total))
        settings = {}
        for name in ("fps", "nframes", "min_frames", "max_frames"):
            if name in self.options:
                settings[name] = self.options[name]
        return sample_frames(total, rate, **settings)

    def prepare_frame(self, frame: Image.Image, num_frames: int) -> Tensor:
        """A decoded frame, one of num_frames, as uint8 (1, 3, height, width)."""
        height, width = self.frame_size(frame.height, frame.width, num_frames)
        # By torch also where images are resized by Pillow, as in the reference.
        return torch_resize([frame], height, width, self.processor.device)

    def prepare_floats(self, frame: Tensor, num_frames: int) -> Tensor:
        """A frame (3, height, width) of floats, one of num_frames, as float32 (1, 3, ...)."""
        height, width = self.frame_size(frame.shape[1], frame.shape[2], num_frames)
        return float_resize(frame[None], height, width, self.processor.device)

    def frame_size(self, height: int, width: int, num_frames: int) -> tuple[int, int]:
        """The (height, width) that a frame is resized to; ValueError for a video too large.

        Given frames whose sides are multiples of 28 pixels are taken as sized already, as
        qwen-vl-utils does it: no default limit resizes them a second time.
        """
        factor = self.processor.patch_size * self.processor.merge_size
        options = self.options
        if self.is_given and height % factor == 0 and width % factor == 0:
            options = merged([NO_LIMITS, options])
        options = video_limits(num_frames, options)
        new_height, new_width = self.processor.target_size(height, width, options)

        pairs = math.ceil(num_frames / self.processor.temporal_patch_size)
        num_tokens = pairs * new_height * new_width // factor**2
        if num_tokens > MAX_MEDIA_TOKENS:
            raise ValueError(
                f"a video of {num_frames} frames of {new_width} x {new_height} pixels is "
                f"{num_tokens} tokens, over {MAX_MEDIA_TOKENS}: lower max_pixels, fps or nframes"
            )
        return new_height, new_width


def video_patches(
    processor: Qwen2VLImageProcessor,
    video: object,
    defaults: Sequence[Options] = (),
    options: Options | None = None,
) -> tuple[Tensor, tuple[int, int, int]]:
    """Turn one video into normalised patches (t * h * w, 1176) and their grid (t, h, w).

    video: a source or a message item; defaults and options: as in source_and_options.
    """
    source, own_options = source_and_options(video, "video", defaults, options or {})
    frames = VideoReader(processor, own_options).read(frames_of(source))
    return processor.frames_to_patches(frames)


# ----------------------------------------------------------------------------- the template

IM_START, IM_END, ENDOFTEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
PLACEHOLDERS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
# No text of a user becomes one of these.
CONTROL_TOKENS = [
    IM_START,
    IM_END,
    ENDOFTEXT,
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    *PLACEHOLDERS.values(),
]
# They mark objects and boxes in text. Unlike control tokens they count in a user's text, too,
# and so do the tokens that a finetune has added.
GROUNDING_TOKENS = [
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
]
DEFAULT_SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
ROLES = ("system", "user", "assistant")


class Piece(NamedTuple):
    """A part of a rendered prompt: a control token that the template has inserted, or text."""

    text: str
    is_control: bool


class RenderFlags(NamedTuple):
    """How a conversation is rendered: the options of `render`, in their order."""

    add_generation_prompt: bool
    add_vision_id: bool
    continue_final_message: bool


class Turn(NamedTuple):
    """A parsed message: who speaks, and the items, each with its kind."""

    role: str
    items: list[tuple[str, Item]]


def parse_conversation(conversation: Sequence[Message]) -> list[Turn]:
    """The turns of a conversation; ValueError for what is no message or item.

    A conversation without a system message gets the official one.
    """
    if not isinstance(conversation, (list, tuple)):
        raise ValueError(f"a conversation is a list of messages: got {shorten(conversation)}")
    # All messages first, so that a wrong one is found before anything is rendered.
    turns = [parse_message(message) for message in conversation]
    if turns[0].role != "system":
        turns.insert(0, parse_message(DEFAULT_SYSTEM))
    return turns


def parse_message(message: Message) -> Turn:
    """The role and the items of a message; content that is a string is one item of text."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ValueError(
            f"a message is a dict with the role system, user or assistant: got {shorten(message)}"
        )
    # Content is a string, or a list of items.
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        content = [{"type": "text", "text": content}]
    return Turn(message["role"], [(item_kind(item), item) for item in content])


def item_kind(item: Item) -> str:
    """The kind of an item, "text", "image" or "video", by its type or else by a key.

    ValueError for what is no item, and for an option that would be ignored.
    """
    kind = kind_of_item(item)
    if kind is None or (kind == "text" and not isinstance(item.get("text"), str)):
        raise ValueError(
            f"content is text, or items of type text, image or video: got {shorten(item)}"
        )
    item_options(item, kind)  # only a check: they are read once more with the image or video
    return kind


def render(
    turns: Sequence[Turn],
    add_generation_prompt: bool = False,
    add_vision_id: bool = False,
    continue_final_message: bool = False,
) -> list[Piece]:
    """A conversation as the official Jinja template writes it, in pieces.

    Control tokens are kept apart from text, so that a user who types "<|im_end|>" gets text
    and not a control token. add_vision_id: number the images and videos, "Picture 1: ".
    continue_final_message: end with the last text, which the model continues.
    """
    pieces = []
    counts = {"image": 0, "video": 0}
    if continue_final_message:
        turns = [*turns[:-1], cut_after_text(turns[-1])]
    # <|im_start|>role, the content, <|im_end|> for every turn.
    for role, items in turns:
        pieces.append(Piece(IM_START, is_control=True))
        pieces.append(Piece(role + "\n", is_control=False))
        for kind, item in items:
            if kind == "text":
                pieces.append(Piece(item["text"], is_control=False))
                continue
            # An image or video: a label if asked for, and a placeholder between two marks.
            counts[kind] += 1
            if add_vision_id:
                label = "Picture" if kind == "image" else "Video"
                pieces.append(Piece(f"{label} {counts[kind]}: ", is_control=False))
            pieces.append(Piece(VISION_START, is_control=True))
            pieces.append(Piece(PLACEHOLDERS[kind], is_control=True))
            pieces.append(Piece(VISION_END, is_control=True))
        pieces.append(Piece(IM_END, is_control=True))
        pieces.append(Piece("\n", is_control=False))
    if continue_final_message:
        del pieces[-2:]  # the end of the last turn

    # The beginning of an answer, which the model continues.
    if add_generation_prompt:
        pieces.append(Piece(IM_START, is_control=True))
        pieces.append(Piece("assistant\n", is_control=False))
    return pieces


def cut_after_text(turn: Turn) -> Turn:
    """A turn up to its last text; ValueError if it has none."""
    kinds = [kind for kind, _ in turn.items]
    if "text" not in kinds:
        raise ValueError("continue_final_message: the last message has no text to continue")
    while kinds[-1] != "text":
        kinds.pop()
    return Turn(turn.role, turn.items[: len(kinds)])


def render_text(
    conversation: Sequence[Message], add_generation_prompt: bool, add_vision_id: bool
) -> str:
    """A conversation as the official template writes it, in one string."""
    turns = parse_conversation(conversation)
    return "".join(piece.text for piece in render(turns, add_generation_prompt, add_vision_id))


# ----------------------------------------------------------------------------------- tokens


def split_at_tokens(text: str, tokens: Iterable[str]) -> list[Piece]:
    """Text cut before and after each of the given tokens; those are the control pieces."""
    pattern = "|".join(re.escape(token) for token in tokens)
    pieces = []
    # The group in the pattern makes re.split keep the tokens: text and tokens come in turn.
    is_token = False
    for part in re.split(f"({pattern})", text):
        if part:
            pieces.append(Piece(part, is_token))
        is_token = not is_token
    return pieces


def cut_control_tokens(text: str) -> list[str]:
    """Text cut inside each control token that it spells, so that the tokenizer sees none.

    The cut comes after "<|". There the tokenizer divides text anyway, since punctuation ends
    and a word begins: so the ids are those of the whole text, read as text.
    """
    names = "|".join(re.escape(token.removeprefix("<|")) for token in CONTROL_TOKENS)
    return re.split(f"(?<=<\\|)(?={names})", text)


def expand_placeholders(ids: list[int], counts: Mapping[int, Iterator[int]]) -> list[int]:
    """Repeat each placeholder token once for every token of its image or video.

    counts: by the placeholder's id, how many tokens each image (or video) becomes. A
    placeholder takes the next count, and those that are left are for the rows that follow.
    """
    expanded = []
    for token in ids:
        repeats = next(counts[token]) if token in counts else 1
        expanded += [token] * repeats
    return expanded


def bytes_of_characters() -> dict[str, bytes]:
    """The byte that each character of a byte-level vocabulary stands for.

    GPT-2's tokenizer, and Qwen2's like it, writes every byte as a printable character:
    printable bytes as themselves, the others as the characters from 256 on.
    """
    # The ranges are those of bytes_to_unicode in GPT-2.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): bytes([byte]) for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    for i, byte in enumerate(others):
        table[chr(256 + i)] = bytes([byte])
    return table


BYTE_OF = bytes_of_characters()


class TextStream:
    """Decodes ids one at a time.

    A character that is spread over several tokens is returned whole, with the last of them.
    dropped: tokens that give no text, by default those that end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, dropped: Iterable[str] = (IM_END, ENDOFTEXT)) -> None:
        self.tokenizer = tokenizer
        self.dropped = set(dropped)
        self.added = tokenizer.get_added_tokens_decoder()  # by id; their text is not byte-level
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # keeps unfinished characters

    def push(self, token_id: int) -> str:
        """Return the text that this token completes, "" inside a character.

        U+FFFD for an id without a token, and for a character that another token interrupts.
        """
        token = self.tokenizer.id_to_token(int(token_id))
        if token is None:
            return self.utf8.decode(b"\xff")  # never valid in UTF-8, hence U+FFFD
        if token in self.dropped:
            return ""
        if int(token_id) in self.added:
            return self.utf8.decode(token.encode())
        token_bytes = [BYTE_OF.get(character, character.encode()) for character in token]
        return self.utf8.decode(b"".join(token_bytes))

    def finish(self) -> str:
        """Return what is left at the end: U+FFFD for an unfinished character, else ""."""
        return self.utf8.decode(b"", final=True)

    def read_all(self, ids: Iterable[int]) -> str:
        """Return the whole text of some ids, as if they came one at a time."""
        return "".join(self.push(token_id) for token_id in ids) + self.finish()


# -------------------------------------------------------------------------------- processor


class Qwen2VLProcessor:
    """Turns conversations, or rendered strings and their media, into the model's inputs.

    video_defaults: options of videos, of which later ones override earlier ones.
    max_tokens: a longer prompt is an error. Control tokens in text are plain text; only
    `encode` inserts them.

    The attribute chat_template is None for the official template, which `render` writes; else
    the checkpoint's own, or several by name.
    """

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessor,
        tokenizer: Tokenizer,
        video_defaults: Sequence[Options] = (),
        max_tokens: float = math.inf,
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.video_defaults = video_defaults
        self.max_tokens = max_tokens
        self.source_texts: dict[str, str] = {}  # of the folder it was read from, by filename
        self.chat_template: str | dict[str, str] | None = None
        self.template_variables: dict[str, str | list[str]] = {}
        self.known_templates: dict[str, bool] = {}  # whether they write what `render` writes

        # Ids of the tokens that are no text, by what they are written as: those that are marked
        # as special, and the control tokens in any case.
        self.special_tokens = {}
        ids = {}
        for token_id, token in tokenizer.get_added_tokens_decoder().items():
            ids[token.content] = token_id
            if token.special or token.content in CONTROL_TOKENS:
                self.special_tokens[token.content] = token_id
        # All that is used here must be there.
        needed = [token for token in CONTROL_TOKENS if token != "<|vision_pad|>"]
        needed += GROUNDING_TOKENS
        missing = [token for token in needed if token not in ids]
        if missing:
            raise ValueError(f"this is no tokenizer of Qwen2-VL: it lacks {', '.join(missing)}")
        self.control_ids = {ids[token] for token in CONTROL_TOKENS if token in ids}
        self.eos_token_id = self.special_tokens[IM_END]
        self.pad_token_id = self.special_tokens[ENDOFTEXT]
        self.image_token_id = self.special_tokens[PLACEHOLDERS["image"]]
        self.video_token_id = self.special_tokens[PLACEHOLDERS["video"]]
        # What code for transformers asks its tokenizers for.
        tokenizer.padding_side = "left"
        tokenizer.eos_token = IM_END
        tokenizer.eos_token_id = self.eos_token_id
        tokenizer.pad_token = ENDOFTEXT
        tokenizer.pad_token_id = self.pad_token_id

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        use_fast: bool | None = None,
        official_template: bool = False,
        base: str | os.PathLike | None = None,
    ) -> "Qwen2VLProcessor":
        """The processor of "tiny", a folder, or a Hub repository.

        min_pixels, max_pixels: limits for images and for the frames of videos. use_fast:
        True to resize images with torch, as videos always are, and not with Pillow.
        official_template: whether to leave a chat template of the checkpoint's own aside.
        base: of a LoRA adapter, which the files come from that the adapter lacks.
        """
        folder, adapter = load.find_base_and_adapter(name, base, weights=False)
        if adapter is not None:
            with lora.processor_folder(adapter, folder) as files_of_both:
                return cls.from_pretrained(
                    files_of_both, min_pixels, max_pixels, use_fast, official_template
                )
        given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        of_images, of_videos = load.read_media_config(folder)
        image_processor = Qwen2VLImageProcessor.from_settings(of_images, use_fast, given)
        # Limits of videos: those of a section or file of their own, which most checkpoints
        # don't have, then the caller's. The limits of images are not theirs.
        video_defaults = (of_videos, given)
        # A folder may hold a processor without a model.
        has_model = (folder / "config.json").is_file()
        config = load.read_config(folder) if has_model else {}
        max_tokens = config.get("max_position_embeddings") or math.inf
        processor = cls(image_processor, load.load_tokenizer(folder), video_defaults, max_tokens)
        # The model must know the placeholders by the ids that the tokenizer gives them.
        ids = {
            "image_token_id": processor.image_token_id,
            "video_token_id": processor.video_token_id,
            "vision_start_token_id": processor.special_tokens[VISION_START],
            "vision_end_token_id": processor.special_tokens[VISION_END],
        }
        if has_model:
            check_token_ids(folder / "config.json", config, ids)
        processor.source_texts = processor_files.read_texts(folder)
        if not official_template:
            processor.read_template(folder)
        return processor

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write all files of a processor, beside which a saved model is a whole checkpoint.

        What was read from a folder, say its chat template, is written as it was.
        """
        texts = processor_files.all_texts(
            self.tokenizer,
            self.source_texts,
            self.image_processor.settings(),
            self.video_defaults,
            {"eos_token": IM_END, "pad_token": ENDOFTEXT},
            self.max_tokens,
            TOTAL_PIXELS,
        )
        processor_files.save_files(Path(folder), texts)

    def read_template(self, folder: Path) -> None:
        """Take the chat template of a folder, if it has one."""
        config = load.read_json(folder, "tokenizer_config.json", optional=True)
        older_roles = load.read_json(folder, "special_tokens_map.json", optional=True)
        self.chat_template = read_templates(folder, config)
        self.template_variables = role_texts(config, older_roles, str(folder))

    def text_stream(self) -> TextStream:
        """A decoder for one row of generated ids, to print them as they come."""
        return TextStream(self.tokenizer)

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Turn pieces into ids.

        Text is collected up to the next control token, since the tokenizer may merge
        characters across the border of two pieces.
        """
        ids = []
        text = ""
        # A control token is an id of its own and ends the text before it.
        for piece_text, is_control in pieces:
            if not is_control:
                text += piece_text
                continue
            ids += self.encode_text(text)
            ids.append(self.special_tokens[piece_text])
            text = ""
        return ids + self.encode_text(text)

    def encode_text(self, text: str) -> list[int]:
        """Turn text into ids. Control tokens in it stay text; other added tokens count."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text has half a surrogate pair at character {error.start}: "
                "surrogates not allowed"
            ) from error
        self.reset_tokenizer()
        ids = []
        for part in cut_control_tokens(text):
            ids += self.tokenizer.encode(part, add_special_tokens=False).ids
        # A tokenizer may change text before it reads it. What it makes of it, no control token.
        if not self.control_ids.isdisjoint(ids):
            raise ValueError(f"this tokenizer makes control tokens of the text {shorten(text)}")
        return ids

    def reset_tokenizer(self) -> None:
        """Undo what some program may have set in the tokenizer: none of it is obeyed here."""
        # Only what is set, so that several threads can use one tokenizer.
        if self.tokenizer.truncation is not None:
            self.tokenizer.no_truncation()
        if self.tokenizer.padding is not None:
            self.tokenizer.no_padding()
        # The library's name misleads: with True a "<|box_start|>" in a string is plain text.
        if self.tokenizer.encode_special_tokens:
            self.tokenizer.encode_special_tokens = False

    def apply_chat_template(
        self,
        conversation: Sequence,
        chat_template: str | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        add_vision_id: bool = False,
        return_dict: bool = False,
        video_fps: float | None = None,
        padding: bool | str = True,
        return_tensors: str = "pt",
        **options: object,
    ) -> str | list[str] | Tensor | BatchFeature:
        """Render one conversation or a list of them, and turn them into the model's inputs.

        The arguments are those of `transformers`. Without `tokenize` returns a string or a
        list of strings, with it input_ids (B, T), with `return_dict` as well all that the
        model takes. add_generation_prompt: end with the beginning of an answer.
        continue_final_message: end with the last text, which the model continues.
        chat_template: one in place of the checkpoint's, or the name of one of those. video_fps:
        the option fps. options: any of ALL_OPTIONS, for all images and videos; fps may be a
        list of one for each video.
        """
        if video_fps is not None:
            if options.get("fps") is not None:
                raise ValueError("video_fps and fps are the same option: state one of them")
            options["fps"] = video_fps
        options = check_options(padding, return_tensors, options, "apply_chat_template")
        if add_generation_prompt and continue_final_message:
            raise ValueError("add_generation_prompt and continue_final_message exclude each other")
        is_list = isinstance(conversation, (list, tuple))
        if not is_list or not conversation or not all(conversation):
            raise ValueError(
                f"a conversation is a list of at least 1 message: got {shorten(conversation)}"
            )
        is_batch = isinstance(conversation[0], (list, tuple))
        conversations = conversation if is_batch else [conversation]

        # A batch of prompts: parsed once, then rendered.
        prompts = [parse_conversation(messages) for messages in conversations]
        flags = RenderFlags(add_generation_prompt, add_vision_id, continue_final_message)
        rows = self.render_rows(conversations, prompts, flags, chat_template)
        if not tokenize:
            texts = ["".join(piece.text for piece in row) for row in rows]
            return texts if is_batch else texts[0]

        # Images and videos in the order of their placeholders.
        items = [pair for turns in prompts for turn in turns for pair in turn.items]
        images = [item for kind, item in items if kind == "image"]
        videos = [item for kind, item in items if kind == "video"]
        inputs = self.batch(rows, images, videos, options)
        return inputs if return_dict else inputs["input_ids"]

    def render_rows(
        self,
        conversations: Sequence[Sequence[Message]],
        prompts: Sequence[list[Turn]],
        flags: RenderFlags,
        chat_template: str | None = None,
    ) -> list[list[Piece]]:
        """Conversations as the chat template writes them, in pieces.

        prompts: the same, parsed. chat_template: as in apply_chat_template.
        """
        template = choose_template(self.chat_template, chat_template)
        if template is None or self.is_official(template):
            return [render(turns, *flags) for turns in prompts]
        return self.render_template(template, conversations, prompts, flags)

    def is_official(self, template: str) -> bool:
        """Whether a chat template writes what `render` writes."""
        if template not in self.known_templates:
            variables = self.template_variables
            same = writes_the_same(template, variables, render_text)
            self.known_templates[template] = same
        return self.known_templates[template]

    def render_template(
        self,
        template: str,
        conversations: Sequence[Sequence[Message]],
        prompts: Sequence[list[Turn]],
        flags: RenderFlags,
    ) -> list[list[Piece]]:
        """Conversations as another template than the official one writes them, in pieces.

        prompts: the same, parsed. A template is a program, which runs in a process of its own;
        ValueError if it fails there.
        """
        plain = []
        for messages, turns in zip(conversations, prompts, strict=True):
            # Without the official system message, if it was inserted.
            items = [turn.items for turn in turns[-len(messages) :]]
            plain.append(plain_messages(messages, items))
        variables: dict[str, object] = dict(self.template_variables)
        variables.update(template_variables(flags.add_generation_prompt, flags.add_vision_id))
        rows = render_conversations(
            template, plain, variables, CONTROL_TOKENS, flags.continue_final_message
        )
        return [[Piece(*piece) for piece in row] for row in rows]

    def __call__(
        self,
        text: str | Sequence[str],
        images: object = None,
        videos: object = None,
        video_metadata: object = None,
        padding: bool | str = True,
        return_tensors: str = "pt",
        **options: object,
    ) -> BatchFeature:
        """Turn rendered strings and their images and videos into the model's inputs.

        Control tokens in these strings count, so they must not hold what a user wrote: for
        that there is apply_chat_template. images, videos: one or a list, in the order of
        the placeholders, or a list for each text. A video is a source, a list or an array of
        frames, or such an array and its description. video_metadata: such descriptions, which
        change nothing. options: any of ALL_OPTIONS; fps may be a list of one for each video.
        """
        options = check_options(padding, return_tensors, options, "the processor")
        texts = [text] if isinstance(text, str) else text
        is_list = isinstance(texts, (list, tuple))
        if not is_list or not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError(
                f"text must be a string or a list of at least 1 string: got {shorten(text)}"
            )
        image_list = [] if images is None else flatten_nested(images)
        video_list = list_videos(videos)
        check_metadata(video_metadata, len(video_list))
        rows = [split_at_tokens(one, CONTROL_TOKENS) for one in texts]
        return self.batch(rows, image_list, video_list, options)

    def batch(
        self, rows: Sequence[Iterable[Piece]], images: list, videos: list, options: Options
    ) -> BatchFeature:
        """Turn rows of pieces and their media, in order, into the model's inputs.

        Returns input_ids and attention_mask (B, T), padded on the left; where there are
        images pixel_values (P, 1176) and image_grid_thw (images, 3); where there are videos
        pixel_values_videos and video_grid_thw.
        """
        # Count the placeholders first, before any image is opened.
        ids = [self.encode(row) for row in rows]
        self.check_count(ids, self.image_token_id, "image", len(images))
        self.check_count(ids, self.video_token_id, "video", len(videos))
        video_options = options_of_videos(options, len(videos))
        inputs = BatchFeature()
        if images:
            inputs.update(self.image_processor(images, **options_of_images(options)))
        if videos:
            inputs.update(self.process_videos(videos, video_options))

        # Then each placeholder as often as its image or video has tokens.
        counts = {}
        if images:
            counts[self.image_token_id] = iter(self.token_counts(inputs["image_grid_thw"]))
        if videos:
            counts[self.video_token_id] = iter(self.token_counts(inputs["video_grid_thw"]))
        expanded = [expand_placeholders(row, counts) for row in ids]
        inputs["input_ids"], inputs["attention_mask"] = self.pad(expanded)
        return inputs

    def token_counts(self, grid_thw: Tensor) -> list[int]:
        """How many tokens each image or video becomes; grid_thw: (images, 3) in patches."""
        patches_per_token = self.image_processor.merge_size**2
        return (grid_thw.prod(-1) // patches_per_token).tolist()

    def check_count(self, ids: list[list[int]], placeholder: int, kind: str, given: int) -> None:
        """ValueError unless the prompts have a placeholder for each image (or video) given."""
        # Over the whole batch, since media are given for all rows together.
        found = sum(row.count(placeholder) for row in ids)
        if found != given:
            raise ValueError(f"{kind} placeholders in the prompt: {found}, {kind}s given: {given}")

    def process_videos(self, videos: list, options: list[Options]) -> BatchFeature:
        """Turn videos into pixel_values_videos (P, 1176) and video_grid_thw (videos, 3).

        options: of each video.
        """
        patches: list[Tensor] = []
        grids: list[tuple[int, int, int]] = []
        # What is given several times with the same options is opened once.
        given = list(zip(videos, options, strict=True))
        first = first_of_same([{"video": video, "options": own} for video, own in given])
        for i, (video, own) in enumerate(given):
            if first[i] < i:
                values, grid = patches[first[i]], grids[first[i]]
            else:
                values, grid = video_patches(self.image_processor, video, self.video_defaults, own)
            patches.append(values)
            grids.append(grid)
        video_grid_thw = torch.tensor(grids, dtype=torch.long, device="cpu")
        return BatchFeature(pixel_values_videos=concatenate(patches), video_grid_thw=video_grid_thw)

    def pad(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Turn rows of ids into input_ids and attention_mask (B, T).

        Padding is on the left, so that every row ends with the last token of its prompt,
        where generation continues.
        """
        side = getattr(self.tokenizer, "padding_side", "left")
        if side != "left":
            raise ValueError(f"tokenizer.padding_side is {side!r}, only 'left' can be done here")
        # The longest row decides, and must fit the model.
        length = max(len(row) for row in ids)
        if length > self.max_tokens:
            raise ValueError(
                f"the prompt has {length} tokens, this model reads at most {self.max_tokens}: "
                "lower max_pixels, fps or nframes"
            )
        input_ids, attention_mask = [], []
        for row in ids:
            missing = length - len(row)
            input_ids.append([self.pad_token_id] * missing + row)
            attention_mask.append([0] * missing + [1] * len(row))
        mask = torch.tensor(attention_mask, dtype=torch.long, device="cpu")
        return torch.tensor(input_ids, dtype=torch.long, device="cpu"), mask

    def decode(
        self,
        ids: Iterable[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Turn one row of ids into text; skip_special_tokens leaves out control tokens."""
        dropped = self.special_tokens if skip_special_tokens else ()
        text = TextStream(self.tokenizer, dropped).read_all(ids)
        if clean_up_tokenization_spaces:  # " ." to ".", " n't" to "n't" ..., as the reference does
            text = re.sub(" ([.?!,])", r"\1", text)
            text = text.replace(" ' ", "'")
            text = re.sub(" (n't|'m|'s|'ve|'re)", r"\1", text)
        return text

    def batch_decode(
        self,
        ids: Iterable[Iterable[int]],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[str]:
        """Turn rows of ids (B, T) into texts, with the options of `decode`."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
