"""Handing tokens on while they are generated, in the way of the streamers of `transformers`."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class Streamer(Protocol):
    """What `generate` needs of a streamer: TextStreamer of `transformers` is one."""

    def put(self, value: Tensor) -> None:
        """Take the prompt's ids (B, T), then the tokens (B,) of each step, on the CPU."""

    def end(self) -> None:
        """Take note that nothing more comes."""


def check_streamer(streamer: object) -> None:
    """ValueError for an object without the methods of a streamer."""
    for method in ("put", "end"):
        if not callable(getattr(streamer, method, None)):
            kind = type(streamer).__name__
            raise ValueError(f"streamer is a {kind} without {method}(): put and end are needed")


def feed(streamer: Streamer, input_ids: Tensor, tokens: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield the tokens, and hand the prompt and each of them to the streamer."""
    # It also ends where generation fails: a thread that waits for text would wait for ever.
    try:
        streamer.put(input_ids.cpu())
        for token in tokens:
            streamer.put(token.cpu())
            yield token
    finally:
        streamer.end()
