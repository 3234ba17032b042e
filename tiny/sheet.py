"""Contact sheets: images, the questions about them, and what the model says."""

import re
import textwrap
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from qwen2vl_app.boxes import draw_boxes, find_boxes

# In pixels: a cell's width and height, the height that its image may take, the space around
# it.
CELL_WIDTH = 300
CELL_HEIGHT = 270
IMAGE_HEIGHT = 170
MARGIN = 12
RIGHT_COLOUR = "#0a7a2f"
WRONG_COLOUR = "#c01c1c"


@dataclass(frozen=True)
class Entry:
    """An image (none for small talk), the question, the answer and whether it is right."""

    image: Image.Image | None
    question: str
    said: str
    right: bool


def readable(answer: str) -> str:
    """The answer without control tokens: boxes are drawn, here only their numbers stay."""
    return re.sub(r"<\|\w+\|>", " ", answer).strip()


def contact_sheet(entries: list[Entry], columns: int) -> Image.Image:
    """All entries in a grid, right ones with a green tick, wrong ones with a red cross."""
    rows = -(-len(entries) // columns)  # rounded up
    size = (columns * CELL_WIDTH + MARGIN, rows * CELL_HEIGHT + MARGIN)
    sheet = Image.new("RGB", size, "white")
    for i, entry in enumerate(entries):
        row, column = divmod(i, columns)
        x = MARGIN + column * CELL_WIDTH
        y = MARGIN + row * CELL_HEIGHT
        if entry.image:
            _draw_image(sheet, entry.image, entry.said, x, y)
        _draw_texts(sheet, entry, x, y + IMAGE_HEIGHT + 6)
    return sheet


def _draw_image(sheet: Image.Image, image: Image.Image, said: str, x: int, y: int) -> None:
    """The image and the boxes of the answer, as large as the cell allows."""
    # Their names stand in the answer below.
    boxes = [box._replace(name="") for box in find_boxes(said)]
    if boxes:
        image = draw_boxes(image, boxes)
    max_width = CELL_WIDTH - 2 * MARGIN
    scale = min(max_width / image.width, IMAGE_HEIGHT / image.height)
    width = round(image.width * scale)
    height = round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    top = y + IMAGE_HEIGHT - height
    sheet.paste(image, (x, top))
    frame = (x, top, x + width - 1, top + height - 1)
    ImageDraw.Draw(sheet).rectangle(frame, outline="#999999")


def _draw_texts(sheet: Image.Image, entry: Entry, x: int, y: int) -> None:
    """The question in at most two lines, the answer in at most four, with its mark."""
    font = ImageFont.load_default(15)
    large_font = ImageFont.load_default(16)
    draw = ImageDraw.Draw(sheet)
    for line in textwrap.wrap(entry.question, 38)[:2]:
        draw.text((x, y), line, fill="#333333", font=font)
        y += 18
    colour = RIGHT_COLOUR if entry.right else WRONG_COLOUR
    _draw_mark(draw, x + 2, y + 4, entry.right, colour)
    for line in textwrap.wrap(readable(entry.said), 33)[:4]:
        draw.text((x + 20, y), line, fill=colour, font=large_font)
        y += 18


def _draw_mark(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool, colour: str) -> None:
    """A tick or a cross of lines: not every font has one."""
    if right:
        draw.line([(x, y + 6), (x + 4, y + 10), (x + 12, y)], fill=colour, width=3)
    else:
        draw.line([(x, y), (x + 10, y + 10)], fill=colour, width=3)
        draw.line([(x + 10, y), (x, y + 10)], fill=colour, width=3)
