"""The page in a real browser: Debian's chromium, driven by Playwright."""
# ruff: noqa: E402, what is skipped is decided before the imports that would fail

import math
import os
import shutil
from pathlib import Path

import pytest

for module in ("starlette", "uvicorn", "qrcode", "httpx", "playwright"):
    pytest.importorskip(module, reason=f"{module} is not installed: extras web and dev bring it")

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.helpers.page import serving

EXAMPLES = Path(__file__).parent.parent / "examples"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 60_000  # milliseconds, on a loaded machine
expect.set_options(timeout=PATIENCE)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module")
def address(tiny):
    with serving(*tiny) as (found, _):
        yield found


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # In a container its sandbox can't be set up.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


class Visit:
    """A page that was opened, and all that went wrong or elsewhere on it."""

    def __init__(self, browser: Browser, address: str, **options) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self.note_console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]")

    def note_console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def answer(self) -> str:
        """The last answer, once it is complete."""
        self.page.locator(".said").last.get_by_role("button", name="Look inside").wait_for()
        return self.page.locator(".said .answer").last.inner_text()

    def ask(self, text: str = "") -> str:
        self.page.locator("#question").fill(text)
        self.page.locator("#ask").click()  # it can't be used again until the answer is there
        expect(self.page.locator("#ask")).to_be_enabled()
        return self.answer()

    def look_inside(self) -> None:
        self.page.locator(".said").last.get_by_role("button", name="Look inside").click()
        self.page.locator("canvas.map").first.wait_for()

    def drag(self, points: list[tuple[float, float]]) -> None:
        """Move the mouse with its button down over the canvas; its sides are 0 to 1."""
        self.page.locator("#stage canvas").scroll_into_view_if_needed()
        box = self.page.locator("#stage canvas").bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place)
        self.page.mouse.up()

    def draw_circle(self, colour: str) -> None:
        """A disc by hand: one stroke of the pen that winds outwards."""
        self.page.locator("#shapes").get_by_role("radio", name="Pen").click()
        self.page.locator("#colours").get_by_role("radio", name=colour).click()
        self.page.locator("#width").fill("12")
        spiral = []
        for i in range(240):
            radius = 0.15 * i / 239
            x, y = math.cos(0.3 * i), math.sin(0.3 * i)
            spiral.append((0.45 + radius * x, 0.5 + radius * y * 4 / 3))  # the canvas is 4 : 3
        self.drag(spiral)


@pytest.fixture
def visit(browser, address, request):
    """Opens the page, with the options of a browser's context that a test gives it."""
    opened = Visit(browser, address, **getattr(request, "param", {}))
    yield opened
    opened.context.close()
    assert not opened.problems


PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


def pixels(visit: Visit, selector: str) -> str:
    """What a canvas shows, as a data: URI."""
    return visit.page.locator(selector).first.evaluate("canvas => canvas.toDataURL()")


# ------------------------------------------------------------------------------------------ draw


def test_a_circle_drawn_with_the_mouse_is_seen(visit):
    visit.draw_circle("red")
    answer = visit.ask("Describe this image.")
    assert "red" in answer and "circle" in answer


def test_a_new_drawing_begins_a_new_conversation(visit):
    visit.draw_circle("red")
    assert "red" in visit.ask("Describe this image.")
    visit.page.locator("#clear").click()
    visit.draw_circle("blue")
    expect(visit.page.locator("#status")).to_contain_text("new conversation")
    answer = visit.ask("Describe this image.")
    assert "blue" in answer and "red" not in answer
    assert visit.page.locator(".asked").count() == 1


def test_each_tool_changes_the_canvas_and_undo_takes_it_back(visit):
    empty = pixels(visit, "#stage canvas")
    for tool in ("Pen", "Fill", "Circle", "Square", "Triangle", "Star"):
        visit.page.locator("#shapes").get_by_role("radio", name=tool).click()
        visit.drag([(0.2, 0.2), (0.5, 0.6), (0.7, 0.8)])
        assert pixels(visit, "#stage canvas") != empty, tool
        visit.page.locator("#undo").click()
        assert pixels(visit, "#stage canvas") == empty, tool


