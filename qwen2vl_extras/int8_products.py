"""Products of int8 weights with int8 activations on a CPU, by FBGEMM, which is part of PyTorch.

`torch._weight_int8pack_mm` turns each weight into a float, and a CPU takes longer for that than
memory takes to deliver it. FBGEMM multiplies whole numbers, so activations have to be whole, too.
A row of them is written as a sum of three: in steps of its largest value / 63, then what is left in
steps 126 times as fine, and once more. That is as exact as float32 where rows are even, and the
weights are read once for all three.

FBGEMM wants weights in an order of its own. Bringing them into it takes longer than loading them,
so it is done for compiled decoding only; from then on they are there in that order alone.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, library

ENGINE = "fbgemm"
# FBGEMM's activations are 0 or more, and on many CPUs it adds two products in 16 bits. Up to
# MIDDLE + STEPS they fit: 2 * 127 * 127 is below 2^15.
STEPS = 63
MIDDLE = 64
FINER = 2 * STEPS  # what is left is at most half a step: 63 finer ones
PARTS = 3
ROWS_AT_ONCE = 256  # of activations, whose parts are there in float32

OPERATOR = "qwen2vl::int8_product"  # a compiled graph can call functions only that PyTorch knows


def run_here() -> bool:
    """Whether this CPU and this release of PyTorch have FBGEMM's products."""
    quantized = getattr(torch.backends, "quantized", None)
    return quantized is not None and ENGINE in quantized.supported_engines


@contextmanager
def chosen() -> Iterator[None]:
    """What is packed inside is packed for FBGEMM, in all threads, whatever else PyTorch has."""
    quantized = torch.backends.quantized
    before = quantized.engine
    quantized.engine = ENGINE
    try:
        with warnings.catch_warnings():
            # The tensors that `pack` makes are to go in a later release: `run_here` will notice.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
            yield
    finally:
        quantized.engine = before


def pack(weight: Tensor, scale: Tensor) -> Tensor:
    """An int8 matrix (out, in) with a scale for each output, (out,), as `product` takes it.

    A compiled graph takes tensors only: this is an empty one that carries FBGEMM's object. Call it
    inside `chosen`.
    """
    zeros = torch.zeros(len(weight), dtype=torch.long)
    quantized = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
    packed = torch.empty(0)
    packed.fbgemm = torch.ops.quantized.linear_prepack(quantized, None)  # type: ignore[attr-defined]
    return packed


def product(x: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """x (n, in) times the transpose of a packed weight, in the dtype of x: (n, out)."""
    results = []
    for rows in x.split(ROWS_AT_ONCE):
        steps, scale = split(rows)
        parts = torch.ops.qwen2vl.int8_product(steps, packed, out_features).chunk(PARTS)
        y = parts[-1]
        for part in reversed(parts[:-1]):
            y = part + y / FINER
        results.append((y * scale).to(x.dtype))
    return torch.cat(results)


def split(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, in) as whole numbers from -63 to 63, (PARTS * n, in), and scales (n, 1).

    The i-th n of these count steps of scale / FINER^i. NaN is in the scale.
    """
    rows = rows.float()
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-30) / STEPS  # a row may be all zeros
    left = rows / scale
    parts = []
    for _ in range(PARTS):
        part = left.round()
        parts.append(part)
        left = (left - part) * FINER
    return torch.cat(parts), scale


def int8_product(steps: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """FBGEMM's product of whole numbers (n, in) with a packed weight: (n, out) in float32."""
    run = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return run(steps, 1.0, MIDDLE, packed.fbgemm)  # type: ignore[attr-defined]


def shape_of_int8_product(steps: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """What the compiler asks instead of computing."""
    return steps.new_empty(len(steps), out_features)


if not hasattr(torch.ops.qwen2vl, "int8_product"):  # a notebook may load this file again
    library.define(OPERATOR, "(Tensor steps, Tensor packed, int out_features) -> Tensor")
    library.impl(OPERATOR, "CPU", int8_product)
    library.register_fake(OPERATOR, shape_of_int8_product)
