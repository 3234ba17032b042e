"""The figure, the reader's own image and folder, the sliders in a real browser, and the slides.

The browser is chromium, driven by Playwright; both are optional (`pip install playwright`, and
chromium from the system). No test downloads a browser.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import nbformat
import numpy as np
import pytest
from PIL import Image

from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from tests.test_notebooks import defined_in

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
NUMBERS = [f"{i:02d}" for i in range(11)]
CODE = ("qwen2vl.py", "processor.py", "qwen2vl_extras/media.py", "qwen2vl_extras/streaming.py")


@pytest.fixture(autouse=True)
def beside_the_notebooks(monkeypatch):
    """Notebooks import what lies beside them by its own name."""
    monkeypatch.syspath_prepend(str(NOTEBOOKS))


# ------------------------------------------------------------------------------------ the figure


def test_every_box_of_the_figure_is_named_after_code_that_exists():
    import architecture

    names = set()
    for file in CODE:
        names |= {name.rpartition(".")[2] for name in defined_in(ROOT / file)}
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="cpu")
    names |= {path.rpartition(".")[2] for path, _ in model.named_modules()}
    for box in architecture.BOXES:
        assert box.name in names, box.name
    for frame in architecture.FRAMES:
        assert frame.title.partition(",")[0] in names, frame.title


@pytest.mark.parametrize("number", NUMBERS)
def test_the_figure_marks_the_readers_place_in_black(number):
    import architecture

    tree = ElementTree.fromstring(architecture.draw(number))
    groups = [g for g in tree.iter("{http://www.w3.org/2000/svg}g")]
    here = [g for g in groups if g.get("class") == "here"]
    assert len(groups) == len(architecture.BOXES)
    # Notebooks 00 and 08 are about the whole: their place is said below the figure.
    assert bool(here) != (number in ("00", "08")), number
    assert number in "".join(tree.itertext())
    # Readable in black and white: no colours, and white letters on black only.
    paints = set(re.findall(r'(?:fill|stroke)="([^"]+)"', architecture.draw(number)))
    assert paints <= {"black", "white", "none", "#f2f2f2"}
    for group in here:
        rect, *texts = list(group)
        assert rect.get("fill") == "black"
        assert all(text.get("fill") == "white" for text in texts)


def test_the_figure_without_its_names_tells_none_of_them():
    import architecture

    with_names, without = architecture.draw(), architecture.draw(names=False)
    for box in architecture.BOXES:
        assert f">{box.name}<" in with_names
        assert f">{box.name}<" not in without
    assert without.count(">?<") == len(architecture.BOXES)


def test_boxes_of_the_figure_do_not_cover_each_other_and_hold_their_words():
    import architecture

    boxes = architecture.BOXES
    for i, one in enumerate(boxes):
        assert len(one.name) * 8.2 < one.width, one.name  # bold, 13 px
        assert len(one.shape) * 6.3 < one.width, one.shape
        for other in boxes[:i]:
            apart_x = abs(one.x - other.x) >= (one.width + other.width) / 2
            apart_y = abs(one.y - other.y) >= one.height
            assert apart_x or apart_y, (one.name, other.name)


# --------------------------------------------------------------- an image and a folder of one's own


def in_a_new_process(code: str, **variables: str) -> str:
    """What some lines print that run beside the notebooks."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=NOTEBOOKS,
        env=dict(os.environ, **variables),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_one_variable_puts_the_readers_photo_in_place_of_the_image(tmp_path):
    code = "import course; print(course.image().size, course.image().getpixel((3, 3)))"
    assert in_a_new_process(code).startswith("(168, 112)")
    for size in ((4032, 3024), (300, 900), (40, 40)):
        photo = tmp_path / "photo.jpg"
        Image.new("RGB", size, (200, 10, 10)).save(photo, quality=95)
        printed = in_a_new_process(code, QWEN2VL_IMAGE=str(photo))
        width, height, red, *_ = map(int, re.findall(r"\d+", printed))
        assert width % 28 == 0 and height % 28 == 0 and width * height <= 168 * 112, size
        assert red > 180
        # It is no less upright than the photo.
        assert (width > height) == (size[0] > size[1])


