"""Names of tensors: the official one of each, and which fields of config.json give its shape.

The official checkpoints have visual.*, model.* and lm_head.weight. Other tools save the same
tensors under longer names: transformers' own names in memory, or those of the wrappers that a
model was trained in. Here they become official again, if that is possible one to one.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

# What wrappers put into a name: DistributedDataParallel, torch.compile, FSDP and recomputation.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
PEFT = "base_model.model."

# The beginnings of names, and the official ones; the first that fits counts.
BEGINNINGS = {
    "model.visual.": "visual.",
    "model.language_model.lm_head.": "lm_head.",
    "language_model.lm_head.": "lm_head.",
    "model.lm_head.": "lm_head.",
    "model.language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.": "model.",
}

HEAD = "lm_head.weight"
TABLE = "model.embed_tokens.weight"

# Which fields of config.json a name or a shape comes from; the first that fits counts.
VISION = "vision_config."
FIELDS = [
    (
        r".*\.(qweight|qzeros|scales|g_idx)$",
        "quantization_config.bits, quantization_config.group_size, hidden_size, intermediate_size",
    ),
    (r"lm_head\.", "tie_word_embeddings, vocab_size, hidden_size"),
    (r".*embed_tokens\.", "vocab_size, hidden_size"),
    (r".*layers\..*self_attn\.", "num_attention_heads, num_key_value_heads, hidden_size"),
    (r".*layers\..*mlp\.", "intermediate_size, hidden_size"),
    (
        r"visual\.patch_embed\.",
        f"{VISION}embed_dim, {VISION}patch_size, {VISION}temporal_patch_size",
    ),
    (r"visual\.merger\.", f"{VISION}embed_dim, {VISION}spatial_merge_size, hidden_size"),
    (r"visual\..*mlp\.", f"{VISION}embed_dim, {VISION}mlp_ratio"),
    (r"visual\.", f"{VISION}embed_dim"),
    (r"model\.", "hidden_size"),
]
# Which field says how many blocks or layers there are.
COUNTS = [(r"visual\.blocks\.", f"{VISION}depth"), (r"model\.layers\.", "num_hidden_layers")]


def official_name(name: str) -> str:
    """The official name of a tensor that another tool has saved."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    name = ".".join(parts)
    while name.startswith(PEFT):
        name = name.removeprefix(PEFT)
    for beginning, official in BEGINNINGS.items():
        if name.startswith(beginning):
            return official + name.removeprefix(beginning)
    return name


def is_computed(name: str) -> bool:
    """Whether a tensor is a table of frequencies, which is computed from the config."""
    return name.endswith((".rotary_emb.inv_freq", ".rotary_pos_emb.inv_freq"))


def printable(name: str) -> str:
    """A name from a file, cut short and on one line."""
    return name[:99] if name.isprintable() else f"{name!r:.99}"


def map_names(folder: Path, found: Iterable[str], expected: Collection[str]) -> dict[str, str]:
    """The name in the folder's files of each tensor, by its expected name; other names stay.

    ValueError for two tensors that would get one name.
    """
    stored: dict[str, str] = {}
    for name in found:
        if is_computed(name):
            continue
        target = name if name in expected else official_name(name)
        if target in stored:
            both = f"{printable(stored[target])} and {printable(name)}"
            raise ValueError(f"{folder}: {both} are two tensors for {printable(target)}")
        stored[target] = name

    # A tied file with one of the two matrices may name it after the head.
    is_tied = HEAD not in expected
    if is_tied and HEAD in stored and TABLE in expected and TABLE not in stored:
        stored[TABLE] = stored.pop(HEAD)
    return stored


def fields_of(name: str, is_shape: bool) -> str:
    """The fields of config.json that say whether a tensor is there, or what its shape is."""
    for pattern, fields in FIELDS if is_shape else COUNTS + FIELDS[:1]:
        if re.match(pattern, name):
            return fields
    return ""
