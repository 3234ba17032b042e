"""Decoding one token at a time, compiled: the tokens of the plain step, sooner.

One new token reads every weight once and computes little with it, so a step can't be faster
than memory delivers the weights. For a single row PyTorch's matrix product gets about half
of that on a CPU. Written as a multiply-and-sum and compiled, it is one pass over the
weights at nearly full bandwidth; for weights of few bits words.py says how. On CUDA the
time of a single row goes into launching some hundred small kernels: there the whole step
becomes one CUDA graph, and the next step is enqueued before the host has looked at the
token of this one.

The compiled functions see the same shapes in every step: they read the whole cache and mask
what is not filled.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from qwen2vl_extras import words
from qwen2vl_extras.errors import raise_not_finite
from qwen2vl_extras.int4 import Int4Linear, arrange_for_compiled_steps
from qwen2vl_extras.int8 import Int8Linear
from qwen2vl_extras.words import Words, words_of

if TYPE_CHECKING:  # names of types only: when this runs, it imports nothing from above
    from qwen2vl import DecoderLayer, Generator, KVCache, Qwen2VLForConditionalGeneration, Sampling

# Each model, dtype and batch size is a variant of a compiled function; PyTorch's limit of 8
# is too low.
MAX_VARIANTS = 64
# Rows that are multiplied by weights of so many bits, one after the other.
MAX_ROWS = {16: 1, 8: 1, 4: 16}
OPTIONS: dict[str, str | int | bool | Callable] = {
    # A processor can multiply and add in one instruction, which rounds once, where two round twice.
    "cpp.enable_floating_point_contract_flag": "fast",
    # The shapes of a compiled function's inputs were asked for before it is called.
    "size_asserts": False,
}


# ------------------------------------------------------------- the functions to be compiled


def linear(layer: nn.Linear, matrix: Words | None, x: Tensor) -> Tensor:
    """layer(x) for x (..., D), written so that the compiler fuses it for a single row.

    matrix: the weight in words, where it is read so.
    """
    rows = x.view(-1, x.shape[-1])
    if matrix is not None and len(rows) <= MAX_ROWS[matrix.bits]:
        y = torch.stack([words.row_product(row, matrix) for row in rows])
    elif len(rows) == 1 and not isinstance(layer, Int4Linear):
        y = words.add_up(rows.float() * layer.weight.float())
    else:
        return layer(x)
    if isinstance(layer, Int8Linear):
        y = y * layer.scale.float()
    if layer.bias is not None:
        y = y + layer.bias.float()
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def query_attention(q: Tensor, k: Tensor, v: Tensor, is_filled: Tensor) -> Tensor:
    """Attention of one query.

    q: (B, H, 1, d); k, v: (B, K, S, d); is_filled: (B, 1, 1, S), False for keys that don't
    count. Returns (B, H, 1, d).
    """
    # Heads that share keys as queries of one head: as in sdpa_of_one_query of qwen2vl.py.
    groups = q.view(*k.shape[:2], -1, k.shape[3])  # (B, K, H/K, d)
    if q.is_cuda:
        return attend_by_sums(groups, k, v, is_filled).view_as(q)
    return F.scaled_dot_product_attention(groups, k, v, attn_mask=is_filled).view_as(q)


def attend_by_sums(q: Tensor, k: Tensor, v: Tensor, is_filled: Tensor) -> Tensor:
    """The same as multiply-and-sum in float32, for the compiler to fuse; q: (B, K, H/K, d)."""
    products = q.float().unsqueeze(3) * k.float().unsqueeze(2)  # (B, K, H/K, S, d)
    scores = products.sum(-1) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~is_filled, -math.inf).softmax(-1)
    return (weights.unsqueeze(-1) * v.float().unsqueeze(2)).sum(-2).to(v.dtype)


def layer_step(
    layer: "DecoderLayer",
    matrices: Mapping[str, Words | None],
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    column: Tensor,
    is_filled: Tensor,
) -> Tensor:
    """A decoder layer for one token of each row: what DecoderLayer.forward computes.

    matrices: the layer's weights in words, by name; x: (B, 1, D); keys, values: the layer's part
    of the cache, (B, K, capacity, d), written at `column` (1,); is_filled: (B, 1, 1, capacity).
    Returns (B, 1, D).
    """
    attn, mlp = layer.self_attn, layer.mlp
    y = layer.input_layernorm(x)
    q = attn.rotated_heads(linear(attn.q_proj, matrices["q_proj"], y), cos, sin)  # (B, H, 1, d)
    k = attn.rotated_heads(linear(attn.k_proj, matrices["k_proj"], y), cos, sin)  # (B, K, 1, d)
    v = attn.split_heads(linear(attn.v_proj, matrices["v_proj"], y))

    # The new keys and values go into their column of the cache.
    keys.index_copy_(2, column, k)
    values.index_copy_(2, column, v)
    attended = query_attention(q, keys, values, is_filled)  # (B, H, 1, d)
    x = x + linear(attn.o_proj, matrices["o_proj"], attended.transpose(1, 2).flatten(2))

    y = layer.post_attention_layernorm(x)
    gate = linear(mlp.gate_proj, matrices["gate_proj"], y)
    up = linear(mlp.up_proj, matrices["up_proj"], y)
    return x + linear(mlp.down_proj, matrices["down_proj"], F.silu(gate) * up)


def head_step(norm: nn.Module, head: nn.Linear, matrix: Words | None, x: Tensor) -> Tensor:
    """The last hidden state (B, 1, D) to logits (B, vocabulary)."""
    return linear(head, matrix, norm(x))[:, -1]


@functools.cache
def compile_once(function: Callable) -> Callable:
    """The compiled function, made when it is first called and shared by all layers."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, MAX_VARIANTS)
    # Shapes are fixed, but for what mark_dynamic names.
    return torch.compile(function, fullgraph=True, dynamic=False, options=OPTIONS)


