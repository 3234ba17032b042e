"""Mistakes that people do make, to be planted in our side: would the comparison notice them?

Each names the stage at which it must be found. Notebook 08 plants them in the embedded model,
tests/test_against.py in random ones of the official layout.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import processor as processor_module
import qwen2vl
from processor import Qwen2VLProcessor
from qwen2vl import AttentionMask, Qwen2VLForConditionalGeneration

# What is replaced: an object, the name of its attribute, and the new value.
Replacement = tuple[object, str, object]


@dataclass(frozen=True)
class Mistake:
    """A mistake, the first stage that it makes wrong, and how to plant it."""

    name: str
    stage: str
    replacements: Sequence[Replacement]
    only_bfloat16: bool = False  # in float32 it is none


@contextlib.contextmanager
def planted(replacements: Sequence[Replacement]) -> Iterator[None]:
    """Replace attributes in the `with` block."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in replacements:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def all_mistakes(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor
) -> list[Mistake]:
    """All mistakes, in the order of their stages."""
    return [
        *processor_mistakes(processor),
        *vision_mistakes(model),
        *position_mistakes(model),
        *decoder_mistakes(model),
        *answer_mistakes(model, processor),
    ]


# ---------------------------------------------------------------------------- image and text


def processor_mistakes(processor: Qwen2VLProcessor) -> list[Mistake]:
    """Before the model: pixels, patches, template, ids."""
    images = processor.image_processor
    imagenet = [(images, "image_mean", [0.485, 0.456, 0.406])]
    imagenet.append((images, "image_std", [0.229, 0.224, 0.225]))
    line_by_line = [(processor_module, "patchify", patchify_line_by_line)]
    # Without a template of its own the processor renders by itself.
    no_system = [(processor, "chat_template", None), (processor_module, "render", render_no_system)]
    counts = processor.token_counts

    def one_too_few(grid_thw: Tensor) -> list[int]:
        return [count - 1 for count in counts(grid_thw)]

    encode = processor.encode_text

    def spaces_alone(text: str) -> list[int]:
        return [token for part in re.split("( )", text) for token in encode(part)]

    return [
        Mistake("resize: bilinear", "pixels", [(images, "resize_images", resize_bilinear)]),
        Mistake("normalise: ImageNet's mean and spread", "patches", imagenet),
        Mistake("patches: line by line", "patches", line_by_line),
        Mistake("template: no system message", "prompt text", no_system),
        Mistake("tokenizer: spaces alone", "token ids", [(processor, "encode_text", spaces_alone)]),
        Mistake(
            "placeholders: one too few", "token ids", [(processor, "token_counts", one_too_few)]
        ),
    ]


def resize_bilinear(images: list[Image.Image], height: int, width: int) -> Tensor:
    resized = [image.resize((width, height), Image.Resampling.BILINEAR) for image in images]
    return torch.from_numpy(np.stack([np.array(image) for image in resized])).permute(0, 3, 1, 2)


right_patchify = processor_module.patchify
right_render = processor_module.render


def patchify_line_by_line(
    frames: Tensor, patch_size: int, depth: int, merge_size: int
) -> tuple[Tensor, tuple[int, int, int]]:
    """Squares of 1 × 1 patches are no squares."""
    return right_patchify(frames, patch_size, depth, 1)


def render_no_system(turns: Sequence, *flags: bool) -> list:
    return right_render([turn for turn in turns if turn.role != "system"], *flags)


# -------------------------------------------------------------------------- vision transformer


