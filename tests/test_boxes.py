"""Boxes in answers: found, compared, drawn."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwen2vl_app import boxes
from qwen2vl_app.boxes import Box, check_output, draw_boxes, find_boxes

ROOT = Path(__file__).parent.parent
ANSWER = (
    "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(100,200),(500,800)<|box_end|> and "
    "<|box_start|>(0,0),(1000,1000)<|box_end|>."
)


def drawn_pixels(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of all pixels that are not white."""
    return np.nonzero((np.asarray(image) != 255).any(-1))


def test_named_and_unnamed_boxes_are_found_in_order():
    assert find_boxes(ANSWER) == [Box(100, 200, 500, 800, "the dog"), Box(0, 0, 1000, 1000)]
    assert find_boxes("(100,200),(500,800)") == []
    assert find_boxes("<|box_start|>(1,2),(3<|box_end|>") == []


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (Box(0, 0, 10, 10), Box(0, 0, 10, 10), 1.0),
        (Box(0, 0, 10, 10), Box(5, 0, 15, 10), 1 / 3),
        (Box(0, 0, 10, 10), Box(0, 0, 5, 5), 0.25),
        (Box(0, 0, 10, 10), Box(10, 0, 20, 10), 0.0),  # they only touch
        (Box(0, 0, 10, 10), Box(20, 20, 30, 30), 0.0),
        (Box(10, 10, 0, 0), Box(0, 0, 10, 10), 0.0),  # edges in the wrong order
        (Box(0, 0, 0, 0), Box(0, 0, 0, 0), 0.0),
    ],
)
def test_overlap(one, other, overlap):
    assert one.overlap(other) == pytest.approx(overlap)
    assert other.overlap(one) == pytest.approx(overlap)


@pytest.mark.parametrize("box", [Box(200, 250, 600, 750), Box(600, 750, 200, 250)])
def test_a_box_is_drawn_where_it_says_in_whatever_order_its_edges_are(box):
    drawn = draw_boxes(Image.new("RGB", (500, 600), "white"), [box])
    rows, columns = drawn_pixels(drawn)
    assert (columns.min(), columns.max()) == (100, 300)
    assert (rows.min(), rows.max()) == (150, 450)
    assert (np.asarray(drawn)[200:400, 150:250] == 255).all()  # the inside stays


def test_the_image_itself_is_not_drawn_on():
    image = Image.new("RGB", (500, 600), "white")
    draw_boxes(image, [Box(200, 250, 600, 750, "a name")])
    assert len(drawn_pixels(image)[0]) == 0


def test_names_stay_on_the_image():
    long = Box(900, 0, 1000, 50, "a name that is far too long for here")
    low = Box(0, 990, 10, 1000, "low,\nwith a line break")
    drawn = draw_boxes(Image.new("RGB", (64, 48), "white"), [long, low])
    assert drawn.size == (512, 384)  # enlarged, so that the names can be read
    rows, _ = drawn_pixels(drawn)
    assert rows.min() == 0


@pytest.mark.parametrize(
    ("image", "out", "answer", "code", "text"),
    [
        ("shapes.png", "out.png", ANSWER, 0, "the dog, a box"),
        ("shapes.png", "out.png", "nothing here", 1, "no box"),
        ("missing.png", "out.png", ANSWER, 2, "no such image"),
        ("shapes.png", "folder/out.png", ANSWER, 2, "no folder"),
        ("shapes.png", "out", ANSWER, 2, "must end in .png"),
    ],
)
def test_the_command_draws_or_says_why_not(tmp_path, capsys, image, out, answer, code, text):
    arguments = [str(ROOT / "examples" / image), str(tmp_path / out), answer]
    assert boxes.main(arguments) == code
    captured = capsys.readouterr()
    assert text in captured.out + captured.err
    assert len(captured.out.splitlines()) == (code == 0)
    assert len(captured.err.splitlines()) == (code != 0)
    assert (tmp_path / "out.png").exists() == (code == 0)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("out.txt", "must end in .png"),
        ("out.psd", "must end in .png"),  # Pillow reads these, but writes none
        ("nowhere/out.png", "there is no folder '.*nowhere'"),
        ("folder.png", "it is a folder"),
        ("image.png", "would overwrite the image"),
        ("../test/image.png", "would overwrite the image"),  # by another name
    ],
)
def test_what_cannot_be_written_is_refused_early(tmp_path, out, message):
    folder = tmp_path / "test"
    (folder / "folder.png").mkdir(parents=True)
    image = folder / "image.png"
    image.write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        check_output(str(folder / out), str(image))
    check_output(str(folder / "out.png"), str(image))
    assert sorted(path.name for path in folder.iterdir()) == ["folder.png", "image.png"]


def test_the_example_in_the_docstring_runs(tmp_path):
    command = re.search(r"\n\n((?:    .*\n)+)\n", boxes.__doc__)[1]
    command = " ".join(command.split())  # on one line
    assert command.count("python ") == 2 and command.endswith(" found.png")
    command = command.replace("python ", f'"{sys.executable}" ')
    command = command.removesuffix("found.png") + f'"{tmp_path / "found.png"}"'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    wanted = re.search(r"Find (.*?)\.", command)[1]
    assert done.stdout == f"{tmp_path / 'found.png'}: {wanted}\n"

    # A frame and a label were drawn, the rest of the image stayed.
    original = Image.open(ROOT / "examples" / "many.png").convert("RGB")
    drawn = Image.open(tmp_path / "found.png")
    original = original.resize(drawn.size, Image.Resampling.NEAREST)
    changed = (np.asarray(drawn) != np.asarray(original)).any(-1)
    assert 0 < changed.mean() < 0.2
