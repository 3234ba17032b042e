"""How people draw: outlines, fingers, hatching, paper, and the camera that looks at it.

`tiny/world.py` says what is on a canvas; here is how it is put there. A `Figure` is a shape
as lines. A `Hand` turns its lines into a mask: filled, outlined, drawn with a finger,
hatched, scribbled or rubbed with a crayon, turned and never quite straight. `draw_ground`
makes what it is drawn on, and a `Camera` photographs the whole.

Everything random follows from a seed that is kept in the `Hand` or the `Camera`, so that a
thing looks the same in each frame of a video.
"""

import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

RGB = tuple[int, int, int]
# Points (x, y) in a square from -1 to 1, y pointing down.
Points = list[tuple[float, float]]
OVERSAMPLING = 3  # figures are drawn this much larger and shrunk, for smooth edges


# ---------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Figure:
    """A shape as lines.

    parts: closed lines, painted inside; holes: closed lines, left out again; cuts: open
    lines that are left out of what is painted (a mouth); rays: open lines that are added to
    it (a sun's).
    """

    parts: list[Points]
    holes: tuple[Points, ...] = ()
    cuts: tuple[Points, ...] = ()
    rays: tuple[Points, ...] = ()


def arc(x: float, y: float, radius: float, start: float, end: float, count: int = 40) -> Points:
    """Points of a circle's arc, its angles in turns: 0 is to the right, 0.25 below."""
    points = []
    for i in range(count + 1):
        angle = math.tau * (start + (end - start) * i / count)
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return points


def closed_circle(x: float, y: float, radius: float) -> Points:
    return arc(x, y, radius, -0.25, 0.75)[:-1]


def polar(radii: Callable[[float], float], count: int = 96) -> Points:
    """A closed line, its distance from the middle a function of the angle in turns."""
    points = []
    for i in range(count):
        radius = radii(i / count)
        angle = math.tau * i / count
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def star_corners(points: int, outer_radius: float, inner_radius: float) -> Points:
    """The corners of a star, alternating between two radii, the first on top."""
    corners = []
    for i in range(2 * points):
        radius = outer_radius if i % 2 == 0 else inner_radius
        angle = 2 * math.pi * i / (2 * points)
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return corners


def heart_corners(dip: float) -> Points:
    """Corners along x = 16 sin³ t, y = 13 cos t - dip cos 2t - 2 cos 3t - cos 4t."""
    corners = []
    for i in range(60):
        t = 2 * math.pi * i / 60
        y = 13 * math.cos(t) - dip * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((math.sin(t) ** 3, -(y + 2.5) / 15.5))
    return corners


def cross_corners(half_arm: float) -> Points:
    """The twelve corners of a cross whose arms are twice `half_arm` wide."""
    a = half_arm
    top = [(-a, -1), (a, -1), (a, -a)]
    right = [(1, -a), (1, a), (a, a)]
    bottom = [(a, 1), (-a, 1), (-a, a)]
    left = [(-1, a), (-1, -a), (-a, -a)]
    return top + right + bottom + left


def arrow_corners(shaft: float, neck: float, wing: float) -> Points:
    """The seven corners of an arrow that points to the right.

    Its shaft and its head are twice `shaft` and twice `wing` high, and meet at x = `neck`.
    """
    upper = [(-1, -shaft), (neck, -shaft), (neck, -wing)]
    lower = [(neck, wing), (neck, shaft), (-1, shaft)]
    return [*upper, (1, 0), *lower]


def _moon(rng: random.Random) -> Figure:
    """A disc less another one: two arcs that meet in two points."""
    distance = rng.uniform(0.5, 0.65)
    radius = rng.uniform(0.85, 0.95)  # of the disc that is taken away
    towards = rng.choice((-0.055, 0.0, 0.5, 0.45))  # the open side, in turns
    cosine = (distance**2 + 1 - radius**2) / (2 * distance)
    outer = math.acos(cosine) / math.tau
    inner = math.acos((cosine - distance) / radius) / math.tau
    x = distance * math.cos(math.tau * towards)
    y = distance * math.sin(math.tau * towards)
    back = arc(x, y, radius, towards + 1 - inner, towards + inner, 30)
    return Figure([arc(0, 0, 1, towards + outer, towards + 1 - outer) + back[1:-1]])


