"""Drawings by other code than training's: matplotlib, other curves, other noise.

    python -m tiny.sketches                     # the embedded checkpoint, every way of drawing
    python -m tiny.sketches --scenes 40         # a quick look
    python -m tiny.sketches --sheet sheet.png   # some of the drawings, with the answers given

`tiny/drawing.py` draws what training shows, with Pillow. What a model learned of ways of
drawing, and what of that file's habits, shows when the same things are drawn by somebody
else: here by matplotlib, with its own circles, arrows, hatches, shadows and shaky lines,
with Bézier curves for hearts, moons and clouds, with Gaussian noise, and with a camera made
of NumPy. Training imports nothing of this file, and no function that draws for training is
called here; the names of colours and shapes, and the list of words, are the same.

Each way of drawing is asked about with one object (what it is) and with three (what they
are, and single questions about them); writing with one word or number (what it says).
"""

import argparse
import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from tiny.evaluate import answer_batch
from tiny.sheet import Entry, contact_sheet
from tiny.world import WORDS

matplotlib.use("Agg")
import matplotlib.patches as patches
import matplotlib.patheffects as effects
import matplotlib.pyplot as plt
from matplotlib.path import Path as Curve
from matplotlib.transforms import Affine2D

# Several shades that everybody would call by this name.
SHADES = {
    "red": ("#d62728", "#e50000", "#c81d25"),
    "orange": ("#ff7f0e", "#f97306", "#fb8c00"),
    "yellow": ("#ffd60a", "#f7e01d", "#e8c80f"),
    "green": ("#2ca02c", "#15803d", "#008f39"),
    "cyan": ("#17becf", "#00c8d7", "#22d3ee"),
    "blue": ("#1f4fd8", "#1d4ed8", "#0b5fc4"),
    "purple": ("#7e1e9c", "#8e3bb8", "#6b21a8"),
    "pink": ("#ff81c0", "#f472b6", "#fb8ac4"),
    "brown": ("#7a4a21", "#8b4513", "#6f4322"),
    "grey": ("#7f7f7f", "#888888", "#808487"),
    "black": ("#000000", "#1a1a1a", "#101014"),
    "white": ("#ffffff", "#fafafa", "#fdfdf8"),
}
LIGHT = ("#ffffff", "#f6f3ea", "#e9eef5", "#f2f2f2", "#eef6ec")
DARK = ("#101418", "#1d2b3a", "#23392f", "#2b2b2b", "#3b2a20")


# ----------------------------------------------------------------------------------- shapes


@dataclass
class Outline:
    """A shape of radius 1 around (0, 0), y pointing up, in matplotlib's own patches.

    bodies are painted; details lie on them in the ground's colour; lines are strokes.
    """

    bodies: list[patches.Patch]
    details: list[patches.Patch] = field(default_factory=list)
    lines: list[Curve] = field(default_factory=list)  # added in the thing's colour
    cuts: list[Curve] = field(default_factory=list)  # on a painted body in the ground's


def bezier(points: list[tuple[float, float]]) -> patches.PathPatch:
    """A closed cubic Bézier curve: a start, then three points for each piece."""
    codes = [Curve.MOVETO] + [Curve.CURVE4] * (len(points) - 1) + [Curve.CLOSEPOLY]
    return patches.PathPatch(Curve([*points, points[0]], codes))


def polygon(points: list[tuple[float, float]]) -> patches.Polygon:
    return patches.Polygon(points, closed=True)


def smile() -> Curve:
    return Curve([(-0.45, -0.2), (0, -0.72), (0.45, -0.2)], [Curve.MOVETO, *[Curve.CURVE3] * 2])


def draw_star() -> Outline:
    star = Curve.unit_regular_star(5, innerCircle=0.42)
    return Outline([patches.PathPatch(star)])


def draw_heart() -> Outline:
    right = [(0.35, 1.1), (1.15, 0.75), (0.95, 0.1), (0.8, -0.35), (0.3, -0.6), (0, -0.95)]
    left = [(-0.3, -0.6), (-0.8, -0.35), (-0.95, 0.1), (-1.15, 0.75), (-0.35, 1.1), (0, 0.5)]
    return Outline([bezier([(0, 0.5), *right, *left])])


