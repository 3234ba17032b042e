"""Download a file over http or https, within limits of bytes and seconds.

A server may send without end, a byte a second, or nothing at all; it may redirect for ever, or to
a file of this machine. Each ends in an OSError that names the limit.
"""

import re
import tempfile
import threading
import time
from typing import BinaryIO
from urllib import error as url_errors
from urllib import parse, request

TIMEOUT = 20.0  # seconds in which something must come
MIN_SPEED = 1024  # bytes a second that must come on average, looked at every TIMEOUT seconds
MAX_SECONDS = 3600.0  # for a whole download
MAX_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 2**16  # bytes that are read at once
# Characters that a URL keeps; "%" stays, so that what is encoded is not encoded again.
URL_CHARACTERS = "/%:@!$&'()*+,;=~-._?"
HEADERS = {"User-Agent": "Mozilla/5.0 qwen2vl"}  # some servers refuse urllib's own name


def download(url: str, max_bytes: int) -> BinaryIO:
    """The content of an http(s):// URL, in a file that vanishes when it is closed."""
    transfer = Transfer(url, max_bytes)
    # A daemon: a server that never answers must not keep the program from ending.
    threading.Thread(target=transfer.run, daemon=True).start()
    return transfer.wait()


class Transfer:
    """One download, which a thread of its own runs and the caller waits for.

    The thread may hang in the operating system, where only the caller sees that time is up.
    """

    def __init__(self, url: str, max_bytes: int) -> None:
        self.url = url
        self.max_bytes = max_bytes
        self.file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
        self.received = 0  # bytes so far
        self.error: Exception | None = None
        self.is_done = threading.Event()
        self.is_given_up = False

    def run(self) -> None:
        """Download; `error` is what went wrong."""
        try:
            with open_url(self.url) as answer:
                self.copy(answer)
        # Whatever it is: the caller's thread raises it.
        except Exception as error:
            self.error = error
        self.is_done.set()
        if self.is_given_up:
            self.file.close()

    def copy(self, answer: BinaryIO) -> None:
        """Write the body into the file."""
        while not self.is_given_up:
            chunk = answer.read1(CHUNK)  # type: ignore[attr-defined]  # what is there by now
            if not chunk:
                break
            self.received += len(chunk)
            if self.received > self.max_bytes:
                raise OSError(f"it is longer than {self.max_bytes} bytes")
            self.file.write(chunk)
        # What a server announced and did not send.
        missing = getattr(answer, "length", None)
        if missing:
            raise OSError(f"it broke off, {missing} bytes before its end")

    def wait(self) -> BinaryIO:
        """The downloaded file from its beginning; OSError if it takes too long."""
        start = time.monotonic()
        received = 0  # when it was last looked at
        while not self.is_done.wait(TIMEOUT):
            seconds = time.monotonic() - start
            new_bytes = self.received - received
            received = self.received
            if new_bytes < MIN_SPEED * TIMEOUT:
                self.give_up(f"{new_bytes} bytes came in {TIMEOUT:g} s: that is too slow")
            if seconds > MAX_SECONDS:
                self.give_up(f"it takes longer than {MAX_SECONDS:g} s")
        if self.error is not None:
            self.file.close()
            raise self.error
        self.file.seek(0)
        return self.file

    def give_up(self, reason: str) -> None:
        """OSError; the thread ends as soon as it gets the next byte."""
        self.is_given_up = True
        raise TimeoutError(reason)


def open_url(url: str) -> BinaryIO:
    """The answer to a GET request, after redirects, which lead to http and https only."""
    opener = request.OpenerDirector()
    # No handler of files, FTP or data: URIs, nor of redirects: urllib's reads their bodies whole.
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPErrorProcessor(),
        request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    for _ in range(MAX_REDIRECTS + 1):
        try:
            return opener.open(request.Request(ascii_url(url), headers=HEADERS), timeout=TIMEOUT)
        except url_errors.HTTPError as error:
            location = error.headers.get("Location")
            if error.code not in REDIRECTS or location is None:
                raise
            error.close()
            url = redirected(url, location)
    raise OSError(f"it is redirected more than {MAX_REDIRECTS} times")


def redirected(url: str, location: str) -> str:
    """Where a redirect leads; OSError unless that is http or https."""
    # Headers are read as Latin-1; servers write UTF-8.
    target = parse.urljoin(url, location.encode("latin-1", "replace").decode("utf-8", "replace"))
    scheme = parse.urlsplit(target).scheme.lower()
    if scheme not in ("http", "https"):
        raise OSError(f"it is redirected to {scheme or 'no'}: URL, which is not followed")
    return target


def ascii_url(url: str) -> str:
    """A URL as a server wants it: spaces and letters like ü encoded, without its fragment."""
    parts = parse.urlsplit(url)
    host = parts.netloc
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
    path = parse.quote(parts.path, URL_CHARACTERS)
    query = parse.quote(parts.query, URL_CHARACTERS)
    # A "%" that encodes nothing is itself.
    path, query = (re.sub("%(?![0-9a-fA-F]{2})", "%25", part) for part in (path, query))
    return parse.urlunsplit((parts.scheme, host, path, query, ""))
