"""The world that the embedded model knows: coloured shapes and written words, as images and
videos.

A scene is a canvas and a few things on it, drawn with Pillow. Several scenes make a set of
images or, one after another, a video. What is asked about them (`tiny/tasks.py`) is
answered from the list of things, never from the pixels. Everything follows from the
`random.Random` that the caller passes in, so the same seed gives the same pixels and the
same words on every machine.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from tiny.drawing import (
    FIGURES,
    RGB,
    TEXTURES,
    Camera,
    Hand,
    Points,
    arrow_corners,
    cast_shadow,
    cross_corners,
    draw_ground,
    figure_mask,
    heart_corners,
    paint,
    photograph,
    random_camera,
    random_hand,
    star_corners,
    text_mask,
)

COLOURS: dict[str, RGB] = {
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
LIGHT_CANVASES = (
    (255, 255, 255),
    (238, 238, 238),
    (250, 243, 224),
    (222, 236, 246),
    (226, 242, 226),
    (246, 226, 226),
    (205, 205, 210),
    (190, 205, 225),
)
DARK_CANVASES = ((70, 75, 95), (40, 60, 50))
# What people draw on beside those: blackboards, dark and coloured paper, wood.
DRAWN_ON = (
    (12, 12, 14),
    (35, 60, 50),
    (30, 34, 60),
    (60, 60, 62),
    (95, 70, 50),
    (235, 200, 120),
    (170, 205, 150),
    (245, 180, 190),
    (200, 170, 130),
)
MIN_CONTRAST = 85  # the least distance in RGB between a thing's colour and its canvas

# Pairs that no training scene shows and no training text names: does the model combine a
# colour and a shape that it has only seen apart? Every colour and every shape still appears
# in training, with other partners.
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
        ("orange", "house"),
        ("blue", "tree"),
        ("grey", "face"),
        ("pink", "sun"),
        ("green", "cloud"),
        ("red", "fish"),
    }
)
# Long side to short: training canvases are flatter or steeper than this, or closer to a
# square.
HELD_OUT_RATIO = (1.45, 1.75)
SMALLEST_SHAPE = 18  # px across
LARGEST_SHAPE = 100
OVERSAMPLING = 4  # shapes are drawn this much larger and shrunk, for smooth edges

# Short words to read. Every fifth is kept from training.
WORDS_TEXT = """
    ACT ADD AGE AIR ANT APE ARM ART ASH BAG BAT BED BEE BIG BIKE BIRD BLUE BOAT BODY BOOK
    BOX BOY BUS CAKE CALL CAR CARD CAT CITY CLUB COAT COLD COOK CORN COW CUP DAY DEER DESK
    DISH DOG DOOR DOWN DRUM DUCK EAR EAST EGG EXIT EYE FACE FAN FARM FAST FILM FIRE FISH
    FLAG FOOD FOOT FORK FOX FREE FROG FUN GAME GATE GIFT GIRL GO GOAT GOLD GOOD HAIR HAND
    HAT HELLO HELP HEN HILL HOME HORN HOT HOUR ICE INK IRON JAM JAR JOB JOY JUMP KEY KID
    KING KITE LAKE LAMP LEAF LEG LION LIP LOCK LOVE LUCK MAP MAN MEN MILK MIX MOON MOUSE MUD
    NAME NEST NET NEW NIGHT NINE NO NORTH NOSE NUT OAK OIL OLD ONE OPEN OUT OWL PAN PARK PEN
    PET PIE PIG PIN POND POT QUEEN RAIN RAT RED RICE RING ROAD ROOF ROSE RUN SALT SAND SEA
    SHIP SHOE SHOP SIX SKY SNOW SOAP SOCK SONG SOUP SOUTH SPOON STAR STOP SUGAR SUN SWIM
    TAXI TEA TEN TENT TOE TOP TOWN TOY TRAIN TREE TWO UP VAN WALK WALL WARM WATER WAVE WAY
    WEST WIND WOLF WOOD YEAR YES ZERO ZOO