def draw_moon() -> Outline:
    outer = [(-1.0, 0.8), (-1.0, -0.8), (0.35, -0.95)]
    inner = [(-0.45, -0.55), (-0.45, 0.55), (0.35, 0.95)]
    return Outline([bezier([(0.35, 0.95), *outer, *inner])])


def draw_cross() -> Outline:
    half = [(-0.3, 1), (0.3, 1), (0.3, 0.3), (1, 0.3), (1, -0.3), (0.3, -0.3)]
    return Outline([polygon([*half, *[(-x, -y) for x, y in half]])])


def draw_arrow() -> Outline:
    arrow = patches.FancyArrow(
        -0.95, 0, 1.9, 0, width=0.4, head_width=1.3, head_length=0.8, length_includes_head=True
    )
    return Outline([arrow])


def draw_house() -> Outline:
    wall = polygon([(-0.7, -0.9), (0.7, -0.9), (0.7, 0.15), (0, 0.95), (-0.7, 0.15)])
    door = patches.Rectangle((0.1, -0.9), 0.32, 0.55)
    window = patches.Rectangle((-0.45, -0.35), 0.32, 0.3)
    return Outline([wall], [door, window])


def draw_tree() -> Outline:
    trunk = polygon([(-0.15, -1), (0.15, -1), (0.11, -0.2), (-0.11, -0.2)])
    crown = patches.Ellipse((0, 0.35), 1.4, 1.3)
    return Outline([trunk, crown])


def draw_face() -> Outline:
    head = patches.Circle((0, 0), 0.95)
    eyes = [patches.Ellipse((x, 0.3), 0.2, 0.26) for x in (-0.35, 0.35)]
    return Outline([head], eyes, cuts=[smile()])


def draw_sun() -> Outline:
    rays = []
    for i in range(10):
        angle = math.tau * (i + 0.5) / 10
        x, y = math.sin(angle), math.cos(angle)
        rays.append(Curve([(0.62 * x, 0.62 * y), (0.98 * x, 0.98 * y)]))
    return Outline([patches.Circle((0, 0), 0.48)], lines=rays)


def draw_cloud() -> Outline:
    top = [(-1.15, -0.1), (-1.0, 0.45), (-0.55, 0.3), (-0.45, 0.85), (0.3, 0.85), (0.35, 0.4)]
    right = [(0.8, 0.6), (1.2, 0.1), (0.85, -0.15), (1.1, -0.5), (0.8, -0.6), (0.6, -0.55)]
    foot = [(0.2, -0.65), (-0.4, -0.6), (-0.75, -0.55), (-1.1, -0.5), (-1.1, -0.2), (-0.9, -0.1)]
    return Outline([bezier([(-0.9, -0.1), *top, *right, *foot])])


def draw_fish() -> Outline:
    body = [(-0.6, 0.75), (0.2, 0.6), (0.55, 0.08), (0.75, 0.25), (0.85, 0.45), (1.0, 0.5)]
    tail = [(0.9, 0.2), (0.9, -0.2), (1.0, -0.5), (0.85, -0.45), (0.75, -0.25), (0.55, -0.08)]
    belly = [(0.2, -0.6), (-0.6, -0.75), (-1.0, 0.0)]
    fish = bezier([(-1.0, 0.0), *body, *tail, *belly])
    return Outline([fish], [patches.Circle((-0.6, 0.12), 0.09)])


OUTLINES: dict[str, Callable[[], Outline]] = {
    "circle": lambda: Outline([patches.Circle((0, 0), 1)]),
    "square": lambda: Outline([patches.Rectangle((-0.85, -0.85), 1.7, 1.7)]),
    "triangle": lambda: Outline([patches.RegularPolygon((0, -0.15), 3, radius=1.1)]),
    "diamond": lambda: Outline([polygon([(0, 1), (0.7, 0), (0, -1), (-0.7, 0)])]),
    "star": draw_star,
    "cross": draw_cross,
    "ring": lambda: Outline([patches.Annulus((0, 0), 1, 0.45)]),
    "heart": draw_heart,
    "moon": draw_moon,
    "arrow": draw_arrow,
    "house": draw_house,
    "tree": draw_tree,
    "face": draw_face,
    "sun": draw_sun,
    "cloud": draw_cloud,
    "fish": draw_fish,
}
SHAPES = tuple(OUTLINES)
# Degrees that a shape can be turned by without becoming another.
MAX_TURN = {
    "square": 20,
    "diamond": 15,
    "house": 20,
    "tree": 20,
    "face": 20,
    "cloud": 15,
    "fish": 25,
}


