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
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from processor import Item, Message, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration, Sampling
from qwen2vl_app.prompts import Answer, Medium, OpenedItem, Prompt, PromptWriter
from qwen2vl_extras.checks import is_whole
from qwen2vl_extras.errors import shorten


class ContextFull(ValueError):
    """The conversation has more tokens than the model can read."""


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
        self.end_tokens = sampling.end_tokens
        self.num_questions = 0  # all that were ever asked
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        config = self.model.config
        merge_size = config.vision_config.spatial_merge_size
        self.messages = list(self.beginning)
        self.writer = PromptWriter(self.processor, merge_size, config.vocab_size)
        self.cache = self.model.make_cache(1, 0)
        self.keys: list[int] = []  # of the tokens that were read, those of the cache first
        self.unread: dict[str, Tensor] = {}  # by the answer to the last question, as it began
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

    def open(self, item: Item) -> OpenedItem:
        """Open the image or video of an item that will be asked about; it isn't opened again."""
        return self.writer.open(item, item["type"])

    # ------------------------------------------------------------------------------- questions

    def ask(self, message: str | list[Item] | Message, **options: object) -> Iterator[str]:
        """Ask a question: yields the text of the answer, with each token what it adds.

        That is "" inside a character. message: a text, the items of a message, or a whole one.
        options: settings of `model.stream`, such as max_new_tokens, temperature and seed; of
        max_new_tokens as many are generated as fit into the context. ContextFull, a ValueError, if
        none fits.

        Question and answer are in `messages` from the first token on, and there the answer grows:
        whoever stops reading keeps what was said so far. After an error they are not there.
        """
        return self.text_of(self.tokens(message, **options))

    def text_of(self, tokens: Iterator[Tensor]) -> Iterator[str]:
        """The text that each token adds, and what is left at the end, if anything."""
        text_stream = self.processor.text_stream()
        for token in tokens:
            yield text_stream.push(int(token))
        rest = text_stream.finish()
        if rest:
            yield rest

    def tokens(self, message: str | list[Item] | Message, **options: object) -> Iterator[Tensor]:
        """The same as `ask`, but yields the tokens of the answer, each (1,), end token included."""
        question = as_question(message)
        prompt = self.writer.write([*self.messages, question])
        settings = self.settings_after(prompt.ids, options)
        # The question is known to be sound: it takes the place of one that is being answered.
        self.num_questions += 1
        self.cache.crop(prompt.common_length(self.keys[: self.cache.length]))
        self.unread = self.inputs_to_read(prompt)
        return self.answer(question, prompt, settings, self.num_questions)

    def inputs_to_read(self, prompt: Prompt) -> dict[str, Tensor]:
        """What the cache lacks of a prompt: its ids, and the grids of what was never encoded."""
        inputs = {"input_ids": torch.tensor([prompt.ids[self.cache.length :]])}
        grids = [medium.grid for _, medium in prompt.media if medium.features is None]
        if grids:
            inputs["image_grid_thw"] = torch.tensor(grids)  # those of videos are no different
        return inputs

    def settings_after(self, ids: list[int], options: dict[str, object]) -> dict[str, object]:
        """Settings of `model.stream` for an answer to a prompt with these ids.

        ContextFull if there is no room for one; ValueError for what `stream` would refuse.
        """
        length, limit = len(ids), self.model.config.max_position_embeddings
        room = limit - length
        if room < 1:
            raise ContextFull(
                f"the conversation has {length} tokens with this question, and this model's "
                f"context takes {limit - 1} before an answer"
            )
        settings: dict[str, Any] = dict(options)
        most = settings.get("max_new_tokens")
        if is_whole(most):
            settings["max_new_tokens"] = min(most, room)
        # `stream` looks at its settings at once, and computes nothing before its first token.
        self.model.stream(torch.tensor([ids], device=self.model.device), **settings)
        settings["max_new_tokens"] = self.model.answer_length(
            length, settings.get("max_new_tokens"), settings.pop("max_length", None)
        )
        return settings

    def answer(
        self, question: Message, prompt: Prompt, settings: dict[str, object], number: int
    ) -> Iterator[Tensor]:
        """Read what the cache lacks of a prompt, then yield the tokens of the answer.

        Each is in `messages` and `keys` before it is passed on. number: of the question.
        """
        self.refuse_late(number)
        self.keys = list(prompt.keys)
        inputs: dict[str, Any] = dict(settings)
        # Room for all at once. Whatever comes before the last text is read first, so that only
        # text is left.
        self.cache.reserve(len(prompt.ids) + inputs["max_new_tokens"] - 1)
        self.read_media(prompt)
        inputs["input_ids"] = torch.tensor([prompt.ids], device=self.model.device)
        inputs["past_key_values"] = self.cache
        inputs["rope_deltas"] = self.rope_deltas(prompt)
        tokens = self.model.stream(**inputs)

        answer = Answer(role="assistant", content="", token_ids=[])
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
            self.refuse_late(number)
        answer["content"] += text_stream.finish()

    def refuse_late(self, number: int) -> None:
        """ValueError if another question was asked after the one of this number."""
        if number != self.num_questions:
            raise ValueError("the conversation has gone on: this answer can't be continued")

    # ------------------------------------------------------------------------ reading a prompt

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