"""
WORDS = tuple(WORDS_TEXT.split())
HELD_OUT_WORDS = frozenset(WORDS[::5])
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "LiberationSans-Bold.ttf",
    "Arial.ttf",
)


# --------------------------------------------------------------------------------- stencils

# Paints a shape of radius r around the point (r, r).
Painter = Callable[[ImageDraw.ImageDraw, float], None]


def _polygon(corners: Points) -> Painter:
    """A painter of the polygon with these corners."""

    def paint(draw: ImageDraw.ImageDraw, r: float) -> None:
        draw.polygon([(r + x * r, r + y * r) for x, y in corners], fill=255)

    return paint


def _circle(draw: ImageDraw.ImageDraw, r: float) -> None:
    draw.ellipse((0, 0, 2 * r - 1, 2 * r - 1), fill=255)


def _ring(draw: ImageDraw.ImageDraw, r: float) -> None:
    _circle(draw, r)
    draw.ellipse((0.5 * r, 0.5 * r, 1.5 * r, 1.5 * r), fill=0)


def _moon(draw: ImageDraw.ImageDraw, r: float) -> None:
    _circle(draw, r)
    draw.ellipse((0.65 * r, -0.1 * r, 2.45 * r, 1.7 * r), fill=0)


SHAPES: dict[str, Painter] = {
    "circle": _circle,
    "square": _polygon([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]),
    "triangle": _polygon([(0, -0.95), (1, 0.85), (-1, 0.85)]),
    "diamond": _polygon([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]),
    "star": _polygon(star_corners(5, 1.0, 0.42)),
    "cross": _polygon(cross_corners(0.34)),
    "ring": _ring,
    "heart": _polygon(heart_corners(dip=5)),
    "moon": _moon,
    "arrow": _polygon(arrow_corners(shaft=0.28, neck=0.1, wing=0.8)),
}
PAIRS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
ALL_PAIRS = [(colour, shape) for colour in COLOURS for shape in FIGURES]


PLAIN_HAND = Hand("solid", 0.1, 0.0, 0.0, 1.0, 0.0, 0.0, seed=0)


@lru_cache(maxsize=4096)  # a thing's stencil is needed to place it, to box it and to paint it
def stencil(
    shape: str, size: int, text: str = "", font: str = "", hand: Hand | None = None
) -> Image.Image:
    """A mask of where paint goes: a shape `size` pixels across, or text set in that size."""
    if text:
        mask = _text_mask(text, size, font)
        if hand:
            mask = text_mask(mask, hand)
    elif hand or shape not in SHAPES:
        mask = figure_mask(shape, size, hand or PLAIN_HAND)
    else:
        mask = _shape_mask(shape, size)
    return mask.crop(mask.getbbox())


def _text_mask(text: str, size: int, font: str) -> Image.Image:
    typeface = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
    left, top, right, bottom = (round(edge) for edge in typeface.getbbox(text))
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=typeface)
    return mask


def _shape_mask(shape: str, size: int) -> Image.Image:
    large = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
    paint = SHAPES[shape]
    paint(ImageDraw.Draw(large), size * OVERSAMPLING / 2)
    return large.reduce(OVERSAMPLING)


def installed_fonts() -> tuple[str, ...]:
    """Pillow's own scalable font, which is "", and those of FONTS that this machine has."""
    found = [""]
    for name in FONTS:
        with contextlib.suppress(OSError):
            ImageFont.truetype(name, 20)
            found.append(name)
    return tuple(found)


# --------------------------------------------------------------------------- things, scenes


@dataclass(frozen=True)
class Thing:
    """A shape, or a "word" or "number" with its text; centre and size in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    size: int
    rgb: RGB
    text: str = ""
    font: str = ""
    hand: Hand | None = None  # none: filled, with edges like a ruler's

    @property
    def name(self) -> str:
        name = f"{self.colour} {self.shape}"
        return f"{name} {self.text}" if self.text else name

    @property
    def stencil(self) -> Image.Image:
        return stencil(self.shape, self.size, self.text, self.font, self.hand)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Edges in pixels: left, top, right, bottom, the last two exclusive."""
        width, height = self.stencil.size
        left = round(self.x - width / 2)
        top = round(self.y - height / 2)
        return left, top, left + width, top + height


