"""The figure of the whole architecture, as an SVG, with the parts of one notebook marked.

    python notebooks/architecture.py figure.svg        # nothing marked
    python notebooks/architecture.py figure.svg 02     # what notebook 02 is about
    python notebooks/architecture.py empty.svg --no-names     # without its names, to be filled in

It is drawn from two lists, of boxes and of arrows. A box is named by the class or function of
the three files that computes it; below the name stands the shape of what comes out.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 940, 560
FONT = "DejaVu Sans, Verdana, Arial, sans-serif"
BOX_HEIGHT = 40


@dataclass(frozen=True)
class Box:
    """A stage: the middle of its upper edge in pixels, its name, and what comes out of it."""

    x: int
    y: int
    name: str
    shape: str
    notebooks: tuple[str, ...]
    width: int = 178
    height: int = BOX_HEIGHT


@dataclass(frozen=True)
class Arrow:
    """A line through points (x, y) in pixels, with a head at its end."""

    points: tuple[tuple[int, int], ...]
    text: str = ""


@dataclass(frozen=True)
class Frame:
    """A dashed frame around boxes: left, top, width, height in pixels, and its title."""

    left: int
    top: int
    width: int
    height: int
    title: str
    notebooks: tuple[str, ...] = ()


# Three columns: images and video, text, and the decoder.
IMAGES, TEXT, DECODER = 120, 395, 760
BOXES = (
    Box(IMAGES, 44, "load_image", "(height, width, 3) pixels", ("01",)),
    Box(IMAGES, 104, "smart_resize", "sides in multiples of 28", ("01",)),
    Box(IMAGES, 164, "patchify", "(P, 1176) patches", ("01",)),
    Box(IMAGES, 254, "PatchEmbed", "(P, D) of the vision part", ("02",)),
    Box(IMAGES, 314, "VisionAttention", "each patch sees its image", ("02",)),
    Box(IMAGES, 374, "VisionMlp", "(P, D)", ("02",)),
    Box(IMAGES, 434, "PatchMerger", "(N = P/4, D of the decoder)", ("02",)),
    Box(TEXT, 44, "sample_frames", "2 a second, read in pairs", ("07",)),
    Box(TEXT, 164, "render", "chat template: a string", ("03",)),
    Box(TEXT, 254, "expand_placeholders", "ids (B, T), N for an image", ("03",), 204),
    Box(TEXT, 314, "embed_tokens", "(B, T, D)", ("03",)),
    Box(TEXT, 434, "splice", "(B, T, D), images in place", ("03",)),
    Box(TEXT, 374, "get_rope_index", "(3, B, T): time, row, column", ("04",), 190),
    Box(DECODER, 434, "Attention", "(B, T, D), past only", ("05",)),
    Box(DECODER, 374, "MLP", "(B, T, D)", ("05",)),
    Box(DECODER, 254, "lm_head", "logits (B, 1, V)", ("05",)),
    Box(DECODER, 194, "next_token", "greedy, or temperature, top-p", ("06",), 200),
    Box(DECODER, 44, "TextStream", "the answer, in words", ("06",)),
    Box(590, 374, "KVCache", "keys, values so far", ("06",), 130),
    Box(570, 164, "next_token_loss", "−ln p of each label", ("09",), 164),
)
FRAMES = (
    Frame(18, 224, 204, 264, "VisionTransformer", ("02",)),
    Frame(662, 344, 196, 144, "DecoderLayer, one after another", ("05",)),
)
ARROWS = (
    Arrow(((IMAGES, 84), (IMAGES, 104))),
    Arrow(((IMAGES, 144), (IMAGES, 164))),
    Arrow(((IMAGES, 204), (IMAGES, 254))),
    Arrow(((IMAGES, 294), (IMAGES, 314))),
    Arrow(((IMAGES, 354), (IMAGES, 374))),
    Arrow(((IMAGES, 414), (IMAGES, 434))),
    Arrow(((TEXT, 204), (TEXT, 254))),
    Arrow(((TEXT, 294), (TEXT, 314))),
    Arrow(((306, 334), (286, 334), (286, 442), (306, 442))),
    Arrow(((497, 274), (504, 274), (504, 384), (490, 384))),
    Arrow(((209, 460), (306, 460)), "N features"),
    Arrow(((306, 64), (250, 64), (250, 124), (209, 124))),
    Arrow(((484, 462), (671, 462))),
    Arrow(((490, 404), (510, 404), (510, 450), (671, 450)), "rotates q and k"),
    Arrow(((DECODER, 434), (DECODER, 414))),
    Arrow(((DECODER, 374), (DECODER, 294))),
    Arrow(((DECODER, 254), (DECODER, 234))),
    Arrow(((DECODER, 194), (DECODER, 84)), "decode"),
    Arrow(((860, 214), (900, 214), (900, 520), (395, 520), (395, 474)), "the new token is read"),
    Arrow(((655, 400), (664, 400), (664, 440), (671, 440))),
    Arrow(((671, 274), (570, 274), (570, 204))),
)
# What begins outside: text, where it stands, and the arrow to its box.
SOURCES = (("an image", IMAGES, 24), ("a video", TEXT, 24), ("a conversation", TEXT, 150))


def draw(notebook: str = "", names: bool = True) -> str:
    """The SVG, with the boxes of a notebook ("02") in black.

    names: whether boxes and frames have theirs; without them the figure is an exercise.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="{FONT}" role="img">',
        f"<title>{escape(title(notebook))}</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    parts += [draw_frame(frame) for frame in FRAMES]
    parts += [draw_arrow(arrow) for arrow in ARROWS]
    if names:
        parts += [draw_frame_title(frame) for frame in FRAMES]  # over arrows, which it interrupts
    parts += [text(x, y, words, 12, "italic") for words, x, y in SOURCES]
    for box in BOXES:
        shown = box if names else replace(box, name="?")
        parts.append(draw_box(shown, is_marked(box, notebook)))
    below = title(notebook) if names else "Which class or function is which?"
    parts += [text(WIDTH // 2, HEIGHT - 10, below, 13, "normal")]
    return "\n".join([*parts, "</svg>"])


def title(notebook: str) -> str:
    """The line below the figure."""
    if notebook in WHOLE:
        return WHOLE[notebook]
    if notebook:
        return f"Black: what notebook {notebook} is about. Small numbers: the notebook of a part."
    return "Qwen2-VL as it is in these files. Small numbers: the notebook of a part."


# These notebooks are about no single part.
WHOLE = {
    "00": "Notebook 00 goes the whole way once. Small numbers: the notebook of a part.",
    "08": "Notebook 08 compares what comes out of every box with the reference.",
    "10": "Notebook 10 puts a small change beside the linear layers (black).",
}
# What the fine-tuning of notebook 10 changes.
ADAPTED = ("VisionAttention", "VisionMlp", "PatchMerger", "Attention", "MLP")


def is_marked(box: Box, notebook: str) -> bool:
    if notebook == "10":
        return box.name in ADAPTED
    return notebook in box.notebooks


def draw_box(box: Box, marked: bool) -> str:
    """A box with its name, its shape and the number of its notebook; black if it is marked."""
    fill, ink = ("black", "white") if marked else ("white", "black")
    left = box.x - box.width // 2
    lines = [
        f'<g class="{"here" if marked else "part"}">',
        f'<rect x="{left}" y="{box.y}" width="{box.width}" height="{box.height}" rx="4" '
        f'fill="{fill}" stroke="black" stroke-width="{3 if marked else 1.2}"/>',
        text(box.x, box.y + 17, box.name, 13, "normal", ink, bold=True),
        text(box.x, box.y + 32, box.shape, 11, "normal", ink),
        text(left + box.width - 11, box.y + 11, box.notebooks[0], 9, "normal", ink),
        "</g>",
    ]
    return "\n".join(lines)


def draw_frame(frame: Frame) -> str:
    return (
        f'<rect x="{frame.left}" y="{frame.top}" width="{frame.width}" height="{frame.height}" '
        'rx="8" fill="#f2f2f2" stroke="black" stroke-dasharray="5 4"/>'
    )


def draw_frame_title(frame: Frame) -> str:
    """The title, on a strip of the frame's own grey."""
    strip = (
        f'<rect x="{frame.left + 6}" y="{frame.top + 5}" width="{frame.width - 12}" height="13" '
        'fill="#f2f2f2"/>'
    )
    return strip + text(frame.left + frame.width // 2, frame.top + 15, frame.title, 11, "normal")


def draw_arrow(arrow: Arrow) -> str:
    points = " ".join(f"{x},{y}" for x, y in arrow.points)
    line = (
        f'<polyline points="{points}" fill="none" stroke="black" stroke-width="1.4" '
        'marker-end="url(#head)"/>'
    )
    if not arrow.text:
        return line
    # Above the last long stretch, or beside it if it goes up.
    (x0, y0), (x1, y1) = arrow.points[-3:-1] if len(arrow.points) > 4 else arrow.points[-2:]
    if x0 == x1:
        return line + text(x0 + 32, (y0 + y1) // 2, arrow.text, 11, "italic")
    return line + text((x0 + x1) // 2, y1 - 5, arrow.text, 11, "italic")


def text(
    x: int, y: int, words: str, size: int, style: str, ink: str = "black", bold: bool = False
) -> str:
    """A line of text around x, standing on y."""
    weight = "bold" if bold else "normal"
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-style="{style}" font-weight="{weight}" '
        f'fill="{ink}" text-anchor="middle">{escape(words)}</text>'
    )


if __name__ == "__main__":
    with_names = "--no-names" not in sys.argv
    file, *marked = (argument for argument in sys.argv[1:] if argument != "--no-names")
    Path(file).write_text(draw("".join(marked), with_names), encoding="utf-8")
