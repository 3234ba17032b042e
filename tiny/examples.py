"""Draw `examples/`: what README, tests and notebooks ask the embedded model about, and what
it answers.

    python -m tiny.examples            # draw all, ask the model, write answers.json and the sheet
    python -m tiny.examples --draw     # the images and videos alone

Every question stands here with the answer that is true, written by hand or taken from the
scene's list; what the model says to it goes to `examples/answers.json`, right or wrong, and
onto `examples/contact_sheet.png`.
"""

import argparse
import json
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from tiny.evaluate import load_and_answer, score_answer
from tiny.sheet import Entry, contact_sheet
from tiny.tasks import box_with_name
from tiny.world import COLOURS, Background, Scene, Thing

FOLDER = Path(__file__).parent.parent / "examples"
WHITE = Background((255, 255, 255))
GREY = Background((238, 238, 238))
IVORY = Background((250, 243, 224))
SKY = Background((222, 236, 246))
MINT = Background((226, 242, 226))


# ----------------------------------------------------------------------------------- images


def thing_named(name: str, x: float, y: float, size: int) -> Thing:
    """A thing by its name: "red star", or "red word CAT"."""
    colour, shape, *rest = name.split()
    text = rest[0] if rest else ""
    return Thing(colour, shape, x, y, size, COLOURS[colour], text)


SHAPES = Scene(
    168, 112, IVORY, (thing_named("red circle", 44, 62, 52), thing_named("blue star", 122, 52, 60))
)
TRIANGLE = Scene(84, 84, WHITE, (thing_named("green triangle", 42, 42, 56),))
WIDE = Scene(
    180, 72, SKY, (thing_named("orange cross", 38, 36, 44), thing_named("purple ring", 138, 38, 48))
)
TALL = Scene(
    70, 150, MINT, (thing_named("pink star", 28, 112, 40), thing_named("black square", 44, 40, 36))
)
MANY = Scene(
    300,
    200,
    Background((222, 236, 246), (250, 243, 224)),
    (
        thing_named("red heart", 42, 50, 58),
        thing_named("green triangle", 78, 142, 70),
        thing_named("purple moon", 136, 56, 60),
        thing_named("orange diamond", 180, 140, 66),
        thing_named("black arrow", 226, 52, 64),
        thing_named("blue ring", 256, 146, 54),
    ),
)
NOISY = Scene(
    112,
    112,
    Background((246, 226, 226), noise=0.12, seed=1),
    (thing_named("cyan diamond", 34, 40, 44), thing_named("brown circle", 78, 76, 40)),
)
WORD = Scene(140, 84, SKY, (thing_named("blue word STOP", 70, 42, 40),))
NUMBER = Scene(140, 70, IVORY, (thing_named("red number 2049", 70, 35, 36),))
BEFORE = Scene(
    140,
    112,
    MINT,
    (thing_named("purple heart", 40, 60, 44), thing_named("orange cross", 100, 52, 40)),
)
AFTER = replace(BEFORE, things=(BEFORE.things[0], thing_named("blue cross", 100, 52, 40)))
IMAGES = {
    "shapes.png": SHAPES,
    "triangle.png": TRIANGLE,
    "wide.png": WIDE,
    "tall.png": TALL,
    "many.png": MANY,
    "noisy.png": NOISY,
    "word.png": WORD,
    "number.png": NUMBER,
    "before.png": BEFORE,
    "after.png": AFTER,
}


# ----------------------------------------------------------------------------------- videos


def moving_circle() -> list[Scene]:
    """A yellow circle goes from left to right in three seconds, drawn 8 times a second."""
    scenes = []
    for i in range(24):
        circle = thing_named("yellow circle", 20 + 72 * i / 23, 42, 32)
        scenes.append(Scene(112, 84, GREY, (circle,)))
    return scenes


def blinking_heart() -> list[Scene]:
    """A red heart that is gone for a second, twice, within five."""
    scene = Scene(98, 84, WHITE, (thing_named("red heart", 49, 42, 44),))
    scenes = [scene] * 40
    scenes[8:16] = [scene.blank()] * 8
    scenes[20:28] = [scene.blank()] * 8
    return scenes


def appearing_moon() -> list[Scene]:
    """A green star alone for two seconds, then a purple moon beside it."""
    star = thing_named("green star", 34, 42, 40)
    moon = thing_named("purple moon", 92, 42, 40)
    alone = Scene(126, 84, IVORY, (star,))
    both = replace(alone, things=(star, moon))
    return [alone] * 16 + [both] * 16


VIDEOS = {
    "moving.mp4": moving_circle,
    "blinking.mp4": blinking_heart,
    "appearing.mp4": appearing_moon,
}


