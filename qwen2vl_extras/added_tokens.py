"""The tokens that a folder's other files add to those of tokenizer.json.

Official repositories, and those of finetunes, state some tokens elsewhere:
tokenizer_config.json    `added_tokens_decoder`, by id; the tokens with a role (`eos_token`, ...,
                         `additional_special_tokens`, `extra_special_tokens`)
added_tokens.json        text to id, in older folders
special_tokens_map.json  the tokens with a role, in older folders
The rules are those of `transformers` 4.57.6: the last two files count only without an
`added_tokens_decoder`, and a token with a role is added if nothing else states it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer

CONFIG = "tokenizer_config.json"
TOKENS = "added_tokens.json"
ROLES_MAP = "special_tokens_map.json"

# Roles of one token each. Those of Qwen2's tokenizer have a default.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT_ROLES = {
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
LIST_ROLE = "additional_special_tokens"
EXTRA_ROLES = "extra_special_tokens"
# What the description of a token may say beside its content; all are true or false.
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_token(value: object, place: str) -> AddedToken:
    """A token that a file states, as text or as an object; place: where, for the error."""
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"{place} is {value!r:.99}: a token is text or an object with 'content'")
    flags = {}
    for name, flag in value.items():
        # Older files name the class of the object, or repeat the id.
        if name in ("content", "__type", "id"):
            continue
        if name not in FLAGS or not isinstance(flag, bool):
            raise ValueError(
                f"{place}: {name} is {flag!r:.99}; a token has {', '.join(FLAGS)}, true or false"
            )
        flags[name] = flag
    return AddedToken(value["content"], **flags)


def read_tokens_by_id(config: Mapping[str, object], place: str) -> dict[int, AddedToken]:
    """The tokens of `added_tokens_decoder`, in the order of their ids."""
    stated = config.get("added_tokens_decoder") or {}
    if not isinstance(stated, dict):
        raise ValueError(f"{place}: added_tokens_decoder is {stated!r:.99}, not an object")
    tokens = {}
    for key in stated:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ValueError(f"{place}: added_tokens_decoder has {key!r:.99}, which is no id")
        tokens[int(key)] = read_token(stated[key], f"{place}: added_tokens_decoder[{key!r}]")
    return dict(sorted(tokens.items()))


def read_older_tokens(
    stated: Mapping[str, object], special: set[str], place: str
) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json, in the order of their ids; special: which are."""
    tokens = {}
    for content, token_id in stated.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise ValueError(f"{place}: {content!r:.99} has {token_id!r:.99}, which is no id")
        is_special = content in special
        tokens[token_id] = AddedToken(content, special=is_special, normalized=not is_special)
    return dict(sorted(tokens.items()))


class RoleToken(NamedTuple):
    """A token with a role, say `eos_token`, as a file states it."""

    role: str
    token: AddedToken
    is_text: bool  # stated by its text alone, without flags


def read_roles(stated: Mapping[str, object], place: str) -> dict[str, list[RoleToken]]:
    """The tokens of each role that a file states; a role that is null has none."""
    several = stated.get(LIST_ROLE) or []
    if not isinstance(several, list):
        raise ValueError(f"{place}: {LIST_ROLE} is {several!r:.99}, not a list of tokens")
    values = {LIST_ROLE: several}
    for role in ROLES:
        if role in stated:
            values[role] = [] if stated[role] is None else [stated[role]]
    # A processor's own roles: an object, {"image_token": "<|image_pad|>"}; a list in newer files.
    extra = stated.get(EXTRA_ROLES) or {}
    if isinstance(extra, list):
        extra = {EXTRA_ROLES: extra}
    if not isinstance(extra, dict):
        raise ValueError(f"{place}: {EXTRA_ROLES} is {extra!r:.99}, not an object of tokens")
    for role, value in extra.items():
        values[role] = value if isinstance(value, list) else [value]

    roles = {}
    for role, tokens in values.items():
        name = role if role in (*ROLES, LIST_ROLE) else f"{EXTRA_ROLES}, {role}"
        where = f"{place}: {name}"
        roles[role] = [RoleToken(role, read_token(t, where), isinstance(t, str)) for t in tokens]
    return roles


