"""The page's server over HTTP: answers, what is inside, the common interface, limits, visitors."""
# ruff: noqa: E402, what is skipped is decided before the imports that would fail

import base64
import concurrent.futures
import gc
import io
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration, Sampling, warp_logits
from qwen2vl_app.command_line import main
from qwen2vl_app.conversation import Conversation

for module in ("starlette", "uvicorn", "qrcode", "httpx"):
    pytest.importorskip(module, reason=f"{module} of the extra web is not installed")

import httpx

from qwen2vl_app.web import addresses, limits, sessions, uploads, workers
from qwen2vl_app.web.openai_api import StopCutter
from qwen2vl_app.web.serve import join_address, open_port, print_addresses, qr_svg
from tests.helpers import page_drawings
from tests.helpers.interrupts import take_interrupts
from tests.helpers.page import Visitor, serving, wait_until
from tests.helpers.page_drawings import COLOURS, CORNERS, circle_and_star, one_shape
from tiny.drawing import FIGURES

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DRAWINGS = ROOT / "notebooks" / "drawings"
STATIC = Path(limits.__file__).parent / "static"
SHAPES = (EXAMPLES / "shapes.png").read_bytes()


@pytest.fixture(scope="module")
def served(tiny):
    """The address of a server that all tests share, and its state."""
    with serving(*tiny) as found:
        yield found


@pytest.fixture
def visitor(served):
    return Visitor(served[0])


def png(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def red_circle(size: int = 168) -> bytes:
    image = Image.new("RGB", (size, size), (250, 243, 224))
    ImageDraw.Draw(image).ellipse(
        (size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill="#d62728"
    )
    return png(image)


# ------------------------------------------------------------------------------------- questions


def test_answers_are_those_of_a_conversation_without_a_server(visitor, tiny):
    questions = ["Describe this image.", "How many objects do you see?", "Find the blue star."]
    conversation = Conversation(*tiny)
    key = visitor.upload(SHAPES).json()["id"]
    for i, question in enumerate(questions):
        content = [{"type": "image", "image": SHAPES}] if i == 0 else []
        content.append({"type": "text", "text": question})
        expected = "".join(conversation.ask(content))
        media = [key] if i == 0 else None
        assert visitor.ask(question, media) == expected, question


def test_a_drawn_red_circle_is_seen(visitor):
    answer = visitor.ask("Describe this image.", [visitor.upload(red_circle()).json()["id"]])
    assert "red" in answer and "circle" in answer


def course_page() -> str:
    """The part of the course's README about the page, its lines joined."""
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    return " ".join(text.partition("\n## The page\n")[2].partition("\n## ")[0].split())


def test_the_four_questions_of_the_course_work(tiny, amount):
    """Those of notebooks/README.md, about a red circle to the left of a blue star."""
    listed = course_page().partition("to the left of a blue star: ")[2].partition(" 4. ")[0]
    questions = re.findall("“(.+?)”", listed)
    assert len(questions) == 4
    expected = ["A red circle and a blue star.", "The red circle.", "Two."]
    expected.append("the blue star<|object_ref_end|><|box_start|>")
    rng = random.Random(0)
    wrong = []
    trials = amount(1, 40)
    for _ in range(trials):
        image = circle_and_star(rng)
        for question, wanted in zip(questions, expected, strict=True):
            content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
            answer = "".join(Conversation(*tiny).ask(content))
            if wanted not in answer:
                wrong.append((question, answer))
    assert len(wrong) <= trials // 10, wrong


@pytest.mark.parametrize("shape", CORNERS)
def test_shapes_are_answered_right_filled_or_in_outline(tiny, amount, shape):
    """What notebooks/README.md says to draw: with a button, the pen, the pen and then filled."""
    rng = random.Random(1)
    trials = amount(5, 20)
    ways = {"button": (False, True), "outline": (True, False), "filled": (True, True)}
    num_right = dict.fromkeys(ways, 0)
    for _ in range(trials):
        colour = rng.choice(list(COLOURS))
        for way, (pen, fill) in ways.items():
            image = one_shape(rng, colour, shape, pen, fill)
            names = [shape]
            if (shape, way) == ("circle", "outline"):
                names.append("ring")  # people would call it either
            answers = [f"A {colour} {name}." for name in names]
            num_right[way] += describe(tiny, image) in answers
    assert min(num_right.values()) >= 0.8 * trials


@pytest.mark.parametrize("cup", sorted(DRAWINGS.glob("cup-*.png")), ids=lambda path: path.stem)
def test_a_cup_is_taken_for_something_that_the_model_knows(tiny, cup):
    """The planned failure of notebooks/README.md."""
    answer = describe(tiny, Image.open(cup))
    assert "cup" not in answer
    assert any(known in answer for known in (*FIGURES, "word", "number")), answer


def describe(tiny, image: Image.Image) -> str:
    """What the embedded model says to an image that is asked about alone."""
    content = [{"type": "image", "image": image}]
    content.append({"type": "text", "text": "Describe this image."})
    return "".join(Conversation(*tiny).ask(content))


def test_drawings_of_the_tests_are_those_of_the_page():
    script = (STATIC / "sketch.js").read_text(encoding="utf-8")
    for colour, value in COLOURS.items():
        assert f'{colour}: "{value}"' in script
    assert f'GROUND = "{page_drawings.GROUND}"' in script
    assert f"width: {round(100 * page_drawings.PEN)} }}" in script
    width, height = page_drawings.SIZE
    pictures = (STATIC / "pictures.js").read_text(encoding="utf-8")
    assert f"DRAWING = [{width}, {height}]" in pictures


def test_the_file_reaches_the_model_as_it_was_sent(visitor, served):
    visitor.ask("Describe this image.", [visitor.upload(SHAPES).json()["id"]])
    messages = served[1].sessions.by_id[visitor.session].conversation.messages
    assert messages[0]["content"][0]["image"] == SHAPES


def test_a_clip_is_answered_about(visitor):
    clip = (EXAMPLES / "moving.mp4").read_bytes()
    facts = visitor.upload(clip, "video").json()
    events = visitor.events("Which way does the yellow circle move?", [facts["id"]])
    assert events[-1]["done"] and events[-1]["mediaTokens"] > 0


def test_the_frames_of_a_clip_are_those_that_the_model_sees(visitor):
    """Their number and pixels are those of the processor, and their times those of the clip."""
    clip = (EXAMPLES / "moving.mp4").read_bytes()
    facts = visitor.upload(clip, "video").json()
    assert [frame["time"] for frame in facts["frames"]] == [0, 0.5, 1, 1.5, 2, 2.5]
    visitor.ask("Which way does the yellow circle move?", [facts["id"]])
    [medium] = visitor.inside(1)["media"]
    assert 2 * medium["grid"][0] == len(facts["frames"])
    # Inside, the first frame of each pair is shown.
    for frame, other in zip(facts["frames"][::2], medium["frames"], strict=True):
        images = []
        for source in (frame["source"], other):
            content = base64.b64decode(source.partition(",")[2])
            images.append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int))
        assert np.abs(images[0] - images[1]).max() <= 1
    example = visitor.client.get("/api/frames/moving.mp4").json()
    assert example["frames"] == facts["frames"]
    for name in ("shapes.png", "none.mp4", "..%2f..%2fserver.py"):
        assert visitor.client.get(f"/api/frames/{name}").status_code == 404


