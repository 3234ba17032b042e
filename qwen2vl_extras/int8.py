"""Weights in int8 with one scale for each row: half of bfloat16's memory, less exact."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from qwen2vl_extras import products

# From this many rows on the weight is unpacked first: a matrix product in the dtype of x is
# faster then.
MANY_ROWS = 64
NUMBERS_AT_ONCE = 2**21  # of a matrix, that are rounded together; 8 MB in float32


class Int8Linear(nn.Linear):
    """nn.Linear whose weight is int8 (out, in), with one scale for each output, (out,)."""

    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None = None) -> None:
        out_features, in_features = weight.shape
        super().__init__(in_features, out_features, bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", bias)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if len(rows) < MANY_ROWS:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        elif products.needs_float32(x):
            y = products.in_float32(rows, self.weight) * self.scale
        else:
            y = F.linear(rows, self.weight.to(x.dtype)) * self.scale
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Int8Embedding(nn.Embedding):
    """nn.Embedding whose table is int8 (tokens, D), with a scale for each token."""

    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        num_embeddings, embedding_dim = weight.shape
        super().__init__(num_embeddings, embedding_dim, _weight=weight, _freeze=True)
        self.register_buffer("scale", scale)

    def forward(self, input_ids: Tensor) -> Tensor:
        scale = self.scale[input_ids].unsqueeze(-1)  # (B, T, 1)
        return super().forward(input_ids).to(scale.dtype) * scale


def quantize(module: nn.Module) -> nn.Module:
    """A linear layer or an embedding in int8; any other module as it is."""
    if type(module) is nn.Linear:
        weight, scale = quantize_weight(module.weight.detach())
        return Int8Linear(weight, scale, module.bias)
    if type(module) is nn.Embedding:
        weight, scale = quantize_weight(module.weight.detach())
        return Int8Embedding(weight, scale)
    return module


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (out, in) to int8 (out, in) and scales (out,).

    The largest value of a row becomes 127 or -127. Some rows are rounded at a time, so that only
    they are there in float32 as well, in the same memory one after the other.
    """
    rounded = torch.empty_like(weight, dtype=torch.int8)
    scales = torch.empty_like(weight[:, 0])
    rows_at_once = max(1, NUMBERS_AT_ONCE // weight.shape[1])
    wide = torch.empty_like(weight[:rows_at_once], dtype=torch.float32)
    for start in range(0, len(weight), rows_at_once):
        rows = slice(start, start + rows_at_once)
        part = wide[: len(weight[rows])].copy_(weight[rows])
        largest = torch.maximum(part.amax(1), -part.amin(1))  # (rows,)
        scale = largest.clamp_min(1e-30) / 127  # a row of zeros has a scale, too
        rounded[rows] = part.div_(scale[:, None]).round_()
        scales[rows] = scale
    return rounded, scales
