"""FlashAttention: rows without their padding, end to end, in one call of a kernel."""

import contextlib
import importlib
import inspect
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

# kernel(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=...) ->
# (tokens, H, d)
Kernel = Callable[..., Tensor]


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, key_padding_mask: Tensor | None
) -> Tensor:
    """Attention by a FlashAttention kernel: (B, H, T, d).

    q: (B, H, T, d); k, v: (B, K, S, d). key_padding_mask: (B, S), False for padding.
    ValueError where no kernel can run.
    """
    if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"flash_attention_2 needs CUDA, float16 or bfloat16; here {q.device}, {q.dtype}"
        )
    return packed_attention(q, k, v, causal, key_padding_mask, find_flash_kernel())


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, key_padding_mask: Tensor | None, kernel: Kernel
) -> Tensor:
    """Attention by `kernel`, which gets all rows end to end without padding: (B, H, T, d).

    The kernel gets q (tokens, H, d) and k, v (tokens, K, d) of all rows end to end, where
    each row starts, as (B + 1,), and the longest row's length, for queries and keys. A
    row's queries are its last tokens. Padding queries get zeros.
    """
    num_queries, num_keys = q.shape[2], k.shape[2]
    if key_padding_mask is None:
        return unpadded_attention(q, k, v, causal, kernel)
    query_mask = key_padding_mask[
        :, num_keys - num_queries :
    ]  # (B, T): the queries that are not padding
    query_lengths, key_lengths = query_mask.sum(1), key_padding_mask.sum(1)  # (B,)

    # Tokens before heads, then only what is not padding: rows end to end.
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, T or S, heads, d)
    out = torch.zeros_like(q)
    out[query_mask] = kernel(
        q[query_mask],
        k[key_padding_mask],
        v[key_padding_mask],
        row_starts(query_lengths),
        row_starts(key_lengths),
        int(query_lengths.max()),
        int(key_lengths.max()),
        causal=causal,
    )
    return out.transpose(1, 2)


def unpadded_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, kernel: Kernel) -> Tensor:
    """`packed_attention` of rows that are equally long: nothing is looked up on the GPU."""
    batch, _, num_queries, _ = q.shape
    num_keys = k.shape[2]
    numbers = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
    out = kernel(
        q.transpose(1, 2).flatten(0, 1),  # (B * T, H, d)
        k.transpose(1, 2).flatten(0, 1),
        v.transpose(1, 2).flatten(0, 1),
        numbers * num_queries,
        numbers * num_keys,
        num_queries,
        num_keys,
        causal=causal,
    )
    return out.unflatten(0, (batch, num_queries)).transpose(1, 2)


def row_starts(lengths: Tensor) -> Tensor:
    """Where each of the rows starts when they lie end to end, and the end: (B + 1,)."""
    return F.pad(lengths.cumsum(0), (1, 0)).int()


def find_flash_kernel() -> Kernel:
    """The kernel of the `flash_attn` package, or else PyTorch's own (2.11 or newer)."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("flash_attn").flash_attn_varlen_func
    major, minor = torch.__version__.split(".")[:2]
    if (int(major), int(minor)) < (2, 11):
        raise ValueError(
            f"flash_attention_2 needs flash-attn or torch 2.11, here is {torch.__version__}"
        )
    return torch_kernel


def torch_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
) -> Tensor:
    """PyTorch's own kernel, with the signature of flash_attn_varlen_func."""
    from torch.nn.attention.varlen import varlen_attn

    # How far back and ahead a query sees; -1: without limit.
    window = (-1, 0) if causal else (-1, -1)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        out = varlen_attn(q, k, v, *lengths, window_size=window, enable_gqa=True)
    else:  # PyTorch 2.11 wants as many key-value heads as query heads
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = varlen_attn(q, k, v, *lengths, window_size=window)
    return cast(Tensor, out)  # more than one tensor comes only where more is asked for
