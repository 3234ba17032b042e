"""The lines of `--batch`: JSON lines of a file or of stdin, or images of a folder or a glob.

A JSON line is an object. What is asked: `image` or `images`, `video` or `videos`, `prompt` and
`system`, or in place of all these `messages`, a whole conversation. `id` is any JSON value, which
comes back with the answer. All other keys are settings of the answer or options of its images and
videos; a key that would be ignored is an error. Paths are relative to the current folder.
"""

import glob
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn

from processor import Item, Message
from qwen2vl_extras.errors import check_options, shorten
from qwen2vl_extras.options import ALL_OPTIONS

STDIN = "-"
# What a folder's images and the arguments that are images end in.
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MAX_LINE_BYTES = 2**28  # of one line; images may stand in it as data: URIs

QUESTION_KEYS = ("image", "images", "video", "videos", "prompt", "system")
# How the next token is chosen, as `stream` takes it.
SAMPLING_KEYS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
SETTING_KEYS = ("max_new_tokens", "seed", *SAMPLING_KEYS, *ALL_OPTIONS)
LINE_KEYS = ("id", "messages", *QUESTION_KEYS, *SETTING_KEYS)


@dataclass(frozen=True)
class Line:
    """A line as it was read: its number, from 1, and its keys, or what is wrong with it."""

    number: int
    fields: dict = field(default_factory=dict)
    error: str = ""

    @property
    def id(self) -> object:
        """What the line calls itself, or else its number."""
        stated = self.fields.get("id")
        return self.number if stated is None else stated


# ------------------------------------------------------------------------------- where they are


def find_lines(sources: list[str]) -> tuple[Iterator[Line], int | None]:
    """The lines that the arguments of --batch stand for, and how many; None if nobody knows yet.

    sources: one file of JSON lines or -, or any number of images, folders and globs of images.
    ValueError or OSError if there is nothing to read.
    """
    if sources == [STDIN]:
        if sys.stdin is None:
            raise ValueError("--batch - reads the lines from stdin, which is closed")
        return json_lines(sys.stdin.buffer), None
    is_one_file = len(sources) == 1 and Path(sources[0]).is_file()
    if is_one_file and not has_image_ending(sources[0]):
        return lines_of_file(Path(sources[0])), count_lines(Path(sources[0]))

    # Not a set: an image that is named twice is asked about twice.
    images: list[str] = []
    for source in sources:
        images += find_images(source)
    return image_lines(images), len(images)