@dataclass(frozen=True)
class Background:
    """A colour, or a gradient to a second one, with noise of strength 0 to 1 over it."""

    rgb: RGB
    second: RGB | None = None
    sideways: bool = False
    noise: float = 0.0
    seed: int = 0  # of the noise and the texture
    texture: str = ""  # one of TEXTURES, in the second colour

    def draw(self, size: tuple[int, int]) -> Image.Image:
        """The background without its noise, which lies over the things too."""
        if self.texture:
            assert self.second is not None
            return draw_ground(self.texture, self.rgb, self.second, size, self.seed)
        image = Image.new("RGB", size, self.rgb)
        if self.second:
            ramp = Image.linear_gradient("L")
            if self.sideways:
                ramp = ramp.transpose(Image.Transpose.ROTATE_90)
            image.paste(self.second, mask=ramp.resize(size))
        return image


@dataclass(frozen=True)
class Scene:
    """A canvas in pixels and its things, from left to right."""

    width: int
    height: int
    background: Background
    things: tuple[Thing, ...]
    camera: Camera | None = None

    def draw(self) -> Image.Image:
        size = (self.width, self.height)
        image = self.background.draw(size)
        for thing in self.things:
            if thing.hand and thing.hand.shadow:
                cast_shadow(image, thing.stencil, thing.box[:2], thing.hand)
        for thing in self.things:
            if thing.hand:
                paint(image, thing.stencil, thing.box[:2], thing.rgb, thing.hand)
            else:
                image.paste(thing.rgb, thing.box[:2], thing.stencil)
        if self.background.noise:
            noise = random.Random(self.background.seed).randbytes(3 * self.width * self.height)
            image = Image.blend(image, Image.frombytes("RGB", size, noise), self.background.noise)
        if self.camera:
            image = photograph(image, self.camera)
        return image

    def seen_box(self, thing: Thing) -> tuple[float, float, float, float]:
        """The thing's edges in the image, in pixels: what is cut off doesn't count."""
        left, top, right, bottom = thing.box
        if self.camera:
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            seen = self.camera.where_seen(corners, (self.width, self.height))
            left, right = min(x for x, _ in seen), max(x for x, _ in seen)
            top, bottom = min(y for _, y in seen), max(y for _, y in seen)
        return max(0, left), max(0, top), min(self.width, right), min(self.height, bottom)

    def seen_centre(self, thing: Thing) -> tuple[float, float]:
        """The middle of the thing in the image, in pixels."""
        if not self.camera:
            return thing.x, thing.y
        left, top, right, bottom = self.seen_box(thing)
        return (left + right) / 2, (top + bottom) / 2

    def normalised_box(self, thing: Thing, step: int = 1) -> tuple[int, int, int, int]:
        """The thing's box as Qwen2-VL writes it, 0 to 1000 a side, in multiples of `step`."""
        left, top, right, bottom = self.seen_box(thing)
        x_scale = 1000 / self.width / step
        y_scale = 1000 / self.height / step
        return (
            round(left * x_scale) * step,
            round(top * y_scale) * step,
            round(right * x_scale) * step,
            round(bottom * y_scale) * step,
        )

    def blank(self) -> "Scene":
        """The same canvas with nothing on it."""
        return replace(self, things=())


