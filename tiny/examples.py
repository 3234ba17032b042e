"""Draw `examples/`: what README, tests and notebooks ask the embedded model about, and what it answers.

    python -m tiny.examples            # draw all, ask the model, write answers.json and the sheet
    python -m tiny.examples --draw     # the pictures and clips alone

Every question stands here with the answer that is true, written by hand or taken from the scene's list; what
the model says to it goes to `examples/answers.json`, right or wrong, and onto `examples/contact_sheet.png`.
"""

import argparse
import json
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from tiny.sheet import Entry, contact_sheet
from tiny.tasks import grounded
from tiny.world import COLOURS, Background, Scene, Thing

FOLDER = Path(__file__).parent.parent / "examples"
WHITE, GREY, IVORY, SKY, MINT = (
    Background(rgb)
    for rgb in ((255, 255, 255), (238, 238, 238), (250, 243, 224), (222, 236, 246), (226, 242, 226))
)


def thing(name: str, x: float, y: float, size: int) -> Thing:
    """A thing by its name: "red star", or "red word CAT"."""
    colour, shape, *text = name.split()
    return Thing(colour, shape, x, y, size, COLOURS[colour], *text)


SHAPES = Scene(168, 112, IVORY, (thing("red circle", 44, 62, 52), thing("blue star", 122, 52, 60)))
MANY = Scene(
    300, 200, Background((222, 236, 246), (250, 243, 224)),
    (
        thing("red heart", 42, 50, 58), thing("green triangle", 78, 142, 70),
        thing("purple moon", 136, 56, 60), thing("orange diamond", 180, 140, 66),
        thing("black arrow", 226, 52, 64), thing("blue ring", 256, 146, 54),
    ),
)  # fmt: skip
ROOM = Scene(140, 112, MINT, (thing("purple heart", 40, 60, 44), thing("orange cross", 100, 52, 40)))
PICTURES = {
    "shapes.png": SHAPES,
    "triangle.png": Scene(84, 84, WHITE, (thing("green triangle", 42, 42, 56),)),
    "wide.png": Scene(180, 72, SKY, (thing("orange cross", 38, 36, 44), thing("purple ring", 138, 38, 48))),
    "tall.png": Scene(70, 150, MINT, (thing("pink star", 28, 112, 40), thing("black square", 44, 40, 36))),
    "many.png": MANY,
    "noisy.png": Scene(
        112, 112, Background((246, 226, 226), noise=0.12, seed=1),
        (thing("cyan diamond", 34, 40, 44), thing("brown circle", 78, 76, 40)),
    ),
    "word.png": Scene(140, 84, SKY, (thing("blue word STOP", 70, 42, 40),)),
    "number.png": Scene(140, 70, IVORY, (thing("red number 2049", 70, 35, 36),)),
    "before.png": ROOM,
    "after.png": replace(ROOM, things=(ROOM.things[0], thing("blue cross", 100, 52, 40))),
}  # fmt: skip


def moving() -> list[Scene]:
    """A yellow circle goes from left to right in three seconds, drawn 8 times a second."""
    return [Scene(112, 84, GREY, (thing("yellow circle", 20 + 72 * i / 23, 42, 32),)) for i in range(24)]


def blinking() -> list[Scene]:
    """A red heart that is gone for a second, twice, within five."""
    scene = Scene(98, 84, WHITE, (thing("red heart", 49, 42, 44),))
    return [scene.blank() if 8 <= i < 16 or 20 <= i < 28 else scene for i in range(40)]


def appearing() -> list[Scene]:
    """A green star alone for two seconds, then a purple moon beside it."""
    scene = Scene(126, 84, IVORY, (thing("green star", 34, 42, 40), thing("purple moon", 92, 42, 40)))
    return [scene if i >= 16 else replace(scene, things=scene.things[:1]) for i in range(32)]


CLIPS = {"moving.mp4": moving, "blinking.mp4": blinking, "appearing.mp4": appearing}


@dataclass(frozen=True)
class Example:
    """Files that are shown together, a question and its true answer."""

    files: tuple[str, ...]
    question: str
    answer: str


