"""What make_saved_by_transformers.py has each version of transformers save, and how it is stored.

Nothing here imports transformers or this project: the script runs beside any version.
"""

import json
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tiny" / "checkpoint"
STORED = ROOT / "tests" / "stored"
SAVED_BY_TRANSFORMERS = STORED / "saved_by_transformers.json"

VERSIONS = [
    *("4.45.2", "4.46.3", "4.47.1", "4.48.3", "4.49.0", "4.50.3", "4.51.3", "4.52.4", "4.55.4"),
    *("4.57.6", "5.24.0"),
]
NEWEST = VERSIONS[-1]
SIZES = ("2b", "7b", "72b")

# Processors are loaded and saved
#   official  with the limits of the official files;
#   changed   with other limits, given to from_pretrained;
#   video     with limits of their own for videos, where there is a processor for them.
PROCESSORS = ("official", "changed", "video")
CHANGED_LIMITS = {"min_pixels": 64 * 28 * 28, "max_pixels": 320 * 28 * 28}
VIDEO_LIMITS = {"shortest_edge": 16 * 28 * 28, "longest_edge": 100 * 28 * 28}
# (height, width) of images whose grids are compared: enlarged, left alone, shrunk.
IMAGE_SIZES = [(28, 28), (84, 84), (333, 500), (520, 760), (900, 60)]
VIDEO_SIZES = [(84, 84), (260, 400)]
VIDEO_FRAMES = 4


def small_config(tied: bool) -> dict:
    """A config.json in the official layout of a small model with the tokens of "tiny"."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "attention_dropout": 0.0,
        "vocab_size": 704,
        "hidden_size": 64,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "max_window_layers": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "bos_token_id": 690,
        "eos_token_id": 692,
        "vision_start_token_id": 699,
        "vision_end_token_id": 700,
        "vision_token_id": 701,
        "image_token_id": 702,
        "video_token_id": 703,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "mlp_ratio": 2,
            "num_heads": 2,
            "in_chans": 3,
            "hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }


def gradient(height: int, width: int) -> np.ndarray:
    """A picture, uint8 (height, width, 3)."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((3 * y + 2 * x + 80 * c) % 256).astype(np.uint8)


# -------------------------------------------------------------------------------- the stored file
#
# A JSON object {version: {name: content}}. Names are those of files, such as "2b/config.json" and
# "official/tokenizer_config.json", and of what is known about them, such as "official/names".


def read_saved() -> dict[str, dict]:
    """The content that each version saved, by its name; {} before the first run of the script.

    Content equal to that of the version before is stored once: {"as": version} stands for it.
    """
    if not SAVED_BY_TRANSFORMERS.exists():
        return {}
    stored = json.loads(SAVED_BY_TRANSFORMERS.read_text(encoding="utf-8"))
    saved: dict[str, dict] = {}
    for version, entries in stored.items():
        saved[version] = {}
        for name, content in entries.items():
            is_same = isinstance(content, dict) and list(content) == ["as"]
            saved[version][name] = saved[content["as"]][name] if is_same else content
    return saved


def write_saved(saved: dict[str, dict]) -> None:
    """Write what read_saved reads, each content on a line of its own."""
    lines = []
    first_with: dict[tuple[str, str], str] = {}
    for version in VERSIONS:
        if version not in saved:
            continue
        entries = []
        for name, content in saved[version].items():
            text = json.dumps(content, ensure_ascii=False)
            first = first_with.setdefault((name, text), version)
            if first != version:
                text = json.dumps({"as": first})
            entries.append(f"  {json.dumps(name)}: {text}")
        lines.append(f" {json.dumps(version)}: {{\n" + ",\n".join(entries) + "\n }")
    SAVED_BY_TRANSFORMERS.parent.mkdir(exist_ok=True)
    SAVED_BY_TRANSFORMERS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
