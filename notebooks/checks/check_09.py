"""The checkers of the exercises of notebook 09."""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from course import Wrong
from PIL import Image, ImageDraw
from plots import plots_09 as plots

from checks import watch
from processor import Qwen2VLProcessor
from tiny.drawing import FIGURES, figure_mask
from tiny.train import answer_labels
from tiny.world import COLOURS, PLAIN_HAND, SHAPES

KNOWN_SHAPES = tuple(FIGURES)
PAINTERS = dict(SHAPES)  # of those that need no hand, before a reader adds one

# -------------------------------------------------------------- exercise 1: labels of several turns

CONVERSATIONS = (  # questions and answers
    (("Describe this image.", "A red circle."),),
    (("What colour is the star?", "Blue."), ("Where is it?", "At the left.")),
    (("assistant\nSay yes.", "Yes."),),  # a user's text may look like an opening, but for `start`
    (
        ("Hello!", "Hello!"),
        ("What does the assistant say?", "Nothing."),
        ("Is there a ring?", "No."),
    ),
)


def labels_of(answer: Callable[[list[int], int, int, list[int]], list[int]]) -> None:
    """answer(ids, start, end, opening): labels for all of the assistant's answers in a row."""
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    start = processor.tokenizer.token_to_id("<|im_start|>")
    end = processor.tokenizer.token_to_id("<|im_end|>")
    opening = processor.tokenizer.encode("assistant\n").ids
    answer = watch.without_calls(answer, "train.answer_labels")
    for conversation in CONVERSATIONS:
        input_ids = processor.apply_chat_template(_messages(conversation), tokenize=True)  # (1, T)
        ids = input_ids[0].tolist()
        right = answer_labels(input_ids, processor)[0].tolist()
        turns = len(conversation)
        case = f"a conversation of {turns} turn(s)"
        yours = watch.whole_numbers(answer(list(ids), start, end, list(opening)), case)
        if turns == len(CONVERSATIONS[-1]) and len(yours) == len(ids):
            plots.draw_label_rows(right, yours, turns)
        names = [repr(processor.decode([token])) for token in ids]
        _compare_labels(case, names, right, yours)
    for seed in range(12):
        ids, start, end, opening, right = _random_row(random.Random(seed))
        case = f"ids {ids}, start {start}, end {end}, opening {opening}"
        yours = watch.whole_numbers(answer(list(ids), start, end, list(opening)), case)
        _compare_labels(case, [str(token) for token in ids], right, yours)


def _random_row(rng: random.Random) -> tuple[list[int], int, int, list[int], list[int]]:
    """Ids of a made-up conversation, its start, end and opening, and the right labels."""
    start, end, *opening = rng.sample(range(5, 900), 2 + rng.randint(1, 3))
    words = [*opening, 1, 2, 3]  # a text may hold the opening's ids, but for `start` before them
    ids: list[int] = []
    labels: list[int] = []
    for turn in range(rng.randint(1, 5)):
        text = rng.choices(words, k=rng.randint(0, 4))
        is_answer = turn == 0 or rng.random() < 0.5
        # Another role begins with an id of its own, and the opening's may follow.
        head = [start, *opening] if is_answer else [start, 4, *opening]
        ids += [*head, *text, end]
        labels += [-100] * len(head)
        labels += [*text, end] if is_answer else [-100] * (len(text) + 1)
    return ids, start, end, opening, labels


