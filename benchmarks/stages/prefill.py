"""Prefill: a text prompt to the logits of its next token, with the cache filled."""

import time

import torch
from torch import Tensor

from benchmarks.costs import prefill_operations
from benchmarks.models import Models
from benchmarks.settings import OURS, REFERENCE
from benchmarks.stage import MATRIX_PRODUCTS, Contestant, Run, Stage, synchronise
from qwen2vl import KVCache, Qwen2VLForConditionalGeneration


def random_prompt(models: Models, tokens: int, batch: int = 1) -> Tensor:
    """Ids (batch, tokens) of ordinary words: control tokens start at bos_token_id."""
    generator = torch.Generator().manual_seed(0)
    words = min(models.config.bos_token_id, models.config.vocab_size)
    return torch.randint(0, words, (batch, tokens), generator=generator).to(models.device)


class Prefill:
    """One prompt, read by both models, or by ours with weights in int8 and int4."""

    def __init__(self, models: Models, tokens: int, quantized: bool = False) -> None:
        self.models = models
        self.tokens = tokens
        self.quantized = quantized
        self.input_ids = random_prompt(models, tokens)

    def stage(self) -> Stage:
        operations = prefill_operations(self.models.config, self.tokens)
        contestants = [Contestant(OURS, self.ours, MATRIX_PRODUCTS, operations)]
        if self.quantized:
            for kind, run in (("int8", self.ours_int8), ("int4", self.ours_int4)):
                name = f"{OURS}, {kind}"
                contestants.append(Contestant(name, run, MATRIX_PRODUCTS, operations))
        if self.models.has_reference:
            contestants.append(Contestant(REFERENCE, self.reference, MATRIX_PRODUCTS, operations))
        rounds = 3 if self.tokens < 2000 else 2
        return Stage(
            f"prefill, {self.tokens:,} tokens",
            contestants,
            rounds=rounds,
            operations=operations * len(contestants),
        )

    def ours(self) -> Run:
        return self.time_ours(self.models.ours())

    def ours_int8(self) -> Run:
        return self.time_ours(self.models.int8())

    def ours_int4(self) -> Run:
        return self.time_ours(self.models.int4())

    def time_ours(self, model: Qwen2VLForConditionalGeneration) -> Run:
        models = self.models
        start = time.perf_counter()
        cache = KVCache(models.config, 1, self.tokens, models.device, models.dtype)
        model(self.input_ids, past_key_values=cache, logits_to_keep=1)
        synchronise(models.device)
        return Run(time.perf_counter() - start)

    def reference(self) -> Run:
        model = self.models.reference()
        start = time.perf_counter()
        model(input_ids=self.input_ids, use_cache=True, logits_to_keep=1)
        synchronise(self.models.device)
        return Run(time.perf_counter() - start)
