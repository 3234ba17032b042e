"""Qwen2-VL (arXiv 2409.12191): pictures, videos and text in, text out, from plain PyTorch operations.

From top to bottom: configuration, rotary positions, attention, vision transformer, 3D positions (M-RoPE),
decoder, sampling, the whole model, command line. Unlike in a plain vision-language model
  * a picture keeps its own size: each patch of 14 x 14 pixels is a token of the vision transformer, and 2 x 2
    of those become one token of the decoder, so the number of tokens follows the picture (section 2.1);
  * the vision transformer knows where a patch is by turning queries and keys by its row and column (2D RoPE),
    the decoder where a token is by three numbers: time, row and column (M-RoPE, section 2.1).

Module attributes carry the official checkpoint's names. Locals carry these letters:
  B batch   T tokens in this call   S tokens so far (cache + T)   P patches of a frame   D width
  t, h, w a grid in patches: frames/2, rows, columns   H, K query and key-value heads   d size of a head
"""

import argparse
import contextlib
import functools
import math
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import fast
import load
import stages

VISION_NORM_EPS, VISION_ROPE_THETA = 1e-6, 10_000.0  # in the released code, but not in config.json
IMPLEMENTATIONS = ("eager", "sdpa", "blocks", "flash_attention_2")


@dataclass(frozen=True)
class VisionConfig:
    """The vision transformer's sizes: `vision_config` in config.json."""

    depth: int
    embed_dim: int  # D of the vision transformer
    num_heads: int
    mlp_ratio: float
    in_chans: int
    hidden_size: int  # D of the decoder, which the merger puts out
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int


@dataclass(frozen=True)
class Qwen2VLConfig:
    """The model's sizes and token ids: the official flat config.json, every field required."""

    vocab_size: int
    hidden_size: int  # D of the decoder
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # K
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: list[int]  # how many of the d/2 frequencies turn with time, row, column
    tie_word_embeddings: bool
    bos_token_id: int
    eos_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    image_token_id: int
    video_token_id: int
    vision_config: VisionConfig

    @classmethod
    def from_dict(cls, config: dict) -> "Qwen2VLConfig":
        """Read a config.json dict, flat or nested; ValueError names what is missing."""
        config = load.flatten_config(config)
        config["mrope_section"], vision = config["rope_scaling"].get("mrope_section"), config["vision_config"]
        missing = [f.name for f in fields(cls) if config.get(f.name) is None]
        missing += [f"vision_config.{f.name}" for f in fields(VisionConfig) if vision.get(f.name) is None]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        config["vision_config"] = VisionConfig(**{f.name: vision[f.name] for f in fields(VisionConfig)})
        config = cls(**{f.name: config[f.name] for f in fields(cls)})
        if 2 * sum(config.mrope_section) != config.head_dim:
            raise ValueError(f"mrope_section {config.mrope_section} must add up to half of {config.head_dim}")
        return config

    @classmethod
    def from_pretrained(cls, name: str) -> "Qwen2VLConfig":
        """The config of "tiny", a folder or a Hub repository."""
        return cls.from_dict(load.read_config(load.find_checkpoint(name, weights=False)))

    def to_dict(self) -> dict:
        """The official flat layout, which `transformers` reads as well."""
        config = asdict(self)
        rope = {"type": "mrope", "mrope_section": config.pop("mrope_section")}
        family = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}
        return family | {"hidden_act": "silu", "rope_scaling": rope} | config

    @property
    def head_dim(self) -> int:  # d
        return self.hidden_size // self.num_attention_heads


