"""What the JSON files of a checkpoint may hold: one table for each file, one line for each field.

A folder from the Internet may say anything. `check` compares a file with its table before any of
its values is used, so the code that uses them needs no checks of its own. Fields that no table
names are never read. `null` counts as absent everywhere. What follows from several fields
together stands in `check_sizes`.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

# The largest values that are taken. The 72B model has 80 layers, sizes up to 29,568 and 152,064
# tokens. The skeleton of a model of 256 layers is built in less than a second.
MAX_LAYERS = 256
MAX_SIZE = 2**20
MAX_VOCABULARY = 2**24
MAX_POSITIONS = 2**40
MAX_PIXELS = 10**12
TINY = 1e-9  # the lowest value of numbers that can't be 0


# -------------------------------------------------------------------------------- kinds of values


class Fault(NamedTuple):
    """A value that is not allowed: where it stands, and what may stand there."""

    path: str
    value: object
    allowed: str


@dataclass(frozen=True)
class Integer:
    """A whole number within its range. `true` and 14.0 are none."""

    lowest: int
    highest: int

    def describe(self) -> str:
        if self.lowest == self.highest:
            return str(self.lowest)
        return f"a whole number from {self.lowest} to {self.highest}"

    def fault(self, path: str, value: object) -> Fault | None:
        if type(value) is int and self.lowest <= value <= self.highest:
            return None
        return Fault(path, value, self.describe())


@dataclass(frozen=True)
class Number:
    """A finite number within its range, whole or not. `true` is none."""

    lowest: float
    highest: float

    def describe(self) -> str:
        return f"a number from {self.lowest:g} to {self.highest:g}"

    def fault(self, path: str, value: object) -> Fault | None:
        fault = Fault(path, value, self.describe())
        if not isinstance(value, int | float) or isinstance(value, bool):
            return fault
        return None if self.lowest <= value <= self.highest else fault  # NaN is in no range


@dataclass(frozen=True)
class Boolean:
    """true or false; 1 and "true" are neither."""

    def describe(self) -> str:
        return "true or false"

    def fault(self, path: str, value: object) -> Fault | None:
        return None if isinstance(value, bool) else Fault(path, value, self.describe())


@dataclass(frozen=True)
class Text:
    """A string."""

    def describe(self) -> str:
        return "a string"

    def fault(self, path: str, value: object) -> Fault | None:
        return None if isinstance(value, str) else Fault(path, value, self.describe())


@dataclass(frozen=True)
class FileName:
    """The plain name of a file in the same folder, on every system."""

    def describe(self) -> str:
        return "the name of a file in this folder, without / \\ : or control characters"

    def fault(self, path: str, value: object) -> Fault | None:
        is_name = isinstance(value, str) and 0 < len(value) <= 255 and value not in (".", "..")
        # No separators, no drive letter, nothing that a terminal would act on.
        if is_name and str(value).isprintable() and not any(c in str(value) for c in "/\\:"):
            return None
        return Fault(path, value, self.describe())


@dataclass(frozen=True)
class Only:
    """A setting with one value that can be had here: any other would change the result."""

    value: bool | float
    tolerance: float = 0.0

    def describe(self) -> str:
        shown = str(self.value).lower() if isinstance(self.value, bool) else f"{self.value:.6g}"
        return f"{shown}: nothing else can be had here"

    def fault(self, path: str, value: object) -> Fault | None:
        fault = Fault(path, value, self.describe())
        # In Python true and 1 are equal.
        is_same_kind = isinstance(value, bool) == isinstance(self.value, bool)
        if not isinstance(value, int | float) or not is_same_kind:
            return fault
        is_close = self.value - self.tolerance <= value <= self.value + self.tolerance
        return None if is_close else fault


@dataclass(frozen=True)
class ListOf:
    """A list of values of one kind."""

    kind: "Kind"
    shortest: int
    longest: int

    def describe(self) -> str:
        if self.shortest == self.longest:
            return f"a list of {self.longest}, each {self.kind.describe()}"
        return f"a list, each {self.kind.describe()}"

    def fault(self, path: str, value: object) -> Fault | None:
        if not isinstance(value, list) or not self.shortest <= len(value) <= self.longest:
            return Fault(path, value, self.describe())
        for i, part in enumerate(value):
            found = self.kind.fault(f"{path}[{i}]", part)
            if found is not None:
                return found
        return None


@dataclass(frozen=True)
class Section:
    """An object with named fields, each of which may be absent."""

    fields: Mapping[str, "Kind"]
    # Whether other fields are refused. They may be null.
    is_closed: bool = False

    def describe(self) -> str:
        if self.is_closed:
            return f"an object with {', '.join(self.fields)}"
        return "an object"

    def fault(self, path: str, value: object) -> Fault | None:
        if not isinstance(value, dict):
            return Fault(path, value, self.describe())
        for name, part in value.items():
            if part is None:
                continue
            if name in self.fields:
                found = self.fields[name].fault(join(path, name), part)
                if found is not None:
                    return found
            elif self.is_closed:
                return Fault(path, value, self.describe())
        return None


@dataclass(frozen=True)
class TableOf:
    """An object whose keys are data, such as the names of tensors."""

    kind: "Kind"
    # Whether the keys are token ids.
    has_ids: bool = False

    def describe(self) -> str:
        return f"an object, each value {self.kind.describe()}"

    def fault(self, path: str, value: object) -> Fault | None:
        if not isinstance(value, dict):
            return Fault(path, value, self.describe())
        for name, part in value.items():
            if self.has_ids and not is_token_id(name):
                return Fault(join(path, name), part, "under a token id")
            found = self.kind.fault(join(path, name), part)
            if found is not None:
                return found
        return None


@dataclass(frozen=True)
class Either:
    """A value of one of two kinds."""

    first: "Kind"
    second: "Kind"

    def describe(self) -> str:
        return f"{self.first.describe()}, or {self.second.describe()}"

    def fault(self, path: str, value: object) -> Fault | None:
        first = self.first.fault(path, value)
        second = self.second.fault(path, value)
        if first is None or second is None:
            return None
        # A fault inside a list or an object says more than one about the whole.
        for found in (first, second):
            if found.path != path:
                return found
        return Fault(path, value, self.describe())


Kind: TypeAlias = (
    Integer | Number | Boolean | Text | FileName | Only | ListOf | Section | TableOf | Either
)


def join(path: str, name: str) -> str:
    """The path of a field of a section; a name from the file is made harmless to print."""
    shown = name if name.isidentifier() else reprlib.repr(name)
    return f"{path}.{shown}" if path else shown


def is_token_id(name: str) -> bool:
    """Whether a key is a token id: JSON has strings as keys only."""
    return name.isascii() and name.isdigit() and len(name) < 10


def check(file: Path | str, content: Mapping[str, object], schema: Section) -> None:
    """ValueError, in one line, for the first field of a file that its table does not allow."""
    fault = schema.fault("", content)
    if fault is not None:
        refuse(file, fault)


def refuse(file: Path | str, fault: Fault) -> None:
    """ValueError that names file, field, value (cut short) and what is allowed."""
    raise ValueError(
        f"{file}: {fault.path} is {reprlib.repr(fault.value)}; it must be {fault.allowed}"
    )


# ------------------------------------------------------------------------------------- config.json

SIZE = Integer(1, MAX_SIZE)
LAYERS = Integer(1, MAX_LAYERS)
TOKEN_ID = Integer(0, MAX_VOCABULARY - 1)
TOKEN_IDS = Either(TOKEN_ID, ListOf(TOKEN_ID, 0, 64))
PATCH = Integer(1, 256)
MERGE = Integer(1, 16)

ROPE = Section(
    {
        "type": Text(),
        "rope_type": Text(),
        "rope_theta": Number(TINY, 1e12),
        "mrope_section": ListOf(Integer(0, MAX_SIZE), 3, 3),
    }
)

# Which values can be read stands in packed_config.py.
QUANTIZATION = Section(
    {
        "desc_act": Boolean(),
        "sym": Boolean(),
        "zero_point": Boolean(),
        "is_marlin_format": Boolean(),
        "dynamic": Section({}),
        "meta": Section({}),
    }
)

# The decoder's fields: at the top of the file, or in its text_config, or in both.
TEXT_FIELDS: dict[str, Kind] = {
    "vocab_size": Integer(1, MAX_VOCABULARY),
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": SIZE,
    "num_key_value_heads": SIZE,
    "head_dim": SIZE,
    "max_position_embeddings": Integer(1, MAX_POSITIONS),
    "rms_norm_eps": Number(0, 1),
    "rope_theta": Number(TINY, 1e12),
    "rope_scaling": ROPE,
    "rope_parameters": ROPE,
    "partial_rotary_factor": Only(1.0),
    "tie_word_embeddings": Boolean(),
    "hidden_act": Text(),
    "use_sliding_window": Boolean(),
    "layer_types": ListOf(Text(), 0, MAX_LAYERS),
    "quantization_config": QUANTIZATION,
    "bos_token_id": TOKEN_ID,
    "eos_token_id": TOKEN_IDS,
    "pad_token_id": TOKEN_ID,
}

VISION = Section(
    {
        "depth": LAYERS,
        "embed_dim": SIZE,
        "num_heads": SIZE,
        "mlp_ratio": Number(0.01, 64),
        "in_chans": Integer(3, 3),  # images have red, green and blue
        "in_channels": Integer(3, 3),
        "hidden_size": SIZE,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": MERGE,
        "hidden_act": Text(),
        "rope_parameters": Section({"rope_theta": Only(10_000.0)}),
    }
)

CONFIG = Section(
    {
        **TEXT_FIELDS,
        "model_type": Text(),
        "dtype": Text(),
        "torch_dtype": Text(),
        "vision_start_token_id": TOKEN_ID,
        "vision_end_token_id": TOKEN_ID,
        "image_token_id": TOKEN_ID,
        "video_token_id": TOKEN_ID,
        "text_config": Section(TEXT_FIELDS),
        "vision_config": VISION,
    }
)


class Rule(NamedTuple):
    """What follows from several fields together: whether it holds, and what to say if not."""

    holds: bool
    field: str
    value: object
    allowed: str


def check_sizes(file: Path | str, config: Mapping) -> None:
    """ValueError for sizes and token ids of a complete flat config that don't go together."""
    for rule in (*decoder_rules(config), *vision_rules(config), *token_rules(config)):
        if not rule.holds:
            refuse(file, Fault(rule.field, rule.value, rule.allowed))


