"""The checkers of the exercises of notebook 10."""

from collections.abc import Callable
from pathlib import Path

import torch
from course import DEVICE, Wrong, transformers_installed
from fine_tuning import thing_of
from plots import plots_10 as plots
from torch import Tensor

from load import find_checkpoint

# --------------------------------------------------------------------------- exercise 1: two halves

FOLDERS = (  # things, and how many images there are of each
    {"boat": 6, "cup": 6},
    {"cup": 3, "key": 5, "boat": 2},
    {"a red cup": 4, "ladder": 11},
)


def split(answer: Callable[[list[str]], tuple[list[str], list[str]]]) -> None:
    """answer(names): what to train on and what to keep."""
    for number, folder in enumerate(FOLDERS):
        # One thing after another, and thing by thing in turn, as folders may list them.
        names = [f"{thing}-{i}" for thing, count in folder.items() for i in range(1, count + 1)]
        in_turn = sorted(names, key=lambda name: (int(name.rpartition("-")[2]), name))
        for given in (names, in_turn):
            found = _check_halves(answer(list(given)), given)
            if number == 0 and given is names:
                plots.draw_halves(_counts(*found))
            _check_balance(*found)
            if answer(list(given)) != found:
                raise Wrong("called twice with the same names it gives two different splits")


def _check_halves(halves: object, names: list[str]) -> tuple[list[str], list[str]]:
    """Wrong unless each name is in exactly one of two lists."""
    if not isinstance(halves, tuple) or len(halves) != 2:
        raise Wrong(f"return two lists; yours returns {halves!s:.60}")
    trained, kept = halves
    both = set(trained) & set(kept)
    if both:
        raise Wrong(f"{min(both)} is trained on and kept: the test would tell nothing")
    if sorted([*trained, *kept]) != sorted(names):
        lost = set(names) - set(trained) - set(kept)
        said = f"{min(lost)} is in neither list" if lost else "a name comes twice"
        raise Wrong(f"{said} ({len(names)} names are given)")
    return trained, kept


def _counts(trained: list[str], kept: list[str]) -> dict[str, tuple[int, int]]:
    """How many images of each thing are in the two lists."""
    things = sorted({thing_of(name) for name in [*trained, *kept]})
    counts = {}
    for thing in things:
        in_trained = sum(thing_of(name) == thing for name in trained)
        in_kept = sum(thing_of(name) == thing for name in kept)
        counts[thing] = (in_trained, in_kept)
    return counts


def _check_balance(trained: list[str], kept: list[str]) -> None:
    for thing, (in_trained, in_kept) in _counts(trained, kept).items():
        if abs(in_trained - in_kept) > 1:
            raise Wrong(f"{in_trained} images of “{thing}” are trained on and {in_kept} are kept")


# ------------------------------------------------------------------------------ exercise 2: a layer

SHAPES = ((5, 8, 6, 2), (3, 4, 7, 4), (1, 6, 3, 1))  # T, in, out, r


def lora(answer: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """answer(x, w, a, b, alpha): a linear layer and its change, (T, out)."""
    generator = torch.Generator().manual_seed(0)
    for number, (length, width, out, r) in enumerate(SHAPES):
        x = torch.randn(length, width, generator=generator)
        w = torch.randn(out, width, generator=generator)
        a = torch.randn(r, width, generator=generator)
        b = torch.randn(out, r, generator=generator)
        for alpha in (1.0, 16.0):
            right = x @ (w + alpha / r * (b @ a)).T
            yours = answer(x.clone(), w.clone(), a.clone(), b.clone(), alpha)
            _compare_outputs(right, yours, x @ w.T, number == 0 and alpha == 1.0, r, alpha)


def _compare_outputs(
    right: Tensor, yours: object, plain: Tensor, show: bool, r: int, alpha: float
) -> None:
    """Wrong unless the answer is equal to what is right."""
    wanted = tuple(right.shape)
    if not isinstance(yours, Tensor):
        raise Wrong(f"a tensor {wanted} is wanted; yours returns {yours!s:.60}")
    if yours.shape != right.shape:
        raise Wrong(f"a tensor {wanted} is wanted, yours is {tuple(yours.shape)}")
    if show:
        plots.draw_outputs(right, yours)
    apart = float((right - yours).abs().max())
    if apart <= 1e-3:
        return
    change, given = right - plain, yours - plain
    hint = ""
    if float(given.abs().max()) < 1e-4:
        hint = ": the change is missing"
    elif float((right - plain - yours).abs().max()) < 1e-3:
        hint = ": that is the change alone"
    else:
        factor = float((given * change).sum() / (change * change).sum())
        if float((given - factor * change).abs().max()) < 1e-3:
            hint = f": your change is {factor:.3g} times the right one"
    raise Wrong(f"with r = {r} and α = {alpha:g} a value is off by {apart:.2g}{hint}")


# ----------------------------------------------------------------------------- exercise 3: how many


def trained_numbers(answer: Callable[[list[tuple[int, int]], int], int]) -> None:
    """answer(shapes, r): the numbers in A and B of matrices (out, in)."""
    cases = (
        ("one square", [(192, 192)], 8),
        ("one wide", [(512, 192)], 8),
        ("r = 1", [(512, 192), (192, 512)], 1),
        ("2B, a layer", [(1536, 1536), (256, 1536), (8960, 1536)], 16),
    )
    rows = []
    for name, shapes, r in cases:
        right = sum(r * (out + width) for out, width in shapes)
        yours = answer(list(shapes), r)
        if not isinstance(yours, int):
            raise Wrong(f"an int is wanted; yours returns {yours!s:.60}")
        rows.append((name, right, yours))
    plots.draw_counts(rows)
    for (name, right, yours), (_, shapes, r) in zip(rows, cases, strict=True):
        if yours != right:
            raise Wrong(f"{name}, shapes {shapes} with r = {r}: {right:,} numbers, not {yours:,}")


# ------------------------------------------------------------------------------------ the reference


def peft_logits(
    base: str, folder: Path, batch: dict[str, Tensor], dtype: torch.dtype
) -> Tensor | None:
    """What transformers and PEFT compute with an adapter; None where PEFT is not installed."""
    if not transformers_installed():
        return None
    try:
        import peft  # slow, and no dependency of the course
    except ImportError:
        print("– PEFT is not installed here (pip install peft), so it isn't asked")
        return None
    import transformers

    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        find_checkpoint(base), dtype=dtype, attn_implementation="eager"
    )
    adapted = peft.PeftModel.from_pretrained(model, folder).eval().to(DEVICE)
    return adapted(**batch).logits
