"""The world that the embedded model knows: coloured shapes on plain canvases, and questions about them.

A scene is a canvas and a few objects, drawn with Pillow; every question about it is answered from the list
of objects, never from the pixels. All follows from the `random.Random` that the caller hands in, so the same
seed gives the same picture and the same words on every machine.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (240, 212, 20),
    "green": (34, 150, 60),
    "blue": (35, 90, 210),
    "purple": (130, 50, 170),
    "pink": (250, 130, 190),
    "black": (25, 25, 25),
}
BACKGROUNDS = (
    (255, 255, 255),
    (238, 238, 238),
    (250, 243, 224),
    (222, 236, 246),
    (226, 242, 226),
    (205, 205, 210),
)

# Pairs that no training scene shows and no training text names: does the model join a colour and a shape that
# it has only seen apart? Every colour and every shape still appears in training, with other partners.
HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("green", "circle"),
        ("blue", "cross"),
        ("yellow", "ring"),
        ("pink", "square"),
        ("black", "triangle"),
    }
)

NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six")
OVERSAMPLING = 4  # shapes are drawn this much larger and shrunk, for smooth edges


# ------------------------------------------------------------------------------------------------- shapes


def _polygon(*points: tuple[float, float]) -> Callable:
    """A painter of the polygon with these corners in a square from -1 to 1, y pointing down."""

    def paint(draw: ImageDraw.ImageDraw, r: float) -> None:
        draw.polygon([(r + x * r, r + y * r) for x, y in points], fill=255)

    return paint


def _around(n: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """n corners around the centre, the first on top, at radii that take turns."""
    turns = [2 * math.pi * i / n for i in range(n)]
    return [
        (radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a))
        for i, a in enumerate(turns)
    ]


def _circle(draw: ImageDraw.ImageDraw, r: float) -> None:
    draw.ellipse((0, 0, 2 * r - 1, 2 * r - 1), fill=255)


def _ring(draw: ImageDraw.ImageDraw, r: float) -> None:
    _circle(draw, r)
    draw.ellipse((0.5 * r, 0.5 * r, 1.5 * r, 1.5 * r), fill=0)


_A = 0.34  # half the width of a cross's arm
SHAPES = {
    "circle": _circle,
    "square": _polygon((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)),
    "triangle": _polygon((0, -0.95), (1, 0.85), (-1, 0.85)),
    "star": _polygon(*_around(10, (1.0, 0.42))),
    "cross": _polygon(
        (-_A, -1), (_A, -1), (_A, -_A), (1, -_A), (1, _A), (_A, _A),
        (_A, 1), (-_A, 1), (-_A, _A), (-1, _A), (-1, -_A), (-_A, -_A),
    ),
    "ring": _ring,
}  # fmt: skip
PAIRS = [(colour, shape) for colour in COLOURS for shape in SHAPES]


# ------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Thing:
    """One object: its names, its centre and its radius in pixels, and its colour as painted."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A canvas in pixels and its objects, from left to right."""

    width: int
    height: int
    background: tuple[int, int, int]
    things: tuple[Thing, ...]

    def draw(self) -> Image.Image:
        picture = Image.new("RGB", (self.width, self.height), self.background)
        for thing in self.things:
            r = thing.radius * OVERSAMPLING
            mask = Image.new("L", (math.ceil(2 * r), math.ceil(2 * r)))
            SHAPES[thing.shape](ImageDraw.Draw(mask), r)
            mask = mask.reduce(OVERSAMPLING)
            corner = (round(thing.x - mask.width / 2), round(thing.y - mask.height / 2))
            picture.paste(thing.rgb, corner, mask)
        return picture


