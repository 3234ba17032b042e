"""Reading a checkpoint's JSON files, which may come from anywhere: size, depth and types."""

import json
from pathlib import Path

from qwen2vl_extras import schemas

# The largest files that are read. Official configs take 2 kB, the index of the 72B model 80 kB and
# the tokenizer 7 MB.
MAX_CONFIG_BYTES = 4 * 2**20
MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_DEPTH = 50  # of objects and lists in each other; official files have 6


def read_object(folder: Path, filename: str, optional: bool = False) -> dict:
    """The JSON object in a file, whose fields have the types and ranges of its schema.

    A missing file is a FileNotFoundError, or {} if it is optional. ValueError names the file, and
    the field where it is one's fault.
    """
    file = folder / filename
    if optional and not file.exists():
        return {}
    limit = MAX_TOKENIZER_BYTES if filename == "tokenizer.json" else MAX_CONFIG_BYTES
    content = parse(file, read_bytes(file, limit))
    if filename in schemas.SCHEMAS:
        schemas.check(file, content, schemas.SCHEMAS[filename])
    return content


def require_file(file: Path) -> None:
    """FileNotFoundError for a missing file, ValueError for a pipe, device or folder."""
    # To open a pipe or a device may never end.
    if not file.exists():
        raise FileNotFoundError(f"{file.parent} has no {file.name}")
    if not file.is_file():
        raise ValueError(f"{file} is a pipe, a device or a folder; a file is needed")


def read_bytes(file: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes."""
    require_file(file)
    with file.open("rb") as stream:
        content = stream.read(limit + 1)  # no more, whatever its size is said to be
    if len(content) > limit:
        raise ValueError(f"{file} is larger than {limit} bytes, the most that is read")
    return content


def parse(file: Path, content: bytes) -> dict:
    """The JSON object that a file's bytes spell; `file` is named in errors."""
    try:
        value = json.loads(content.decode("utf-8-sig"))  # editors on Windows write a mark first
    except RecursionError as error:
        raise ValueError(f"{file} is not a valid JSON object: it is nested too deeply") from error
    except ValueError as error:  # broken JSON or broken UTF-8
        raise ValueError(f"{file} is not a valid JSON object: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} is not a valid JSON object: it is a {type(value).__name__}")

    # Level by level: all that is one deeper than the level before.
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[object] = []
        for part in level:
            if isinstance(part, dict):
                deeper += part
                deeper += part.values()
            elif isinstance(part, list):
                deeper += part
            elif isinstance(part, str):
                check_text(file, part)
        level = deeper
        if not level:
            return value
    raise ValueError(f"{file} is not a valid JSON object: it is nested over {MAX_DEPTH} deep")


def check_text(file: Path, text: str) -> None:
    """ValueError for half a surrogate pair, which JSON can spell but no UTF-8 text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{file} is not a valid JSON object: {text!r:.99} holds half a surrogate pair"
        ) from error
