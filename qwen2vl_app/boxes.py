"""Find the boxes in an answer, and draw them onto its image.

    python qwen2vl.py --image examples/many.png --prompt "Find the blue ring." |
        python -m qwen2vl_app.boxes examples/many.png found.png

`python qwen2vl.py ... --boxes found.png` does both. Qwen2-VL writes a name and its box as

    <|object_ref_start|>the dog<|object_ref_end|><|box_start|>(112,305),(540,870)<|box_end|>

with the left, top, right and bottom edge from 0 to 1000 along each side (section 2.2).
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from qwen2vl_extras.media import load_image

# A box with or without a name before it.
NAMED_BOX = re.compile(
    r"(?:<\|object_ref_start\|>(?P<name>[^<]*)<\|object_ref_end\|>)?"
    r"<\|box_start\|>\((?P<left>\d+),(?P<top>\d+)\),\((?P<right>\d+),(?P<bottom>\d+)\)<\|box_end\|>"
)
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#111111")


class Box(NamedTuple):
    """Edges from 0 to 1000 along the sides of an image, and the name of what is in the box, "" if
    the answer gives none.
    """

    left: float
    top: float
    right: float
    bottom: float
    name: str = ""

    @property
    def area(self) -> float:
        width = max(0, self.right - self.left)
        height = max(0, self.bottom - self.top)
        return width * height

    def overlap(self, other: "Box") -> float:
        """Intersection over union, 0 to 1."""
        intersection = Box(
            left=max(self.left, other.left),
            top=max(self.top, other.top),
            right=min(self.right, other.right),
            bottom=min(self.bottom, other.bottom),
        ).area
        # What both cover would be counted twice.
        union = self.area + other.area - intersection
        if union == 0:
            return 0.0
        return intersection / union


def find_boxes(answer: str) -> list[Box]:
    """The boxes in an answer, in its order."""
    boxes = []
    for match in NAMED_BOX.finditer(answer):
        box = Box(
            left=int(match["left"]),
            top=int(match["top"]),
            right=int(match["right"]),
            bottom=int(match["bottom"]),
            name=match["name"] or "",
        )
        boxes.append(box)
    return boxes


def draw_boxes(image: Image.Image, boxes: list[Box]) -> Image.Image:
    """A copy of the image with the boxes and their names on it. A small image is enlarged, so that
    the names can be read.
    """
    # By a whole factor, so that every pixel of a small drawing stays a square.
    factor = max(1, round(480 / max(image.size)))
    size = (image.width * factor, image.height * factor)
    drawn = image.resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(drawn)

    # Letters and lines grow with the image.
    font = ImageFont.load_default(max(12, max(size) // 32))
    line_width = max(2, max(size) // 200)

    for i, box in enumerate(boxes):
        colour = COLOURS[i % len(COLOURS)]
        # From thousandths of a side to pixels. Pillow wants edges in order; a model may err.
        left, right = sorted((box.left * drawn.width / 1000, box.right * drawn.width / 1000))
        top, bottom = sorted((box.top * drawn.height / 1000, box.bottom * drawn.height / 1000))
        draw.rectangle((left, top, right, bottom), outline=colour, width=line_width)
        name = " ".join(box.name.split())  # on one line, or Pillow refuses its anchor
        if name:
            # The name stands on the box's top left corner, moved where it would leave the image.
            text_left, text_top, text_right, text_bottom = draw.textbbox(
                (left, top), name, font=font, anchor="lb"
            )
            x = min(left, drawn.width - (text_right - text_left))
            y = max(top, text_bottom - text_top + 4)
            background = draw.textbbox((x, y), name, font=font, anchor="lb")
            draw.rectangle(background, fill=colour)
            draw.text((x, y), name, fill="white", font=font, anchor="lb")
    return drawn


def describe_boxes(boxes: list[Box]) -> str:
    """The names of the boxes, for a message."""
    return ", ".join(box.name or "a box" for box in boxes)


def check_output(out: str, source: str) -> None:
    """ValueError if no image can be written to `out`: to be called before anything slow.

    source: the image that is drawn on, which must not be overwritten.
    """
    path = Path(out)
    # Pillow picks the format by the ending, and can read some formats that it can't write.
    image_format = Image.registered_extensions().get(path.suffix.lower())
    if image_format not in Image.SAVE:
        raise ValueError(
            f"cannot write an image to {out!r}: its name must end in .png, .jpg or the like"
        )
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {out!r}: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise ValueError(f"cannot write {out!r}: it is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"cannot write {out!r}: permission denied")
    if path.exists() and os.path.exists(source) and os.path.samefile(path, source):
        raise ValueError(f"cannot draw boxes into {out!r}: that would overwrite the image itself")


def main(argv: list[str] | None = None) -> int:
    """Draw the boxes of an answer: returns 0, or 1 if it has none, or 2 after one line on stderr
    about what was wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m qwen2vl_app.boxes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", help="the image that the answer is about: a path or a URL")
    parser.add_argument("out", help="the image file to write")
    parser.add_argument(
        "answer", nargs="?", help="the answer; without it, read from standard input"
    )
    args = parser.parse_args(argv)
    try:
        # Before stdin is read: what comes from there may take minutes.
        check_output(args.out, args.image)
        answer = args.answer
        if answer is None:
            answer = sys.stdin.read()
        boxes = find_boxes(answer)
        if not boxes:
            print("no box in the answer: nothing was drawn", file=sys.stderr)
            return 1
        draw_boxes(load_image(args.image), boxes).save(args.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {describe_boxes(boxes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
