"""adapter_config.json of a LoRA adapter: what each field may hold, and what it says of a module.

Modules are matched as PEFT does it. A list of targets holds names or their last parts, a string
is a regular expression that matches from end to end, and the keys of rank_pattern and
alpha_pattern are regular expressions for last parts.
"""

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen2vl_extras.patterns import match_patterns

CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Choice:
    """The values of a field that can be merged, and why others can't."""

    values: tuple[object, ...]
    reason: str


# schemas.py says which types the fields have; null is the same as no field.
REQUIRED = ("peft_type", "r", "lora_alpha", "target_modules")
CHOICES = {
    "peft_type": Choice(("LORA",), "other adapters are no low-rank changes of weights"),
    "bias": Choice((None, "none", "all", "lora_only"), "PEFT has no other"),
    # How A and B began.
    "init_lora_weights": Choice(
        (None, True, False, "gaussian", "eva", "orthogonal", "mica"),
        "others change the base as well, unless the adapter is saved with PEFT's "
        "path_initial_model_for_weight_conversion",
    ),
}
# Fields that act: these, and those above.
ACTING = (
    "alpha_pattern",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
)
# Fields that matter only while an adapter is trained: they may hold anything. fan_in_fan_out is
# for a kind of layer that Qwen2-VL does not have; elsewhere PEFT does not obey it.
OF_TRAINING = (
    "auto_mapping",
    "corda_config",
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
# Values of any other field, say of a newer PEFT, that mean "not used".
UNUSED: tuple[object, ...] = (None, False, [], {}, "")


def check_fields(file: Path, config: Mapping[str, object]) -> None:
    """ValueError for the first field whose value can't be merged."""
    for name, choice in CHOICES.items():
        if config.get(name) not in choice.values:
            allowed = ", ".join(repr(value) for value in choice.values if value is not None)
            raise ValueError(
                f"{file}: {name} is {reprlib.repr(config.get(name))}; it must be {allowed}: "
                f"{choice.reason}"
            )
    for name in REQUIRED:
        if config.get(name) is None:
            raise ValueError(f"{file} does not say {name}")
    for name, value in config.items():
        is_known = name in CHOICES or name in ACTING or name in OF_TRAINING
        if not is_known and value not in UNUSED:
            raise ValueError(
                f"{file}: {reprlib.repr(name)} is {reprlib.repr(value)}: adapters with that can't "
                "be merged here"
            )


class LoraConfig:
    """What an adapter_config.json says of the modules of a model.

    file names it in errors. Modules have the names that they have in the adapter's own file.
    """

    def __init__(self, file: Path, config: Mapping[str, object]) -> None:
        check_fields(file, config)
        self.file = file
        # null is the same as no field.
        stated: dict = {name: value for name, value in config.items() if value is not None}
        self.r: int = stated["r"]
        self.lora_alpha: float = stated["lora_alpha"]
        self.use_rslora: bool = stated.get("use_rslora", False)
        self.use_dora: bool = stated.get("use_dora", False)
        self.lora_bias: bool = stated.get("lora_bias", False)
        self.ensure_weight_tying: bool = stated.get("ensure_weight_tying", False)
        self.target_modules: list[str] | str = stated["target_modules"]
        self.exclude_modules: list[str] | str = stated.get("exclude_modules", [])
        self.modules_to_save: list[str] = stated.get("modules_to_save", [])
        self.rank_pattern: dict[str, int] = stated.get("rank_pattern", {})
        self.alpha_pattern: dict[str, float] = stated.get("alpha_pattern", {})
        self.layers_to_transform: list[int] | int = stated.get("layers_to_transform", [])
        self.layers_pattern: list[str] | str = stated.get("layers_pattern", [])
        self.trainable_token_indices: list[int] | dict[str, list[int]] = stated.get(
            "trainable_token_indices", []
        )
        if isinstance(self.target_modules, str) and self.layers_to_transform != []:
            raise ValueError(f"{file}: layers_to_transform goes with a list of target_modules only")

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
