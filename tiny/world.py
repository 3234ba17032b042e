"""The world that the embedded model knows: coloured shapes and written words, in pictures and in clips.

A scene is a canvas and a few things on it, drawn with Pillow. Several scenes make a set of pictures or, one
after another, a clip. What is asked about them (`tiny/tasks.py`) is answered from the list of things, never
from the pixels. All follows from the `random.Random` that the caller hands in, so the same seed gives the
same pictures and the same words on every machine.
"""

import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (240, 212, 20),
    "green": (34, 150, 60),
    "cyan": (30, 200, 215),
    "blue": (35, 90, 210),
    "purple": (130, 50, 170),
    "pink": (250, 130, 190),
    "brown": (125, 75, 35),
    "grey": (128, 128, 128),
    "black": (22, 22, 22),
    "white": (250, 250, 250),
}
CANVASES = (
    (255, 255, 255),
    (238, 238, 238),
    (250, 243, 224),
    (222, 236, 246),
    (226, 242, 226),
    (246, 226, 226),
    (205, 205, 210),
    (190, 205, 225),
    (70, 75, 95),
    (40, 60, 50),
)
CONTRAST = 85  # the least distance in RGB of a thing's colour to its canvas

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
        ("white", "moon"),
        ("cyan", "heart"),
        ("brown", "arrow"),
        ("purple", "diamond"),
    }
)
HELD_OUT_RATIO = (1.45, 1.75)  # long side to short: training canvases are flatter or steeper, never between
SMALLEST, LARGEST = 18, 100  # px across a shape
OVERSAMPLING = 4  # shapes are drawn this much larger and shrunk, for smooth edges

# Short words to read. Every fifth is kept from training.
WORDS_TEXT = """
    ACT ADD AGE AIR ANT APE ARM ART ASH BAG BAT BED BEE BIG BIKE BIRD BLUE BOAT BODY BOOK BOX BOY BUS
    CAKE CALL CAR CARD CAT CITY CLUB COAT COLD COOK CORN COW CUP DAY DEER DESK DISH DOG DOOR DOWN DRUM
    DUCK EAR EAST EGG EXIT EYE FACE FAN FARM FAST FILM FIRE FISH FLAG FOOD FOOT FORK FOX FREE FROG FUN
    GAME GATE GIFT GIRL GO GOAT GOLD GOOD HAIR HAND HAT HELLO HELP HEN HILL HOME HORN HOT HOUR ICE INK
    IRON JAM JAR JOB JOY JUMP KEY KID KING KITE LAKE LAMP LEAF LEG LION LIP LOCK LOVE LUCK MAP MAN MEN
    MILK MIX MOON MOUSE MUD NAME NEST NET NEW NIGHT NINE NO NORTH NOSE NUT OAK OIL OLD ONE OPEN OUT OWL
    PAN PARK PEN PET PIE PIG PIN POND POT QUEEN RAIN RAT RED RICE RING ROAD ROOF ROSE RUN SALT SAND SEA
    SHIP SHOE SHOP SIX SKY SNOW SOAP SOCK SONG SOUP SOUTH SPOON STAR STOP SUGAR SUN SWIM TAXI TEA TEN
    TENT TOE TOP TOWN TOY TRAIN TREE TWO UP VAN WALK WALL WARM WATER WAVE WAY WEST WIND WOLF WOOD YEAR
    YES ZERO ZOO
"""
WORDS = tuple(WORDS_TEXT.split())
HELD_OUT_WORDS = frozenset(WORDS[::5])
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "LiberationSans-Bold.ttf", "Arial.ttf")


# ------------------------------------------------------------------------------------------------ stencils


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