def test_frames_of_clips_of_many_codecs_and_lengths_are_shown(visitor, amount):
    """Whatever a browser could not play: each frame is a PNG of at most 160 pixels a side."""
    rng = random.Random(23)
    for i in range(amount(10, 60)):
        codec, suffix = rng.choice([("mpeg4", "mp4"), ("libx264", "mp4"), ("libvpx-vp9", "webm"),
                                    ("mjpeg", "avi"), ("ffv1", "mkv")])  # fmt: skip
        count, rate = rng.randint(1, 40), rng.choice([1, 5, 12, 30])
        size = (rng.randrange(56, 400, 2), rng.randrange(56, 400, 2))
        content = clip_of(codec, suffix, count, rate, size)
        response = visitor.upload(content, "video")
        what = f"{i}: {codec}, {count} frames, {rate} a second, {size}"
        assert response.status_code == 200, (what, response.text)
        frames = response.json()["frames"]
        times = [frame["time"] for frame in frames]
        assert 1 <= len(frames) <= min(count, limits.MAX_CLIP_FRAMES), what
        assert times == sorted(times) and times[0] == 0 and times[-1] <= count / rate, what
        for frame in frames:
            data = base64.b64decode(frame["source"].removeprefix("data:image/png;base64,"))
            assert max(Image.open(io.BytesIO(data)).size) <= 160, what


def clip_of(codec: str, suffix: str, count: int, rate: int, size: tuple[int, int]) -> bytes:
    """A clip of grey frames that get brighter."""
    written = io.BytesIO()
    formats = {"avi": "avi", "mkv": "matroska", "webm": "webm", "mp4": "mp4"}
    with av.open(written, "w", format=formats[suffix]) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i in range(count):
            image = Image.new("RGB", size, (6 * i, 6 * i, 6 * i))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return written.getvalue()


def test_what_the_embedded_model_knows_is_said_of_no_other(tiny, monkeypatch):
    """By --model and not by the name that is shown, which is that of any folder."""
    told = {}

    def note(model, processor, name, host, port, settings, knows):
        told[name] = knows

    monkeypatch.setattr("qwen2vl_app.web.serve.serve", note)
    assert main(["--web"]) == 0
    assert "coloured shapes" in told.pop("tiny")
    folder = EXAMPLES.parent / "tiny" / "checkpoint"
    assert main(["--web", "--model", str(folder)]) == 0
    assert told == {"checkpoint": ""}