def test_a_shape_is_placed_without_a_pointer(visit):
    visit.page.locator("#shapes").get_by_role("radio", name="Pen").focus()
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("ArrowRight")
    checked = visit.page.locator("#shapes [aria-checked=true]")
    assert checked.get_attribute("aria-label") == "Circle"
    visit.page.locator("#stage canvas").focus()
    visit.page.keyboard.press("Enter")
    assert "circle" in visit.ask()


@pytest.mark.parametrize("visit", [PHONE], indirect=True)
def test_a_finger_draws_and_the_page_does_not_scroll(visit):
    empty = pixels(visit, "#stage canvas")
    before = visit.page.evaluate("scrollY")
    box = visit.page.locator("#stage canvas").bounding_box()
    session = visit.context.new_cdp_session(visit.page)
    x, y = box["x"] + 60, box["y"] + 150
    touch = {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]}
    session.send("Input.dispatchTouchEvent", touch)
    for step in range(1, 20):
        point = {"x": x + 3 * step, "y": y - 5 * step}
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert visit.page.evaluate("scrollY") == before
    assert pixels(visit, "#stage canvas") != empty


# ----------------------------------------------------------------------------------------- ask


def test_an_uploaded_image_is_answered_about_and_a_question_goes_on(visit):
    visit.page.locator("#file").set_input_files(EXAMPLES / "shapes.png")
    expect(visit.page.locator("#cost")).to_contain_text("24 tokens")
    assert "circle" in visit.ask("Describe this image.")
    assert "lue" in visit.ask("What colour is the star?")
    assert visit.page.locator(".asked").count() == 2


def test_a_clip_is_answered_about(visit):
    visit.page.locator("#file").set_input_files(EXAMPLES / "moving.mp4")
    visit.page.locator("#stage video").wait_for()
    assert visit.ask("Which way does the yellow circle move?")
    visit.look_inside()


def test_an_image_is_pasted_and_dropped(visit):
    give = """async ([kind, address]) => {
        const blob = await (await fetch(address)).blob();
        const data = new DataTransfer();
        data.items.add(new File([blob], "given.png", {type: "image/png"}));
        const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data})
            : new DragEvent("drop", {dataTransfer: data, cancelable: true});
        document.dispatchEvent(event);
    }"""
    for kind, number in (("paste", 1), ("drop", 2)):
        visit.page.evaluate(give, [kind, "/static/examples/shapes.png"])
        expect(visit.page.locator("#cost")).to_contain_text("168 × 112")
        expect(visit.page.locator(".thumb")).to_have_count(number)


def test_an_example_is_one_click(visit):
    visit.page.locator("#examples button").first.click()
    assert visit.answer() == "A red circle and a blue star."


def test_boxes_are_drawn_onto_the_image(visit):
    visit.page.get_by_role("button", name="Find the orange diamond.").click()
    answer = visit.answer()
    assert "<|" not in answer
    frame = visit.page.locator("#stage .box").bounding_box()
    canvas = visit.page.locator("#stage canvas").bounding_box()
    # The diamond is at 600, 690 of a thousand.
    x = (frame["x"] + frame["width"] / 2 - canvas["x"]) / canvas["width"]
    y = (frame["y"] + frame["height"] / 2 - canvas["y"]) / canvas["height"]
    assert abs(x - 0.6) < 0.15 and abs(y - 0.69) < 0.15