def matrices_of(layer: nn.Module) -> dict[str, Words | None]:
    """The weights of a layer's matrices in words, by name: "q_proj" and so on."""
    found = {}
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            found[name.rpartition(".")[2]] = words_of(module)
    return found


# ----------------------------------------------------------------------- a step of decoding


class CompiledStep:
    """The decoder for one more token of each row: tokens (B,) to logits (B, vocabulary).

    It takes the place of PlainStep in qwen2vl.py and goes on with a cache that the prompt has
    filled. On the model nothing changes but the order of four-bit weights. On CUDA the logits are
    in the same memory each time.
    """

    def __init__(
        self,
        model: "Qwen2VLForConditionalGeneration",
        cache: "KVCache",
        attention_mask: Tensor | None,
        rope_deltas: Tensor,
    ) -> None:
        batch, device = len(rope_deltas), rope_deltas.device
        arrange_for_compiled_steps(model.model.layers)
        self.model = model
        self.matrices = [matrices_of(layer) for layer in model.model.layers]
        self.head_matrix = words_of(model.lm_head)
        self.cache = cache
        self.rope_deltas = rope_deltas
        self.token = rope_deltas.new_zeros(batch)
        self.column = rope_deltas.new_tensor([cache.length])  # of the cache, for the next token

        # Which columns hold tokens: all of the prompt but padding, and later those up to
        # `column`.
        self.columns = torch.arange(cache.capacity, device=device)
        self.is_token = torch.ones(batch, cache.capacity, dtype=torch.bool, device=device)
        if attention_mask is not None:
            self.is_token[:, : cache.length] = attention_mask.bool()

        # Columns that are not filled yet are masked, but even so they must be finite.
        cache.keys[:, :, :, cache.length :] = 0  # (layers, B, K, capacity, d)
        cache.values[:, :, :, cache.length :] = 0
        self.keys = list(cache.keys)
        self.values = list(cache.values)
        for tensor in (*self.keys, *self.values):
            torch._dynamo.mark_dynamic(tensor, 2)  # one compilation for every capacity

        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self.capture()

    def __call__(self, token: Tensor) -> Tensor:
        self.token.copy_(token)
        if self.graph is None:
            self.logits = self.run()
        else:
            self.graph.replay()  # reads self.token, writes self.logits
        self.column += 1
        self.cache.length += 1
        return self.logits

    def run(self) -> Tensor:
        """All layers for self.token at self.column: logits (B, vocabulary)."""
        decoder = self.model.model
        x = decoder.embed_tokens(self.token[:, None])  # (B, 1, D)
        positions = (self.column + self.rope_deltas).expand(3, -1, -1)  # (3, B, 1)
        cos, sin = decoder.rotary_table(positions, x.dtype)
        is_filled = ((self.columns <= self.column) & self.is_token)[
            :, None, None
        ]  # (B, 1, 1, capacity)
        torch._dynamo.mark_dynamic(is_filled, 3)

        run_layer = compile_once(layer_step)
        by_layer = zip(decoder.layers, self.matrices, self.keys, self.values, strict=True)
        for layer, matrices, keys, values in by_layer:
            x = run_layer(layer, matrices, x, cos, sin, keys, values, self.column, is_filled)
        return compile_once(head_step)(decoder.norm, self.model.lm_head, self.head_matrix, x)

    def capture(self) -> None:
        """Record the step as a CUDA graph.

        What the two rehearsals write, the first real step overwrites.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run()  # compiles
            self.run()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.run()


# ------------------------------------------------------------ host and GPU at the same time


class DeferredFlags:
    """Booleans on their way from the GPU to the host.

    They are read later, without waiting for work that was enqueued since.
    """

    def __init__(self, *flags: Tensor) -> None:
        self.flags = torch.stack(flags)
        self.arrival: torch.cuda.Event | None = None
        if self.flags.is_cuda:
            on_host = torch.empty(len(flags), dtype=torch.bool, pin_memory=True)
            self.flags = on_host.copy_(self.flags, non_blocking=True)
            self.arrival = torch.cuda.Event()
            self.arrival.record()

    def read(self) -> list[bool]:
        """The flags' values, once they have arrived."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.flags.tolist()


def decode_ahead(
    step: CompiledStep,
    logits: Tensor,
    input_ids: Tensor,
    max_new_tokens: int,
    sampling: "Sampling",
    generator: "Generator | None",
    next_token: Callable[[Tensor, Tensor, "Sampling", "Generator | None"], Tensor],
) -> Iterator[Tensor]:
    """The loop `decode` of qwen2vl.py, one step ahead of the host.

    The next step is enqueued before the host looks at the flags of this one. The same
    tokens; the step after the last token is computed in vain.
    """
    end_tokens = input_ids.new_tensor(sampling.eos_token_id)
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)  # (B,)
    for i in range(max_new_tokens):
        is_finite = logits.isfinite().all()
        token = next_token(logits, input_ids, sampling, generator)  # (B,)
        token = token.masked_fill(finished, sampling.pad_token_id)
        finished = finished | torch.isin(token, end_tokens)
        input_ids = torch.cat((input_ids, token[:, None]), dim=1)
        flags = DeferredFlags(is_finite, finished.all())

        # The GPU goes on while the host reads the flags and its caller reads the token.
        is_last = i == max_new_tokens - 1
        if not is_last:
            logits = step(token)
        all_finite, all_finished = flags.read()
        if not all_finite:
            raise_not_finite(logits.dtype, step.model.named_parameters())
        yield token
        if all_finished or is_last:
            return
