"""The page in a real browser: Debian's chromium, driven by Playwright."""
# ruff: noqa: E402, what is skipped is decided before the imports that would fail

import base64
import io
import itertools
import json
import math
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
def served(tiny):
    """The address of a server that all tests share, and its state."""
    with serving(*tiny) as found:
        yield found


@pytest.fixture(scope="module")
def address(served):
    return served[0]


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
        self.questions: list[dict] = []  # what was sent to /api/ask
        self.page.on("console", self.note_console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self.note_request)
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]")

    def note_console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def note_request(self, request) -> None:
        self.requests.append(request.url)
        if request.url.endswith("/api/ask"):
            self.questions.append(request.post_data_json)

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

    def draw(self, tool: str, colour: str, points: list[tuple[float, float]]) -> None:
        self.page.locator("#shapes").get_by_role("radio", name=tool).click()
        self.page.locator("#colours").get_by_role("radio", name=colour).click()
        self.drag(points)

    def show_example(self, number: int) -> str:
        self.page.locator("#examples button").nth(number).click()
        expect(self.page.locator("#ask")).to_be_enabled()
        return self.answer()

    def cost(self) -> str:
        """What the last question cost, without the time it took."""
        expect(self.page.locator("#status")).to_contain_text("wrote")
        return self.page.locator("#status").inner_text().partition(" in ")[0]

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
    expect(visit.page.locator("#stage .film img")).to_have_count(6)
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
    visit.page.get_by_role("button", name="Find the blue ring.").click()
    answer = visit.answer()
    assert "<|" not in answer
    frame = visit.page.locator("#stage .box").bounding_box()
    canvas = visit.page.locator("#stage canvas").bounding_box()
    # In tiny/examples.py the ring's centre is at (256, 146) of 300 x 200.
    x = (frame["x"] + frame["width"] / 2 - canvas["x"]) / canvas["width"]
    y = (frame["y"] + frame["height"] / 2 - canvas["y"]) / canvas["height"]
    assert abs(x - 256 / 300) < 0.1 and abs(y - 146 / 200) < 0.1


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
    expect(visit.page.locator("#notice")).to_contain_text("This file can't be read as an image")
    visit.problems.clear()  # the browser notes the status 400
    visit.page.locator("#examples button").first.click()
    assert visit.answer() == "A red circle and a blue star."
    expect(visit.page.locator("#notice")).to_be_hidden()


# ---------------------------------------------------------- what is sent is always what is shown


def conversation_of(visit: Visit, served) -> list[dict]:
    """The messages of this visitor at the server."""
    session = visit.questions[-1]["session"]
    return served[1].sessions.by_id[session].conversation.messages


def media_of(messages: list[dict]) -> list[list[bytes]]:
    """The files that came with each question."""
    found = []
    for message in messages:
        if message["role"] == "user":
            items = [one for one in message["content"] if one["type"] != "text"]
            found.append([one[one["type"]] for one in items])
    return found


def show_a_drawing(visit: Visit) -> None:
    visit.draw_circle("red")
    visit.ask()


def show_two_uploads(visit: Visit) -> None:
    visit.page.locator("#file").set_input_files([EXAMPLES / "shapes.png", EXAMPLES / "many.png"])
    expect(visit.page.locator("#sent")).to_contain_text("2 pictures are sent")
    visit.ask("Describe this image.")


def show_a_clip(visit: Visit) -> None:
    visit.show_example(5)


def show_an_example_after_a_clip(visit: Visit) -> None:
    visit.show_example(5)
    visit.show_example(0)


def show_what_another_question_is_about(visit: Visit) -> None:
    visit.show_example(2)
    visit.ask("What colour is the ring?")


def show_a_picture_drawn_on(visit: Visit) -> None:
    visit.show_example(0)
    visit.draw("Square", "green", [(0.4, 0.7), (0.6, 0.9)])
    visit.ask("How many objects do you see?")


@pytest.mark.parametrize(
    "show",
    [
        show_a_drawing,
        show_two_uploads,
        show_a_clip,
        show_an_example_after_a_clip,
        show_what_another_question_is_about,
        show_a_picture_drawn_on,
    ],
)
def test_retry_answers_as_if_for_the_first_time(visit, served, show):
    show(visit)
    answer, cost = visit.answer(), visit.cost()
    before = json.dumps(conversation_of(visit, served), default=repr)
    for _ in range(2):
        visit.page.locator("#retry").click()
        expect(visit.page.locator("#ask")).to_be_enabled()
        assert (visit.answer(), visit.cost()) == (answer, cost)
        assert json.dumps(conversation_of(visit, served), default=repr) == before
        assert visit.page.locator(".asked").count() == len(media_of(conversation_of(visit, served)))
    visit.ask("What colour is it?")  # goes on, so with the same pictures
    assert not visit.questions[-1]["isNew"]
    assert media_of(conversation_of(visit, served))[0]


