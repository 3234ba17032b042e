"""A conversation as tokens: what its images and videos are, and how its answers were spelled.

`apply_chat_template` of a processor turns messages into tokens as if nothing was known of them.
Between two questions of one conversation something is known, and two things need care.

  * The placeholders of two images are the same tokens. So each token has a key to compare by: its
    id, or for a placeholder a number made of the image's pixels.
  * The text of an answer, turned into tokens, need not give the tokens that the model wrote: it
    may have spelled "cats" in two tokens. The message of an answer keeps its `token_ids`, and as
    long as its text is not edited these are used.
"""

import hashlib
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from processor import (
    Item,
    Message,
    Piece,
    Qwen2VLProcessor,
    RenderFlags,
    parse_conversation,
    split_at_tokens,
)
from qwen2vl import prompt_positions
from qwen2vl_extras.chat_template import new_marker
from qwen2vl_extras.checks import is_whole
from qwen2vl_extras.repeats import is_same

FIRST_MEDIA_KEY = 2**64  # far above all token ids


# ------------------------------------------------------------------- what a prompt is made of


@dataclass
class Medium:
    """An image or video: its patches, and once it is encoded its features in their place."""

    placeholder: int  # the id of the token that stands for it
    grid: list[int]  # [t, h, w] in patches
    num_tokens: int
    key: int  # equal for equal pixels
    pixels: Tensor | None  # (P, 1176)
    features: Tensor | None = None  # (num_tokens, D)


class Answer(dict):
    """The message of an answer that a model of this process wrote, with its `token_ids`.

    A message from elsewhere, of a file say, is a plain dict: what it states as its tokens must
    not smuggle in control tokens.
    """


@dataclass
class OpenedItem:
    """An item of a message with what was found where it points to."""

    item: Item
    entries: Item  # a copy of the item, which tells whether it was edited since
    medium: Medium


@dataclass
class Prompt:
    """A conversation as tokens, in lists with one entry for each."""

    ids: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)  # equal keys: equal input of the model
    positions: list[tuple[int, int, int]] = field(default_factory=list)  # time, row, column
    media: list[tuple[int, Medium]] = field(default_factory=list)  # each with its first token
    text_start: int = 0  # from this token on there are no placeholders

    def add(self, ids: Iterable[int], waiting: Mapping[int, deque[Medium]]) -> None:
        """Append tokens; a placeholder becomes as many as the next image or video takes.

        waiting: the images and videos that come next, by the placeholder that stands for one.
        """
        for token in ids:
            if token not in waiting:
                self.ids.append(token)
                self.keys.append(token)
                continue
            if not waiting[token]:
                raise ValueError("the chat template writes a placeholder without an image or video")
            medium = waiting[token].popleft()
            self.media.append((len(self.ids), medium))
            self.ids += [token] * medium.num_tokens
            self.keys += [medium.key] * medium.num_tokens

    def finish(self, placeholders: Collection[int], merge_size: int) -> None:
        """Work out what follows from the tokens."""
        # In an answer a placeholder is a token like others: only those of media have a grid.
        is_medium = [int(key >= FIRST_MEDIA_KEY) for key in self.keys]
        grids = deque(medium.grid for _, medium in self.media)
        self.positions, _ = prompt_positions(is_medium, {1: grids}, merge_size)
        for i, token in enumerate(self.ids):
            if token in placeholders:
                self.text_start = i + 1

    def common_length(self, keys: Sequence[int]) -> int:
        """How many tokens of a cache, given by their keys, can stay."""
        length = 0
        # The last token of the prompt is always read, since the answer follows from it.
        for own, other in zip(self.keys[:-1], keys, strict=False):
            if own != other:
                break
            length += 1
        # An image is read as a whole.
        for start, medium in self.media:
            if start < length < start + medium.num_tokens:
                length = start
        return length


# ------------------------------------------------------------------------- messages to tokens


