"""The checkers of the exercises of notebook 05."""

import math
from collections.abc import Callable
from unittest import mock

import torch
from course import Wrong
from plots import plots_05 as plots
from torch import Tensor

from qwen2vl import AttentionMask, eager_attention

COPIES = ("repeat", "repeat_interleave", "expand")
SHAPES = [  # B, H, K, T, S, d
    (1, 4, 2, 3, 3, 4),
    (2, 6, 2, 4, 4, 8),
    (1, 6, 3, 2, 7, 4),
    (3, 6, 2, 1, 5, 4),
    (1, 3, 3, 4, 6, 8),
]


# ------------------------------------------------------------- exercise 1: attention without copies


def grouped(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """answer(q, k, v): grouped-query attention that copies neither keys nor values."""
    torch.manual_seed(0)
    for B, H, K, T, S, d in SHAPES:
        q, k, v = torch.randn(B, H, T, d), torch.randn(B, K, S, d), torch.randn(B, K, S, d)
        found = answer(q, k, v)
        sizes = f"{B=}, {H=}, {K=}, {T=}, {S=}, {d=}"
        if not isinstance(found, Tensor) or found.shape != (B, T, H * d):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise Wrong(f"with {sizes} it gives {shape}, wanted is {(B, T, H * d)}")
        if not found.isfinite().all():
            raise Wrong(f"with {sizes} it has NaN: does the mask leave a query without any key?")
        right, _ = eager_attention(q, k, v, AttentionMask(causal=True))  # (B, H, T, d)
        apart = float((found - right.transpose(1, 2).flatten(2)).abs().max())
        if apart > 1e-5:
            _draw_weights(answer)
            raise Wrong(f"with {sizes} it is {apart:.2g} off{_mistake(q, k, v, found)}")
        _expect_no_copies(answer, q, k, v)
    _draw_weights(answer)


def _expect_no_copies(answer: Callable, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Wrong if the answer calls one of the methods that repeat a tensor."""
    for name in COPIES:
        advice = "leave k and v as they are, and let the mask broadcast"
        refuse = Wrong(f"it calls `{name}` on a tensor: {advice}")
        with mock.patch.object(torch.Tensor, name, side_effect=refuse):
            answer(q, k, v)


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
            f"{T} queries are the LAST of {S} tokens: query 0 attends to {S - T + 1} keys; "
            "shift the mask's diagonal",
        ),
        (_attend(q, k, v, scaled=False), "the scores aren't divided by √d"),
        (mixed_up, "heads and tokens are in the wrong order: (B, H, T, d) to (B, T, H, d) first"),
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
    examples += [torch.randint(2, (rows, 6), generator=generator) for rows in (1, 2, 5, 9)]
    for tokens in examples:
        right = _first_final_row(tokens)
        found = torch.as_tensor(answer(tokens.clone()))
        if found.shape != right.shape:
            given, wanted = tuple(found.shape), tuple(right.shape)
            raise Wrong(f"for tokens {tuple(tokens.shape)} it gives {given}, wanted is {wanted}")
        if (found != right).any():
            step = int((found != right).nonzero()[0, 0])
            plots.draw_final_rows(tokens, found, right)
            raise Wrong(
                f"the column {tokens[:, step].tolist()} is final from row {int(right[step])} on, "
                f"yours says {found[step].item()}: after that all must be {int(tokens[-1, step])}"
            )
    plots.draw_final_rows(examples[0], torch.as_tensor(answer(examples[0])))


def _first_final_row(tokens: Tensor) -> Tensor:
    """The right answer, row by row from the end."""
    rows = []
    for column in tokens.T.tolist():
        row = len(column) - 1
        while row > 0 and column[row - 1] == column[-1]:
            row -= 1
        rows.append(row)
    return torch.tensor(rows)
