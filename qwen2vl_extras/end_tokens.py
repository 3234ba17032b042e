"""Where an answer ends: the end tokens that any file of a checkpoint names.

Finetunes often change one file and forget the others. An answer that missed its end token would
run on to the last token allowed.
"""

from collections.abc import Mapping
from pathlib import Path

from qwen2vl_extras.errors import note
from qwen2vl_extras.json_files import read_object
from qwen2vl_extras.schemas import Fault, refuse

IM_END = "<|im_end|>"  # ends every message of a chat


class TokenIds:
    """Looks up ids of tokens in the small file, and in the large one only if need be."""

    def __init__(self, folder: Path, vocab_size: int | None) -> None:
        self.folder = folder
        self.vocab_size = vocab_size
        self.settings = read_object(folder, "tokenizer_config.json", optional=True)
        self.tokenizer: dict | None = None  # the content of tokenizer.json, once it is read

    def named(self, field: str) -> list[int]:
        """The id of the token that a field of tokenizer_config.json names, if there is one."""
        token = self.settings.get(field)
        if isinstance(token, dict):
            token = token.get("content")
        return [] if token is None else self.find(token)

    def find(self, content: str) -> list[int]:
        """The id of a token as a list of one; an empty list if the model never writes it."""
        found = None
        for token_id, token in (self.settings.get("added_tokens_decoder") or {}).items():
            if token.get("content") == content:
                found = int(token_id)
        if found is None:
            found = self.find_in_large_file(content)
        if found is None:
            return []
        if self.vocab_size is not None and found >= self.vocab_size:
            note(f"{self.folder}: {content!r:.99} has id {found}, past the model's vocabulary")
            return []
        return [found]

    def find_in_large_file(self, content: str) -> int | None:
        """The id of a token in tokenizer.json, if there is such a file and such a token."""
        if self.tokenizer is None:
            self.tokenizer = read_object(self.folder, "tokenizer.json", optional=True)
        for token in self.tokenizer.get("added_tokens") or []:
            if token.get("content") == content:
                return token.get("id")
        vocabulary = (self.tokenizer.get("model") or {}).get("vocab") or {}
        return vocabulary.get(content)


def complete(folder: Path, config: Mapping, generation_config: Mapping) -> dict:
    """The generation config with the end tokens of all files, and with a padding token.

    config: config.json as it is in the file. Padding is the file's own, else the tokenizer's, else
    it stays absent.
    """
    text_config = config.get("text_config") or {}
    vocab_size = text_config.get("vocab_size") or config.get("vocab_size")
    ids = TokenIds(folder, vocab_size)

    # In the order of the files, those of generation_config.json first.
    ends: list[int] = []
    for filename, section in (
        ("generation_config.json", generation_config),
        ("config.json", config),
        ("config.json", text_config),
    ):
        stated = as_list(section.get("eos_token_id"))
        check_vocabulary(folder / filename, "eos_token_id", stated, vocab_size)
        ends += stated
    ends += ids.named("eos_token")
    ends += ids.find(IM_END)

    padding = as_list(generation_config.get("pad_token_id"))
    check_vocabulary(folder / "generation_config.json", "pad_token_id", padding, vocab_size)
    if not padding:
        padding = ids.named("pad_token")

    completed = dict(generation_config)
    if ends:
        unique = list(dict.fromkeys(ends))  # each once, in order
        completed["eos_token_id"] = unique if len(unique) > 1 else unique[0]
    if padding:
        completed["pad_token_id"] = padding[0]
    return completed


def as_list(value: object) -> list[int]:
    """A token id, a list of them, or None, as a list."""
    if value is None:
        return []
    if isinstance(value, int):
        return [value]
    assert isinstance(value, list)  # the schema has seen to it
    return value


def check_vocabulary(file: Path, field: str, ids: list[int], vocab_size: int | None) -> None:
    """ValueError for an id that the model has no row for."""
    for token_id in ids:
        if vocab_size is not None and token_id >= vocab_size:
            refuse(file, Fault(field, token_id, f"below vocab_size {vocab_size}"))