def test_a_folder_is_read_or_refused_by_the_name_of_the_file(tmp_path):
    import fine_tuning

    def folder(*names: str) -> Path:
        made = tmp_path / str(len(list(tmp_path.iterdir())))
        made.mkdir()
        for name in names:
            Image.new("RGB", (50, 80), "white").save(made / name)
        (made / "notes.txt").write_text("not an image")
        return made

    images = fine_tuning.read_folder(
        folder("cup-1.png", "cup-2.jpg", "a red key-1.png", "a red key-12.bmp")
    )
    assert sorted(images) == ["a red key-1", "a red key-12", "cup-1", "cup-2"]
    assert {image.size for image in images.values()} == {(fine_tuning.SIDE, fine_tuning.SIDE)}
    assert fine_tuning.thing_of("a red key-12") == "a red key"
    for names, message in (
        (("cup.png", "cup-2.png"), "cup.png"),
        (("cup-one.png", "cup-2.png"), "cup-one.png"),
        (("-1.png", "-2.png"), "-1.png"),
        (("cup-1.png", "cup-2.png", "key-1.png"), "one image of a key"),
        ((), "has no images"),
    ):
        with pytest.raises(ValueError, match=message):
            fine_tuning.read_folder(folder(*names))
    # What phones and macOS leave in folders.
    photos = folder("cup-1.png", "cup-2.png")
    (photos / "._cup-3.png").write_bytes(b"hidden")
    assert len(fine_tuning.read_folder(photos)) == 2
    (photos / "cup-3.HEIC").write_bytes(b"a photo")
    with pytest.raises(ValueError, match=r"cup-3\.HEIC: it can't be read here, save it as a JPEG"):
        fine_tuning.read_folder(photos)
    with pytest.raises(FileNotFoundError, match="no-such is no folder"):
        fine_tuning.read_folder(tmp_path / "no-such")


def test_an_image_is_put_into_a_square_whole(tmp_path):
    import fine_tuning

    wide = Image.new("RGB", (300, 100), "white")
    wide.paste("red", (100, 0, 200, 100))
    square = fine_tuning.in_a_square(wide)
    assert square.size == (fine_tuning.SIDE, fine_tuning.SIDE)
    # A red square in its middle, a third wide and a third high; the rest is white.
    pixels = np.asarray(square)
    reds = ((pixels[..., 0] > 200) & (pixels[..., 1] < 60)).sum()
    assert reds == pytest.approx((fine_tuning.SIDE / 3) ** 2, rel=0.15)
    assert square.getpixel((2, 2)) == (255, 255, 255)


def test_a_thing_is_named_in_small_letters_or_capitals():
    import fine_tuning

    answers = ["A cup.", "A Cup.", "A boat."]
    assert fine_tuning.share_right(answers, ["Cup-1", "cup-2", "CUP-3"]) == pytest.approx(2 / 3)


def test_notebook_10_runs_on_a_folder_of_ones_own(tmp_path, amount):
    """Names of unequal length, in capitals too, known words, and one whose tokens need rows."""
    if amount(0, 1) == 0:
        pytest.skip("it trains for minutes: with --full")
    from tests.test_notebooks import execute

    for name in ("Fish", "pair of glasses", "circle", "Tür"):
        for i, stored in enumerate(("boat", "cup", "key"), start=1):
            shutil.copy(NOTEBOOKS / "drawings" / f"{stored}-{i}.png", tmp_path / f"{name}-{i}.png")
    notebook = nbformat.read(NOTEBOOKS / "10_your_own_images.ipynb", as_version=4)
    execute(notebook, QWEN2VL_DRAWINGS=str(tmp_path))


def test_the_stored_drawings_are_those_that_the_script_draws(tmp_path, monkeypatch):
    import draw_examples
    import fine_tuning

    stored = fine_tuning.read_folder(NOTEBOOKS / "drawings")
    monkeypatch.setattr(draw_examples, "FOLDER", tmp_path / "again")
    draw_examples.main()
    again = fine_tuning.read_folder(tmp_path / "again")
    assert stored.keys() == again.keys()
    for name, image in stored.items():
        assert image.tobytes() == again[name].tobytes(), name
    # The model has no word for any of them.
    from tiny.drawing import FIGURES

    assert not {fine_tuning.thing_of(name) for name in stored} & FIGURES.keys()


def test_the_2b_whose_memory_is_counted_is_the_official_one(official):
    import fine_tuning

    config = json.loads((official / "config-2b.json").read_text(encoding="utf-8"))
    theirs = Qwen2VLConfig.from_dict(config)
    ours = fine_tuning.official_2b()
    for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"):
        assert getattr(ours.config, name) == getattr(theirs, name), name
    assert ours.config.vision_config == theirs.vision_config


# ------------------------------------------------------------------------------------- the browser

