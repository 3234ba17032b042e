"""adapter_config.json of a LoRA adapter: what each field may hold, and what it says of a module.

Modules are matched as PEFT does it. A list of targets holds names or their last parts, a string
is a regular expression that matches from end to end, and the keys of rank_pattern and
alpha_pattern are regular expressions for last parts.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen2vl_extras.patterns import match_patterns

CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"


# --------------------------------------------------------------------------------------- the fields


def is_flag(value: object) -> bool:
    return isinstance(value, bool)


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not is_flag(value) and 0 <= value < 2**31


def is_rank(value: object) -> bool:
    return is_count(value) and value != 0


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not is_flag(value) and abs(value) < 1e30


def is_list_of(value: object, is_one: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(is_one(one) for one in value)


def is_dict_of(value: object, is_one: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(is_one(one) for one in value.values())


def is_texts(value: object) -> bool:
    return is_list_of(value, is_text)


def is_counts(value: object) -> bool:
    return is_list_of(value, is_count)


def is_text_or_texts(value: object) -> bool:
    return is_text(value) or is_texts(value)


def is_layers(value: object) -> bool:
    return is_count(value) or is_counts(value)


def is_tokens(value: object) -> bool:
    return is_counts(value) or is_dict_of(value, is_counts)


def is_pattern_of_ranks(value: object) -> bool:
    return is_dict_of(value, is_rank)


def is_pattern_of_numbers(value: object) -> bool:
    return is_dict_of(value, is_number)


def is_bias(value: object) -> bool:
    return value in ("none", "all", "lora_only")


def is_lora(value: object) -> bool:
    return value == "LORA"


def keeps_the_base(value: object) -> bool:
    """Whether matrices that began like this were trained on the base as it is stored."""
    return is_flag(value) or value in ("gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class Field:
    """One field of the file: what it may hold, in code and in words, and what holds without it.

    optional: null is the same as no field.
    """

    is_allowed: Callable[[object], bool]
    allowed: str
    default: object = None
    optional: bool = False


FIELDS = {
    "peft_type": Field(is_lora, "'LORA': no other kind of adapter can be merged here"),
    "r": Field(is_rank, "a whole number of at least 1", 8),
    "lora_alpha": Field(is_number, "a number", 8),
    "use_rslora": Field(is_flag, "true or false", False),
    "use_dora": Field(is_flag, "true or false", False),
    "lora_bias": Field(is_flag, "true or false", False),
    "bias": Field(is_bias, "'none', 'all' or 'lora_only'", "none"),
    "init_lora_weights": Field(
        keeps_the_base,
        "true, false, 'gaussian', 'eva', 'orthogonal' or 'mica': others change the base as well, "
        "unless PEFT's path_initial_model_for_weight_conversion is given when saving",
        True,
    ),
    "target_modules": Field(is_text_or_texts, "a list of names or a regular expression"),
    "exclude_modules": Field(
        is_text_or_texts, "a list of names or a regular expression", [], optional=True
    ),
    "modules_to_save": Field(is_texts, "a list of names", [], optional=True),
    "rank_pattern": Field(
        is_pattern_of_ranks, "an object of whole numbers of at least 1", {}, optional=True
    ),
    "alpha_pattern": Field(is_pattern_of_numbers, "an object of numbers", {}, optional=True),
    "layers_to_transform": Field(is_layers, "a whole number or a list of them", [], optional=True),
    "layers_pattern": Field(is_text_or_texts, "a name or a list of names", [], optional=True),
    "trainable_token_indices": Field(
        is_tokens, "a list of token ids or an object of such lists", [], optional=True
    ),
    "base_model_name_or_path": Field(is_text, "a name", "", optional=True),
    "revision": Field(is_text, "a name", "", optional=True),
}
# Fields that matter only while an adapter is trained: they may hold anything. fan_in_fan_out is
# for a kind of layer that Qwen2-VL does not have; elsewhere PEFT does not obey it.
OF_TRAINING = (
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_dtype",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
)
# Values of any other field that mean "not used".
UNUSED: tuple[object, ...] = (None, False, [], {}, "")


def check_fields(file: Path, config: Mapping[str, object]) -> dict:
    """Every field of FIELDS with its value; ValueError for the first that can't be merged."""
    values = {}
    for name, field in FIELDS.items():
        value = config.get(name, field.default)
        if value is None and field.optional:
            value = field.default
        if not field.is_allowed(value):
            raise ValueError(f"{file}: {name} is {value!r:.99}, must be {field.allowed}")
        values[name] = value
    for name, value in config.items():
        is_known = name in FIELDS or name in OF_TRAINING
        if not is_known and value not in UNUSED:
            raise ValueError(f"{file}: {name} is {value!r:.99}: such adapters can't be merged here")
    return values