def _arrow(rng: random.Random) -> Figure:
    shaft = rng.uniform(0.12, 0.3)
    neck = rng.uniform(0.0, 0.3)
    return Figure([arrow_corners(shaft, neck, wing=rng.uniform(0.6, 0.85))])


def _house(rng: random.Random) -> Figure:
    width = rng.uniform(0.65, 0.85)
    eaves = rng.uniform(-0.25, 0.1)
    wide = rng.choice((0.0, 0.12))  # how far the roof juts out
    walls = [(width, eaves), (width, 0.95), (-width, 0.95), (-width, eaves)]
    outline = [(-width - wide, eaves), (0, -0.95), (width + wide, eaves), *walls]
    x = rng.uniform(-0.3, 0.3)
    door = [(x - 0.17, 0.95), (x - 0.17, 0.4), (x + 0.17, 0.4), (x + 0.17, 0.95)]
    side = 0.42 if x < 0 else -0.42
    window = [(side - 0.14, 0.1), (side + 0.14, 0.1), (side + 0.14, 0.38), (side - 0.14, 0.38)]
    holes = rng.choice(((door,), (door, window), ()))
    cuts = rng.choice(((), ([(-width, eaves), (width, eaves)],)))
    return Figure([outline], holes, cuts)


def _tree(rng: random.Random) -> Figure:
    """A round crown, a bushy one or a fir, on a trunk."""
    half = rng.uniform(0.1, 0.17)
    kind = rng.choice(("round", "bushy", "fir"))
    if kind == "fir":
        trunk = [(-half, 0.55), (half, 0.55), (half, 1), (-half, 1)]
        if rng.random() < 0.5:
            return Figure([[(0, -1), (0.7, 0.55), (-0.7, 0.55)], trunk])
        right = [(0.45, -0.3), (0.25, -0.3), (0.6, 0.15), (0.35, 0.15), (0.75, 0.6)]
        return Figure([[(0, -1), *right, *[(-x, y) for x, y in reversed(right)]], trunk])
    trunk = [(-half, 0.25), (half, 0.25), (half, 1), (-half, 1)]
    bumps = rng.randint(6, 8)
    depth = 0.0 if kind == "round" else 0.12
    crown = polar(lambda turn: 0.62 + depth * abs(math.sin(math.pi * bumps * turn)))
    return Figure([[(1.05 * x, y - 0.35) for x, y in crown], trunk])


def _face(rng: random.Random) -> Figure:
    apart = rng.uniform(0.28, 0.42)
    high = rng.uniform(-0.35, -0.2)
    eye = rng.uniform(0.09, 0.14)
    eyes = (closed_circle(-apart, high, eye), closed_circle(apart, high, eye))
    mouth = arc(0, 0.05, rng.uniform(0.42, 0.55), 0.06, 0.44, 16)
    if rng.random() < 0.2:
        mouth = [(-0.4, 0.45), (0.4, 0.45)]
    return Figure([closed_circle(0, 0, 0.95)], eyes, (mouth,))


def _sun(rng: random.Random) -> Figure:
    radius = rng.uniform(0.42, 0.58)
    count = rng.randint(7, 13)
    rays = []
    for i in range(count):
        angle = math.tau * i / count
        near = radius + rng.uniform(0.05, 0.14)
        far = rng.uniform(0.88, 1.0)
        x, y = math.cos(angle), math.sin(angle)
        rays.append([(near * x, near * y), (far * x, far * y)])
    return Figure([closed_circle(0, 0, radius)], rays=tuple(rays))


def _cloud(rng: random.Random) -> Figure:
    """Bumps around an ellipse, with a flat foot or without."""
    bumps = rng.randint(5, 8)
    depth = rng.uniform(0.18, 0.3)
    start = rng.random()

    def radius(turn: float) -> float:
        return 0.72 + depth * abs(math.sin(math.pi * bumps * (turn + start)))

    foot = rng.choice((0.38, 2.0))
    return Figure([[(x, min(0.66 * y, foot)) for x, y in polar(radius)]])