def rope_frequencies(d: int, theta: float, device: torch.device) -> Tensor:
    """Radians per step of position, (d/2,) float32: theta^(-2i/d), from 1 down to almost 1/theta."""
    return 1.0 / theta ** (torch.arange(0, d, 2, device=device).float() / d)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + d/2]) of x (..., d) by its angle; cos and sin (..., d) broadcast."""
    left, right = x.chunk(2, dim=-1)  # the checkpoint pairs i with i + d/2, not with i + 1
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def attention(
    q: Tensor, k: Tensor, v: Tensor, implementation: str, causal=False, visible=None, real=None
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention by the named implementation and no other; "eager" is the definition.

    q: (B, H, T, d); k, v: (B, K, S, d), H a multiple of K; causal: query i sees keys up to S - T + i. With
    padding, visible: (B, 1, T, S), True where a query sees a key, takes its place; flash takes real: (B, S),
    False for padding. Returns (B, T, H * d) and of "eager" the weights (B, H, T, S).
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "flash_attention_2":
        if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"{implementation} needs CUDA, float16 or bfloat16; here {q.device}, {q.dtype}")
        return fast.flash_attention(q, k, v, causal, real).transpose(1, 2).flatten(2), None
    (H, T, d), S = q.shape[1:], k.shape[2]
    causal = causal and visible is None and T > 1  # a single new token sees all before it
    if implementation == "blocks":
        return fast.block_attention(q, k, v, causal, visible).transpose(1, 2).flatten(2), None
    # sdpa's own causal mask is for T = S, and on MPS in half precision it leaks the future (pytorch 195910).
    if causal and (implementation == "eager" or T < S or q.device.type == "mps"):
        visible, causal = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T), False
    if implementation == "sdpa":  # fused: the T x S scores are never stored
        out = F.scaled_dot_product_attention(q, k, v, visible, is_causal=causal, enable_gqa=k.shape[1] != H)
        return out.transpose(1, 2).flatten(2), None
    k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))  # (B, H, S, d)
    scores = q @ k.transpose(-2, -1) / math.sqrt(d)  # (B, H, T, S)
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)  # bf16 sums would lose small terms
    return (weights @ v).transpose(1, 2).flatten(2), weights


class PatchEmbed(nn.Module):
    """A patch of 3 colours x 2 frames x 14 x 14 pixels becomes one vector.

    The checkpoint holds a Conv3d whose stride is its kernel: a matrix product, 10 to 20 times faster as one.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.embed_dim, kernel, stride=kernel, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)  # (D, 3 * 2 * 14 * 14)
        return F.linear(pixels.to(weight.dtype), weight)  # (..., 1176) -> (..., D)


