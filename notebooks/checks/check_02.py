"""Checkers of notebook 02: the right answers come from the shipped rotation and attention."""

import random
from collections.abc import Callable

import torch
from course import Wrong
from plots import plots_02 as plots
from torch import Tensor

from checks import watch
from qwen2vl import AttentionMask, apply_rotary_emb, attention, rope_frequencies


def rotate_vector(answer: Callable[[Tensor, int, int, Tensor], Tensor]) -> None:
    """Exercise 1: answer(x, row, column, frequencies) is x (d,), rotated."""
    answer = watch.without_calls(answer, "qwen2vl.apply_rotary_emb", "qwen2vl.rotate_half")
    generator = torch.Generator().manual_seed(0)
    rng = random.Random(0)
    for number, d in enumerate((32, 16, 80, 8, 64)):
        theta = 10_000.0 if number == 0 else rng.uniform(10, 10_000)
        frequencies = rope_frequencies(d // 2, theta, torch.device("cpu"))  # (d/4,)
        x = torch.randn(d, generator=generator)
        patches = [(3, 7), (0, 0), (1, 0), (0, 1), (11, 2)]
        patches += [(rng.randint(0, 30), rng.randint(0, 30)) for _ in range(3)]
        for row, column in patches:
            angles = torch.cat((row * frequencies, column * frequencies)).repeat(2)  # (d,)
            right = apply_rotary_emb(x, angles.cos(), angles.sin())
            found = answer(x.clone(), row, column, frequencies.clone())
            case = f"row {row}, column {column}, d = {d}"
            found = watch.tensor_like(found, right, case)
            is_right = torch.allclose(found, right, atol=1e-4)
            if (d, row, column) == (32, 3, 7) or not is_right:
                plots.draw_rotation(x, right, found, row, column)
            if not is_right:
                raise Wrong(f"{case}: {_rotation_mistake(x, right, found)}")


def _rotation_mistake(x: Tensor, right: Tensor, found: Tensor) -> str:
    """What is wrong with a rotated vector."""
    d = len(x)
    wrong = ((found - right).abs() > 1e-4).nonzero().flatten().tolist()
    case = f"{len(wrong)} of {d} numbers are wrong"
    if abs(float(found.norm() - x.norm())) > 1e-3 * float(x.norm()):
        return f"{case}. A rotation keeps the length {x.norm():.3f}, yours has {found.norm():.3f}"
    pair = wrong[0] % (d // 2)
    axis, frequency = ("row", pair) if pair < d // 4 else ("column", pair - d // 4)
    return (
        f"{case}. Number {wrong[0]} should be {right[wrong[0]]:.3f}, yours is "
        f"{found[wrong[0]]:.3f}. Numbers {pair} and {pair + d // 2} make a pair, to be turned "
        f"by {axis} · frequencies[{frequency}]"
    )


def attention_per_image(answer: Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]) -> None:
    """Exercise 2: answer(q, k, v, sizes) is the attention within each image, (H, P, d)."""
    answer = watch.without_calls(
        answer, "scaled_dot_product_attention", "qwen2vl.attention", "qwen2vl.eager_attention"
    )
    generator = torch.Generator().manual_seed(0)
    for heads, d, sizes in _image_sets():
        q, k, v = torch.randn(3, heads, sum(sizes), d, generator=generator)
        right = _shipped_attention(q, k, v, sizes)
        case = f"images of {sizes} patches, {heads} heads of {d} numbers"
        found = watch.tensor_like(answer(q, k, v, list(sizes)), right, case)

        apart = float((found - right).abs().max())
        if sizes == [4, 6, 2] or not apart <= 1e-4:
            _check_visibility(answer, q, k, v, sizes)
        if not apart <= 1e-4:
            raise Wrong(
                f"{case}: the right patches attend to each other, but values are off by "
                f"{apart:.2g}. By what are scores divided, and do a patch's weights add up to 1?"
            )


def _image_sets() -> list[tuple[int, int, list[int]]]:
    """(heads, d, patches of each image): the example of the text first, then random ones."""
    sets = [(2, 8, [4, 6, 2]), (1, 4, [5])]
    rng = random.Random(1)
    for _ in range(6):
        sizes = [rng.randint(1, 12) for _ in range(rng.randint(2, 5))]
        sets.append((rng.randint(1, 4), rng.choice((2, 4, 8, 16)), sizes))
    return sets


def _shipped_attention(q: Tensor, k: Tensor, v: Tensor, sizes: list[int]) -> Tensor:
    """The shipped eager attention of each image alone, (H, P, d)."""
    heads, _, d = q.shape
    parts = []
    for one_q, one_k, one_v in zip(
        q.split(sizes, dim=1), k.split(sizes, dim=1), v.split(sizes, dim=1), strict=True
    ):
        out, _ = attention(one_q[None], one_k[None], one_v[None], AttentionMask(), "eager")
        parts.append(out[0].view(-1, heads, d).transpose(0, 1))
    return torch.cat(parts, dim=1)


def _check_visibility(
    answer: Callable[[Tensor, Tensor, Tensor, list[int]], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: list[int],
) -> None:
    """Draw which patch attends to which; Wrong if it is not within each image."""
    same_image = torch.block_diag(*(torch.ones(n, n) for n in sizes))
    attends = _visibility(answer, q, k, v, sizes)
    plots.draw_visibility(same_image, attends)
    case = f"images of {sizes} patches"
    between = int((attends * (1 - same_image)).sum())
    if between:
        raise Wrong(
            f"{case}: {between} pairs from different images attend to each other (with a mask: a "
            "score of 0 does not prevent that, for exp(0) is 1; with a loop: where does each image "
            "begin?)"
        )
    missing = int((same_image * (1 - attends)).sum())
    if missing:
        raise Wrong(f"{case}: {missing} pairs of one image don't attend to each other")


def _visibility(
    answer: Callable[[Tensor, Tensor, Tensor, list[int]], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: list[int],
) -> Tensor:
    """(P, P): 1 where the output of patch i changes when the value of patch j does."""
    before = answer(q, k, v, sizes)
    columns = []
    for j in range(v.shape[1]):
        changed = v.clone()
        changed[:, j] += 10
        difference = (answer(q, k, changed, sizes) - before).abs().amax((0, 2))
        columns.append((difference > 1e-6).to(torch.float32))
    return torch.stack(columns, dim=1)