def test_retry_takes_the_settings_of_now(visit, served):
    visit.show_example(2)
    tokens = visit.cost()
    visit.page.locator("#settings summary").click()
    visit.page.locator("#detail").fill("0")
    visit.page.locator("#longest").fill("3")
    visit.page.locator("#top-p").fill("0.5")
    visit.page.locator("#retry").click()
    expect(visit.page.locator("#status")).to_contain_text("stopped before its end")
    assert visit.cost() != tokens and "wrote 3" in visit.cost()
    assert visit.questions[-1]["topP"] == 0.5
    assert len(conversation_of(visit, served)) == 2


def test_retry_keeps_a_question_that_is_being_typed(visit):
    visit.show_example(0)
    visit.page.locator("#question").fill("What colour")
    visit.page.locator("#retry").click()
    expect(visit.page.locator("#ask")).to_be_enabled()
    assert visit.page.locator("#question").input_value() == "What colour"


def test_after_a_question_that_failed_retry_keeps_the_turns_before(visit, served):
    visit.show_example(0)
    visit.page.locator("#question").fill("word " * 799)
    visit.page.route("**/api/ask", lambda route: route.abort())
    visit.page.locator("#ask").click()
    expect(visit.page.locator("#notice")).to_contain_text("does not answer")
    visit.problems.clear()  # the browser notes the broken connection
    visit.page.unroute("**/api/ask")
    assert "word" in visit.page.locator("#question").input_value()
    visit.page.locator("#retry").click()
    expect(visit.page.locator("#ask")).to_be_enabled()
    assert [len(media) for media in media_of(conversation_of(visit, served))] == [1, 0]
    assert visit.page.locator(".asked").count() == 2


@pytest.mark.parametrize("address_held", ["**/api/ask", "**/api/media*"])
def test_what_is_drawn_while_it_answers_is_sent_with_the_next_question(visit, served, address_held):
    visit.draw("Circle", "red", [(0.2, 0.2), (0.5, 0.6)])
    sent = pixels(visit, "#stage canvas")
    held = []
    visit.page.route(address_held, lambda route: held.append(route), times=1)
    visit.page.locator("#ask").click()
    visit.page.wait_for_timeout(200)
    visit.draw("Star", "blue", [(0.6, 0.4), (0.9, 0.8)])
    shown = pixels(visit, "#stage canvas")
    [first] = held
    first.continue_()
    expect(visit.page.locator("#ask")).to_be_enabled()
    assert as_pixels(media_of(conversation_of(visit, served))[0][0]) == as_pixels(sent)
    expect(visit.page.locator("#status")).to_contain_text("new conversation")
    visit.ask()
    assert visit.questions[-1]["isNew"]
    assert as_pixels(media_of(conversation_of(visit, served))[0][0]) == as_pixels(shown)


def as_pixels(image: str | bytes) -> bytes:
    """Of a file or a data: URI."""
    if isinstance(image, str):
        image = base64.b64decode(image.partition(",")[2])
    return Image.open(io.BytesIO(image)).convert("RGB").tobytes()


def do_something(visit: Visit, rng: random.Random) -> str:
    """One of the things that a visitor may do with the pictures."""
    page = visit.page
    can_be_drawn_on = page.locator("#stage canvas").count()
    choices = ["draw", "draw", "undo", "clear", "drawing", "upload", "clip", "example", "remove"]
    action = rng.choice([*choices, "new", "choose"])
    if action == "draw" and can_be_drawn_on:
        x, y = rng.uniform(0.1, 0.7), rng.uniform(0.1, 0.7)
        visit.draw(rng.choice(["Circle", "Star", "Pen"]), "green", [(x, y), (x + 0.2, y + 0.2)])
    elif action in ("undo", "clear") and can_be_drawn_on:
        if page.locator(f"#{action}").is_enabled():
            page.locator(f"#{action}").click()
    elif action == "drawing":
        page.locator("#new-drawing").click()
    elif action in ("upload", "clip"):
        with page.expect_response("**/api/media*"):
            name = "moving.mp4" if action == "clip" else rng.choice(["shapes.png", "many.png"])
            page.locator("#file").set_input_files(EXAMPLES / name)
    elif action == "example":
        visit.show_example(rng.randrange(5))
    elif action == "remove" and page.locator(".away:visible").count():
        page.locator(".away").first.click()
    elif action == "new" and page.locator("#new").is_enabled():
        page.locator("#new").click()
    elif action == "choose" and page.locator(".thumb:visible").count() > 1:
        page.locator(".thumb > button:first-child").first.click()
    page.wait_for_timeout(50)
    return action


