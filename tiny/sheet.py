"""Contact sheets: pictures, the questions about them, and what the model says."""

import re
import textwrap
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from boxes import draw_boxes, find_boxes

CELL, PICTURE, MARGIN = 300, 170, 12  # px: a cell's width, its picture's height, the space around


@dataclass(frozen=True)
class Entry:
    """What is shown (nothing for small talk), the question, the answer and whether it is right."""

    picture: Image.Image | None
    question: str
    said: str
    right: bool


def readable(answer: str) -> str:
    """The answer without control tokens: boxes are drawn, here only their numbers stay."""
    return re.sub(r"<\|\w+\|>", " ", answer).strip()


def contact_sheet(entries: list[Entry], columns: int) -> Image.Image:
    """All entries in a grid, right ones marked by a tick in green, wrong ones by a cross in red."""
    font, bold = ImageFont.load_default(15), ImageFont.load_default(16)
    height = PICTURE + 100
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (columns * CELL + MARGIN, rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, entry in enumerate(entries):
        x, y = MARGIN + i % columns * CELL, MARGIN + i // columns * height
        wide = CELL - 2 * MARGIN
        if entry.picture:
            boxes = [box._replace(name="") for box in find_boxes(entry.said)]
            picture = draw_boxes(entry.picture, boxes) if boxes else entry.picture
            scale = min(wide / picture.width, PICTURE / picture.height)
            size = round(picture.width * scale), round(picture.height * scale)
            picture = picture.resize(size, Image.Resampling.LANCZOS)
            sheet.paste(picture, (x, y + PICTURE - picture.height))
            draw.rectangle((x, y + PICTURE - size[1], x + size[0] - 1, y + PICTURE - 1), outline="#999999")
        y += PICTURE + 6
        for line in textwrap.wrap(entry.question, 38)[:2]:
            draw.text((x, y), line, fill="#333333", font=font)
            y += 18
        colour = "#0a7a2f" if entry.right else "#c01c1c"
        _mark(draw, x + 2, y + 4, entry.right, colour)
        for line in textwrap.wrap(readable(entry.said), 33)[:4]:
            draw.text((x + 20, y), line, fill=colour, font=bold)
            y += 18
    return sheet


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool, colour: str) -> None:
    """A tick or a cross of lines: not every font has one."""
    if right:
        draw.line([(x, y + 6), (x + 4, y + 10), (x + 12, y)], fill=colour, width=3)
    else:
        draw.line([(x, y), (x + 10, y + 10)], fill=colour, width=3)
        draw.line([(x + 10, y), (x, y + 10)], fill=colour, width=3)
