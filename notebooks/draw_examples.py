"""Draws the images of `notebooks/drawings/`: four things that the embedded model has no word for.

    python notebooks/draw_examples.py

Each thing is drawn six times, from three sketches: lists of lines whose points stand below. A pen
with a colour and a width of its own follows the points; it shakes, and the paper lies a little
turned. The name of a file is the name of the thing and a number.
"""

import itertools
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path(__file__).resolve().parent / "drawings"
SIDE = 84  # pixels
OVERSAMPLING = 4  # drawn this much larger and shrunk, for smooth lines
PENS = ((30, 30, 30), (35, 60, 170), (150, 40, 40), (20, 110, 60), (95, 50, 120))
PAPERS = ((255, 255, 255), (250, 246, 235), (240, 244, 248))

Point = tuple[float, float]  # in a square from -1 to 1, y pointing down
Line = list[Point]


def arc(x: float, y: float, radius: float, start: float, stop: float) -> Line:
    """Points on a circle around (x, y), from one angle to another in degrees, 0 to the right."""
    angles = [math.radians(start + (stop - start) * i / 16) for i in range(17)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def ladder(steps: int, top: float, bottom: float) -> list[Line]:
    """Two rails, so far from the middle at the top and at the bottom, and the steps between."""
    lines = [[(-top, -0.9), (-bottom, 0.9)], [(top, -0.9), (bottom, 0.9)]]
    for i in range(steps):
        share = (i + 0.7) / (steps + 0.4)
        half = top + (bottom - top) * share
        lines.append([(-half, -0.9 + 1.8 * share), (half, -0.9 + 1.8 * share)])
    return lines


SKETCHES: dict[str, list[list[Line]]] = {
    "cup": [
        [
            [(-0.7, -0.6), (-0.5, 0.7), (0.3, 0.7), (0.5, -0.6), (-0.7, -0.6)],
            arc(0.4, 0, 0.4, -75, 80),
        ],
        [
            [(-0.75, -0.5), (-0.7, 0.2), (-0.4, 0.6), (0.2, 0.6), (0.5, 0.2), (0.55, -0.5)],
            [(-0.75, -0.5), (0.55, -0.5)],
            arc(0.52, -0.1, 0.32, -80, 90),
            [(-0.9, 0.75), (0.7, 0.75)],
        ],
        [
            [(-0.6, -0.8), (-0.6, 0.8), (0.35, 0.8), (0.35, -0.8), (-0.6, -0.8)],
            [(0.35, -0.4), (0.8, -0.4), (0.8, 0.4), (0.35, 0.4)],
        ],
    ],
    "key": [
        [
            arc(-0.55, 0, 0.38, 0, 360),
            [(-0.17, 0), (0.9, 0)],
            [(0.55, 0), (0.55, 0.35)],
            [(0.85, 0), (0.85, 0.4)],
        ],
        [
            arc(-0.5, -0.5, 0.36, 0, 360),
            [(-0.25, -0.25), (0.75, 0.75)],
            [(0.45, 0.45), (0.7, 0.2)],
            [(0.7, 0.7), (0.92, 0.48)],
        ],
        [
            arc(0, -0.55, 0.38, 0, 360),
            [(0, -0.17), (0, 0.9)],
            [(0, 0.5), (0.35, 0.5)],
            [(0, 0.85), (0.4, 0.85)],
        ],
    ],
    "boat": [
        [
            [(-0.9, 0.35), (-0.6, 0.8), (0.6, 0.8), (0.9, 0.35), (-0.9, 0.35)],
            [(0, 0.35), (0, -0.9), (0.65, 0.15), (0, 0.15)],
        ],
        [
            [(-0.95, 0.4), (-0.5, 0.85), (0.55, 0.85), (0.9, 0.4), (-0.95, 0.4)],
            [(-0.1, 0.4), (-0.1, -0.85)],
            [(-0.1, -0.85), (0.7, 0.2), (-0.1, 0.2)],
            [(-0.2, -0.6), (-0.75, 0.2), (-0.2, 0.2), (-0.2, -0.6)],
        ],
        [
            [(-0.85, 0.3), *arc(0, 0.3, 0.85, 180, 0)[::1], (-0.85, 0.3)],
            [(0.05, 0.3), (0.05, -0.9)],
            [(0.05, -0.9), (-0.7, 0.1), (0.05, 0.1)],
        ],
    ],
    "ladder": [ladder(4, 0.4, 0.4), ladder(5, 0.3, 0.55), ladder(3, 0.45, 0.5)],
}


def along(line: Line, step: float = 0.08) -> Line:
    """The same line with points in between, so that a pen can shake on the way."""
    points = [line[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        parts = max(1, round(math.hypot(x1 - x0, y1 - y0) / step))
        points += [
            (x0 + (x1 - x0) * i / parts, y0 + (y1 - y0) * i / parts) for i in range(1, parts + 1)
        ]
    return points


def draw(lines: list[Line], rng: random.Random) -> Image.Image:
    """One drawing, SIDE pixels square, by a hand that shakes."""
    side = SIDE * OVERSAMPLING
    image = Image.new("RGB", (side, side), rng.choice(PAPERS))
    pen = ImageDraw.Draw(image)
    colour = rng.choice(PENS)
    width = round(rng.uniform(2.5, 4.5) * OVERSAMPLING)

    # Where the drawing is on the paper, how large, and how far it is turned.
    size_x, size_y = rng.uniform(0.55, 0.85) * side / 2, rng.uniform(0.55, 0.85) * side / 2
    x0, y0 = side / 2 + rng.uniform(-0.1, 0.1) * side, side / 2 + rng.uniform(-0.1, 0.1) * side
    turn = math.radians(rng.uniform(-12, 12))
    for line in lines:
        points = []
        drift_x, drift_y = 0.0, 0.0
        for x, y in along(line):
            # The hand drifts off and comes back.
            drift_x = 0.8 * drift_x + rng.gauss(0, 0.012)
            drift_y = 0.8 * drift_y + rng.gauss(0, 0.012)
            x, y = (x + drift_x) * size_x, (y + drift_y) * size_y
            turned_x = x * math.cos(turn) - y * math.sin(turn)
            turned_y = x * math.sin(turn) + y * math.cos(turn)
            points.append((x0 + turned_x, y0 + turned_y))
        pen.line(points, fill=colour, width=width, joint="curve")
    return image.reduce(OVERSAMPLING)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, sketches in SKETCHES.items():
        for number in range(1, 7):
            rng = random.Random(f"{name}:{number}")
            sketch = sketches[(number - 1) % len(sketches)]
            draw(sketch, rng).save(FOLDER / f"{name}-{number}.png")


if __name__ == "__main__":
    main()