@dataclass(frozen=True)
class Level:
    """How hard scenes are: how many objects, on canvases with sides between two limits in pixels."""

    objects: tuple[int, int]
    sides: tuple[int, int]
    pairs: tuple[tuple[str, str], ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
    max_aspect: float = 2.5

    def canvas(self, rng: random.Random) -> tuple[int, int]:
        """(width, height)."""
        width = rng.randint(*self.sides)
        low, high = max(self.sides[0], width / self.max_aspect), min(self.sides[1], width * self.max_aspect)
        return width, rng.randint(math.ceil(low), math.floor(high))


def random_scene(rng: random.Random, level: Level, canvas: tuple[int, int] | None = None) -> Scene:
    """Objects that don't touch, wholly on the canvas, 18 px across or more, each plainly left of the next."""
    width, height = canvas or level.canvas(rng)
    wanted = rng.randint(*level.objects)
    things: list[Thing] = []
    for _ in range(40):  # a crowded canvas may take fewer than wanted
        if len(things) == wanted:
            break
        radius = max(9.0, rng.uniform(0.17, 0.42 if wanted == 1 else 0.3) * min(width, height, 112))
        x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        if any(math.hypot(x - o.x, y - o.y) < (radius + o.radius) * 1.1 or abs(x - o.x) < 8 for o in things):
            continue
        colour, shape = rng.choice(level.pairs)
        rgb = tuple(min(255, max(0, c + rng.randint(-14, 14))) for c in COLOURS[colour])
        things.append(Thing(colour, shape, x, y, radius, rgb))
    things.sort(key=lambda thing: thing.x)
    return Scene(width, height, rng.choice(BACKGROUNDS), tuple(things))


# -------------------------------------------------------------------------------------- questions, answers


def a(name: str) -> str:
    """The name with its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def listing(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def describe(scene: Scene, rng: random.Random, level: Level) -> tuple[str, str] | None:
    question = rng.choice(
        ("Describe this image.", "Describe the picture.", "What do you see?", "What is in this picture?")
    )
    return question, _capital(listing([a(thing.name) for thing in scene.things])) + "."


def _single(scene: Scene, rng: random.Random, attribute: str) -> Thing | None:
    """A random object that no other shares the attribute with."""
    values = [getattr(thing, attribute) for thing in scene.things]
    unique = [thing for thing in scene.things if values.count(getattr(thing, attribute)) == 1]
    return rng.choice(unique) if unique else None


def colour(scene: Scene, rng: random.Random, level: Level) -> tuple[str, str] | None:
    thing = _single(scene, rng, "shape")
    if thing is None:
        return None
    question = rng.choice(
        ("What colour is the {}?", "What color is the {}?", "Which colour does the {} have?")
    )
    return question.format(thing.shape), f"{_capital(thing.colour)}."


def shape(scene: Scene, rng: random.Random, level: Level) -> tuple[str, str] | None:
    thing = _single(scene, rng, "colour")
    if thing is None:
        return None
    question = rng.choice(("What shape is the {} object?", "What is the {} thing?", "Which shape is {}?"))
    return question.format(thing.colour), f"{_capital(a(thing.shape))}."


def how_many(scene: Scene, rng: random.Random, level: Level) -> tuple[str, str] | None:
    if rng.random() < 0.5:
        question = rng.choice(("How many shapes are there?", "How many objects do you see?"))
        return question, f"{NUMBERS[len(scene.things)]}."
    kinds = [thing.shape for thing in scene.things]
    kind = rng.choice(kinds) if rng.random() < 0.7 else rng.choice(list(SHAPES))
    plural = "crosses" if kind == "cross" else f"{kind}s"
    question = rng.choice((f"How many {plural} are there?", f"Count the {plural}."))
    return question, f"{NUMBERS[kinds.count(kind)]}."


def _third(at: float, size: int, names: tuple[str, str, str]) -> str | None:
    """Which third of the side a coordinate is in; None within 4 % of a border, where anybody would guess."""
    thirds = 3 * at / size
    if min(abs(thirds - 1), abs(thirds - 2)) < 0.12:
        return None
    return names[min(2, int(thirds))]


def where(scene: Scene, rng: random.Random, level: Level) -> tuple[str, str] | None:
    thing = _single(scene, rng, "name")
    if thing is None:
        return None
    row = _third(thing.y, scene.height, ("top", "", "bottom"))
    column = _third(thing.x, scene.width, ("left", "", "right"))
    if row is None or column is None:
        return None
    place = " ".join(word for word in (row, column) if word)
    question = rng.choice(("Where is the {}?", "Where do you see the {}?")).format(thing.name)
    return question, f"At the {place}." if place else "In the middle."


def is_there(scene: Scene, rng: random.Random, level: Level) -> tuple[str, str] | None:
    names = {(thing.colour, thing.shape) for thing in scene.things}
    yes = rng.random() < 0.5
    if yes:
        pair = rng.choice(sorted(names))
    else:
        near = [p for p in level.pairs if p not in names and any(p[0] == c or p[1] == s for c, s in names)]
        far = [p for p in level.pairs if p not in names]
        pair = rng.choice(near if near and rng.random() < 0.7 else far)
    question = rng.choice(("Is there {}?", "Do you see {}?", "Can you see {} in the picture?"))
    return question.format(a(" ".join(pair))), "Yes." if yes else "No."


TASKS = {
    "describe": describe,
    "colour": colour,
    "shape": shape,
    "how many": how_many,
    "where": where,
    "is there": is_there,
}


def ask(scene: Scene, rng: random.Random, level: Level, task: str) -> tuple[str, str] | None:
    """A question and its answer, or None where the scene leaves the task ambiguous."""
    return TASKS[task](scene, rng, level)


def every_pair(level: Level) -> Level:
    """The same level with the held-out pairs let in: for evaluation only."""
    return replace(level, pairs=tuple(PAIRS))