# ------------------------------------------------------------------------------------- ways

WAYS = (
    "filled",
    "outline",
    "thin outline",
    "shaky hand",
    "finger",
    "hatched",
    "scribbled",
    "turned",
    "dark ground",
    "textured ground",
    "photographed paper",
    "photographed screen",
    "shadow",
    "gradient",
    "pale",
    "dim",
    "overlapping",
    "cut off",
    "tiny",
    "huge",
)


WAYS_OF_WRITING = ("capital letters", "lower case", "uphill", "a number")
ALL_WAYS = (*WAYS, *WAYS_OF_WRITING)
DPI = 100
PIXEL = 72 / DPI  # in the points that matplotlib's lines and letters have
TYPEFACES = ("DejaVu Sans", "DejaVu Serif", "STIXGeneral", "cmss10")  # matplotlib's own


@dataclass(frozen=True)
class Object:
    """A thing of a sketch: its name, its middle and radius in pixels, y pointing up."""

    colour: str
    shape: str
    shade: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Sketch:
    """A way of drawing, a canvas in pixels, its ground and what is on it."""

    way: str
    width: int
    height: int
    ground: str
    objects: tuple[Object, ...]
    seed: int
    text: str = ""  # what is written, alone on its canvas, in the first object's shade


def random_sketch(way: str, count: int, seed: str) -> Sketch:
    """So many objects of different names, drawn in this way."""
    rng = random.Random(f"sketch:{way}:{count}:{seed}")
    ground = rng.choice(DARK if way == "dark ground" else LIGHT)
    if count == 1:
        width, height = rng.randint(70, 240), rng.randint(70, 240)
    else:
        width, height = rng.randint(170, 330), rng.randint(100, 220)
    while True:
        objects = random_objects(rng, way, count, width, height, ground)
        names = {thing.name for thing in objects}
        if len(names) == count:
            return Sketch(way, width, height, ground, objects, rng.getrandbits(32))


def random_writing(way: str, seed: str) -> Sketch:
    """A word, one in five of them never shown in training, or a number of one to four digits."""
    rng = random.Random(f"writing:{way}:{seed}")
    text = rng.choice(WORDS)
    if way == "lower case" or (way == "uphill" and rng.random() < 0.5):
        text = text.lower()
    elif way == "a number":
        text = "".join(rng.choices("0123456789", k=rng.randint(1, 4)))
    width, height = rng.randint(90, 170), rng.randint(56, 120)
    ground = rng.choice(LIGHT)
    colour, shade = random_shade(rng, ground)
    pen = Object(colour, "word", shade, width / 2, height / 2, 0)
    return Sketch(way, width, height, ground, (pen,), rng.getrandbits(32), text)


def random_shade(rng: random.Random, ground: str) -> tuple[str, str]:
    """A colour's name and one of its shades that shows up against the ground."""
    while True:
        colour = rng.choice(list(SHADES))
        shade = rng.choice(SHADES[colour])
        if math.dist(to_rgb(shade), to_rgb(ground)) > 90:
            return colour, shade


def to_rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))  # type: ignore[return-value]


def random_objects(
    rng: random.Random, way: str, count: int, width: int, height: int, ground: str
) -> tuple[Object, ...]:
    """Objects side by side, from left to right, in columns of one width."""
    column = width / count
    objects = []
    for i in range(count):
        colour, shade = random_shade(rng, ground)
        shape = rng.choice(SHAPES)
        room = min(column, height) / 2 * 0.92
        radius = rng.uniform(0.5, 0.95) * room
        if way == "tiny":
            radius = rng.uniform(8, 11)
        elif way == "huge":
            radius = 0.97 * room
        elif way == "overlapping":
            radius = room * rng.uniform(0.95, 1.1)
        radius = max(radius, 9)
        left = column * i + radius
        x = rng.uniform(left, max(left, column * (i + 1) - radius))
        y = rng.uniform(radius, max(radius, height - radius))
        if way == "overlapping" and i > 0:
            x = objects[-1].x + objects[-1].radius * 0.75 + radius * 0.75
        if way == "cut off":
            y = rng.choice((0.45 * radius, height - 0.45 * radius))
        objects.append(Object(colour, shape, shade, x, y, radius))
    return tuple(objects)