def _heart() -> list[tuple[float, float]]:
    """Corners along the heart curve 16 sin³ t; 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
    turns = [2 * math.pi * i / 60 for i in range(60)]
    high = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(math.sin(t) ** 3, -(y + 2.5) / 15.5) for t, y in zip(turns, high, strict=True)]


def _circle(draw: ImageDraw.ImageDraw, r: float) -> None:
    draw.ellipse((0, 0, 2 * r - 1, 2 * r - 1), fill=255)


def _ring(draw: ImageDraw.ImageDraw, r: float) -> None:
    _circle(draw, r)
    draw.ellipse((0.5 * r, 0.5 * r, 1.5 * r, 1.5 * r), fill=0)


def _moon(draw: ImageDraw.ImageDraw, r: float) -> None:
    _circle(draw, r)
    draw.ellipse((0.65 * r, -0.1 * r, 2.45 * r, 1.7 * r), fill=0)


_A = 0.34  # half the width of a cross's arm
SHAPES = {
    "circle": _circle,
    "square": _polygon((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)),
    "triangle": _polygon((0, -0.95), (1, 0.85), (-1, 0.85)),
    "diamond": _polygon((0, -1), (0.72, 0), (0, 1), (-0.72, 0)),
    "star": _polygon(*_around(10, (1.0, 0.42))),
    "cross": _polygon(
        (-_A, -1), (_A, -1), (_A, -_A), (1, -_A), (1, _A), (_A, _A),
        (_A, 1), (-_A, 1), (-_A, _A), (-1, _A), (-1, -_A), (-_A, -_A),
    ),
    "ring": _ring,
    "heart": _polygon(*_heart()),
    "moon": _moon,
    "arrow": _polygon((-1, -0.28), (0.1, -0.28), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28)),
}  # fmt: skip
PAIRS = [(colour, shape) for colour in COLOURS for shape in SHAPES]


@lru_cache(maxsize=4096)
def stencil(shape: str, size: int, text: str = "", font: str = "") -> Image.Image:
    """Where paint goes: a mask as large as the shape drawn `size` pixels across, or text set in that size."""
    if text:
        face = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
        left, top, right, bottom = (round(edge) for edge in face.getbbox(text))
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=face)
    else:
        mask = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
        SHAPES[shape](ImageDraw.Draw(mask), size * OVERSAMPLING / 2)
        mask = mask.reduce(OVERSAMPLING)
    return mask.crop(mask.getbbox())


def installed_fonts() -> tuple[str, ...]:
    """Pillow's own scalable font, which is "", and those of FONTS that this machine has."""
    found = [""]
    for name in FONTS:
        with contextlib.suppress(OSError):
            ImageFont.truetype(name, 20)
            found.append(name)
    return tuple(found)


# ------------------------------------------------------------------------------------------ things, scenes


@dataclass(frozen=True)
class Thing:
    """A shape, or a "word" or "number" and its text: names, centre and size in pixels, colour as painted."""

    colour: str
    shape: str
    x: float
    y: float
    size: int
    rgb: tuple[int, int, int]
    text: str = ""
    font: str = ""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}" + (f" {self.text}" if self.text else "")

    @property
    def stencil(self) -> Image.Image:
        return stencil(self.shape, self.size, self.text, self.font)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge in pixels; the last two are one past the last pixel."""
        width, height = self.stencil.size
        left, top = round(self.x - width / 2), round(self.y - height / 2)
        return left, top, left + width, top + height


@dataclass(frozen=True)
class Background:
    """A colour, or a gradient to a second one, with noise of strength 0 to 1 over it."""

    rgb: tuple[int, int, int]
    second: tuple[int, int, int] | None = None
    sideways: bool = False
    noise: float = 0.0
    seed: int = 0

    def draw(self, size: tuple[int, int]) -> Image.Image:
        picture = Image.new("RGB", size, self.rgb)
        if self.second:
            ramp = Image.linear_gradient("L")
            ramp = (ramp.transpose(Image.Transpose.ROTATE_90) if self.sideways else ramp).resize(size)
            picture.paste(self.second, mask=ramp)
        return picture


@dataclass(frozen=True)
class Scene:
    """A canvas in pixels and its things, from left to right."""

    width: int
    height: int
    background: Background
    things: tuple[Thing, ...]

    def draw(self) -> Image.Image:
        size = self.width, self.height
        picture = self.background.draw(size)
        for thing in self.things:
            picture.paste(thing.rgb, thing.box[:2], thing.stencil)
        if self.background.noise:
            dust = random.Random(self.background.seed).randbytes(3 * self.width * self.height)
            picture = Image.blend(picture, Image.frombytes("RGB", size, dust), self.background.noise)
        return picture

    def box(self, thing: Thing, step: int = 1) -> tuple[int, int, int, int]:
        """The thing's box as Qwen2-VL writes it, from 0 to 1000 along each side, in multiples of `step`."""
        left, top, right, bottom = thing.box
        across, down = 1000 / self.width / step, 1000 / self.height / step
        edges = left * across, top * down, right * across, bottom * down
        return tuple(round(edge) * step for edge in edges)

    def blank(self) -> "Scene":
        """The same canvas with nothing on it."""
        return replace(self, things=())