def boxed(scene: Scene, name: str) -> str:
    one = next(thing for thing in scene.things if thing.name == name)
    return grounded(f"the {name}", scene.box(one))


EXAMPLES = [
    Example(("shapes.png",), "Describe this image.", "A red circle and a blue star."),
    Example(("shapes.png",), "Where is the red circle?", "At the left."),
    Example(("shapes.png",), "Find the blue star.", boxed(SHAPES, "blue star")),
    Example(("triangle.png",), "What colour is the triangle?", "Green."),
    Example(("wide.png",), "What colour is the ring?", "Purple."),
    Example(("wide.png",), "Is the orange cross left of the purple ring?", "Yes."),
    Example(("tall.png",), "What is above the pink star?", "The black square."),
    Example(("tall.png",), "Where is the blue moon?", "There is no blue moon."),
    Example(("many.png",), "How many objects do you see?", "Six."),
    Example(
        ("many.png",), "Describe this image.",
        "A red heart, a green triangle, a purple moon, an orange diamond, a black arrow and a blue ring.",
    ),
    Example(("many.png",), "Find the orange diamond.", boxed(MANY, "orange diamond")),
    Example(("noisy.png",), "What do you see?", "A cyan diamond and a brown circle."),
    Example(("word.png",), "What does it say?", "STOP."),
    Example(("number.png",), "Read the number.", "2049."),
    Example(("before.png", "after.png"), "What differs?", "The orange cross is blue in picture 2."),
    Example(("shapes.png", "triangle.png", "wide.png"), "Which picture has a green triangle?", "Picture 2."),
    Example(("moving.mp4",), "Which way does the yellow circle move?", "To the right."),
    Example(("blinking.mp4",), "How often does the red heart blink?", "Twice."),
    Example(("appearing.mp4",), "What appears?", "The purple moon."),
    Example((), "Who are you?", "I am a tiny Qwen2-VL."),
]  # fmt: skip


def message(example: Example) -> list[dict]:
    """The example as a conversation of one turn."""
    media = [
        {"type": "video" if f.endswith(".mp4") else "image", "path": str(FOLDER / f)} for f in example.files
    ]
    return [{"role": "user", "content": [*media, {"type": "text", "text": example.question}]}]


def write_clip(path: Path, scenes: list[Scene], fps: int = 8) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = scenes[0].width, scenes[0].height, "yuv420p"
        stream.bit_rate = 400_000
        for scene in scenes:
            container.mux(stream.encode(av.VideoFrame.from_image(scene.draw())))
        container.mux(stream.encode())


def strip(files: tuple[str, ...]) -> Image.Image | None:
    """What the sheet shows of an example: its pictures side by side, or four frames of its clip."""
    if not files:
        return None
    scenes = [PICTURES[file] for file in files if file in PICTURES]
    for file in files:
        if file in CLIPS:
            frames = CLIPS[file]()
            scenes += [frames[round(i * (len(frames) - 1) / 4)] for i in range(5)]
    pictures = [scene.draw() for scene in scenes]
    sheet = Image.new(
        "RGB", (sum(p.width + 4 for p in pictures) - 4, max(p.height for p in pictures)), "white"
    )
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width + 4
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true", help="draw only, ask nothing")
    parser.add_argument("--model", default="tiny", help='"tiny" (default) or a folder')
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name, scene in PICTURES.items():
        scene.draw().save(FOLDER / name, optimize=True)
    for name, frames in CLIPS.items():
        write_clip(FOLDER / name, frames())
    if args.draw:
        return
    from tiny.evaluate import ask_all, judge

    said = ask_all(args.model, [message(example) for example in EXAMPLES])
    rows = [
        {"files": example.files, "question": example.question, "true": example.answer, "said": text}
        for example, text in zip(EXAMPLES, said, strict=True)
    ]
    (FOLDER / "answers.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    entries = [
        Entry(strip(example.files), example.question, text, judge(example.answer, text) >= 0.5)
        for example, text in zip(EXAMPLES, said, strict=True)
    ]
    contact_sheet(entries, columns=4).save(FOLDER / "contact_sheet.png", optimize=True)
    print(f"{sum(entry.right for entry in entries)} of {len(entries)} answers are right")


if __name__ == "__main__":
    main()
