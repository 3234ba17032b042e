"""Drawings of notebook 03."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from plots.lettering import show
from processor import BYTE_OF, Qwen2VLProcessor

CELL_WIDTH, CELL_HEIGHT = 0.8, 0.42  # inches


def draw_tokens(
    rows: dict[str, Sequence[int]],
    processor: Qwen2VLProcessor,
    crops: Sequence[Image.Image] = (),
    columns: int = 14,
) -> None:
    """Rows of ids, by title, as cells: text white, control tokens black, placeholders grey.

    Where crops are given, the first placeholders show them: the pixels that they stand for.
    """
    heights = [-(-len(ids) // columns) for ids in rows.values()]  # lines of cells, rounded up
    size = (CELL_WIDTH * columns, CELL_HEIGHT * sum(heights) + 0.4 * len(rows))
    _, panels = plt.subplots(len(rows), 1, figsize=size, height_ratios=heights, squeeze=False)
    for axes, (title, ids), height in zip(panels[:, 0], rows.items(), heights, strict=True):
        remaining = list(crops)
        for n, token_id in enumerate(ids):
            x, y = n % columns, n // columns
            if remaining and token_id in (processor.image_token_id, processor.video_token_id):
                _draw_crop(axes, x, y, remaining.pop(0))
            else:
                _draw_token(axes, x, y, token_id, processor)
        axes.set(xlim=(-0.03, columns + 0.03), ylim=(height + 0.03, -0.03), xticks=[], yticks=[])
        axes.set_title(title, fontsize=9, loc="left")
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(False)
    show()


def _draw_token(axes: Axes, x: int, y: int, token_id: int, processor: Qwen2VLProcessor) -> None:
    """A cell with a token's name."""
    name = processor.tokenizer.id_to_token(token_id)
    shade, text_colour = "white", "black"
    if token_id in (processor.image_token_id, processor.video_token_id):
        shade = "0.75"
    elif name in processor.special_tokens:
        shade, text_colour = "black", "white"
    if name in processor.special_tokens:
        name = name.strip("<|>")
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=shade, edgecolor="0.5", linewidth=0.8))
    style = {"color": text_colour, "fontsize": 7.5, "parse_math": False}
    axes.text(x + 0.5, y + 0.5, name, ha="center", va="center", **style)


def _draw_crop(axes: Axes, x: int, y: int, crop: Image.Image) -> None:
    """A cell with a square of pixels."""
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor="0.75", edgecolor="0.5", linewidth=0.8))
    half = 0.45 * CELL_HEIGHT / CELL_WIDTH  # as wide as it is high
    extent = (x + 0.5 - half, x + 0.5 + half, y + 0.95, y + 0.05)
    axes.imshow(crop, extent=extent, aspect="auto", zorder=2)


def draw_learning(lengths: Sequence[int]) -> None:
    """The length of a text in tokens against the number of rules that were learned from it."""
    _, axes = plt.subplots(figsize=(7, 3))
    axes.plot(range(len(lengths)), lengths, marker="o")
    for n, tokens in enumerate(lengths):
        axes.annotate(str(tokens), (n, tokens), (6, 6), textcoords="offset points", fontsize=9)
    axes.set(xlabel="rules learned", ylabel="length of the text (tokens)")
    axes.set(ylim=(0, lengths[0] + 5))
    axes.set_title("Each merge shortens the text; the first ones most")
    show()


def draw_merges(words: Sequence[list[list[str]]], rank: dict[tuple[str, str], int]) -> None:
    """Words on their way from characters to tokens: a row for each merge, its new piece grey.

    Each word is the list of its states; rank: the number of the rule for a pair of pieces.
    """
    tallest = max(len(states) for states in words)
    _, panels = plt.subplots(1, len(words), figsize=(5 * len(words), 0.4 * tallest + 0.8))
    for axes, states in zip(panels, words, strict=True):
        word = "".join(states[0])
        for row, state in enumerate(states):
            before = states[row - 1] if row else state
            x = 0
            for n, piece in enumerate(state):
                is_new = n < len(before) and piece != before[n] and state[:n] == before[:n]
                shade = "0.8" if is_new else "white"
                axes.add_patch(
                    Rectangle((x, row), len(piece), 0.8, facecolor=shade, edgecolor="black")
                )
                middle = x + len(piece) / 2
                axes.text(middle, row + 0.4, piece, ha="center", va="center", fontsize=9)
                if is_new:
                    rule = f"rule {rank[before[n], before[n + 1]]}"
                    axes.text(len(word) + 0.3, row + 0.4, rule, va="center", fontsize=8)
                x += len(piece)
        axes.set(xlim=(-0.1, len(word) + 2.5), ylim=(len(states), -0.1), xticks=[])
        axes.set(ylabel="merges done")
        axes.set_yticks([row + 0.4 for row in range(len(states))], range(len(states)))
        title = f"{word}: {len(states[0])} characters, {len(states[-1])} token(s)"
        axes.set_title(title, fontsize=10)
        axes.grid(False)
    show()


