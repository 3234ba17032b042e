"""A conversation in which everything is read once: each turn costs what is new in it.

    conversation = Conversation(model, processor)
    question = [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": "What is it?"}]
    for piece in conversation.ask(question):
        print(piece, end="", flush=True)
    print("".join(conversation.ask("And what colour?")))

The keys and values of all tokens so far stay in the model's cache. For the next question the
whole conversation is written out as tokens again, which costs next to nothing, and compared with
what the cache holds: the longest common beginning stays, the rest of the cache is cropped, and
only the tokens after it are read. So `messages` may be edited at will: the answer is always that
of the conversation read as a whole.

Two things need care.

  * The placeholders of two images are the same tokens. So each token has a key to compare by: its
    id, or for a placeholder a number made of the image's pixels.
  * The text of an answer, turned into tokens, need not give the tokens that the model wrote: it
    may have spelled "cats" in two tokens. The message of an answer keeps its `token_ids`, and as
    long as its text is not edited these are used.
"""

import hashlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
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
from qwen2vl import KVCache, Qwen2VLForConditionalGeneration, Sampling, prompt_positions
from qwen2vl_extras.chat_template import new_marker
from qwen2vl_extras.checks import is_whole
from qwen2vl_extras.errors import shorten
from qwen2vl_extras.repeats import is_same

FIRST_MEDIA_KEY = 2**64  # far above all token ids


class ContextFull(ValueError):
    """The conversation has more tokens than the model can read."""


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


# --------------------------------------------------------------------------- the conversation


