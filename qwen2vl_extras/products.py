"""Products with 16-bit weights on CPUs that can't multiply 16-bit numbers: computed in float32.

There PyTorch's product of many rows takes five times as long in bfloat16 or float16 as in float32,
and converting the weight on the way costs little. The plain version is nn.Linear's own. Results
have the dtype of the weights again; sums in float32 are the more exact ones.
"""

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

# From this many rows on, converting the weight costs less than it wins.
MANY_ROWS = 32
# Outputs of a weight that are there in float32 as well. They stay in a processor's cache, and are
# less than the 32 MB from which on the C library asks the system for new memory each time.
OUTPUTS_AT_ONCE = 256


def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of that dtype itself; oneDNN, PyTorch's library, tells.

    For bfloat16 it needs AVX-512 or ARM's bfloat16 instructions, for float16 newer ones.
    """
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True


def needs_float32(x: Tensor) -> bool:
    """Whether products of many such rows are faster in float32."""
    return x.device.type == "cpu" and not multiplies(x.dtype)


def in_float32(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of x (..., in), weight (out, in) and bias (out,), computed in float32.

    The result (..., out) has the dtype of x; the weight may have any, int8 among them.
    """
    return in_parts(x, torch.float32, len(weight), lambda outputs: weight[outputs], bias)


def in_parts(
    x: Tensor,
    dtype: torch.dtype,
    out_features: int,
    weight_of: Callable[[slice], Tensor],
    bias: Tensor | None = None,
) -> Tensor:
    """F.linear of x (..., in), computed in `dtype` for some outputs at a time: (..., out).

    weight_of: the weight (n, in) of a slice of outputs, in any dtype. The result is in that of x.
    """
    wide = x.to(dtype)
    parts = []
    for start in range(0, out_features, OUTPUTS_AT_ONCE):
        outputs = slice(start, start + OUTPUTS_AT_ONCE)
        part_of_bias = None if bias is None else bias[outputs].to(dtype)
        parts.append(F.linear(wide, weight_of(outputs).to(dtype), part_of_bias).to(x.dtype))
    return torch.cat(parts, dim=-1)


class WideProduct(torch.autograd.Function):
    """`in_float32` with gradients, for which weights are converted again, so that none is kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return in_float32(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: BackwardCFunction, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of x, weight and bias, from that of the result, (..., out)."""
        x, weight = tuple(ctx.saved_tensors)  # by its type it has one element
        needs_x, needs_weight, needs_bias = tuple(ctx.needs_input_grad)
        rows = grad.flatten(0, -2).float()  # (n, out)
        grad_x = in_float32(grad, weight.T) if needs_x else None
        grad_weight = None
        if needs_weight:
            grad_weight = (rows.T @ x.flatten(0, -2).float()).to(weight.dtype)  # (out, in)
        grad_bias = rows.sum(0).to(grad.dtype) if needs_bias else None
        return grad_x, grad_weight, grad_bias


class WideLinear(nn.Linear):
    """nn.Linear with 16-bit weights that multiplies many rows in float32, on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows < MANY_ROWS or x.device.type != "cpu":
            return super().forward(x)
        return WideProduct.apply(x, self.weight, self.bias)


def widen(model: nn.Module) -> None:
    """Make each nn.Linear a WideLinear whose weight this CPU can't multiply in its own dtype."""
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.device.type != "cpu":
            continue
        if not multiplies(module.weight.dtype):
            module.__class__ = WideLinear