# ---------------------------------------------------------------------------------- drawing


@lru_cache(maxsize=100)  # several questions are about one sketch
def draw_sketch(sketch: Sketch) -> Image.Image:
    """The sketch as an image, drawn by matplotlib and photographed where its way says so."""
    rng = np.random.default_rng(sketch.seed)
    figure = plt.figure(figsize=(sketch.width / DPI, sketch.height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, sketch.width)
    axes.set_ylim(0, sketch.height)
    axes.imshow(
        ground_pixels(sketch, rng), extent=(0, sketch.width, 0, sketch.height), aspect="auto"
    )
    if sketch.text:
        write(axes, sketch, rng)
        return finished(figure, sketch, rng)
    # One hand draws all of a sketch.
    angle = rng.uniform(0.3, 1) * rng.choice((-1, 1))
    line = rng.uniform(0.13, 0.22)
    for thing in sketch.objects:
        draw_object(axes, sketch, thing, angle, line, rng)
    return finished(figure, sketch, rng)


def write(axes: plt.Axes, sketch: Sketch, rng: np.random.Generator) -> None:
    """The sketch's text in one of matplotlib's typefaces, as large as the canvas allows."""
    letters = max(2, len(sketch.text))
    size = min(1.15 * sketch.width / letters, 0.62 * sketch.height, 60) * rng.uniform(0.75, 1)
    axes.text(
        sketch.objects[0].x,
        sketch.objects[0].y,
        sketch.text,
        color=sketch.objects[0].shade,
        family=str(rng.choice(TYPEFACES)),
        fontsize=PIXEL * max(16.0, size),
        rotation=rng.uniform(4, 12) if sketch.way == "uphill" else 0,
        ha="center",
        va="center",
    )


def finished(figure: plt.Figure, sketch: Sketch, rng: np.random.Generator) -> Image.Image:
    """What matplotlib drew, as the sketch's way lets it be seen."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)
    plt.close(figure)
    if sketch.way in ("photographed paper", "photographed screen"):
        pixels = photographed(pixels, sketch.way, rng)
    elif sketch.way == "pale":
        pixels = 245 + (pixels - 245) * rng.uniform(0.5, 0.7)
    elif sketch.way == "dim":
        pixels = pixels * rng.uniform(0.5, 0.7)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    if sketch.way == "photographed paper":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(35, 80)))
        image = Image.open(file).convert("RGB")
    return image


def ground_pixels(sketch: Sketch, rng: np.random.Generator) -> np.ndarray:
    """The ground's pixels (H, W, 3): plain, or with a pattern of sines or of squared paper."""
    height, width = sketch.height, sketch.width
    ground = np.array(to_rgb(sketch.ground), dtype=float)
    pixels = np.ones((height, width, 3)) * ground
    if sketch.way != "textured ground":
        return pixels.astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    pattern = rng.choice(("waves", "paper", "wool", "tiles"))
    period = rng.uniform(9, 20)
    if pattern == "waves":
        values = np.sin(math.tau * (x + 4 * np.sin(y / 15)) / period)
    elif pattern == "paper":
        values = -2.0 * ((x % period < 1) | (y % period < 1))
    elif pattern == "wool":
        noise = rng.normal(size=(height, width))
        values = 2 * (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 3
    else:
        values = np.sign(np.sin(math.tau * x / period / 2) * np.sin(math.tau * y / period / 2))
    tint = rng.uniform(0.3, 1, size=3)
    return (pixels + 14 * values[..., None] * tint).clip(0, 255).astype(np.uint8)


def draw_object(
    axes: plt.Axes,
    sketch: Sketch,
    thing: Object,
    angle: float,
    line: float,
    rng: np.random.Generator,
) -> None:
    """One object, in the sketch's way."""
    way = sketch.way
    outline = OUTLINES[thing.shape]()
    turn = 0.0
    if way == "turned":
        turn = angle * MAX_TURN.get(thing.shape, 180)
    place = (
        Affine2D().rotate_deg(turn).scale(thing.radius).translate(thing.x, thing.y) + axes.transData
    )
    shown = {"transform": place, "clip_on": True}
    is_line = way in ("outline", "thin outline", "finger")
    width = PIXEL * max(2.2, line * thing.radius)
    if way == "thin outline":
        width = PIXEL * rng.uniform(1.6, 2.4)
    if way == "finger":
        width = PIXEL * max(4, 0.26 * thing.radius)
    strokes = {
        "linewidth": width,
        "capstyle": "round",
        "joinstyle": "round",
        "edgecolor": thing.shade,
    }
    for body in outline.bodies:
        body.set(**shown)
        if is_line:
            body.set(fill=False, **strokes)
        elif way in ("hatched", "scribbled"):
            body.set(fill=False, **{**strokes, "linewidth": PIXEL * 2})
        else:
            body.set(facecolor=thing.shade, edgecolor="none")
        if way in ("shaky hand", "finger"):
            body.set_sketch_params(scale=0.05 * thing.radius, length=thing.radius, randomness=3)
        if way == "shadow":
            depth = PIXEL * max(2, 0.09 * thing.radius)
            shadow = effects.SimplePatchShadow((depth, -depth), shadow_rgbFace="#333333", alpha=0.4)
            body.set_path_effects([shadow, effects.Normal()])
        axes.add_patch(body)
        if way == "hatched":
            hatch_inside(axes, body, thing, rng)
        elif way == "scribbled":
            scribble_inside(axes, body, thing, rng)
        elif way == "gradient":
            shade_inside(axes, body, thing, rng)
    ground = sketch.ground
    for detail in outline.details:
        detail.set(**shown)
        if is_line:
            detail.set(
                fill=False, edgecolor=thing.shade, linewidth=min(width, PIXEL * 0.14 * thing.radius)
            )
        else:
            detail.set(facecolor=ground, edgecolor="none")
        axes.add_patch(detail)
    for curves, colour in (
        (outline.lines, thing.shade),
        (outline.cuts, thing.shade if is_line else ground),
    ):
        for curve in curves:
            stroke = patches.PathPatch(
                curve,
                fill=False,
                edgecolor=colour,
                linewidth=min(max(width, PIXEL * 1.6), PIXEL * 0.16 * thing.radius)
                if is_line
                else PIXEL * max(1.5, 0.13 * thing.radius),
                capstyle="round",
                **shown,
            )
            axes.add_patch(stroke)


def hatch_inside(
    axes: plt.Axes, body: patches.Patch, thing: Object, rng: np.random.Generator
) -> None:
    """Straight lines across the body, all in one direction."""
    direction = rng.uniform(0, math.pi)
    along = np.array((math.cos(direction), math.sin(direction)))
    across = np.array((-along[1], along[0]))
    gap = max(4.0, 0.2 * thing.radius)
    middle = np.array((thing.x, thing.y))
    for offset in np.arange(-1.5 * thing.radius, 1.5 * thing.radius, gap):
        ends = middle + across * offset + np.outer((-1.6, 1.6), along) * thing.radius
        (stroke,) = axes.plot(*ends.T, color=thing.shade, linewidth=PIXEL * max(1.6, 0.42 * gap))
        stroke.set_clip_path(body)


def scribble_inside(
    axes: plt.Axes, body: patches.Patch, thing: Object, rng: np.random.Generator
) -> None:
    """One curve that sways to and fro across the body."""
    share = np.linspace(0, 1, 400)
    sways = rng.integers(6, 10)
    sway = 1.3 * thing.radius * np.sin(math.tau * sways * share)
    forward = (share * 2 - 1) * 1.25 * thing.radius
    direction = rng.uniform(0, math.tau)
    x = thing.x + forward * math.cos(direction) - sway * math.sin(direction)
    y = thing.y + forward * math.sin(direction) + sway * math.cos(direction)
    (stroke,) = axes.plot(x, y, color=thing.shade, linewidth=PIXEL * max(2.2, 0.09 * thing.radius))
    stroke.set_clip_path(body)


def shade_inside(
    axes: plt.Axes, body: patches.Patch, thing: Object, rng: np.random.Generator
) -> None:
    """The body once more, its colour going towards white or black by a third."""
    end = rng.choice((0, 255))
    shade = np.array(to_rgb(thing.shade), dtype=float)
    ramp = np.linspace(0, 0.35, 32)[:, None, None]
    pixels = shade + (end - shade) * ramp
    reach = 1.3 * thing.radius
    extent = (thing.x - reach, thing.x + reach, thing.y - reach, thing.y + reach)
    shaded = axes.imshow(
        pixels / 255, extent=extent, aspect="auto", interpolation="bilinear", zorder=2
    )
    shaded.set_clip_path(body)
    width, height = axes.get_figure().get_size_inches() * DPI
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)


def photographed(pixels: np.ndarray, way: str, rng: np.random.Generator) -> np.ndarray:
    """Pixels (H, W, 3) seen by a camera: a table around them, light from a side, noise, blur."""
    height, width, _ = pixels.shape
    if way == "photographed screen":
        pixels = pixels * np.where(np.arange(height) % 2 == 0, 1.0, 0.88)[:, None, None]
    # For each pixel of the photo, where it lies on the paper: a shear, a zoom and a vanishing
    # point.
    y, x = np.mgrid[:height, :width]
    u = (x / width - 0.5) * 2
    v = (y / height - 0.5) * 2
    depth = 1 + rng.uniform(-0.06, 0.06) * u + rng.uniform(-0.06, 0.06) * v
    zoom = rng.uniform(1.03, 1.1)
    lean = rng.uniform(-0.05, 0.05)
    across = ((u + lean * v) * zoom / depth / 2 + 0.5) * (width - 1)
    down = ((v - lean * u) * zoom / depth / 2 + 0.5) * (height - 1)
    photo = sample(pixels, across, down, table=rng.uniform(15, 80))
    light = 1 - rng.uniform(0.1, 0.4) * ((u * rng.choice((-1, 1)) + 1) / 2) ** 1.5
    warm = np.array((1.0, rng.uniform(0.96, 1.0), rng.uniform(0.9, 1.0)))
    photo = photo * light[..., None] * warm * rng.uniform(0.75, 1.0)
    # A blur by the mean of each pixel and its four neighbours.
    if rng.random() < 0.7:
        sides = [np.roll(photo, shift, axis) for shift in (-1, 1) for axis in (0, 1)]
        photo = (2 * photo + sum(sides)) / 6
    return photo + rng.normal(scale=rng.uniform(2, 9), size=photo.shape)


def sample(pixels: np.ndarray, across: np.ndarray, down: np.ndarray, table: float) -> np.ndarray:
    """Pixels between others, by their distance; beyond the edge the grey of the table."""
    height, width, _ = pixels.shape
    left = np.floor(across).astype(int)
    top = np.floor(down).astype(int)
    is_inside = (left >= 0) & (left < width - 1) & (top >= 0) & (top < height - 1)
    left = left.clip(0, width - 2)
    top = top.clip(0, height - 2)
    right_share = (across - left)[..., None]
    lower_share = (down - top)[..., None]
    upper = pixels[top, left] * (1 - right_share) + pixels[top, left + 1] * right_share
    lower = pixels[top + 1, left] * (1 - right_share) + pixels[top + 1, left + 1] * right_share
    mixed = upper * (1 - lower_share) + lower * lower_share
    return np.where(is_inside[..., None], mixed, table)


# -------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class SketchQuestion:
    sketch: Sketch
    text: str
    answer: str


def article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def description(sketch: Sketch) -> str:
    names = [article(thing.name) for thing in sketch.objects]
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{text[0].upper()}{text[1:]}."


def ask_about(sketch: Sketch) -> list[SketchQuestion]:
    """What is seen; of several objects also the colour or shape of one, and how many they are."""
    if sketch.text:
        return [SketchQuestion(sketch, "What does it say?", f"{sketch.text}.")]
    questions = [SketchQuestion(sketch, "Describe this image.", description(sketch))]
    if len(sketch.objects) == 1:
        return questions
    rng = random.Random(sketch.seed)
    thing = rng.choice(sketch.objects)
    shapes = [other.shape for other in sketch.objects]
    colours = [other.colour for other in sketch.objects]
    if shapes.count(thing.shape) == 1:
        text = f"What colour is the {thing.shape}?"
        questions.append(SketchQuestion(sketch, text, f"{thing.colour.capitalize()}."))
    if colours.count(thing.colour) == 1:
        text = f"What is the {thing.colour} thing?"
        answer = article(thing.shape)
        questions.append(SketchQuestion(sketch, text, f"{answer[0].upper()}{answer[1:]}."))
    count = ("Two.", "Three.")[len(sketch.objects) - 2]
    questions.append(SketchQuestion(sketch, "How many shapes are there?", count))
    return questions


ASKED_FIRST = ("Describe this image.", "What does it say?")


def any_sketch(way: str, count: int, seed: str) -> Sketch:
    return random_writing(way, seed) if way in WAYS_OF_WRITING else random_sketch(way, count, seed)


# ------------------------------------------------------------------------------ measurement


def conversation(question: SketchQuestion) -> list[dict]:
    """The sketch and the question about it, as a conversation of one turn."""
    items = [
        {"type": "image", "image": draw_sketch(question.sketch)},
        {"type": "text", "text": question.text},
    ]
    return [{"role": "user", "content": items}]


def answer_sketches(
    model: torch.nn.Module, processor: Qwen2VLProcessor, questions: list[SketchQuestion], label: str
) -> list[str]:
    """The greedy answers, forty questions at a time."""
    said: list[str] = []
    for start in tqdm(range(0, len(questions), 40), label, unit="batch", dynamic_ncols=True):
        conversations = [conversation(question) for question in questions[start : start + 40]]
        said += answer_batch(model, processor, conversations)
    return said


def blinded(questions: list[SketchQuestion]) -> list[SketchQuestion]:
    """The same questions about nothing but the ground."""
    return [replace(q, sketch=replace(q.sketch, objects=(), text="")) for q in questions]


class Measurement:
    """What a checkpoint answers about so many sketches of each way."""

    def __init__(self, model_name: str, scenes: int, seed: str) -> None:
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(
            model_name, dtype=torch.float32, device_map="cpu"
        )
        self.processor = Qwen2VLProcessor.from_pretrained(model_name)
        self.scenes = scenes
        self.seed = seed
        self.entries: list[Entry] = []  # the first two of each row, for a sheet

    def questions(self, way: str, count: int) -> list[SketchQuestion]:
        asked = []
        for i in range(self.scenes):
            asked += ask_about(any_sketch(way, count, f"{self.seed}:{i}"))
        return asked

    def share(self, questions: list[SketchQuestion], label: str, is_blind: bool = False) -> str:
        """The share of right answers, in percent; nothing where there are no questions."""
        if not questions:
            return ""
        shown = blinded(questions) if is_blind else questions
        said = answer_sketches(self.model, self.processor, shown, label)
        right = [question.answer == text for question, text in zip(questions, said, strict=True)]
        for question, text, is_right in list(zip(shown, said, right, strict=True))[:2]:
            image = draw_sketch(question.sketch)
            self.entries.append(Entry(image, f"({label}) {question.text}", text, is_right))
        return f"{100 * sum(right) / len(right):.1f} %"

    def row(self, way: str) -> list[str]:
        """One object, three objects, single questions about three, the same ones blind."""
        if way in WAYS_OF_WRITING:
            return [way, self.share(self.questions(way, 1), way), "", "", ""]
        one = [] if way == "overlapping" else self.questions(way, 1)
        three = self.questions(way, 3)
        all_of_them = [question for question in three if question.text in ASKED_FIRST]
        single = [question for question in three if question.text not in ASKED_FIRST]
        return [
            way,
            self.share(one, way),
            self.share(all_of_them, f"{way}, three"),
            self.share(single, f"{way}, single"),
            self.share(single, f"{way}, blind", is_blind=True),
        ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="tiny", help='"tiny" (default) or a folder')
    add(
        "--scenes", type=int, default=500, help="sketches a way and number of objects (default 500)"
    )
    add("--seed", default="sketches", help="another word gives other sketches")
    add("--ways", nargs="+", choices=ALL_WAYS, default=ALL_WAYS, help="only these ways")
    add("--sheet", type=Path, help="write some of the sketches there, with the answers given")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    measurement = Measurement(args.model, args.scenes, args.seed)
    print("| way | one: what it is | three: all of them | three: single questions | blind |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for way in args.ways:
        print(f"| {' | '.join(measurement.row(way))} |", flush=True)
    if args.sheet:
        contact_sheet(measurement.entries, columns=8).save(args.sheet, optimize=True)


if __name__ == "__main__":
    main()
