"""Find boxes in an answer, and draw them onto the picture.

    python qwen2vl.py --image photo.jpg "Find the dog." | python boxes.py photo.jpg found.png

Qwen2-VL writes a name and its box as `<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(112,305),
(540,870)<|box_end|>`: left, top, right and bottom edge from 0 to 1000 along each side (section 2.2).
"""

import argparse
import re
import sys
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from media import load_image

NAMED_BOX = re.compile(
    r"(?:<\|object_ref_start\|>(?P<name>[^<]*)<\|object_ref_end\|>)?"
    r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>"
)
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#111111")


class Box(NamedTuple):
    """Edges from 0 to 1000 along the sides of a picture, and what is in them, "" where it isn't said."""

    left: float
    top: float
    right: float
    bottom: float
    name: str = ""

    @property
    def area(self) -> float:
        return max(0, self.right - self.left) * max(0, self.bottom - self.top)

    def overlap(self, other: "Box") -> float:
        """Intersection over union, 0 to 1."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        shared = Box(left, top, min(self.right, other.right), min(self.bottom, other.bottom)).area
        union = self.area + other.area - shared
        return shared / union if union else 0.0


def find_boxes(answer: str) -> list[Box]:
    """The boxes that an answer names, in its order."""
    return [
        Box(*(int(edge) for edge in found.groups()[1:]), name=found["name"] or "")
        for found in NAMED_BOX.finditer(answer)
    ]


def draw_boxes(picture: Image.Image, boxes: list[Box]) -> Image.Image:
    """A copy of the picture with the boxes and their names on it, small pictures enlarged to be readable."""
    factor = max(1, round(480 / max(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(12, max(picture.size) // 32))
    line = max(2, max(picture.size) // 200)
    for i, box in enumerate(boxes):
        colour = COLOURS[i % len(COLOURS)]
        across, down = picture.width / 1000, picture.height / 1000
        edges = [box.left * across, box.top * down, box.right * across, box.bottom * down]
        draw.rectangle(edges, outline=colour, width=line)
        if box.name:
            label = draw.textbbox((edges[0], edges[1]), box.name, font=font, anchor="lb")
            x, y = (
                min(edges[0], picture.width - (label[2] - label[0])),
                max(edges[1], label[3] - label[1] + 4),
            )
            draw.rectangle(draw.textbbox((x, y), box.name, font=font, anchor="lb"), fill=colour)
            draw.text((x, y), box.name, fill="white", font=font, anchor="lb")
    return picture


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="the picture that the answer is about: a path or a URL")
    parser.add_argument("out", help="the picture to write")
    parser.add_argument("answer", nargs="?", help="the answer; without it, what comes in on standard input")
    args = parser.parse_args()
    boxes = find_boxes(sys.stdin.read() if args.answer is None else args.answer)
    if not boxes:
        print("the answer has no box: nothing was drawn", file=sys.stderr)
        return 1
    try:
        draw_boxes(load_image(args.image), boxes).save(args.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {', '.join(box.name or 'a box' for box in boxes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