class Conversation:
    """Questions about images and videos, and a model's answers.

    messages: how it begins: with a system prompt, say, or with earlier turns. The attribute of
    this name is the conversation so far; it may be edited between two questions.
    """

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        processor: Qwen2VLProcessor,
        messages: Sequence[Message] = (),
    ) -> None:
        self.model = model
        self.processor = processor
        self.beginning = list(messages)
        sampling = Sampling.resolve(model.config, model.generation_config, {})
        end = sampling.eos_token_id
        self.end_tokens = [end] if isinstance(end, int) else list(end)
        self.num_questions = 0  # all that were ever asked
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.messages = list(self.beginning)
        self.opened: list[OpenedItem] = []
        self.keys: list[int] = []  # of the tokens that were read, those of the cache first
        self.cache = KVCache(self.model.config, 1, 0, self.model.device, self.model.dtype)
        self.num_questions += 1  # an answer that is being read ends

    def undo(self) -> list[Message]:
        """Take back the last question and its answer: returns them. ValueError if none is there."""
        questions = [i for i, one in enumerate(self.messages) if one.get("role") == "user"]
        if not questions:
            raise ValueError("there is no question to take back")
        removed = self.messages[questions[-1] :]
        del self.messages[questions[-1] :]
        return removed

    @property
    def tokens_left(self) -> int:
        """How many tokens fit into the model's context after those that were read."""
        return self.model.config.max_position_embeddings - len(self.keys)

    # ------------------------------------------------------------------------------- questions

    def ask(
        self,
        message: str | list[Item] | Message,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        compile: bool = False,
    ) -> Iterator[str]:
        """Ask a question: yields the text of the answer, with each token what it adds.

        That is "" inside a character. message: a text, the items of a message, or a whole one.
        The other arguments are those of `model.stream`; where max_new_tokens do not fit into the
        context, as many as fit are generated. ContextFull, a ValueError, if none fits.

        Question and answer are in `messages` from the first token on, and there the answer grows:
        whoever stops reading keeps what was said so far. After an error they are not there.
        """
        tokens = self.tokens(
            message,
            max_new_tokens,
            do_sample,
            temperature,
            top_k,
            top_p,
            repetition_penalty,
            seed,
            compile,
        )
        return self.text_of(tokens)

    def text_of(self, tokens: Iterator[Tensor]) -> Iterator[str]:
        """The text that each token adds, and what is left at the end, if anything."""
        text_stream = self.processor.text_stream()
        for token in tokens:
            yield text_stream.push(int(token))
        rest = text_stream.finish()
        if rest:
            yield rest

    def tokens(
        self,
        message: str | list[Item] | Message,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        compile: bool = False,
    ) -> Iterator[Tensor]:
        """The same as `ask`, but yields the tokens of the answer, each (1,), end token included."""
        question = as_question(message)
        prompt = self.write_prompt([*self.messages, question])
        max_new_tokens = self.answer_length(len(prompt.ids), max_new_tokens)

        # Whatever comes before the last text is read first, so that only text is left.
        self.num_questions += 1
        self.cache.crop(prompt.common_length(self.keys[: self.cache.length]))
        self.keys = list(prompt.keys)
        self.cache.reserve(len(prompt.ids) + max_new_tokens - 1)
        self.read_media(prompt)

        tokens = self.model.stream(
            torch.tensor([prompt.ids], device=self.model.device),
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            compile=compile,
            past_key_values=self.cache,
            rope_deltas=self.rope_deltas(prompt),
        )
        return self.recorded(question, tokens)

    def answer_length(self, length: int, max_new_tokens: int | None) -> int:
        """How many tokens may follow `length` of them; ContextFull if there is no room."""
        room = self.model.config.max_position_embeddings - length
        if room < 1:
            raise ContextFull(
                f"the conversation has {length} tokens with this question, and this model's "
                f"context takes {length + room - 1} before an answer"
            )
        if is_whole(max_new_tokens):
            max_new_tokens = min(max_new_tokens, room)
        return self.model.answer_length(length, max_new_tokens, None)

    def recorded(self, question: Message, tokens: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pass on the tokens of an answer, after each is in `messages` and `keys`."""
        number = self.num_questions
        answer: Message = {"role": "assistant", "content": "", "token_ids": []}
        text_stream = self.processor.text_stream()
        for i, token in enumerate(tokens):
            if i == 0:
                self.messages += [question, answer]
            token_id = int(token)
            self.keys.append(token_id)
            # The end is no part of the text: after it the chat template writes its own.
            if token_id not in self.end_tokens:
                answer["token_ids"].append(token_id)
                answer["content"] += text_stream.push(token_id)
            yield token
            if number != self.num_questions:
                raise ValueError("the conversation has gone on: this answer can't be continued")
        answer["content"] += text_stream.finish()

    # ------------------------------------------------------------------------ messages to tokens

    def write_prompt(self, messages: list[Message]) -> Prompt:
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
        prompt.finish(list(waiting), self.model.config.vision_config.spatial_merge_size)
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
        highest = self.model.config.vocab_size - 1
        if not all(is_whole(one) and 0 <= one <= highest for one in token_ids):
            return None
        # The text may have been edited. One that was broken off may end inside a character.
        text_stream = self.processor.text_stream()
        text = "".join(text_stream.push(token_id) for token_id in token_ids)
        is_own = message.get("content") in (text, text + text_stream.finish())
        return list(token_ids) if is_own else None

    # ------------------------------------------------------------------------ images and videos

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
        if kind == "image":
            inputs = self.processor.image_processor([item])
            pixels, grid_thw = inputs["pixel_values"], inputs["image_grid_thw"]
            placeholder = self.processor.image_token_id
        else:
            inputs = self.processor.process_videos([item], [{}])
            pixels, grid_thw = inputs["pixel_values_videos"], inputs["video_grid_thw"]
            placeholder = self.processor.video_token_id

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

    def encode(self, medium: Medium) -> Tensor:
        """The features (num_tokens, D) of an image or video."""
        if medium.features is None:
            assert medium.pixels is not None
            model = self.model
            grid_thw = torch.tensor([medium.grid], device=model.device)
            pixels = medium.pixels.to(model.device)
            medium.features = model.visual(pixels, grid_thw, model.attn_implementation)
            medium.pixels = None
        return medium.features

    @torch.no_grad()
    def read_media(self, prompt: Prompt) -> None:
        """Read what the cache lacks of a prompt, up to its last placeholder."""
        start, end = self.cache.length, prompt.text_start
        if end <= start:
            return
        # Embeddings of tokens, with features in place of the placeholders of new images.
        device = self.model.device
        input_ids = torch.tensor([prompt.ids[start:end]], device=device)
        embeds = self.model.model.embed_tokens(input_ids)  # (1, T, D)
        for first, medium in prompt.media:
            if first >= start:
                span = slice(first - start, first - start + medium.num_tokens)
                embeds[0, span] = self.encode(medium).to(embeds.dtype)

        positions = torch.tensor(prompt.positions[start:end], device=device)  # (T, 3)
        self.model.model(
            inputs_embeds=embeds,
            position_ids=positions.T[:, None],  # (3, 1, T)
            past_key_values=self.cache,
            implementation=self.model.attn_implementation,
        )

    def rope_deltas(self, prompt: Prompt) -> Tensor | None:
        """What is added to a token's index to get its position (1, 1); None for an empty cache."""
        length = self.cache.length
        if length == 0:
            return None
        time, _, _ = prompt.positions[length]  # of text: the same on all three axes
        return torch.tensor([[time - length]], device=self.model.device)


def as_question(message: str | list[Item] | Message) -> Message:
    """A text or the items of a message as a message of the user."""
    if isinstance(message, str):
        return {"role": "user", "content": [{"type": "text", "text": message}]}
    if isinstance(message, list):
        return {"role": "user", "content": message}
    if not isinstance(message, dict) or message.get("role") != "user":
        raise ValueError(
            "a question is a text, a list of items, or a message of the role user: "
            f"got {shorten(message)}"
        )
    return message


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