def test_the_answer_comes_in_pieces_and_its_costs_are_counted(visitor, tiny):
    events = visitor.events("Describe this image.", [visitor.upload(SHAPES).json()["id"]])
    assert sum("text" in event for event in events) > 3
    done = events[-1]
    messages = [
        {"type": "image", "image": SHAPES},
        {"type": "text", "text": "Describe this image."},
    ]
    inputs = tiny[1].apply_chat_template(
        [{"role": "user", "content": messages}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
    )
    assert done["promptTokens"] == inputs.input_ids.shape[1]
    assert done["mediaTokens"] == int((inputs.input_ids == tiny[0].config.image_token_id).sum())
    assert done["ended"] is True


def test_a_retry_answers_the_same_conversation_again(visitor, served):
    visitor.ask("Describe this image.", [visitor.upload(SHAPES).json()["id"]])
    first = visitor.ask("What colour is the star?")
    again = visitor.ask("What colour is the star?", isRetry=True)
    assert again == first
    messages = served[1].sessions.by_id[visitor.session].conversation.messages
    assert len(messages) == 4


def test_a_retry_leaves_the_conversation_as_if_it_was_the_first_answer(served, amount):
    """Pictures and clips, turns before, how often, and other settings than at first."""
    rng = random.Random(11)
    clip = (EXAMPLES / "moving.mp4").read_bytes()
    files = [("image", SHAPES), ("image", red_circle()), ("image", red_circle(224))]
    files.append(("video", clip))
    questions = ["Describe this image.", "What colour is the star?", "How many objects do you see?"]
    for i in range(amount(12, 120)):
        shown = rng.sample(files, rng.randint(0, 3))
        asked = questions[: rng.randint(1, 3)]
        settings = rng.choice([{}, {"maxPixels": 12544}, {"maxNewTokens": 4}])
        what = f"{i}: {[kind for kind, _ in shown]}, {len(asked)} turns, {settings}"
        # One visitor asks once with these settings, the other one again with them.
        visitors = [Visitor(served[0]), Visitor(served[0])]
        for number, one in enumerate(visitors):
            keys = [one.upload(content, kind).json()["id"] for kind, content in shown]
            for turn, question in enumerate(asked):
                is_last = turn == len(asked) - 1
                own = settings if is_last and number == 0 else {}
                one.events(question, keys if turn == 0 else None, **own)
        for _ in range(rng.randint(1, 2)):
            visitors[1].events(asked[-1], isRetry=True, **settings)
        # What they are told next is the same, and so are their conversations.
        ends = [one.events("Describe this image.") for one in visitors]
        for events in ends:
            events[:] = [event for event in events if "place" not in event]  # in the queue
        assert ends[0] == ends[1], what
        kept = [served[1].sessions.by_id[one.session].conversation for one in visitors]
        assert kept[0].messages == kept[1].messages, what


def test_a_retry_may_name_other_pictures(visitor):
    keys = [visitor.upload(red_circle(size)).json()["id"] for size in (112, 224)]
    counts = [visitor.events("Describe this image.", [keys[0]])[-1]["mediaTokens"]]
    for media in (None, [keys[1]], None):
        fields = {} if media is None else {"media": media}
        done = visitor.events("Describe this image.", isRetry=True, **fields)[-1]
        counts.append(done["mediaTokens"])
    assert counts == [16, 16, 64, 64]


def test_fewer_pixels_cost_fewer_tokens(visitor):
    key = visitor.upload(red_circle(224)).json()["id"]
    counts = []
    for max_pixels in (56 * 56, 112 * 112, 224 * 224):
        events = visitor.events("Describe this image.", [key], maxPixels=max_pixels)
        counts.append(events[-1]["mediaTokens"])
    assert counts == [4, 16, 64]
    answer = visitor.client.get("/api/cost?width=224&height=224&maxPixels=12544").json()
    assert answer == {"width": 112, "height": 112, "patches": 64, "tokens": 16}


def test_the_longest_answer_is_obeyed(visitor):
    key = visitor.upload(SHAPES).json()["id"]
    done = visitor.events("Describe this image.", [key], maxNewTokens=2)[-1]
    assert done["answerTokens"] == 2 and done["ended"] is False


def test_stop_ends_an_answer_and_keeps_what_was_said(served, visitor, monkeypatch):
    """The answer is made long by a temperature at which its end seldom comes first."""
    question = {"session": visitor.session, "text": "Describe this image."}
    question |= {"media": [visitor.upload(SHAPES).json()["id"]], "isNew": True}
    question |= {"temperature": 2, "seed": 1, "maxNewTokens": 500}
    monkeypatch.setattr(served[1], "settings", {"top_k": 0})
    events = []
    with visitor.client.stream("POST", "/api/ask", json=question) as response:
        for line in response.iter_lines():
            events.append(json.loads(line))
            if sum("text" in event for event in events) == 2:
                httpx.post(f"{served[0]}/api/stop", json={"session": visitor.session})
    said = "".join(event.get("text", "") for event in events)
    assert events[-1]["done"]
    conversation = served[1].sessions.by_id[visitor.session].conversation
    assert conversation.messages[-1]["content"] == said


# ------------------------------------------------------------------------------------ look inside


def test_what_is_inside_equals_one_plain_forward_pass_with_eager_attention(visitor, tiny):
    """Attention, logit lens and candidates, for the second answer of a conversation."""
    _, processor = tiny
    visitor.ask("Describe this image.", [visitor.upload(SHAPES).json()["id"]])
    visitor.ask("Find the blue star.")
    found = visitor.inside(3)

    ids = torch.tensor([found["tokens"]["ids"]])
    inputs = processor.image_processor([{"type": "image", "image": SHAPES}])
    eager = Qwen2VLForConditionalGeneration.from_pretrained("tiny", attn_implementation="eager")
    with torch.no_grad():
        out = eager(
            ids,
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            output_attentions=True,
            output_hidden_states=True,
        )
    first = found["promptLength"] - 1
    num_rows = len(found["answer"]) + 1

    # One byte is 255 times the root: half a step of it is the error.
    raw = np.frombuffer(base64.b64decode(found["maps"]), np.uint8)
    maps = raw.reshape(found["layers"], found["heads"], num_rows, ids.shape[1])
    expected = torch.cat(out.attentions)[:, :, first:].sqrt().numpy()
    assert np.abs(maps / 255 - expected).max() <= 0.5 / 255 + 1e-4

    positions, _ = eager.get_rope_index(ids, inputs["image_grid_thw"])
    assert found["tokens"]["positions"] == positions[:, 0].T.tolist()

    for row in range(num_rows):
        logits = out.logits[0, first + row]
        assert found["candidates"][row]["ids"][0] == int(logits.argmax())
        for layer in range(found["layers"] - 1):
            state = eager.model.norm(out.hidden_states[layer + 1][0, first + row])
            share, best = eager.lm_head(state).detach().softmax(-1).max(-1)
            text, probability = found["lens"][row][layer]
            assert text == processor.decode([int(best)], skip_special_tokens=False)
            assert probability == pytest.approx(float(share), abs=2e-4)


def test_probabilities_at_every_temperature_are_those_of_sampling(visitor):
    visitor.ask("Describe this image.", [visitor.upload(SHAPES).json()["id"]])
    found = visitor.inside(1)
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny")
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    inputs = processor.image_processor([{"type": "image", "image": SHAPES}])
    with torch.no_grad():
        out = model(torch.tensor([found["tokens"]["ids"]]), **inputs)
    for row, one in enumerate(found["candidates"]):
        logits = out.logits[:, found["promptLength"] - 1 + row]
        for step, temperature in enumerate(found["temperatures"]):
            sampling = Sampling(do_sample=True, temperature=temperature)
            expected = warp_logits(logits, torch.empty(1, 0), sampling).softmax(-1)[0]
            powers = [math.exp(logit / temperature) for logit in one["logits"]]
            total = sum(powers) + math.exp(one["rest"][step])
            for token_id, power in zip(one["ids"], powers, strict=True):
                assert power / total == pytest.approx(float(expected[token_id]), abs=2e-3)


def test_the_frames_shown_are_the_image_as_it_was_resized(visitor):
    visitor.ask("Describe this image.", [visitor.upload(SHAPES).json()["id"]])
    [medium] = visitor.inside(1)["media"]
    content = base64.b64decode(medium["frames"][0].partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(content)))
    expected = np.asarray(
        Image.open(io.BytesIO(SHAPES)).convert("RGB")
    )  # is not resized: 168 x 112
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).max() <= 1


