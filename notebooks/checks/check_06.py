"""The checkers of the exercises of notebook 06."""

import math
import random
from collections.abc import Callable, Mapping

import torch
import torch.nn as nn
from course import Wrong
from plots import plots_06 as plots
from torch import Tensor

from checks import watch
from qwen2vl import Qwen2VLForConditionalGeneration

# ---------------------------------------------------------------- exercise 1: the loop with a cache


class _PassCounter:
    """Counts the tokens of each pass through the decoder."""

    def __init__(self, decoder: nn.Module) -> None:
        self.lengths: list[int] = []
        self.hook = decoder.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, decoder: nn.Module, args: tuple, kwargs: dict) -> None:
        tokens = args[0] if args else kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs["inputs_embeds"]
        self.lengths.append(tokens.shape[1])


def greedy(
    answer: Callable, model: Qwen2VLForConditionalGeneration, prompts: list[Mapping[str, Tensor]]
) -> None:
    """answer(model, inputs, n, ends): greedy generation with a cache."""
    watched = watch.without_calls(
        answer, "qwen2vl.generate", "qwen2vl.stream", "qwen2vl.decode", "qwen2vl.prefill"
    )
    first_passes: list[int] = []
    rng = random.Random(0)
    for inputs in prompts:
        T = inputs["input_ids"].shape[1]
        # No end: what the model writes if nothing stops it.
        endless = model.generate(**inputs, max_new_tokens=10, do_sample=False, eos_token_id=-1)
        tokens = endless[0, T:].tolist()
        for n, ends in _stops(tokens, rng):
            right = _until_end(tokens[:n], ends)
            counter = _PassCounter(model.model)
            try:
                found = watched(model, inputs, n, list(ends))
            finally:
                counter.hook.remove()
            case = f"a prompt of {T} tokens, n = {n}, ends = {ends}"
            _compare_tokens(case, watch.whole_numbers(found, case), right)
            _compare_passes(case, counter.lengths, T, len(right))
            first_passes = first_passes or counter.lengths
    plots.draw_passes(first_passes)


def _stops(tokens: list[int], rng: random.Random) -> list[tuple[int, list[int]]]:
    """How many tokens at most, and the ids that end an answer: none, one or several of them."""
    never = max(tokens) + 1  # an id that doesn't come
    stops = [(10, [never]), (1, [never]), (10, [tokens[4], never])]
    for n in (3, 10):
        ends = [tokens[rng.randrange(1, 9)], never, tokens[rng.randrange(1, 9)]]
        rng.shuffle(ends)
        stops.append((n, ends))
    return stops


def _until_end(tokens: list[int], ends: list[int]) -> list[int]:
    """The tokens up to the first that ends an answer, with it."""
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1]
    return tokens


def _compare_tokens(case: str, found: list[int], right: list[int]) -> None:
    """Wrong if an answer's tokens are not the right ones."""
    if found == right:
        return
    equal = 0  # how many tokens are right from the start
    while equal < min(len(found), len(right)) and found[equal] == right[equal]:
        equal += 1
    if equal == len(right):
        raise Wrong(f"{case}: it should have stopped after {right}, yours goes on: {found}")
    if equal == len(found):
        raise Wrong(f"{case}: it stops after {found}, but the answer is {right}")
    said = f"{case}: after {equal} right tokens comes {found[equal]}, it should be {right[equal]}"
    raise Wrong(f"{said}: look at positions and cache (yours {found}, wanted {right})")


def _compare_passes(case: str, lengths: list[int], T: int, num_new: int) -> None:
    """Wrong if more tokens went through the decoder than the prompt and all new ones but one."""
    enough = [T] + [1] * (num_new - 1)
    if sum(lengths) != sum(enough):
        plots.draw_passes(lengths, enough)
        raise Wrong(
            f"{case}: the {num_new} new tokens are right, but {sum(lengths)} went through the "
            f"decoder; {sum(enough)} are enough"
        )


# -------------------------------------------------------------------------------- exercise 2: min-p


def min_p(answer: Callable[[Tensor, float], Tensor]) -> None:
    """answer(logits, share): min-p on a few distributions."""
    generator = torch.Generator().manual_seed(0)
    examples = [(torch.tensor([2.0, 1.0, 0.0]), share) for share in (0.3, 0.2, 0.5)]
    for share in (0.01, 0.1, 0.3, 1.0):
        examples.append((4 * torch.randn(12, generator=generator), share))
    examples.append((torch.zeros(8), 0.9))
    examples.append((torch.tensor([0.3, 0.0, 0.1, -0.2, 0.2, -2.0]), 0.4))
    rng = random.Random(0)
    for _ in range(12):
        logits = torch.randn(rng.randint(1, 30), generator=generator)
        # Far from 0, and equal ones at the top: a softmax doesn't depend on what is added to all.
        logits = (logits * rng.choice((1, 4))).round(decimals=1) + rng.choice((-40, 0, 40))
        examples.append((logits, rng.uniform(0.02, 1)))
    for logits, share in examples:
        _compare_min_p(answer(logits.clone(), share), logits, share)
    logits, share = examples[4]
    plots.draw_cut(logits.softmax(-1), share, answer(logits.clone(), share))


def _compare_min_p(found: Tensor, logits: Tensor, share: float) -> None:
    """Wrong if an answer's probabilities are not the right ones."""
    p = logits.softmax(-1)
    right = torch.where(p >= share * p.max(), p, 0)
    right = right / right.sum()
    case = f"for logits {[round(x, 1) for x in logits.tolist()]} and share {share}"
    found = watch.tensor_like(found, right, case)
    if found.isnan().any():
        raise Wrong(f"{case} it is NaN: does the most probable token stay?")
    total = float(found.sum())
    if not math.isclose(total, 1, abs_tol=1e-4):
        raise Wrong(f"{case} the probabilities add up to {total:.3f}, not to 1")
    if (found - right).abs().max() <= 1e-5:
        return
    plots.draw_cut(p, share, found, right)
    if torch.equal(found > 0, right > 0):
        raise Wrong(f"{case} the right ones stay, but they should keep their proportions")
    highest = float(p.max())
    kept, wanted = int((found > 0).sum()), int((right > 0).sum())
    raise Wrong(
        f"{case}: the most probable token has {highest:.3f}, so the threshold is "
        f"{share} · {highest:.3f} = {share * highest:.3f}; {wanted} stay, yours keeps {kept}"
    )
