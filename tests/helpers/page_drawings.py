"""What visitors draw on the page: shapes of its buttons, outlines of its pen, outlines filled."""

import math
import random

from PIL import Image, ImageDraw

# As in qwen2vl_app/web/static: pictures.js (the canvas) and sketch.js (pen, ground, colours).
SIZE = (448, 336)
GROUND = "#faf3e0"
PEN = 0.06  # of the width of the canvas
COLOURS = {"red": "#d62728", "yellow": "#f0d414", "green": "#22963c", "blue": "#235ad2"}
CORNERS = {
    "circle": [(math.cos(i * math.pi / 50), math.sin(i * math.pi / 50)) for i in range(100)],
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0, -0.95), (1, 0.85), (-1, 0.85)],
    "star": [
        (
            (0.42 if i % 2 else 1) * math.sin(i * math.pi / 5),
            -(0.42 if i % 2 else 1) * math.cos(i * math.pi / 5),
        )
        for i in range(10)
    ],
}
SMOOTH = 4  # it is drawn larger, since Pillow's edges are rough


class Drawing:
    """A canvas of the page."""

    def __init__(self) -> None:
        self.large = Image.new("RGB", (SIZE[0] * SMOOTH, SIZE[1] * SMOOTH), GROUND)

    def add(
        self, colour: str, shape: str, x: float, y: float, r: float, pen: bool, fill: bool
    ) -> None:
        """A shape of radius r around (x, y), in pixels: its outline with the pen, its inside."""
        draw = ImageDraw.Draw(self.large)
        points = [((x + dx * r) * SMOOTH, (y + dy * r) * SMOOTH) for dx, dy in CORNERS[shape]]
        if fill:
            draw.polygon(points, fill=COLOURS[colour])
        if pen:
            width = round(PEN * SIZE[0] * SMOOTH)
            draw.line([*points, points[0]], fill=COLOURS[colour], width=width)
            for px, py in points:  # the pen is round
                box = (px - width / 2, py - width / 2, px + width / 2, py + width / 2)
                draw.ellipse(box, fill=COLOURS[colour])

    def image(self) -> Image.Image:
        return self.large.resize(SIZE, Image.Resampling.LANCZOS)


def one_shape(rng: random.Random, colour: str, shape: str, pen: bool, fill: bool) -> Image.Image:
    """One shape about the middle."""
    drawing = Drawing()
    x, y = rng.uniform(0.4, 0.6) * SIZE[0], rng.uniform(0.42, 0.58) * SIZE[1]
    drawing.add(colour, shape, x, y, rng.uniform(0.2, 0.34) * SIZE[1], pen, fill)
    return drawing.image()


def circle_and_star(rng: random.Random) -> Image.Image:
    """A red circle to the left of a blue star."""
    drawing = Drawing()
    for colour, shape, middle in (("red", "circle", 0.27), ("blue", "star", 0.73)):
        x = (middle + rng.uniform(-0.06, 0.06)) * SIZE[0]
        y = rng.uniform(0.35, 0.65) * SIZE[1]
        drawing.add(colour, shape, x, y, rng.uniform(0.14, 0.22) * SIZE[1], pen=False, fill=True)
    return drawing.image()
