"""Conversations as JSON files: a list of messages, as `apply_chat_template` takes them.

An answer has its `token_ids` beside its text, so that it goes on exactly where it was.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from processor import Item, Message, parse_conversation
from qwen2vl_extras.json_files import read_bytes
from qwen2vl_extras.options import source_of_item
from qwen2vl_extras.sources import existing_path

MAX_BYTES = 64 * 2**20  # of a file that is read: as much as 100,000 answers
IS_URL = re.compile(r"\s*[a-zA-Z][a-zA-Z0-9+.-]+:")


def save_messages(file: Path, messages: Sequence[Message]) -> None:
    """Write a conversation; of another file that is there nothing is overwritten.

    Paths of images are written from the root on, so that the file can be read from any folder.
    ValueError for an image that has no path or URL.
    """
    if file.exists():
        try:
            read_messages(file)
        except ValueError as error:
            raise ValueError(f"{file} is there and not overwritten: {error}") from error
    lines = [json.dumps(to_json(message), ensure_ascii=False) for message in messages]
    content = "[\n" + ",\n".join(lines) + "\n]\n"
    # All of it or nothing: the file that is there stays as long as the new one is not complete.
    part = file.with_name(file.name + ".part")
    try:
        part.write_text(content, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise OSError(f"cannot write {file}: {error.strerror}") from error


def to_json(message: Message) -> Message:
    """A message whose images and videos are named so that anybody on this machine finds them."""
    written = dict(message)
    if not isinstance(message["content"], str):
        written["content"] = [item_to_json(item) for item in message["content"]]
    return written


def item_to_json(item: Item) -> Item:
    """An item of a message with the source under its kind, "image" or "video"."""
    kind = item.get("type")
    if kind == "text":
        return item
    ((_, [(kind, _)]),) = parse_conversation([{"role": "system", "content": [item]}])
    source = source_of_item(item, kind)
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        raise ValueError(f"{kind}s without a path or URL can't be saved: {type(source).__name__}")
    if not IS_URL.match(source):
        source = os.path.abspath(existing_path(source, is_url=False) or source)
    others = {key: value for key, value in item.items() if isinstance(value, (bool, int, float))}
    return {"type": kind, kind: source, **others}


def read_messages(file: Path) -> list[Message]:
    """The conversation in a file; ValueError if the file is none."""
    content = read_bytes(file, MAX_BYTES)
    try:
        messages = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no conversation in JSON: {error}") from error
    if not isinstance(messages, list):
        raise ValueError(f"{file} is no conversation: it is a {type(messages).__name__}, no list")
    # A conversation may be empty; a message or an item that is none is an error.
    if messages:
        try:
            parse_conversation(messages)
        except ValueError as error:
            raise ValueError(f"{file} is no conversation: {error}") from error
    return messages
