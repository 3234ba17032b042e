"""Checkpoint folders as other tools leave them, with random weights: one small model in all styles.

The config, the files of the processor and the names of the tensors are those that versions of
transformers wrote (saved_inputs.py), or variants of them that are seen in the wild.
"""

import copy
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.reference import fill_randomly, official_names, reference_config
from tests.helpers.saved_inputs import (
    CHANGED_LIMITS,
    PROCESSORS,
    TINY,
    VERSIONS,
    VIDEO_LIMITS,
    gradient,
    read_saved,
    small_config,
)

SAVED = read_saved()
PLAIN = "plain"  # the layout of the official repositories
# The limits of the official preprocessor_config.json.
OFFICIAL_LIMITS = {"min_pixels": 56 * 56, "max_pixels": 16384 * 28 * 28}


# ----------------------------------------------------------------------------------- the one model


def small_reference(tied: bool) -> transformers.Qwen2VLForConditionalGeneration:
    """The reference's model of small_config, with random weights, in float32."""
    model = transformers.Qwen2VLForConditionalGeneration(reference_config(small_config(tied)))
    fill_randomly(model, seed=15)
    return model.eval()


def conversation() -> list[dict]:
    """A question about an image and a video of two frames, which are in memory."""
    frames = [gradient(84, 84), gradient(90, 90)[6:, 6:]]
    image = Image.fromarray(gradient(80, 120))
    content = [
        {"type": "image", "image": image},
        {"type": "video", "video": [Image.fromarray(frame) for frame in frames]},
        {"type": "text", "text": "What colour is the triangle?"},
    ]
    return [{"role": "user", "content": content}]


# ----------------------------------------------------------------------------------------- writing


def write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def write_content(file: Path, content: object) -> None:
    """A JSON object, or text."""
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    else:
        write_json(file, content)


def saved_files(version: str, prefix: str) -> dict[str, object]:
    """What a version saved as "prefix/name", by the names of the files."""
    files = {}
    for name, content in SAVED[version].items():
        first, _, rest = name.partition("/")
        is_file = rest.endswith((".json", ".jinja"))
        if first == prefix and is_file:
            files[rest] = content
    return files


def has_processor(version: str, processor: str) -> bool:
    """Whether a version could save a processor of this kind: before 4.52 there are no videos'."""
    return f"{processor}/names" in SAVED[version]


def tiny_tokenizer() -> dict:
    """The tokenizer.json of "tiny"."""
    return json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))


def official_template() -> str:
    return SAVED[VERSIONS[0]]["official/chat_template.json"]["chat_template"]


def write_plain_processor(folder: Path, processor: str = "official") -> None:
    """The processor's files in the official layout, with the limits of one of PROCESSORS."""
    limits = CHANGED_LIMITS if processor == "changed" else OFFICIAL_LIMITS
    content = {"image_processor_type": "Qwen2VLImageProcessor", **limits}
    write_json(folder / "preprocessor_config.json", content)
    if processor == "video":
        video_limits = {
            "min_pixels": VIDEO_LIMITS["shortest_edge"],
            "max_pixels": VIDEO_LIMITS["longest_edge"],
        }
        write_json(folder / "video_preprocessor_config.json", video_limits)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    write_json(folder / "chat_template.json", {"chat_template": official_template()})


def write_saved_processor(folder: Path, version: str, processor: str = "official") -> None:
    """All files of a processor as a version saved it."""
    for name, content in saved_files(version, processor).items():
        write_content(folder / name, content)
    # Of tokenizer.json only what saving has changed is stored.
    tokenizer = tiny_tokenizer()
    for key, value in SAVED[version][f"{processor}/tokenizer.json changes"].items():
        if key == "model":
            tokenizer["model"].update(value)
        else:
            tokenizer[key] = value
    write_json(folder / "tokenizer.json", tokenizer)


def write_weights(folder: Path, tensors: dict[str, Tensor], shards: int = 1) -> None:
    """The tensors in one file, or spread over shards with an index."""
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


# -------------------------------------------------------------------------------- names of tensors


