"""What fits on how many GPUs: weights, cache and activations, by arithmetic.

    python -m benchmarks.what_fits                     the official sizes on GPUs of 80 GB
    python -m benchmarks.what_fits --gigabytes 24      on smaller ones

Prints a table in Markdown. Nothing is loaded; `qwen2vl_extras/memory.py` has the formulas, by which
a model is also refused before it is read.
"""

import argparse
from collections.abc import Iterator

import torch

from benchmarks.shapes import SHAPE_72B, SHAPES
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_extras import distributed, memory

BFLOAT16 = 2  # bytes
OWN_OF_CUDA = 2e9  # bytes that CUDA and NCCL take for themselves on each GPU
OFFICIAL = {"2B": SHAPES["shape:2b"], "7B": SHAPES["shape:7b"], "72B": SHAPE_72B}


def weights_of_each(config: Qwen2VLConfig, count: int) -> int:
    """Bytes of weights, in bfloat16, in that of `count` processes that holds most."""
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    shapes = {path: tuple(p.shape) for path, p in model.named_parameters()}
    sizes = {path: BFLOAT16 * p.numel() for path, p in model.named_parameters()}
    parts = [distributed.Part(config, rank, count, "cuda:0", count) for rank in range(count)]
    return max(part.count_bytes(shapes, sizes) for part in parts)


def rows(room: float) -> Iterator[str]:
    """A row for each official model and number of GPUs; room: bytes on each of them."""
    for name, shape in OFFICIAL.items():
        config = Qwen2VLConfig.from_dict(shape)
        for count in distributed.allowed_counts(config):
            weights = weights_of_each(config, count)
            fit = memory.fit(config, count, BFLOAT16, weights, room)
            longest = f"{fit.tokens:,} tokens" if fit.tokens else "does not fit"
            sent = memory.sent_bytes(config, count, BFLOAT16, 1) / 1e6
            yield (
                f"| {name} | {count} | {weights / 1e9:.2f} GB | {fit.cache / 1e9:.2f} GB | "
                f"{fit.activations / 1e9:.2f} GB | {longest} | {sent:.2f} MB |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--gigabytes", type=float, default=80.0, help="memory of each GPU (default 80)"
    )
    args = parser.parse_args()
    tokens = f"{memory.USUAL_TOKENS:,} tokens"
    print(
        f"| model | GPUs of {args.gigabytes:g} GB | weights of each | cache of {tokens} | "
        f"activations of {tokens} | longest prompt | sent by each for a token |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows(args.gigabytes * 1e9 - OWN_OF_CUDA):
        print(row)


if __name__ == "__main__":
    main()
