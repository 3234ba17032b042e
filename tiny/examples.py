"""Draw the pictures and the clip in `examples/`, which README and tests ask the embedded model about.

python -m tiny.examples
"""

from fractions import Fraction
from pathlib import Path

import av

from tiny.world import BACKGROUNDS, COLOURS, Scene, Thing

FOLDER = Path(__file__).parent.parent / "examples"
WHITE, GREY, IVORY, SKY, MINT, _ = BACKGROUNDS


def thing(name: str, x: float, y: float, radius: float) -> Thing:
    colour, shape = name.split()
    return Thing(colour, shape, x, y, radius, COLOURS[colour])


SCENES = {
    "shapes.png": Scene(168, 112, IVORY, (thing("red circle", 44, 62, 26), thing("blue star", 122, 52, 30))),
    "triangle.png": Scene(84, 84, WHITE, (thing("green triangle", 42, 42, 28),)),
    "wide.png": Scene(180, 72, SKY, (thing("orange cross", 38, 36, 22), thing("purple ring", 138, 38, 24))),
    "tall.png": Scene(70, 150, MINT, (thing("pink star", 28, 112, 20), thing("black square", 44, 40, 18))),
}
CLIP = "moving.mp4"


def draw_clip(path: Path, frames: int = 24, fps: int = 8) -> None:
    """A yellow circle goes from left to right in three seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 112, 84, "yuv420p", 400_000
        for i in range(frames):
            x = 20 + 72 * i / (frames - 1)
            picture = Scene(112, 84, GREY, (thing("yellow circle", x, 42, 16),)).draw()
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, scene in SCENES.items():
        scene.draw().save(FOLDER / name, optimize=True)
    draw_clip(FOLDER / CLIP)


if __name__ == "__main__":
    main()
