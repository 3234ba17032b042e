"""The page's server on a free port of this machine, in a thread of the tests."""

import contextlib
import threading
import time
from collections.abc import Iterator

import httpx
import uvicorn

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_app.web.serve import TINY_KNOWS, open_port
from qwen2vl_app.web.server import PageServer


@contextlib.contextmanager
def serving(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, name: str = "tiny"
) -> Iterator[tuple[str, PageServer]]:
    """The address of a server that runs as long as the block, and its state."""
    listener = open_port("127.0.0.1", 0)
    knows = TINY_KNOWS if name == "tiny" else ""
    page_server = PageServer(model, processor, name, knows=knows)
    config = uvicorn.Config(
        page_server.app(), log_level="warning", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    wait_until(lambda: httpx.get(f"{address}/api/state").status_code == 200)
    try:
        yield address, page_server
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def wait_until(is_true, seconds: float = 60) -> None:
    """Wait for something to become true; AssertionError if it does not."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if is_true():
                return
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


class Visitor:
    """What the page does, without a browser."""

    def __init__(self, address: str) -> None:
        self.client = httpx.Client(base_url=address, timeout=120)
        self.facts = self.client.post("/api/hello").json()
        self.session = self.facts["session"]

    def upload(self, content: bytes, kind: str = "image") -> httpx.Response:
        query = {"session": self.session, "kind": kind}
        return self.client.post("/api/media", params=query, content=content)

    def events(self, text: str, media: list[str] | None = None, **fields: object) -> list[dict]:
        """All lines of the answer to a question."""
        question = {"session": self.session, "text": text, **fields}
        if media is not None:
            question.update(media=media, isNew=True)
        response = self.client.post("/api/ask", json=question)
        assert response.status_code == 200, response.text
        return [httpx.Response(200, text=line).json() for line in response.text.splitlines()]

    def ask(self, text: str, media: list[str] | None = None, **fields: object) -> str:
        """The text of the answer."""
        events = self.events(text, media, **fields)
        assert events[-1].get("done"), events[-1]
        return "".join(event.get("text", "") for event in events)

    def inside(self, turn: int) -> dict:
        response = self.client.post("/api/inside", json={"session": self.session, "turn": turn})
        assert response.status_code == 200, response.text
        return response.json()
