"""Writes frame_counts.json: how many frames smart_nframes of qwen-vl-utils takes.

    pip download --no-deps qwen-vl-utils==0.0.8 -d old && unzip old/*.whl -d old
    pip download --no-deps qwen-vl-utils==0.0.14 -d new && unzip new/*.whl -d new
    python tests/helpers/make_frame_counts.py 0.0.8=old 0.0.14=new

The package imports torchvision, so the function alone is cut out of its file and run.
"""

import ast
import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

# Beside this script: it runs by its path.
from clip_inputs import frame_settings

FUNCTIONS = ("round_by_factor", "ceil_by_factor", "floor_by_factor", "smart_nframes")
CONSTANTS = ("FPS", "FRAME_FACTOR", "FPS_MIN_FRAMES", "FPS_MAX_FRAMES")


def cut_out(folder: Path) -> Callable[..., int]:
    """smart_nframes of the unpacked package in a folder, with the names that it uses."""
    source = (folder / "qwen_vl_utils/vision_process.py").read_text(encoding="utf-8")
    kept = []
    for node in ast.parse(source).body:
        is_constant = isinstance(node, ast.Assign) and node.targets[0].id in CONSTANTS
        if is_constant or (isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS):
            kept.append(node)
    scope = {"math": math, "logger": logging.getLogger(), "Any": Any, "Union": Union, "Dict": dict}
    exec(compile(ast.Module(kept, []), str(folder), "exec"), scope)
    return scope["smart_nframes"]


def count(smart_nframes: Callable[..., int], total: int, rate: float, item: dict) -> int | None:
    """The number of frames; None where it refuses."""
    try:
        return smart_nframes(item, total_frames=total, video_fps=rate)
    except ValueError:
        return None


def main() -> None:
    logging.disable()
    counts = {}
    for argument in sys.argv[1:]:
        version, folder = argument.split("=")
        smart_nframes = cut_out(Path(folder))
        counts[version] = [count(smart_nframes, *setting) for setting in frame_settings()]
    path = Path(__file__).parent.parent / "stored/frame_counts.json"
    path.write_text(json.dumps(counts), encoding="utf-8")
    for version, each in counts.items():
        print(f"{version}: {len(each)} settings, {each.count(None)} refused")


if __name__ == "__main__":
    main()
