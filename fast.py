"""Faster decoding: the step of one token compiled, and weights in int8.

One new token reads every weight once and does little with it, so a step can't be faster than memory delivers
the weights. At one row PyTorch's matrix product gets about half of that on a CPU; compiled, a row times a
matrix is a multiply-and-sum, one pass over the weights at nearly full bandwidth. On CUDA what costs time at
one row is launching some hundred small kernels: the whole step becomes one CUDA graph.

What is compiled has one shape for all steps: it reads the whole of a cache and hides the unwritten rest.
"""

import contextlib
import functools
import importlib
import itertools
import math
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

BLOCK_SCORES, BLOCK_ROWS = 2**20, 64  # of attention at a time: so many scores, at least so many rows of them
MANY_ROWS = 64  # from here on int8 weights are unpacked first: a matrix product in x's dtype is faster


def compiled_row(x: Tensor) -> bool:
    """Whether x (..., D) is a single row, and this is being compiled."""
    return torch.compiler.is_compiling() and x.numel() == x.shape[-1]


def row_product(x: Tensor, weight: Tensor) -> Tensor:
    """A single row (D,) times a matrix (out, D), summed in float32: (out,). For the compiler to fuse.

    A CPU core adds faster than one sum after the other lets it: it gets two parts of the matrix at a time.
    And the compiler sums more than 4,096 terms in a careful, slow way: a long row is summed in pieces.
    """
    pieces = next(n for n in itertools.count(1) if len(x) % n == 0 and len(x) <= 4096 * n)
    x, weight = x.float().view(pieces, -1), weight.unflatten(1, (pieces, -1))
    parts = weight.chunk(1 if x.is_cuda else 2)
    return torch.cat([(x * part.float()).sum(-1).sum(-1) for part in parts])


class RowLinear(nn.Linear):
    """nn.Linear; where it is compiled for a single row, a multiply-and-sum fused with what surrounds it."""

    def forward(self, x: Tensor) -> Tensor:
        if not compiled_row(x):
            return super().forward(x)
        y = row_product(x.view(-1), self.weight)
        y = y if self.bias is None else y + self.bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], -1)


class Int8Linear(nn.Linear):
    """nn.Linear whose weight is int8 (out, in), with one scale for each output, (out,)."""

    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if compiled_row(x) and x.is_cuda:  # a CPU's vector units are slow at turning int8 into float
            y = (row_product(x.view(-1), self.weight) * self.scale.float()).to(x.dtype)
        elif rows < MANY_ROWS:
            y = torch._weight_int8pack_mm(x.reshape(rows, -1), self.weight, self.scale)
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Int8Embedding(nn.Embedding):
    """nn.Embedding whose table is int8 (words, width), with one scale for each word, (words,)."""

    scale: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        scale = self.scale[ids].unsqueeze(-1)
        return super().forward(ids).to(scale.dtype) * scale


def to_int8(module: nn.Module) -> None:
    """Make a linear layer or an embedding table int8, in place; any other module stays as it is.

    Symmetric and per output channel: the largest value of a row of the weight becomes 127 (or -127).
    """
    kind = {nn.Linear: Int8Linear, nn.Embedding: Int8Embedding}.get(type(module))
    if kind is not None:
        weight = module.weight.detach()
        scale = weight.abs().amax(1, keepdim=True).float().clamp_min(1e-30) / 127  # (out, 1)
        module.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        module.register_buffer("scale", scale[:, 0].to(weight.dtype))
        module.__class__ = kind


def tie(head: nn.Linear, table: nn.Embedding) -> None:
    """Let the head use the embedding table as its weight, be it int8 or not."""
    head.weight = table.weight
    if isinstance(table, Int8Embedding):
        head.register_buffer("scale", table.scale)
        head.__class__ = Int8Linear


class Slot:
    """One layer's part of a cache: a step's keys and values go to one column, attention gets all columns."""

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor):
        self.keys, self.values, self.column = keys, values, column
        for tensor in (keys, values):
            torch._dynamo.mark_dynamic(tensor, 2)  # one compilation for every capacity

    def __call__(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, 1, d); return the layer's keys and values (B, K, capacity, d)."""
        return self.keys.index_copy_(2, self.column, k), self.values.index_copy_(2, self.column, v)