def draw_text_costs(names: Sequence[str], tokens: list[float], raw_bytes: list[float]) -> None:
    """Bars: tokens and bytes per character of each text."""
    _, axes = plt.subplots(figsize=(8, 3.6))
    rows = range(len(names))
    upper = [row - 0.2 for row in rows]
    lower = [row + 0.2 for row in rows]
    axes.barh(upper, tokens, 0.4, color="black", label="tokens")
    axes.barh(lower, raw_bytes, 0.4, color="0.9", edgecolor="black", hatch="//", label="bytes")
    for y, value in zip([*upper, *lower], [*tokens, *raw_bytes], strict=True):
        axes.text(value + 0.04, y, f"{value:.2f}", va="center", fontsize=8)
    axes.set(yticks=rows, yticklabels=names, xlim=(0, 1.1 * max(raw_bytes)), xlabel="per character")
    axes.set_title("What a character costs")
    axes.invert_yaxis()
    axes.legend()
    show()


def draw_lengths(ids: Sequence[int], norms: Sequence[float], processor: Qwen2VLProcessor) -> None:
    """The length of each position's vector, with a marker for the kind of its token."""
    placeholders = (processor.image_token_id, processor.video_token_id)
    kinds = []
    for token_id in ids:
        if token_id in placeholders:
            kinds.append("image")
        elif token_id in processor.special_tokens.values():
            kinds.append("control token")
        else:
            kinds.append("text")

    _, axes = plt.subplots(figsize=(9, 3.4))
    looks = (("image", "o", "black"), ("control token", "s", "0.6"), ("text", "^", "white"))
    for kind, marker, shade in looks:
        x = [n for n, one in enumerate(kinds) if one == kind]
        y = [norms[n] for n in x]
        axes.plot(x, y, marker, color=shade, markeredgecolor="black", label=kind)
    axes.set(yscale="log", xlabel="position in the prompt", ylabel="length of the vector (L2 norm)")
    axes.set_title("What the decoder gets: one vector for each position")
    axes.legend()
    show()


def draw_bytes(tokens: Sequence[str], answer: object) -> None:
    """The bytes of tokens, the characters that they make up, and a reader's answer as title."""
    _, axes = plt.subplots(figsize=(10, 1.7))
    raw = b""
    for n, token in enumerate(tokens):
        shade = "0.8" if n % 2 else "white"
        for character in token:
            x = len(raw)
            raw += BYTE_OF[character]
            axes.add_patch(Rectangle((x, 1), 1, 1, facecolor=shade, edgecolor="black"))
            axes.text(x + 0.5, 1.5, f"{raw[-1]:02x}", ha="center", va="center", fontsize=8)

    x = 0
    for character in raw.decode("utf-8", errors="replace"):
        width = 1 if character == "\ufffd" else len(character.encode())
        axes.add_patch(Rectangle((x, 0), width, 1, facecolor="white", edgecolor="black"))
        name = f"U+{ord(character):04X}"
        if character.isascii():
            name = "Ġ" if character == " " else character
        size = 8 if width > 1 or len(name) == 1 else 4.5
        style = {"fontsize": size, "parse_math": False}
        axes.text(x + width / 2, 0.5, name, ha="center", va="center", **style)
        x += width

    axes.set(xlim=(0, max(x, len(raw))), ylim=(0, 2), xticks=[], yticks=[0.5, 1.5])
    axes.set_yticklabels(["characters", "bytes, a shade a token"])
    axes.set_title(f"your answer: {ascii(answer)[:90]}", fontsize=9, loc="left", parse_math=False)
    axes.grid(False)
    show()


def draw_placeholders(
    yours: Sequence[int], right: Sequence[int], placeholder: int, case: str
) -> None:
    """Which tokens are placeholders in a reader's answer, and which should be, in two rows."""
    _, axes = plt.subplots(figsize=(10, 1.5))
    for y, ids in ((0, right), (1, yours)):
        for x, token_id in enumerate(ids):
            shade = "0.35" if token_id == placeholder else "white"
            axes.add_patch(Rectangle((x, y + 0.1), 1, 0.8, facecolor=shade, edgecolor="0.6"))
    length = max(len(yours), len(right), 1)
    axes.set(xlim=(0, length), ylim=(0, 2), yticks=[0.5, 1.5], xlabel="token")
    axes.set_yticklabels(["right", "yours"])
    axes.set_title(f"{case}: placeholders dark, everything else white", fontsize=9, loc="left")
    axes.grid(False)
    show()
