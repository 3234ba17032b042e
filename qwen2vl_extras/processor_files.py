"""The files of a processor: what `save_pretrained` writes, for this project and `transformers`.

Texts that were read from a folder (the tokenizer's settings, a chat template) are written again as
they were. What the processor knows better, the limits of images and videos and the tokenizer
itself, is written from its present state.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
VOCABULARY = "vocab.json"  # this and the merges once more, for tokenizers in plain Python
MERGES = "merges.txt"
TOKENIZER_CONFIG = "tokenizer_config.json"
IMAGES = "preprocessor_config.json"
VIDEOS = "video_preprocessor_config.json"
# Later versions of transformers keep both sections in this file: it is split into the two above.
BOTH = "processor_config.json"
TEMPLATES = ("chat_template.json", "chat_template.jinja")
# Texts that are kept as they were read.
KEPT = (TOKENIZER_CONFIG, *TEMPLATES, "special_tokens_map.json", "added_tokens.json")
EVERY_FILE = (TOKENIZER, VOCABULARY, MERGES, IMAGES, VIDEOS, BOTH, *KEPT)

# For folders without a template: in effect the official one, as processor.render writes it.
CHAT_TEMPLATE = """\
{%- set n = namespace(images=0, videos=0) -%}
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' or 'image' in item or 'image_url' in item -%}
{%- set n.images = n.images + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ n.images ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif item.type == 'video' or 'video' in item -%}
{%- set n.videos = n.videos + 1 -%}
{%- if add_vision_id -%}{{- 'Video ' ~ n.videos ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in item -%}
{{- item.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def read_texts(folder: Path) -> dict[str, str]:
    """The texts of a folder that are to be kept, by filename."""
    texts = {}
    for filename in KEPT:
        file = folder / filename
        if file.is_file():
            texts[filename] = file.read_text(encoding="utf-8-sig")
    return texts


def save_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Write all files of a processor, and delete those of an earlier one.

    Every file is written as NAME.partial and renamed when all are complete, so that a crash leaves
    no half file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for filename, text in texts.items():
        (folder / f"{filename}.partial").write_text(text, encoding="utf-8")
    for filename in texts:
        os.replace(folder / f"{filename}.partial", folder / filename)
    # What is left would contradict the new files.
    for filename in EVERY_FILE:
        if filename not in texts:
            (folder / filename).unlink(missing_ok=True)


def to_text(content: Mapping[str, object]) -> str:
    """A JSON object as the official files are laid out."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def all_texts(
    tokenizer: Tokenizer,
    kept: Mapping[str, str],
    image_settings: Mapping[str, object],
    video_defaults: Sequence[Mapping[str, object]],
    special: Mapping[str, str],
    max_tokens: float,
    total_pixels: int,
) -> dict[str, str]:
    """The text of every file of a processor, by filename.

    kept: what read_texts gave; image_settings: the fields of preprocessor_config.json;
    video_defaults: options of videos, of which the later win; special: the tokens that end an
    answer and pad a row, as tokenizer_config.json names them. total_pixels: the default limit
    of a whole video.
    """
    texts = dict(kept)
    texts.update(tokenizer_texts(tokenizer))
    if TOKENIZER_CONFIG not in texts:
        texts[TOKENIZER_CONFIG] = to_text(tokenizer_settings(tokenizer, special, max_tokens))
    if not has_template(texts):
        texts[TEMPLATES[0]] = to_text({"chat_template": CHAT_TEMPLATE})
    texts[IMAGES] = to_text({"processor_class": "Qwen2VLProcessor", **image_settings})

    # Without limits of their own videos have no file: the defaults of every reader hold.
    video_settings: dict[str, object] = {}
    for options in video_defaults:
        for name, value in options.items():
            if value is not None:
                video_settings[name] = value
    # transformers copies the limits of images into the section of videos, where they mean nothing,
    # but never writes total_pixels: with it these are known to be limits of videos.
    if "min_pixels" in video_settings or "max_pixels" in video_settings:
        video_settings.setdefault("total_pixels", total_pixels)
    if video_settings:
        video_settings["video_processor_type"] = "Qwen2VLVideoProcessor"
        # In one order, whichever way they came here.
        texts[VIDEOS] = to_text(dict(sorted(video_settings.items())))
    return texts


def tokenizer_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """tokenizer.json, and its vocabulary and merges in files of their own."""
    text = tokenizer.to_str(pretty=True)
    model = json.loads(text)["model"]
    lines = ["#version: 0.2"]
    for merge in model["merges"]:
        # A pair, which older versions of tokenizers write as one string.
        lines.append(merge if isinstance(merge, str) else " ".join(merge))
    return {
        TOKENIZER: text,
        VOCABULARY: json.dumps(model["vocab"], ensure_ascii=False),
        MERGES: "\n".join(lines) + "\n",
    }


def has_template(texts: Mapping[str, str]) -> bool:
    """Whether any of the files holds a chat template."""
    if any(filename in texts for filename in TEMPLATES):
        return True
    return bool(json.loads(texts[TOKENIZER_CONFIG]).get("chat_template"))


def tokenizer_settings(
    tokenizer: Tokenizer, special: Mapping[str, str], max_tokens: float
) -> dict[str, object]:
    """A tokenizer_config.json for a tokenizer that came without one."""
    added = {}
    for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        added[str(token_id)] = {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
    settings: dict[str, object] = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "bos_token": None,
        "unk_token": None,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        **special,
    }
    if max_tokens != float("inf"):
        settings["model_max_length"] = int(max_tokens)
    return settings