def test_looking_inside_changes_no_later_answer(visitor, tiny):
    key = visitor.upload(SHAPES).json()["id"]
    visitor.ask("Describe this image.", [key])
    visitor.inside(1)
    conversation = Conversation(*tiny)
    image = {"type": "image", "image": SHAPES}
    "".join(conversation.ask([image, {"type": "text", "text": "Describe this image."}]))
    expected = "".join(conversation.ask("Find the blue star."))
    assert visitor.ask("Find the blue star.") == expected


def test_maps_of_a_larger_model_stay_below_the_limit(visitor, monkeypatch):
    from qwen2vl_app.web import inside

    visitor.ask("Describe this image.", [visitor.upload(SHAPES).json()["id"]])
    for limit in (100_000, 2_000, 300):
        monkeypatch.setattr(inside, "MAX_MAP_BYTES", limit)
        found = visitor.inside(1)
        size = len(base64.b64decode(found["maps"]))
        assert size <= limit or size == found["layers"] * len(found["tokens"]["ids"])
        assert found["heads"] in (1, found["allHeads"])


# --------------------------------------------------------------------------------------- visitors


def test_thirty_visitors_at_once_get_their_own_answers(served, amount):
    """Each draws in a colour of their own and asks twice; nobody is lost or mixed up."""
    colours = {"red": "#d62728", "green": "#22963c", "blue": "#235ad2", "black": "#161616"}

    def visit(number: int) -> tuple[str, str]:
        colour = list(colours)[number % len(colours)]
        image = Image.new("RGB", (112, 112), (255, 255, 255))
        ImageDraw.Draw(image).rectangle((30, 30, 82, 82), fill=colours[colour])
        one = Visitor(served[0])
        key = one.upload(png(image)).json()["id"]
        one.ask("Describe this image.", [key])
        return colour, one.ask("What colour is the square?")

    count = amount(30, 120)
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(visit, range(count)))
    assert len(answers) == count
    for colour in colours:
        said = {answer for own, answer in answers if own == colour}
        assert len(said) == 1, (colour, said)
    assert len({answer for _, answer in answers}) == len(colours), set(answers)