def head_logits(norm: nn.Module, head: nn.Linear, x: Tensor) -> Tensor:
    """The last hidden state (B, 1, D) to logits (B, vocabulary)."""
    return head(norm(x))[:, -1]


@functools.cache
def compiled(function: Callable) -> Callable:
    """`function`, compiled when first called; all layers of a decoder share the outcome."""
    limit = torch._dynamo.config.recompile_limit  # 8; each model, dtype and batch size is a variant
    torch._dynamo.config.recompile_limit = max(limit, 64)
    return torch.compile(function, fullgraph=True, dynamic=False)  # but for what is marked as dynamic


class CompiledStep:
    """The decoder for one more token of each row, behind a cache that the prompt has filled.

    Takes tokens (B,), returns logits (B, vocabulary), on CUDA in the same memory each time. Its attention is
    `query_attention`, whichever read the prompt.
    """

    def __init__(self, model: nn.Module, cache, attention_mask: Tensor | None, rope_deltas: Tensor):
        for module in (*model.model.layers.modules(), model.lm_head):
            if type(module) is nn.Linear:
                module.__class__ = RowLinear
        self.model, self.cache, self.deltas = model, cache, rope_deltas
        self.column = rope_deltas.new_tensor([cache.length])  # where the next token goes
        self.columns = torch.arange(cache.capacity, device=rope_deltas.device)
        shape = len(rope_deltas), cache.capacity
        self.real = torch.ones(shape, dtype=torch.bool, device=rope_deltas.device)
        if attention_mask is not None:
            self.real[:, : cache.length] = attention_mask.bool()
        for buffer in (cache.keys, cache.values):  # (layers, B, K, capacity, d)
            buffer[:, :, :, cache.length :] = 0  # what is hidden must be finite
        self.slots = [Slot(k, v, self.column) for k, v in zip(cache.keys, cache.values, strict=True)]
        self.token = rope_deltas.new_zeros(len(rope_deltas))
        self.graph = None
        if self.token.is_cuda:
            self.capture()

    def capture(self) -> None:
        """Record the step as a CUDA graph; what the rehearsals write, the first real step overwrites."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # the first compiles
                self.run()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.run()

    def run(self) -> Tensor:
        decoder = self.model.model
        x = decoder.embed_tokens(self.token[:, None])  # (B, 1, D)
        cos, sin = decoder.rotary_table((self.column + self.deltas).expand(3, -1, -1), x.dtype)
        visible = ((self.columns <= self.column) & self.real)[:, None, None]  # (B, 1, 1, capacity)
        torch._dynamo.mark_dynamic(visible, 3)
        how = {"implementation": "blocks", "visible": visible}  # of one query, compiled: query_attention
        for layer, slot in zip(decoder.layers, self.slots, strict=True):
            x, _ = compiled(type(layer).forward)(layer, x, cos, sin, slot, **how)
        return compiled(head_logits)(decoder.norm, self.model.lm_head, x)

    def __call__(self, token: Tensor) -> Tensor:
        self.token.copy_(token)
        if self.graph is None:
            self.logits = self.run()
        else:
            self.graph.replay()
        self.column += 1
        self.cache.length += 1
        return self.logits


class Notice:
    """Flags on their way to the host, which reads them later without waiting for work enqueued since."""

    def __init__(self, *flags: Tensor):
        self.flags, self.arrived = torch.stack(flags), None
        if self.flags.is_cuda:
            here = torch.empty(len(flags), dtype=torch.bool, pin_memory=True)
            self.flags = here.copy_(self.flags, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self) -> list[bool]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.flags.tolist()


def pick_attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The attention asked for; "auto" is the fastest of those that run everywhere."""
    auto = "blocks" if device.type == "cpu" and dtype.itemsize == 2 else "sdpa"
    return auto if name == "auto" else name