def vision_mistakes(model: Qwen2VLForConditionalGeneration) -> list[Mistake]:
    """The vision transformer."""
    visual = model.visual
    norms = [module for module in visual.modules() if hasattr(module, "eps")]
    table = visual.rotary_table

    def swapped(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # Each patch keeps its place in the list, but its row counts as its column.
        cos, sin = table(h, w, device)
        return swap_axes(cos), swap_axes(sin)

    def unrotated(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
        cos, sin = table(h, w, device)
        return torch.ones_like(cos), torch.zeros_like(sin)  # an angle of 0

    def rounded(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
        cos, sin = table(h, w, device)
        return cos.bfloat16().float(), sin.bfloat16().float()

    attention, mlp = "vision block 0: attention", "vision block 0: MLP"
    embedding = [(qwen2vl.PatchEmbed, "forward", embed_frames_first)]
    tanh = [(visual.merger.mlp[1], "approximate", "tanh")]
    return [
        Mistake("patch embedding: frames before channels", "patch embedding", embedding),
        Mistake("vision: rows and columns swapped", attention, [(visual, "rotary_table", swapped)]),
        Mistake("vision: no rotary", attention, [(visual, "rotary_table", unrotated)]),
        Mistake("vision: rotary table in bfloat16", attention, [(visual, "rotary_table", rounded)]),
        Mistake("vision: eps x 10", attention, [(norm, "eps", 10 * norm.eps) for norm in norms]),
        Mistake("vision: causal", attention, [(qwen2vl, "eager_attention", causal_everywhere)]),
        Mistake("vision: GELU", mlp, [(qwen2vl.VisionMlp, "forward", exact_gelu)]),
        Mistake("merger: GELU by tanh", "merger", tanh),
        Mistake("merger: another order", "merger", [(qwen2vl.PatchMerger, "forward", merge_back)]),
    ]


def swap_axes(table: Tensor) -> Tensor:
    """(P, d) with the angles of rows in place of those of columns; they come twice."""
    rows, columns, _, _ = table.chunk(4, dim=-1)
    return torch.cat((columns, rows, columns, rows), dim=-1)


def embed_frames_first(module: qwen2vl.PatchEmbed, pixels: Tensor) -> Tensor:
    kernel = module.proj.weight.transpose(1, 2).flatten(1)  # (D, 2 * 3 * 14 * 14)
    return F.linear(pixels.to(kernel.dtype), kernel)


def exact_gelu(mlp: qwen2vl.VisionMlp, x: Tensor) -> Tensor:
    return mlp.fc2(F.gelu(mlp.fc1(x)))


right_eager = qwen2vl.eager_attention


def causal_everywhere(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask
) -> tuple[Tensor, Tensor]:
    return right_eager(q, k, v, replace(mask, causal=True))


def merge_back(merger: qwen2vl.PatchMerger, x: Tensor) -> Tensor:
    """The four patches of a square from the last to the first."""
    squares = merger.ln_q(x).view(-1, 4, x.shape[-1]).flip(1)
    return merger.mlp(squares.flatten(1))


# ------------------------------------------------------------------------- splice and positions


def position_mistakes(model: Qwen2VLForConditionalGeneration) -> list[Mistake]:
    """Where the image meets the text, and what position each token has."""
    splice = model.splice
    index = model.get_rope_index

    def spliced_back(
        embeds: Tensor, mask: Tensor, pixels: Tensor | None, grid: Tensor | None, kind: str
    ) -> Tensor:
        right = splice(embeds, mask, pixels, grid, kind)
        right[mask] = right[mask].flip(0)
        return right

    def swapped(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        positions, deltas = index(*inputs)
        return positions[[0, 2, 1]], deltas

    def counted(ids: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
        _, deltas = index(ids, *others)
        return torch.arange(ids.shape[1]).expand(3, *ids.shape), deltas

    def next_of_next(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        positions, deltas = index(*inputs)
        return positions, deltas + 1

    return [
        Mistake("splice: features back to front", "splice", [(model, "splice", spliced_back)]),
        Mistake(
            "M-RoPE: rows and columns swapped", "positions", [(model, "get_rope_index", swapped)]
        ),
        Mistake("M-RoPE: 0, 1, 2 … for all", "positions", [(model, "get_rope_index", counted)]),
        Mistake("M-RoPE: delta + 1", "delta", [(model, "get_rope_index", next_of_next)]),
    ]


# --------------------------------------------------------------------------------------- decoder


def decoder_mistakes(model: Qwen2VLForConditionalGeneration) -> list[Mistake]:
    """The decoder and the head."""
    decoder = model.model
    config = decoder.config
    norms = [module for module in decoder.modules() if hasattr(module, "eps")]
    theta = replace(config, rope_theta=1.2 * config.rope_theta)
    sections = replace(config, mrope_section=config.mrope_section[::-1])
    v_proj = decoder.layers[2].self_attn.v_proj
    no_bias = torch.nn.Parameter(torch.zeros_like(v_proj.bias))
    layer = decoder.layers[1]

    def no_mlp_residual(x: Tensor, *others: object) -> tuple[Tensor, Tensor | None]:
        attended, weights = layer.self_attn(layer.input_layernorm(x), *others)
        return layer.mlp(layer.post_attention_layernorm(x + attended)), weights

    head = model.lm_head

    def scaled_head(x: Tensor) -> Tensor:
        return F.linear(x, head.weight) * 0.99

    first = "decoder layer 0: attention"
    not_causal = [(qwen2vl.AttentionMask, "for_decoder", attend_to_all)]
    return [
        Mistake("decoder: eps x 10", first, [(norm, "eps", 10 * norm.eps) for norm in norms]),
        Mistake("decoder: theta x 1.2", first, [(decoder, "config", theta)]),
        Mistake("decoder: sections back to front", first, [(decoder, "config", sections)]),
        Mistake("decoder: sees the future", first, not_causal),
        Mistake(
            "decoder: wrong key-value heads", first, [(qwen2vl, "eager_attention", tiled_heads)]
        ),
        Mistake("decoder: norm in bfloat16", first, [(qwen2vl.RMSNorm, "forward", low_norm)], True),
        Mistake("decoder: GELU", "decoder layer 0: MLP", [(qwen2vl.MLP, "forward", gelu_gate)]),
        Mistake("layer 1: no residual", "decoder layer 1", [(layer, "forward", no_mlp_residual)]),
        Mistake("layer 2: no bias", "decoder layer 2: attention", [(v_proj, "bias", no_bias)]),
        Mistake("no final norm", "final norm", [(decoder.norm, "forward", torch.clone)]),
        Mistake("head: 1 % too small", "logits", [(head, "forward", scaled_head)]),
    ]


def attend_to_all(
    attention_mask: Tensor | None, batch: int, num_queries: int, num_keys: int
) -> AttentionMask:
    return AttentionMask()


def tiled_heads(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> tuple[Tensor, Tensor]:
    """Heads 0, 1, 0, 1 … in place of 0, 0, …, 1, 1."""
    group = q.shape[1] // k.shape[1]
    return right_eager(q, k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1), mask)


def low_norm(norm: qwen2vl.RMSNorm, x: Tensor) -> Tensor:
    """In the dtype of x throughout."""
    return norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps))


def gelu_gate(mlp: qwen2vl.MLP, x: Tensor) -> Tensor:
    return mlp.down_proj(F.gelu(mlp.gate_proj(x)) * mlp.up_proj(x))


# ---------------------------------------------------------------------------------------- answer


def answer_mistakes(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor
) -> list[Mistake]:
    """Choosing tokens, the cache, and tokens back to text."""
    choose = model.choose_positions

    def no_delta(ids: Tensor | None, length: int, media: tuple, mask: Tensor | None, *rest: object):
        cache, deltas = rest
        if deltas is not None:
            deltas = torch.zeros_like(deltas)
        return choose(ids, length, media, mask, cache, deltas)

    decode = processor.decode

    def decode_short(ids: Tensor | list[int], **options: bool) -> str:
        return decode(ids, **options)[: -1 if options else None]

    return [
        Mistake("the tenth best token", "token 1", [(qwen2vl, "next_token", tenth_best)]),
        Mistake("decoding: no delta", "token 2", [(model, "choose_positions", no_delta)]),
        Mistake("answer: without its end", "answer", [(processor, "decode", decode_short)]),
    ]


def tenth_best(logits: Tensor, *others: object) -> Tensor:
    """Not the second best: in bfloat16 that may be as good as the best."""
    return logits.topk(10).indices[:, 9]
