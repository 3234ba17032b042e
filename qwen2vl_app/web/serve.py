"""Start the server: say where the page is, with a QR code for phones, and serve until Ctrl-C."""

import errno
import io
import ipaddress
import signal
import socket
import sys

import qrcode
import qrcode.image.svg
import uvicorn

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_app.web.addresses import NO_ADDRESS, listen, next_free_port, own_address
from qwen2vl_app.web.limits import MAX_CONNECTIONS
from qwen2vl_app.web.server import PageServer

# Of the embedded checkpoint; others know more than a line can say.
TINY_KNOWS = (
    "This small model knows only coloured shapes, short words and numbers; ask it about those."
)


def serve(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    name: str,
    host: str,
    port: int,
    settings: dict[str, object],
    knows: str = "",
) -> None:
    """Serve the page until Ctrl-C. OSError if the port is taken.

    name: of the model, as the page shows it. settings: of `model.stream`, where the page sets none.
    knows: what a small model can be asked about.
    """
    # The command line lets a closed pipe end the process; here that would be any visitor who
    # hangs up.
    if hasattr(signal, "SIGPIPE"):  # Windows has no such signal
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    listener = open_port(host, port)
    port = listener.getsockname()[1]  # of port 0 the one that was free
    join = join_address(host, port)
    svg = "" if join is None else qr_svg(join)
    server = PageServer(model, processor, name, settings, join, svg, knows)
    print_addresses(host, port, join)
    config = uvicorn.Config(
        server.app(),
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        ws="none",
    )
    uvicorn.Server(config).run(sockets=[listener])


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens; OSError names host and port if that can't be."""
    try:
        return listen(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            free = next_free_port(host, port)
            reason += "" if free is None else f"; try --port {free}"
        raise OSError(f"cannot serve at --host {host} --port {port}: {reason}") from None


def join_address(host: str, port: int) -> str | None:
    """The address for other machines of the network; None if only this one is served."""
    if host in ("0.0.0.0", "::"):
        own = own_address()
        return None if own is None else f"http://{own}:{port}/"
    try:
        if ipaddress.ip_address(host).is_loopback:
            return None
    except ValueError:  # a name
        if host == "localhost":
            return None
    return f"http://{in_address(host)}:{port}/"


def in_address(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def qr_svg(address: str) -> str:
    """A QR code as SVG."""
    written = io.BytesIO()
    qrcode.make(address, image_factory=qrcode.image.svg.SvgPathFillImage, border=2).save(written)
    return written.getvalue().decode()


def print_addresses(host: str, port: int, join: str | None) -> None:
    """Where the page is, on stderr; for a class with a QR code."""
    here = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    print(f"the page: http://{in_address(here)}:{port}/ (Ctrl-C ends it)", file=sys.stderr)
    if join is None and here != host:  # others were to be served
        print(NO_ADDRESS, file=sys.stderr)
    if join is not None:
        print(f"for other machines in this network: {join}", file=sys.stderr)
        code = qrcode.QRCode(border=2)
        code.add_data(join)
        text = io.StringIO()
        code.print_ascii(out=text, invert=True)
        print(text.getvalue(), file=sys.stderr)
