"""Makes the screenshots of the page that README and notebooks/README.md show.

    python -m tests.helpers.page_screenshots

To be run again when the page or the embedded weights have changed.
"""

import math
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from tests.helpers.page import serving

FOLDER = Path(__file__).parents[2] / "qwen2vl_app" / "web" / "screenshots"
WAIT = 120_000  # milliseconds


def draw(page: Page) -> None:
    """A red disc by hand, and a blue star."""
    box = page.locator("#stage canvas").bounding_box()
    assert box is not None
    page.locator("#width").fill("12")
    x, y, size = box["x"] + 0.28 * box["width"], box["y"] + 0.5 * box["height"], box["width"]
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(300):
        r = 0.11 * size * i / 299
        page.mouse.move(x + r * math.cos(0.3 * i), y + r * math.sin(0.3 * i))
    page.mouse.up()
    page.get_by_role("radio", name="blue").click()
    page.get_by_role("radio", name="Star").click()
    x = box["x"] + 0.7 * box["width"]
    page.mouse.move(x - 0.15 * size, y - 0.15 * size)
    page.mouse.down()
    page.mouse.move(x + 0.15 * size, y + 0.15 * size)
    page.mouse.up()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny")
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    with serving(model, processor) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1160, "height": 800})
        page.set_default_timeout(WAIT)
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        draw(page)
        page.locator("#ask").click()
        page.get_by_role("button", name="Look inside").wait_for()
        page.mouse.move(0, 0)
        page.screenshot(path=FOLDER / "ask.png")

        page.get_by_role("button", name="Look inside").click()
        page.locator("canvas.map").wait_for()
        page.locator("button.chip").nth(2).click()
        page.wait_for_timeout(1000)  # until it has scrolled
        page.mouse.move(0, 0)
        # The last figure, with a margin.
        box = page.locator("figure").last.bounding_box()
        assert box is not None
        y = box["y"] + page.evaluate("scrollY")
        clip = {"x": box["x"] - 18, "y": y + 4, "width": box["width"] + 36, "height": box["height"]}
        page.screenshot(path=FOLDER / "inside.png", full_page=True, clip=clip)
        browser.close()


if __name__ == "__main__":
    main()
