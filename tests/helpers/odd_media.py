"""Clips and servers as people meet them: damaged, uneven, transparent, slow, endless."""

import io
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import av
import numpy as np

from tests.helpers.drawn_media import numbered_pixels


class Clip(NamedTuple):
    """How a clip is encoded: its container, codec, pixel format, and the encoder's options."""

    container: str
    codec: str
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = {}  # noqa: RUF012 (never changed)

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.container}-{self.codec}-{options}"


def encode(
    clip: Clip,
    frames: Sequence[np.ndarray],
    times: Sequence[int] | None = None,
    rate: int = 10,
    unit: Fraction | None = None,
) -> bytes:
    """A clip of frames (H, W, 3) or (H, W, 4), at `times` in units of `unit` or 1 / rate."""
    file = io.BytesIO()
    with av.open(file, "w", format=clip.container) as container:
        stream = container.add_stream(clip.codec, rate=rate, options=clip.options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = clip.pix_fmt
        if unit is not None:
            stream.codec_context.time_base = unit
            stream.time_base = unit
        for number, pixels in enumerate(frames):
            layout = "rgba" if pixels.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(pixels, layout)
            frame.pts = number if times is None else times[number]
            frame.time_base = unit or Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())  # what the encoder has held back
    return file.getvalue()


def numbered_frames(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    return [numbered_pixels(number, width, height) for number in range(count)]


def busy_frames(count: int, rng: random.Random) -> list[np.ndarray]:
    """Numbered frames (64, 64, 3) with noise below, so that their packets are of some size."""
    frames = numbered_frames(count, 64, 64)
    for pixels in frames:
        noise = np.frombuffer(rng.randbytes(16 * 64 * 3), np.uint8)
        pixels[48:] = noise.reshape(16, 64, 3)
    return frames


def remux(
    container: str,
    clips: Sequence[bytes],
    change: Callable[[int, bytes], bytes] = lambda number, data: data,
) -> bytes:
    """Clips one after another, ten frames a second each, as one; change(number, data) of each
    packet gives what is written in its place.
    """
    file = io.BytesIO()
    number = 0
    start = Fraction(0)
    with av.open(file, "w", format=container) as target:
        stream = None
        for clip in clips:
            with av.open(io.BytesIO(clip)) as source:
                if stream is None:
                    stream = target.add_stream_from_template(source.streams.video[0])
                num_packets = 0
                for packet in source.demux(video=0):
                    if packet.size == 0:
                        continue
                    copy = av.Packet(change(number, bytes(packet)))
                    offset = int(start / packet.time_base)
                    copy.pts = packet.pts + offset
                    if packet.dts is not None:
                        copy.dts = packet.dts + offset
                    copy.time_base, copy.duration = packet.time_base, packet.duration
                    copy.is_keyframe = packet.is_keyframe
                    copy.stream = stream
                    target.mux(copy)
                    number += 1
                    num_packets += 1
                start += Fraction(num_packets, 10)
    return file.getvalue()


def spoil(data: bytes, how: str, rng: random.Random) -> bytes:
    """The content of a packet, damaged: all zero or noise, or its rest after a part."""
    third = len(data) // 3
    half = len(data) // 2
    return {
        "zero": bytes(len(data)),
        "noise": rng.randbytes(len(data)),
        "tail": data[:third] + rng.randbytes(len(data) - third),
        "cut": data[:half] + bytes(len(data) - half),
    }[how]


def damage_packets(data: bytes, bad: set[int], how: str, rng: random.Random) -> bytes:
    """A clip in whose file the packets of these numbers are spoilt, and nothing else."""
    damaged = bytearray(data)
    with av.open(io.BytesIO(data)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size > 0]
    for number in bad:
        start = data.index(packets[number])
        damaged[start : start + len(packets[number])] = spoil(packets[number], how, rng)
    return bytes(damaged)


# ------------------------------------------------------------------------------------------ servers


def endless(handler: BaseHTTPRequestHandler) -> None:
    """A body without end."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(2**16))


def one_byte_at_a_time(handler: BaseHTTPRequestHandler) -> None:
    """A body that comes far too slowly."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def slow_headers(handler: BaseHTTPRequestHandler) -> None:
    """Headers without end, a letter at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def silent(handler: BaseHTTPRequestHandler) -> None:
    """No answer at all, for a while."""
    time.sleep(3)


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    """A body that breaks off."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 10)


def redirect_to(target: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """A redirect, with a body that nobody should read to its end."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(2**16))

    return answer


@contextmanager
def serve(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a server that answers every GET request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:  # the client has gone
                self.close_connection = True

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a"
    server.shutdown()
    server.server_close()


# ------------------------------------------------------------------------------------------- guards


def within_a_minute(call: Callable[[], object]) -> object:
    """What a call returns or raises; AssertionError if that takes longer than 60 seconds."""
    outcome: list[object] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:  # whatever it is, the caller gets it
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]
    return outcome[0]
