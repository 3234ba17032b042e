"""Writes clip_arrays.npz: what the video processor of transformers 4.57.6 makes of given frames.

It needs the environment of its own that make_torchvision_arrays.py describes:

    python tests/helpers/make_clip_arrays.py
"""

from pathlib import Path

import numpy as np
import torch

# Beside this script: it runs by its path, and in an environment without this project.
from clip_inputs import Clip, clips
from torch import library

OPERATORS = library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # noqa: E402
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor  # noqa: E402


def process(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """The grid (3,) and a sample of the patches of a clip."""
    # As `size`: other arguments would be written into a dict that all instances share.
    size = {"shortest_edge": clip.limits[0], "longest_edge": clip.limits[1]}
    processor = Qwen2VLVideoProcessor(size=size)
    output = processor(
        videos=[torch.from_numpy(clip.draw())], do_sample_frames=False, return_tensors="pt"
    )
    values = output["pixel_values_videos"].flatten().numpy()
    return output["video_grid_thw"][0].numpy(), values[clip.sample_indices(len(values))]


def main() -> None:
    assert transformers.__version__ == "4.57.6", transformers.__version__
    grids, values = zip(*[process(clip) for clip in clips()], strict=True)
    path = Path(__file__).parent.parent / "stored/clip_arrays.npz"
    np.savez_compressed(path, grids=np.array(grids, np.int32), values=np.array(values, np.float32))
    print(f"{path.name}: {path.stat().st_size} bytes, {len(grids)} clips")


if __name__ == "__main__":
    main()
