"""Write a folder with random weights in GPTQ's layout, one shard a layer, in little memory.

  python -m benchmarks.processes.write_packed 7b-gptq --model shape:7b

Codes are any of the 16; scales give matrices the spread of the reference's own initialisation.
With --dtype float16 what is not packed has the dtype of the official checkpoints.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import load
from benchmarks.models import config_of
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration

GROUP = 128
DECODER = "model.layers."
SPREAD = 0.02  # of weights
STEPS = 4.6  # the spread of codes of which each is as frequent
LARGEST = 2**31


def packed_parts(shape: torch.Size, generator: torch.Generator, size: int) -> dict[str, Tensor]:
    """Random tensors of a layer (out, in)."""
    out_features, in_features = shape
    groups = in_features // size
    words = torch.randint(
        -LARGEST, LARGEST, (in_features // 8, out_features), generator=generator, dtype=torch.int32
    )
    return {
        "qweight": words,
        "qzeros": torch.full((groups, out_features // 8), 0x77777777, dtype=torch.int32),
        "scales": torch.full((groups, out_features), SPREAD / STEPS, dtype=torch.float16),
        "g_idx": (torch.arange(in_features) // size).to(torch.int32),
    }


def plain_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Ones for scales of norms, zeros for biases, noise for matrices."""
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith("weight")))
    return torch.randn(shape, generator=generator) * SPREAD


def shard_of(name: str) -> str:
    """The shard of a parameter: each layer and each block of the vision part has its own."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name


def write(folder: Path, config: Qwen2VLConfig, dtype: torch.dtype) -> None:
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    size = GROUP
    while config.hidden_size % size or config.intermediate_size % size:
        size //= 2
    shards: dict[str, list[str]] = {}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for name in shapes:
        shards.setdefault(shard_of(name), []).append(name)

    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    generator = torch.Generator().manual_seed(0)
    for i, names in enumerate(shards.values()):
        tensors = {}
        for name in names:
            if name.startswith(DECODER) and len(shapes[name]) == 2:
                for part, tensor in packed_parts(shapes[name], generator, size).items():
                    tensors[f"{name.removesuffix('.weight')}.{part}"] = tensor
            else:
                tensors[name] = plain_tensor(name, shapes[name], generator).to(dtype)
        filename = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / filename, metadata={"format": "pt"})
        for name in tensors:
            weight_map[name] = filename

    load.write_json(folder / load.INDEX, {"weight_map": weight_map})
    content = config.to_dict()
    content["torch_dtype"] = str(dtype).removeprefix("torch.")
    content["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": size,
        "sym": True,
        "desc_act": False,
    }
    load.write_json(folder / "config.json", content)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="shape:7b", help="as in python -m benchmarks")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    args = parser.parse_args()
    write(args.folder, config_of(args.model), getattr(torch, args.dtype))
    nbytes = sum(file.stat().st_size for file in args.folder.iterdir())
    print(json.dumps({"folder": str(args.folder), "gb": nbytes / 1e9}))


if __name__ == "__main__":
    main()