@dataclass(frozen=True)
class Level:
    """How hard scenes are: how many things, on canvases with sides between two limits in pixels.

    pairs: what may be shown and named; ratios and phrasings: "known" ones or the "held out" ones.
    """

    objects: tuple[int, int]
    sides: tuple[int, int]
    pairs: tuple[tuple[str, str], ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
    ratios: str = "known"
    phrasings: str = "known"
    max_ratio: float = 3.0
    fonts: tuple[str, ...] = ("",)
    words: tuple[str, ...] = tuple(word for word in WORDS if word not in HELD_OUT_WORDS)
    made_up: float = 0.6  # the share of words that are random letters: they can't be known by heart
    letters: tuple[int, int] = (1, 5)
    box_step: int = 10  # answers give boxes in such steps: a third digit is more than this model can see

    def canvas(self, rng: random.Random) -> tuple[int, int]:
        """(width, height), the sides' logarithms uniform: small ones are as frequent as large ones."""
        least, most = self.sides
        while True:
            width, height = (round(least * (most / least) ** rng.random()) for _ in range(2))
            ratio = max(width, height) / min(width, height)
            held_out = HELD_OUT_RATIO[0] <= ratio <= HELD_OUT_RATIO[1]
            if ratio <= self.max_ratio and held_out == (self.ratios == "held out"):
                return width, height


def everything(level: Level) -> Level:
    """The same level with what training keeps back let in, ratios and phrasings aside, and exact boxes."""
    return replace(level, pairs=tuple(PAIRS), words=tuple(sorted(HELD_OUT_WORDS)), made_up=0, box_step=1)


def _shade(rng: random.Random, rgb: tuple[int, int, int], by: int) -> tuple[int, int, int]:
    return tuple(min(255, max(0, c + rng.randint(-by, by))) for c in rgb)


def random_background(rng: random.Random) -> Background:
    """Half are plain; the others shade into a colour not far off, carry a little noise, or both."""
    rgb = _shade(rng, rng.choice(CANVASES[:8] if rng.random() < 0.85 else CANVASES[8:]), 6)
    if rng.random() < 0.5:
        return Background(rgb)
    second = _shade(rng, rgb, 35) if rng.random() < 0.6 else None
    noise = rng.uniform(0.02, 0.12) if rng.random() < 0.6 else 0.0
    return Background(rgb, second, rng.random() < 0.5, noise, rng.getrandbits(32))


def _visible(colour: str, background: Background) -> bool:
    return all(
        math.dist(COLOURS[colour], rgb) >= CONTRAST
        for rgb in (background.rgb, background.second or background.rgb)
    )


def random_pair(rng: random.Random, level: Level, background: Background) -> tuple[str, str]:
    """A colour and a shape that show up against the background."""
    while True:
        pair = rng.choice(level.pairs)
        if _visible(pair[0], background):
            return pair


def _thing(rng: random.Random, pair: tuple[str, str], x: float, y: float, size: int, **more) -> Thing:
    return Thing(*pair, x, y, size, _shade(rng, COLOURS[pair[0]], 12), **more)


def _place(
    rng: random.Random, thing: Thing, scene_size: tuple[int, int], things: list[Thing]
) -> Thing | None:
    """The thing at a random place, wholly on the canvas, touching none and plainly left or right of each."""
    (width, height), (w, h) = scene_size, thing.stencil.size
    if w > width or h > height:
        return None
    thing = replace(thing, x=w / 2 + rng.random() * (width - w), y=h / 2 + rng.random() * (height - h))
    for other in things:
        ow, oh = other.stencil.size
        apart = abs(thing.x - other.x) > (w + ow) / 2 + 3 or abs(thing.y - other.y) > (h + oh) / 2 + 3
        if not apart or abs(thing.x - other.x) < max(8, 0.04 * width):
            return None
    return thing


def random_scene(rng: random.Random, level: Level, canvas: tuple[int, int] | None = None) -> Scene:
    """A few shapes, 18 to 100 px across, in sizes that suit the canvas and their number; few more often."""
    width, height = canvas or level.canvas(rng)
    background = random_background(rng)
    wanted = min(rng.randint(*level.objects), rng.randint(*level.objects))
    side = min(math.sqrt(width * height / wanted), 1.2 * min(width, height), LARGEST / 0.78)
    things: list[Thing] = []
    for _ in range(40):  # a crowded canvas may take fewer than wanted
        if len(things) == wanted:
            break
        size = max(SMALLEST, round(rng.uniform(0.28, 0.78) * side))
        thing = _thing(rng, random_pair(rng, level, background), 0, 0, size)
        if placed := _place(rng, thing, (width, height), things):
            things.append(placed)
    return Scene(width, height, background, _ordered(things))


def _ordered(things: list[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: thing.x))


def random_word(rng: random.Random, level: Level) -> tuple[str, str]:
    """("number", digits) or ("word", capital letters)."""
    if rng.random() < 0.35:
        return "number", "".join(rng.choices("0123456789", k=rng.randint(1, 4)))
    if rng.random() < level.made_up:
        letters = rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(*level.letters))
        return "word", "".join(letters)
    return "word", rng.choice(level.words)