@dataclass(frozen=True)
class Level:
    """How hard scenes are: the least and most things, on canvases with sides between two
    limits in pixels.

    pairs: what may be shown and named; ratios and phrasings: "known" ones or the "held out"
    ones.
    """

    things: tuple[int, int]
    sides: tuple[int, int]
    pairs: tuple[tuple[str, str], ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
    ratios: str = "known"
    phrasings: str = "known"
    max_ratio: float = 3.0
    fonts: tuple[str, ...] = ("",)
    words: tuple[str, ...] = tuple(word for word in WORDS if word not in HELD_OUT_WORDS)
    random_letters: float = 0.6  # the share of words that nobody can know by heart
    letters: tuple[int, int] = (1, 5)  # the least and most letters of such a word
    box_step: int = 10  # answers give boxes in such steps: this model can't see a third digit
    drawn: float = 0.0  # the share of scenes that are drawn by hand or photographed
    untidy: float = 0.0  # the share of those whose things overlap or are cut off
    smallest: int = SMALLEST_SHAPE  # of what is drawn by hand, in pixels
    asking: str = "plain"  # or "people": no capital, no question mark, a typo

    def random_canvas(self, rng: random.Random) -> tuple[int, int]:
        """(width, height), their logarithms uniform: small sides are as frequent as large."""
        least, most = self.sides
        while True:
            width = round(least * (most / least) ** rng.random())
            height = round(least * (most / least) ** rng.random())
            ratio = max(width, height) / min(width, height)
            is_held_out = HELD_OUT_RATIO[0] <= ratio <= HELD_OUT_RATIO[1]
            if ratio <= self.max_ratio and is_held_out == (self.ratios == "held out"):
                return width, height


def with_held_out(level: Level) -> Level:
    """The same level with exact boxes, all pairs and unseen words."""
    words = tuple(sorted(HELD_OUT_WORDS))
    return replace(level, pairs=tuple(PAIRS), words=words, random_letters=0, box_step=1)


def _vary_colour(rng: random.Random, rgb: RGB, by: int) -> RGB:
    red, green, blue = (min(255, max(0, channel + rng.randint(-by, by))) for channel in rgb)
    return red, green, blue


def random_background(rng: random.Random) -> Background:
    """Half are plain; the others shade into a second colour, carry a little noise, or both."""
    canvases = LIGHT_CANVASES if rng.random() < 0.85 else DARK_CANVASES
    rgb = _vary_colour(rng, rng.choice(canvases), 6)
    if rng.random() < 0.5:
        return Background(rgb)
    second = _vary_colour(rng, rgb, 35) if rng.random() < 0.6 else None
    noise = rng.uniform(0.02, 0.12) if rng.random() < 0.6 else 0.0
    sideways = rng.random() < 0.5
    return Background(rgb, second, sideways, noise, seed=rng.getrandbits(32))


def _has_contrast(colour: str, background: Background) -> bool:
    """Whether the colour shows up against both ends of the background's gradient."""
    ends = [background.rgb]
    if background.second:
        ends.append(background.second)
    return all(math.dist(COLOURS[colour], end) >= MIN_CONTRAST for end in ends)


def random_pair(rng: random.Random, level: Level, background: Background) -> tuple[str, str]:
    """A colour and a shape that show up against the background."""
    while True:
        colour, shape = rng.choice(level.pairs)
        if _has_contrast(colour, background):
            return colour, shape


def _new_thing(
    rng: random.Random,
    pair: tuple[str, str],
    size: int,
    x: float = 0,
    y: float = 0,
    text: str = "",
    font: str = "",
    hand: Hand | None = None,
) -> Thing:
    """A thing painted in a colour close to the one that its name says."""
    colour, shape = pair
    rgb = _vary_colour(rng, COLOURS[colour], 20 if hand else 12)
    return Thing(colour, shape, x, y, size, rgb, text, font, hand)


def _place_randomly(
    rng: random.Random, thing: Thing, canvas: tuple[int, int], others: list[Thing]
) -> Thing | None:
    """The thing at a random point of the canvas, or None if it does not fit there.

    It lies wholly on the canvas, touches none of the others and is plainly left or right of
    each.
    """
    canvas_width, canvas_height = canvas
    width, height = thing.stencil.size
    if width > canvas_width or height > canvas_height:
        return None
    x = width / 2 + rng.random() * (canvas_width - width)
    y = height / 2 + rng.random() * (canvas_height - height)
    for other in others:
        other_width, other_height = other.stencil.size
        x_distance = abs(x - other.x)
        y_distance = abs(y - other.y)
        x_apart = x_distance > (width + other_width) / 2 + 3
        y_apart = y_distance > (height + other_height) / 2 + 3
        if not (x_apart or y_apart):
            return None
        if x_distance < max(8, 0.04 * canvas_width):
            return None
    return replace(thing, x=x, y=y)


def _left_to_right(things: Iterable[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: thing.x))


def random_scene(rng: random.Random, level: Level, canvas: tuple[int, int] | None = None) -> Scene:
    """Shapes in sizes that suit the canvas and their number, more often few than many."""
    width, height = canvas or level.random_canvas(rng)
    if level.drawn and rng.random() < level.drawn:
        return random_drawing(rng, level, (width, height))
    background = random_background(rng)
    wanted = min(rng.randint(*level.things), rng.randint(*level.things))
    # The side of a square that each thing may fill; a shape takes at most 0.78 of it.
    side = min(math.sqrt(width * height / wanted), 1.2 * min(width, height), LARGEST_SHAPE / 0.78)
    things: list[Thing] = []
    for _ in range(40):  # a crowded canvas may take fewer than wanted
        if len(things) == wanted:
            break
        size = max(SMALLEST_SHAPE, round(rng.uniform(0.28, 0.78) * side))
        thing = _new_thing(rng, random_pair(rng, level, background), size)
        placed = _place_randomly(rng, thing, (width, height), things)
        if placed:
            things.append(placed)
    return Scene(width, height, background, _left_to_right(things))


def random_drawn_background(rng: random.Random) -> Background:
    """Light or dark, plain or with a texture."""
    canvases = LIGHT_CANVASES if rng.random() < 0.65 else (*DARK_CANVASES, *DRAWN_ON)
    rgb = _vary_colour(rng, rng.choice(canvases), 8)
    if rng.random() < 0.45:
        return Background(rgb)
    second = _vary_colour(rng, rgb, rng.choice((20, 40, 60)))
    if rng.random() < 0.3:
        return Background(rgb, second, rng.random() < 0.5)
    return Background(rgb, second, seed=rng.getrandbits(32), texture=rng.choice(TEXTURES))


def random_drawing(rng: random.Random, level: Level, canvas: tuple[int, int]) -> Scene:
    """Shapes as people draw them, most of them by one hand, half of them photographed."""
    width, height = canvas
    background = random_drawn_background(rng)
    camera = random_camera(rng) if rng.random() < 0.5 else None
    wanted = min(rng.randint(*level.things), rng.randint(*level.things))
    is_untidy = rng.random() < level.untidy
    side = min(math.sqrt(width * height / wanted), 1.2 * min(width, height))
    same_hand = random_hand(rng, "circle") if rng.random() < 0.7 else None
    # A finger often draws all of it in one colour.
    same_colour = None
    if same_hand and same_hand.fill in ("finger", "outline") and rng.random() < 0.3:
        same_colour = random_pair(rng, level, background)[0]
    things: list[Thing] = []
    for _ in range(40):
        if len(things) == wanted:
            break
        pair = random_pair(rng, level, background)
        if same_colour and pair[0] != same_colour:
            continue
        share = rng.uniform(0.2, 0.85) if rng.random() < 0.85 else rng.uniform(0.1, 0.98)
        size = max(level.smallest, round(share * side))
        hand = random_hand(rng, pair[1])
        if same_hand:
            hand = replace(hand, fill=same_hand.fill, width=same_hand.width, shake=same_hand.shake)
        thing = _new_thing(rng, pair, size, hand=hand)
        if is_untidy:
            placed = _place_untidily(rng, thing, canvas, things)
        else:
            placed = _place_randomly(rng, thing, canvas, things)
        if placed:
            things.append(placed)
    if not things:
        return random_drawing(rng, level, canvas)
    return Scene(width, height, background, _left_to_right(things), camera)


def _place_untidily(
    rng: random.Random, thing: Thing, canvas: tuple[int, int], others: list[Thing]
) -> Thing | None:
    """The thing where up to a third of it is cut off, and a fifth of a smaller one covered."""
    canvas_width, canvas_height = canvas
    width, height = thing.stencil.size
    if width > 1.2 * canvas_width or height > 1.2 * canvas_height:
        return None
    beyond = rng.choice((0, 0.15, 0.3))
    x = rng.uniform(width * (0.5 - beyond), canvas_width - width * (0.5 - beyond))
    y = rng.uniform(height * (0.5 - beyond), canvas_height - height * (0.5 - beyond))
    for other in others:
        other_width, other_height = other.stencil.size
        across = (width + other_width) / 2 - abs(x - other.x)
        down = (height + other_height) / 2 - abs(y - other.y)
        smaller = min(width * height, other_width * other_height)
        if across > 0 and down > 0 and across * down > 0.2 * smaller:
            return None
        if abs(x - other.x) < max(8, 0.04 * canvas_width):
            return None
    return replace(thing, x=x, y=y)


def random_word(rng: random.Random, level: Level) -> tuple[str, str]:
    """("number", digits) or ("word", capital letters)."""
    if rng.random() < 0.35:
        digits = rng.choices("0123456789", k=rng.randint(1, 4))
        return "number", "".join(digits)
    if rng.random() < level.random_letters:
        letters = rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(*level.letters))
        return "word", "".join(letters)
    return "word", rng.choice(level.words)


