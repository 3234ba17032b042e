"""Qwen2-VL (arXiv 2409.12191): images, videos and text in, text out.

Plain PyTorch, from top to bottom: configuration, rotary positions, attention, vision
transformer, M-RoPE positions, decoder, sampling, generation loop, and the whole model. Two
things differ from a plain vision-language model:

  * An image keeps its own size. Each patch of 14 x 14 pixels is a token of the vision
    transformer, and 2 x 2 of those become one token of the decoder, so a larger image gives
    more tokens (section 2.1 of the paper).
  * Positions have more than one axis. The vision transformer rotates queries and keys by a
    patch's row and column (2D RoPE), the decoder by a token's time, row and column (M-RoPE,
    section 2.1).

Module attributes carry the names of the official checkpoint. "The reference" is the
implementation in `transformers`, whose results this file reproduces. Shapes are written in
these letters:

  B  batch          T  tokens in this call     S  tokens so far: those in the cache and these T
  H  query heads    K  key-value heads         d  size of a head
  P  patches of one frame                      D  hidden size, of the decoder or the vision part
  t, h, w           a grid in patches: pairs of frames, rows, columns
  1176              values of a patch: 3 channels * 2 frames * 14 * 14 pixels

A patch is two frames deep, so a "frame" of the vision transformer is a pair of a video's
frames; an image stands for both. processor.py makes the inputs: pixel_values are normalised
patches, and input_ids have a placeholder token for each 2 x 2 patches.
"""

if __name__ == "__main__":  # Ctrl-C ends it quietly, also while the imports take their time
    from qwen2vl_extras import interrupts

    interrupts.exit_on_ctrl_c()

import math
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import load  # reading checkpoints
from qwen2vl_extras import (
    arguments,
    checks,
    compiled,
    distributed,
    first_calls,
    flash,
    lora,
    packed_layers,
    packed_saving,
    placement,
    processes,
    products,
    repeats,
    schemas,
    spread,
)
from qwen2vl_extras.errors import raise_not_finite, refuse_equal_logits
from qwen2vl_extras.int8 import Int8Embedding, Int8Linear
from qwen2vl_extras.outputs import FieldMapping, GenerationConfig, default_length
from qwen2vl_extras.quantization import Quantization
from qwen2vl_extras.streaming import Streamer, check_streamer, feed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

first_calls.settle()  # or the first rotary table may be inexact

# Constants of the architecture that the official config.json leaves out.
VISION_NORM_EPS = 1e-6
VISION_ROPE_THETA = 10_000.0

ATTENTION_IMPLEMENTATIONS = ("eager", "sdpa", "chunked", "flash_attention_2")


# ---------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision transformer: the section `vision_config` of config.json.

    The 2B, 7B and 72B models share one vision transformer. Files leave out what equals it.
    """

    depth: int = 32  # number of transformer blocks
    embed_dim: int = 1280  # D of the vision transformer
    num_heads: int = 16
    mlp_ratio: float = 4.0
    in_chans: int = 3
    hidden_size: int = 3584  # D of the decoder (7B's), under its official name: the merger's output
    patch_size: int = 14  # pixels
    spatial_merge_size: int = 2  # a token is made of 2 x 2 patches
    temporal_patch_size: int = 2  # a patch is two frames deep


@dataclass(frozen=True)
class Qwen2VLConfig:
    """Sizes and token ids of the whole model, as in config.json.

    A field with a default may be absent there: the whole family has this value.
    """

    vocab_size: int
    hidden_size: int  # D of the decoder
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # K
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: list[int]  # how many of the d/2 frequencies rotate by time, by row and by column
    tie_word_embeddings: bool = False
    bos_token_id: int = 151643
    eos_token_id: int | list[int] = 151645  # one or several
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_config: VisionConfig = field(default_factory=VisionConfig)

    @classmethod
    def from_dict(cls, config: dict) -> "Qwen2VLConfig":
        """Read the content of a config.json.

        ValueError names the fields that it lacks, or the first whose value is not allowed.
        """
        schemas.check("config.json", config, schemas.CONFIG)
        # Newer files keep the decoder's fields in a section of their own. In the flat form
        # they are at the top, and rope_scaling and vision_config are there, if only as {}.
        flat = load.flatten_config(config)
        flat["mrope_section"] = flat["rope_scaling"].get("mrope_section")

        # Everything that is missing is listed in one error.
        required = [f.name for f in fields(cls) if f.default is MISSING]
        required.remove("vision_config")  # each of its fields has a default
        missing = [name for name in required if flat.get(name) is None]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")

        # A config.json has more entries than these; the others are not needed to run the model.
        flat["vision_config"] = VisionConfig(**stated_fields(VisionConfig, flat["vision_config"]))
        result = cls(**stated_fields(cls, flat))
        sizes = asdict(result)
        sizes["head_dim"] = flat.get("head_dim")  # seldom there, and no size of its own
        schemas.check_sizes("config.json", sizes)
        return result

    @classmethod
    def from_pretrained(cls, name: str, base: str | Path | None = None) -> "Qwen2VLConfig":
        """The config of "tiny" (a checkpoint that comes with this code), a folder, or a Hub
        name. base: of a LoRA adapter, whose config it is.
        """
        folder, _ = load.find_base_and_adapter(name, base, weights=False)
        return cls.from_dict(load.read_config(folder))

    def to_dict(self) -> dict:
        """The official flat layout of config.json, which `transformers` reads as well."""
        config = asdict(self)
        config["rope_scaling"] = {"type": "mrope", "mrope_section": config.pop("mrope_section")}
        # Constant for all Qwen2-VL checkpoints.
        config["architectures"] = ["Qwen2VLForConditionalGeneration"]
        config["model_type"] = "qwen2_vl"
        config["hidden_act"] = "silu"
        return config

    @property
    def head_dim(self) -> int:  # d
        return self.hidden_size // self.num_attention_heads


def stated_fields(cls: type[VisionConfig] | type[Qwen2VLConfig], stated: dict) -> dict:
    """The entries of a section of config.json that are fields of `cls`; None is absent."""
    names = [f.name for f in fields(cls)]
    return {name: stated[name] for name in names if stated.get(name) is not None}


# ---------------------------------------------------------------- rotary position embedding


def rope_frequencies(size: int, theta: float, device: torch.device) -> Tensor:
    """Radians per position, theta^(-2i/size) for i = 0, 1, ...: (size / 2,) in float32."""
    exponents = torch.arange(0, size, 2, device=device).float() / size
    return 1.0 / theta**exponents


def rotate_half(x: Tensor) -> Tensor:
    """Return (-b, a), where a and b are the two halves of the last axis of x."""
    first_half, second_half = x.chunk(2, dim=-1)
    return torch.cat((-second_half, first_half), dim=-1)


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + d/2]) of x (..., d) by its angle.

    cos and sin (..., d) must broadcast to x. Some other models pair i with i + 1 instead.
    """
    return x * cos + rotate_half(x) * sin


# -------------------------------------------------------------------------------- attention