def _fish(rng: random.Random) -> Figure:
    """A body and a tail in one line; it swims to the left or to the right."""
    height = rng.uniform(0.42, 0.58)
    body = arc(-0.2, 0, 0.8, 0.06, 0.94)
    tail = [(0.95, -rng.uniform(0.4, 0.6)), (0.8, 0.0), (0.95, rng.uniform(0.4, 0.6))]
    outline = [(x, y * height / 0.8) for x, y in body] + tail
    eye = closed_circle(-0.62, -0.12, rng.uniform(0.07, 0.1))
    cuts = rng.choice(((), (arc(-0.75, 0, 0.38, -0.12, 0.12, 10),)))
    direction = rng.choice((-1, 1))
    lines = [[(direction * x, y) for x, y in line] for line in (outline, eye, *cuts)]
    return Figure([lines[0]], (lines[1],), tuple(lines[2:]))


def _rectangle(rng: random.Random) -> Figure:
    return Figure([[(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]])


def _triangle(rng: random.Random) -> Figure:
    top = rng.uniform(-0.25, 0.25)
    return Figure([[(top, -0.95), (1, 0.85), (-1, 0.85)]])


def _diamond(rng: random.Random) -> Figure:
    half = rng.uniform(0.6, 0.85)
    return Figure([[(0, -1), (half, 0), (0, 1), (-half, 0)]])


def _ring(rng: random.Random) -> Figure:
    hole = rng.uniform(0.4, 0.66)
    return Figure([closed_circle(0, 0, 1)], (closed_circle(0, 0, hole),))


FIGURES: dict[str, Callable[[random.Random], Figure]] = {
    "circle": lambda rng: Figure([closed_circle(0, 0, 1)]),
    "square": _rectangle,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": lambda rng: Figure([star_corners(5, 1.0, rng.uniform(0.36, 0.5))]),
    "cross": lambda rng: Figure([cross_corners(rng.uniform(0.2, 0.38))]),
    "ring": _ring,
    "heart": lambda rng: Figure([heart_corners(rng.uniform(4.5, 5.5))]),
    "moon": _moon,
    "arrow": _arrow,
    "house": _house,
    "tree": _tree,
    "face": _face,
    "sun": _sun,
    "cloud": _cloud,
    "fish": _fish,
}
# How far, in degrees, a shape may be turned and still be called by its name.
TURNS = {"square": 22, "diamond": 16, "house": 25, "tree": 25, "face": 30, "cloud": 18, "fish": 35}


# ------------------------------------------------------------------------------------ hands

FILLS = ("solid", "outline", "finger", "hatched", "scribbled", "crayon")


@dataclass(frozen=True)
class Hand:
    """How one thing is drawn.

    width: of its lines, as a share of the thing's size; shake: how far lines stray, in the
    same; degrees: how far it is turned; stretch: its width to its height; gradient: -1 to 1,
    how much darker or lighter one end is; shadow: 0 to 1.
    """

    fill: str
    width: float
    shake: float
    degrees: float
    stretch: float
    gradient: float
    shadow: float
    seed: int


def random_hand(rng: random.Random, shape: str) -> Hand:
    """A way to draw this shape, or a text where `shape` is none of FIGURES."""
    fill = rng.choices(FILLS, (3, 3, 3, 1.5, 1.5, 1))[0]
    is_text = shape not in FIGURES
    limit = 14 if is_text else TURNS.get(shape, 180)
    degrees = 0.0
    if rng.random() < 0.5:
        degrees = rng.uniform(-limit, limit)
    elif not is_text:
        degrees = rng.uniform(-8, 8)
    shake = rng.choice((0.0, 0.012, 0.025, 0.04)) * rng.uniform(0.6, 1.4)
    return Hand(
        fill=rng.choice(("solid", "solid", "crayon")) if is_text else fill,
        width=rng.uniform(0.12, 0.22) ** rng.uniform(1, 1.9),
        shake=shake,
        degrees=degrees,
        stretch=math.exp(rng.uniform(-0.22, 0.22)),
        gradient=rng.uniform(-1, 1) if rng.random() < 0.2 else 0.0,
        shadow=rng.uniform(0.2, 0.8) if rng.random() < 0.2 else 0.0,
        seed=rng.getrandbits(32),
    )


class Lines(NamedTuple):
    """A figure's lines as a hand draws them, points (n, 2) in pixels of the mask."""

    parts: list[np.ndarray]
    holes: list[np.ndarray]
    cuts: list[np.ndarray]
    rays: list[np.ndarray]


def figure_mask(shape: str, size: int, hand: Hand) -> Image.Image:
    """A mask of the shape, its longer side about `size` pixels."""
    rng = random.Random(hand.seed)
    figure = FIGURES[shape](rng)
    radius = OVERSAMPLING * size / 2
    side = round(3.4 * radius)

    def by_hand(lines: Sequence[Points], is_closed: bool) -> list[np.ndarray]:
        drawn = []
        for line in lines:
            points = shaken(np.array(line), is_closed, hand.shake, rng)
            points = points * (math.sqrt(hand.stretch), 1 / math.sqrt(hand.stretch))
            drawn.append(turned(points, hand.degrees) * radius + side / 2)
        return drawn

    lines = Lines(
        by_hand(figure.parts, is_closed=True),
        by_hand(figure.holes, is_closed=True),
        by_hand(figure.cuts, is_closed=False),
        by_hand(figure.rays, is_closed=False),
    )
    mask = Image.new("L", (side, side))
    width = max(1.2 * OVERSAMPLING, 2 * radius * hand.width)
    if hand.fill in ("outline", "finger"):
        # Small parts, such as eyes, would drown in wide lines; a ring's hole is as large as it.
        thin = width if shape == "ring" else min(width, 0.2 * radius)
        draw_lines(mask, lines, hand, width, thin, rng)
    else:
        mask = fill_parts(mask, lines, hand, width, radius, rng)
    mask = mask.reduce(OVERSAMPLING)
    if hand.fill == "crayon":
        mask = crayon(mask, rng)
    return mask


def draw_lines(
    mask: Image.Image, lines: Lines, hand: Hand, width: float, thin: float, rng: random.Random
) -> None:
    """All lines as strokes. A finger's are wide, and don't end where they began."""
    draw = ImageDraw.Draw(mask)
    gap = 0.0
    if hand.fill == "finger":
        width = max(width, 0.047 * mask.width)
        gap = rng.uniform(-0.06, 0.09)
    for line in lines.holes:
        stroke(draw, closed(line), thin, 255)
    for line in lines.cuts + lines.rays:
        stroke(draw, line, thin, 255)
    for line in lines.parts:
        stroke(draw, opened(line, gap, rng), width, 255)


def fill_parts(
    mask: Image.Image, lines: Lines, hand: Hand, width: float, radius: float, rng: random.Random
) -> Image.Image:
    """The parts painted, whole or with hatching; holes and cuts are free of paint."""
    draw = ImageDraw.Draw(mask)
    for line in lines.parts:
        draw.polygon(as_tuples(line), fill=255)
    if hand.fill in ("hatched", "scribbled"):
        hatching = Image.new("L", mask.size)
        hatch(ImageDraw.Draw(hatching), mask.getbbox(), hand, rng, radius)
        mask = ImageChops.multiply(mask, hatching)
        draw = ImageDraw.Draw(mask)
        if hand.fill == "hatched" or rng.random() < 0.6:
            for line in lines.parts:
                stroke(draw, closed(line), min(width, 0.14 * radius), 255)
    for line in lines.holes:
        draw.polygon(as_tuples(line), fill=0)
    for line in lines.cuts:
        stroke(draw, line, max(0.09 * radius, 1.5 * OVERSAMPLING), 0)
    for line in lines.rays:
        stroke(draw, line, max(0.6 * width, 0.12 * radius), 255)
    return mask


def text_mask(mask: Image.Image, hand: Hand) -> Image.Image:
    """The mask of a set text, turned and rubbed as the hand says."""
    mask = mask.rotate(-hand.degrees, Image.Resampling.BICUBIC, expand=True)
    if hand.fill == "crayon":
        mask = crayon(mask, random.Random(hand.seed))
    return mask


def as_tuples(points: np.ndarray) -> list[tuple[float, float]]:
    return [tuple(point) for point in points.tolist()]


def shaken(points: np.ndarray, is_closed: bool, shake: float, rng: random.Random) -> np.ndarray:
    """Points (n, 2) as a hand sets them: more of them, each off by a slow and a quick error.

    Errors are sums of waves along the line, whole ones if it is closed, of about twice
    `shake`.
    """
    ends = np.concatenate([points, points[:1]]) if is_closed else points
    lengths = np.hypot(*np.diff(ends, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    if shake == 0 or along[-1] == 0:
        return points
    count = max(12, int(along[-1] / 0.1))
    # The corners stay among the points; between them come more.
    where = np.union1d(along, np.linspace(0, along[-1], count))
    if is_closed:
        where = where[:-1]
    x = np.interp(where, along, ends[:, 0])
    y = np.interp(where, along, ends[:, 1])
    share = where / along[-1]
    for waves, strength in ((2, 1.3), (3, 1.0), (5, 0.8), (9, 0.5), (14, 0.35)):
        for values in (x, y):
            phase = rng.uniform(0, math.tau)
            amount = strength * shake * rng.uniform(0.3, 1)
            values += amount * np.sin(math.tau * waves * share + phase)
    return np.stack([x, y], axis=1)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Points (n, 2) turned around the middle, clockwise."""
    cosine = math.cos(math.radians(degrees))
    sine = math.sin(math.radians(degrees))
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def closed(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, points[:2]])


def opened(points: np.ndarray, gap: float, rng: random.Random) -> np.ndarray:
    """A closed line as a pen draws it: from any of its points, to the same one, to a `gap`
    before it, or, where that is negative, beyond it."""
    start = rng.randrange(len(points))
    around = np.concatenate([points[start:], points[:start]])
    count = len(around)
    if count < 20:  # few corners: fill up the sides
        around = denser(around)
        count = len(around)
    keep = round(count * (1 - gap))
    return np.concatenate([around, around])[: max(2, keep + 1)]


def denser(points: np.ndarray) -> np.ndarray:
    """The same closed line with eight points on each side."""
    following = np.roll(points, -1, axis=0)
    shares = np.arange(8)[None, :, None] / 8
    return (points[:, None] + (following - points)[:, None] * shares).reshape(-1, 2)


def stroke(draw: ImageDraw.ImageDraw, points: np.ndarray, width: float, value: int) -> None:
    """A line with round joints and ends."""
    corners = as_tuples(points)
    draw.line(corners, fill=value, width=max(1, round(width)), joint="curve")
    radius = width / 2
    for x, y in (corners[0], corners[-1]):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)


def hatch(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    hand: Hand,
    rng: random.Random,
    radius: float,
) -> None:
    """Parallel lines over the box, or one line that zigzags over it."""
    left, top, right, bottom = box
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    reach = math.hypot(right - left, bottom - top) / 2
    step = radius * rng.uniform(0.14, 0.3)
    width = max(1.3 * OVERSAMPLING, step * rng.uniform(0.35, 0.75))
    degrees = rng.choice((0, 45, -45, 90, rng.uniform(-90, 90)))
    offsets = np.arange(-reach, reach + step, step)
    ends = []
    for i, offset in enumerate(offsets):
        error = step * 0.25 if hand.fill == "scribbled" else step * hand.shake * 4
        start = (-reach, offset + rng.uniform(-error, error))
        end = (reach, offset + rng.uniform(-error, error))
        ends.append([start, end] if i % 2 == 0 else [end, start])
    lines = np.array(ends)
    if hand.fill == "scribbled":
        zigzag = lines.reshape(-1, 2)
        stroke(draw, turned(zigzag, degrees) + middle, width, 255)
        return
    for line in lines:
        stroke(draw, turned(line, degrees) + middle, width, 255)


def crayon(mask: Image.Image, rng: random.Random) -> Image.Image:
    """Paint that is rubbed on: grains of the paper stay free."""
    cells = (max(2, mask.width // 2), max(2, mask.height // 2))
    grain = Image.frombytes("L", cells, rng.randbytes(cells[0] * cells[1]))
    covered = rng.uniform(0.6, 0.9)
    light = grain.point([255 if value < 255 * covered else 60 for value in range(256)])
    return ImageChops.multiply(mask, light.resize(mask.size, Image.Resampling.BILINEAR))


# ------------------------------------------------------------------------------------ paint


def paint(
    image: Image.Image, mask: Image.Image, corner: tuple[int, int], rgb: RGB, hand: Hand
) -> None:
    """The mask in a colour, with its gradient if it has one."""
    if hand.gradient == 0:
        image.paste(rgb, corner, mask)
        return
    ramp = Image.linear_gradient("L").rotate(90 * (hand.seed % 4)).resize(mask.size)
    end = 255 if hand.gradient > 0 else 0
    other = tuple(round(c + (end - c) * 0.35 * abs(hand.gradient)) for c in rgb)
    shaded = Image.composite(
        Image.new("RGB", mask.size, other), Image.new("RGB", mask.size, rgb), ramp
    )
    image.paste(shaded, corner, mask)


def cast_shadow(image: Image.Image, mask: Image.Image, corner: tuple[int, int], hand: Hand) -> None:
    """A soft shadow of the mask, towards the lower right or left."""
    distance = max(2, round(0.07 * max(mask.size)))
    dx = distance if hand.seed % 2 else -distance
    margin = 3 * distance
    blurred = Image.new("L", (mask.width + 2 * margin, mask.height + 2 * margin))
    blurred.paste(
        mask.point([round(value * 0.5 * hand.shadow) for value in range(256)]), (margin,) * 2
    )
    blurred = blurred.filter(ImageFilter.GaussianBlur(0.6 * distance))
    image.paste((40, 40, 45), (corner[0] - margin + dx, corner[1] - margin + distance), blurred)


# ----------------------------------------------------------------------------------- ground

TEXTURES = ("lines", "squares", "chequered", "stripes", "clouds", "dots", "grain", "board")


def draw_ground(
    texture: str, rgb: RGB, second: RGB, size: tuple[int, int], seed: int
) -> Image.Image:
    """A ground of two colours close to each other, seeded."""
    rng = random.Random(seed)
    width, height = size
    image = Image.new("RGB", size, rgb)
    draw = ImageDraw.Draw(image)
    step = rng.randint(7, 22)
    if texture in ("lines", "squares"):  # as paper of a school book has
        for y in range(rng.randrange(step), height, step):
            draw.line((0, y, width, y), fill=second)
        if texture == "squares":
            for x in range(rng.randrange(step), width, step):
                draw.line((x, 0, x, height), fill=second)
    elif texture == "chequered":
        for y in range(0, height, step):
            for x in range(y // step % 2 * step, width, 2 * step):
                draw.rectangle((x, y, x + step - 1, y + step - 1), fill=second)
    elif texture == "stripes":
        slope = rng.choice((-height, 0, height, height // 2))
        for x in range(-abs(slope), width + abs(slope), step):
            draw.line((x, 0, x + slope, height), fill=second, width=max(1, step // 3))
    elif texture == "dots":
        for y in range(0, height, step):
            for x in range(0, width, step):
                draw.ellipse((x, y, x + step / 3, y + step / 3), fill=second)
    else:
        # Random cells, wide for clouds, narrow and long for the grain of wood, and for a
        # blackboard that was wiped.
        cells = {"clouds": (width // 12, height // 12), "grain": (width // 40, height // 3)}
        across, down = cells.get(texture, (width // 25, height // 8))
        across, down = max(2, across), max(2, down)
        noise = Image.frombytes("L", (across, down), rng.randbytes(across * down))
        mask = noise.resize(size, Image.Resampling.BICUBIC)
        image.paste(second, mask=mask)
    return image


# ----------------------------------------------------------------------------------- camera


@dataclass(frozen=True)
class Camera:
    """A photo of paper or of a screen.

    corners: how far each corner of the canvas moves inwards, as shares of the side, eight
    numbers; what lies beyond is `table`. shade: 0 to 1, how much darker one side is;
    brightness and contrast: factors; tint: one for each channel; blur: in pixels; noise: 0
    to 1; quality: of JPEG, 0 for none; rows: whether a screen's rows show.
    """

    corners: tuple[float, ...]
    table: RGB
    shade: float
    brightness: float
    contrast: float
    tint: tuple[float, float, float]
    blur: float
    noise: float
    quality: int
    rows: bool
    seed: int

    def perspective(self, size: tuple[int, int]) -> np.ndarray:
        """The eight numbers that take a point of the photo to one of the canvas, in pixels."""
        width, height = size
        source = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=float)
        inwards = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
        target = source + inwards * np.array(self.corners).reshape(4, 2) * (width, height)
        rows = []
        for (x, y), (u, v) in zip(target, source, strict=True):
            rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
            rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        return np.linalg.solve(np.array(rows), source.reshape(8))

    def where_seen(
        self, points: list[tuple[float, float]], size: tuple[int, int]
    ) -> list[tuple[float, float]]:
        """Where points of the canvas, in pixels, are in the photo."""
        numbers = np.append(self.perspective(size), 1).reshape(3, 3)
        there = np.linalg.inv(numbers) @ np.array([(x, y, 1) for x, y in points]).T
        return as_tuples((there[:2] / there[2]).T)


def random_camera(rng: random.Random) -> Camera:
    """A photo of paper or a screen half of the time, else one flaw or two."""
    is_photo = rng.random() < 0.5

    def has(share: float) -> bool:
        """Whether it has a flaw: a photo has all, another image each with this probability."""
        return is_photo or rng.random() < share

    corners = [0.0] * 8
    if is_photo or rng.random() < 0.2:
        reach = rng.choice((0.02, 0.05, 0.08))
        corners = [rng.uniform(0, reach) for _ in range(8)]
    dark = rng.randint(10, 90)
    table = tuple(min(255, dark + rng.randint(0, 30)) for _ in range(3))
    warmth = rng.uniform(-0.06, 0.06) if has(0.2) else 0.0
    return Camera(
        corners=tuple(corners),
        table=(table[0], table[1], table[2]),
        shade=rng.uniform(0, 0.35) if has(0.3) else 0.0,
        brightness=rng.uniform(0.6, 1.05) if has(0.4) else 1.0,
        contrast=rng.uniform(0.6, 1.0) if has(0.4) else 1.0,
        tint=(1 + warmth, 1 + rng.uniform(-0.02, 0.02), 1 - warmth),
        blur=rng.uniform(0, 1.3) if has(0.3) else 0.0,
        noise=rng.uniform(0, 0.09) if has(0.3) else 0.0,
        quality=rng.randint(12, 80) if has(0.4) else 0,
        rows=is_photo and rng.random() < 0.3,
        seed=rng.getrandbits(32),
    )


def photograph(image: Image.Image, camera: Camera) -> Image.Image:
    """The image as the camera gives it back, in the same size."""
    rng = random.Random(camera.seed)
    width, height = image.size
    if camera.rows:
        draw = ImageDraw.Draw(image, "RGBA")
        for y in range(0, height, 3):
            draw.line((0, y, width, y), fill=(0, 0, 0, 22))
    if any(camera.corners):
        image = tilted(image, camera)
    if camera.contrast < 1:
        grey = Image.new("RGB", image.size, (150, 150, 150))
        image = Image.blend(grey, image, camera.contrast)
    if camera.brightness != 1 or camera.tint != (1, 1, 1):
        factors = [camera.brightness * factor for factor in camera.tint]
        table = [min(255, round(value * factor)) for factor in factors for value in range(256)]
        image = image.point(table)
    if camera.shade:
        ramp = rng.choice((Image.linear_gradient("L"), Image.radial_gradient("L")))
        ramp = ramp.rotate(90 * rng.randrange(4)).resize(image.size)
        dark = ImageEnhance.Brightness(image).enhance(1 - camera.shade)
        image = Image.composite(dark, image, ramp)
    if camera.blur:
        image = image.filter(ImageFilter.GaussianBlur(camera.blur))
    if camera.noise:
        grains = Image.frombytes("RGB", image.size, rng.randbytes(3 * width * height))
        image = Image.blend(image, grains, camera.noise)
    if camera.quality:
        image = jpeg(image, camera.quality)
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image as JPEG of this quality gives it back."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def tilted(image: Image.Image, camera: Camera) -> Image.Image:
    """The image with its corners moved inwards, on a table."""
    return image.transform(
        image.size,
        Image.Transform.PERSPECTIVE,
        tuple(camera.perspective(image.size)),
        Image.Resampling.BILINEAR,
        fillcolor=camera.table,
    )
