"""A kept cache: every turn of a conversation gives what the whole, read at once, gives."""

import copy
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import processor as processor_file
from processor import Message, Qwen2VLProcessor, expand_placeholders, parse_message, render
from qwen2vl import KVCache, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_app.conversation import ContextFull, Conversation
from tests.helpers.drawn_media import noise, write_video
from tests.helpers.reference import (
    KINDS,
    TOLERANCE,
    Row,
    collate,
    count_patches,
    error,
    fill_randomly,
    official_names,
    random_config,
    random_pair,
    random_rows,
    reference_config,
)


# ---------------------------------------------------------- generate and stream on a filled cache


@pytest.mark.parametrize("kind", KINDS)
def test_generate_goes_on_from_a_filled_cache(kind, amount):
    """A prompt in two parts, with media in both, gives the tokens of the whole."""
    for seed in range(amount(3, 20)):
        ours, _ = random_pair(seed)
        rng = random.Random(seed)
        first, second, whole = prompt_in_two_parts(rng, ours.config, kind)
        settings = {"max_new_tokens": 8, "eos_token_id": -1, "repetition_penalty": 1.2}
        settings.update(rng.choice([{"do_sample": False}, {"seed": 7, "top_k": 5}]))
        expected = ours.generate(**whole, **settings)

        batch, length = first["input_ids"].shape
        cache = KVCache(ours.config, batch, length)
        with torch.no_grad():
            deltas = ours(**first, past_key_values=cache).rope_deltas
        found = ours.generate(**second, past_key_values=cache, rope_deltas=deltas, **settings)
        assert torch.equal(found, expected), f"seed {seed}"
        assert cache.length == found.shape[1] - 1

        # Once more, with a part of the cache that is forgotten again.
        cache.crop(length)
        found = ours.generate(**second, past_key_values=cache, rope_deltas=deltas, **settings)
        assert torch.equal(found, expected), f"seed {seed}, cropped"


def prompt_in_two_parts(rng: random.Random, config: Qwen2VLConfig, kind: str) -> tuple:
    """Inputs of the first part, inputs of a call that goes on from it, and those of the whole.

    Rows of different lengths are padded on the left in both parts.
    """
    first_rows, second_rows = random_rows(rng, config, kind), random_rows(rng, config, kind)
    first, second = collate(first_rows, config, 1), collate(second_rows, config, 2)
    whole = {}
    for name in ("input_ids", "attention_mask"):
        whole[name] = torch.cat((first[name], second[name]), dim=1)
    for pixels, grids, images in (
        ("pixel_values", "image_grid_thw", "images"),
        ("pixel_values_videos", "video_grid_thw", "videos"),
    ):
        if pixels in first:
            whole[pixels], whole[grids] = in_order_of_rows(
                [(first, first_rows), (second, second_rows)], pixels, grids, images
            )
    second = {**second, "input_ids": whole["input_ids"], "attention_mask": whole["attention_mask"]}
    return first, second, whole


def in_order_of_rows(
    parts: list[tuple[dict[str, Tensor], list[Row]]], pixels: str, grids: str, images: str
) -> tuple[Tensor, Tensor]:
    """Patches and grids of both parts: those of the first row, of the second, and so on."""
    values, shapes = [], []
    taken = [0 for _ in parts]  # patches, of each part
    for row in range(len(parts[0][1])):
        for i, (inputs, rows) in enumerate(parts):
            own = getattr(rows[row], images)
            end = taken[i] + count_patches(own)
            values.append(inputs[pixels][taken[i] : end])
            shapes += own
            taken[i] = end
    return torch.cat(values), torch.tensor(shapes)


def test_a_cache_that_does_not_fit_is_refused_at_once(tiny):
    model, _ = tiny
    ids = torch.arange(12)[None]
    cache = KVCache(model.config, 1, 30)
    deltas = model(ids, past_key_values=cache).rope_deltas
    longer = torch.arange(14)[None]
    right = {"past_key_values": cache, "rope_deltas": deltas}
    calls = [
        (ids, right, "holds 12 tokens, input_ids has 12: at least 1 more is needed"),
        (ids[:, :5], right, "holds 12 tokens, input_ids has 5"),
        (longer, {"past_key_values": cache}, "rope_deltas are needed with it"),
        (longer, {"rope_deltas": deltas}, "the cache holds 0 tokens"),
        (longer, {**right, "rope_deltas": deltas[0]}, r"rope_deltas has shape \(1,\)"),
        (longer.expand(2, -1), right, "past_key_values has shape"),
        (longer, {**right, "past_key_values": [1]}, "is a list, a KVCache is needed"),
    ]
    for input_ids, given, message in calls:
        with pytest.raises(ValueError, match=message):
            model.stream(input_ids, **given)
    for length in (-1, 13, 2.0, True):
        with pytest.raises(ValueError, match="length is"):
            cache.crop(length)
    assert cache.length == 12
    # What was refused has changed nothing.
    found = model.generate(longer, **right, max_new_tokens=3, do_sample=False)
    assert torch.equal(found, model.generate(longer, max_new_tokens=3, do_sample=False))


def test_a_cache_that_grows_keeps_what_it_holds(tiny):
    model, _ = tiny
    ids = torch.arange(20)[None]
    cache = KVCache(model.config, 1, 0)
    for capacity in (12, 12, 5, 40):
        cache.reserve(capacity)
        assert cache.capacity == cache.keys.shape[3] == cache.values.shape[3] == max(12, capacity)
        if cache.length == 0:
            model(ids[:, :12], past_key_values=cache)
    fresh = KVCache(model.config, 1, 12)
    model(ids[:, :12], past_key_values=fresh)
    assert torch.equal(cache.keys[:, :, :, :12], fresh.keys)
    assert torch.equal(cache.values[:, :, :, :12], fresh.values)