# Each widget, drawn from made-up numbers: what it takes, and how many sliders it has.
SETUP = """
import torch
import course
import widgets
from load import find_checkpoint
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig

torch.manual_seed(0)
image = course.image()
"""
WIDGETS = {
    "choose_max_pixels": (
        "processor = Qwen2VLProcessor.from_pretrained('tiny')\n"
        "widgets.choose_max_pixels(image, processor.image_processor)",
        1,
    ),
    "look_from_patch": (
        "weights = (3 * torch.randn(3, 2, 96, 96)).softmax(-1)\n"
        "widgets.look_from_patch(image, weights, torch.randperm(96), 8, 12)",
        4,
    ),
    "turn_by_hand": ("widgets.turn_by_hand(Qwen2VLConfig.from_pretrained('tiny'))", 3),
    "look_from_token": (
        "attentions = [(3 * torch.randn(1, 2, 30, 30)).softmax(-1) for _ in range(3)]\n"
        "on_image = torch.arange(30) < 24\n"
        "widgets.look_from_token(image, attentions, on_image, (4, 6), [26, 27, 28], list('abc'))",
        3,
    ),
    "choose_sampling": (
        "widgets.choose_sampling(torch.linspace(6, 0, 40), [f'w{i}' for i in range(12)])",
        2,
    ),
    "choose_frames": ("widgets.choose_frames()", 2),
}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """The address of a JupyterLab whose folder has a notebook for each widget."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    folder = tmp_path_factory.mktemp("lab")
    for name, (code, _) in WIDGETS.items():
        source = f"import sys\nsys.path.insert(0, {str(NOTEBOOKS)!r})\n{SETUP}\n{code}"
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        notebook.metadata["kernelspec"] = {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
        nbformat.write(notebook, folder / f"{name}.ipynb")
    port = free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *(f"--port={port}", f"--ServerApp.root_dir={folder}", "--IdentityProvider.token="),
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    variables = dict(os.environ, JUPYTER_CONFIG_DIR=str(folder / "config"), HF_HUB_OFFLINE="1")
    variables.pop("QWEN2VL_STATIC", None)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/api", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def wait_for(address: str, server: subprocess.Popen, seconds: float = 300) -> None:
    """Until something answers there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "JupyterLab has stopped"
        try:
            urlopen(address, timeout=10).close()
            return
        except (URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"nothing answers at {address}")


def hosts_asked(page) -> list[str]:
    """A list that grows by each request of a page to another machine."""
    asked: list[str] = []

    def note(request) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.hostname != "127.0.0.1":
            asked.append(request.url)

    page.on("request", note)
    return asked


def run_first_cell(page) -> None:
    """Click into the cell and run it, again while the kernel is not yet there to take it."""
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first
    for _ in range(60):
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(5000)
        if re.search(r"\[(\*|\d+)\]", prompt.inner_text()):  # it runs, or has run
            return
    raise AssertionError("the cell does not run")


@pytest.mark.parametrize("name", WIDGETS)
def test_each_slider_changes_the_picture_and_nothing_is_asked_of_the_network(name, browser, lab):
    _, num_sliders = WIDGETS[name]
    page = browser.new_page()
    page.set_default_timeout(300_000)  # a machine that is busy with other tests
    asked = hosts_asked(page)
    # In a workspace of its own: JupyterLab would open the notebooks of the last one beside it.
    page.goto(f"{lab}/lab/workspaces/{name}/tree/{name}.ipynb")
    # As a reader does: click into the cell, and run it.
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', state="attached")
    run_first_cell(page)
    handles = page.locator(".widget-slider .noUi-handle")
    picture = page.locator(".jp-OutputArea-output img").last
    picture.wait_for()
    assert handles.count() == num_sliders
    for i in range(num_sliders):
        before = picture.get_attribute("src")
        handle = handles.nth(i)
        # To one end, or if it stands there, to the other.
        at_most = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.focus()
        page.keyboard.press("Home" if at_most else "End")
        page.wait_for_function(
            "before => { const all = document.querySelectorAll('.jp-OutputArea-output img');"
            " return all.length > 0 && all[all.length - 1].src !== before }",
            arg=before,
        )
        assert picture.get_attribute("src") != before, i
    assert not asked
    page.close()


def test_a_widget_leaves_one_static_picture_where_nobody_can_move_it(tmp_path):
    code = (
        "import os; os.environ['MPLBACKEND'] = 'agg'\n"
        + SETUP
        + "import matplotlib.pyplot as plt\nplt.show = lambda: print('shown')\n"
    )
    for name, (call, _) in WIDGETS.items():
        printed = in_a_new_process(code + call, QWEN2VL_STATIC="1")
        assert printed == "shown\n", name


# -------------------------------------------------------------------------------------- the slides


