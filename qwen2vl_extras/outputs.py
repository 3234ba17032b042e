"""Results and settings that can be read in the ways that code for `transformers` reads them."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from qwen2vl_extras.arguments import GENERATE, UNUSED, describe_value, is_neutral
from qwen2vl_extras.errors import suggestion


class FieldMapping:
    """A dataclass whose fields that are not None can be read by name and by number, in order.

    out["logits"] and out.logits are the same; out[0] is the first field, out[:2] a tuple. As in
    `transformers`, iterating gives the names.
    """

    def items(self) -> list[tuple[str, object]]:
        assert is_dataclass(self)
        pairs = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return [(name, value) for name, value in pairs if value is not None]

    def keys(self) -> list[str]:
        return [name for name, _ in self.items()]

    def values(self) -> list[object]:
        return [value for _, value in self.items()]

    def to_tuple(self) -> tuple:
        return tuple(self.values())

    def get(self, name: str, default: object = None) -> object:
        value = getattr(self, name) if name in self else None
        return default if value is None else value

    def __getitem__(self, key: str | int | slice) -> object:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key in self:
            return getattr(self, key)
        raise KeyError(f"no entry {key!r}: there are {', '.join(self)}")

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


# The settings of generation_config.json that act here.
SETTINGS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "eos_token_id",
    "pad_token_id",
    "max_new_tokens",
    "max_length",
)


DEFAULT_NEW_TOKENS = 128  # where neither the caller nor generation_config.json says how many


def default_length(generation_config: dict, length: int) -> int:
    """How many tokens follow a prompt of `length` tokens if the caller doesn't say."""
    if generation_config.get("max_new_tokens") is not None:
        return generation_config["max_new_tokens"]
    if generation_config.get("max_length") is not None:  # of prompt and answer together
        return max(1, generation_config["max_length"] - length)
    return DEFAULT_NEW_TOKENS


class GenerationConfig(dict):
    """The content of generation_config.json: a dict whose settings are attributes as well.

    A setting that is not there is None, and one that is set to None is as if it were not there.
    ValueError for setting what no setting is called, and what can't be done here.
    """

    def __getattr__(self, name: str) -> object:
        if name in self or name in SETTINGS or name in UNUSED or name in GENERATE:
            return self.get(name)
        raise AttributeError(f"no setting {name!r}{suggestion(name, SETTINGS)}")

    def __setattr__(self, name: str, value: object) -> None:
        if name in GENERATE and not is_neutral(value, GENERATE[name]):
            raise ValueError(f"generation_config.{name} can't be {describe_value(value)} here")
        if name not in SETTINGS and name not in UNUSED and name not in GENERATE:
            raise ValueError(f"no setting {name!r}{suggestion(name, SETTINGS)}")
        self[name] = value
