"""Write tests/stored/packed_layers.npz: layers that AutoGPTQ, GPTQModel and AutoAWQ packed.

Run in an environment of its own, with what is there of auto-gptq 0.7.1, autoawq 0.2.9 and
gptqmodel 4.2.5; a library that can't be imported is left out, and a line says so:

  python tests/helpers/make_packed_layers.py tests/stored/packed_layers.npz
"""

import json
import sys

import numpy as np
import torch
import torch.nn as nn
import transformers.activations

OUT, IN = 32, 128
# (name, method, bits, group size, symmetric, shuffled groups)
CASES = [
    ("4 bits", "gptq", 4, 32, True, False),
    ("4 bits, shuffled", "gptq", 4, 32, True, True),
    ("4 bits, zeros", "gptq", 4, 64, False, True),
    ("8 bits", "gptq", 8, 32, False, False),
    ("one group", "gptq", 4, IN, False, False),
    ("4 bits", "awq", 4, 32, True, False),
    ("zeros", "awq", 4, 64, False, False),
    ("one group", "awq", 4, IN, False, False),
]


def draw(seed: int, bits: int, size: int, symmetric: bool, shuffled: bool, lowest: int) -> dict:
    """Codes (out, in), zeros and scales (groups, out), and the group of each input."""
    rng = np.random.default_rng(seed)
    groups = IN // size
    codes = rng.integers(0, 2**bits, (OUT, IN)).astype(np.uint8)
    zeros = np.full((groups, OUT), 2 ** (bits - 1), dtype=np.uint8)
    if not symmetric:
        zeros = rng.integers(lowest, 2**bits, (groups, OUT)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.02, (groups, OUT)).astype(np.float16)
    index = np.arange(IN) // size
    if shuffled:
        index = rng.permutation(index)
    return {"codes": codes, "zeros": zeros, "scales": scales, "groups": index}


def linear_of(drawn: dict) -> nn.Linear:
    """The layer that a library is to pack: its weight is exactly on the steps, in float32."""
    layer = nn.Linear(IN, OUT, bias=False)
    steps = drawn["codes"].astype(np.float32) - drawn["zeros"][drawn["groups"]].T
    weight = steps * drawn["scales"][drawn["groups"]].T.astype(np.float32)
    layer.weight.data = torch.tensor(weight)
    return layer


def pack_auto_gptq(drawn: dict, bits: int, size: int) -> dict:
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    packed = QuantLinear(bits, size, IN, OUT, bias=False, weight_dtype=torch.float16)
    scales = torch.tensor(drawn["scales"]).float().T.contiguous()
    zeros = torch.tensor(drawn["zeros"]).float().T.contiguous()
    packed.pack(linear_of(drawn), scales, zeros, torch.tensor(drawn["groups"]).int())
    return {"qweight": packed.qweight, "qzeros": packed.qzeros}


def pack_gptqmodel(drawn: dict, bits: int, size: int, version: int) -> dict:
    from gptqmodel.nn_modules.qlinear.torch import TorchQuantLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    packed = TorchQuantLinear(
        bits=bits,
        group_size=size,
        sym=False,
        desc_act=True,
        in_features=IN,
        out_features=OUT,
        bias=False,
        pack_dtype=torch.int32,
        register_buffers=True,
    )
    scales = torch.tensor(drawn["scales"]).float().T.contiguous()
    zeros = torch.tensor(drawn["zeros"]).float().T.contiguous()
    packed.pack(linear_of(drawn), scales, zeros, torch.tensor(drawn["groups"]).int())
    if version == 1:
        convert_gptq_v2_to_v1_format_module(packed, QuantizeConfig(bits=bits, group_size=size))
    return {"qweight": packed.qweight, "qzeros": packed.qzeros}


def pack_awq(drawn: dict, bits: int, size: int) -> dict:
    # AutoAWQ asks for a class that newer versions of transformers have renamed.
    activations = transformers.activations
    if not hasattr(activations, "PytorchGELUTanh"):
        activations.PytorchGELUTanh = nn.GELU
    from awq.modules.linear.gemm import WQLinear_GEMM

    scales = torch.tensor(drawn["scales"]).float()
    zeros = torch.tensor(drawn["zeros"]).float()
    packed = WQLinear_GEMM.from_linear(linear_of(drawn), bits, size, False, scales, zeros)
    return {"qweight": packed.qweight, "qzeros": packed.qzeros}


def layouts(method: str) -> list[str]:
    return ["awq"] if method == "awq" else ["gptq", "gptqmodel", "gptq_v2"]


def pack_with(layout: str, drawn: dict, bits: int, size: int) -> dict:
    if layout == "awq":
        return pack_awq(drawn, bits, size)
    if layout == "gptq":
        return pack_auto_gptq(drawn, bits, size)
    return pack_gptqmodel(drawn, bits, size, 2 if layout == "gptq_v2" else 1)


def main() -> None:
    arrays = {}
    for seed, (name, method, bits, size, symmetric, shuffled) in enumerate(CASES):
        for layout in layouts(method):
            # AutoGPTQ loses its neighbours' bits where a zero is 0.
            lowest = 1 if layout == "gptq" else 0
            drawn = draw(seed, bits, size, symmetric, shuffled, lowest)
            try:
                packed = pack_with(layout, drawn, bits, size)
            except ImportError as error:
                print(f"left out: {layout}: {error}", file=sys.stderr)
                continue
            section = {"quant_method": method, "bits": bits, "group_size": size, "layout": layout}
            case = f"{layout}, {name}"
            arrays[f"{case}/section"] = np.array(json.dumps(section))
            for part, values in {**drawn, **packed}.items():
                arrays[f"{case}/{part}"] = np.asarray(values)
    np.savez_compressed(sys.argv[1], **arrays)
    print(sorted({name.partition("/")[0] for name in arrays}))


if __name__ == "__main__":
    main()