class VisionAttention(nn.Module):
    """Every patch of a frame looks at every other patch of the same frame."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, implementation: str) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (t, P, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (t, H, P, d)
        q, k = (rotate(y.float(), cos, sin).to(y.dtype) for y in (q, k))  # in float32, as the reference does
        return self.proj(attention(q, k, v, implementation)[0])  # (t, P, D)


class VisionMlp(nn.Module):
    """Two linear layers around quick-GELU, x * sigmoid(1.702 x)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        inner = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, inner)
        self.fc2 = nn.Linear(inner, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class VisionBlock(nn.Module):
    """Attention, then the MLP, each on normalised input and added to what was there."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=VISION_NORM_EPS)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=VISION_NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, implementation: str) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, implementation)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """2 x 2 patches, which the processor laid one after another, become one token: a reshape and an MLP."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        size = config.embed_dim * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.embed_dim, eps=VISION_NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).view(-1, self.mlp[0].in_features))  # (t, P, D) -> (t * P/4, decoder's D)


class VisionTransformer(nn.Module):
    """The patches of pictures and videos become tokens of the decoder, one picture at a time.

    Pictures never see each other, so each goes through alone: no mask, and the same bits in any company. Nor
    do the frames of a video (pairs of frames, for a patch is two deep); being of one size, they are a batch.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, pixel_values: Tensor, grid_thw: Tensor, implementation: str = "sdpa") -> Tensor:
        """(all patches, 1176) and the grids (pictures, 3) to (all patches / 4, decoder's D)."""
        sizes = grid_thw.prod(-1).tolist()
        if sum(sizes) != len(pixel_values):
            raise ValueError(f"the grids hold {sum(sizes)} patches, pixel_values has {len(pixel_values)}")
        pictures = zip(pixel_values.split(sizes), grid_thw.tolist(), strict=True)
        return torch.cat([self.encode(pixels, *grid, implementation) for pixels, grid in pictures])

    def encode(self, pixels: Tensor, t: int, h: int, w: int, implementation: str = "sdpa") -> Tensor:
        """One picture (t = 1) or video: (t * h * w, 1176) to (t * h * w / 4, decoder's D)."""
        x = self.patch_embed(pixels).view(t, h * w, -1)  # (t, P, D)
        cos, sin = self.rotary_table(h, w, x.device)
        for block in self.blocks:
            x = block(x, cos, sin, implementation)
        return self.merger(x)

    def rotary_table(self, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin (P, d) of a frame: half of the frequencies turn with the row, half with the column."""
        m, d = self.config.spatial_merge_size, self.config.embed_dim // self.config.num_heads
        frequencies = rope_frequencies(d // 2, VISION_ROPE_THETA, device)  # (d/4,)
        where = torch.cartesian_prod(torch.arange(h, device=device), torch.arange(w, device=device))  # (P, 2)
        where = where.view(h // m, m, w // m, m, 2).transpose(1, 2)  # in the patches' order: square by square
        angles = (where.reshape(h * w, 2, 1) * frequencies).flatten(1)  # (P, d/2)
        angles = torch.cat((angles, angles), dim=-1)  # (P, d): `rotate` pairs i with i + d/2
        return angles.cos(), angles.sin()


def get_rope_index(
    config: Qwen2VLConfig, input_ids: Tensor, image_grid_thw=None, video_grid_thw=None, attention_mask=None
) -> tuple[Tensor, Tensor]:
    """Where each token is, in time, row and column (M-RoPE, section 2.1).

    Text counts 0, 1, 2 ... on all three axes. A picture or video starts at the next free number and adds its
    own frame, row and column; the text behind it goes on at the largest number so far + 1, on any axis.

    input_ids: (B, T); grids: (n, 3) in patches, in prompt order over all rows; attention_mask: (B, T), 0 for
    padding, which gets position 1. Returns positions (3, B, T) and deltas (B, 1): what decoding adds to the
    number of tokens so far, padding included.
    """
    m = config.vision_config.spatial_merge_size
    kinds = {config.image_token_id: image_grid_thw, config.video_token_id: video_grid_thw}
    grids = {token: iter([] if grid is None else grid.tolist()) for token, grid in kinds.items()}
    positions, deltas = input_ids.new_ones(3, *input_ids.shape), input_ids.new_zeros(len(input_ids), 1)
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    for row, mask in enumerate(real.bool()):
        tokens = input_ids[row, mask].tolist()
        where, start = [], 0  # where each token is; the next free number
        while len(where) < len(tokens):
            token, t, h, w = tokens[len(where)], 1, 1, 1  # text: a picture of one token
            if token in grids:
                t, h, w = next(grids[token], (0, 0, 0))
                h, w = h // m, w // m
                if not t or tokens[len(where) : len(where) + t * h * w].count(token) < t * h * w:
                    raise ValueError(f"row {row} has slots for a picture that was not given or is larger")
            where += [(start + i, start + j, start + k) for i in range(t) for j in range(h) for k in range(w)]
            start += max(t, h, w)
        positions[:, row, mask] = input_ids.new_tensor(where).view(-1, 3).T
        deltas[row] = start - len(mask)
    if left := sum(len(list(grid)) for grid in grids.values()):
        raise ValueError(f"{left} pictures or videos were given that the prompt has no slots for")
    return positions, deltas


class KVCache:
    """Keys and values of all tokens so far, in memory laid out once; the decoder advances its length."""

    def __init__(self, config: Qwen2VLConfig, batch: int, capacity: int, device=None, dtype=None):
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)  # (layers, B, K, capacity, d)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.capacity, self.length = capacity, 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, d) behind what is there; return the layer's keys and values (B, K, S, d)."""
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, {end} are needed")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class RMSNorm(nn.Module):
    """x over the root of its mean square, in float32, times a learned weight."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention in which H query heads share K key-value heads."""

    def __init__(self, config: Qwen2VLConfig):
        super().__init__()
        self.head_dim = config.head_dim
        D, K = config.hidden_size, config.num_key_value_heads
        self.q_proj = nn.Linear(D, config.num_attention_heads * self.head_dim)
        self.k_proj = nn.Linear(D, K * self.head_dim)
        self.v_proj = nn.Linear(D, K * self.head_dim)
        self.o_proj = nn.Linear(self.q_proj.out_features, D, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, remember: Callable | None, **how):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, H|K * d)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (q, k, v))  # (B, H|K, T, d)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # in x's dtype, unlike vision: as the reference does
        if remember is not None:
            k, v = remember(k, v)  # (B, K, S, d): with all before them; keys are turned once, then kept
        out, weights = attention(q, k, v, causal=True, **how)
        return self.o_proj(out), weights  # (B, T, D)


class MLP(nn.Module):
    """SwiGLU: one projection, passed through SiLU, gates another."""

    def __init__(self, config: Qwen2VLConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention, then the MLP, each on normalised input and added to what was there."""

    def __init__(self, config: Qwen2VLConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, remember: Callable | None, **how):
        attended, weights = self.self_attn(self.input_layernorm(x), cos, sin, remember, **how)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), weights


class Qwen2VLModel(nn.Module):
    """The decoder: embeddings in, hidden states out. What stands under `model.` in the checkpoint."""

    def __init__(self, config: Qwen2VLConfig):
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.hidden_size).uniform_(-1, 1)  # normal_ imports Dynamo
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        implementation: str = "sdpa",
        hidden_states: list[Tensor] | None = None,
        attentions: list[Tensor] | None = None,
    ) -> Tensor:
        """Embeddings x (B, T, D) at positions (3, B, T) to the last hidden state (B, T, D), normalised.

        attention_mask: (B, S), 0 for padding. Lists that are given are filled: hidden states from x to the
        last, and every layer's attention weights (B, H, T, S), which only "eager" has.
        """
        cos, sin = self.rotary_table(position_ids, x.dtype)
        (B, T), past = x.shape[:2], cache.length if cache is not None else 0
        how = {"implementation": implementation} | padding_masks(attention_mask, B, T, past + T)
        for i, layer in enumerate(self.layers):
            if hidden_states is not None:
                hidden_states.append(x)
            remember = functools.partial(cache.update, i) if cache is not None else None
            x, weights = layer(x, cos, sin, remember, **how)
            if attentions is not None:
                attentions.append(weights)
        if cache is not None:
            cache.length += x.shape[1]
        x = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x

    def rotary_table(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin (B, 1, T, d) of positions (3, B, T): each frequency turns with one axis."""
        d, theta = self.config.head_dim, self.config.rope_theta
        frequencies = rope_frequencies(d, theta, position_ids.device).split(self.config.mrope_section)
        axes = zip(position_ids.float(), frequencies, strict=True)  # (B, T) and its share of d/2
        angles = torch.cat([axis[..., None] * share for axis, share in axes], dim=-1)  # (B, T, d/2)
        angles = torch.cat((angles, angles), dim=-1)[:, None]  # (B, 1, T, d): the same for all heads
        return angles.cos().to(dtype), angles.sin().to(dtype)


def padding_masks(attention_mask: Tensor | None, B: int, T: int, S: int) -> dict[str, Tensor]:
    """`visible` (B, 1, T, S) and `real` (B, S) for `attention`; nothing for a mask (B, S) without padding."""
    if attention_mask is not None and attention_mask.shape != (B, S):
        raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, ({B}, {S}) is needed")
    if attention_mask is None or attention_mask.all():
        return {}
    real, causal = attention_mask.bool(), attention_mask.new_ones(T, S, dtype=torch.bool).tril(S - T)
    # A padding query would see nothing, and softmax over nothing is NaN: it sees itself.
    visible = (causal & real[:, None]) | causal.triu(S - T)  # (B, T, S); triu leaves the diagonal
    return {"visible": visible[:, None], "real": real}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are neutral."""

    do_sample: bool = False  # else the likeliest token
    temperature: float = 1.0
    top_k: int = 0  # only the k likeliest; 0 for all
    top_p: float = 1.0  # only the likeliest that together reach this probability
    repetition_penalty: float = 1.0
    eos_token_id: int | list[int] = -1
    pad_token_id: int = 0

    @classmethod
    def resolve(cls, config: Qwen2VLConfig, defaults: dict, chosen: dict) -> "Sampling":
        """What the caller chose, else what generation_config.json says."""
        chosen = {name: value for name, value in chosen.items() if value is not None}
        known, chance = {f.name for f in fields(cls)}, {"do_sample", "temperature", "top_k", "top_p"}
        if chance & chosen.keys():  # else the official top_k 1 would swallow any temperature
            known, chosen = known - chance, {"do_sample": True} | chosen
        values = {"eos_token_id": config.eos_token_id, "pad_token_id": config.bos_token_id}  # <|endoftext|>
        values |= {name: value for name, value in defaults.items() if name in known} | chosen
        how = cls(**values | ({"do_sample": False} if values.get("temperature") == 0 else {}))
        for name, least in {"temperature": 0, "top_k": 0, "top_p": 1e-9, "repetition_penalty": 1e-9}.items():
            value, most = getattr(how, name), 1 if name == "top_p" else 1e9
            if not least <= value <= most:
                raise ValueError(f"{name}={value} is not within {least:g} to {most:g}")
        return how


def next_token(logits: Tensor, seen: Tensor, how: Sampling, generator: torch.Generator | None) -> Tensor:
    """Choose from logits (B, vocabulary) after the tokens `seen` (B, S): (B,); from NaN any."""
    scores = warp_logits(logits, seen, how)
    if not how.do_sample:
        return scores.argmax(-1)
    return torch.multinomial(scores.softmax(-1).nan_to_num(1.0), 1, generator=generator)[:, 0]


def warp_logits(logits: Tensor, seen: Tensor, how: Sampling) -> Tensor:
    """Repetition penalty, temperature, top-k, top-p: (B, vocabulary) float32 scores, -inf where cut."""
    scores = logits.float()
    if how.repetition_penalty != 1.0:  # falls on the tokens of the prompt as well, as in the reference
        old = scores.gather(1, seen)
        new = torch.where(old < 0, old * how.repetition_penalty, old / how.repetition_penalty)
        scores = scores.scatter(1, seen, new)
    if not how.do_sample:
        return scores
    scores = (scores - scores.amax(-1, keepdim=True)) / how.temperature  # at most 0: no overflow
    if how.top_k and how.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(how.top_k).values[:, -1:], -math.inf)
    if how.top_p < 1.0:
        ordered, index = scores.sort()  # ascending: the tail whose sum stays within 1 - top_p goes
        cut = ordered.softmax(-1).cumsum(-1) <= 1 - how.top_p
        cut[:, -1] = False  # the likeliest always stays
        scores = scores.masked_fill(cut.scatter(1, index, cut), -math.inf)
    return scores


@dataclass
class Qwen2VLOutput:
    logits: Tensor  # (B, T or logits_to_keep, vocabulary)
    loss: Tensor | None = None  # scalar, float32, where labels were given
    past_key_values: KVCache | None = None
    rope_deltas: Tensor | None = None  # (B, 1), see get_rope_index
    hidden_states: list[Tensor] | None = None  # layers + 1 of (B, T, D): embeddings ... last, normalised
    attentions: list[Tensor] | None = None  # layers of (B, H, T, S)


class EagerStep:
    """The decoder for one more token of each row: tokens (B,) to logits (B, vocabulary)."""

    def __init__(self, model: "Qwen2VLForConditionalGeneration", cache: KVCache, mask: Tensor | None, deltas):
        self.model, self.mask, self.past = model, mask, {"past_key_values": cache, "rope_deltas": deltas}

    def __call__(self, token: Tensor) -> Tensor:
        self.mask = None if self.mask is None else F.pad(self.mask, (0, 1), value=1)  # (B, S)
        embeds = self.model.model.embed_tokens(token[:, None])  # as text, also the id of a picture's slot
        return self.model(inputs_embeds=embeds, attention_mask=self.mask, **self.past).logits[:, -1]


class Qwen2VLForConditionalGeneration(nn.Module):
    """Pictures, videos and text in, text out. `attn_implementation` may be changed at any time."""

    def __init__(self, config: Qwen2VLConfig, attn_implementation: str = "sdpa"):
        super().__init__()
        self.config, self.attn_implementation = config, attn_implementation
        self.generation_config: dict = {}
        self.get_rope_index = functools.partial(get_rope_index, config)
        self.visual = VisionTransformer(config.vision_config)
        self.model = Qwen2VLModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:  # the head is the embedding table itself
            fast.tie(self.lm_head, self.model.embed_tokens)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:  # of what is computed; with int8 that is not the weights'
        return self.model.norm.weight.dtype

    @classmethod
    def from_pretrained(
        cls, name, dtype="auto", device_map="auto", attn_implementation="auto", torch_dtype=None, int8=False
    ) -> "Qwen2VLForConditionalGeneration":
        """Load "tiny", a folder or a Hub name; "auto" is its own dtype, and one device: CUDA, MPS or CPU.

        By default attention is sdpa, on a CPU in half precision blocks. int8: matrices by `fast.to_int8`.
        """
        folder = load.find_checkpoint(name)
        config = load.read_config(folder)
        with torch.device("meta"):  # shapes without memory: each tensor gets its storage when it is read
            model = cls(Qwen2VLConfig.from_dict(config))
        dtype = load.checkpoint_dtype(config, folder, torch_dtype or dtype)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}  # a tied head counts once
        size = 1 if int8 else dtype.itemsize  # bytes a parameter
        device = load.pick_device(device_map, sum(map(math.prod, shapes.values())) * size)
        model.attn_implementation = fast.pick_attention(attn_implementation, device, dtype)
        probe = torch.ones(3, 1, 1, 1, 8, device=device, dtype=dtype)
        attention(*probe, model.attn_implementation)  # fails, where it can't run, before the weights are read
        tied = frozenset({"lm_head.weight"} if model.config.tie_word_embeddings else ())
        for path, tensor in load.read_weights(folder, shapes, device, dtype, ignored=tied):
            module, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))
            if int8 and leaf == "weight":
                fast.to_int8(model.get_submodule(module))
        model.tie_weights()
        model.generation_config = load.read_json(folder, "generation_config.json", optional=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and weights in the official layout; the other files are to be copied."""
        if self.lm_head.weight.dtype == torch.int8:
            raise ValueError("int8 weights have no official layout: load without int8 to save")
        config = self.config.to_dict()
        config["torch_dtype"] = str(self.dtype).removeprefix("torch.")
        load.save_checkpoint(folder, config, dict(self.named_parameters()), self.generation_config or None)

    def embed(self, input_ids: Tensor, images: tuple = (None, None), videos: tuple = (None, None)) -> Tensor:
        """Token embeddings (B, T, D), with the features of (pixel values, grids) in their slots, in order."""
        embeds = self.model.embed_tokens(input_ids)
        tokens = {"image": self.config.image_token_id, "video": self.config.video_token_id}
        for (kind, token), (pixels, grid_thw) in zip(tokens.items(), (images, videos), strict=True):
            slots, features = input_ids == token, embeds[:0, 0]  # (B, T) and (0, D)
            if pixels is not None:
                features = self.visual(pixels, grid_thw, self.attn_implementation).to(embeds.dtype)
            if len(features) != (n := int(slots.sum())):
                raise ValueError(f"the prompt has {n} {kind} tokens, the {kind}s give {len(features)}")
            embeds = embeds.masked_scatter(slots[..., None], features)
        return embeds

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
    ) -> Qwen2VLOutput:
        """One pass. Nothing stays on the model: the cache and the deltas are the caller's.

        input_ids: (B, T), or inputs_embeds: (B, T, D) with the pictures already in; attention_mask: (B, S), 0
        for padding; pixel values: (patches, 1176) and grids: (pictures, 3) in prompt order over all rows;
        position_ids: (3, B, T), else from get_rope_index or, behind a filled cache, from rope_deltas (B, 1);
        labels: (B, T), -100 for no loss; logits_to_keep: of the last so many positions only, 0 for all.
        """
        past = past_key_values.length if past_key_values is not None else 0
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if position_ids is None and (rope_deltas if past else input_ids) is None:
            raise ValueError(f"without position_ids, forward needs {'rope_deltas' if past else 'input_ids'}")
        if labels is not None and logits_to_keep:
            raise ValueError(f"labels need all logits, logits_to_keep is {logits_to_keep}")
        if output_attentions and self.attn_implementation != "eager":
            raise ValueError(f"{self.attn_implementation} keeps no attention weights, eager does")
        if inputs_embeds is None:
            images, videos = (pixel_values, image_grid_thw), (pixel_values_videos, video_grid_thw)
            inputs_embeds = self.embed(input_ids, images, videos)
        if position_ids is None and past:  # text behind a filled cache
            steps = torch.arange(past, past + inputs_embeds.shape[1], device=rope_deltas.device)
            position_ids = (steps + rope_deltas).expand(3, -1, -1)  # (3, B, T)
        elif position_ids is None:
            grids = image_grid_thw, video_grid_thw
            position_ids, rope_deltas = self.get_rope_index(input_ids, *grids, attention_mask)
        hidden_states, attentions = [] if output_hidden_states else None, [] if output_attentions else None
        how = attention_mask, past_key_values, self.attn_implementation
        x = self.model(inputs_embeds, position_ids, *how, hidden_states, attentions)[:, -logits_to_keep:]
        logits = self.lm_head(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # a slice of 3 axes copies weights
        loss = None
        if labels is not None:  # position i - 1 predicts token i
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return Qwen2VLOutput(logits, loss, past_key_values, rope_deltas, hidden_states, attentions)

    @torch.no_grad()
    def stream(
        self, input_ids: Tensor, attention_mask=None, max_new_tokens=128, seed=None, compile=False, **settings
    ) -> Iterator[Tensor]:
        """Yield the next token of every row, (B,), until each row has ended or max_new_tokens are out.

        Ended rows yield padding. compile: by `fast.CompiledStep`, for long answers; settings: fields of
        `Sampling`, and pictures and videos as `forward` takes them.
        """
        B, T = input_ids.shape
        room = self.config.max_position_embeddings - T
        if not 1 <= max_new_tokens <= room:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; behind {T} tokens this model takes {room}")
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError("generation needs padding on the left, this attention_mask ends in padding")
        attention_mask = None if attention_mask is None or attention_mask.all() else attention_mask
        chosen = {f.name: settings.pop(f.name, None) for f in fields(Sampling)}
        how = Sampling.resolve(self.config, self.generation_config, chosen)
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        cache = KVCache(self.config, B, T + max_new_tokens - 1, self.device, self.dtype)
        ends, ended = input_ids.new_tensor(how.eos_token_id), torch.zeros_like(input_ids[:, 0]).bool()
        out = self(input_ids, attention_mask, past_key_values=cache, logits_to_keep=1, **settings)
        step = fast.CompiledStep if compile and max_new_tokens > 1 else EagerStep
        logits, step = out.logits[:, -1], step(self, cache, attention_mask, out.rope_deltas)
        for left in reversed(range(max_new_tokens)):
            token = next_token(logits, input_ids, how, generator).masked_fill(ended, how.pad_token_id)  # (B,)
            input_ids = torch.cat((input_ids, token[:, None]), dim=1)  # (B, S)
            ended = ended | torch.isin(token, ends)
            notice = fast.Notice(ended.all(), logits.isfinite().all())
            if ahead := bool(left) and logits.is_cuda:  # it goes on while the host looks at this token
                logits = step(token)
            over, finite = notice.read()
            if not finite:
                raise ValueError(f"logits in {self.dtype} are not finite; load it in bfloat16 or float32")
            yield token
            if over or not left:
                return
            logits = logits if ahead else step(token)

    def generate(self, input_ids: Tensor, **settings) -> Tensor:
        """The prompt and behind it what `stream` yields, (B, T + new); takes what `stream` takes."""
        return torch.cat((input_ids, torch.stack(list(self.stream(input_ids, **settings)), dim=1)), dim=1)


EXAMPLES = """examples:
  python qwen2vl.py --image examples/shapes.png --trace
  python qwen2vl.py --image a.jpg --image b.jpg --prompt "What differs?" --model Qwen/Qwen2-VL-2B-Instruct
  python qwen2vl.py --video clip.mp4 --fps 1 --prompt "What happens?" --model /models/Qwen2-VL-7B-Instruct
  python qwen2vl.py --chat"""
TINY = """model: tiny, embedded here; it knows drawn shapes and words, in pictures and clips, nothing else.
For real pictures: --model Qwen/Qwen2-VL-2B-Instruct (downloads 4.4 GB), or a folder that holds it."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    about = "Ask Qwen2-VL about pictures and videos. The answer goes to stdout, everything else to stderr."
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, epilog=EXAMPLES, formatter_class=raw)
    add = parser.add_argument
    add("--image", action="append", default=[], metavar="SOURCE", help="path, URL or data: URI; repeatable")
    add("--video", action="append", default=[], metavar="SOURCE", help="path or URL; goes behind pictures")
    add("--prompt", default="Describe this image.", help="default: %(default)s")
    add("--system", help="replaces the default system prompt")
    add("--chat", action="store_true", help="talk in turns; /image PATH, /video PATH, /reset, /quit")
    add("--model", default="tiny", help="tiny (default), a folder, or a name on the Hub")
    add("--device", default="auto", help="auto (default: CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", help="auto (default: as stored), bfloat16, float16, float32")
    add("--attn", default="auto", choices=("auto", *IMPLEMENTATIONS), help="attention (default: auto)")
    add("--compile", action="store_true", help="compile the decoder: long answers end sooner")
    add("--int8", action="store_true", help="weights in int8: half of bfloat16's memory, faster, less exact")
    add("--fps", type=float, help="frames a second taken from a video (default: 2)")
    add("--min-pixels", type=int, help="smaller pictures are enlarged to this many pixels")
    add("--max-pixels", type=int, help="larger pictures are shrunk to this many; 28 x 28 make one token")
    add("--max-new-tokens", type=int, default=512, help="longest answer (default: %(default)s)")
    add("--temperature", type=float, help="0: the likeliest answer; default: as generation_config.json says")
    add("--top-k", type=int, help="draw from the k likeliest tokens only")
    add("--top-p", type=float, help="draw from the likeliest tokens that together reach this probability")
    add("--seed", type=int, help="the same seed draws the same answer")
    add("--trace", action="store_true", help="a table of each stage's shapes, time and memory")
    return parser.parse_args(argv)


def answer(model: Qwen2VLForConditionalGeneration, processor, messages: list[dict], args) -> str:
    """Stream the answer to a conversation to stdout, and return it."""
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, video_fps=args.fps
    ).to(model.device)
    names = ("max_new_tokens", "seed", "compile", "temperature", "top_k", "top_p")
    pieces, text = [], processor.text_stream()
    with stages.trace_stages(model) if args.trace else contextlib.nullcontext():
        for token in model.stream(**inputs, **{name: getattr(args, name) for name in names}):
            pieces.append(text.push(int(token)))
            print(pieces[-1], end="", flush=True)
        pieces.append(text.finish())
        print(pieces[-1], flush=True)
    return "".join(pieces)


def chat(answer_to: Callable[[list[dict]], str], messages: list[dict], media: list[dict]) -> None:
    """Turns from stdin until it ends; whatever is wrong with a turn costs that turn only."""
    turns = list(messages)
    print("/image PATH, /video PATH, /reset, /quit", file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        try:
            command, _, rest = (line := input().strip()).partition(" ")
            if command == "/quit":
                return
            if command in ("/image", "/video"):
                media.append({"type": command[1:], "path": rest.strip()})
            elif command == "/reset":
                turns, media = list(messages), []
            elif line:
                question, media = {"role": "user", "content": [*media, {"type": "text", "text": line}]}, []
                turns += [question, {"role": "assistant", "content": answer_to([*turns, question])}]
        except EOFError:
            return
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """The command line: 0, or 2 after a line on stderr about what was wrong with the input."""
    from processor import Qwen2VLProcessor  # here: the model alone needs no picture libraries

    args = parse_arguments(argv)
    getattr(sys.stdout, "reconfigure", dict)(errors="replace")  # a stream that has no emoji prints ? instead
    try:
        if args.model == "tiny":
            print(TINY, file=sys.stderr)
        processor = Qwen2VLProcessor.from_pretrained(args.model, args.min_pixels, args.max_pixels)
        options = args.dtype, args.device, args.attn
        model = Qwen2VLForConditionalGeneration.from_pretrained(args.model, *options, int8=args.int8)
        messages = [] if args.system is None else [{"role": "system", "content": args.system}]
        media = [{"type": kind, "path": path} for kind in ("image", "video") for path in getattr(args, kind)]
        if args.chat:
            chat(lambda turns: answer(model, processor, turns, args), messages, media)
        else:
            question = {"role": "user", "content": [*media, {"type": "text", "text": args.prompt}]}
            answer(model, processor, [*messages, question], args)
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"error: {str(error) or 'out of memory: lower --max-pixels or --fps'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # not on Windows: end quietly when `| head` has read enough
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