def test_stop_retry_and_new(visit):
    visit.draw_circle("green")
    visit.page.locator("#settings summary").click()
    visit.page.locator("#temperature").fill("2")
    visit.page.locator("#longest").fill("512")
    # Text without a stop: at this temperature it often goes on and on, and stopping is sure to
    # come before 512 tokens; an answer that ends sooner is asked for again.
    visit.page.locator("#question").fill("Describe this image.")
    visit.page.locator("#ask").click()
    stop = visit.page.locator("#stop")
    if stop.is_enabled():
        stop.click()
    expect(visit.page.locator("#ask")).to_be_enabled()
    visit.page.locator("#temperature").fill("0")
    visit.page.locator("#longest").fill("1")
    visit.page.locator("#retry").click()
    expect(visit.page.locator("#status")).to_contain_text("stopped before its end")
    assert visit.page.locator(".asked").count() == 1
    visit.page.locator("#new").click()
    assert visit.page.locator(".asked").count() == 0


def test_a_bad_file_is_said_in_one_line_and_harms_nothing(visit, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image at all")
    visit.page.locator("#file").set_input_files(bad)
    expect(visit.page.locator("#notice")).to_contain_text("no image that can be read")
    visit.problems.clear()  # the browser notes the status 400
    visit.page.locator("#examples button").first.click()
    assert visit.answer() == "A red circle and a blue star."
    expect(visit.page.locator("#notice")).to_be_hidden()


# ------------------------------------------------------------------------------------ look inside


def test_a_touched_token_changes_the_map_the_bars_and_the_lens(visit):
    visit.page.locator("#examples button").first.click()
    visit.answer()
    visit.look_inside()
    words = visit.page.locator("button.chip")
    seen = []
    for i in range(3):
        words.nth(i).click()
        bars = visit.page.locator(".bars").inner_text()
        now = visit.page.locator("th.now").inner_text()
        seen.append((pixels(visit, "canvas.map"), bars, now))
        assert words.nth(i).get_attribute("aria-pressed") == "true"
    for column in zip(*seen, strict=True):
        assert len(set(column)) == 3
    inside = visit.page.locator("#inside")
    inside.get_by_label("Layer").fill("1")
    of_one_layer = pixels(visit, "canvas.map")
    inside.get_by_label("Head").fill("2")
    assert len({seen[-1][0], of_one_layer, pixels(visit, "canvas.map")}) == 3


def test_temperature_and_top_p_move_the_bars(visit):
    visit.page.locator("#examples button").first.click()
    visit.answer()
    visit.look_inside()
    inside = visit.page.locator("#inside")
    first = inside.locator(".bars .value").first
    inside.get_by_label("Temperature").fill("0.1")
    expect(first).to_have_text("100\u00a0%")
    inside.get_by_label("Temperature").fill("2")
    expect(first).not_to_have_text("100\u00a0%")
    assert inside.locator(".bars .cut").count() == 0
    inside.get_by_label("Top-p").fill("0.05")
    expect(first).to_have_text("100\u00a0%")
    assert inside.locator(".bars .cut").count() == 9


def test_every_prompt_token_is_a_chip_with_its_id_and_positions(visit):
    visit.page.locator("#examples button").first.click()
    visit.answer()
    visit.look_inside()
    # 25 tokens of text and control, and 4 x 6 squares of the picture.
    chips = visit.page.locator(".chips [data-index]")
    assert chips.count() == 49
    assert visit.page.locator(".square").count() == 24
    indices = [int(one) for one in chips.evaluate_all("all => all.map(x => x.dataset.index)")]
    assert indices == list(range(49))
    # The third square of the second row, after 15 tokens: time 15, row 16, column 17.
    assert visit.page.locator(".square").nth(8).inner_text() == "15·16·17"


def test_a_touched_square_is_named_and_lit(visit):
    visit.page.locator("#examples button").first.click()
    visit.answer()
    visit.look_inside()
    canvas = visit.page.locator("canvas.picture").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 2.5 / 6, "y": box["height"] * 1.5 / 4})
    expect(visit.page.locator(".facts")).to_contain_text("row 1, column 2 of the picture")
    expect(visit.page.locator(".square").nth(8)).to_have_class("square lit")


# ------------------------------------------------------------------------------- anyone, anywhere


