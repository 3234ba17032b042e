"""What notebook 07 borrows from transformers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import course
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from processor import Qwen2VLImageProcessor, sample_frames
from tests.helpers.torchvision_inputs import lengths

ARRAYS = course.ROOT / "tests" / "helpers" / "torchvision_arrays.npz"


class Sampled(NamedTuple):
    """Which frames the reference reads, of `total` frames at `rate` a second."""

    total: int
    rate: float
    options: dict
    frames: list[int]


def sampled_frames() -> Iterator[Sampled]:
    """What `transformers` with torchvision gave, from the arrays that the tests keep.

    Left out are videos of more than 16,384 frames, where the reference's float32 may be a frame
    ahead, and those where it reads one frame more or fewer than it meant to.
    """
    stored = np.load(ARRAYS)
    ends = np.cumsum(stored["index_counts"])
    steps_of_videos = np.split(stored["index_steps"], ends[:-1])
    for (total, rate, options), steps in zip(lengths(), steps_of_videos, strict=True):
        if total <= 16384 and len(steps) == len(sample_frames(total, rate, **options)):
            yield Sampled(total, rate, options, np.cumsum(steps).tolist())


def patches(image_processor: Qwen2VLImageProcessor, frames: Sequence[Image.Image]) -> Tensor:
    """The patches (P, 1176) that `transformers` cuts from frames that need no resize."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import (
        Qwen2VLImageProcessor as Theirs,
    )

    mean, std = image_processor.image_mean, image_processor.image_std
    theirs = Theirs(image_mean=mean, image_std=std)
    values, _ = theirs._preprocess(
        list(frames),
        do_resize=False,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=mean,
        image_std=std,
        patch_size=image_processor.patch_size,
        temporal_patch_size=image_processor.temporal_patch_size,
        merge_size=image_processor.merge_size,
    )
    return torch.from_numpy(values)