def merge_roles(
    config: Mapping[str, object], older: Mapping[str, object], place: str
) -> dict[str, list[RoleToken]]:
    """The tokens of each role. older: special_tokens_map.json, which wins over the config."""
    roles = {}
    for role, content in DEFAULT_ROLES.items():
        roles[role] = [RoleToken(role, read_token(content, role), True)]
    roles.update(read_roles(config, f"{place}/{CONFIG}"))
    if uses_older_files(config):
        for role, tokens in read_roles(older, f"{place}/{ROLES_MAP}").items():
            # A list grows, a single token is replaced.
            roles[role] = roles[role] + tokens if role == LIST_ROLE else tokens
    return roles


def uses_older_files(config: Mapping[str, object]) -> bool:
    """Whether added_tokens.json and special_tokens_map.json count beside tokenizer_config.json."""
    return config.get("added_tokens_decoder") is None


def add_stated_tokens(
    tokenizer: Tokenizer,
    config: Mapping[str, object],
    older_tokens: Mapping[str, object],
    older_roles: Mapping[str, object],
    place: str,
) -> None:
    """Add what the other files of a folder state to the tokenizer of its tokenizer.json.

    config: tokenizer_config.json. older_tokens: added_tokens.json. older_roles:
    special_tokens_map.json. place: the folder, for the errors. ValueError for an entry that is
    no token, and for a token whose stated id can't be had.
    """
    in_tokenizer = tokenizer.get_added_tokens_decoder()
    roles = merge_roles(config, older_roles, place)
    with_role = [one for tokens in roles.values() for one in tokens]
    special = {one.token.content for one in with_role}
    stated = read_tokens_by_id(config, f"{place}/{CONFIG}")
    if uses_older_files(config):
        stated = read_older_tokens(older_tokens, special, f"{place}/{TOKENS}")
        stated.update(in_tokenizer)  # tokenizer.json wins over added_tokens.json

    # add_tokens gives each new token the next free id, so they come in the order of their ids.
    # A known token gets the flags that are stated here.
    known = {repr(token) for token in in_tokenizer.values()}
    tokens = []
    for token_id in sorted(stated):
        token = stated[token_id]
        if repr(token) not in known:
            token.special = token.special or token.content in special
            tokens.append(token)
    tokenizer.add_tokens(tokens)  # in one call: each takes as long as there are tokens
    for token_id, token in stated.items():
        check_id(tokenizer, token.content, token_id, place)
    add_tokens_with_role(tokenizer, with_role, list(stated.values()))


def add_tokens_with_role(
    tokenizer: Tokenizer, with_role: list[RoleToken], stated: list[AddedToken]
) -> None:
    """Add the tokens with a role as special ones; stated: those whose flags count here, too."""
    flags_of = {token.content: token for token in stated}
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokens = []
    for role, own, is_text in with_role:
        token = own
        if role != LIST_ROLE:
            token = flags_of.get(own.content, own)
        elif is_text and own.content in known:
            continue
        token.special = True
        tokens.append(token)
    tokenizer.add_tokens(tokens)


def check_id(tokenizer: Tokenizer, content: str, stated: int, place: str) -> None:
    """ValueError unless a token has its stated id: the model was trained with that one."""
    found = tokenizer.token_to_id(content)
    if found != stated:
        raise ValueError(
            f"{place}/tokenizer.json: {content} gets id {found}, {CONFIG} says {stated}"
        )


def role_texts(
    config: Mapping[str, object], older_roles: Mapping[str, object], place: str
) -> dict[str, str | list[str]]:
    """The text of the tokens with a role, by the names that chat templates know them by."""
    texts: dict[str, str | list[str]] = {}
    for role, tokens in merge_roles(config, older_roles, place).items():
        contents = [one.token.content for one in tokens]
        if not contents:
            continue
        texts[role] = contents if role in (LIST_ROLE, EXTRA_ROLES) else contents[0]
    return texts