def write_video(path: Path, scenes: list[Scene], fps: int = 8) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(fps))
        stream.width = scenes[0].width
        stream.height = scenes[0].height
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 400_000
        for scene in scenes:
            container.mux(stream.encode(av.VideoFrame.from_image(scene.draw())))
        container.mux(stream.encode())


# -------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Example:
    """Files that are shown together, a question and its true answer."""

    files: tuple[str, ...]
    question: str
    answer: str


def true_box(scene: Scene, name: str) -> str:
    """The answer that gives the box of the thing of that name."""
    thing = next(thing for thing in scene.things if thing.name == name)
    return box_with_name(f"the {name}", scene.normalised_box(thing))


EXAMPLES = [
    Example(("shapes.png",), "Describe this image.", "A red circle and a blue star."),
    Example(("shapes.png",), "Where is the red circle?", "At the left."),
    Example(("shapes.png",), "Find the blue star.", true_box(SHAPES, "blue star")),
    Example(("triangle.png",), "What colour is the triangle?", "Green."),
    Example(("wide.png",), "What colour is the ring?", "Purple."),
    Example(("wide.png",), "Is the orange cross left of the purple ring?", "Yes."),
    Example(("tall.png",), "What is above the pink star?", "The black square."),
    Example(("tall.png",), "Where is the blue moon?", "There is no blue moon."),
    Example(("many.png",), "How many objects do you see?", "Six."),
    Example(
        ("many.png",),
        "Describe this image.",
        "A red heart, a green triangle, a purple moon, an orange diamond, a black arrow "
        "and a blue ring.",
    ),
    Example(("many.png",), "Find the orange diamond.", true_box(MANY, "orange diamond")),
    Example(("noisy.png",), "What do you see?", "A cyan diamond and a brown circle."),
    Example(("word.png",), "What does it say?", "STOP."),
    Example(("number.png",), "Read the number.", "2049."),
    Example(("before.png", "after.png"), "What differs?", "The orange cross is blue in picture 2."),
    Example(
        ("shapes.png", "triangle.png", "wide.png"),
        "Which picture has a green triangle?",
        "Picture 2.",
    ),
    Example(("moving.mp4",), "Which way does the yellow circle move?", "To the right."),
    Example(("blinking.mp4",), "How often does the red heart blink?", "Twice."),
    Example(("appearing.mp4",), "What appears?", "The purple moon."),
    Example((), "Who are you?", "I am a tiny Qwen2-VL."),
]


def conversation(example: Example) -> list[dict]:
    """The example as a conversation of one turn."""
    items = []
    for file in example.files:
        kind = "video" if file.endswith(".mp4") else "image"
        items.append({"type": kind, "path": str(FOLDER / file)})
    items.append({"type": "text", "text": example.question})
    return [{"role": "user", "content": items}]


def side_by_side(files: tuple[str, ...]) -> Image.Image | None:
    """An example's images side by side, or five frames of its video."""
    if not files:
        return None
    scenes = []
    for file in files:
        if file in IMAGES:
            scenes.append(IMAGES[file])
        else:
            frames = VIDEOS[file]()
            scenes += [frames[round(i * (len(frames) - 1) / 4)] for i in range(5)]
    images = [scene.draw() for scene in scenes]
    gap = 4
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    height = max(image.height for image in images)
    row = Image.new("RGB", (width, height), "white")
    x = 0
    for image in images:
        row.paste(image, (x, 0))
        x += image.width + gap
    return row


def draw_files() -> None:
    """Write all images and videos."""
    FOLDER.mkdir(exist_ok=True)
    for name, scene in IMAGES.items():
        scene.draw().save(FOLDER / name, optimize=True)
    for name, scenes in VIDEOS.items():
        write_video(FOLDER / name, scenes())


def ask_and_write(model: str) -> None:
    """Ask the model about all examples; write answers.json and the contact sheet."""
    answers = load_and_answer(model, [conversation(example) for example in EXAMPLES])
    rows = []
    entries = []
    for example, said in zip(EXAMPLES, answers, strict=True):
        row = {
            "files": example.files,
            "question": example.question,
            "true": example.answer,
            "said": said,
        }
        rows.append(row)
        image = side_by_side(example.files)
        right = score_answer(example.answer, said) >= 0.5
        entries.append(Entry(image, example.question, said, right))
    text = json.dumps(rows, indent=1) + "\n"
    (FOLDER / "answers.json").write_text(text, encoding="utf-8")
    contact_sheet(entries, columns=4).save(FOLDER / "contact_sheet.png", optimize=True)
    print(f"{sum(entry.right for entry in entries)} of {len(entries)} answers are right")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true", help="draw only, ask nothing")
    parser.add_argument("--model", default="tiny", help='"tiny" (default) or a folder')
    args = parser.parse_args()
    draw_files()
    if not args.draw:
        ask_and_write(args.model)


if __name__ == "__main__":
    main()
