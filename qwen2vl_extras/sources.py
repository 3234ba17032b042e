"""Open an image or video file from wherever it is: a path, a URL, a data: URI, bytes, an open file.

What comes from elsewhere is bounded in bytes and in seconds, and only regular files are opened:
the limits are the constants below. Errors are one line that names the source: OSError if it can't
be opened, ValueError if it is no source at all.
"""

import base64
import binascii
import errno
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, TypeAlias, cast
from urllib import parse

import numpy as np
from PIL import Image
from torch import Tensor

# A path, file:// or http(s):// URL, or data: URI.
Location: TypeAlias = str | os.PathLike[str]
# A location, the content of a file, a file opened for reading bytes, or a row of `datasets`:
# {"bytes": the content or None, "path": its location or None}.
FileSource: TypeAlias = (
    Location | bytes | bytearray | memoryview | BinaryIO | Mapping[str, bytes | str | None]
)

# What is read from elsewhere (URLs, data: URIs, files that can't be read twice), in bytes.
MAX_BYTES = {"image": 2**28, "video": 2**32}
MAX_NAME = 200  # characters of a source that an error shows
URL_SCHEMES = ("http", "https")
# How the base64 of a JPEG, PNG, GIF and WebP file begins: some APIs give it without "data:".
BASE64_BEGINNINGS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
# A URL or data: URI: a word of at least two letters, since "C:" is a drive.
SCHEME = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]+):")


def describe(source: object) -> str:
    """The name of a source for error messages; data: URIs and other long strings are cut."""
    if isinstance(source, (np.ndarray, Tensor)):
        return f"{type(source).__name__} of {source.dtype} {tuple(source.shape)}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{type(source).__name__} of {len(source)} bytes"
    if isinstance(source, (list, tuple)) and source:
        return f"{type(source).__name__} of {len(source)}"
    if isinstance(source, Mapping):
        parts = [f"{key!r}: {describe(value)}" for key, value in list(source.items())[:4]]
        return "{" + ", ".join(parts) + "}"
    if is_file(source):
        return f"file {getattr(source, 'name', type(source).__name__)!r}"
    return shorten(repr(os.fspath(source)) if isinstance(source, os.PathLike) else repr(source))


def shorten(name: str) -> str:
    """A name that is not too long for a line."""
    limit = 40 if name.lower().startswith("'data:") else MAX_NAME
    if len(name) <= limit:
        return name
    return f"{name[:limit]}... ({len(name)} characters)"


def is_file(source: object) -> bool:
    """Whether it is an open file, or something that is read like one."""
    return hasattr(source, "read") and not isinstance(source, type)


def is_file_source(source: object) -> bool:
    """Whether `open_source` takes it; else it is an array, an image or a list, or nothing."""
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        return True
    return isinstance(source, Mapping) or (is_file(source) and not isinstance(source, Image.Image))


@contextmanager
def open_source(source: FileSource, kind: str) -> Iterator[BinaryIO]:
    """A source as an open file for a `with` block; errors name the `kind`, "image" or "video".

    A file that the caller has opened is read from its beginning and stays open, where it was.
    """
    if isinstance(source, Mapping):
        source = source_of_row(source, kind)
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif is_file(source):
        with reread(cast(BinaryIO, source), kind) as file:
            yield file
    else:
        with open_location(cast(Location, source), kind) as file:
            yield file


def source_of_row(row: Mapping[str, bytes | str | None], kind: str) -> Location | bytes:
    """The content of a row of `datasets`, or else its path."""
    for key in ("bytes", "path"):
        value = row.get(key)
        if value is not None:
            return value
    raise ValueError(f"no source in {describe(row)}: the {kind} has bytes or a path")


@contextmanager
def reread(file: BinaryIO, kind: str) -> Iterator[BinaryIO]:
    """A file of the caller from its beginning; what can't be read twice, like a pipe, as a copy."""
    if isinstance(file, io.TextIOBase):
        raise ValueError(f"the {kind} {describe(file)} is open as text: open it with mode 'rb'")
    if getattr(file, "closed", False):
        raise ValueError(f"the {kind} {describe(file)} is closed")
    can_seek = getattr(file, "seekable", None)
    if can_seek is None or not can_seek():
        yield io.BytesIO(read_all(file, kind))
        return
    position = file.tell()
    file.seek(0)
    try:
        yield file
    finally:
        file.seek(position)


def read_all(file: BinaryIO, kind: str) -> bytes:
    """What is left of a file; OSError if that is more than MAX_BYTES."""
    limit = MAX_BYTES[kind]
    content = bytearray()
    while len(content) <= limit:
        part = file.read(2**20)
        if not isinstance(part, bytes):
            raise ValueError(f"the {kind} {describe(file)} gives no bytes: open it with mode 'rb'")
        if not part:
            return bytes(content)
        content += part
    raise OSError(f"the {kind} {describe(file)} is longer than {limit} bytes")


# -------------------------------------------------------------------------------- locations


def open_location(source: Location, kind: str) -> BinaryIO:
    """A path, file://, http(s):// or data: URI as an open file; errors name the `kind`."""
    from http.client import HTTPException  # here: slow to import and seldom needed

    try:
        return open_place(os.fspath(source), kind)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such {kind}: {describe(source)}") from None
    except (OSError, ValueError, HTTPException) as error:
        raise OSError(f"cannot get the {kind} {describe(source)}: {reason_of(error)}") from error


