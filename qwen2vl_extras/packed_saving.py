"""Saving a model whose weights are in four bits, in the layout of GPTQ.

The matrices of tokens, which are int8 in memory, are saved in the dtype of the model.
"""

import torch
import torch.nn as nn
from torch import Tensor

from qwen2vl_extras.int4 import MIDDLE, Int4Linear
from qwen2vl_extras.int8 import Int8Embedding, Int8Linear
from qwen2vl_extras.packed_layout import GroupedWeight, write_codes, write_zeros

DECODER = "model.layers."
TABLE = "model.embed_tokens"
HEAD = "lm_head"


def tensors_to_save(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """The tensors of a model as a checkpoint has them, by name, and further fields of its config.

    These are empty where no weight is in four bits. ValueError for weights in int8, which have no
    layout that others read, and for four-bit weights that one file can't hold.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Int4Linear)}
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    if not layers:
        if any(tensor.dtype == torch.int8 for tensor in tensors.values()):
            raise ValueError("int8 weights have no official layout: load without int8 to save")
        return tensors, {}

    is_symmetric = all(bool((m.checkpoint_zeros() == MIDDLE).all()) for m in layers.values())
    section = quantization_config(model, layers, is_symmetric)
    unpack_tokens(model, tensors)
    for name, layer in layers.items():
        del tensors[f"{name}.weight"]
        for part, tensor in gptq_parts(layer.grouped_weight(), is_symmetric).items():
            tensors[f"{name}.{part}"] = tensor
    return tensors, {"quantization_config": section}


def gptq_parts(weight: GroupedWeight, is_symmetric: bool) -> dict[str, Tensor]:
    """The tensors of one layer in GPTQ's layout."""
    # Version 1 stores each zero less one; of symmetric weights none is 0.
    zeros = weight.zeros - 1 if is_symmetric else weight.zeros
    groups = weight.groups
    if groups is None:
        in_features = weight.codes.shape[1]
        groups = torch.arange(in_features) // (in_features // len(weight.scales))
    # Other programs have scales in float16. Those that came from there are the same again.
    scales = weight.scales.to(torch.float16)
    if not scales.to(weight.scales.dtype).equal(weight.scales):
        scales = weight.scales
    return {
        "qweight": write_codes(weight.codes),
        "qzeros": write_zeros(zeros),
        "scales": scales,
        "g_idx": groups.to(torch.int32),
    }


def unpack_tokens(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put the matrices of tokens back into the dtype that they were read in."""
    for name in (TABLE, HEAD):
        module = model.get_submodule(name)
        # A tied head is not among the tensors.
        is_saved = f"{name}.weight" in tensors
        if is_saved and isinstance(module, Int8Embedding | Int8Linear):
            tensors[f"{name}.weight"] = module.weight * module.scale[:, None]
    rest = [name for name, tensor in tensors.items() if tensor.dtype == torch.int8]
    if rest:
        raise ValueError(f"{rest[0]} is int8, which has no official layout: load without int8")


def quantization_config(
    model: nn.Module, layers: dict[str, Int4Linear], is_symmetric: bool
) -> dict:
    """The section of config.json that says how the weights are packed."""
    sizes = sorted({layer.checkpoint_group for layer in layers.values()})
    if all(layer.checkpoint_group == layer.in_features for layer in layers.values()):
        sizes = [-1]  # one group a row, whatever its length
    if len(sizes) > 1:
        raise ValueError(f"layers have groups of {sizes}; GPTQ's layout takes one size for all")
    section = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": sizes[0],
        "sym": is_symmetric,
        "desc_act": any(layer.order is not None for layer in layers.values()),
        # Version 1 can't tell a zero of 0 from one of 16, but more programs read it.
        "checkpoint_format": "gptq" if is_symmetric else "gptq_v2",
        "pack_dtype": "int32",
        "lm_head": HEAD in layers,
    }
    # Layers of the decoder that are left out, as patterns in GPTQModel's words.
    left_out: dict[str, dict] = {}
    for name, module in model.named_modules():
        is_plain = isinstance(module, nn.Linear) and name not in layers
        if is_plain and name.startswith(DECODER):
            left_out["-:^" + name.replace(".", "[.]") + "$"] = {}
    if left_out:
        section["dynamic"] = left_out
    return section