def test_places_in_the_queue_are_told(served):
    """While the threads are busy those who come later learn how many are before them."""
    visitors = [Visitor(served[0]) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda one: one.events("Describe this image.", []), visitors))
    places = [event["place"] for events in runs for event in events if "place" in event]
    assert all(isinstance(place, int) for place in places)
    assert max(places) >= 1
    assert all(events[-1]["done"] for events in runs)


def test_who_was_away_longest_is_forgotten_first(tiny, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 3)
    kept = sessions.Sessions(*tiny)
    all_of_them = [kept.new() for _ in range(3)]
    kept.find(all_of_them[0].id)
    newest = kept.new()
    assert list(kept.by_id) == [all_of_them[0].id, all_of_them[2].id, newest.id]
    with pytest.raises(limits.Refused, match="begins anew"):
        kept.find(all_of_them[1].id)


def test_memory_of_all_visitors_is_bounded(tiny, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_TOTAL_BYTES", 3000)
    kept = sessions.Sessions(*tiny)
    for _ in range(10):
        kept.new().add(uploads.Upload("image", bytes(1000), 1, 1))
    assert sum(session.count_bytes() for session in kept.by_id.values()) <= 4000


def test_the_memory_of_a_forgotten_visitor_is_free_at_once(served):
    """No circle of references holds it: Python would look for those much too seldom."""
    _, page_server = served
    visitors = [Visitor(served[0]) for _ in range(3)]
    gc.disable()
    try:
        found = []
        for visitor in visitors:
            visitor.ask("Describe this image.", [visitor.upload(SHAPES).json()["id"]])
            visitor.inside(1)
            session = page_server.sessions.by_id.pop(visitor.session)
            found += [weakref.ref(session), weakref.ref(session.conversation)]
            del session
            # The worker and the server's loop have let it go a moment later.
            wait_until(lambda: all(reference() is None for reference in found), 10)  # noqa: B023
    finally:
        gc.enable()


def test_a_client_that_stalls_or_hangs_up_holds_no_place(served):
    """Sockets that ask and then read nothing, or close: all places are free again soon after."""
    address, page_server = served
    port = int(address.rpartition(":")[2])
    stalled = []
    for i in range(10):
        one = Visitor(address)
        body = json.dumps({"session": one.session, "text": "Describe this image.", "isNew": True})
        head = f"POST /api/ask HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall((head + body).encode())
        if i % 2:
            connection.close()
        else:
            stalled.append(connection)
    assert Visitor(address).ask("Describe this image.", [])
    wait_until(lambda: not page_server.workers.running and not page_server.workers.waiting)
    for connection in stalled:
        connection.close()


# ----------------------------------------------------------------------------- bad and hostile


def bad_upload(rng: random.Random) -> tuple[str, str, bytes]:
    """A name, a kind and bytes that are no image or clip, or a damaged one."""
    clip = (EXAMPLES / "moving.mp4").read_bytes()
    choices = {
        "nothing": ("image", b""),
        "noise": ("image", rng.randbytes(rng.randint(1, 5000))),
        "noise as a clip": ("video", rng.randbytes(rng.randint(1, 5000))),
        "half an image": ("image", SHAPES[: rng.randint(8, len(SHAPES) // 2)]),
        "half a clip": ("video", clip[: rng.randint(8, len(clip) // 3)]),
        "a clip as an image": ("image", clip),
        "html": ("image", b"<html><body>" + rng.randbytes(20)),
        "svg": ("image", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
        "postscript": ("image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "a playlist": ("video", b"#EXTM3U\n#EXTINF:1,\nhttp://192.0.2.1/a.ts\n#EXT-X-ENDLIST\n"),
        "a list of files": ("video", b"ffconcat version 1.0\nfile '/etc/passwd'\n"),
        "too many pixels": ("image", huge_png(rng.randint(20_000, 60_000))),
        "too thin": ("image", png(Image.new("RGB", (rng.randint(202, 300), 1)))),
        "another kind": (rng.choice(["", "text", "image/png", "../x"]), SHAPES),
    }
    name = rng.choice(list(choices))
    kind, content = choices[name]
    return name, kind, content


def huge_png(side: int) -> bytes:
    """A small file that says it has side x side pixels."""
    header = side.to_bytes(4, "big") * 2
    small = png(Image.new("1", (8, 8)))
    return small[:16] + header + small[24:]


def test_bad_uploads_are_refused_in_one_line_and_harm_nobody(served, visitor, amount):
    rng = random.Random(19)
    good = visitor.upload(SHAPES).json()["id"]
    expected = visitor.ask("Describe this image.", [good])
    for i in range(amount(100, 400)):
        name, kind, content = bad_upload(rng)
        response = visitor.upload(content, kind)
        what = f"upload {i}: {name}"
        assert response.status_code in (400, 413), f"{what}: {response.status_code} {response.text}"
        error = response.json()["error"]
        assert error and "\n" not in error and len(error) < 500, what
        assert "Traceback" not in error, what
    assert visitor.ask("Describe this image.", [good]) == expected


@pytest.mark.parametrize("path", ["/api/ask", "/api/inside", "/api/stop", "/v1/chat/completions"])
def test_json_of_other_types_is_refused(served, visitor, path, amount):
    """Every field of the right request with values of wrong types and ranges."""
    rng = random.Random(path)
    right = {"session": visitor.session, "text": "a", "media": [], "turn": 1, "isNew": True}
    right |= {"maxPixels": 3136, "temperature": 0.5, "topP": 0.9, "maxNewTokens": 5, "seed": 1}
    if path.startswith("/v1"):
        right = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "stream": False}
        right |= {"temperature": 0.5, "max_tokens": 5, "seed": 1, "stop": ["x"], "top_p": 0.5}
    wrong = [True, -1, 1e308, 10**30, "x" * 10_000, [], [[]], {}, {"a": 1}, [None], ["../x"], "NaN"]
    for i in range(amount(60, 600)):
        request = dict(right)
        field = rng.choice(list(request))
        request[field] = rng.choice(wrong)
        response = visitor.client.post(path, json=request)
        what = f"request {i}: {field} = {str(request[field])[:40]}: {response.status_code}"
        assert response.status_code in (200, 400, 404, 409, 410, 413), what
        if response.status_code != 200:
            error = response.json()["error"]
            message = error["message"] if isinstance(error, dict) else error
            assert message and "\n" not in message and len(message) < 500, what
    assert visitor.ask("Describe this image.", [])


def test_what_is_no_json_or_too_long_is_refused(visitor):
    for content, status in (
        (b"", 400),
        (b"[1]", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b" " * (limits.MAX_JSON_BYTES + 1), 413),
    ):
        response = visitor.client.post("/api/ask", content=content)
        assert response.status_code == status, content[:20]


def test_a_body_without_a_stated_length_is_cut_off_at_the_limit(visitor):
    def chunks():
        for _ in range(limits.MAX_IMAGE_BYTES // 2**20 + 2):
            yield bytes(2**20)

    query = {"session": visitor.session, "kind": "image"}
    response = visitor.client.post("/api/media", params=query, content=chunks())
    assert response.status_code == 413


def test_pages_of_other_sites_are_refused(served):
    for origin in ("http://evil.example", "null", "https://127.0.0.1.evil.example"):
        response = httpx.post(f"{served[0]}/api/hello", headers={"origin": origin})
        assert response.status_code == 403, origin
    own = httpx.post(f"{served[0]}/api/hello", headers={"origin": served[0]})
    assert own.status_code == 200


def test_no_file_outside_the_page_is_served(served):
    port = int(served[0].rpartition(":")[2])
    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/notebooks/../README.md",
                 "/notebooks/%2e%2e%2fREADME.md", "/static//etc/passwd"):  # fmt: skip
        # By hand, since clients tidy up such paths.
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
            )
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.split()[1] in (b"404", b"405"), path


def test_the_page_names_no_other_site(served):
    """In none of its files there is an address of elsewhere but that of the SVG standard."""
    page = httpx.get(served[0])
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in STATIC.rglob("*.*"):
        if path.suffix in (".js", ".css", ".html", ".svg"):
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "://" not in text, path.name
            assert httpx.get(f"{served[0]}/static/{path.relative_to(STATIC)}").status_code == 200


# ------------------------------------------------------------------------- the common interface


def image_uri(content: bytes = SHAPES) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def image_messages(text: str, url: str | None = None) -> list[dict]:
    image = {"type": "image_url", "image_url": {"url": url or image_uri()}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


@pytest.fixture
def client(served):
    openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0)


def test_the_openai_client_gets_the_answers_of_a_conversation(client, tiny):
    expected = "".join(
        Conversation(*tiny).ask(
            [{"type": "image", "image": SHAPES}, {"type": "text", "text": "Describe this image."}]
        )
    )
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    messages = image_messages("Describe this image.")
    whole = client.chat.completions.create(model="tiny", messages=messages)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "stop"
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens

    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected and sum(map(bool, pieces)) > 3
    assert chunks[-1].usage == usage
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_the_openai_client_asks_on_with_text_alone(client, tiny):
    messages = image_messages("Describe this image.")
    answer = client.chat.completions.create(model="tiny", messages=messages)
    messages += [
        {"role": "assistant", "content": answer.choices[0].message.content},
        {"role": "user", "content": "What colour is the star?"},
    ]
    second = client.chat.completions.create(model="tiny", messages=messages)
    assert "lue" in second.choices[0].message.content
    alone = client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Hello"},
        ],
        max_tokens=3,
    )
    assert alone.usage.completion_tokens <= 3


def test_settings_of_the_openai_client_act(client):
    messages = image_messages("Describe this image.")
    short = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=2)
    assert short.usage.completion_tokens == 2 and short.choices[0].finish_reason == "length"
    cut = client.chat.completions.create(model="tiny", messages=messages, stop=[" and"])
    assert cut.choices[0].message.content == "A red circle"
    drawn = []
    for seed in (1, 1, 2, 3, 4, 5):
        one = client.chat.completions.create(
            model="tiny", messages=messages, temperature=2, top_p=1, seed=seed, max_tokens=20
        )
        drawn.append(one.choices[0].message.content)
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


def test_errors_reach_the_openai_client_as_its_own(client):
    import openai

    messages = image_messages("Describe this image.")
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="only 'tiny'") as caught:
        create(model="gpt-4o", messages=messages)
    assert caught.value.code == "model_not_found"
    too_long = [{"role": "user", "content": "word " * 5000}]
    for is_streamed in (False, True):
        with pytest.raises(openai.BadRequestError, match="4095") as caught:
            create(model="tiny", messages=too_long, stream=is_streamed)
        assert caught.value.code == "context_length_exceeded"
    for url in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "/etc/passwd", "ftp://x/y"):
        with pytest.raises(openai.BadRequestError, match="no address is fetched"):
            create(model="tiny", messages=image_messages("a", url))
    with pytest.raises(openai.BadRequestError, match="can't be read as an image"):
        create(model="tiny", messages=image_messages("a", image_uri(b"no image")))
    for option in ({"n": 2}, {"frequency_penalty": 1.0}, {"logprobs": True}, {"tools": [{}]}):
        with pytest.raises(openai.BadRequestError, match=next(iter(option))):
            create(model="tiny", messages=messages, extra_body=option)
    with pytest.raises(openai.BadRequestError, match="did you mean 'temperature'"):
        create(model="tiny", messages=messages, extra_body={"temperatur": 1})
    create(model="tiny", messages=messages, n=1, frequency_penalty=0, user="a pupil", max_tokens=2)


def test_a_stop_is_found_however_the_text_is_cut():
    rng = random.Random(3)
    for i in range(300):
        text = "".join(rng.choices("abc", k=rng.randint(0, 20)))
        stops = ["".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        ends = [text.index(stop) for stop in stops if stop in text]
        cutter = StopCutter(stops)
        passed = ""
        rest = text
        while rest and not cutter.is_stopped:
            size = rng.randint(1, 4)
            passed += cutter.push(rest[:size])
            rest = rest[size:]
        passed += cutter.finish()
        # A stop that ends sooner may come before one that begins sooner, but only in a later piece.
        whole = {text[:end] for end in ends} or {text}
        assert passed in whole, f"{i}: {text} {stops}"


# --------------------------------------------------------------------------------- command line


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "qwen2vl_app.web.serve", None)
    assert main(["--web"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert 'pip install -e ".[web]"' in line


@pytest.mark.parametrize(
    "options",
    [
        ["--chat"],
        ["--image", "a.png"],
        ["--json"],
        ["--trace"],
        ["--fps", "1"],
        ["--prompt", "a"],
        ["--system", "a"],
        ["--port", "70000"],
    ],
)
def test_options_that_would_be_ignored_beside_web_are_refused(options, capsys):
    assert main(["--web", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert options[0] in line


def test_batch_and_the_page_exclude_each_other(capsys):
    assert main(["--web", "--batch", "questions.jsonl"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--web" in line and "--batch" in line


def test_a_port_that_is_taken_is_named_with_the_next_free_one(capsys):
    with open_port("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["--web", "--port", str(port)]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"--port {port}: " in said
        advised = int(said.rpartition("; try --port ")[2])
        assert advised > port
        open_port("127.0.0.1", advised).close()


def test_the_next_free_port_passes_over_those_that_are_taken():
    with open_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        found = addresses.next_free_port("127.0.0.1", port)
        with open_port("127.0.0.1", found):
            assert addresses.next_free_port("127.0.0.1", port) > found
    assert addresses.next_free_port("127.0.0.1", 65535) is None


def test_a_host_that_is_no_machine_of_ours_is_advised_no_other_port():
    with pytest.raises(OSError, match=r"^cannot serve at --host 192\.0\.2\.99 --port 8000: ") as e:
        open_port("192.0.2.99", 8000)
    assert "try --port" not in str(e.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_the_command_outlives_clients_that_hang_up_and_ctrl_c_ends_it():
    """The real command in a process of its own, whose signals are those of the command line."""
    command = [sys.executable, str(EXAMPLES.parent / "qwen2vl.py"), "--web", "--port", "0"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=take_interrupts
    )
    try:
        found = None
        while found is None:
            line = process.stderr.readline()
            assert line, "it ended before it served"
            found = re.search(r"the page: (http://127\.0\.0\.1:(\d+))/", line)
        address, port = found[1], int(found[2])
        for _ in range(30):
            # What it writes first is refused by the other side, and the next write fails.
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert Visitor(address).ask("Describe this image.", [])
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in rest and "Error" not in rest, rest
    finally:
        process.kill()
        process.wait()


def test_only_this_machine_is_served_unless_asked():
    assert join_address("127.0.0.1", 8000) is None
    assert join_address("localhost", 8000) is None
    assert join_address("::1", 8000) is None
    assert join_address("192.0.2.7", 8000) == "http://192.0.2.7:8000/"
    assert join_address("2001:db8::7", 8000) == "http://[2001:db8::7]:8000/"
    assert "<svg" in qr_svg("http://192.0.2.7:8000/")


IN_A_ROOM = """
from qwen2vl_app.web.addresses import address_towards_the_internet, own_address
print(address_towards_the_internet(), own_address())
"""


@pytest.fixture
def room() -> Iterator[str]:
    """A network namespace: a machine with no interface but its loopback, and no way out."""
    name = f"room-{os.getpid()}"
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed, which makes rooms without a network")
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no network namespace can be made here (not root?)")
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.parametrize("address", ["192.168.43.1", "10.42.0.1", "172.20.10.2"])
def test_an_address_is_found_without_a_gateway(room, address):
    """As on a hotspot of one's own, or behind a router without internet."""

    def inside(*command: str) -> str:
        arguments = ["ip", "netns", "exec", room, *command]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode and command[0] == "ip":
            pytest.skip(f"no interface can be made here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    ask = (sys.executable, "-c", IN_A_ROOM)
    assert inside(*ask) == "None None"
    inside("ip", "link", "set", "lo", "up")
    assert inside(*ask) == "None None"
    inside("ip", "link", "add", "wifi", "type", "veth", "peer", "name", "phone")
    inside("ip", "addr", "add", f"{address}/24", "dev", "wifi")
    assert inside(*ask) == "None None"  # not connected
    inside("ip", "link", "set", "phone", "up")
    inside("ip", "link", "set", "wifi", "up")
    assert inside(*ask) == f"None {address}"


def test_of_all_addresses_the_first_that_others_can_reach_is_taken(monkeypatch, amount):
    """In any order, and some from the interfaces, some from the machine's name."""
    useless = ["127.0.0.1", "127.0.1.1", "169.254.7.9", "0.0.0.0"]
    useful = ["192.168.43.1", "10.0.0.7", "172.20.10.2", "100.64.3.4"]
    monkeypatch.setattr(addresses, "address_towards_the_internet", lambda: None)
    rng = random.Random(0)
    for _ in range(amount(50, 2000)):
        found = rng.sample(useless + useful, rng.randrange(9))
        cut = rng.randint(0, len(found))
        monkeypatch.setattr(addresses, "interface_addresses", lambda found=found[:cut]: found)
        monkeypatch.setattr(addresses, "named_addresses", lambda found=found[cut:]: found)
        reachable = [address for address in found if address in useful]
        expected = reachable[0] if reachable else None
        assert addresses.own_address() == expected, found


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_an_address_one_line_says_what_to_do(monkeypatch, capsys, host):
    monkeypatch.setattr("qwen2vl_app.web.serve.own_address", lambda: None)
    print_addresses(host, 8000, join_address(host, 8000))
    page, advice = capsys.readouterr().err.splitlines()
    assert "http://127.0.0.1:8000/" in page
    assert "hotspot" in advice and "--host YOUR-ADDRESS" in advice


def test_who_serves_this_machine_alone_is_told_of_no_missing_address(capsys):
    for host in ("127.0.0.1", "localhost", "::1"):
        print_addresses(host, 8000, join_address(host, 8000))
        assert len(capsys.readouterr().err.splitlines()) == 1, host


def test_a_full_queue_is_said(tiny, monkeypatch):
    monkeypatch.setattr(workers, "MAX_WAITING", 2)
    line = workers.Workers(1, 1)  # its threads are not started: nothing is taken from it
    jobs = [line.submit(lambda job: None) for _ in range(2)]
    assert [job.place for job in jobs] == [0, 1]
    with pytest.raises(limits.Refused, match="try again") as caught:
        line.submit(lambda job: None)
    assert caught.value.status == 503