class PromptWriter:
    """Turns conversations into prompts, and opens their images and videos.

    merge_size, vocab_size: of the model's configuration.
    """

    def __init__(self, processor: Qwen2VLProcessor, merge_size: int, vocab_size: int) -> None:
        self.processor = processor
        self.merge_size = merge_size
        self.vocab_size = vocab_size
        self.opened: list[OpenedItem] = []  # of the conversation that was written last

    def write(self, messages: list[Message]) -> Prompt:
        """A conversation as tokens, up to the beginning of an answer."""
        pieces, answers = self.render(messages)
        # Images and videos in the order of their placeholders.
        waiting: dict[int, deque[Medium]] = {
            self.processor.image_token_id: deque(),
            self.processor.video_token_id: deque(),
        }
        self.opened = self.open_all(messages)  # what is no part of it any more is not kept
        for found in self.opened:
            waiting[found.medium.placeholder].append(found.medium)

        # Answers as they were generated, everything between them by the tokenizer.
        prompt = Prompt()
        between: list[Piece] = []
        for piece in cut_at_markers(pieces, answers):
            if piece.text not in answers:
                between.append(piece)
                continue
            prompt.add(self.processor.encode(between), waiting)
            prompt.add(answers[piece.text], {})
            between = []
        prompt.add(self.processor.encode(between), waiting)
        if any(waiting.values()):
            raise ValueError("the chat template leaves out an image or video")
        prompt.finish(list(waiting), self.merge_size)
        return prompt

    def render(self, messages: list[Message]) -> tuple[list[Piece], dict[str, list[int]]]:
        """A conversation as the chat template writes it, with markers in place of answers.

        Also returns the tokens of the answer that each marker stands for. A template that changes
        what an answer says has the last word: then its text stands there.
        """
        plain = []
        marked = []
        answers: dict[str, list[int]] = {}
        texts: dict[str, str] = {}
        for message in messages:
            one = {"role": message.get("role"), "content": message.get("content")}
            plain.append(one)
            token_ids = self.own_tokens(message)
            if token_ids is None:
                marked.append(one)
                continue
            marker = new_marker()
            answers[marker] = token_ids
            texts[marker] = message["content"]
            marked.append({"role": one["role"], "content": marker})

        turns = [parse_conversation(plain), parse_conversation(marked)]
        flags = RenderFlags(True, add_vision_id=False, continue_final_message=False)
        expected, pieces = self.processor.render_rows([plain, marked], turns, flags)
        written = "".join(piece.text for piece in pieces)
        for marker, text in texts.items():
            written = written.replace(marker, text)
        if written != "".join(piece.text for piece in expected):
            return expected, {}
        return pieces, answers

    def own_tokens(self, message: Message) -> list[int] | None:
        """The tokens of an answer as the model wrote it; None if there are none for this text."""
        token_ids = message.get("token_ids")
        if message.get("role") != "assistant" or not isinstance(token_ids, list):
            return None
        highest = self.vocab_size - 1
        if not all(is_whole(one) and 0 <= one <= highest for one in token_ids):
            return None
        control_ids = self.processor.special_tokens.values()
        if not isinstance(message, Answer) and any(one in control_ids for one in token_ids):
            return None
        # The text may have been edited. One that was broken off may end inside a character.
        text_stream = self.processor.text_stream()
        text = "".join(text_stream.push(token_id) for token_id in token_ids)
        is_own = message.get("content") in (text, text + text_stream.finish())
        return list(token_ids) if is_own else None

    # ----------------------------------------------------------------------- images and videos

    def open_all(self, messages: list[Message]) -> list[OpenedItem]:
        """Open all images and videos of a conversation, in their order."""
        found = []
        for turn in parse_conversation(messages) if messages else []:
            for kind, item in turn.items:
                if kind != "text":
                    found.append(self.open(item, kind))
        return found

    def open(self, item: Item, kind: str) -> OpenedItem:
        """Open an image or video, unless this same item was opened before.

        kind: "image" or "video". OSError or ValueError names what can't be opened.
        """
        for earlier in self.opened:
            if earlier.item is item and is_same(earlier.entries, item):
                return earlier
        pixels, grid_thw = read_patches(self.processor, item, kind)
        is_image = kind == "image"
        placeholder = self.processor.image_token_id if is_image else self.processor.video_token_id

        # Known by its pixels: the same image in another message is encoded once.
        grid = grid_thw[0].tolist()
        content = hashlib.blake2b(f"{placeholder} {grid}".encode(), digest_size=16)
        content.update(pixels.cpu().numpy().data)
        key = FIRST_MEDIA_KEY + int.from_bytes(content.digest(), "big")
        medium = Medium(placeholder, grid, self.processor.token_counts(grid_thw)[0], key, pixels)
        for earlier in self.opened:
            if earlier.medium.key == key:
                medium = earlier.medium
        found = OpenedItem(item, dict(item), medium)
        self.opened.append(found)
        return found


def read_patches(processor: Qwen2VLProcessor, item: Item, kind: str) -> tuple[Tensor, Tensor]:
    """Patches (P, 1176) and grid (1, 3) of the image or video of an item."""
    if kind == "image":
        inputs = processor.image_processor([item])
        return inputs["pixel_values"], inputs["image_grid_thw"]
    inputs = processor.process_videos([item], [{}])
    return inputs["pixel_values_videos"], inputs["video_grid_thw"]


def cut_at_markers(pieces: Sequence[Piece], markers: Collection[str]) -> list[Piece]:
    """The same pieces, in which each marker is one of its own."""
    if not markers:
        return list(pieces)
    cut = []
    for piece in pieces:
        if piece.is_control:
            cut.append(piece)
            continue
        for text, _ in split_at_tokens(piece.text, markers):
            cut.append(Piece(text, is_control=False))
    return cut
