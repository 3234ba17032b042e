"""Fast images, videos and frame indices against the torchvision-based processors of transformers.

Those of 4.57.6 cannot run beside the CPU build of torch: helpers/make_torchvision_arrays.py stored
what they give for the inputs in helpers/torchvision_inputs.py, 2,000 values of each output. One of
255 levels is at most 0.0150 after normalising.
"""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor

import processor as P
from processor import Qwen2VLImageProcessor, Qwen2VLImageProcessorFast
from tests.helpers import torchvision_inputs
from tests.helpers.torchvision_inputs import FRAME_LIMITS, Case

TOLERANCE = 2e-2
CASES = {"image": torchvision_inputs.images(), "video": torchvision_inputs.videos()}
ARRAYS = Path(torchvision_inputs.__file__).with_name("torchvision_arrays.npz")


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    """What the reference's processors gave."""
    with np.load(ARRAYS) as arrays:
        return dict(arrays)


# ------------------------------------------------------------------------------------ pixel values


def control_tokenizer() -> Tokenizer:
    """A tokenizer that knows control tokens and no words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens([P.IM_START, P.IM_END, P.ENDOFTEXT])
    tokenizer.add_special_tokens([P.VISION_START, P.VISION_END])
    tokenizer.add_special_tokens([*P.PLACEHOLDERS.values(), *P.GROUNDING_TOKENS])
    return tokenizer


def process(kind: str, case: Case, image_processor: Qwen2VLImageProcessor) -> tuple[Tensor, list]:
    """Our patches (P, 1176) of an image or a video, and their grid [t, h, w]."""
    min_pixels, max_pixels = case.limits
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if kind == "image":
        output = image_processor(case.draw()[0], **limits)
        return output["pixel_values"], output["image_grid_thw"][0].tolist()

    # Where the limits are the reference's own, ours are tested as well: none are given.
    if case.limits == FRAME_LIMITS:
        limits = {}
    processor = P.Qwen2VLProcessor(image_processor, control_tokenizer())
    output = processor(text=P.PLACEHOLDERS["video"], videos=[case.draw()], **limits)
    return output["pixel_values_videos"], output["video_grid_thw"][0].tolist()


def measure_errors(
    stored: dict[str, np.ndarray],
    kind: str,
    image_processor: Qwen2VLImageProcessor,
    spoil: Callable[[Tensor], Tensor] | None = None,
) -> list[float]:
    """max |ours - reference| of each case, over the values that are stored.

    The grids must be equal. spoil: a deliberate mistake, made on our patches.
    """
    grids = stored[f"{kind}_grids"].tolist()
    samples = stored[f"{kind}_values"]
    errors = []
    for case, grid, values in zip(CASES[kind], grids, samples, strict=True):
        patches, our_grid = process(kind, case, image_processor)
        assert our_grid == grid, f"{case}: grid {our_grid}, the reference has {grid}"
        if spoil is not None:
            patches = spoil(patches)
        sample = patches.flatten().numpy()[case.sample_indices(patches.numel())]
        errors.append(float(np.abs(sample - values).max()))
    return errors


def summary(kind: str, errors: list[float]) -> str:
    """The errors in a line: how large, how many above the tolerance, and the worst case."""
    over = sum(error > TOLERANCE for error in errors)
    worst = CASES[kind][int(np.argmax(errors))]
    return (
        f"max |difference| {max(errors):.3g}, over {TOLERANCE} in {over} of {len(errors)} {kind}s; "
        f"worst {worst}"
    )


@pytest.mark.parametrize(("kind", "least"), [("image", 60), ("video", 30)])
def test_inputs_are_those_that_the_arrays_were_made_from(stored, kind, least):
    checksums = []
    for case in CASES[kind]:
        pixels = b"".join(frame.tobytes() for frame in case.draw())
        checksums.append(zlib.crc32(pixels))
    assert checksums == stored[f"{kind}_inputs"].tolist(), "run make_torchvision_arrays.py again"
    assert len(checksums) >= least
    if kind == "video":  # odd numbers of frames and even ones
        assert {case.frames for case in CASES[kind]} >= set(range(1, 14))


def test_fast_pixel_values_equal_the_torchvision_based_reference(stored, figure):
    errors = measure_errors(stored, "image", Qwen2VLImageProcessorFast())
    worst = figure("Fast against torchvision, error (highest of 80)", max(errors))
    assert worst <= TOLERANCE, summary("image", errors)


def test_videos_of_the_fast_processor_equal_the_reference_video_processor(stored, figure):
    errors = measure_errors(stored, "video", Qwen2VLImageProcessorFast())
    worst = figure("videos against torchvision, error (highest of 36)", max(errors))
    assert worst <= TOLERANCE, summary("video", errors)


def test_videos_of_the_default_processor_equal_the_reference_video_processor(stored, figure):
    errors = measure_errors(stored, "video", Qwen2VLImageProcessor())
    worst = figure("videos against torchvision, error (highest of 36)", max(errors))
    assert worst <= TOLERANCE, summary("video", errors)


# ------------------------------------------------------------------------------- negative controls


def swap_height_and_width(patches: Tensor) -> Tensor:
    """The four patches of each 2 x 2 square, column by column."""
    squares = patches.view(-1, 2, 2, patches.shape[1])
    return squares.transpose(1, 2).reshape(patches.shape)


def swap_frames(patches: Tensor) -> Tensor:
    """The two frames of each patch, exchanged."""
    frames = patches.view(len(patches), 3, 2, -1)
    return frames.flip(2).reshape(patches.shape)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_patches_in_another_order_miss(stored, kind):
    errors = measure_errors(stored, kind, Qwen2VLImageProcessorFast(), swap_height_and_width)
    assert min(errors) >= 50 * TOLERANCE, f"least {min(errors):.3g}"
    assert max(errors) >= 100 * TOLERANCE, summary(kind, errors)


def test_frames_in_another_order_miss(stored):
    errors = measure_errors(stored, "video", Qwen2VLImageProcessorFast(), swap_frames)
    moving = []
    for error, case in zip(errors, CASES["video"], strict=True):
        if case.frames > 1:
            moving.append(error)
    assert min(moving) >= 50 * TOLERANCE, f"least {min(moving):.3g}"


@pytest.mark.parametrize("kind", ["image", "video"])
def test_resizing_without_antialias_misses(stored, kind, monkeypatch):
    interpolate = torch.nn.functional.interpolate

    def without_antialias(frames, size, mode, antialias):
        return interpolate(frames.float(), size, mode=mode)

    monkeypatch.setattr(torch.nn.functional, "interpolate", without_antialias)
    errors = measure_errors(stored, kind, Qwen2VLImageProcessorFast())

    # It shows where an image shrinks.
    shrunk = []
    grids = stored[f"{kind}_grids"].tolist()
    for case, (_, h, w), error in zip(CASES[kind], grids, errors, strict=True):
        if min(14 * h / case.height, 14 * w / case.width) < 0.8:
            shrunk.append(error)
    assert len(shrunk) >= 10
    assert min(shrunk) >= 10 * TOLERANCE, f"least {min(shrunk):.3g} of {len(shrunk)} shrunk"
    assert max(errors) >= 90 * TOLERANCE, summary(kind, errors)


# ----------------------------------------------------------------------------------- frame indices


def compared_indices(stored: dict[str, np.ndarray]) -> list[tuple[int, list[int], list[int]]]:
    """(frames of the video, our indices, the reference's), where both are of one number."""
    ends = np.cumsum(stored["index_counts"])[:-1]
    all_steps = np.split(stored["index_steps"], ends)
    rows = []
    for (total, rate, option), steps in zip(torchvision_inputs.lengths(), all_steps, strict=True):
        ours = P.sample_frames(total, rate, **option)
        theirs = np.cumsum(steps).tolist()
        if len(ours) == len(theirs):
            rows.append((total, ours, theirs))
    return rows


def test_frame_indices_equal_the_reference_in_videos_of_up_to_16384_frames(stored):
    rows = [row for row in compared_indices(stored) if row[0] <= 16384]
    different = [total for total, ours, theirs in rows if ours != theirs]
    assert not different, f"{len(different)} of {len(rows)} videos differ: {different[:3]} frames"
    assert len(rows) >= 400, f"compared {len(rows)}"


def test_in_longer_videos_the_reference_is_at_most_a_frame_ahead(stored):
    """It counts in float32, where 17003.998 is 17004; the exact quotient lies in frame 17003."""
    rows = [row for row in compared_indices(stored) if row[0] > 16384]
    ahead = []
    for _, ours, theirs in rows:
        for a, b in zip(ours, theirs, strict=True):
            ahead.append(b - a)
    assert len(rows) >= 10
    assert set(ahead) <= {0, 1}, f"{len(rows)} videos, ahead by {min(ahead)} to {max(ahead)}"
