"""A class at the page: many visitors who ask at once, and what they wait for.

    python -m benchmarks.page_load                      30 sessions over HTTP, three questions each
    python -m benchmarks.page_load --minutes 60         the same for an hour: does memory grow?
    python -m benchmarks.page_load --browser            30 pages in Debian's chromium

Starts a server of its own. Every visitor shows a drawing of their own and asks, all at the same
moment; then all ask on. A question that brings no whole answer is lost.
"""

import argparse
import asyncio
import io
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
COLOURS = ("red", "orange", "green", "blue", "purple", "black")
QUESTIONS = ("Describe this image.", "How many objects do you see?", "What colour is the circle?")


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """The address of a server that runs as long as the block, and its process id."""
    command = [sys.executable, "qwen2vl.py", "--web", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            found = re.search(r"the page: (http://\S+)/ ", line)
            if found:
                yield found[1], process.pid
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.wait()


def memory(pid: int) -> float:
    """The resident memory of a process in MB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else float("nan")


def drawing(rng: random.Random) -> bytes:
    """A circle of some colour, size and place, as the page would send it."""
    image = Image.new("RGB", (448, 336), (250, 243, 224))
    r = rng.randint(40, 120)
    x, y = rng.randint(r, 448 - r), rng.randint(r, 336 - r)
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=rng.choice(COLOURS))
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


# ------------------------------------------------------------------------------------- over HTTP


async def ask(client: httpx.AsyncClient, question: dict) -> float | None:
    """Ask, and read the answer to its end: the seconds, or None if it was lost."""
    start = time.perf_counter()
    last: dict = {}
    try:
        async with client.stream("POST", "/api/ask", json=question) as response:
            async for line in response.aiter_lines():
                last = json.loads(line)
    except (httpx.HTTPError, ValueError):
        return None
    return time.perf_counter() - start if last.get("done") else None


class Visitor:
    """One session, with drawings of its own."""

    def __init__(self, address: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.client = httpx.AsyncClient(base_url=address, timeout=120)
        self.question: dict = {}

    async def come(self) -> None:
        facts = (await self.client.post("/api/hello")).json()
        self.question = {"session": facts["session"]}

    async def draw(self) -> None:
        """Show a new drawing with the next question."""
        query = {"session": self.question["session"], "kind": "image"}
        upload = await self.client.post("/api/media", params=query, content=drawing(self.rng))
        self.question |= {"media": [upload.json()["id"]], "isNew": True}

    async def ask(self, text: str) -> float | None:
        """Ask; the seconds until the whole answer is there, or None if it was lost."""
        seconds = await ask(self.client, {**self.question, "text": text})
        self.question |= {"media": [], "isNew": False}
        return seconds


async def over_http(address: str, sessions: int) -> list[float | None]:
    """All draw, then all ask at once, and ask on twice."""
    visitors = [Visitor(address, seed) for seed in range(sessions)]
    seconds: list[float | None] = []
    await asyncio.gather(*[visitor.come() for visitor in visitors])
    await asyncio.gather(*[visitor.draw() for visitor in visitors])
    for text in QUESTIONS:
        seconds += await asyncio.gather(*[visitor.ask(text) for visitor in visitors])
    for visitor in visitors:
        await visitor.client.aclose()
    return seconds


# ------------------------------------------------------------------------------------ in a browser


async def in_a_browser(address: str, sessions: int) -> list[float | None]:
    """Pages in one browser, which draw and ask all at once."""
    from playwright.async_api import Error, async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        pages = []
        for _ in range(sessions):
            context = await browser.new_context()
            page = await context.new_page()
            await page.goto(address)
            await page.wait_for_selector("html[data-ready]", timeout=120_000)
            await page.get_by_role("radio", name="Circle").click()
            await page.locator("#stage canvas").press("Enter")
            pages.append(page)

        async def one(page) -> float | None:
            start = time.perf_counter()
            await page.evaluate("document.getElementById('form').requestSubmit()")
            try:
                await page.get_by_role("button", name="Look inside").wait_for(timeout=120_000)
            except Error:
                return None
            return time.perf_counter() - start

        seconds = list(await asyncio.gather(*[one(page) for page in pages]))
        await browser.close()
    return seconds


# ------------------------------------------------------------------------------------------- main


def report(name: str, seconds: list[float | None], before: float, after: float) -> None:
    kept = [one for one in seconds if one is not None]
    print(
        f"{name}: {len(seconds)} questions, {len(seconds) - len(kept)} lost, "
        f"median {statistics.median(kept):.2f} s, worst {max(kept):.2f} s, "
        f"memory {before:.0f} MB before, {after:.0f} MB after",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=0.0, help="repeat for so long")
    parser.add_argument("--browser", action="store_true")
    args = parser.parse_args()
    with server() as (address, pid):
        before = memory(pid)
        end = time.monotonic() + 60 * args.minutes
        while True:
            if args.browser:
                seconds = asyncio.run(in_a_browser(address, args.sessions))
                name = f"{args.sessions} pages in a browser"
            else:
                seconds = asyncio.run(over_http(address, args.sessions))
                name = f"{args.sessions} sessions over HTTP"
            report(name, seconds, before, memory(pid))
            if time.monotonic() >= end:
                return


if __name__ == "__main__":
    main()
