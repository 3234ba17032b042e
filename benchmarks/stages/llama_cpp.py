"""Decoding and prefill beside llama.cpp: the same weights, in its own formats, in turn."""

import time
from functools import partial

from benchmarks.costs import cache_numbers, prefill_operations
from benchmarks.llama_cpp import LLAMA_CPP, LlamaModel
from benchmarks.models import Models
from benchmarks.settings import OURS, REFERENCE
from benchmarks.stage import MATRIX_PRODUCTS, READ_BANDWIDTH, Contestant, Run, Stage
from benchmarks.stages.decode import NEW_TOKENS, Clock, Decode, seconds_per_token
from benchmarks.stages.prefill import Prefill

ROUNDS = 5


class LlamaCppDecode(Decode):
    """Decoding behind one prompt."""

    def __init__(self, models: Models, context: int) -> None:
        super().__init__(models, 1, context)
        self.ids = self.input_ids[0].tolist()

    def stage(self) -> Stage:
        contestants = [
            Contestant(OURS, self.ours),
            Contestant(f"{OURS}, compiled", self.ours_compiled),
            Contestant(f"{OURS}, int8, compiled", self.ours_int8_compiled),
            Contestant(f"{OURS}, int4, compiled", self.ours_int4_compiled),
        ]
        if self.models.has_reference:
            contestants.append(Contestant(REFERENCE, self.reference))
        for contestant in contestants:
            contestant.limit = READ_BANDWIDTH
            contestant.amount = self.bytes_read(contestant.name)

        # Each token reads the whole file, and the cache, which llama.cpp keeps in 16 bits.
        cache = 2 * cache_numbers(self.models.config, 1, self.context)
        for name, model in self.models.llama_cpp().items():
            amount = model.file.stat().st_size + cache
            run = partial(self.time_llama_cpp, model)
            contestants.append(Contestant(f"{LLAMA_CPP}, {name}", run, READ_BANDWIDTH, amount))

        prompt = prefill_operations(self.models.config, self.context)
        return Stage(
            f"decode beside llama.cpp, {self.context:,} tokens before",
            contestants,
            rounds=ROUNDS,
            measure_memory=False,
            operations=prompt * len(contestants),
        )

    def time_llama_cpp(self, model: LlamaModel) -> Run:
        model.forget()
        logits = model.next_logits(self.ids)
        clock = Clock()
        for _ in range(NEW_TOKENS):
            logits = model.next_logits([int(logits.argmax())])
            clock.put(logits)
        return Run(seconds_per_token(clock.moments))


class LlamaCppPrefill(Prefill):
    """One prompt, to the logits of its next token."""

    def __init__(self, models: Models, tokens: int) -> None:
        super().__init__(models, tokens, quantized=True)
        self.ids = self.input_ids[0].tolist()

    def stage(self) -> Stage:
        stage = super().stage()
        operations = prefill_operations(self.models.config, self.tokens)
        for name, model in self.models.llama_cpp().items():
            run = partial(self.time_llama_cpp, model)
            contestant = Contestant(f"{LLAMA_CPP}, {name}", run, MATRIX_PRODUCTS, operations)
            stage.contestants.append(contestant)
        stage.name = f"prefill beside llama.cpp, {self.tokens:,} tokens"
        stage.rounds = ROUNDS
        stage.measure_memory = False
        stage.operations = operations * len(stage.contestants)
        return stage

    def time_llama_cpp(self, model: LlamaModel) -> Run:
        model.forget()
        start = time.perf_counter()
        model.next_logits(self.ids)
        return Run(time.perf_counter() - start)