def in_memory(name: str) -> str:
    """An official name as transformers has it in memory since 4.52."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model."):
        return name.replace("model.", "model.language_model.", 1)
    return name  # lm_head.weight


def language_model_first(name: str) -> str:
    """An official name in the style of models that hold a whole language model."""
    if name.startswith(("model.", "lm_head.")):
        return f"language_model.{name}"
    return name


def recomputed(name: str) -> str:
    """An official name in a model whose layers are wrapped for activation checkpointing."""
    return re.sub(r"(layers|blocks)\.(\d+)\.", r"\1.\2._checkpoint_wrapped_module.", name)


# Each style renames an official name.
NAME_STYLES = {
    "official": lambda name: name,
    "in memory": in_memory,
    "language model first": language_model_first,
    "module": lambda name: f"module.{name}",
    "module, in memory": lambda name: f"module.{in_memory(name)}",
    "base model": lambda name: f"base_model.model.{name}",
    "base model, in memory": lambda name: f"base_model.model.{in_memory(name)}",
    "module and base model": lambda name: f"module.base_model.model.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled, in memory": lambda name: f"_orig_mod.{in_memory(name)}",
    "sharded": lambda name: f"_fsdp_wrapped_module.{in_memory(name)}",
    "recomputed": recomputed,
}
# Which of two tied matrices a file has.
TIED_STYLES = ("both", "embedding", "head")


def rename(tensors: dict[str, Tensor], style: str, tied_style: str | None) -> dict[str, Tensor]:
    """Official tensors under the names of a style; tied_style: None for an untied model."""
    left_out = {"embedding": "lm_head.weight", "head": "model.embed_tokens.weight"}.get(tied_style)
    renamed = {}
    for name, tensor in tensors.items():
        if name != left_out:
            renamed[NAME_STYLES[style](name)] = tensor
    return renamed


# ------------------------------------------------------------------------------- drawn at random

TOKENIZER_STYLES = ("whole", "completed by tokenizer_config.json", "truncation", "padding")
TEMPLATE_STYLES = ("none", "json", "jinja", "tokenizer_config", "list in tokenizer_config")
DTYPE_STYLES = ("dtype", "torch_dtype", "absent")


@dataclass
class Style:
    """One combination of all that differs between folders."""

    tied: bool
    config: str  # a version, or PLAIN
    processor_version: str
    processor: str  # one of PROCESSORS
    names: str
    tied_names: str | None
    shards: int
    tokenizer: str
    template: str
    dtype: str
    generation: str  # a version, PLAIN for no file, or "null"


def draw_style(rng: random.Random) -> Style:
    """A style drawn at random."""
    tied = rng.random() < 0.5
    processor = rng.choice(PROCESSORS)
    versions = [version for version in VERSIONS if has_processor(version, processor)]
    return Style(
        tied=tied,
        config=rng.choice([PLAIN, *VERSIONS]),
        processor_version=rng.choice([PLAIN, *versions]),
        processor=processor,
        names=rng.choice(list(NAME_STYLES)),
        tied_names=rng.choice(TIED_STYLES) if tied else None,
        shards=rng.choice([1, 1, 3]),
        tokenizer=rng.choice(TOKENIZER_STYLES),
        template=rng.choice(TEMPLATE_STYLES),
        dtype=rng.choice(DTYPE_STYLES),
        generation=rng.choice([PLAIN, "null", *VERSIONS]),
    )


def write_folder(folder: Path, style: Style, tensors: dict[str, Tensor]) -> None:
    """A folder in a style, with the official tensors."""
    folder.mkdir()
    write_json(folder / "config.json", styled_config(style))
    write_weights(folder, rename(tensors, style.names, style.tied_names), style.shards)
    if style.processor_version == PLAIN:
        write_plain_processor(folder, style.processor)
    else:
        write_saved_processor(folder, style.processor_version, style.processor)
    change_tokenizer(folder, style.tokenizer)
    change_template(folder, style.template)

    # The small model is greedy, and so is every file here.
    generation = {"eos_token_id": [692, 690], "pad_token_id": 690, "do_sample": False}
    if style.generation == "null":
        write_json(folder / "generation_config.json", {**generation, "temperature": None})
    elif style.generation != PLAIN:
        name = "tied" if style.tied else "untied"
        generation = SAVED[style.generation][f"{name}/generation_config.json"]
        write_json(folder / "generation_config.json", generation)


def styled_config(style: Style) -> dict:
    """The config.json of a style."""
    config = small_config(style.tied)
    if style.config != PLAIN:
        name = "tied" if style.tied else "untied"
        config = copy.deepcopy(SAVED[style.config][f"{name}/config.json"])
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    if style.dtype != "absent":
        config[style.dtype] = "float32"
    return config


def change_tokenizer(folder: Path, style: str) -> None:
    """Change tokenizer.json as training runs and the official repositories do."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if style == "completed by tokenizer_config.json":
        # The last tokens are named in the other file only.
        added = tokenizer["added_tokens"]
        settings["added_tokens_decoder"] = {}
        for token in added:
            flags = {key: value for key, value in token.items() if key != "id"}
            settings["added_tokens_decoder"][str(token["id"])] = flags
        tokenizer["added_tokens"] = added[:-5]
    elif style == "truncation":
        tokenizer["truncation"] = {
            "direction": "Right",
            "max_length": 12,
            "strategy": "LongestFirst",
            "stride": 0,
        }
    elif style == "padding":
        tokenizer["padding"] = {
            "strategy": {"Fixed": 48},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 690,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        }
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", settings)


def change_template(folder: Path, style: str) -> None:
    """Put the official template where the style has it, and nowhere else."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    for name in ("chat_template.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)

    template = official_template()
    if style == "json":
        write_json(folder / "chat_template.json", {"chat_template": template})
    elif style == "jinja":
        write_content(folder / "chat_template.jinja", template)
    elif style == "tokenizer_config":
        settings["chat_template"] = template
    elif style == "list in tokenizer_config":
        settings["chat_template"] = [{"name": "default", "template": template}]
    write_json(folder / "tokenizer_config.json", settings)


def official_tensors(model: transformers.Qwen2VLForConditionalGeneration) -> dict[str, Tensor]:
    """The tensors of the reference under official names, with the tied head."""
    return {name: t.detach() for name, t in official_names(model.state_dict()).items()}


def model_inputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The processor's output as keyword arguments for either model."""
    return {name: tensor for name, tensor in inputs.items() if torch.is_tensor(tensor)}