def causal_triangle(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """(T, S) booleans, True where a query attends to a key.

    The T queries are the last of the S positions: with a cache T is smaller than S.
    """
    every_pair = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return every_pair.tril(num_keys - num_queries)


@dataclass(frozen=True)
class AttentionMask:
    """Which keys the queries of one call attend to.

    Without padding `causal` says it all. With padding there are two more forms:
    FlashAttention takes `causal` and `key_padding_mask`, the others take `dense`, which
    holds both.
    """

    causal: bool = False  # a query attends to its own position and to those before it
    # (B, S), False for padding; None without padding.
    key_padding_mask: Tensor | None = None
    # (B, 1, T, S), True where a query attends to a key; None without padding.
    dense: Tensor | None = None

    @classmethod
    def for_decoder(
        cls, attention_mask: Tensor | None, batch: int, num_queries: int, num_keys: int
    ) -> "AttentionMask":
        """A causal mask that leaves out the padding, where attention_mask (B, S) is 0."""
        if attention_mask is None:
            return cls(causal=True)
        if attention_mask.shape != (batch, num_keys):
            found = tuple(attention_mask.shape)
            raise ValueError(f"attention_mask is {found}, ({batch}, {num_keys}) is needed")
        if attention_mask.all():  # nothing to leave out
            return cls(causal=True)

        key_padding_mask = attention_mask.bool()
        # A key counts if it is no padding and not later than the query.
        device = attention_mask.device
        triangle = causal_triangle(num_queries, num_keys, device)  # (T, S)
        dense = triangle & key_padding_mask[:, None]  # (B, T, S)

        # A query in the padding on the left would attend to nothing, and a softmax over
        # nothing is NaN. It attends to itself instead.
        key_positions = torch.arange(num_keys, device=device)
        query_positions = key_positions[num_keys - num_queries :]
        dense = dense | (query_positions[:, None] == key_positions)
        return cls(causal=True, key_padding_mask=key_padding_mask, dense=dense[:, None])

    def to_dense(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
        """(B, 1, T, S) or (T, S) booleans; None if every query attends to every key."""
        if self.dense is not None:
            return self.dense
        if self.causal and num_queries > 1:  # a single new token attends to all before it
            return causal_triangle(num_queries, num_keys, device)
        return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, implementation: str
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention by the named implementation and no other.

    q: (B, H, T, d); k, v: (B, K, S, d) with H a multiple of K. Returns the result, (B, T,
    D), and the weights (B, H, T, S), which only "eager" keeps. In the vision transformer a
    frame is a row of the batch, and T and S are its patches. ValueError for an unknown
    name, or where the implementation can't run.
    """
    weights = None
    if implementation == "eager":
        out, weights = eager_attention(q, k, v, mask)
    elif implementation == "sdpa":
        out = sdpa_attention(q, k, v, mask)
    elif implementation == "chunked":
        out = chunked_attention(q, k, v, mask)
    elif implementation == "flash_attention_2":
        out = flash.flash_attention(q, k, v, mask.causal, mask.key_padding_mask)
    else:
        known = ", ".join(ATTENTION_IMPLEMENTATIONS)
        raise ValueError(f"attention {implementation!r} is none of {known}")
    return out.transpose(1, 2).flatten(2), weights  # the heads side by side again


def eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> tuple[Tensor, Tensor]:
    """The definition, softmax(q k^T / sqrt(d)) v: (B, H, T, d) and weights (B, H, T, S)."""
    # Grouped-query attention: each key-value head serves H / K query heads.
    group = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(group, dim=1)  # (B, H, S, d)
    v = v.repeat_interleave(group, dim=1)

    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    # A score of minus infinity becomes a weight of 0.
    dense = mask.to_dense(q.shape[2], k.shape[2], q.device)
    if dense is not None:
        scores = scores.masked_fill(~dense, -math.inf)

    # The softmax is computed in float32: a sum in bfloat16 would lose its small terms.
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return weights @ v, weights


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """PyTorch's fused attention, which never stores the T x S scores: (B, H, T, d)."""
    if q.shape[2] == 1:
        return sdpa_of_one_query(q, k, v, mask)
    num_queries, num_keys = q.shape[2], k.shape[2]
    # is_causal puts its triangle at the top left, where it belongs only if T = S. On MPS it is
    # never used: in half precision it lets a query see the future (pytorch issue 195910).
    builtin_triangle_fits = num_queries == num_keys and q.device.type != "mps"
    is_causal = mask.causal and mask.dense is None and builtin_triangle_fits
    attn_mask = None if is_causal else mask.to_dense(num_queries, num_keys, q.device)
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=is_grouped
    )


def sdpa_of_one_query(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """The same for the one token of a step of decoding, q (B, H, 1, d): (B, H, 1, d).

    Heads that share keys and values stand as queries of one head, so that these are read
    once for all of them: on a CPU two to ten times as fast.
    """
    dense = mask.to_dense(1, k.shape[2], q.device)  # (B, 1, 1, S) or None
    queries = q.view(*k.shape[:2], -1, k.shape[3])  # (B, K, H / K, d)
    return F.scaled_dot_product_attention(queries, k, v, attn_mask=dense).view_as(q)


CHUNK_SCORES = 2**20  # about as many scores as a CPU's cache holds
MIN_CHUNK_ROWS = 64  # fewer rows would make the matrix products slow


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """The definition, for one key-value head and some queries at a time: (B, H, T, d).

    The scores of a chunk stay in the CPU's cache and are gone when the next chunk comes, so
    memory grows with T + S instead of T * S. The default for 16-bit dtypes on CPUs that
    multiply these themselves: in bfloat16 it is twice as fast there as PyTorch's fused
    attention, and on other CPUs thirty times slower.
    """
    batch, num_heads = q.shape[:2]
    num_kv_heads = k.shape[1]
    group = num_heads // num_kv_heads  # query heads that share a key-value head
    out = torch.empty_like(q)
    for b in range(batch):
        dense = None if mask.dense is None else mask.dense[b]  # (1, T, S)
        for i in range(num_kv_heads):
            heads = slice(i * group, (i + 1) * group)
            attend_group(out[b, heads], q[b, heads], k[b, i], v[b, i], dense, mask.causal)
    return out


def attend_group(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, dense: Tensor | None, causal: bool
) -> None:
    """Write to out (heads, T, d) the attention of heads q that share keys and values (S, d).

    q: (heads, T, d); dense: (1, T, S) or None, as in AttentionMask.
    """
    num_heads, num_queries, _ = q.shape
    num_keys = len(k)
    # A row of scores belongs to one query of one head.
    rows = max(MIN_CHUNK_ROWS, CHUNK_SCORES // num_keys)
    chunk_size = max(1, rows // num_heads)  # queries of each head, at least one

    for start in range(0, num_queries, chunk_size):
        stop = min(start + chunk_size, num_queries)
        chunk = q[:, start:stop]
        if dense is not None:
            out[:, start:stop] = attend_chunk(chunk, k, v, dense[:, start:stop])
        elif causal:
            # Keys after the last query of the chunk are masked for all of it: leave them out.
            visible_keys = num_keys - num_queries + stop
            triangle = causal_triangle(stop - start, visible_keys, q.device)
            out[:, start:stop] = attend_chunk(chunk, k[:visible_keys], v[:visible_keys], triangle)
        else:
            out[:, start:stop] = attend_chunk(chunk, k, v, None)


def attend_chunk(q: Tensor, k: Tensor, v: Tensor, dense: Tensor | None) -> Tensor:
    """Attention of n queries of each head: (heads, n, d).

    q: (heads, n, d); k, v: (S, d); dense: (n, S) or (1, n, S), or None.
    """
    heads, n, d = q.shape
    # All heads use the same keys, so their queries are the rows of one matrix product.
    scores = (q.flatten(0, 1) @ k.T).div_(math.sqrt(d)).view(heads, n, -1)
    if dense is not None:
        scores.masked_fill_(~dense, -math.inf)
    weights = scores.softmax(dim=-1)  # of 16-bit scores it adds up in float32 by itself
    return (weights.flatten(0, 1) @ v).view(heads, n, d)


def pick_attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation asked for; "auto" is the fastest of those that run everywhere."""
    if name != "auto":
        return name
    # A CPU that multiplies 16-bit numbers itself does so faster than sdpa, which converts them.
    if device.type == "cpu" and dtype.itemsize == 2 and products.multiplies(dtype):
        return "chunked"
    return "sdpa"


def check_attention_runs(implementation: str, device: torch.device, dtype: torch.dtype) -> None:
    """ValueError if the implementation can't run on this device in this dtype."""
    # One query and one key are enough to find out.
    x = torch.ones(1, 1, 1, 8, device=device, dtype=dtype)
    attention(x, x, x, AttentionMask(), implementation)


# ----------------------------------------------------------------------- vision transformer


class PatchEmbed(nn.Module):
    """A patch of 3 channels x 2 frames x 14 x 14 pixels becomes one vector.

    The checkpoint holds a Conv3d whose stride is its kernel. That is a matrix product, and
    computed as one it is 10 to 20 times faster.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.embed_dim, kernel, stride=kernel, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Patches (..., 1176) to vectors (..., D)."""
        # The kernel as a matrix: a row of it for each output value.
        weight = self.proj.weight.flatten(1)  # (D, 3 * 2 * 14 * 14)
        # How pixels lie in memory must not matter: some CPUs would add columns in another order.
        return F.linear(pixels.to(weight.dtype).contiguous(), weight)


class VisionAttention(nn.Module):
    """Every patch of a frame attends to every patch of the same frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.embed_dim // config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, implementation: str) -> Tensor:
        """(t, P, D) to (t, P, D); cos and sin (P, d)."""
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))  # (t, P, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (t, H, P, d)

        # In float32, unlike the decoder: as the reference does.
        q = apply_rotary_emb(q.float(), cos, sin).to(v.dtype)
        k = apply_rotary_emb(k.float(), cos, sin).to(v.dtype)

        # The empty mask: every patch of a frame attends to every other.
        out, _ = attention(q, k, v, AttentionMask(), implementation)  # (t, P, D)
        return self.proj(out)


class VisionMlp(nn.Module):
    """Two linear layers with quick-GELU, x * sigmoid(1.702 x), between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        inner = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, inner)
        self.fc2 = nn.Linear(inner, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        # quick-GELU, which the released weights were trained with.
        return self.fc2(x * torch.sigmoid(1.702 * x))


class VisionBlock(nn.Module):
    """Attention, then the MLP, each on normalised input and added to the residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=VISION_NORM_EPS)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=VISION_NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, implementation: str) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, implementation)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """2 x 2 patches become one token of the decoder: a reshape and an MLP.

    The processor puts the four patches of a square one after another, so four rows that
    follow one another are one square, and `view` joins them.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merged_dim = config.embed_dim * config.spatial_merge_size**2  # 4 * D
        self.ln_q = nn.LayerNorm(config.embed_dim, eps=VISION_NORM_EPS)
        fc1 = nn.Linear(self.merged_dim, self.merged_dim)
        fc2 = nn.Linear(self.merged_dim, config.hidden_size)
        self.mlp = nn.Sequential(fc1, nn.GELU(), fc2)

    def forward(self, x: Tensor) -> Tensor:
        """(t, P, D) to (t * P/4, D of the decoder)."""
        return self.mlp(self.ln_q(x).view(-1, self.merged_dim))


class VisionTransformer(nn.Module):
    """The patches of images and videos become tokens of the decoder.

    Each image is encoded by itself, so its features do not depend on the rest of the batch,
    to the last bit. In a video each pair of frames attends only to itself; all pairs have
    one size and go through together.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(
        self, pixel_values: Tensor, grid_thw: Tensor, implementation: str = "sdpa"
    ) -> Tensor:
        """Features (patches / 4, D of the decoder) of images or videos.

        pixel_values: (patches, 1176), the patches of all; grid_thw: (images, 3).
        """
        self.check_media(pixel_values, grid_thw)
        if pixel_values is None:
            raise ValueError("pixel_values is None, a tensor of patches is needed")
        sizes = grid_thw.prod(-1).tolist()
        images = pixel_values.split(sizes)
        grids = grid_thw.tolist()
        # What is there several times, as in questions about one image, is encoded once.
        first = repeats.first_of_equal(images, grids)
        features: list[Tensor] = []
        for i, (t, h, w) in enumerate(grids):
            if first[i] < i:
                features.append(features[first[i]])
            else:
                features.append(self.encode(images[i], t, h, w, implementation))
        return torch.cat(features)

    def check_media(
        self, pixel_values: Tensor | None, grid_thw: Tensor | None, kind: str = "image"
    ) -> None:
        """ValueError unless these fit together; kind: what it calls them, "image" or "video"."""
        weight = self.patch_embed.proj.weight  # (D, 3, 2, 14, 14)
        merge_size = self.config.spatial_merge_size
        checks.check_media(
            kind, pixel_values, grid_thw, weight[0].numel(), merge_size, weight.device
        )

    def encode(
        self, pixels: Tensor, t: int, h: int, w: int, implementation: str = "sdpa"
    ) -> Tensor:
        """One image (t = 1) or video: patches (t * h * w, 1176) to features (t * h * w / 4, D)."""
        x = self.patch_embed(pixels).view(t, h * w, -1)  # (t, P, D)
        # Time takes no part, so all frames share one table.
        cos, sin = self.rotary_table(h, w, x.device)
        for block in self.blocks:
            x = block(x, cos, sin, implementation)
        return self.merger(x)

    def rotary_table(self, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin (P, d) of a frame, by the row and column of each patch.

        The d/2 angles of a patch are d/4 for its row and d/4 for its column. They come
        twice, since apply_rotary_emb pairs i with i + d/2.
        """
        head_dim = self.config.embed_dim // self.config.num_heads
        frequencies = rope_frequencies(head_dim // 2, VISION_ROPE_THETA, device)  # (d/4,)

        # Row and column of every patch, line by line.
        rows, columns = torch.arange(h, device=device), torch.arange(w, device=device)
        positions = torch.cartesian_prod(rows, columns)  # (P, 2)

        # In the order of the patches: the four of a square follow one another.
        m = self.config.spatial_merge_size
        # (row of squares, row in the square, column of squares, column in the square, 2)
        positions = positions.view(h // m, m, w // m, m, 2)
        # (row of squares, column of squares, row in the square, column in the square, 2)
        positions = positions.transpose(1, 2).reshape(h * w, 2)

        angles = positions[:, :, None] * frequencies  # (P, 2, d/4)
        angles = angles.flatten(1)  # (P, d/2)
        angles = torch.cat((angles, angles), dim=-1)  # (P, d)
        return angles.cos(), angles.sin()


# ----------------------------------------------------------------- positions of the decoder


def get_rope_index(
    config: Qwen2VLConfig,
    input_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The position of each token in time, row and column (M-RoPE, section 2.1).

    input_ids: (B, T); grids: (images or videos, 3) in patches, in prompt order over the
    batch; attention_mask: (B, T), 0 for padding, which gets position 1 as in the reference.
    Returns positions (3, B, T) and rope_deltas (B, 1), which decoding adds to the index of
    a token to get its position: a prompt of 100 tokens, padding included, whose next
    position is 40 has the delta -60.
    """
    checks.check_ids(input_ids, config)
    batch, length = input_ids.shape
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    checks.check_mask(attention_mask, batch, length, input_ids.device, is_prompt=True)

    # The grids that have not been used yet, by the placeholder token that stands for them.
    merge_size = config.vision_config.spatial_merge_size
    grids: dict[int, deque[list[int]]] = {}
    for kind, token_id, grid_thw in (
        ("image", config.image_token_id, image_grid_thw),
        ("video", config.video_token_id, video_grid_thw),
    ):
        grids[token_id] = deque()
        if grid_thw is not None:
            grids[token_id].extend(checks.read_grids(f"{kind}_grid_thw", grid_thw, merge_size))

    position_ids = input_ids.new_ones(3, batch, length)
    rope_deltas = input_ids.new_zeros(batch, 1)
    for b in range(batch):
        # Padding takes no position.
        is_token = attention_mask[b].bool()
        tokens = input_ids[b, is_token].tolist()
        check_placeholders(tokens, grids, merge_size, b)
        positions, next_position = prompt_positions(tokens, grids, merge_size)
        position_ids[:, b, is_token] = input_ids.new_tensor(positions).view(-1, 3).T
        rope_deltas[b] = next_position - length

    unused = sum(len(waiting) for waiting in grids.values())
    if unused:
        raise ValueError(
            f"{unused} images or videos were given that the prompt has no placeholders for"
        )
    return position_ids, rope_deltas


def check_placeholders(
    tokens: list[int], grids: dict[int, deque[list[int]]], merge_size: int, b: int
) -> None:
    """ValueError unless prompt b has the placeholders that its images and videos need.

    Those of one image or video must follow one another.
    """
    # Looks at the grids without taking them.
    upcoming = {token: iter(waiting) for token, waiting in grids.items()}
    i = 0
    while i < len(tokens):
        token = tokens[i]
        span = 1  # how many tokens belong together
        if token in grids:
            grid = next(upcoming[token], None)
            if grid is None:
                raise ValueError(
                    f"prompt {b} has placeholders for an image or video that was not given"
                )
            span = math.prod(grid) // merge_size**2
            found = tokens[i : i + span].count(token)
            if found < span:
                raise ValueError(
                    f"prompt {b} has {found} placeholders where an image or video gives {span}"
                )
        i += span


def prompt_positions(
    tokens: list[int], grids: dict[int, deque[list[int]]], merge_size: int
) -> tuple[list[tuple[int, int, int]], int]:
    """(time, row, column) of every token of a prompt, and the next free position.

    Text counts 0, 1, 2 ... on all three axes. An image or video starts at the next free
    position and adds its own frame, row and column. What follows goes on at the largest
    position so far + 1, on whichever axis that is. The grids that are used leave `grids`.
    """
    positions: list[tuple[int, int, int]] = []
    start = 0  # the next free position
    while len(positions) < len(tokens):
        # The next token is text, which counts like an image of a single token, or a placeholder.
        token = tokens[len(positions)]
        t, h, w = 1, 1, 1
        if token in grids:
            t, h, w = grids[token].popleft()
            h, w = h // merge_size, w // merge_size
        # In the order of the tokens: frame by frame, line by line.
        for time in range(t):
            for row in range(h):
                for column in range(w):
                    positions.append((start + time, start + row, start + column))
        start += max(t, h, w)
    return positions, start


# ---------------------------------------------------------------------------------- decoder


class KVCache:
    """Keys and values of all tokens so far, in memory that is allocated once.

    `length` counts the tokens that it holds; the decoder advances it after its last layer.
    """

    def __init__(
        self,
        config: Qwen2VLConfig,
        batch: int,
        capacity: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        shape = (layers, batch, heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)  # (layers, B, K, capacity, d)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0

    def crop(self, length: int) -> None:
        """Forget all tokens but the first `length`: the next ones are written over the others."""
        checks.check_integer("length", length, 0, self.length)
        self.length = length

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens, if there is less; what the cache holds stays."""
        missing = capacity - self.capacity
        if missing > 0:
            keys = F.pad(self.keys, (0, 0, 0, missing))
            values = F.pad(self.values, (0, 0, 0, missing))
            self.keys, self.values, self.capacity = keys, values, capacity

    def layer(self, index: int) -> "LayerCache":
        """The part of the cache that decoder layer `index` reads and writes."""
        return LayerCache(self, index)


@dataclass(frozen=True)
class LayerCache:
    """One layer's part of a KVCache."""

    cache: KVCache
    index: int

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, K, T, d); return all keys and values so far (B, K, S, d)."""
        start = self.cache.length
        end = start + k.shape[2]
        if end > self.cache.capacity:
            raise ValueError(f"the cache holds {self.cache.capacity} tokens, {end} are needed")
        keys, values = self.cache.keys[self.index], self.cache.values[self.index]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return keys[:, :, :end], values[:, :, :end]


class RMSNorm(nn.Module):
    """x over the root of its mean square, computed in float32, times a learned weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # The square of a float16 above 255 would overflow.
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention in which H query heads share K key-value heads."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        # Queries, keys and values have a bias, the output has none.
        self.q_proj = nn.Linear(config.hidden_size, query_size)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: AttentionMask,
        implementation: str,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D) to (B, T, D), and the attention weights (B, H, T, S) of "eager"."""
        q = self.rotated_heads(self.q_proj(x), cos, sin)  # (B, H, T, d)
        k = self.rotated_heads(self.k_proj(x), cos, sin)  # (B, K, T, d)
        v = self.split_heads(self.v_proj(x))  # (B, K, T, d)

        # Keys are cached after their rotation: a token's position never changes.
        if cache is not None:
            k, v = cache.update(k, v)  # (B, K, S, d)
        out, weights = attention(q, k, v, mask, implementation)
        return self.o_proj(out), weights

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * d) to (B, heads, T, d)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def rotated_heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys (B, T, heads * d) to (B, heads, T, d), rotated by their positions."""
        # In the dtype of x, unlike the vision transformer: as the reference does.
        return apply_rotary_emb(self.split_heads(x), cos, sin)


class MLP(nn.Module):
    """SwiGLU: one projection, passed through SiLU, is the gate of another."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention, then the MLP, each on normalised input and added to the residual."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: AttentionMask,
        implementation: str,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D) to (B, T, D), and the attention weights (B, H, T, S) of "eager"."""
        # Tokens exchange information here, and nowhere else.
        attended, weights = self.self_attn(
            self.input_layernorm(x), cos, sin, mask, implementation, cache
        )
        x = x + attended
        # Each token is processed by itself.
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x, weights


class Qwen2VLModel(nn.Module):
    """The decoder: token ids or embeddings in, hidden states out.

    In the checkpoint the names of its parameters start with `model.`.
    """

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.config = config
        # Values to be replaced by a checkpoint (to train from nothing, start smaller). On
        # the meta device nn.Embedding's own initialisation would import torch._dynamo,
        # which takes a second.
        table = torch.empty(config.vocab_size, config.hidden_size).uniform_(-1, 1)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: KVCache | None = None,
        implementation: str = "sdpa",
        hidden_states: list[Tensor] | None = None,
        attentions: list[Tensor] | None = None,
    ) -> Tensor:
        """The last hidden state (B, T, D), after the final norm.

        input_ids: (B, T), or inputs_embeds: (B, T, D); attention_mask: (B, S), 0 for
        padding; position_ids: (3, B, T), by default those of text, 0, 1, 2 ... on all axes;
        past_key_values: the cache, under its name in `transformers`. A list given as
        hidden_states is filled with one tensor (B, T, D) more than there are layers, from
        the embeddings to the normalised last; one given as attentions with the weights of
        each layer, (B, H, T, S).
        """
        batch, length = checks.check_decoder(
            self.config,
            self.embed_tokens.weight.device,
            self.norm.weight.dtype,
            input_ids,
            inputs_embeds,
            attention_mask,
            position_ids,
            past_key_values,
        )
        if attentions is not None and implementation != "eager":
            raise ValueError(f"{implementation} keeps no attention weights, eager does")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        past = 0 if past_key_values is None else past_key_values.length
        if position_ids is None:
            numbers = torch.arange(past, past + length, device=x.device)
            position_ids = numbers.expand(3, batch, length)

        # The rotary table and the mask are the same in all layers.
        cos, sin = self.rotary_table(position_ids, x.dtype)
        mask = AttentionMask.for_decoder(attention_mask, batch, length, past + length)
        for i, layer in enumerate(self.layers):
            if hidden_states is not None:
                hidden_states.append(x)
            layer_cache = None if past_key_values is None else past_key_values.layer(i)
            x, weights = layer(x, cos, sin, mask, implementation, layer_cache)
            if attentions is not None:
                attentions.append(weights)

        # After the last layer, since each layer writes its keys and values from this length on.
        if past_key_values is not None:
            past_key_values.length += length
        x = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x

    def rotary_table(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin (B, 1, T, d) of positions (3, B, T), the same for all heads."""
        theta, device = self.config.rope_theta, position_ids.device
        frequencies = rope_frequencies(self.config.head_dim, theta, device)  # (d/2,)

        # Each axis has its own frequencies: the highest are those of time, then come those
        # of the row and of the column.
        sections = frequencies.split(self.config.mrope_section)
        angles = []
        for positions, section in zip(position_ids.float(), sections, strict=True):
            angles.append(positions[..., None] * section)  # (B, T, 1) * (section,)

        # All angles twice, since apply_rotary_emb pairs i with i + d/2.
        table = torch.cat((*angles, *angles), dim=-1)[:, None]  # (B, 1, T, d)
        return table.cos().to(dtype), table.sin().to(dtype)


# --------------------------------------------------------------------------------- sampling

# If the caller sets any of these, generation_config.json has no say in the others: the
# official file's top_k of 1 would leave a temperature without effect.
RANDOMNESS = ("do_sample", "temperature", "top_k", "top_p")
ABOVE_ZERO = 1e-9  # the lowest value of settings that can't be 0

# One for all rows of a batch, or one for each row, which then draws what it would draw alone.
Generator: TypeAlias = torch.Generator | list[torch.Generator]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and where an answer ends.

    By default always the most probable token, without end.
    """

    do_sample: bool = False  # False: always the most probable token
    temperature: float = 1.0
    top_k: int = 0  # only the k most probable tokens; 0 for all
    top_p: float = 1.0  # only the most probable tokens that together reach this probability
    repetition_penalty: float = 1.0
    eos_token_id: int | list[int] = -1  # one or several; -1: none
    pad_token_id: int = 0  # what a row yields after its end

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end an answer, in a list even if it is one."""
        end = self.eos_token_id
        return [end] if isinstance(end, int) else list(end)

    @classmethod
    def resolve(cls, config: Qwen2VLConfig, defaults: dict, chosen: dict) -> "Sampling":
        """The settings chosen by the caller (None: not chosen), or else the defaults.

        defaults: the content of generation_config.json.
        """
        chosen = {name: value for name, value in chosen.items() if value is not None}
        changes_randomness = any(name in chosen for name in RANDOMNESS)
        known = [f.name for f in fields(cls)]

        # The later wins: config.json, generation_config.json, the caller. There is no
        # padding token in config.json; its bos token is <|endoftext|>, with which the
        # official models pad.
        settings: dict = {"eos_token_id": config.eos_token_id, "pad_token_id": config.bos_token_id}
        for name, value in defaults.items():
            is_replaced = changes_randomness and name in RANDOMNESS
            if name in known and value is not None and not is_replaced:
                settings[name] = value
        # A temperature, top_k or top_p asks for sampling, unless do_sample says no.
        # Temperature 0 is the most probable token again.
        if changes_randomness:
            settings["do_sample"] = True
        settings.update(chosen)
        if settings.get("temperature") == 0:
            settings["do_sample"] = False

        sampling = cls(**settings)
        sampling.check_ranges()
        return sampling

    def check_ranges(self) -> None:
        """ValueError for the first setting of a wrong type or out of its range."""
        checks.check_number("temperature", self.temperature, 0, 1e9)
        checks.check_number("top_k", self.top_k, 0, 1e9)
        checks.check_number("top_p", self.top_p, ABOVE_ZERO, 1)
        checks.check_number("repetition_penalty", self.repetition_penalty, ABOVE_ZERO, 1e9)
        checks.check_integer("top_k", self.top_k, 0, 10**9)
        checks.check_switch("do_sample", self.do_sample)
        checks.check_token_ids("eos_token_id", self.eos_token_id)


def warp_logits(logits: Tensor, input_ids: Tensor, sampling: Sampling) -> Tensor:
    """Apply the repetition penalty and, if sampling, temperature, top-k and top-p.

    logits: (B, vocabulary) for the token after input_ids (B, S). Returns float32 scores
    (B, vocabulary), -inf for tokens that are excluded. When sampling, their softmax is the
    distribution to sample from.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1.0:
        scores = penalize_repetition(scores, input_ids, sampling.repetition_penalty)
    if not sampling.do_sample:
        return scores

    # The largest score becomes 0 first, so that a tiny temperature can't overflow.
    scores = (scores - scores.amax(-1, keepdim=True)) / sampling.temperature
    # Top-k: cut what scores less than the k-th best.
    if 0 < sampling.top_k < scores.shape[-1]:
        k_th_score = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < k_th_score, -math.inf)
    # Top-p: cut the tail of the distribution.
    if sampling.top_p < 1.0:
        scores = keep_top_p(scores, sampling.top_p)
    return scores


def penalize_repetition(scores: Tensor, input_ids: Tensor, penalty: float) -> Tensor:
    """Lower the scores of all tokens that occur in input_ids, the prompt's included.

    scores: (B, vocabulary); input_ids: (B, S).
    """
    # Positive scores are divided and negative ones multiplied: both get lower.
    old = scores.gather(1, input_ids)
    new = torch.where(old < 0, old * penalty, old / penalty)
    return scores.scatter(1, input_ids, new)


def keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """-inf for all but the most probable tokens that together reach the probability top_p."""
    ascending, index = scores.sort()
    # Cut the improbable tail as long as its sum stays within 1 - top_p.
    is_cut = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    is_cut[:, -1] = False  # the most probable token always stays
    # From sorted order back to the order of the vocabulary.
    is_cut = torch.zeros_like(is_cut).scatter(1, index, is_cut)
    return scores.masked_fill(is_cut, -math.inf)


def make_generator(seed: int | list[int], batch: int, device: torch.device) -> Generator:
    """A generator for all rows, or one for each where `seed` is a list of `batch` seeds."""
    seeds = seed if isinstance(seed, list) else [seed]
    for one in seeds:
        checks.check_integer("seed", one, 0, 2**63 - 1)
    generators = [torch.Generator(device).manual_seed(one) for one in seeds]
    if not isinstance(seed, list):
        return generators[0]
    if len(seed) != batch:
        raise ValueError(f"seed is a list of {len(seed)} for {batch} rows")
    return generators


def next_token(
    logits: Tensor, input_ids: Tensor, sampling: Sampling, generator: Generator | None
) -> Tensor:
    """Choose the token after input_ids (B, S) from logits (B, vocabulary): (B,)."""
    scores = warp_logits(logits, input_ids, sampling)
    if not sampling.do_sample:
        return scores.argmax(-1)
    # `decode` has refused NaN already, but compiled.decode_ahead does so only after the
    # draw. Until then NaN must not crash multinomial: the token is arbitrary, and a clear
    # error comes next.
    probabilities = scores.softmax(-1).nan_to_num(1.0)
    if not isinstance(generator, list):
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    # Row by row, so that none takes a random number from another.
    rows = zip(probabilities, generator, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=own) for row, own in rows])


# ---------------------------------------------------------------------- the generation loop


class PlainStep:
    """Run one token of each row through the model: (B,) to logits (B, vocabulary).

    The token's keys and values go into the cache. compiled.CompiledStep does the same,
    faster.
    """

    def __init__(
        self,
        model: "Qwen2VLForConditionalGeneration",
        cache: KVCache,
        attention_mask: Tensor | None,
        rope_deltas: Tensor,
    ) -> None:
        self.model = model
        self.cache = cache
        self.attention_mask = attention_mask  # (B, S)
        self.rope_deltas = rope_deltas

    def __call__(self, token: Tensor) -> Tensor:
        if self.attention_mask is not None:  # the new column is no padding
            self.attention_mask = F.pad(self.attention_mask, (0, 1), value=1)
        # Embedded here: if the model writes a placeholder token, forward would want an image.
        embeds = self.model.model.embed_tokens(token[:, None])  # (B, 1, D)
        out = self.model(
            inputs_embeds=embeds,
            attention_mask=self.attention_mask,
            past_key_values=self.cache,
            rope_deltas=self.rope_deltas,
        )
        return out.logits[:, -1]


def decode(
    step: PlainStep | compiled.CompiledStep,
    logits: Tensor,
    input_ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    generator: Generator | None,
) -> Iterator[Tensor]:
    """The generation loop: yield the tokens (B,) that follow input_ids (B, T).

    logits: (B, vocabulary), from which the first is chosen. step(token) gives those of the
    next.
    """
    end_tokens = input_ids.new_tensor(sampling.eos_token_id)
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)  # (B,)
    for i in range(max_new_tokens):
        # Overflow in float16 or damaged weights: stop with a clear error.
        if not logits.isfinite().all():
            raise_not_finite(logits.dtype, step.model.named_parameters())
        token = next_token(logits, input_ids, sampling, generator)  # (B,)
        token = processes.agree(token, step.model.mesh)
        token = token.masked_fill(finished, sampling.pad_token_id)  # ended rows give padding
        finished = finished | torch.isin(token, end_tokens)
        input_ids = torch.cat((input_ids, token[:, None]), dim=1)  # for the repetition penalty
        yield token
        if finished.all() or i == max_new_tokens - 1:
            return
        logits = step(token)


# -------------------------------------------------------------------------- the whole model


@dataclass
class Qwen2VLOutput(FieldMapping):
    """What one forward pass returns.

    out.logits is also out["logits"], and out[0] is the first that is not None.
    """

    loss: Tensor | None  # a float32 scalar where labels were given
    logits: Tensor  # (B, T or logits_to_keep, vocabulary)
    past_key_values: KVCache | None = None
    hidden_states: list[Tensor] | None = None  # each (B, T, D), see Qwen2VLModel.forward
    attentions: list[Tensor] | None = None  # the weights of each layer, (B, H, T, S)
    rope_deltas: Tensor | None = None  # (B, 1), see get_rope_index


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of labels (B, T) under logits (B, T, vocabulary), without -100."""
    # The logits at position i predict the token at position i + 1.
    predictions = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(predictions, labels[:, 1:].flatten().long(), ignore_index=-100)


class Qwen2VLForConditionalGeneration(nn.Module):
    """Images, videos and text in, text out.

    `attn_implementation`, one of ATTENTION_IMPLEMENTATIONS, may be changed at any time.
    """

    def __init__(self, config: Qwen2VLConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.attn_implementation = attn_implementation
        self.generation_config = GenerationConfig()  # the content of generation_config.json
        self.mesh: DeviceMesh | None = None  # of the processes that share this model
        self.layout: spread.Layout | None = None  # of a model on several devices
        self.visual = VisionTransformer(config.vision_config)
        self.model = Qwen2VLModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Where the config says so, let the head use the embedding table as its weight."""
        if not self.config.tie_word_embeddings:
            return
        table = self.model.embed_tokens
        if isinstance(table, Int8Embedding):
            self.lm_head = Int8Linear(table.weight, table.scale)
        self.lm_head.weight = table.weight

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states and logits, also where weights are stored in int8."""
        return self.model.norm.weight.dtype

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: str | torch.dtype = "auto",
        device_map: str | torch.device = "auto",
        attn_implementation: str = "auto",
        torch_dtype: str | torch.dtype | None = None,
        int8: bool = False,
        base: str | Path | None = None,
        int4: bool = False,
        tp_plan: str | None = None,
    ) -> "Qwen2VLForConditionalGeneration":
        """Load "tiny", a folder, or a Hub repository.

        dtype: "auto" is the checkpoint's own; torch_dtype is its older name. device_map:
        "auto" is CUDA, else MPS, else the CPU, and for "tiny" the CPU. attn_implementation:
        "auto" is sdpa, and chunked for 16-bit dtypes on a CPU that multiplies them. int8: keep
        all matrices as int8 with a scale for each row. base: where `name` is a LoRA adapter,
        the checkpoint that it is merged into; by default the Hub repository that the adapter
        names. int4: keep the decoder's matrices in four bits and those of tokens in int8. The
        official AWQ and GPTQ checkpoints need neither: what is packed there stays packed.
        tp_plan: "auto" shares the model among the processes of torchrun, as device_map="auto"
        does there.
        """
        is_shared = distributed.wants_processes(tp_plan, device_map)
        folder, adapter_folder = load.find_base_and_adapter(name, base)
        config = load.read_config(folder)
        dtype_wanted = torch_dtype or dtype
        dtype = load.checkpoint_dtype(config, folder, dtype_wanted)
        if device_map == "auto" and "tiny" in (name, base):
            device_map = "cpu"  # so that its answers are the same on every machine

        # Shapes without memory: each tensor gets its storage when it is read. A tied head
        # is not among the parameters, since a shared tensor is named once.
        with torch.device("meta"):
            model = cls(Qwen2VLConfig.from_dict(config))
        shapes = {path: tuple(p.shape) for path, p in model.named_parameters()}
        is_tied = model.config.tie_word_embeddings
        adapter: lora.Adapter | None = None
        # Weights in 8 or 4 bits: those that AWQ or GPTQ has packed, and those to be rounded here.
        stored = load.tensor_headers(folder)
        packed = packed_layers.find(folder, config, stored, shapes)
        quantization = Quantization(shapes, int8, int4, packed)
        if is_shared:
            quantization.refuse_processes()
        if adapter_folder is not None:
            quantization.refuse_adapter(adapter_folder)
            adapter = lora.Adapter(adapter_folder, shapes, is_tied)

        # What can't work fails here, before the weights are read: tensors that don't fit, too
        # little memory, or an implementation of attention that can't run on the device. Some
        # files hold the tied head as well; it is the embedding table once more.
        ignored = ["lm_head.weight"] if is_tied else []
        headers = load.match_tensors(folder, stored, quantization.stored_shapes(), ignored)
        headers = quantization.take_packed(headers)
        if dtype_wanted == "auto":
            load.note_other_dtypes(folder, headers, dtype)
        place = placement.choose(
            model.config, shapes, quantization.sizes(dtype), device_map, is_shared
        )
        device = place.device
        dtype = quantization.pick_dtype(dtype_wanted, dtype, device)
        model.attn_implementation = pick_attention(attn_implementation, device, dtype)
        check_attention_runs(model.attn_implementation, device, dtype)

        # An adapter is merged into whole weights, of which a process then keeps its part.
        part = place.part if adapter is None else None
        weights = load.read_weights(headers, device, dtype, one_by_one=int8 or int4, part=part)
        if adapter is not None:
            weights = place.cut(adapter.merge(weights))
            model.config = replace(model.config, tie_word_embeddings=adapter.stays_tied)
        for path, tensor in weights:
            model.set_parameter(path, place.move(path, tensor))
            quantization.round_layer(model, path)
        del tensor  # the last one, say of the head, of which the model may hold a rounded copy
        quantization.read_packed(model, place.device_of, dtype)
        model.tie_weights()  # once more: the embedding table is another tensor now
        model.generation_config = GenerationConfig(load.read_generation_config(folder))
        place.finish(model)
        return model.eval()

    def set_parameter(self, path: str, tensor: Tensor) -> None:
        """Make a tensor the parameter of that path, say "model.norm.weight"."""
        module_path, _, name = path.rpartition(".")
        # Until now the parameter was on the meta device, without values.
        setattr(self.get_submodule(module_path), name, nn.Parameter(tensor))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and weights in the official layout, not the processor's files.

        ValueError for weights in int8, which have no such layout, and for a part of a model.
        """
        if self.mesh is not None:
            raise ValueError("this process has a part of the model only: load it in one to save")
        config = self.config.to_dict()
        config["torch_dtype"] = str(self.dtype).removeprefix("torch.")
        # Weights in four bits are saved as GPTQ packs them, and one more field says so.
        tensors, more_fields = packed_saving.tensors_to_save(self)
        config.update(more_fields)
        load.save_checkpoint(Path(folder), config, tensors, self.generation_config or None)

    def get_rope_index(
        self,
        input_ids: Tensor,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The function of the same name: positions (3, B, T) and rope_deltas (B, 1)."""
        return get_rope_index(
            self.config, input_ids, image_grid_thw, video_grid_thw, attention_mask
        )

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (B, T, D) of tokens, with placeholders replaced by features of images."""
        embeds = self.model.embed_tokens(input_ids)
        is_image = input_ids == self.config.image_token_id  # (B, T)
        is_video = input_ids == self.config.video_token_id
        embeds = self.splice(embeds, is_image, pixel_values, image_grid_thw, "image")
        return self.splice(embeds, is_video, pixel_values_videos, video_grid_thw, "video")

    def splice(
        self,
        embeds: Tensor,
        is_placeholder: Tensor,
        pixel_values: Tensor | None,
        grid_thw: Tensor | None,
        kind: str,
    ) -> Tensor:
        """Put the features of images (or videos) in place of their placeholders, in order.

        embeds: (B, T, D); is_placeholder: (B, T). ValueError with both counts if they
        differ.
        """
        # Images without placeholders, or placeholders without images, are errors.
        expected = int(is_placeholder.sum())
        self.visual.check_media(pixel_values, grid_thw, kind)
        if pixel_values is None:
            if expected:
                raise ValueError(f"the prompt has {expected} {kind} tokens, the {kind}s give 0")
            return embeds
        features = self.visual(pixel_values, grid_thw, self.attn_implementation)  # (N, D)
        if len(features) != expected:
            raise ValueError(
                f"the prompt has {expected} {kind} tokens, the {kind}s give {len(features)}"
            )
        # (B, T, 1) covers all D values. The i-th placeholder of the batch gets the i-th feature.
        return embeds.masked_scatter(is_placeholder[..., None], features.to(embeds.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: KVCache | None = None,
        rope_deltas: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool | None = None,
        **unknown: object,
    ) -> Qwen2VLOutput | tuple:
        """One pass. Nothing stays on the model: the caller keeps cache and rope_deltas.

        input_ids: (B, T), or inputs_embeds: (B, T, D) with images already in place;
        attention_mask: (B, S), 0 for padding; pixel values: (patches, 1176), grids: (images, 3),
        in prompt order over the batch; position_ids: (3, B, T), else computed from input_ids or,
        if the cache holds tokens, from rope_deltas (B, 1); labels: (B, T), -100 for no loss;
        logits_to_keep: of how many last positions, 0 for all; return_dict=False: a tuple.
        """
        # What can't be right is refused here, in one line.
        arguments.check_unlisted(unknown, self.forward, arguments.FORWARD)
        checks.check_redundant(unknown, self.config, input_ids, video_grid_thw)
        media = (pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw)
        batch, length = self.check_inputs(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values, media
        )
        checks.check_labels(labels, logits_to_keep, self.config, batch, length, self.device)

        # Embeddings of tokens, with features of images in place of their placeholders.
        if input_ids is not None:
            inputs_embeds = self.embed(input_ids, *media)
        # Positions in time, row and column.
        if position_ids is None:
            position_ids, rope_deltas = self.choose_positions(
                input_ids, length, media, attention_mask, past_key_values, rope_deltas
            )
        # The decoder fills these two lists where they are asked for.
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None
        attentions: list[Tensor] | None = [] if output_attentions else None
        x = self.model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            implementation=self.attn_implementation,
            hidden_states=hidden_states,
            attentions=attentions,
        )
        logits = self.compute_logits(x[:, -logits_to_keep:])  # of all for 0, since -0 is 0
        loss = None if labels is None else next_token_loss(logits, labels)
        out = Qwen2VLOutput(loss, logits, past_key_values, hidden_states, attentions, rope_deltas)
        return out.to_tuple() if return_dict is False else out

    def check_inputs(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: KVCache | None,
        media: tuple[Tensor | None, ...],
    ) -> tuple[int, int]:
        """ValueError for inputs of `forward` that don't fit together; returns (B, T)."""
        if inputs_embeds is not None and any(tensor is not None for tensor in media):
            raise ValueError("give inputs_embeds, or input_ids with images, but not both")
        return checks.check_decoder(
            self.config,
            self.model.embed_tokens.weight.device,
            self.dtype,
            input_ids,
            inputs_embeds,
            attention_mask,
            position_ids,
            cache,
        )

    def choose_positions(
        self,
        input_ids: Tensor | None,
        length: int,
        media: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        attention_mask: Tensor | None,
        cache: KVCache | None,
        rope_deltas: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Positions (3, B, T) and rope_deltas (B, 1) of `length` tokens."""
        _, image_grid_thw, _, video_grid_thw = media
        has_media = image_grid_thw is not None or video_grid_thw is not None
        # After a prompt positions go on with the first that is free.
        if cache is not None and cache.length:
            if rope_deltas is None:
                raise ValueError("after a prompt forward needs rope_deltas or position_ids")
            checks.check_rope_deltas(rope_deltas, cache.keys.shape[1], self.device)
            first = cache.length + rope_deltas  # (B, 1)
            is_text_alone = not has_media and attention_mask is None
            if input_ids is None or is_text_alone:  # counts on, on all three axes
                positions = first + torch.arange(length, device=first.device)  # (B, T)
                return positions.expand(3, -1, -1), rope_deltas
            # With images or padding the new tokens are like a prompt of their own.
            new_mask = None if attention_mask is None else attention_mask[:, cache.length :]
            position_ids, new_deltas = self.get_rope_index(
                input_ids, image_grid_thw, video_grid_thw, new_mask
            )
            return first + position_ids, rope_deltas + new_deltas

        # A prompt: its ids say where the images are.
        if rope_deltas is not None:
            raise ValueError("rope_deltas are for tokens after a prompt, the cache holds 0 tokens")
        if input_ids is None:
            raise ValueError("without position_ids forward needs input_ids")
        return self.get_rope_index(input_ids, image_grid_thw, video_grid_thw, attention_mask)

    def compute_logits(self, x: Tensor) -> Tensor:
        """Hidden states (B, T, D) to logits (B, T, vocabulary)."""
        # As rows (B * T, D). For a sliced tensor with three axes PyTorch 2.13 on a CPU
        # would first copy the whole weight of the head, which takes a second at the size of
        # the 2B checkpoint.
        rows = x.flatten(0, 1)
        return self.lm_head(rows).unflatten(0, x.shape[:2])

    def stream(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        seed: int | list[int] | None = None,
        compile: bool = False,
        past_key_values: KVCache | None = None,
        rope_deltas: Tensor | None = None,
        **unknown: object,
    ) -> Iterator[Tensor]:
        """Yield the next token of every row, (B,), until all rows have ended.

        At most max_new_tokens are generated, by default 128, or as many as make max_length
        with the prompt; rows that have ended yield padding. The first six arguments are
        those of `forward`. Settings that are None come from generation_config.json. seed:
        makes sampling repeatable; of a list of seeds each row has its own. compile: decode
        with `compiled.CompiledStep`, which pays for long answers. unknown: arguments of
        `transformers` with values that change nothing.

        past_key_values: a cache that holds the first tokens of input_ids, whose rope_deltas
        (B, 1) `forward` or get_rope_index has told. Only the tokens after them are read, and
        pixel values and grids are of these alone. The cache grows; afterwards it holds the
        prompt and all new tokens but the last.
        """
        # What can't be right is refused at once, not at the first token.
        arguments.check_unlisted(unknown, self.stream, arguments.GENERATE)
        checks.check_redundant(unknown, self.config, input_ids, video_grid_thw)
        self.check_prompt(input_ids, attention_mask)
        batch, length = input_ids.shape
        checks.check_kept_cache(
            past_key_values, rope_deltas, self.config, batch, length, self.device, self.dtype
        )
        max_new_tokens = self.answer_length(length, max_new_tokens, max_length)
        chosen = {
            "do_sample": do_sample,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        }
        sampling = Sampling.resolve(self.config, self.generation_config, chosen)
        checks.check_integer("pad_token_id", sampling.pad_token_id, 0, self.config.vocab_size - 1)
        generator = None
        if seed is not None:
            generator = make_generator(seed, len(input_ids), self.device)

        media = (pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw)
        if compile:
            distributed.check_compile(self)
        ids = input_ids.long()  # int32 can't index scores
        return self.answer(
            ids,
            attention_mask,
            media,
            max_new_tokens,
            sampling,
            generator,
            compile,
            past_key_values,
            rope_deltas,
        )

    @torch.no_grad()  # of a generator: while it computes, not while its caller does
    def answer(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        media: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        max_new_tokens: int,
        sampling: Sampling,
        generator: Generator | None,
        compile: bool,
        cache: KVCache | None,
        rope_deltas: Tensor | None,
    ) -> Iterator[Tensor]:
        """What `stream` returns, from arguments that it has checked."""
        processes.check_same_prompt(input_ids, self.mesh)
        # The first token comes from one pass over the prompt, the others from one step each.
        logits, step = self.prefill(
            input_ids, attention_mask, media, max_new_tokens, compile, cache, rope_deltas
        )
        refuse_equal_logits(logits, self.named_parameters())
        # On CUDA decode_ahead starts step i + 1 before the host reads token i, so that the
        # GPU never waits. It gets next_token as an argument, since compiled.py must not
        # import this file.
        if isinstance(step, compiled.CompiledStep) and logits.is_cuda:
            yield from compiled.decode_ahead(
                step, logits, input_ids, max_new_tokens, sampling, generator, next_token
            )
        else:
            yield from decode(step, logits, input_ids, max_new_tokens, sampling, generator)

    def prefill(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        media: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        max_new_tokens: int,
        compile: bool,
        cache: KVCache | None = None,
        rope_deltas: Tensor | None = None,
    ) -> tuple[Tensor, PlainStep | compiled.CompiledStep]:
        """Read the prompt: logits (B, vocabulary) of the first new token, and the step for more.

        media: pixel values and grids of images, then of videos, as `forward` takes them.
        cache: what it holds of the prompt is not read again.
        """
        # Without padding the mask goes once for all: each step would extend it and look at
        # it again.
        if attention_mask is not None and attention_mask.all():
            attention_mask = None

        # Room for the prompt and for all new tokens but the last, which no step reads.
        capacity = input_ids.shape[1] + max_new_tokens - 1
        if cache is None:
            cache = self.make_cache(len(input_ids), capacity)
        cache.reserve(capacity)
        out = self(
            input_ids[:, cache.length :],
            attention_mask,
            *media,
            past_key_values=cache,
            rope_deltas=rope_deltas,
            logits_to_keep=1,
        )

        make_step = compiled.CompiledStep if compile and max_new_tokens > 1 else PlainStep
        return out.logits[:, -1], make_step(self, cache, attention_mask, out.rope_deltas)

    def make_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for so many rows and tokens, where this model's layers are."""
        if self.layout is not None:  # on several devices
            return self.layout.make_cache(batch, capacity, self.dtype)
        return KVCache(self.config, batch, capacity, self.device, self.dtype)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        seed: int | list[int] | None = None,
        compile: bool = False,
        past_key_values: KVCache | None = None,
        rope_deltas: Tensor | None = None,
        streamer: Streamer | None = None,
        **unknown: object,
    ) -> Tensor:
        """The prompt and the new tokens, (B, T + new tokens); arguments as in `stream`.

        streamer: gets the prompt, then each token as it comes, as the streamers of
        `transformers` do.
        """
        arguments.check_unlisted(unknown, self.generate, arguments.GENERATE)
        if streamer is not None:
            check_streamer(streamer)
        tokens = self.stream(
            input_ids,
            attention_mask,
            pixel_values,
            image_grid_thw,
            pixel_values_videos,
            video_grid_thw,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            seed=seed,
            compile=compile,
            past_key_values=past_key_values,
            rope_deltas=rope_deltas,
            **unknown,
        )
        if streamer is not None:
            tokens = feed(streamer, input_ids, tokens)
        new_tokens = torch.stack(list(tokens), dim=1)  # a list of (B,) to (B, new tokens)
        return torch.cat((input_ids, new_tokens), dim=1)

    def check_prompt(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """ValueError if nothing can be generated after this prompt."""
        self.check_inputs(input_ids, None, attention_mask, None, None, ())
        if attention_mask is not None:
            checks.check_last_token(attention_mask)

    def answer_length(self, length: int, max_new_tokens: int | None, max_length: int | None) -> int:
        """How many tokens may follow a prompt of `length` tokens.

        max_new_tokens, or max_length with the prompt, but not both. Where neither is given it
        is what generation_config.json says, or 128, as far as there is room.
        """
        # Prompt and answer share the positions that the model was made for.
        room = self.config.max_position_embeddings - length
        if max_new_tokens is not None and max_length is not None:
            raise ValueError(
                f"give max_new_tokens or max_length, not both: got {max_new_tokens}, {max_length}"
            )
        if max_length is not None:
            checks.check_integer("max_length", max_length, length + 1, length + room)
            return max_length - length
        if max_new_tokens is None and room >= 1:
            return min(default_length(self.generation_config, length), room)
        if not checks.is_whole(max_new_tokens) or not 1 <= max_new_tokens <= room:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}; after {length} tokens this model takes {room}"
            )
        return max_new_tokens


# Running this file starts the command line of qwen2vl_app, which imports this file.
if __name__ == "__main__":
    from qwen2vl_app.command_line import main

    sys.exit(main())