# As npm behaves: without a network, in a network that lets nothing through, and when it gives
# nothing for no reason.
FAILING_NPMS = {
    "offline": ("exit 1", "npm could not fetch reveal.js@4.6.1"),
    "silent": ("exec sleep 60", "npm had no reveal.js@4.6.1 after 0.2 s"),
    "nothing": ("exit 0", "npm could not fetch reveal.js@4.6.1"),
}


def install_npm(folder: Path, monkeypatch, script: str) -> None:
    """A program called npm, the only one of that name."""
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.skipif(sys.platform == "win32", reason="the programs are shell scripts")
@pytest.mark.parametrize("kind", FAILING_NPMS)
def test_slides_that_npm_cannot_fetch_fail_in_one_line(monkeypatch, tmp_path, capsys, kind):
    import slides as program

    script, reason = FAILING_NPMS[kind]
    install_npm(tmp_path, monkeypatch, script)
    monkeypatch.setattr(program, "PATIENCE", 0.2 if kind == "silent" else 60)
    monkeypatch.setattr(sys, "argv", ["slides.py", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        program.main()
    advice = "slides need npm and a network once: make them before the room, on the stick"
    assert ended.value.code == f"error: {advice} ({reason})"
    assert capsys.readouterr().out == "fetching reveal.js@4.6.1 from npm\n"
    # What was not fetched whole isn't taken for fetched by the next try.
    assert [file.name for file in (tmp_path / "out" / "assets").iterdir()] == ["no-mermaid.js"]


def test_slides_without_npm_fail_in_one_line(monkeypatch, tmp_path):
    import slides as program

    monkeypatch.setattr(program.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["slides.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert "make them before the room, on the stick (npm is missing" in ended.value.code
    assert "\n" not in ended.value.code


@pytest.mark.skipif(sys.platform == "win32", reason="the programs are shell scripts")
def test_each_package_of_slides_is_announced_and_fetched_once(monkeypatch, tmp_path, capsys):
    import slides as program

    packed = tmp_path / "package"
    for parts in program.PACKAGES.values():
        for part in parts:
            file = packed / part if part.endswith(".js") else packed / part / "some.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(part, encoding="utf-8")
    (packed / "README").write_text("not needed", encoding="utf-8")
    # npm pack PACKAGE ... --pack-destination FOLDER: the last argument is where it goes.
    install_npm(
        tmp_path, monkeypatch, f'for last; do :; done; tar -czf "$last/x.tgz" -C {tmp_path} package'
    )
    program.fetch_assets(tmp_path / "out")
    expected = [f"fetching {package} from npm" for package in program.PACKAGES]
    assert capsys.readouterr().out.splitlines() == expected
    for package, parts in program.PACKAGES.items():
        target = tmp_path / "out" / "assets" / package.partition("@")[0]
        for part in parts:
            assert (target / part).exists(), (package, part)
        tops = {file.name for file in target.iterdir()}
        assert tops == {part.partition("/")[0] for part in parts}, package
    program.fetch_assets(tmp_path / "out")
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """A folder with the slides of three notebooks."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which fetches reveal.js")
    out = tmp_path_factory.mktemp("slides")
    command = [sys.executable, str(NOTEBOOKS / "slides.py"), str(out), "00", "04", "10"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if made.returncode and "npm" in made.stderr:
        pytest.skip("npm could not fetch reveal.js (no network?)")
    assert made.returncode == 0, made.stderr
    return out


@pytest.fixture(scope="module")
def slides_address(slides) -> Iterator[str]:
    """Where the slides are served, as notebooks/README.md says."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    command += ["--directory", str(slides)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.slow
def test_slides_open_without_a_request_that_leaves(slides, slides_address, browser):
    for file in sorted(slides.glob("[0-9]*.html")):
        page = browser.new_page()
        page.set_default_timeout(300_000)
        asked = hosts_asked(page)
        failed: list[str] = []
        page.on("requestfailed", lambda request, failed=failed: failed.append(request.url))
        page.goto(f"{slides_address}/{file.name}")
        page.wait_for_selector(".reveal.ready")
        page.wait_for_function("window.MathJax && MathJax.Hub && MathJax.Hub.queue.pending === 0")
        num_slides = page.locator(".slides > section").count()
        assert num_slides >= 5, file.name
        first = page.locator("section.present h1").first.inner_text()
        assert file.stem[:2] in first
        # The next slide comes, and another one is shown.
        page.keyboard.press("ArrowRight")
        page.wait_for_function("!document.querySelector('section.present h1')")
        assert page.locator("details").count() == 0  # no solutions
        if file.stem.startswith("10"):
            assert page.locator(".MathJax, .MathJax_Display").count() > 0
        assert not asked and not failed, file.name
        page.close()
