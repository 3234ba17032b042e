"""A checkpoint in the official layout: official tokenizer and template, 32 vision blocks, 28 layers
of the decoder at small width, random weights, saved by transformers in bfloat16.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from tests.helpers.reference import fill_randomly, reference_config

WIDTH = 96  # of the decoder: 6 heads of 16 that share 2 key-value heads
VISION_WIDTH = 64  # 4 heads of 16


def small_config(official: Path) -> dict:
    """The official 2B config with small widths: its depths, vocabulary and ids stay."""
    config = json.loads((official / "config-2b.json").read_text(encoding="utf-8"))
    config.update(hidden_size=WIDTH, intermediate_size=2 * WIDTH)
    config.update(num_attention_heads=6, num_key_value_heads=2)
    config["rope_scaling"]["mrope_section"] = [2, 3, 3]  # 16, 24, 24 of the official size
    config["vision_config"].update(embed_dim=VISION_WIDTH, num_heads=4, hidden_size=WIDTH)
    return config


def save_official_layout(official: Path, folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint into a folder, and return it."""
    return save(small_config(official), official, folder, seed)


def save(config: dict, texts: Path, folder: Path, seed: int) -> Path:
    """Random weights of a config, saved by transformers, and the texts of another folder."""
    model = transformers.Qwen2VLForConditionalGeneration(reference_config(config))
    fill_randomly(model, seed)
    # What enters the first norms is small, as in trained models: there a wrong eps is seen.
    model.model.visual.patch_embed.proj.weight.data *= 0.05
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in texts.glob("*.json"):
        if not file.name.startswith("config"):
            shutil.copy(file, folder / file.name)
    return folder


def noisy_image(seed: int, width: int = 101, height: int = 130) -> Image.Image:
    """An image of many colours whose sides are no multiples of 28, so that it is resized."""
    colours = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3))
    small = Image.fromarray(colours.astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def save_tiny_layout(tiny: Path, folder: Path, seed: int = 0) -> Path:
    """The same with the embedded checkpoint's config and tokenizer, and other weights."""
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    return save(config, tiny, folder, seed)
