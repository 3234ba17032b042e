"""The checkers of the exercises of notebook 05."""

import math
import random
from collections.abc import Callable

import torch
from course import Wrong
from plots import plots_05 as plots
from torch import Tensor

from checks import watch
from qwen2vl import AttentionMask, eager_attention

# ------------------------------------------------------------- exercise 1: attention without copies


def _attention_shapes() -> list[tuple[int, int, int, int, int, int]]:
    """B, H, K, T, S, d: a prompt, a step with a cache, heads that don't share, random ones."""
    shapes = [(1, 4, 2, 3, 3, 4), (2, 6, 2, 4, 4, 8), (3, 6, 2, 1, 5, 4), (1, 3, 3, 4, 6, 8)]
    rng = random.Random(0)
    for _ in range(8):
        K = rng.randint(1, 4)
        T = rng.randint(1, 6)
        S = T + rng.choice((0, 0, 1, 5))
        shapes.append((rng.randint(1, 3), K * rng.randint(1, 5), K, T, S, rng.choice((2, 4, 8))))
    return shapes


def grouped(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """answer(q, k, v): grouped-query attention that copies neither keys nor values."""
    answer = watch.without_calls(
        answer,
        "scaled_dot_product_attention",
        "qwen2vl.eager_attention",
        "qwen2vl.attention",
        "Tensor.numpy",  # what is done outside of PyTorch can't be watched
    )
    generator = torch.Generator().manual_seed(0)
    for B, H, K, T, S, d in _attention_shapes():
        q = torch.randn(B, H, T, d, generator=generator)
        k, v = torch.randn(2, B, K, S, d, generator=generator)
        case = f"with {B=}, {H=}, {K=}, {T=}, {S=}, {d=}"
        right, _ = eager_attention(q, k, v, AttentionMask(causal=True))  # (B, H, T, d)
        right = right.transpose(1, 2).flatten(2)
        with watch.Copies([k, v], [q]) as copies:
            found = answer(q, k, v)
        found = watch.tensor_like(found, right, case)
        if not found.isfinite().all():
            raise Wrong(f"{case} it has NaN: does the mask leave a query without any key?")
        apart = float((found - right).abs().max())
        if apart > 1e-5:
            _draw_weights(answer)
            raise Wrong(f"{case} it is {apart:.2g} off{_mistake(q, k, v, found)}")
        if copies.largest > k.numel():
            raise Wrong(
                f"{case} k or v has {k.numel()} numbers, and yours makes {copies.largest} of it: "
                "that is a copy for each query head (a product that broadcasts k makes one, too)"
            )
    _draw_weights(answer)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiled: bool = False,
    mask: Tensor | None = None,
    scaled: bool = True,
) -> Tensor:
    """The right answer, or one with a mistake: heads tiled, another mask (…, T, S), no √d."""
    H, T, d = q.shape[1:]
    K, S = k.shape[1:3]
    if tiled:
        k, v = k.repeat(1, H // K, 1, 1), v.repeat(1, H // K, 1, 1)
    else:
        k, v = k.repeat_interleave(H // K, 1), v.repeat_interleave(H // K, 1)
    scores = q @ k.transpose(-2, -1)
    if scaled:
        scores = scores / math.sqrt(d)
    if mask is None:
        mask = torch.ones(T, S).tril(S - T)
    weights = scores.masked_fill(mask == 0, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def _mistake(q: Tensor, k: Tensor, v: Tensor, found: Tensor) -> str:
    """The mistake that would give these numbers, or nothing."""
    H, T = q.shape[1:3]
    K, S = k.shape[1:3]
    repeated_rows = torch.ones(T, S).tril(S - T).repeat_interleave(H // K, 0)
    repeated_rows = repeated_rows.view(-1, T, S).repeat(K, 1, 1)  # (H, T, S)
    unshifted = torch.ones(T, S).tril()
    right = _attend(q, k, v)
    mixed_up = right.unflatten(-1, (H, -1)).transpose(1, 2).reshape(found.shape)
    suspects = [
        (
            _attend(q, k, v, mask=repeated_rows),
            "each head's T queries need the T rows of the mask in order, yours are each repeated",
        ),
        (
            _attend(q, k, v, tiled=True),
            "query head h should read key-value head h // (H / K), neighbours share: "
            "yours are dealt out in turn",
        ),
        (
            _attend(q, k, v, mask=torch.ones(T, S)),
            "no query may attend to a later key, yours attend to all of them",
        ),
        (
            _attend(q, k, v, mask=unshifted),
            f"{T} queries are the LAST of {S} tokens: query 0 attends to {S - T + 1} keys",
        ),
        (_attend(q, k, v, scaled=False), "the scores aren't divided by √d"),
        (mixed_up, "heads and tokens are in the wrong order in the result"),
    ]
    for numbers, mistake in suspects:
        if torch.allclose(numbers, found, atol=1e-4):
            return f": {mistake}"
    return ""


def _draw_weights(answer: Callable) -> None:
    """An answer's attention weights: with the identity for values, the result is the weights."""
    H, K, T, S = 4, 2, 3, 5
    q, k = 2 * torch.randn(1, H, T, S), torch.randn(1, K, S, S)  # d = S
    v = torch.eye(S).expand(1, K, S, S)
    yours = answer(q, k, v).view(T, H, S).transpose(0, 1)  # (H, T, S)
    right = _attend(q, k, v).view(T, H, S).transpose(0, 1)
    plots.draw_head_weights(yours, right, S)


# -------------------------------------------------------- exercise 2: from which row on it is final


def first_final_row(answer: Callable[[Tensor], Tensor]) -> None:
    """answer(tokens): from which row on each column of tokens (rows, steps) is its last row's."""
    generator = torch.Generator().manual_seed(0)
    examples = [torch.tensor([[7, 7, 5, 1], [9, 7, 7, 2], [3, 5, 5, 3], [9, 7, 5, 4]])]
    for rows, steps, words in ((1, 6, 2), (2, 6, 2), (5, 1, 2), (5, 9, 3), (9, 6, 2), (29, 8, 3)):
        examples.append(torch.randint(words, (rows, steps), generator=generator) * 50_000)
    for tokens in examples:
        right = _first_final_row(tokens)
        case = f"tokens of {tokens.shape[0]} rows and {tokens.shape[1]} steps"
        found = watch.tensor_like(answer(tokens.clone()), right, case)
        if (found != right).any():
            step = int((found != right).nonzero()[0, 0])
            plots.draw_final_rows(tokens, found, right)
            raise Wrong(
                f"the column {tokens[:, step].tolist()} is final from row {int(right[step])} on, "
                f"yours says {found[step].item()}: after that all must be {int(tokens[-1, step])}"
            )
    plots.draw_final_rows(examples[0], answer(examples[0].clone()))


def _first_final_row(tokens: Tensor) -> Tensor:
    """The right answer, row by row from the end."""
    rows = []
    for column in tokens.T.tolist():
        row = len(column) - 1
        while row > 0 and column[row - 1] == column[-1]:
            row -= 1
        rows.append(row)
    return torch.tensor(rows)