# ------------------------------------------------------------------------- what they say of modules


class LoraConfig:
    """The fields of an adapter_config.json, checked; `file` names it in errors.

    Modules have the names that they have in the adapter's own file.
    """

    def __init__(self, file: Path, config: Mapping[str, object]) -> None:
        self.file = file
        values = check_fields(file, config)
        self.r: int = values["r"]
        self.lora_alpha: float = values["lora_alpha"]
        self.use_rslora: bool = values["use_rslora"]
        self.use_dora: bool = values["use_dora"]
        self.lora_bias: bool = values["lora_bias"]
        self.target_modules: list[str] | str = values["target_modules"]
        self.exclude_modules: list[str] | str = values["exclude_modules"]
        self.modules_to_save: list[str] = values["modules_to_save"]
        self.rank_pattern: dict[str, int] = values["rank_pattern"]
        self.alpha_pattern: dict[str, float] = values["alpha_pattern"]
        self.layers_to_transform: list[int] | int = values["layers_to_transform"]
        self.layers_pattern: list[str] | str = values["layers_pattern"]
        self.trainable_token_indices: list[int] | dict[str, list[int]] = values[
            "trainable_token_indices"
        ]

    def targeted(self, modules: Sequence[str], linear: Iterable[str]) -> set[str]:
        """Those of the modules that have matrices A and B. linear: what "all-linear" means."""
        target = self.target_modules
        if isinstance(target, list):
            found = [name for name in modules if is_one_of(name, target)]
            found = [name for name in found if self.is_in_a_layer(name)]
        elif target.lower() == ALL_LINEAR:
            found = list(linear)
        else:
            [found] = match_patterns([target], modules, self.file)

        exclude = self.exclude_modules
        if isinstance(exclude, list):
            excluded = [name for name in modules if is_one_of(name, exclude)]
        else:
            [excluded] = match_patterns([exclude], modules, self.file)
        return set(found) - set(excluded)

    def is_in_a_layer(self, module: str) -> bool:
        """Whether a module is within one of layers_to_transform, if these are given."""
        layers = self.layers_to_transform
        if layers == []:
            return True
        # The number of the layer comes after the name of the list of layers, whatever that is.
        lists = [r"[^.]*"]
        if self.layers_pattern:
            lists = [re.escape(name) for name in as_list(self.layers_pattern)]
        for name in lists:
            number = re.match(rf"(.*?\.)?{name}\.(\d+)\.", module)
            if number is not None:
                return int(number[2]) in as_list(layers)
        return False

    def is_saved(self, module: str) -> bool:
        """Whether a module, or one that it is part of, is among modules_to_save."""
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            # PEFT compares the ends of names, at a dot or not.
            if ".".join(parts[:end]).endswith(tuple(self.modules_to_save)):
                return True
        return False

    def ranks(self, modules: Sequence[str]) -> dict[str, int]:
        """r of each module."""
        chosen = dict.fromkeys(modules, self.r)
        for pattern, matching in self.match(self.rank_pattern, modules):
            chosen.update(dict.fromkeys(matching, self.rank_pattern[pattern]))
        return chosen

    def scales(self, ranks: Mapping[str, int]) -> dict[str, float]:
        """alpha / r of each module, or alpha / sqrt(r) with rslora (arXiv 2312.03732)."""
        modules = list(ranks)
        alphas = dict.fromkeys(modules, self.lora_alpha)
        for pattern, matching in self.match(self.alpha_pattern, modules):
            alphas.update(dict.fromkeys(matching, self.alpha_pattern[pattern]))
        scales = {}
        for module, rank in ranks.items():
            divisor = math.sqrt(rank) if self.use_rslora else rank
            scales[module] = alphas[module] / divisor
        return scales

    def match(self, patterns: Iterable[str], modules: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Each pattern with the modules that end with it, the first, which wins, at the end."""
        keys = list(patterns)
        matching = match_patterns([rf"(.*\.)?({key})" for key in keys], modules, self.file)
        return list(zip(keys, matching, strict=True))[::-1]

    def tokens(self, module: str, embedding: str) -> list[int]:
        """The ids whose rows of a table were trained. embedding: the table of the tokens."""
        indices = self.trainable_token_indices
        if isinstance(indices, list):
            return indices if module == embedding else []
        for name, ids in indices.items():
            if module.endswith(name):
                return ids
        return []


def as_list(value: list | str | int) -> list:
    """A list as it is, and anything else as the only item of one."""
    return value if isinstance(value, list) else [value]


def is_one_of(module: str, names: Iterable[str]) -> bool:
    """Whether a module has one of these names, or ends with one at a dot."""
    return any(module == name or module.endswith(f".{name}") for name in names)