def decoder_rules(config: Mapping) -> list[Rule]:
    """Heads divide the hidden size, and the sections of M-RoPE fill half a head."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads, sections = config["num_key_value_heads"], config["mrope_section"]
    head_dim = width // heads
    stated_head_dim = config.get("head_dim") or head_dim
    quotient = f"{head_dim}, which is hidden_size / num_attention_heads"
    adding_up = f"three numbers that add up to {head_dim / 2:g}, half the size of a head"
    return [
        Rule(width % heads == 0, "num_attention_heads", heads, f"a divisor of hidden_size {width}"),
        Rule(
            heads % kv_heads == 0,
            "num_key_value_heads",
            kv_heads,
            f"a divisor of num_attention_heads {heads}",
        ),
        Rule(stated_head_dim == head_dim, "head_dim", stated_head_dim, quotient),
        Rule(2 * sum(sections) == head_dim, "mrope_section", sections, adding_up),
    ]


def vision_rules(config: Mapping) -> list[Rule]:
    """Heads divide the width into multiples of 4, and the merger gives what the decoder takes."""
    vision, width = config["vision_config"], config["hidden_size"]
    embed_dim, heads = vision["embed_dim"], vision["num_heads"]
    return [
        # Half of a head rotates by the row and half by the column, each in pairs.
        Rule(
            embed_dim % (4 * heads) == 0,
            "vision_config.num_heads",
            heads,
            f"such that embed_dim {embed_dim} divided by it is a multiple of 4",
        ),
        Rule(
            int(embed_dim * vision["mlp_ratio"]) >= 1,
            "vision_config.mlp_ratio",
            vision["mlp_ratio"],
            f"at least 1 / embed_dim, which is 1/{embed_dim}",
        ),
        Rule(
            vision["hidden_size"] == width,
            "vision_config.hidden_size",
            vision["hidden_size"],
            f"{width}, the hidden_size of the decoder",
        ),
    ]


def token_rules(config: Mapping) -> list[Rule]:
    """Token ids are in the vocabulary, and those around and in images differ."""
    rules = []
    seen: dict[int, str] = {}
    vocab_size = config["vocab_size"]
    below = f"below vocab_size {vocab_size}"
    for name in (
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
    ):
        value = config[name]
        rules.append(Rule(value < vocab_size, name, value, below))
        other = seen.setdefault(value, name)
        rules.append(Rule(other == name, name, value, f"different from {other}"))
    rules.append(
        Rule(config["bos_token_id"] < vocab_size, "bos_token_id", config["bos_token_id"], below)
    )
    ends = config["eos_token_id"]
    for end in ends if isinstance(ends, list) else [ends]:
        rules.append(Rule(end < vocab_size, "eos_token_id", end, below))
    return rules


# --------------------------------------------------------------------------------- the other files

GENERATION = Section(
    {
        "do_sample": Boolean(),
        "temperature": Number(0, 1e9),
        "top_k": Integer(0, 10**9),
        "top_p": Number(TINY, 1),
        "repetition_penalty": Number(TINY, 1e9),
        "bos_token_id": TOKEN_ID,
        "eos_token_id": TOKEN_IDS,
        "pad_token_id": TOKEN_ID,
    }
)

PIXELS = Number(1, MAX_PIXELS)  # 3136.0 is taken: areas are compared, never counted with
COUNT = Integer(1, 10**6)
CHANNELS = ListOf(Number(-1e6, 1e6), 3, 3)

# Settings of an image or video processor. The limits of pixels have three spellings.
MEDIA_FIELDS: dict[str, Kind] = {
    "min_pixels": PIXELS,
    "max_pixels": PIXELS,
    "size": Section(
        {
            "shortest_edge": PIXELS,
            "longest_edge": PIXELS,
            "min_pixels": PIXELS,
            "max_pixels": PIXELS,
        },
        is_closed=True,
    ),
    "patch_size": PATCH,
    "temporal_patch_size": MERGE,
    "merge_size": MERGE,
    "image_mean": CHANNELS,
    "image_std": ListOf(Number(TINY, 1e6), 3, 3),
    "do_resize": Only(True),
    "do_rescale": Only(True),
    "do_normalize": Only(True),
    "rescale_factor": Only(1 / 255, 1e-9),
    "resample": Only(3),
}

IMAGE_PROCESSOR = Section(MEDIA_FIELDS)

VIDEO_PROCESSOR = Section(
    {
        **MEDIA_FIELDS,
        "total_pixels": PIXELS,
        "fps": Number(TINY, 1e6),
        "nframes": COUNT,
        "num_frames": COUNT,
        "min_frames": COUNT,
        "max_frames": COUNT,
    }
)

PROCESSOR = Section({"image_processor": IMAGE_PROCESSOR, "video_processor": VIDEO_PROCESSOR})

# A token is its text, or an object that holds its text.
TOKEN = Either(Text(), Section({"content": Text()}))
ADDED_TOKEN = Section(
    {
        "content": Text(),
        "special": Boolean(),
        "lstrip": Boolean(),
        "rstrip": Boolean(),
        "normalized": Boolean(),
        "single_word": Boolean(),
    }
)
NAMED_TEMPLATE = Section({"name": Text(), "template": Text()})

TOKENIZER_CONFIG = Section(
    {
        "eos_token": TOKEN,
        "pad_token": TOKEN,
        "added_tokens_decoder": TableOf(ADDED_TOKEN, has_ids=True),
        "chat_template": Either(Text(), ListOf(NAMED_TEMPLATE, 0, 100)),
    }
)

# Of the large file only what names tokens.
TOKENIZER = Section(
    {
        "added_tokens": ListOf(
            Section({"id": Integer(0, MAX_VOCABULARY), "content": Text()}), 0, MAX_VOCABULARY
        ),
        "model": Section({"vocab": TableOf(Integer(0, MAX_VOCABULARY))}),
    }
)

INDEX = Section({"weight_map": TableOf(FileName())})

NAMES = ListOf(Text(), 0, 10**5)

RANK = Integer(1, 2**16)
ALPHA = Number(-1e6, 1e6)
PATTERN = Either(Text(), NAMES)  # names of modules, or a regular expression
LAYER = Integer(0, MAX_LAYERS - 1)
ROWS = ListOf(TOKEN_ID, 0, MAX_VOCABULARY)

# Which values can be merged stands in lora_config.py.
ADAPTER_CONFIG = Section(
    {
        "peft_type": Text(),
        "base_model_name_or_path": Text(),
        "revision": Text(),
        "r": RANK,
        "lora_alpha": ALPHA,
        "use_rslora": Boolean(),
        "use_dora": Boolean(),
        "lora_bias": Boolean(),
        "ensure_weight_tying": Boolean(),
        "fan_in_fan_out": Boolean(),
        "bias": Text(),
        "init_lora_weights": Either(Boolean(), Text()),
        "target_modules": PATTERN,  # or "all-linear"
        "exclude_modules": PATTERN,
        "modules_to_save": NAMES,
        "rank_pattern": TableOf(RANK),
        "alpha_pattern": TableOf(ALPHA),
        "layers_to_transform": Either(LAYER, ListOf(LAYER, 0, MAX_LAYERS)),
        "layers_pattern": PATTERN,
        "trainable_token_indices": Either(ROWS, TableOf(ROWS)),
    }
)

# The table of each file, by its name.
SCHEMAS = {
    "config.json": CONFIG,
    "generation_config.json": GENERATION,
    "preprocessor_config.json": IMAGE_PROCESSOR,
    "video_preprocessor_config.json": VIDEO_PROCESSOR,
    "processor_config.json": PROCESSOR,
    "tokenizer_config.json": TOKENIZER_CONFIG,
    "tokenizer.json": TOKENIZER,
    "model.safetensors.index.json": INDEX,
    "adapter_config.json": ADAPTER_CONFIG,
    "quantize_config.json": QUANTIZATION,
    "quant_config.json": QUANTIZATION,
}
