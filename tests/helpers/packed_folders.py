"""Checkpoints in the layouts of AWQ and GPTQ, written from their published definitions.

Nothing here is shared with the code that reads them: bits are set one code at a time in Python's
own integers. Source of the layouts: AutoGPTQ's and AutoAWQ's `pack` functions.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

# The output that stands in each place of an AWQ word.
AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7]
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Variant:
    """One way to pack a checkpoint."""

    method: str  # "awq" or "gptq"
    bits: int = 4
    group_size: int = 32
    symmetric: bool = True
    order: str = "in turn"  # of GPTQ's groups: "in turn", "shuffled", "unequal", "absent"
    version: str | None = None  # GPTQ's checkpoint_format
    dtype: torch.dtype = torch.float16


@dataclass
class Layer:
    """The whole numbers of a layer, and the matrix that they stand for."""

    codes: np.ndarray  # (out, in)
    zeros: np.ndarray  # (groups, out)
    scales: Tensor  # (groups, out)
    groups: np.ndarray  # (in,)

    def weight(self) -> Tensor:
        """(out, in) in float64, one number after another."""
        out_features, in_features = self.codes.shape
        scales = self.scales.double()
        weight = torch.empty(out_features, in_features, dtype=torch.float64)
        for i in range(in_features):
            g = self.groups[i]
            steps = torch.tensor(self.codes[:, i].astype(np.int64) - self.zeros[g])
            weight[:, i] = steps * scales[g]
        return weight


def draw_layer(rng: np.random.Generator, shape: tuple[int, int], variant: Variant) -> Layer:
    """Random codes, zeros and scales of a layer (out, in)."""
    out_features, in_features = shape
    size = in_features if variant.group_size == -1 else variant.group_size
    num_groups = in_features // size
    top = 2**variant.bits
    codes = rng.integers(0, top, shape)
    zeros = np.full((num_groups, out_features), top // 2)
    if not variant.symmetric:
        zeros = rng.integers(0, top, zeros.shape)
    step = 2 / (top * in_features**0.5)
    scales = torch.tensor(rng.uniform(0.5, 1.5, zeros.shape) * step).to(variant.dtype)
    groups = np.arange(in_features) // size
    if variant.order == "shuffled":
        groups = rng.permutation(groups)
    if variant.order == "unequal":
        groups = rng.integers(0, num_groups, in_features)
    return Layer(codes, zeros, scales, groups)


def words(rows: list[list[int]], bits: int) -> Tensor:
    """Each list of codes, the first in the lowest bits, as a row of 32-bit words."""
    per_word = 32 // bits
    packed = []
    for row in rows:
        line = []
        for start in range(0, len(row), per_word):
            word = 0
            for place, code in enumerate(row[start : start + per_word]):
                word |= int(code) << (bits * place)
            line.append(word - 2**32 if word >= 2**31 else word)
        packed.append(line)
    return torch.tensor(packed, dtype=torch.int32)


def pack_gptq(layer: Layer, variant: Variant) -> dict[str, Tensor]:
    """The tensors of a layer in GPTQ's layout."""
    offset = 0 if variant.version == "gptq_v2" else 1
    stored_zeros = (layer.zeros - offset) % 2**variant.bits
    parts = {
        # Of each output the codes of its inputs in turn; then inputs go down, outputs across.
        "qweight": words(layer.codes.tolist(), variant.bits).T.contiguous(),
        "qzeros": words(stored_zeros.tolist(), variant.bits),
        "scales": layer.scales,
        "g_idx": torch.tensor(layer.groups, dtype=torch.int32),
    }
    if variant.order == "absent":
        del parts["g_idx"]
    return parts


def pack_awq(layer: Layer) -> dict[str, Tensor]:
    """The tensors of a layer in the layout of AWQ's version gemm."""

    def mixed(row: list[int]) -> list[int]:
        return [row[start + place] for start in range(0, len(row), 8) for place in AWQ_PLACES]

    return {
        "qweight": words([mixed(row) for row in layer.codes.T.tolist()], 4),
        "qzeros": words([mixed(row) for row in layer.zeros.tolist()], 4),
        "scales": layer.scales,
    }


def section_of(variant: Variant) -> dict:
    """The quantization_config that tools write for a variant."""
    section: dict = {"quant_method": variant.method, "bits": variant.bits}
    section["group_size"] = variant.group_size
    if variant.method == "awq":
        section.update(version="gemm", zero_point=True, modules_to_not_convert=["visual"])
        return section
    section.update(
        sym=variant.symmetric, desc_act=variant.order in ("shuffled", "unequal"), damp_percent=0.01
    )
    if variant.version is not None:
        section["checkpoint_format"] = variant.version
    return section


def write_packed(
    folder: Path,
    config: dict,
    tensors: dict[str, Tensor],
    variant: Variant,
    seed: int,
    change_parts=None,
) -> dict[str, Tensor]:
    """Write a checkpoint whose decoder is packed; returns all its weights, unpacked, in float64.

    tensors: the parameters of the model, of which the decoder's matrices are replaced.
    change_parts: a function that damages the tensors before they are written.
    """
    rng = np.random.default_rng(seed)
    stored = {}
    unpacked = {}
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        is_packed = path.startswith("model.layers.") and path.split(".")[-1] in LINEAR
        if not is_packed or kind != "weight":
            stored[name] = tensor.detach().to(variant.dtype).contiguous()
            unpacked[name] = stored[name].double()
            continue
        layer = draw_layer(rng, tuple(tensor.shape), variant)
        parts = pack_awq(layer) if variant.method == "awq" else pack_gptq(layer, variant)
        for part, values in parts.items():
            stored[f"{path}.{part}"] = values
        unpacked[name] = layer.weight()
    if change_parts is not None:
        change_parts(stored)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = str(variant.dtype).removeprefix("torch.")
    content = {**config, "torch_dtype": dtype, "quantization_config": section_of(variant)}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return unpacked


def random_variant(rng: random.Random) -> Variant:
    """A variant drawn from all that are read."""
    method = rng.choice(["awq", "gptq", "gptq"])
    size = rng.choice([32, 64, -1, 16])
    dtype = rng.choice([torch.float16, torch.bfloat16, torch.float32])
    if method == "awq":
        return Variant("awq", 4, size, symmetric=rng.random() < 0.3, dtype=dtype)
    return Variant(
        "gptq",
        rng.choice([4, 4, 8]),
        size,
        symmetric=rng.random() < 0.5,
        order=rng.choice(["in turn", "shuffled", "unequal", "absent"]),
        version=rng.choice([None, "gptq", "gptq_v2"]),
        dtype=dtype,
    )
