"""One token more, behind a cache that is there already: what context and batch cost in decoding.

The cache holds made-up keys and values, for time does not depend on them. So a context of 16,384
tokens takes no prompt of that length, which the reference would read for an hour on two cores.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.costs import bytes_of_a_step
from benchmarks.models import Models
from benchmarks.settings import OURS, REFERENCE
from benchmarks.stage import READ_BANDWIDTH, Contestant, Run, Stage, time_call
from qwen2vl import KVCache, PlainStep

STEPS = 8
UNCOUNTED_STEPS = 2  # the first ones: the cache of the processor is cold
VALUE = 0.01  # of all keys and values: zeros would take no memory, and no time to read


class OneToken:
    """A number of rows with one token each, and the models that read it."""

    def __init__(self, models: Models, batch: int, context: int) -> None:
        self.models = models
        self.batch = batch
        self.context = context
        self.token = torch.zeros(batch, dtype=torch.long, device=models.device)  # (B,)

    def stage(self) -> Stage:
        models = self.models
        size = models.dtype.itemsize
        amount = bytes_of_a_step(models.config, self.batch, self.context, size, size, size)
        contestants = [Contestant(OURS, self.ours, READ_BANDWIDTH, amount)]
        if models.has_reference:
            contestants.append(Contestant(REFERENCE, self.reference, READ_BANDWIDTH, amount))
        name = f"one token, batch {self.batch}, {self.context:,} tokens before"
        return Stage(name, contestants, measure_memory=False)

    def made_up(self) -> tuple[Tensor, Tensor]:
        """Keys and values (layers, B, K, context, d) of each model, which may write into them."""
        config = self.models.config
        heads, width = config.num_key_value_heads, config.head_dim
        shape = (config.num_hidden_layers, self.batch, heads, self.context, width)
        options = {"device": self.models.device, "dtype": self.models.dtype}
        return torch.full(shape, VALUE, **options), torch.full(shape, VALUE, **options)

    def ours(self) -> Run:
        return self.time_steps(self.step_of_ours())

    def reference(self) -> Run:
        return self.time_steps(self.step_of_reference())

    def time_steps(self, step: Callable[[Tensor], Tensor]) -> Run:
        """The median of some steps, each behind the one before."""
        device = self.models.device
        seconds = [time_call(step, (self.token,), device) for _ in range(STEPS)]
        return Run(statistics.median(seconds[UNCOUNTED_STEPS:]))

    def step_of_ours(self) -> Callable[[Tensor], Tensor]:
        """From one token of each row (B,) to logits (B, vocabulary)."""
        models = self.models
        capacity = self.context + STEPS
        cache = KVCache(models.config, self.batch, capacity, models.device, models.dtype)
        keys, values = self.made_up()
        cache.keys[:, :, :, : self.context] = keys
        cache.values[:, :, :, : self.context] = values
        cache.length = self.context
        deltas = torch.zeros(self.batch, 1, dtype=torch.long, device=models.device)
        return PlainStep(models.ours(), cache, None, deltas)

    def step_of_reference(self) -> Callable[[Tensor], Tensor]:
        """The same, with the arguments that its own `generate` gives."""
        models, batch = self.models, self.batch
        assert models.transformers is not None
        cache = models.transformers.DynamicCache()
        for i, (keys, values) in enumerate(zip(*self.made_up(), strict=True)):
            cache.update(keys, values, i)
        model = models.reference()

        def step(token: Tensor) -> Tensor:
            position = cache.get_seq_length()
            out = model(
                input_ids=token[:, None],
                attention_mask=torch.ones(batch, position + 1, dtype=torch.long).to(token.device),
                position_ids=torch.full((3, batch, 1), position, device=token.device),
                cache_position=torch.tensor([position], device=token.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            return out.logits[:, -1]

        return step
