"""Writing a LoRA adapter: two files that PEFT reads, and `load.py` too (see lora.py).

  adapter_config.json        rank, alpha, and the modules that were trained
  adapter_model.safetensors  base_model.model.<module>.lora_A.weight (r, in) and, likewise,
                             .lora_B.weight (out, r); and rows of the table of the tokens, where
                             these were trained

Modules get the names that transformers has given them since 4.52; lora_names.py knows the others.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from qwen2vl_extras.lora import WEIGHTS
from qwen2vl_extras.lora_config import CONFIG

# Beginnings of the official names, and how transformers 4.52 and later write them.
NEWER_NAMES = (("model.", "model.language_model."), ("visual.", "model.visual."))
TABLE_ROWS = (
    "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta"
)


def save_adapter(
    folder: str | Path,
    matrices: Mapping[str, tuple[Tensor, Tensor]],
    alpha: float,
    base: str | None = None,
    rows: Mapping[int, Tensor] | None = None,
) -> None:
    """Write an adapter whose layers compute W x + B A x * alpha / r.

    matrices: A (r, in) and B (out, r) of each trained linear layer, by the layer's official name
    ("model.layers.0.self_attn.q_proj", "visual.blocks.0.attn.qkv"), all with the same r. They are
    stored in the dtype that they have. base: the name on the Hub of the model that was trained; an
    adapter without one is loaded with `base=`. rows: by token id, the trained rows (D,) of the
    table of the tokens. ValueError for matrices or rows that don't fit together.
    """
    rank = check_matrices(matrices)
    rows = check_rows(rows or {})
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}, a finite number is needed")

    tensors = {}
    for module, (a, b) in matrices.items():
        name = f"base_model.model.{newer_name(module)}"
        tensors[f"{name}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"{name}.lora_B.weight"] = b.detach().cpu().contiguous()
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(newer_name(module) for module in matrices),
        "inference_mode": True,
    }
    if rows:
        tensors[TABLE_ROWS] = torch.stack([row.detach().cpu() for row in rows.values()])
        config["trainable_token_indices"] = list(rows)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_matrices(matrices: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    """The rank r that all have; ValueError if a pair doesn't fit together, or there is none."""
    if not matrices:
        raise ValueError("an adapter needs matrices of one layer at least, none was given")
    first = next(iter(matrices))
    rank = len(matrices[first][0])
    for module, (a, b) in matrices.items():
        shapes = f"{module}: A is {tuple(a.shape)} and B is {tuple(b.shape)}"
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or len(a) == 0:
            raise ValueError(f"{shapes}, (r, in) and (out, r) are needed")
        if len(a) != rank:
            raise ValueError(f"{shapes}, but {first} has r = {rank}: all need the same")
        if a.dtype != b.dtype or a.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"{module}: A is {a.dtype} and B is {b.dtype}, both must be float32, bfloat16 or "
                "float16"
            )
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ValueError(f"{module}: A or B is not finite")
    return rank


def check_rows(rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The rows by their ids, lowest first; ValueError if they differ in shape or dtype."""
    ordered = dict(sorted(rows.items()))
    kinds = {(row.shape, row.dtype) for row in ordered.values()}
    if len(kinds) > 1 or any(row.ndim != 1 for row in ordered.values()):
        shapes = ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype in kinds)
        raise ValueError(f"the rows of a table need one shape (D,) and one dtype, not {shapes}")
    if any(not row.isfinite().all() for row in ordered.values()):
        raise ValueError("a trained row of the table is not finite")
    if ordered and min(ordered) < 0:
        raise ValueError(f"{min(ordered)} is no token id")
    return ordered


def newer_name(module: str) -> str:
    """The name of a module in transformers 4.52 and later, from its official name."""
    for official, newer in NEWER_NAMES:
        if module.startswith(official):
            return newer + module.removeprefix(official)
    raise ValueError(
        f"{module!r} is no layer with an adapter here: official names begin with model. or visual."
    )