def test_no_request_leaves_the_machine(visit, address):
    visit.page.locator("#examples button").first.click()
    visit.answer()
    visit.look_inside()
    assert len(visit.requests) > 10
    for url in visit.requests:
        assert url.startswith((address, "blob:", "data:")), url


@pytest.mark.parametrize("visit", [PHONE], indirect=True)
def test_on_a_phone_nothing_sticks_out_and_buttons_can_be_hit(visit):
    visit.page.locator("#examples button").nth(2).click()
    visit.answer()
    visit.look_inside()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    small = visit.page.evaluate(
        """() => [...document.querySelectorAll("button, .button, input[type=range], summary")]
            .filter(one => one.offsetParent && !one.classList.contains("away"))
            .filter(one => one.getBoundingClientRect().height < 43.5)
            .map(one => one.outerHTML.slice(0, 80))"""
    )
    assert not small


# Of every element with text: the beginning of its HTML, its colour, and that of its ground.
COLOURS_OF_TEXT = r"""() => {
    const numbers = (text) => text.match(/[\d.]+/g).map(Number);
    const isClear = (one) => /(, 0\)|transparent)$/.test(getComputedStyle(one).backgroundColor);
    const tags = "p, small, h1, h2, h3, button, td, th, code, span, label, a";
    const found = [];
    for (const one of document.querySelectorAll(tags)) {
        if (!one.offsetParent || !one.innerText.trim()) continue;
        if (one.matches(":disabled, .cut, .box *")) continue;
        let at = one;
        while (at && isClear(at)) at = at.parentElement;
        const ground = getComputedStyle(at || document.body).backgroundColor;
        if (!ground.startsWith("rgb(")) continue;
        const ink = getComputedStyle(one).color;
        found.push([one.outerHTML.slice(0, 60), numbers(ink), numbers(ground)]);
    }
    return found;
}"""
# Controls and pictures that a screen reader would have no name for.
NAMELESS = """() => {
    const hasName = (one) => one.innerText?.trim() || one.getAttribute("aria-label")
        || one.getAttribute("aria-labelledby") || one.labels?.length || one.hasAttribute("alt");
    return [...document.querySelectorAll("button, input, textarea, canvas, img, [role]")]
        .filter(one => one.offsetParent && !hasName(one))
        .filter(one => !["status", "alert"].includes(one.getAttribute("role")))
        .map(one => one.outerHTML.slice(0, 80));
}"""


def contrast(one: list[int], other: list[int]) -> float:
    """The contrast of two colours as WCAG counts it, 1 to 21."""

    def brightness(rgb: list[int]) -> float:
        parts = []
        for value in rgb:
            part = value / 255
            parts.append(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    light, dark = sorted((brightness(one), brightness(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    "visit", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True
)
def test_text_can_be_read_in_light_and_dark(visit):
    """A contrast of 4.5 at least, as WCAG AA asks for, for every pair of colours that is used."""
    visit.page.locator("#examples button").first.click()
    visit.answer()
    visit.look_inside()
    pairs = visit.page.evaluate(COLOURS_OF_TEXT)
    assert len(pairs) > 60
    for html, ink, ground in pairs:
        assert contrast(ink[:3], ground[:3]) >= 4.5, (html, ink, ground)


def test_everything_that_can_be_used_has_a_name(visit):
    visit.page.locator("#examples button").first.click()
    visit.answer()
    visit.look_inside()
    nameless = visit.page.evaluate(NAMELESS)
    assert not nameless


def test_a_conversation_that_the_server_forgot_begins_anew(visit, tiny, browser):
    with serving(*tiny) as (address, page_server):
        own = Visit(browser, address)
        own.draw_circle("red")
        assert "red" in own.ask("Describe this image.")
        page_server.sessions.by_id.clear()
        assert "red" in own.ask("Describe this image.")
        assert own.page.locator("#notice").is_hidden()
        own.context.close()
