"""How far does it see? Images drawn otherwise than any it was trained on, and what it says
to them.

    python -m tiny.gallery    # writes tiny/plots/gallery.png, prints how many answers are right

Outlines, JPEG noise, textures, shadows, turned and cropped shapes, a photo of a screen
taken with a phone: no image like these is in training. The sheet shows every answer, right
or wrong; none was chosen for it.
"""

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from tiny.drawing import jpeg
from tiny.evaluate import load_and_answer, score_answer
from tiny.examples import IVORY, MINT, SKY, WHITE, thing_named
from tiny.sheet import Entry, contact_sheet
from tiny.world import COLOURS, Background, Scene, stencil

OUT = Path(__file__).parent / "plots" / "gallery.png"
CIRCLE_AND_STAR = Scene(
    168, 112, IVORY, (thing_named("red circle", 44, 62, 52), thing_named("blue star", 122, 52, 60))
)
HEART_AND_CROSS = Scene(
    140,
    112,
    SKY,
    (thing_named("green heart", 38, 56, 50), thing_named("purple cross", 102, 56, 48)),
)


# ---------------------------------------------------------------------------------- drawing


def single_thing(
    name: str, background: Background = WHITE, size: int = 56, side: int = 84
) -> Image.Image:
    """One thing in the middle of a square canvas."""
    thing = thing_named(name, side / 2, side / 2, size)
    return Scene(side, side, background, (thing,)).draw()


def paint_things(canvas: Image.Image, things: list[tuple[str, int, int, int]]) -> Image.Image:
    """Things (name, x, y, size) painted onto a canvas of any kind."""
    for name, x, y, size in things:
        thing = thing_named(name, x, y, size)
        canvas.paste(thing.rgb, thing.box[:2], thing.stencil)
    return canvas