def has_image_ending(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def find_images(source: str) -> list[str]:
    """The images that an image's name, a folder or a glob stands for, in alphabetical order."""
    path = Path(source)
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        # Files whose names begin with a point are notes of file managers.
        images = [name for name in names if has_image_ending(name) and not name.startswith(".")]
        if not images:
            endings = ", ".join(IMAGE_ENDINGS)
            raise ValueError(f"--batch {source!r}: no file in this folder ends in {endings}")
        return [str(path / name) for name in images]
    if path.exists():
        if not has_image_ending(source):
            raise ValueError(
                f"--batch takes one file of JSON lines, or images: {source!r} is no image"
            )
        return [source]

    # Not the name of anything: a glob, which no shell has expanded.
    found = sorted(name for name in glob.glob(source, recursive=True) if Path(name).is_file())
    if not found:
        raise FileNotFoundError(f"--batch {source!r}: no such file, folder or glob")
    return found


# ------------------------------------------------------------------------------------- reading


def image_lines(images: list[str]) -> Iterator[Line]:
    """A line for each image, whose id is its name."""
    for number, name in enumerate(images, start=1):
        yield Line(number, {"id": name, "image": name})


def count_lines(file: Path) -> int:
    """How many lines of a file are not empty; ValueError for what is no text."""
    count = 0
    with file.open("rb") as opened:
        if b"\0" in opened.read(1000):
            raise ValueError(f"--batch {str(file)!r} is no file of JSON lines: it is not text")
        opened.seek(0)
        for _, content in numbered_lines(opened):
            count += bool(content.strip())
    return count


def lines_of_file(file: Path) -> Iterator[Line]:
    with file.open("rb") as opened:
        yield from json_lines(opened)


def json_lines(file: BinaryIO) -> Iterator[Line]:
    """The lines of an open file, read one at a time; empty ones are left out."""
    for number, content in numbered_lines(file):
        if content.strip():
            yield parse_line(number, content)


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, from 1; of a line that is too long only the beginning."""
    number = 0
    while True:
        content = file.readline(MAX_LINE_BYTES + 1)
        if not content:
            return
        number += 1
        # What is too long is read to its end, but not kept.
        rest = content
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        yield number, content


def parse_line(number: int, content: bytes) -> Line:
    """A line with the keys of its JSON object, or with what is wrong with it."""
    if len(content) > MAX_LINE_BYTES:
        return Line(number, error=f"it has over {MAX_LINE_BYTES} bytes, the most that is read")
    try:
        # Editors on Windows write a mark before the first line.
        fields = json.loads(content.decode("utf-8-sig"), parse_constant=refuse_constant)
    except RecursionError:
        return Line(number, error="not valid JSON: it is nested too deeply")
    except ValueError as error:  # broken JSON or broken UTF-8
        return Line(number, error=f"not valid JSON: {error}")
    if not isinstance(fields, dict):
        return Line(number, error=f"a JSON object is needed, not {shorten(fields)}")
    return Line(number, fields)


def refuse_constant(name: str) -> NoReturn:
    """For `json.loads`: Python would read NaN and Infinity, which no JSON has."""
    raise ValueError(f"{name} is not a value of JSON")


# ------------------------------------------------------------------------- what a line asks for


def conversation_of(line: Line, prompt: str, system: str | None) -> list[Message]:
    """The conversation of a line; prompt and system: where it has none of its own.

    ValueError names the key that is wrong.
    """
    if line.error:
        raise ValueError(line.error)
    fields = {name: value for name, value in line.fields.items() if value is not None}
    check_options(fields, LINE_KEYS, {}, "a line of --batch")
    system = text_of(fields, "system", system)
    asked = [name for name in QUESTION_KEYS if name in fields]

    if "messages" in fields:
        if asked:
            raise ValueError(f"messages and {asked[0]} exclude each other")
        messages = fields["messages"]
        if not isinstance(messages, list) or not messages:
            raise ValueError(f"messages is a list of messages, not {shorten(messages)}")
    else:
        if not asked or asked == ["system"]:
            keys = ", ".join(("messages", *QUESTION_KEYS[:-1]))
            raise ValueError(f"it asks nothing: one of {keys} is needed")
        items = [*media_items(fields, "image"), *media_items(fields, "video")]
        items.append({"type": "text", "text": text_of(fields, "prompt", prompt)})
        messages = [{"role": "user", "content": items}]

    has_system = isinstance(messages[0], dict) and messages[0].get("role") == "system"
    if system is not None and not has_system:
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def text_of(fields: dict, name: str, default: str | None) -> str | None:
    """The text under a key; ValueError if it is no text."""
    value = fields.get(name, default)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is a text, not {shorten(value)}")
    return value


def media_items(fields: dict, kind: str) -> list[Item]:
    """The items of a line's images or videos; kind: "image" or "video"."""
    several = f"{kind}s"
    if kind in fields and several in fields:
        raise ValueError(f"{kind} and {several} exclude each other")
    if kind in fields:
        return [media_item(fields[kind], kind, kind)]
    sources = fields.get(several, [])
    if not isinstance(sources, list):
        raise ValueError(f"{several} is a list of {several}, not {shorten(sources)}")
    return [media_item(source, kind, several) for source in sources]


def media_item(source: object, kind: str, name: str) -> Item:
    """An item of a path, URL or data: URI, of an item as in messages, or of a list of frames.

    name: the key that the source stands under.
    """
    if isinstance(source, dict):
        return {**source, "type": kind}
    is_frames = kind == "video" and isinstance(source, list)
    if not isinstance(source, str) and not is_frames:
        raise ValueError(f"{name}: a path or a URL is needed, not {shorten(source)}")
    return {"type": kind, kind: source}


def media_options_of(line: Line) -> dict:
    """The options of a line that hold for all of its images and videos."""
    stated = line.fields
    return {name: stated[name] for name in ALL_OPTIONS if stated.get(name) is not None}
