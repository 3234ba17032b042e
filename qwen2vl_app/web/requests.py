"""Reading what comes in: bodies within their limits, and the fields of JSON by type and range."""

import json
from collections.abc import Mapping

import anyio
from starlette.requests import ClientDisconnect, Request

from qwen2vl_app.web.limits import UPLOAD_SECONDS, Refused

Fields = Mapping[str, object]


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request; Refused if it is too long or takes too long to come."""
    stated = request.headers.get("content-length", "0")
    too_long = Refused(f"a request of over {max_bytes // 1024} KB is not taken here", 413)
    if not stated.isdigit() or int(stated) > max_bytes:
        raise too_long
    chunks = []
    total = 0
    try:
        with anyio.fail_after(UPLOAD_SECONDS):
            async for chunk in request.stream():
                total += len(chunk)
                if total > max_bytes:
                    raise too_long
                chunks.append(chunk)
    except TimeoutError:
        raise Refused(f"the request did not arrive within {UPLOAD_SECONDS:g} s", 408) from None
    except ClientDisconnect:
        raise Refused("the client has hung up", 400) from None
    return b"".join(chunks)


async def read_json(request: Request, max_bytes: int) -> Fields:
    """The body of a request as a JSON object."""
    body = await read_body(request, max_bytes)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("the request is no JSON") from None
    if not isinstance(content, dict):
        raise Refused("the request is no JSON object")
    return content


def text_of(fields: Fields, name: str, max_length: int) -> str:
    """A field that is a text; "" if it is absent."""
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(f"{name} is a text")
    if len(value) > max_length:
        raise Refused(f"{name} has {len(value)} characters, at most {max_length} are taken", 413)
    return value


def flag_of(fields: Fields, name: str) -> bool:
    """A field that is true or false; false if it is absent."""
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise Refused(f"{name} is true or false")
    return value


def texts_of(fields: Fields, name: str) -> list[str]:
    """A field that is a list of texts; [] if it is absent."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise Refused(f"{name} is a list of texts")
    return value


def integer_of(fields: Fields, name: str, low: int, high: int) -> int | None:
    """A field that is a whole number in a range; None if it is absent."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused(f"{name} is a whole number from {low} to {high}")
    return value


def number_of(fields: Fields, name: str, low: float, high: float) -> float | None:
    """A field that is a number in a range; None if it is absent."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refused(f"{name} is a number from {low:g} to {high:g}")
    return float(value)