def _messages(conversation: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    messages = []
    for question, answer in conversation:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def _compare_labels(case: str, names: list[str], right: list[int], yours: list[int]) -> None:
    """Wrong at the first token with another label."""
    if len(yours) != len(right):
        raise Wrong(f"{case}: {len(right)} ids need as many labels, yours gives {len(yours)}")
    for i, (wanted, given) in enumerate(zip(right, yours, strict=True)):
        if wanted != given:
            token = f"{case}: token {i}, {names[i]},"
            raise Wrong(f"{token} should have {_name(wanted)}; yours has {_name(given)}")


def _name(label: int) -> str:
    return "no label (-100)" if label == -100 else f"the label {label}"


# --------------------------------------------------------------------- exercise 2: a batch in parts


def whole_loss(answer: Callable[[list[tuple[float, int]]], float]) -> None:
    """answer(parts): the loss of a batch from (mean loss, number of labels) of its parts."""
    generator = torch.Generator().manual_seed(0)
    rng = random.Random(0)
    batches = [(4, 4), (2, 30), (1, 5, 60), (7,)]
    batches += [tuple(rng.randint(1, 90) for _ in range(rng.randint(2, 6))) for _ in range(6)]
    for number, counts in enumerate(batches):
        logits = [torch.randn(n, 50, generator=generator) * (1 + n / 8) for n in counts]
        labels = [torch.randint(50, (n,), generator=generator) for n in counts]
        losses = [F.cross_entropy(x, y).item() for x, y in zip(logits, labels, strict=True)]
        right = F.cross_entropy(torch.cat(logits), torch.cat(labels)).item()
        yours = answer(list(zip(losses, counts, strict=True)))
        if yours is None:
            raise Wrong("it returns None: is the `return` missing?")
        if number == 2:
            plots.draw_part_losses(losses, counts, right, float(yours))
        if not math.isclose(float(yours), right, rel_tol=1e-4):
            plain_mean = sum(losses) / len(losses)
            hint = ""
            if math.isclose(yours, plain_mean, rel_tol=1e-4):
                hint = "; that is the plain mean of the parts"
            parts = " and ".join(str(n) for n in counts)
            together = f"parts of {parts} labels have the loss {right:.4f} together"
            raise Wrong(f"{together}, not {yours:.4f}{hint}")


# -------------------------------------------------------------------------- exercise 3: a new shape


def my_shape(answer: Callable[[], tuple[str, list[tuple[float, float]]]]) -> None:
    """answer(): a new shape, its name and its corners in a square from -1 to 1."""
    name, corners = _check_shape(answer())

    def paint(draw: ImageDraw.ImageDraw, r: float) -> None:
        draw.polygon([(r + x * r, r + y * r) for x, y in corners], fill=255)

    mine = _mask(paint)
    known = {shape: _known_mask(shape) for shape in KNOWN_SHAPES}
    shared = {}  # the share of their joint area that the new shape has in common with each
    for shape, mask in known.items():
        shared[shape] = float((mine & mask).sum() / (mine | mask).sum())
    nearest = max(shared, key=lambda shape: shared[shape])
    plots.draw_shapes({name: mine, f"{nearest}, the nearest": known[nearest]})
    if mine.mean() < 0.15:
        said = f"it covers {mine.mean():.0%} of its square"
        raise Wrong(f"{said}: with less than 15 % it can't be seen when small")
    if shared[nearest] > 0.8:
        said = f"it is too much like a {nearest}"
        raise Wrong(f"{said}: they share {shared[nearest]:.0%} of their joint area")


def _check_shape(given: object) -> tuple[str, list[tuple[float, float]]]:
    """Wrong if it is no name with the corners of a polygon."""
    if not isinstance(given, tuple) or len(given) != 2:
        raise Wrong(f"return a name and a list of corners; yours returns {given!s:.60}")
    name, corners = given
    if not isinstance(name, str) or not name.isalpha() or not name.islower():
        raise Wrong(f"the name has to be one word in small letters; yours is {name!r}")
    if name in KNOWN_SHAPES or name in COLOURS:
        raise Wrong(f"{name!r} is a word that the model knows already: find a new one")
    tokenizer = Qwen2VLProcessor.from_pretrained("tiny").tokenizer
    if len(tokenizer.encode(f" {name}").ids) == 1:
        raise Wrong(f"the tokenizer has a token for {name!r}: the model has met the word before")
    if len(corners) < 3 or any(len(corner) != 2 for corner in corners):
        raise Wrong(f"a polygon has three corners (x, y) or more; yours: {corners!s:.60}")
    for x, y in corners:
        if max(abs(x), abs(y)) > 1:
            raise Wrong(f"the corner {(x, y)} is outside of the square from -1 to 1")
    return name, corners


def _mask(paint: Callable[[ImageDraw.ImageDraw, float], None], side: int = 128) -> np.ndarray:
    """Where a painter of tiny.world paints: (side, side), True or False."""
    image = Image.new("L", (side, side))
    paint(ImageDraw.Draw(image), side / 2)
    return np.array(image) > 127


def _known_mask(shape: str, side: int = 128) -> np.ndarray:
    """Where a shape that the model knows is painted: (side, side), True or False."""
    if shape in PAINTERS:
        return _mask(PAINTERS[shape], side)
    drawn = figure_mask(shape, side, PLAIN_HAND)  # with room around it
    edge = (drawn.width - side) // 2
    return np.array(drawn.crop((edge, edge, edge + side, edge + side))) > 127