def random_sign(rng: random.Random, level: Level, canvas: tuple[int, int] | None = None) -> Scene:
    """A word or number, and sometimes a shape or two beside it."""
    width, height = canvas or level.canvas(rng)
    background = random_background(rng)
    kind, text = random_word(rng, level)
    colour = random_pair(rng, level, background)[0]
    font = rng.choice(level.fonts)
    while (largest := 90 * width / stencil(kind, 100, text, font).width) < 15:
        text = text[:-1]  # too long for so narrow a canvas
    largest = min(largest, 0.8 * height, 72)
    size = round(rng.uniform(max(0.45 * largest, 15), largest))
    sign = _thing(rng, (colour, kind), 0, 0, size, text=text, font=font)
    things = [_place(rng, sign, (width, height), [])]
    for _ in range(rng.choice((0, 0, 1, 2)) * 4):
        # In this order: the scenes of a seed stay what they are.
        pair, size = (
            random_pair(rng, level, background),
            rng.randint(SMALLEST, max(SMALLEST, min(width, height) // 3)),
        )
        shape = _thing(rng, pair, 0, 0, size)
        if len(things) < 3 and (placed := _place(rng, shape, (width, height), things)):
            things.append(placed)
    return Scene(width, height, background, _ordered(things))


# ---------------------------------------------------------------------------- several pictures, and clips


@dataclass(frozen=True)
class Pictures:
    """Two to four scenes on canvases of one size; `change` says how the second of two differs, if it does."""

    scenes: tuple[Scene, ...]
    change: str = ""

    @property
    def things(self) -> tuple[Thing, ...]:
        return tuple(thing for scene in self.scenes for thing in scene.things)

    def blank(self) -> "Pictures":
        return replace(self, scenes=tuple(scene.blank() for scene in self.scenes))


@dataclass(frozen=True)
class Clip:
    """Scenes at FPS a second, and what happens in them: the subject, the event and its detail."""

    scenes: tuple[Scene, ...]
    event: str
    subject: Thing
    detail: str

    @property
    def things(self) -> tuple[Thing, ...]:
        return (self.subject, *(thing for scene in self.scenes for thing in scene.things))

    def blank(self) -> "Clip":
        return replace(self, scenes=tuple(scene.blank() for scene in self.scenes))


FPS = 2  # frames a second that Qwen2-VL samples from a clip
DIRECTIONS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
TIMES = ("Never", "Once", "Twice", "Three times")


def _different(rng: random.Random, level: Level, background: Background, things, like=None, keep="") -> tuple:
    """A pair that none of the things is; with `like` and `keep`, of the same colour or shape as it."""
    taken = {(thing.colour, thing.shape) for thing in things}
    while True:
        pair = random_pair(rng, level, background)
        if pair in taken or (keep == "colour" and pair[0] != like.colour):
            continue
        if not (keep == "shape" and pair[1] != like.shape):
            return pair


def random_pictures(rng: random.Random, level: Level, canvas: tuple[int, int] | None = None) -> Pictures:
    """Two to four scenes that have nothing to do with each other, or a scene and the same one changed."""
    canvas = canvas or level.canvas(rng)
    if rng.random() < 0.6:
        return Pictures(tuple(random_scene(rng, level, canvas) for _ in range(rng.randint(2, 4))))
    first = random_scene(rng, level, canvas)
    things, i = list(first.things), rng.randrange(len(first.things))
    changed = things[i]
    change = rng.choice(("recoloured", "reshaped", "gone" if len(things) > 1 else "recoloured", "new"))
    names = [thing.name for thing in things]
    if names.count(changed.name) > 1:
        return Pictures((first, random_scene(rng, level, canvas)))
    if change == "recoloured":
        pair = _different(rng, level, first.background, things, changed, "shape")
        things[i] = _thing(rng, pair, changed.x, changed.y, changed.size)
    elif change == "reshaped":
        pair = _different(rng, level, first.background, things, changed, "colour")
        things[i] = replace(changed, shape=pair[1])
    elif change == "gone":
        things.pop(i)
    else:
        pair = _different(rng, level, first.background, things)
        for _ in range(40):
            extra = _place(rng, _thing(rng, pair, 0, 0, changed.size), canvas, things)
            if extra:
                things.append(extra)
                break
        else:
            return Pictures((first, random_scene(rng, level, canvas)))
    return Pictures((first, replace(first, things=_ordered(things))), change)


def random_clip(
    rng: random.Random, level: Level, canvas: tuple[int, int] | None = None, frames: int | None = None
) -> Clip:
    """One thing that does something, and sometimes one that stands by."""
    canvas = canvas or level.canvas(rng)
    frames = frames or rng.choice((4, 6, 8, 10))
    event = rng.choices(("moves", "appears", "disappears", "turns", "comes", "blinks"), (3, 1, 1, 1, 2, 2))[0]
    while True:
        still = random_scene(rng, replace(level, objects=(1, 2)), canvas)
        names = {thing.name for thing in still.things}
        if len(names) == len(still.things) and (len(names) == 2 or event != "comes"):
            break
    things = list(still.things)
    subject = things.pop(rng.randrange(len(things)))
    shown: list[list[Thing]]
    detail = ""
    if event == "moves":
        detail = rng.choice(list(DIRECTIONS))
        subject = replace(subject, size=max(SMALLEST, min(subject.size, min(canvas) // 2)))
        (dx, dy), (w, h) = DIRECTIONS[detail], subject.stencil.size
        span_x, span_y = canvas[0] - w, canvas[1] - h
        start, end = rng.uniform(0, 0.25), rng.uniform(0.75, 1)
        shown = []
        for i in range(frames):
            along = start + (end - start) * i / (frames - 1)
            along = along if dx + dy > 0 else 1 - along
            x = w / 2 + span_x * along if dx else subject.x
            y = h / 2 + span_y * along if dy else subject.y
            shown.append([*things, replace(subject, x=x, y=y)])
    elif event in ("appears", "disappears"):
        at = rng.randint(1, frames - 1)
        shown = [[*things, subject] if (i >= at) == (event == "appears") else things for i in range(frames)]
    elif event == "turns":
        pair = _different(rng, level, still.background, still.things, subject, "shape")
        after, at, detail = (
            _thing(rng, pair, subject.x, subject.y, subject.size),
            rng.randint(1, frames - 1),
            pair[0],
        )
        shown = [[*things, after if i >= at else subject] for i in range(frames)]
    elif event == "comes":
        first, then = sorted(rng.sample(range(0, frames), 2))
        detail = things[0].name
        shown = [
            [t for t, since in ((subject, first), (things[0], then)) if i >= since] for i in range(frames)
        ]
    else:  # gone for a second or more, then back: at 2 frames a second seen as 2 frames without it
        most = min(3, (frames - 1) // 3)
        times = rng.randint(1, most)
        detail = TIMES[times]
        gone = {1 + 3 * k + j for k in range(times) for j in (0, 1)}
        late = rng.randint(0, frames - 1 - max(gone) - 1) if max(gone) + 1 < frames - 1 else 0
        shown = [things if i - late in gone else [*things, subject] for i in range(frames)]
    scenes = tuple(replace(still, things=_ordered(some)) for some in shown)
    return Clip(scenes, event, subject, detail)