def check_place(source: object, kind: str) -> None:
    """OSError for a path or data: URI that can't be opened; a URL is not looked at."""
    if isinstance(source, str) and not source.lower().startswith(URL_SCHEMES):
        open_location(source, kind).close()


def reason_of(error: Exception) -> str:
    """The part of an error that says what went wrong, in one line."""
    reason: object = error
    if getattr(error, "strerror", None):  # of the operating system: "Permission denied"
        reason = error.strerror  # type: ignore[attr-defined]
    elif not hasattr(error, "code"):  # the text of an HTTP status has number and name
        reason = getattr(error, "reason", None) or error  # urllib puts a failure's reason there
        reason = getattr(reason, "strerror", None) or reason
    text = " ".join(str(reason).split()) or type(error).__name__
    return text[:300]


def open_place(place: str, kind: str) -> BinaryIO:
    """The same, with errors that give the reason only."""
    if not isinstance(place, str):
        raise ValueError("its path is bytes: give a string")
    scheme_match = SCHEME.match(place)
    scheme = scheme_match[1].lower() if scheme_match else ""
    if scheme in URL_SCHEMES:
        from qwen2vl_extras.download import download  # here: slow to import and seldom needed

        return download(place.strip(), MAX_BYTES[kind])
    if scheme == "data":
        return io.BytesIO(data_of_uri(place, MAX_BYTES[kind]))

    # A name on this machine.
    path = existing_path(place, is_url=scheme == "file")
    if path is not None:
        return open_regular_file(path)
    if place.startswith(BASE64_BEGINNINGS):
        return io.BytesIO(decode_base64(place))
    if "://" in place and scheme not in ("", "file"):
        raise ValueError(f"{scheme}: is not supported: a path, file:, http:, https: or data: is")
    raise FileNotFoundError(place)


def existing_path(place: str, is_url: bool) -> str | None:
    """The first of the paths that `place` may mean which is there; None if none is.

    ValueError for a name that no file can have.
    """
    for path in paths_of_url(place) if is_url else paths_of_name(place):
        try:
            os.stat(path)
        except OSError as error:
            # A data: URI without its beginning is no path either.
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                continue
            raise
        return path
    return None


def paths_of_name(place: str) -> list[str]:
    """A path as it stands; else with the home folder for ~; else as it was copied, with quotes."""
    bare = place.strip(" \t\r\n\"'")
    return [place, os.path.expanduser(place), bare, os.path.expanduser(bare)]


def paths_of_url(url: str, windows: bool = os.name == "nt") -> list[str]:
    """The paths that a file: URL may mean, the most probable first.

    Strictly "?" and "#" end a path and "%20" is a space; people also write the name of the file
    as it is, and, as qwen-vl-utils takes it, a relative path after file://.
    """
    rest = url.strip().split(":", 1)[1]
    rest = rest.removeprefix("//")
    if rest.lower().startswith("localhost/"):
        rest = rest[len("localhost") :]
    strict = re.split(r"[?#]", rest)[0]
    paths = []
    for written in (rest, strict):
        for path in (parse.unquote(written, errors="surrogateescape"), written):
            if windows:
                path = windows_path(path)
            paths += [path, os.path.expanduser(path)]
    return paths


def windows_path(path: str) -> str:
    r"""The path of a file: URL on Windows: C:\a of /C:/a, C:/a and C|/a; \\server\a of server/a."""
    drive = re.match(r"[/\\]*([a-zA-Z])[:|](.*)", path, re.DOTALL)
    if drive:
        path = f"{drive[1]}:{drive[2]}"
    elif path[:1] not in ("/", "\\", "~") and "/" in path:
        path = "//" + path
    return path.replace("/", "\\")


def open_regular_file(path: str) -> BinaryIO:
    """A file on a disk; OSError for what may block or never end: a FIFO, a device, a socket."""
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return open(path, "rb")
    name = "a device"
    if stat.S_ISDIR(mode):
        name = "a directory"
    elif stat.S_ISFIFO(mode):
        name = "a FIFO"
    elif stat.S_ISSOCK(mode):
        name = "a socket"
    raise OSError(f"it is {name}, not a file")


# -------------------------------------------------------------------------------- data: URIs


def data_of_uri(uri: str, max_bytes: int) -> bytes:
    """The content of a data: URI (RFC 2397); a base64 part may have spaces, and lack its padding.

    data:image/png;base64,iVBORw0... or data:image/png,%89PNG...
    """
    header, comma, content = uri.partition(",")
    if not comma:
        raise ValueError("a data: URI has a comma before its content")
    if len(content) > 4 * max_bytes:  # percent-encoded base64 takes up to four for a byte
        raise OSError(f"it is longer than {max_bytes} bytes")
    words = [word.strip().lower() for word in header.split(";")]
    is_base64 = "base64" in words[1:]
    data = decode_base64(content) if is_base64 else parse.unquote_to_bytes(content)
    if len(data) > max_bytes:
        raise OSError(f"it is longer than {max_bytes} bytes")
    return data


def decode_base64(text: str) -> bytes:
    """The bytes of base64, also of its URL-safe alphabet; ValueError for other characters."""
    encoded = parse.unquote_to_bytes(text) if "%" in text else text.encode()
    encoded = b"".join(encoded.split()).rstrip(b"=")
    encoded = encoded.translate(bytes.maketrans(b"-_", b"+/"))
    encoded += b"=" * (-len(encoded) % 4)
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its base64 is broken: {error}") from None
