"""Fake tensors that say they are on CUDA, also with a PyTorch that was built without CUDA.

Indexing, `~` and a few methods first ask such a PyTorch to switch to the tensor's device, which it
can't. Here the same is done by operations that don't ask.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_extras import distributed
from qwen2vl_extras.quantization import Quantization


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Every tensor made in the block is a fake one, on any device that is named."""
    with pytest.MonkeyPatch.context() as patch:
        # DTensor assigns where a mode is not asked.
        patch.setattr(Tensor, "__setitem__", assign)
        with FakeTensorMode(), WithoutSwitching():
            yield


def fake_model(
    config: Qwen2VLConfig,
    dtype: torch.dtype,
    device_of: Callable[[str], torch.device] = lambda path: torch.device("cuda:0"),
    int8: bool = False,
    part: distributed.Part | None = None,
) -> Qwen2VLForConditionalGeneration:
    """A model with fake weights, whole or the part of one process. Within `fake_cuda` only.

    device_of: tells where the parameter of that path is.
    """
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config).eval()
    shapes = {path: tuple(p.shape) for path, p in model.named_parameters()}
    rounding = Quantization(shapes, int8=int8, int4=False)
    for path, shape in shapes.items():
        held = shape if part is None else part.shape_of(path, shape)
        model.set_parameter(path, torch.empty(held, device=device_of(path), dtype=dtype))
        rounding.round_layer(model, path)
    model.tie_weights()
    return model


class WithoutSwitching(TorchFunctionMode):
    """Replaces the few functions that switch to the device of a tensor."""

    def __torch_function__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        name = getattr(func, "__name__", "")
        if name == "__getitem__":
            return part_of(*args)
        if name == "__setitem__":
            return assign(*args)
        if name == "copy_":
            return torch.ops.aten.copy_.default(*args)
        if name == "new_tensor":
            x, values = args
            return x.new_zeros(len(values))  # fake tensors have no values
        if name == "contiguous":
            return args[0].clone(memory_format=torch.contiguous_format)
        if name == "__invert__":
            return torch.bitwise_not(*args)
        if name == "scaled_dot_product_attention" and args[0].dtype != torch.float32:
            return fused_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def assign(x: Tensor, key: object, value: Tensor | float) -> None:
    """x[key] = value."""
    mask = key[0] if isinstance(key, tuple) else key
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        for _ in range(x.ndim - mask.ndim):  # the axes behind the mask's are taken whole
            mask = mask.unsqueeze(-1)
        x.masked_fill_(mask, value)
        return
    part = part_of(x, key)
    if isinstance(value, Tensor):
        torch.ops.aten.copy_.default(part, value)
    else:
        part.fill_(value)


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that CUDA takes; a PyTorch without CUDA would store all scores."""
    if attn_mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, enable_gqa=enable_gqa)
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, is_causal=is_causal)[0]


def part_of(x: Tensor, key: object) -> Tensor:
    """x[key]."""
    keys = key if isinstance(key, tuple) else (key,)
    axis = 0
    for i, one in enumerate(keys):
        if one is None:
            x = x.unsqueeze(axis)
        elif one is Ellipsis:
            axis = x.ndim - sum(later is not None for later in keys[i + 1 :])
            continue
        elif isinstance(one, slice):
            start, end, step = one.indices(x.shape[axis])
            assert step == 1
            x = x.narrow(axis, start, max(0, end - start))
        elif isinstance(one, int):
            x = x.select(axis, one)
            continue
        else:  # a tensor of indices
            assert len(keys) == 1
            return torch.ops.aten.index.Tensor(x, [one])
        axis += 1
    return x
