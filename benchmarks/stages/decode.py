"""Decoding: seconds from one token to the next, behind a prompt."""

import itertools
import statistics
import time

import torch
from torch import Tensor

from benchmarks.costs import bytes_of_a_step, prefill_operations
from benchmarks.models import Models
from benchmarks.settings import OURS, REFERENCE, dtype_name
from benchmarks.stage import READ_BANDWIDTH, Contestant, Run, Stage
from benchmarks.stages.prefill import random_prompt
from qwen2vl import Qwen2VLForConditionalGeneration

NEW_TOKENS = 16
UNCOUNTED_TOKENS = 3  # the first ones: compilation and a cold cache of the processor fall into them


class Clock:
    """Notes when each token arrives. `put` and `end` are what `transformers` asks of a streamer."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, value: Tensor) -> None:
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        pass


def seconds_per_token(moments: list[float]) -> float:
    """The median time between tokens, from the moments at which they arrived."""
    pairs = itertools.pairwise(moments[UNCOUNTED_TOKENS:])
    return statistics.median(later - earlier for earlier, later in pairs)


class Decode:
    """Rows of one prompt each, and the models that go on from it."""

    def __init__(self, models: Models, batch: int, context: int) -> None:
        self.models = models
        self.batch = batch
        self.context = context
        self.input_ids = random_prompt(models, context, batch)
        self.attention_mask = torch.ones_like(self.input_ids)

    def stage(self) -> Stage:
        contestants = [
            Contestant(OURS, self.ours),
            Contestant(f"{OURS}, int8", self.ours_int8),
            Contestant(f"{OURS}, compiled", self.ours_compiled),
            Contestant(f"{OURS}, int8, compiled", self.ours_int8_compiled),
            Contestant(f"{OURS}, int4", self.ours_int4),
            Contestant(f"{OURS}, int4, compiled", self.ours_int4_compiled),
        ]
        if self.models.has_reference:
            compiled_name = f"{REFERENCE}, static cache, compiled"
            contestants.insert(1, Contestant(REFERENCE, self.reference))
            contestants.append(Contestant(compiled_name, self.reference_compiled))
        for contestant in contestants:
            contestant.limit = READ_BANDWIDTH
            contestant.amount = self.bytes_read(contestant.name)

        prompt = self.batch * prefill_operations(self.models.config, self.context)
        # Memory takes a process each, and compiling again in it: only where there is time.
        is_first = self.batch == 1 and self.context == 300
        return Stage(
            f"decode, batch {self.batch}, {self.context:,} tokens before",
            contestants,
            rounds=5 if is_first else 2,
            measure_memory=is_first and self.models.settings.full,
            operations=prompt * len(contestants),
        )

    def bytes_read(self, contestant: str) -> int:
        """Of weights and cache, for one token of each row."""
        config = self.models.config
        bytes_of_layers = bytes_of_head = self.models.dtype.itemsize
        if "int8" in contestant:
            bytes_of_layers = bytes_of_head = 1
        if "int4" in contestant:
            # Four bits, and two 16-bit numbers for each group of 128.
            bytes_of_layers = 0.5 + 4 / 128
            bytes_of_head = 1
        bytes_of_cache = self.models.dtype.itemsize
        return bytes_of_a_step(
            config, self.batch, self.context, bytes_of_layers, bytes_of_head, bytes_of_cache
        )

    def ours(self) -> Run:
        return self.time_ours(self.models.ours(), compile=False)

    def ours_int8(self) -> Run:
        return self.time_ours(self.models.int8(), compile=False)

    def ours_compiled(self) -> Run:
        return self.time_ours(self.models.ours(), compile=True)

    def ours_int8_compiled(self) -> Run:
        return self.time_ours(self.models.int8(), compile=True)

    def ours_int4(self) -> Run:
        return self.time_ours(self.models.int4(), compile=False)

    def ours_int4_compiled(self) -> Run:
        return self.time_ours(self.models.int4(), compile=True)

    def reference(self) -> Run:
        return self.time_reference(compile=False)

    def reference_compiled(self) -> Run:
        return self.time_reference(compile=True)

    def time_ours(self, model: Qwen2VLForConditionalGeneration, compile: bool) -> Run:
        clock = Clock()
        stream = model.stream(
            self.input_ids,
            self.attention_mask,
            max_new_tokens=NEW_TOKENS,
            temperature=0,
            eos_token_id=-1,  # no token: none ends early
            compile=compile,
        )
        for token in stream:
            token.tolist()  # waits until the token is there
            clock.put(token)
        return Run(seconds_per_token(clock.moments))

    def time_reference(self, compile: bool) -> Run:
        model = self.models.reference()
        if compile and model.model.rope_deltas is None:
            # The first prompt that it ever reads can't be a compiled one.
            self.generate_with_reference(1, compile=False)
        if self.batch == 1:
            clock = Clock()
            self.generate_with_reference(NEW_TOKENS, compile, clock)
            return Run(seconds_per_token(clock.moments[1:]))  # the first is the prompt

        # Its streamers take one row: the time of all tokens, less that of the prompt and one token.
        start = time.perf_counter()
        self.generate_with_reference(1, compile)
        middle = time.perf_counter()
        self.generate_with_reference(NEW_TOKENS, compile)
        end = time.perf_counter()
        return Run(((end - middle) - (middle - start)) / (NEW_TOKENS - 1))

    def generate_with_reference(
        self, new_tokens: int, compile: bool, streamer: Clock | None = None
    ) -> None:
        transformers = self.models.transformers
        assert transformers is not None
        config = transformers.GenerationConfig(
            do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=new_tokens
        )
        if compile:
            config.cache_implementation = "static"
            config.compile_config = transformers.CompileConfig(mode="default", fullgraph=False)
            config.compile_config._compile_all_devices = True  # else it leaves a CPU alone
        self.models.reference().generate(
            self.input_ids,
            attention_mask=self.attention_mask,
            generation_config=config,
            streamer=streamer,
        )


@torch.no_grad()
def rounding_error(models: Models, kind: str) -> str:
    """How far the logits of a prompt are from those without rounding; kind: "int8" or "int4"."""
    input_ids = random_prompt(models, 300)
    exact = models.ours()(input_ids).logits.float()
    rounded = models.of_contestant(kind)(input_ids).logits.float()
    error = ((rounded - exact).square().mean() / exact.square().mean()).sqrt()
    same = (rounded.argmax(-1) == exact.argmax(-1)).float().mean()
    return (
        f"{kind} against {dtype_name(models.dtype)}: logits differ by {error:.1%} (RMS); at "
        f"{same:.0%} of {input_ids.shape[1]} positions the most probable token is the same."
    )
