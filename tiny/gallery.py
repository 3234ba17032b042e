"""How far does it see? Pictures drawn otherwise than any it was trained on, and what it says to them.

    python -m tiny.gallery        # writes tiny/plots/gallery.png and prints how many answers are right

Outlines, JPEG noise, textures, shadows, turned and cropped shapes, a photo of a screen taken with a phone: no
picture like these is in training. The sheet shows every answer, right or wrong; none was chosen for it.
"""

import argparse
import io
import math
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from tiny.evaluate import ask_all, judge
from tiny.examples import IVORY, MINT, SKY, WHITE, thing
from tiny.sheet import Entry, contact_sheet
from tiny.world import COLOURS, Background, Scene, stencil

OUT = Path(__file__).parent / "plots" / "gallery.png"
TWO = Scene(168, 112, IVORY, (thing("red circle", 44, 62, 52), thing("blue star", 122, 52, 60)))
PAIR = Scene(140, 112, SKY, (thing("green heart", 38, 56, 50), thing("purple cross", 102, 56, 48)))


def one(name: str, background: Background = WHITE, size: int = 56, side: int = 84) -> Image.Image:
    return Scene(side, side, background, (thing(name, side / 2, side / 2, size),)).draw()


def outlined(name: str, width: int = 5) -> Image.Image:
    """Only the line around the shape is painted."""
    colour, shape = name.split()
    mask = Image.new("L", (84, 84))
    inner = stencil(shape, 60)
    mask.paste(inner, ((84 - inner.width) // 2, (84 - inner.height) // 2))
    line = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(2 * (width // 2) + 1)))
    picture = Image.new("RGB", mask.size, "white")
    picture.paste(COLOURS[colour], mask=line)
    return picture


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def on(ground: Image.Image, *names_and_places: tuple[str, int, int, int]) -> Image.Image:
    """Things painted onto a ground of any kind."""
    for name, x, y, size in names_and_places:
        painted = thing(name, x, y, size)
        ground.paste(painted.rgb, painted.box[:2], painted.stencil)
    return ground


def checkerboard(width: int, height: int, cell: int = 12) -> Image.Image:
    board = Image.new("RGB", (width, height), (235, 235, 235))
    draw = ImageDraw.Draw(board)
    for y in range(0, height, cell):
        for x in range(y // cell % 2 * cell, width, 2 * cell):
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=(205, 210, 215))
    return board


def stripes(width: int, height: int) -> Image.Image:
    ground = Image.new("RGB", (width, height), (245, 240, 225))
    draw = ImageDraw.Draw(ground)
    for x in range(-height, width, 14):
        draw.line((x, 0, x + height, height), fill=(215, 205, 185), width=4)
    return ground


def texture(width: int, height: int) -> Image.Image:
    """Coarse clouds of beige and green, like a lawn out of focus."""
    dust = Image.frombytes("L", (14, 10), random.Random(4).randbytes(140))
    clouds = dust.resize((width, height), Image.Resampling.BICUBIC)
    return Image.composite(
        Image.new("RGB", clouds.size, (205, 215, 190)), Image.new("RGB", clouds.size, (235, 230, 205)), clouds
    )


def turned(name: str, degrees: float) -> Image.Image:
    return one(name, size=50).rotate(degrees, Image.Resampling.BICUBIC, fillcolor="white")


def shaky(corners: int, colour: str) -> Image.Image:
    """A polygon as a hand draws it: no side is straight."""
    rng, points = random.Random(2), []
    for i in range(corners * 6):
        side, along = divmod(i, 6)
        a, b = (math.tau * (side + k) / corners - math.pi / 2 for k in (0, 1))
        x, y = (f(a) + (f(b) - f(a)) * along / 6 for f in (math.cos, math.sin))
        points.append((42 + 32 * x + rng.uniform(-1.6, 1.6), 46 + 32 * y + rng.uniform(-1.6, 1.6)))
    picture = Image.new("RGB", (84, 84), "white")
    ImageDraw.Draw(picture).polygon(points, fill=COLOURS[colour])
    return picture


def shadowed(scene: Scene) -> Image.Image:
    """Every thing throws a soft shadow to the lower right."""
    picture, shade = scene.blank().draw(), Image.new("L", (scene.width, scene.height))
    for painted in scene.things:
        left, top = painted.box[:2]
        shade.paste(120, (left + 5, top + 6), painted.stencil)
    picture.paste((60, 60, 60), mask=shade.filter(ImageFilter.GaussianBlur(3)))
    for painted in scene.things:
        picture.paste(painted.rgb, painted.box[:2], painted.stencil)
    return picture


def screen_photo(scene: Scene) -> Image.Image:
    """A phone's photo of a screen: in perspective, with rows of pixels, dark edges and noise."""
    shown = scene.draw().resize((scene.width * 2, scene.height * 2), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(shown)
    for y in range(0, shown.height, 3):
        draw.line((0, y, shown.width, y), fill=tuple(c - 18 for c in scene.background.rgb))
    w, h = shown.size
    coefficients = (1.06, 0.05, -0.03 * w, 0.02, 1.1, -0.05 * h, 0.0001, 0.0002)
    photo = shown.transform(
        (w, h), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC, fillcolor=(28, 28, 30)
    )
    light = Image.radial_gradient("L").resize((w, h))
    photo = Image.composite(ImageEnhance.Brightness(photo).enhance(0.72), photo, light)
    dust = Image.frombytes("RGB", (w, h), random.Random(9).randbytes(3 * w * h))
    return jpeg(Image.blend(photo, dust, 0.05).filter(ImageFilter.GaussianBlur(0.8)), 60)


def lettering(text: str, size: int, degrees: float = 0) -> Image.Image:
    picture = Image.new("RGB", (140, 84), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((70, 42), text, fill=COLOURS["blue"], font=ImageFont.load_default(size), anchor="mm")
    return picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor="white")


def overlapping() -> Image.Image:
    return on(
        Image.new("RGB", (112, 98), (238, 238, 238)),
        ("yellow circle", 44, 50, 56),
        ("blue square", 72, 50, 50),
    )


def shaded() -> Image.Image:
    """A heart that goes from dark to light red."""
    picture, mask = Image.new("RGB", (84, 84), "white"), Image.new("L", (84, 84))
    shape = stencil("heart", 58)
    mask.paste(shape, ((84 - shape.width) // 2, (84 - shape.height) // 2))
    ramp = Image.linear_gradient("L").resize((84, 84))
    paint = Image.composite(
        Image.new("RGB", (84, 84), (150, 10, 20)), Image.new("RGB", (84, 84), (250, 90, 90)), ramp
    )
    picture.paste(paint, mask=mask)
    return picture


def hexagon() -> Image.Image:
    picture = Image.new("RGB", (84, 84), "white")
    corners = [(42 + 30 * math.sin(math.tau * i / 6), 42 - 30 * math.cos(math.tau * i / 6)) for i in range(6)]
    ImageDraw.Draw(picture).polygon(corners, fill=COLOURS["green"])
    return picture


def seven() -> Image.Image:
    row = (("blue square", 22 + 34 * i, 56, 24) for i in range(7))
    return on(Image.new("RGB", (252, 112), "white"), *row)


def lawn() -> Image.Image:
    return on(texture(168, 112), ("red arrow", 48, 56, 56), ("black ring", 124, 56, 50))


def five_to_one() -> Image.Image:
    return Scene(280, 56, SKY, (thing("red ring", 40, 28, 36), thing("black heart", 230, 28, 36))).draw()


LOOK, READ = "Describe this image.", "What does it say?"
IN_TWO, IN_PAIR = "A red circle and a blue star.", "A green heart and a purple cross."
# What is done to the picture, the picture, the question, the true answer.
GALLERY: list[tuple[str, Callable[[], Image.Image], str, str]] = [
    ("an outline", lambda: outlined("red circle"), LOOK, "A red circle."),
    ("a star's outline", lambda: outlined("blue star"), LOOK, "A blue star."),
    ("JPEG at quality 10", lambda: jpeg(TWO.draw(), 10), LOOK, IN_TWO),
    ("JPEG at quality 4", lambda: jpeg(PAIR.draw(), 4), LOOK, IN_PAIR),
    ("chequered", lambda: on(checkerboard(112, 84), ("orange moon", 56, 42, 54)), LOOK, "An orange moon."),
    ("stripes", lambda: on(stripes(112, 98), ("purple diamond", 54, 50, 60)), LOOK, "A purple diamond."),
    ("a blurred lawn", lawn, "What do you see?", "A red arrow and a black ring."),
    ("turned by 20°", lambda: turned("green square", 20), LOOK, "A green square."),
    ("turned by 90°", lambda: turned("blue arrow", 90), LOOK, "A blue arrow."),
    ("turned by 180°", lambda: turned("pink heart", 180), LOOK, "A pink heart."),
    ("out of focus", lambda: TWO.draw().filter(ImageFilter.GaussianBlur(3)), LOOK, IN_TWO),
    ("little light", lambda: ImageEnhance.Brightness(PAIR.draw()).enhance(0.4), LOOK, IN_PAIR),
    ("pale", lambda: ImageEnhance.Contrast(TWO.draw()).enhance(0.4), LOOK, IN_TWO),
    ("a phone's photo of a screen", lambda: screen_photo(TWO), LOOK, IN_TWO),
    ("the same of another", lambda: screen_photo(PAIR), "How many objects do you see?", "Two."),
    ("a shaky hand", lambda: shaky(3, "orange"), LOOK, "An orange triangle."),
    ("overlapping", overlapping, LOOK, "A yellow circle and a blue square."),
    (
        "cut off", lambda: one("red cross", size=70).crop((0, 0, 84, 56)),
        "What colour is the cross?", "Red.",
    ),
    ("with a shadow", lambda: shadowed(TWO), LOOK, IN_TWO),
    ("shaded", shaded, LOOK, "A red heart."),
    ("12 px on 168", lambda: one("red circle", MINT, size=12, side=168), LOOK, "A red circle."),
    ("almost all of it", lambda: one("cyan star", size=104, side=112), LOOK, "A cyan star."),
    ("black ground", lambda: one("yellow moon", Background((0, 0, 0))), LOOK, "A yellow moon."),
    ("small letters", lambda: lettering("cat", 40), READ, "cat."),
    ("written uphill", lambda: lettering("BUS", 40, 10), READ, "BUS."),
    ("a shape it never met", hexagon, LOOK, "A green hexagon."),
    ("seven things", seven, "How many squares are there?", "Seven."),
    ("5 : 1", five_to_one, LOOK, "A red ring and a black heart."),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help='"tiny" (default) or a folder')
    args = parser.parse_args()
    pictures = [draw() for _, draw, _, _ in GALLERY]
    talks = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}],
            }
        ]
        for picture, (_, _, question, _) in zip(pictures, GALLERY, strict=True)
    ]
    said = ask_all(args.model, talks)
    entries = [
        Entry(picture, f"({what}) {question}", text, judge(true, text) >= 0.5)
        for picture, (what, _, question, true), text in zip(pictures, GALLERY, said, strict=True)
    ]
    OUT.parent.mkdir(exist_ok=True)
    contact_sheet(entries, columns=4).save(OUT, optimize=True)
    print(f"{sum(entry.right for entry in entries)} of {len(entries)} answers are right")


if __name__ == "__main__":
    main()
