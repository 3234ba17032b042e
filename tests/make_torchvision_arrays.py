"""Writes torchvision_arrays.npz: what transformers' torchvision-based processors make of torchvision_inputs.

Beside the CPU build of torch, torchvision breaks the import of transformers, so none of this project's extras
has it. To run this script, make an environment of its own:

    python -m venv venv-torchvision && . venv-torchvision/bin/activate
    pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    pip install transformers==4.57.6 numpy pillow
    pip install --no-deps torchvision==0.28.0
    python tests/make_torchvision_arrays.py

torchvision's compiled operators need not load: the transforms are plain Python once two schemas are known.
"""

import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import library
from torchvision_inputs import Case, clips, lengths, pictures

OPERATORS = library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # noqa: E402
from transformers.models.qwen2_vl.image_processing_qwen2_vl_fast import Qwen2VLImageProcessorFast  # noqa: E402
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor  # noqa: E402


def process(case: Case, video: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's patches (P, D) and grid (3,)."""
    # Always as `size`: other arguments would be written into a dict that all instances share.
    size = dict(zip(("shortest_edge", "longest_edge"), case.limits, strict=True))
    if video:
        made = Qwen2VLVideoProcessor(size=size)(videos=[case.draw()], return_tensors="pt")
        return made["pixel_values_videos"], made["video_grid_thw"][0]
    made = Qwen2VLImageProcessorFast(size=size)(case.draw(), return_tensors="pt")
    return made["pixel_values"], made["image_grid_thw"][0]


def main() -> None:
    assert transformers.__version__ == "4.57.6", transformers.__version__
    arrays = {}
    for kind, cases in (("picture", pictures()), ("clip", clips())):
        grids, values, checks = [], [], []
        for case in cases:
            patches, grid = process(case, kind == "clip")
            grids.append(grid.numpy())
            values.append(patches.flatten().numpy()[case.places(patches.numel())])
            checks.append(zlib.crc32(b"".join(frame.tobytes() for frame in case.draw())))
        arrays[f"{kind}_grids"] = np.array(grids, np.int32)
        arrays[f"{kind}_values"] = np.array(values, np.float32)
        arrays[f"{kind}_inputs"] = np.array(checks, np.uint32)
    processor, found = Qwen2VLVideoProcessor(size={"shortest_edge": 784, "longest_edge": 78400}), []
    for total, rate, option in lengths():
        metadata = SimpleNamespace(total_num_frames=total, fps=rate)
        asked = {"num_frames" if key == "nframes" else key: value for key, value in option.items()}
        found.append(processor.sample_frames(metadata, **asked).numpy())
    arrays["index_counts"] = np.array([len(one) for one in found], np.int32)
    arrays["index_steps"] = np.concatenate([np.diff(one, prepend=0) for one in found])  # these pack well
    path = Path(__file__).with_name("torchvision_arrays.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes", {key: value.shape for key, value in arrays.items()})


if __name__ == "__main__":
    main()