def test_after_whatever_a_visitor_does_the_model_has_what_is_shown(visit, served, amount):
    """The pictures of the conversation at the server, and all that the tray and stage show."""
    rng = random.Random(7)
    done = []
    for _ in range(amount(8, 60)):
        done += [do_something(visit, rng) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.3 and visit.page.locator("#retry").is_enabled():
            visit.page.locator("#retry").click()
            expect(visit.page.locator("#ask")).to_be_enabled()
        else:
            visit.ask("Describe this image.")
        messages = conversation_of(visit, served)
        sent = [one for media in media_of(messages) for one in media]
        shown = shown_pictures(visit)
        assert len(sent) == len(shown), done
        for one, picture in zip(sent, shown, strict=True):
            if picture:  # not a clip
                assert as_pixels(one) == as_pixels(picture), done
        # As many questions as the page shows, too.
        assert visit.page.locator(".asked").count() == len(media_of(messages)), done


def shown_pictures(visit: Visit) -> list[str]:
    """What each thumbnail shows on the stage; "" of a clip. An empty drawing is left out."""
    page = visit.page
    thumbs = page.locator(".thumb > button:first-child")
    was_chosen = page.locator(".thumb > [aria-checked=true]").get_attribute("data-value")
    shown = []
    for i in range(thumbs.count()):
        page.evaluate("i => document.querySelectorAll('.thumb > button:first-child')[i].click()", i)
        if "An empty drawing" in cost_line(page):
            continue
        is_canvas = page.locator("#stage canvas").count()
        shown.append(pixels(visit, "#stage canvas") if is_canvas else "")
    page.evaluate("key => document.querySelector(`[data-value='${key}']`).click()", was_chosen)
    return shown


def cost_line(page: Page) -> str:
    """What stands under the stage, once it is about what the stage shows."""
    page.wait_for_timeout(100)
    return page.locator("#cost").inner_text()


def test_an_example_that_can_not_be_sent_leaves_the_picture_that_is_shown(visit, served):
    visit.draw_circle("red")
    visit.page.route("**/api/media*", lambda route: route.abort())
    visit.page.locator("#examples button").nth(1).click()
    expect(visit.page.locator("#notice")).to_contain_text("does not answer")
    visit.problems.clear()
    visit.page.unroute("**/api/media*")
    shown = pixels(visit, "#stage canvas")
    visit.ask()
    assert as_pixels(media_of(conversation_of(visit, served))[0][0]) == as_pixels(shown)


def test_a_new_conversation_says_what_stays(visit):
    hint = visit.page.locator("#empty").inner_text()
    visit.show_example(0)
    visit.page.locator("#new").click()
    assert visit.page.locator("#empty").inner_text() == hint
    expect(visit.page.locator("#status")).to_contain_text("the same picture")
    visit.page.locator("#new-drawing").click()
    expect(visit.page.locator("#sent")).to_contain_text("1 picture is sent")
    visit.draw("Circle", "red", [(0.2, 0.2), (0.5, 0.6)])
    expect(visit.page.locator("#sent")).to_contain_text("2 pictures are sent")
    visit.ask()
    assert len(visit.questions[-1]["media"]) == 2


def test_a_lone_picture_can_be_removed_and_its_strokes_cleared(visit):
    visit.show_example(0)
    empty = pixels(visit, "#stage canvas")
    clear = visit.page.get_by_role("button", name="Clear strokes")
    expect(clear).to_be_disabled()
    visit.draw("Circle", "red", [(0.2, 0.2), (0.5, 0.6)])
    clear.click()
    assert pixels(visit, "#stage canvas") == empty
    visit.page.get_by_role("button", name="Remove picture 1").click()
    expect(visit.page.locator("#cost")).to_contain_text("An empty drawing is not sent.")
    visit.ask("Describe this image.")
    assert visit.questions[-1]["media"] == []


def test_a_fill_leaves_no_seam(visit):
    """An outline by hand, filled in its own colour: inside there is no other colour left."""
    around = [(0.5 + 0.3 * math.cos(0.1 * i), 0.5 + 0.4 * math.sin(0.1 * i)) for i in range(70)]
    visit.draw("Pen", "blue", around)
    visit.draw("Fill", "blue", [(0.5, 0.5), (0.5, 0.5)])
    content = base64.b64decode(pixels(visit, "#stage canvas").partition(",")[2])
    image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    is_inside = np.hypot((x / width - 0.5) / 0.3, (y / height - 0.5) / 0.4) < 1
    blue = image[height // 2, width // 2]
    assert np.abs(image[is_inside] - blue).max() <= 2  # where strokes lie over one another


def test_names_of_boxes_stay_inside_the_picture(visit, amount):
    visit.show_example(2)
    rng = random.Random(5)
    for _ in range(amount(40, 400)):
        x, y = sorted(rng.sample(range(1001), 2)), sorted(rng.sample(range(1001), 2))
        name = " ".join(["the", "orange", "diamond", "star"][: rng.randint(1, 4)])
        text = f"<|object_ref_start|>{name}<|object_ref_end|>"
        text += f"<|box_start|>({x[0]},{y[0]}),({x[1]},{y[1]})<|box_end|>"
        left, right = visit.page.evaluate(
            """async (text) => {
                const { drawBoxes } = await import("/static/answers.js");
                const sheet = document.querySelector("#stage .sheet");
                drawBoxes(sheet, text);
                const name = sheet.querySelector(".box span").getBoundingClientRect();
                const all = sheet.getBoundingClientRect();
                return [name.left - all.left, all.right - name.right];
            }""",
            text,
        )
        assert left >= -4 and right >= -4, text


def test_the_numbers_of_a_box_are_explained_in_the_conversation(visit):
    visit.show_example(2)
    said = visit.page.locator(".said").last
    expect(said).to_contain_text("thousandths of the picture")
    assert re.search(r"two corners: \(\d+,\d+\),\(\d+,\d+\)\.", said.inner_text())


def test_nobody_is_being_answered_once_the_answer_is_there(visit):
    visit.show_example(2)
    expect(visit.page.locator("#crowd")).to_have_text("")


def test_what_a_small_model_knows_stands_beside_the_question(visit, tiny, browser):
    assert "coloured shapes" in visit.page.locator("#form").inner_text()
    with serving(*tiny, name="another") as (address, _):
        other = Visit(browser, address)
        expect(other.page.locator("#knows")).to_be_hidden()
        other.context.close()


# ------------------------------------------------------------------------------------ look inside


@pytest.mark.parametrize("visit", [{}, PHONE], indirect=True)
def test_look_inside_comes_into_view_and_is_focused(visit):
    visit.show_example(0)
    visit.ask("What colour is the star?")
    for said in (visit.page.locator(".said").first, visit.page.locator(".said").last):
        visit.page.evaluate("scrollTo(0, 0)")
        said.get_by_role("button", name="Look inside").click()
        expect(visit.page.locator("#inside-title")).to_be_focused()
        visit.page.wait_for_function(
            """() => {
                const title = document.getElementById("inside-title");
                const { top, bottom } = title.getBoundingClientRect();
                return top >= 0 && bottom <= innerHeight / 3;
            }"""
        )


@pytest.mark.parametrize("visit", [{}, PHONE], indirect=True)
@pytest.mark.parametrize("example", [0, 2, 5])
def test_nothing_of_the_prompt_is_cut_off(visit, example):
    visit.show_example(example)
    visit.look_inside()
    cut = visit.page.evaluate(
        """() => [...document.querySelectorAll(".chips, .chips *")]
            .filter(one => one.scrollHeight > one.clientHeight + 1 && one.clientHeight
                || one.scrollWidth > one.clientWidth + 1 && one.clientWidth)
            .filter(one => getComputedStyle(one).overflow !== "visible")
            .map(one => one.outerHTML.slice(0, 80))"""
    )
    assert not cut
    chips = visit.page.locator(".chips").first.bounding_box()
    last = visit.page.locator(".chips").first.locator("[data-index]").last.bounding_box()
    assert last["y"] + last["height"] <= chips["y"] + chips["height"]
    assert chips["x"] + chips["width"] <= visit.page.viewport_size["width"]


@pytest.mark.parametrize("visit", [PHONE], indirect=True)
def test_a_finger_gets_the_numbers_of_every_token(visit):
    visit.show_example(2)
    visit.look_inside()
    for index in (0, 20, 91, 100):
        visit.page.locator(f".chips [data-index='{index}']").tap()
        facts = visit.page.locator(".told")
        expect(facts).to_contain_text(f"Token {index}:")
        expect(facts).to_contain_text("Its position is time")
    # The percentages of the logit lens can be read without a pointer.
    assert "%" in visit.page.locator("td").first.inner_text()


def inside_of(visit: Visit) -> dict:
    """What the server has sent to look inside the last answer, which is then shown."""
    with visit.page.expect_response("**/api/inside") as caught:
        visit.look_inside()
    return caught.value.json()


@pytest.mark.parametrize("example", [2, 4])
def test_it_opens_on_the_least_certain_token_and_says_the_largest_share(visit, example):
    visit.show_example(example)
    found = inside_of(visit)
    step = found["temperatures"].index(1)
    shares = []
    for row, token_id in enumerate(found["answer"]):
        one = found["candidates"][row]
        total = sum(math.exp(logit) for logit in one["logits"]) + math.exp(one["rest"][step])
        shares.append(math.exp(one["logits"][one["ids"].index(token_id)]) / total)
    least = shares.index(min(shares))
    pressed = visit.page.locator("button.chip[aria-pressed=true]")
    assert pressed.evaluate("one => [...one.parentElement.children].indexOf(one)") == least

    raw = np.frombuffer(base64.b64decode(found["maps"]), np.uint8)
    maps = raw.reshape(found["layers"], found["heads"], -1, len(found["tokens"]["ids"]))
    weights = ((maps / 255) ** 2).mean((0, 1))[least]
    [medium] = found["media"]
    most = weights[medium["first"] : medium["first"] + medium["count"]].max()
    said = f"{100 * most:.0f}" if most >= 0.0995 else f"{100 * most:.1f}"
    expect(visit.page.locator("#map-scale")).to_contain_text(f"here {said}\u00a0%")


def test_a_clips_pairs_of_frames_lie_apart_and_are_named(visit):
    visit.show_example(5)
    visit.look_inside()
    boxes = [one.bounding_box() for one in visit.page.locator("canvas.map").all()]
    assert len(boxes) == 3
    for left, right in itertools.pairwise(boxes):
        is_beside = right["x"] >= left["x"] + left["width"] + 5
        assert is_beside or right["y"] >= left["y"] + left["height"] + 5
    names = visit.page.locator(".maps").inner_text().split("\n")
    assert [name for name in names if name] == ["pair 1", "pair 2", "pair 3"]


def test_a_table_that_goes_on_fades_at_its_edge(visit):
    visit.show_example(2)
    visit.look_inside()
    table = visit.page.locator(".wide")
    table.evaluate("one => one.scrollLeft = 0")
    expect(table).to_have_class("wide goes-on")
    table.evaluate("one => one.scrollLeft = one.scrollWidth")
    expect(table).to_have_class("wide")


def test_what_is_struck_out_has_no_bar(visit):
    visit.show_example(2)
    visit.look_inside()
    visit.page.locator("#inside").get_by_label("Top-p").fill("0.05")
    expect(visit.page.locator(".bars .none")).to_have_count(9)
    assert visit.page.locator(".bars .bar:visible").count() == 1


def test_the_words_of_the_field_are_explained(visit):
    visit.show_example(0)
    visit.look_inside()
    visit.page.locator("#words summary").click()
    words = visit.page.locator("#words").inner_text()
    for word in ("Multimodal rotary position embedding", "vocabulary", "4, one after another"):
        assert word in words, word
    text = visit.page.locator("#inside").inner_text()
    assert "counted from 0" in text
    links = visit.page.locator(".nb a")
    assert links.count() == 6
    for link in links.all_inner_texts():
        assert "(download, " in link


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
    const numbers = (text) => {
        const full = text.startsWith("rgb") ? 1 : 255; // else "color(srgb 0.5 0.5 0.5)"
        return text.match(/[\d.]+/g).map((one) => full * one);
    };
    const isClear = (one) => /(, 0\)|transparent)$/.test(getComputedStyle(one).backgroundColor);
    const tags = "p, small, h1, h2, h3, button, td, th, code, span, label, a";
    const found = [];
    for (const one of document.querySelectorAll(tags)) {
        if (!one.offsetParent || !one.innerText.trim()) continue;
        if (one.matches(":disabled, .cut, .box *")) continue;
        let at = one;
        while (at && isClear(at)) at = at.parentElement;
        const ground = getComputedStyle(at || document.body).backgroundColor;
        if (!/^(rgb\(|color\(srgb )/.test(ground)) continue;
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
        assert own.page.locator(".asked").count() == 1  # what was forgotten isn't shown, either
        assert own.page.locator("#notice").is_hidden()
        own.context.close()
