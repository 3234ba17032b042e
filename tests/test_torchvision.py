"""Fast pictures, clips and frame indices against the torchvision-based processors of transformers 4.57.6.

Those cannot run beside the CPU build of torch: make_torchvision_arrays.py stored what they make of the inputs
in torchvision_inputs.py, of each output 2,000 values. One of 255 levels is at most 0.0150 after normalising.
"""

import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torchvision_inputs import FRAME_LIMITS, Case, clips, lengths, pictures

import processor as P

BAR = 2e-2
CASES = {"picture": pictures(), "clip": clips()}


@cache
def stored() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("torchvision_arrays.npz")) as arrays:
        return dict(arrays)


@cache
def tokenizer() -> Tokenizer:
    """Knows control tokens and no words."""
    made = Tokenizer(models.BPE())
    made.add_special_tokens([P.IM_START, P.IM_END, P.PAD, P.VISION_START, P.VISION_END])
    made.add_special_tokens([*P.SLOTS.values(), *P.GROUNDING])
    return made


def process(kind: str, case: Case, processor: P.Qwen2VLImageProcessor) -> tuple[torch.Tensor, list[int]]:
    """Our patches (P, D) and their grid; a clip within the reference's own limits is given none."""
    limits = dict(zip(("min_pixels", "max_pixels"), case.limits, strict=True))
    if kind == "picture":
        made = processor(case.draw()[0], **limits)
        return made["pixel_values"], made["image_grid_thw"][0].tolist()
    limits = {} if case.limits == FRAME_LIMITS else limits
    whole = P.Qwen2VLProcessor(processor, tokenizer())
    made = whole(text=P.SLOTS["video"], videos=[case.draw()], **limits)
    return made["pixel_values_videos"], made["video_grid_thw"][0].tolist()


def errors(kind: str, processor: P.Qwen2VLImageProcessor, spoil=lambda patches, grid: patches) -> list[float]:
    """max |ours - reference| of each case, over the values that are stored; the grids must be equal."""
    grids, samples, found = stored()[f"{kind}_grids"].tolist(), stored()[f"{kind}_values"], []
    for case, grid, values in zip(CASES[kind], grids, samples, strict=True):
        patches, ours = process(kind, case, processor)
        assert ours == grid, f"{case}: grid {ours}, the reference has {grid}"
        sample = spoil(patches, ours).flatten().numpy()[case.places(patches.numel())]
        found.append(float(np.abs(sample - values).max()))
    return found


def report(kind: str, found: list[float]) -> str:
    over = sum(error > BAR for error in found)
    worst = CASES[kind][int(np.argmax(found))]
    return f"max |difference| {max(found):.3g}, over {BAR} in {over} of {len(found)} {kind}s; worst {worst}"


@pytest.mark.parametrize("kind, least", [("picture", 60), ("clip", 30)])
def test_inputs_are_those_that_the_arrays_were_made_from(kind, least):
    drawn = [zlib.crc32(b"".join(frame.tobytes() for frame in case.draw())) for case in CASES[kind]]
    assert drawn == stored()[f"{kind}_inputs"].tolist(), "run make_torchvision_arrays.py again"
    assert len(drawn) >= least
    if kind == "clip":
        assert {case.frames for case in CASES[kind]} >= set(range(1, 14)), "odd counts and even ones"


def test_fast_pixel_values_equal_the_torchvision_based_reference(figure):
    found = errors("picture", P.Qwen2VLImageProcessorFast())
    assert figure("Fast against torchvision, error (most of 80)", max(found)) <= BAR, report("picture", found)


def test_clips_of_the_fast_processor_equal_the_reference_video_processor(figure):
    found = errors("clip", P.Qwen2VLImageProcessorFast())
    assert figure("clips against torchvision, error (most of 36)", max(found)) <= BAR, report("clip", found)


def test_clips_of_the_default_processor_equal_the_reference_video_processor(figure):
    found = errors("clip", P.Qwen2VLImageProcessor())
    assert figure("clips against torchvision, error (most of 36)", max(found)) <= BAR, report("clip", found)


def swap_height_and_width(patches: torch.Tensor, grid: list[int]) -> torch.Tensor:
    """The four patches of each block column by column."""
    return patches.view(-1, 2, 2, patches.shape[1]).transpose(1, 2).reshape(patches.shape)


def swap_frames(patches: torch.Tensor, grid: list[int]) -> torch.Tensor:
    """The two frames of each patch exchanged."""
    return patches.view(len(patches), 3, 2, -1).flip(2).reshape(patches.shape)


@pytest.mark.parametrize("kind", ["picture", "clip"])
def test_patches_in_another_order_miss(kind):
    found = errors(kind, P.Qwen2VLImageProcessorFast(), swap_height_and_width)
    assert min(found) >= 50 * BAR and max(found) >= 100 * BAR, (
        f"least {min(found):.3g}, {report(kind, found)}"
    )


def test_frames_in_another_order_miss():
    found = errors("clip", P.Qwen2VLImageProcessorFast(), swap_frames)
    moving = [error for error, case in zip(found, CASES["clip"], strict=True) if case.frames > 1]
    assert min(moving) >= 50 * BAR, f"least {min(moving):.3g}"


@pytest.mark.parametrize("kind", ["picture", "clip"])
def test_resizing_without_antialias_misses(kind, monkeypatch):
    real = torch.nn.functional.interpolate
    plain = lambda x, size, mode, antialias: real(x.float(), size, mode=mode)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "interpolate", plain)
    found = errors(kind, P.Qwen2VLImageProcessorFast())
    cases = zip(CASES[kind], stored()[f"{kind}_grids"].tolist(), found, strict=True)
    shrunk = [e for case, (_, h, w), e in cases if min(14 * h / case.height, 14 * w / case.width) < 0.8]
    assert len(shrunk) >= 10 and min(shrunk) >= 10 * BAR, f"least {min(shrunk):.3g} of {len(shrunk)} shrunk"
    assert max(found) >= 90 * BAR, report(kind, found)


def indices() -> list[tuple[int, list[int], list[int]]]:
    """(frames of the clip, our indices, the reference's), where both are of one number."""
    ends, rows = np.cumsum(stored()["index_counts"])[:-1], []
    for (total, rate, asked), steps in zip(lengths(), np.split(stored()["index_steps"], ends), strict=True):
        ours, theirs = P.sample_frames(total, rate, **asked), np.cumsum(steps).tolist()
        rows += [(total, ours, theirs)] if len(ours) == len(theirs) else []
    return rows


def test_frame_indices_equal_the_reference_in_clips_of_up_to_16384_frames():
    rows = [row for row in indices() if row[0] <= 16384]
    differ = [total for total, ours, theirs in rows if ours != theirs]
    assert not differ, f"{len(differ)} of {len(rows)} clips differ, the first has {differ[0]} frames"
    assert len(rows) >= 400, f"compared {len(rows)}"


def test_in_longer_clips_the_reference_is_at_most_a_frame_ahead():
    """It counts in float32, where 17003.998 is 17004; the exact quotient lies in frame 17003."""
    rows = [row for row in indices() if row[0] > 16384]
    ahead = [b - a for _, ours, theirs in rows for a, b in zip(ours, theirs, strict=True)]
    assert len(rows) >= 10 and set(ahead) <= {0, 1}, (
        f"{len(rows)} clips, ahead by {min(ahead)} to {max(ahead)}"
    )