def centred_mask(shape: str, size: int) -> Image.Image:
    """A mask of 84 x 84 px with a shape in its middle."""
    mask = Image.new("L", (84, 84))
    inner = stencil(shape, size)
    mask.paste(inner, ((84 - inner.width) // 2, (84 - inner.height) // 2))
    return mask


def outlined(name: str, width: int = 5) -> Image.Image:
    """Only the line around the shape is painted."""
    colour, shape = name.split()
    mask = centred_mask(shape, 60)
    inside = mask.filter(ImageFilter.MinFilter(2 * (width // 2) + 1))
    line = ImageChops.subtract(mask, inside)
    image = Image.new("RGB", mask.size, "white")
    image.paste(COLOURS[colour], mask=line)
    return image


def brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def turned(name: str, degrees: float) -> Image.Image:
    image = single_thing(name, size=50)
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor="white")


def cut_off(name: str) -> Image.Image:
    return single_thing(name, size=70).crop((0, 0, 84, 56))


def checkerboard(width: int, height: int, cell: int = 12) -> Image.Image:
    board = Image.new("RGB", (width, height), (235, 235, 235))
    draw = ImageDraw.Draw(board)
    for y in range(0, height, cell):
        first = y // cell % 2 * cell  # every second row begins one cell later
        for x in range(first, width, 2 * cell):
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=(205, 210, 215))
    return board


def stripes(width: int, height: int) -> Image.Image:
    canvas = Image.new("RGB", (width, height), (245, 240, 225))
    draw = ImageDraw.Draw(canvas)
    for x in range(-height, width, 14):
        draw.line((x, 0, x + height, height), fill=(215, 205, 185), width=4)
    return canvas


def blurred_lawn(width: int, height: int) -> Image.Image:
    """Coarse clouds of beige and green, like a lawn out of focus."""
    noise = Image.frombytes("L", (14, 10), random.Random(4).randbytes(140))
    clouds = noise.resize((width, height), Image.Resampling.BICUBIC)
    green = Image.new("RGB", clouds.size, (205, 215, 190))
    beige = Image.new("RGB", clouds.size, (235, 230, 205))
    return Image.composite(green, beige, clouds)


def drawn_by_hand(corners: int, colour: str) -> Image.Image:
    """A polygon as a hand draws it: no side is straight."""
    rng = random.Random(2)
    points = []
    for i in range(corners * 6):
        side, step = divmod(i, 6)
        # From one corner to the next, on a circle of radius 1.
        start = math.tau * side / corners - math.pi / 2
        end = math.tau * (side + 1) / corners - math.pi / 2
        x = math.cos(start) + (math.cos(end) - math.cos(start)) * step / 6
        y = math.sin(start) + (math.sin(end) - math.sin(start)) * step / 6
        points.append((42 + 32 * x + rng.uniform(-1.6, 1.6), 46 + 32 * y + rng.uniform(-1.6, 1.6)))
    image = Image.new("RGB", (84, 84), "white")
    ImageDraw.Draw(image).polygon(points, fill=COLOURS[colour])
    return image


def shadowed(scene: Scene) -> Image.Image:
    """Every thing throws a soft shadow to the lower right."""
    image = scene.blank().draw()
    shadow = Image.new("L", (scene.width, scene.height))
    for thing in scene.things:
        left, top, _, _ = thing.box
        shadow.paste(120, (left + 5, top + 6), thing.stencil)
    image.paste((60, 60, 60), mask=shadow.filter(ImageFilter.GaussianBlur(3)))
    for thing in scene.things:
        image.paste(thing.rgb, thing.box[:2], thing.stencil)
    return image


def screen_photo(scene: Scene) -> Image.Image:
    """A phone's photo of a screen: perspective, rows of pixels, dark edges and noise."""
    large = (scene.width * 2, scene.height * 2)
    screen = scene.draw().resize(large, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(screen)
    line_colour = tuple(channel - 18 for channel in scene.background.rgb)
    for y in range(0, screen.height, 3):
        draw.line((0, y, screen.width, y), fill=line_colour)
    width, height = screen.size
    coefficients = (1.06, 0.05, -0.03 * width, 0.02, 1.1, -0.05 * height, 0.0001, 0.0002)
    photo = screen.transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        coefficients,
        Image.Resampling.BICUBIC,
        fillcolor=(28, 28, 30),
    )
    darkness = Image.radial_gradient("L").resize((width, height))
    photo = Image.composite(brightness(photo, 0.72), photo, darkness)
    noise = random.Random(9).randbytes(3 * width * height)
    photo = Image.blend(photo, Image.frombytes("RGB", (width, height), noise), 0.05)
    return jpeg(photo.filter(ImageFilter.GaussianBlur(0.8)), 60)


def lettering(text: str, size: int, degrees: float = 0) -> Image.Image:
    image = Image.new("RGB", (140, 84), "white")
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(image)
    draw.text((70, 42), text, fill=COLOURS["blue"], font=font, anchor="mm")
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor="white")


def overlapping() -> Image.Image:
    canvas = Image.new("RGB", (112, 98), (238, 238, 238))
    return paint_things(canvas, [("yellow circle", 44, 50, 56), ("blue square", 72, 50, 50)])


def shaded() -> Image.Image:
    """A heart that goes from dark to light red."""
    ramp = Image.linear_gradient("L").resize((84, 84))
    dark = Image.new("RGB", (84, 84), (150, 10, 20))
    light = Image.new("RGB", (84, 84), (250, 90, 90))
    image = Image.new("RGB", (84, 84), "white")
    image.paste(Image.composite(dark, light, ramp), mask=centred_mask("heart", 58))
    return image


def hexagon() -> Image.Image:
    image = Image.new("RGB", (84, 84), "white")
    corners = []
    for i in range(6):
        angle = math.tau * i / 6
        corners.append((42 + 30 * math.sin(angle), 42 - 30 * math.cos(angle)))
    ImageDraw.Draw(image).polygon(corners, fill=COLOURS["green"])
    return image


def on_checkerboard() -> Image.Image:
    return paint_things(checkerboard(112, 84), [("orange moon", 56, 42, 54)])


def on_stripes() -> Image.Image:
    return paint_things(stripes(112, 98), [("purple diamond", 54, 50, 60)])


def on_lawn() -> Image.Image:
    things = [("red arrow", 48, 56, 56), ("black ring", 124, 56, 50)]
    return paint_things(blurred_lawn(168, 112), things)


def seven_squares() -> Image.Image:
    squares = [("blue square", 22 + 34 * i, 56, 24) for i in range(7)]
    return paint_things(Image.new("RGB", (252, 112), "white"), squares)


def five_to_one() -> Image.Image:
    things = (thing_named("red ring", 40, 28, 36), thing_named("black heart", 230, 28, 36))
    return Scene(280, 56, SKY, things).draw()


# ---------------------------------------------------------------------------------- gallery


@dataclass(frozen=True)
class GalleryImage:
    """What is done to an image, how to draw it, a question and the true answer."""

    change: str
    draw: Callable[[], Image.Image]
    question: str
    answer: str


LOOK = "Describe this image."
READ = "What does it say?"
CIRCLE_AND_STAR_ANSWER = "A red circle and a blue star."
HEART_AND_CROSS_ANSWER = "A green heart and a purple cross."
GALLERY = [
    GalleryImage("an outline", lambda: outlined("red circle"), LOOK, "A red circle."),
    GalleryImage("a star's outline", lambda: outlined("blue star"), LOOK, "A blue star."),
    GalleryImage(
        "JPEG at quality 10", lambda: jpeg(CIRCLE_AND_STAR.draw(), 10), LOOK, CIRCLE_AND_STAR_ANSWER
    ),
    GalleryImage(
        "JPEG at quality 4", lambda: jpeg(HEART_AND_CROSS.draw(), 4), LOOK, HEART_AND_CROSS_ANSWER
    ),
    GalleryImage("chequered", on_checkerboard, LOOK, "An orange moon."),
    GalleryImage("stripes", on_stripes, LOOK, "A purple diamond."),
    GalleryImage("a blurred lawn", on_lawn, "What do you see?", "A red arrow and a black ring."),
    GalleryImage("turned by 20°", lambda: turned("green square", 20), LOOK, "A green square."),
    GalleryImage("turned by 90°", lambda: turned("blue arrow", 90), LOOK, "A blue arrow."),
    GalleryImage("turned by 180°", lambda: turned("pink heart", 180), LOOK, "A pink heart."),
    GalleryImage(
        "out of focus",
        lambda: CIRCLE_AND_STAR.draw().filter(ImageFilter.GaussianBlur(3)),
        LOOK,
        CIRCLE_AND_STAR_ANSWER,
    ),
    GalleryImage(
        "little light",
        lambda: brightness(HEART_AND_CROSS.draw(), 0.4),
        LOOK,
        HEART_AND_CROSS_ANSWER,
    ),
    GalleryImage(
        "pale", lambda: contrast(CIRCLE_AND_STAR.draw(), 0.4), LOOK, CIRCLE_AND_STAR_ANSWER
    ),
    GalleryImage(
        "a phone's photo of a screen",
        lambda: screen_photo(CIRCLE_AND_STAR),
        LOOK,
        CIRCLE_AND_STAR_ANSWER,
    ),
    GalleryImage(
        "the same of another",
        lambda: screen_photo(HEART_AND_CROSS),
        "How many objects do you see?",
        "Two.",
    ),
    GalleryImage("a shaky hand", lambda: drawn_by_hand(3, "orange"), LOOK, "An orange triangle."),
    GalleryImage("overlapping", overlapping, LOOK, "A yellow circle and a blue square."),
    GalleryImage("cut off", lambda: cut_off("red cross"), "What colour is the cross?", "Red."),
    GalleryImage("with a shadow", lambda: shadowed(CIRCLE_AND_STAR), LOOK, CIRCLE_AND_STAR_ANSWER),
    GalleryImage("shaded", shaded, LOOK, "A red heart."),
    GalleryImage(
        "12 px on 168",
        lambda: single_thing("red circle", MINT, size=12, side=168),
        LOOK,
        "A red circle.",
    ),
    GalleryImage(
        "almost all of it",
        lambda: single_thing("cyan star", size=104, side=112),
        LOOK,
        "A cyan star.",
    ),
    GalleryImage(
        "black ground",
        lambda: single_thing("yellow moon", Background((0, 0, 0))),
        LOOK,
        "A yellow moon.",
    ),
    GalleryImage("small letters", lambda: lettering("cat", 40), READ, "cat."),
    GalleryImage("written uphill", lambda: lettering("BUS", 40, 10), READ, "BUS."),
    GalleryImage("a shape it never met", hexagon, LOOK, "A green hexagon."),
    GalleryImage("seven things", seven_squares, "How many squares are there?", "Seven."),
    GalleryImage("5 : 1", five_to_one, LOOK, "A red ring and a black heart."),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help='"tiny" (default) or a folder')
    args = parser.parse_args()

    images = [entry.draw() for entry in GALLERY]
    conversations = []
    for entry, image in zip(GALLERY, images, strict=True):
        items = [{"type": "image", "image": image}, {"type": "text", "text": entry.question}]
        conversations.append([{"role": "user", "content": items}])
    answers = load_and_answer(args.model, conversations)

    cells = []
    for entry, image, said in zip(GALLERY, images, answers, strict=True):
        right = score_answer(entry.answer, said) >= 0.5
        cells.append(Entry(image, f"({entry.change}) {entry.question}", said, right))
    OUT.parent.mkdir(exist_ok=True)
    contact_sheet(cells, columns=4).save(OUT, optimize=True)
    print(f"{sum(cell.right for cell in cells)} of {len(cells)} answers are right")


if __name__ == "__main__":
    main()
