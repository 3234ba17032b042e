"""Boxes in answers: found, compared, drawn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxes import Box, draw_boxes, find_boxes

ROOT = Path(__file__).parent.parent
ANSWER = (
    "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(100,200),(500,800)<|box_end|> and "
    "<|box_start|>(0,0),(1000,1000)<|box_end|>."
)


def test_named_and_unnamed_boxes_are_found_in_order():
    assert find_boxes(ANSWER) == [Box(100, 200, 500, 800, "the dog"), Box(0, 0, 1000, 1000)]
    assert find_boxes("(100,200),(500,800)") == find_boxes("<|box_start|>(1,2),(3<|box_end|>") == []


@pytest.mark.parametrize(
    "one, other, overlap",
    [
        (Box(0, 0, 10, 10), Box(0, 0, 10, 10), 1.0),
        (Box(0, 0, 10, 10), Box(5, 0, 15, 10), 1 / 3),
        (Box(0, 0, 10, 10), Box(0, 0, 5, 5), 0.25),
        (Box(0, 0, 10, 10), Box(10, 0, 20, 10), 0.0),  # they only touch
        (Box(0, 0, 10, 10), Box(20, 20, 30, 30), 0.0),
        (Box(10, 10, 0, 0), Box(0, 0, 10, 10), 0.0),  # edges the wrong way round
        (Box(0, 0, 0, 0), Box(0, 0, 0, 0), 0.0),
    ],
)
def test_overlap(one, other, overlap):
    assert one.overlap(other) == pytest.approx(overlap) == pytest.approx(other.overlap(one))


def test_a_box_is_drawn_where_it_says():
    drawn = np.asarray(draw_boxes(Image.new("RGB", (500, 600), "white"), [Box(200, 250, 600, 750)]))
    rows, columns = np.nonzero((drawn != 255).any(-1))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (100, 300, 150, 450)
    assert (drawn[200:400, 150:250] == 255).all()  # the inside stays


def test_names_stay_on_the_picture():
    boxes = [Box(900, 0, 1000, 50, "a name that is far too long for here"), Box(0, 990, 10, 1000, "low")]
    drawn = draw_boxes(Image.new("RGB", (64, 48), "white"), boxes)
    assert drawn.size == (512, 384)
    rows, _ = np.nonzero((np.asarray(drawn) != 255).any(-1))
    assert rows.min() == 0


@pytest.mark.parametrize(
    "arguments, code, text",
    [
        (["shapes.png", "out.png", ANSWER], 0, "the dog, a box"),
        (["shapes.png", "out.png", "nothing here"], 1, "no box"),
        (["missing.png", "out.png", ANSWER], 2, "missing.png"),
        (["shapes.png", "folder/out.png", ANSWER], 2, "folder/out.png"),
    ],
)
def test_command_line(tmp_path, arguments, code, text):
    picture, out, answer = arguments
    command = [sys.executable, "boxes.py", str(ROOT / "examples" / picture), str(tmp_path / out), answer]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    assert text in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "out.png").exists() == (code == 0)