def block_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
    """The definition of attention, for one key-value head and some queries at a time; returns (B, H, T, d).

    As `attention` of qwen2vl.py calls it. The scores of a block stay in the processor's cache and are gone
    when the next one comes: memory grows with T + S. In bfloat16 on a CPU twice as fast as PyTorch's own.
    """
    (B, H, T, d), (K, S) = q.shape, k.shape[1:3]
    if T == 1 and torch.compiler.is_compiling():
        return query_attention(q, k, v, visible)
    shared, out = H // K, torch.empty_like(q)
    step = max(1, max(BLOCK_ROWS, BLOCK_SCORES // S) // shared)  # queries of each head
    for b, j, i in itertools.product(range(B), range(K), range(0, T, step)):
        heads, asked = slice(j * shared, (j + 1) * shared), slice(i, min(i + step, T))
        n = asked.stop - i
        end = S - T + asked.stop if causal else S  # the keys behind it nobody here sees
        scores = (q[b, heads, asked].flatten(0, 1) @ k[b, j, :end].T).div_(math.sqrt(d)).view(shared, n, end)
        if causal:
            future = torch.ones(n, end, dtype=torch.bool, device=q.device).triu(end - n + 1)
            scores.masked_fill_(future, -math.inf)
        elif visible is not None:
            scores.masked_fill_(~visible[b, :, asked], -math.inf)
        weights = scores.softmax(dim=-1).flatten(0, 1)  # adds up in float32, whatever the dtype
        out[b, heads, asked] = (weights @ v[b, j, :end]).view(shared, n, d)
    return out


def query_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attention of a single query (B, H, 1, d), as multiply-and-sum in float32 for the compiler to fuse."""
    groups = q.float().unflatten(1, (k.shape[1], -1))  # (B, K, H/K, 1, d)
    scores = (groups * k.float().unsqueeze(2)).sum(-1) / math.sqrt(q.shape[-1])  # (B, K, H/K, S)
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return (weights.unsqueeze(-1) * v.float().unsqueeze(2)).sum(-2).view_as(q).to(v.dtype)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, real: Tensor | None) -> Tensor:
    """FlashAttention as `attention` of qwen2vl.py asks for it; returns (B, H, T, d)."""
    return packed_attention(q, k, v, causal, real, find_flash_kernel())


def packed_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, real: Tensor | None, kernel) -> Tensor:
    """Leave out padding, lay the rows end to end, let `kernel` attend within each, and put the results back.

    kernel(q, k, v, cu_q, cu_k, max_q, max_k, causal=) gets q (tokens, H, d), k, v (tokens, K, d) and in cu_q,
    cu_k (B + 1,) where rows start; a row's queries are its last tokens. Returns (B, H, T, d).
    """
    T, S = q.shape[2], k.shape[2]
    real = q.new_ones(len(q), S, dtype=torch.bool) if real is None else real
    asks = real[:, S - T :]  # (B, T): the queries that are not padding
    lengths = asks.sum(1), real.sum(1)  # each (B,)
    starts = [F.pad(n.cumsum(0), (1, 0)).int() for n in lengths]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T or S, heads, d)
    out = torch.zeros_like(q)
    out[asks] = kernel(q[asks], k[real], v[real], *starts, *(int(n.max()) for n in lengths), causal=causal)
    return out.transpose(1, 2)


def find_flash_kernel() -> Callable[..., Tensor]:
    """The `flash_attn` package where installed, else the FlashAttention kernels in PyTorch 2.11 or newer."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("flash_attn").flash_attn_varlen_func
    if torch.__version__ < (2, 11):
        raise ValueError(f"flash_attention_2 needs flash-attn or torch 2.11, here is {torch.__version__}")
    from torch.nn.attention.varlen import varlen_attn

    def kernel(q: Tensor, k: Tensor, v: Tensor, *packed, causal: bool) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # 2.11 wants H heads
        return varlen_attn(q, k, v, *packed, window_size=(-1, 0 if causal else -1))

    return kernel
