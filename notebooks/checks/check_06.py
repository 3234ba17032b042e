"""The checkers of the exercises of notebook 06."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn as nn
from course import Wrong
from plots import plots_06 as plots
from torch import Tensor

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
    """answer(model, inputs, n): greedy generation with a cache."""
    first_passes: list[int] = []
    for inputs in prompts:
        T = inputs["input_ids"].shape[1]
        right = model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, T:].tolist()
        for n in (10, 1):
            counter = _PassCounter(model.model)
            try:
                found = answer(model, inputs, n)
            finally:
                counter.hook.remove()
            _compare_tokens(found, right[:n])
            _compare_passes(counter.lengths, T, len(right[:n]))
            first_passes = first_passes or counter.lengths
    plots.draw_passes(first_passes)


def _compare_tokens(found: list[int], right: list[int]) -> None:
    """Wrong if an answer's tokens are not the right ones."""
    if not isinstance(found, list) or not all(isinstance(token, int) for token in found):
        raise Wrong(f"it gives {type(found).__name__}, wanted is a list of int: {found!r:.99}")
    if found == right:
        return
    equal = 0  # how many tokens are right from the start
    while equal < min(len(found), len(right)) and found[equal] == right[equal]:
        equal += 1
    if equal == len(right):
        raise Wrong(f"it should have stopped after {right}, yours goes on: {found}")
    if equal == len(found):
        raise Wrong(f"it stops after {found}, but the answer is {right}")
    said = f"after {equal} right tokens comes {found[equal]}, it should be {right[equal]}"
    raise Wrong(f"{said}: look at positions and cache (yours {found}, wanted {right})")


def _compare_passes(lengths: list[int], T: int, num_new: int) -> None:
    """Wrong if more tokens went through the decoder than the prompt and all new ones but one."""
    enough = [T] + [1] * (num_new - 1)
    if sum(lengths) != sum(enough):
        plots.draw_passes(lengths, enough)
        raise Wrong(
            f"the tokens are right, but {sum(lengths)} went through the decoder; with {T} in the "
            f"prompt and {num_new} new, {sum(enough)} are enough: the prompt once, then one by one"
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
    for logits, share in examples:
        _compare_min_p(torch.as_tensor(answer(logits.clone(), share)), logits, share)
    logits, share = examples[4]
    plots.draw_cut(logits.softmax(-1), share, torch.as_tensor(answer(logits, share)))


def _compare_min_p(found: Tensor, logits: Tensor, share: float) -> None:
    """Wrong if an answer's probabilities are not the right ones."""
    p = logits.softmax(-1)
    right = torch.where(p >= share * p.max(), p, 0)
    right = right / right.sum()
    case = f"for logits {[round(x, 1) for x in logits.tolist()]} and share {share}"
    if found.shape != right.shape:
        raise Wrong(f"{case} it gives {tuple(found.shape)}, wanted is {tuple(right.shape)}")
    if found.isnan().any():
        hint = "the most probable token has to stay (at least, not more than)"
        raise Wrong(f"{case} it is NaN: {hint}")
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
