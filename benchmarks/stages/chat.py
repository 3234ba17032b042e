"""A chat: seconds until the first token of its first, second and third answer."""

import functools
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.models import Models
from benchmarks.settings import OURS, REFERENCE
from benchmarks.stage import Contestant, Run, Stage, synchronise
from benchmarks.stages.prefill import random_prompt
from benchmarks.stages.vision import square_grid
from qwen2vl import KVCache

PATCHES = 1024  # of the image in the first question
QUESTION = 60  # tokens of text in each question
ANSWER = 40  # tokens of each answer
TURNS = 3


@dataclass
class Before:
    """What a chat holds when its next question comes."""

    cache: object  # a KVCache, or the reference's
    length: int  # tokens in it
    rope_deltas: Tensor | None = None


class ChatTurns:
    """Questions of one chat: an image and text, then text, then text.

    Tokens are ids that stand for words. What comes before a question is read once, outside the
    time; each run then starts from there again. The reference reuses its `past_key_values`.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        config = models.config
        v = config.vision_config
        values_per_patch = v.in_chans * v.temporal_patch_size * v.patch_size**2
        self.pixels = torch.randn(PATCHES, values_per_patch).to(models.device, models.dtype)
        self.grid = square_grid(PATCHES).to(models.device)
        self.media = {"pixel_values": self.pixels, "image_grid_thw": self.grid}

        # The image and its question; then answer and question in turn.
        image = [config.vision_start_token_id]
        image += [config.image_token_id] * (PATCHES // v.spatial_merge_size**2)
        image += [config.vision_end_token_id]
        self.ends = [len(image) + QUESTION]
        for _ in range(TURNS - 1):
            self.ends.append(self.ends[-1] + ANSWER + QUESTION)
        words = random_prompt(models, self.ends[-1] - len(image))
        self.ids = torch.cat((torch.tensor([image], device=models.device), words), dim=1)
        self.before: dict[tuple[str, int], Before] = {}

    def stage(self) -> Stage:
        contestants = []
        for turn in range(TURNS):
            in_turn = [Contestant(OURS, functools.partial(self.ours, turn))]
            if self.models.has_reference:
                in_turn.append(Contestant(REFERENCE, functools.partial(self.reference, turn)))
            if turn > 0:
                whole = functools.partial(self.ours_whole, turn)
                in_turn.append(Contestant(f"{OURS}, all read again", whole))
                in_turn.append(Contestant(f"{OURS}, the new tokens alone", self.ours_alone))
            for contestant in in_turn:
                contestant.variant = f"turn {turn + 1}"
                contestant.name += f", turn {turn + 1}"
            contestants += in_turn
        note = (
            f"an image of {PATCHES:,} patches and {QUESTION} tokens, then {ANSWER} tokens of the "
            f"answer and {QUESTION} of the next question"
        )
        return Stage("chat, to the first token", contestants, note, measure_memory=False)

    # ------------------------------------------------------------------------------------ ours

    def new_cache(self) -> KVCache:
        models = self.models
        return KVCache(models.config, 1, self.ends[-1], models.device, models.dtype)

    def ours(self, turn: int) -> Run:
        """Read the new tokens behind what the cache holds."""
        before = self.ours_before(turn)
        assert isinstance(before.cache, KVCache)
        before.cache.crop(before.length)
        return self.time_first_token(
            self.ids[:, : self.ends[turn]], before.cache, before.rope_deltas, turn == 0
        )

    def ours_whole(self, turn: int) -> Run:
        return self.time_first_token(self.ids[:, : self.ends[turn]], self.new_cache(), None, True)

    def ours_alone(self) -> Run:
        """As many tokens as turn 2 reads, on an empty cache."""
        new = self.ids[:, self.held(1) : self.ends[1]]
        return self.time_first_token(new, self.new_cache(), None, False)

    def time_first_token(
        self, ids: Tensor, cache: KVCache, rope_deltas: Tensor | None, has_image: bool
    ) -> Run:
        model = self.models.ours()
        media = self.media if has_image else {}
        start = time.perf_counter()
        tokens = model.stream(
            ids,
            **media,
            max_new_tokens=1,
            temperature=0,
            past_key_values=cache,
            rope_deltas=rope_deltas,
        )
        next(tokens).tolist()  # waits until the token is there
        return Run(time.perf_counter() - start)

    @torch.no_grad()
    def ours_before(self, turn: int) -> Before:
        """All up to the answer before this turn, but the last token of that, which no step read."""
        if (OURS, turn) not in self.before:
            cache = self.new_cache()
            if turn == 0:
                self.before[OURS, turn] = Before(cache, 0)
            else:
                ids = self.ids[:, : self.held(turn)]
                out = self.models.ours()(ids, **self.media, past_key_values=cache, logits_to_keep=1)
                self.before[OURS, turn] = Before(cache, self.held(turn), out.rope_deltas)
        return self.before[OURS, turn]

    def held(self, turn: int) -> int:
        """How many tokens a cache holds when the question of this turn comes."""
        return self.ends[turn] - QUESTION - 1 if turn else 0

    # ------------------------------------------------------------------------------- reference

    def reference(self, turn: int) -> Run:
        """The same with the reference's cache."""
        model = self.models.reference()
        before = self.reference_before(turn)
        assert self.models.transformers is not None
        cache = before.cache
        if turn == 0:
            cache = self.models.transformers.DynamicCache(config=model.config)
            model.model.rope_deltas = None
        else:
            cache.crop(before.length)  # type: ignore[attr-defined]
            model.model.rope_deltas = before.rope_deltas
        ids = self.ids[:, before.length : self.ends[turn]]
        places = torch.arange(before.length, self.ends[turn], device=ids.device)
        media = {} if turn else self.media
        start = time.perf_counter()
        model(
            input_ids=ids,
            **media,
            past_key_values=cache,
            cache_position=places,
            use_cache=True,
            logits_to_keep=1,
        )
        synchronise(self.models.device)
        return Run(time.perf_counter() - start)

    @torch.no_grad()
    def reference_before(self, turn: int) -> Before:
        if turn == 0:
            return Before(None, 0)
        if (REFERENCE, turn) not in self.before:
            assert self.models.transformers is not None
            model = self.models.reference()
            model.model.rope_deltas = None
            cache = self.models.transformers.DynamicCache(config=model.config)
            ids = self.ids[:, : self.held(turn)]
            model(input_ids=ids, **self.media, past_key_values=cache, use_cache=True)
            deltas = model.model.rope_deltas
            self.before[REFERENCE, turn] = Before(cache, self.held(turn), deltas)
        return self.before[REFERENCE, turn]
