"""Writes torchvision_arrays.npz: what the torchvision-based processors of transformers give.

Beside the CPU build of torch, torchvision breaks the import of transformers, so none of this
project's extras has it. To run this script, make an environment of its own:

    python -m venv venv-torchvision && . venv-torchvision/bin/activate
    pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    pip install transformers==4.57.6 numpy pillow
    pip install --no-deps torchvision==0.28.0
    python tests/helpers/make_torchvision_arrays.py

torchvision's compiled operators need not load: its transforms are plain Python once the schemas of
two operators are known.
"""

import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import library

# Beside this script: it runs by its path, and in an environment without this project.
from torchvision_inputs import Case, images, lengths, videos

OPERATORS = library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # noqa: E402
from transformers.models.qwen2_vl.image_processing_qwen2_vl_fast import Qwen2VLImageProcessorFast  # noqa: E402
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor  # noqa: E402


def process(case: Case, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's patches (P, 1176) and grid (3,) of an image or a video."""
    # Always as `size`: other arguments would be written into a dict that all instances share.
    min_pixels, max_pixels = case.limits
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    if kind == "video":
        output = Qwen2VLVideoProcessor(size=size)(videos=[case.draw()], return_tensors="pt")
        return output["pixel_values_videos"], output["video_grid_thw"][0]
    output = Qwen2VLImageProcessorFast(size=size)(case.draw(), return_tensors="pt")
    return output["pixel_values"], output["image_grid_thw"][0]


def process_all(cases: list[Case], kind: str) -> dict[str, np.ndarray]:
    """Grids, a sample of the values, and checksums of the inputs."""
    grids, values, checksums = [], [], []
    for case in cases:
        patches, grid = process(case, kind)
        grids.append(grid.numpy())
        values.append(patches.flatten().numpy()[case.sample_indices(patches.numel())])
        pixels = b"".join(frame.tobytes() for frame in case.draw())
        checksums.append(zlib.crc32(pixels))
    return {
        f"{kind}_grids": np.array(grids, np.int32),
        f"{kind}_values": np.array(values, np.float32),
        f"{kind}_inputs": np.array(checksums, np.uint32),
    }


def sample_all() -> dict[str, np.ndarray]:
    """The reference's frame indices of every length: how many, and their differences."""
    processor = Qwen2VLVideoProcessor(size={"shortest_edge": 784, "longest_edge": 78400})
    counts, steps = [], []
    for total, rate, option in lengths():
        metadata = SimpleNamespace(total_num_frames=total, fps=rate)
        if "nframes" in option:
            indices = processor.sample_frames(metadata, num_frames=option["nframes"])
        else:
            indices = processor.sample_frames(metadata, fps=option["fps"])
        counts.append(len(indices))
        steps.append(np.diff(indices.numpy(), prepend=0))  # differences pack well
    return {"index_counts": np.array(counts, np.int32), "index_steps": np.concatenate(steps)}


def main() -> None:
    assert transformers.__version__ == "4.57.6", transformers.__version__
    arrays = process_all(images(), "image")
    arrays.update(process_all(videos(), "video"))
    arrays.update(sample_all())
    path = Path(__file__).with_name("torchvision_arrays.npz")
    np.savez_compressed(path, **arrays)
    shapes = {name: array.shape for name, array in arrays.items()}
    print(f"{path.name}: {path.stat().st_size} bytes", shapes)


if __name__ == "__main__":
    main()