def _widest_font_size(kind: str, text: str, font: str, canvas_width: int) -> float:
    """The font size at which the text fills 90 % of the canvas's width."""
    return 90 * canvas_width / stencil(kind, 100, text, font).width


def random_sign(rng: random.Random, level: Level, canvas: tuple[int, int] | None = None) -> Scene:
    """A word or number, and sometimes a shape or two beside it."""
    width, height = canvas or level.random_canvas(rng)
    is_drawn = level.drawn > 0 and rng.random() < level.drawn
    background = random_drawn_background(rng) if is_drawn else random_background(rng)
    kind, text = random_word(rng, level)
    colour, _ = random_pair(rng, level, background)
    font = rng.choice(level.fonts)
    hand = None
    camera = None
    if is_drawn:
        text = rng.choice((text, text.lower(), text.lower(), text.capitalize()))
        hand = random_hand(rng, kind)
        camera = random_camera(rng) if rng.random() < 0.4 else None
    # On a narrow canvas a long text is shortened until it can be set in 15 px.
    largest = _widest_font_size(kind, text, font, width)
    while largest < 15:
        text = text[:-1]
        largest = _widest_font_size(kind, text, font, width)
    largest = min(largest, 0.8 * height, 72)
    if hand:  # turned, it needs more room
        largest = max(15, 0.8 * largest)
    size = round(rng.uniform(max(0.45 * largest, 15), largest))

    # The text has the whole canvas.
    sign = _new_thing(rng, (colour, kind), size, text=text, font=font, hand=hand)
    placed = _place_randomly(rng, sign, (width, height), [])
    if placed is None and hand:
        sign = replace(sign, hand=replace(hand, degrees=0))
        placed = _place_randomly(rng, sign, (width, height), [])
    assert placed is not None
    things = [placed]

    # Shapes go into the room that the text leaves: four attempts for each one wanted, at
    # most two.
    attempts = rng.choice((0, 0, 1, 2)) * 4
    for _ in range(attempts):
        pair = random_pair(rng, level, background)
        size = rng.randint(SMALLEST_SHAPE, max(SMALLEST_SHAPE, min(width, height) // 3))
        shape = _new_thing(rng, pair, size, hand=random_hand(rng, pair[1]) if hand else None)
        placed = None
        if len(things) < 3:
            placed = _place_randomly(rng, shape, (width, height), things)
        if placed:
            things.append(placed)
    return Scene(width, height, background, _left_to_right(things), camera)


# ------------------------------------------------------------------- several images, videos


@dataclass(frozen=True)
class Images:
    """Two to four scenes of one size; `change` says how the second differs, if so."""

    scenes: tuple[Scene, ...]
    change: str = ""

    @property
    def things(self) -> tuple[Thing, ...]:
        return tuple(thing for scene in self.scenes for thing in scene.things)

    def blank(self) -> "Images":
        return replace(self, scenes=tuple(scene.blank() for scene in self.scenes))


@dataclass(frozen=True)
class Video:
    """Scenes at FPS a second, and what happens in them: subject, event and its detail."""

    scenes: tuple[Scene, ...]
    event: str
    subject: Thing
    detail: str

    @property
    def things(self) -> tuple[Thing, ...]:
        return (self.subject, *(thing for scene in self.scenes for thing in scene.things))

    def blank(self) -> "Video":
        return replace(self, scenes=tuple(scene.blank() for scene in self.scenes))


FPS = 2  # frames a second that Qwen2-VL samples from a video
DIRECTIONS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
HOW_OFTEN = ("Never", "Once", "Twice", "Three times")
# What may happen in a video, and how much more often than another event.
EVENT_WEIGHTS = {"moves": 3, "appears": 1, "disappears": 1, "turns": 1, "comes": 2, "blinks": 2}
Frames = list[list[Thing]]  # the things of each frame


def _different_pair(
    rng: random.Random,
    level: Level,
    scene: Scene,
    colour: str | None = None,
    shape: str | None = None,
) -> tuple[str, str]:
    """A pair that no thing of the scene has, of the given colour or shape."""
    taken = {(thing.colour, thing.shape) for thing in scene.things}
    while True:
        pair = random_pair(rng, level, scene.background)
        if pair in taken:
            continue
        if colour is not None and pair[0] != colour:
            continue
        if shape is not None and pair[1] != shape:
            continue
        return pair


def random_images(
    rng: random.Random, level: Level, canvas: tuple[int, int] | None = None
) -> Images:
    """Two to four unrelated scenes, or a scene and the same one changed."""
    canvas = canvas or level.random_canvas(rng)
    if rng.random() < 0.6:
        count = rng.randint(2, 4)
        return Images(tuple(random_scene(rng, level, canvas) for _ in range(count)))

    # The same scene once more, with one of its things changed.
    first = random_scene(rng, level, canvas)
    index = rng.randrange(len(first.things))
    can_lose_one = len(first.things) > 1
    change = rng.choice(("recoloured", "reshaped", "gone" if can_lose_one else "recoloured", "new"))
    changed = _changed_things(rng, level, first, index, change)
    if changed is None:
        return Images((first, random_scene(rng, level, canvas)))
    return Images((first, replace(first, things=_left_to_right(changed))), change)


def _changed_things(
    rng: random.Random, level: Level, scene: Scene, index: int, change: str
) -> list[Thing] | None:
    """The things after a change of the one at `index`; None where that is not possible."""
    things = list(scene.things)
    old = things[index]
    names = [thing.name for thing in things]
    if names.count(old.name) > 1:  # "the red circle" would not say which one
        return None
    if change == "recoloured":
        pair = _different_pair(rng, level, scene, shape=old.shape)
        things[index] = _new_thing(rng, pair, old.size, old.x, old.y, hand=old.hand)
    elif change == "reshaped":
        _, shape = _different_pair(rng, level, scene, colour=old.colour)
        things[index] = replace(old, shape=shape)
    elif change == "gone":
        things.pop(index)
    else:
        added = _added_thing(rng, level, scene, old.size, old.hand)
        if added is None:
            return None
        things.append(added)
    return things


def _added_thing(
    rng: random.Random, level: Level, scene: Scene, size: int, hand: Hand | None
) -> Thing | None:
    """One more thing, of a pair that the scene does not have; None where there is no room."""
    pair = _different_pair(rng, level, scene)
    for _ in range(40):
        thing = _new_thing(rng, pair, size, hand=hand)
        placed = _place_randomly(rng, thing, (scene.width, scene.height), list(scene.things))
        if placed:
            return placed
    return None


def random_video(
    rng: random.Random,
    level: Level,
    canvas: tuple[int, int] | None = None,
    frames: int | None = None,
) -> Video:
    """One thing that does something, and sometimes one that stands by."""
    canvas = canvas or level.random_canvas(rng)
    frames = frames or rng.choice((4, 6, 8, 10))
    event = rng.choices(list(EVENT_WEIGHTS), list(EVENT_WEIGHTS.values()))[0]
    scene = _one_or_two_things(rng, level, canvas, event)

    # One thing is the subject; what stays is in every frame.
    others = list(scene.things)
    subject = others.pop(rng.randrange(len(others)))
    detail = ""
    if event == "moves":
        detail = rng.choice(list(DIRECTIONS))
        # Small enough to have somewhere to go.
        size = max(SMALLEST_SHAPE, min(subject.size, min(canvas) // 2))
        subject = replace(subject, size=size)
        shown = _moving(rng, subject, others, canvas, DIRECTIONS[detail], frames)
    elif event in ("appears", "disappears"):
        shown = _appearing(rng, subject, others, event == "disappears", frames)
    elif event == "turns":
        pair = _different_pair(rng, level, scene, shape=subject.shape)
        detail = pair[0]
        after = _new_thing(rng, pair, subject.size, subject.x, subject.y, hand=subject.hand)
        shown = _turning(rng, subject, after, others, frames)
    elif event == "comes":
        detail = others[0].name
        shown = _coming(rng, subject, others[0], frames)
    else:
        times = rng.randint(1, min(3, (frames - 1) // 3))
        detail = HOW_OFTEN[times]
        shown = _blinking(rng, subject, others, times, frames)
    scenes = tuple(replace(scene, things=_left_to_right(things)) for things in shown)
    return Video(scenes, event, subject, detail)


def _one_or_two_things(
    rng: random.Random, level: Level, canvas: tuple[int, int], event: str
) -> Scene:
    """A scene of one or two things with different names; of two if one is to come second."""
    while True:
        scene = random_scene(rng, replace(level, things=(1, 2)), canvas)
        names = {thing.name for thing in scene.things}
        if len(names) < len(scene.things):
            continue
        if event != "comes" or len(names) == 2:
            return scene


def _moving(
    rng: random.Random,
    subject: Thing,
    others: list[Thing],
    canvas: tuple[int, int],
    direction: tuple[int, int],
    frames: int,
) -> Frames:
    """The subject crosses the canvas at one speed."""
    dx, dy = direction
    width, height = subject.stencil.size
    x_span = canvas[0] - width
    y_span = canvas[1] - height
    # Where it starts and ends, as shares of the way from one side to the other.
    start = rng.uniform(0, 0.25)
    end = rng.uniform(0.75, 1)
    shown = []
    for i in range(frames):
        share = start + (end - start) * i / (frames - 1)
        if dx + dy < 0:  # to the left, or up
            share = 1 - share
        x = width / 2 + x_span * share if dx else subject.x
        y = height / 2 + y_span * share if dy else subject.y
        shown.append([*others, replace(subject, x=x, y=y)])
    return shown


def _appearing(
    rng: random.Random, subject: Thing, others: list[Thing], reverse: bool, frames: int
) -> Frames:
    """The subject is there from a random frame on, or, in reverse, until then."""
    change = rng.randint(1, frames - 1)
    shown = []
    for i in range(frames):
        is_there = i < change if reverse else i >= change
        shown.append([*others, subject] if is_there else others)
    return shown


def _turning(
    rng: random.Random, subject: Thing, after: Thing, others: list[Thing], frames: int
) -> Frames:
    """The subject takes another colour at a random frame."""
    change = rng.randint(1, frames - 1)
    return [[*others, subject if i < change else after] for i in range(frames)]


def _coming(rng: random.Random, subject: Thing, other: Thing, frames: int) -> Frames:
    """The subject comes first, the other thing later."""
    subject_comes, other_comes = sorted(rng.sample(range(frames), 2))
    shown = []
    for i in range(frames):
        things = []
        if i >= subject_comes:
            things.append(subject)
        if i >= other_comes:
            things.append(other)
        shown.append(things)
    return shown


def _blinking(
    rng: random.Random, subject: Thing, others: list[Thing], times: int, frames: int
) -> Frames:
    """The subject is gone for a second, which is two frames, so many times."""
    gone = set()
    for k in range(times):
        gone |= {1 + 3 * k, 2 + 3 * k}
    # All of it may begin later, but the subject is there again at the end.
    latest = frames - 2 - max(gone)
    delay = rng.randint(0, latest) if latest > 0 else 0
    return [others if i - delay in gone else [*others, subject] for i in range(frames)]
