"""The checkers of the exercises of notebook 08."""

import random
from collections.abc import Callable

import course
import torch
from course import Wrong
from plots import plots_08 as plots
from torch import Tensor

from checks import watch

# ---------------------------------------------------------------- exercise 1: the first wrong stage

Stages = dict[str, Tensor]
SCALES = {"pixels": 1.0, "vision": 50.0, "merger": 0.01, "decoder": 5.0, "logits": 20.0}


def first_wrong_stage(answer: Callable[[Stages, Stages, float], str | None]) -> None:
    """answer(ours, theirs, tolerance): the first stage above the tolerance, or None."""
    generator = torch.Generator().manual_seed(1)
    ours, theirs = _example(generator, {"merger": 3e-3, "decoder": 1e-2, "logits": 2e-2})
    got = answer(ours, theirs, 1e-5)
    differences = {stage: course.difference(ours[stage], x) for stage, x in theirs.items()}
    plots.draw_first_wrong(differences, 1e-5, got)
    _expect("the merger is 3e-3 off, and all after it", got, "merger")
    _try_sizes(answer, generator)
    _try_special_cases(answer, generator)
    for seed in range(12):
        _try_random(answer, seed)


def _try_random(answer: Callable, seed: int) -> None:
    """Stages of other names, sizes and order, another tolerance, an error just above or below."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    tolerance = 10.0 ** rng.uniform(-6, -1)
    names = rng.sample(["logits", "b", "a", "norm", "0", "layer 10", "layer 9"], rng.randint(1, 6))
    wrong = rng.choice([None, *names])
    ours, theirs = {}, {}
    for name in names:
        shape = [rng.randint(1, 5) for _ in range(rng.randint(1, 3))]
        theirs[name] = 10.0 ** rng.uniform(-4, 4) * torch.randn(shape, generator=generator)
        ours[name] = theirs[name].clone()
        # After the first wrong stage the others may be right or wrong.
        factor = 0.7
        if name == wrong or (wrong in ours and rng.random() < 0.5):
            factor = rng.choice((1.5, 1.5, 30))
        i = rng.randrange(ours[name].numel())
        error = factor * tolerance * theirs[name].abs().max()
        ours[name].view(-1)[i] += rng.choice((-1, 1)) * error
    case = f"stages {names} and a tolerance of {tolerance:.1e}"
    _expect(case, answer(dict(ours), dict(theirs), tolerance), wrong)


def _try_sizes(answer: Callable, generator: torch.Generator) -> None:
    """Small differences in stages with large numbers, and large ones in stages with small."""
    example = _example(generator, {})
    _expect("all stages agree to 1e-7", answer(*example, 1e-5), None)

    example = _example(generator, {}, noise=2e-6)
    case = "the numbers of vision are around 50: of those, some 1e-4 are a difference of 2e-6"
    _expect(case, answer(*example, 1e-5), None)

    example = _example(generator, {"merger": 1e-4, "logits": 1})
    case = "the merger's numbers are around 0.01: 1e-4 of them looks small in absolute numbers"
    got = answer(*example, 1e-5)
    if got == "vision":
        raise Wrong(f"{case}, and you gave 'vision': is each number divided by itself?")
    _expect(case, got, "merger")

    example = _example(generator, {"logits": 2e-3})
    case = "only the logits are off, by the double of a tolerance of 1e-3"
    _expect(case, answer(*example, 1e-3), "logits")


def _try_special_cases(answer: Callable, generator: torch.Generator) -> None:
    """NaN, negative numbers, and another shape."""
    ours, theirs = _example(generator, {})
    ours["decoder"][0, 0] = float("nan")
    _expect("one number of the decoder is NaN", answer(ours, theirs, 1e-5), "decoder")

    ours, theirs = _example(generator, {})
    theirs["merger"] = -theirs["merger"].abs() - 0.01
    ours["merger"] = 1.01 * theirs["merger"]
    case = "the merger's numbers are all negative, and 1 % off"
    _expect(case, answer(ours, theirs, 1e-5), "merger")

    ours, theirs = _example(generator, {})
    ours["merger"][1, 1] = 20 * theirs["merger"].abs().max()
    case = "one number of our merger is 20 times the reference's largest, the tolerance is 2"
    _expect(case, answer(ours, theirs, 2.0), "merger")

    ours, theirs = _example(generator, {})
    ours["merger"][1, 1] = float("inf")
    _expect("one number of the merger is infinite", answer(ours, theirs, 1e-5), "merger")

    ours, theirs = _example(generator, {})
    ours["vision"] = ours["vision"][:4]
    try:
        got = answer(ours, theirs, 1e-5)
    except RuntimeError as error:
        said = "with shapes (4, 8) and (6, 8) at vision your function stops"
        raise Wrong(f"{said}, but it should say: vision") from error
    _expect("vision has 4 rows where the reference has 6", got, "vision")


def _example(
    generator: torch.Generator, errors: dict[str, float], noise: float = 1e-7
) -> tuple[Stages, Stages]:
    """Two sets of made-up stages: ours, with noise and with relative errors in some, and theirs."""
    theirs = {}
    for stage, scale in SCALES.items():
        theirs[stage] = scale * torch.randn(6, 8, generator=generator)
    ours = {}
    for stage, x in theirs.items():
        random_signs = 2 * torch.rand(6, 8, generator=generator) - 1
        ours[stage] = x + noise * x.abs().max() * random_signs
        if stage in errors:
            ours[stage][2, 3] = x[2, 3] + errors[stage] * x.abs().max()
    return ours, theirs


def _expect(case: str, got: str | None, right: str | None) -> None:
    if got != right:
        raise Wrong(f"{case}: the answer is {right!r}, you gave {got!r}")


# ----------------------------------------------------------------------------- exercise 2: bfloat16


def to_bfloat16(answer: Callable[[Tensor], Tensor]) -> None:
    """answer(x): float32 rounded to 8 significant bits."""
    near_1 = torch.linspace(1, 1.04, 401)
    with watch.Dtypes() as dtypes:
        got = answer(near_1.clone())
    got = watch.tensor_like(got, near_1, "numbers near 1")
    if torch.bfloat16 in dtypes.seen:
        raise Wrong("it makes a tensor in torch.bfloat16, which does the whole thing")
    plots.draw_rounding(near_1, got)

    generator = torch.Generator().manual_seed(2)
    scales = 10.0 ** torch.randint(-12, 13, (4000,), generator=generator)
    ties = torch.tensor([1 + k / 256 for k in range(1, 16, 2)])
    cases = {
        "numbers of all sizes": torch.randn(4000, generator=generator) * scales,
        "ties, half way between two": torch.cat((ties, -ties)),
        "numbers near 1": near_1,
        "0 and whole powers of 2": torch.tensor([0.0, 1.0, -2.0, 0.125, 65536.0]),
        "one number": torch.tensor([3.14159]),
        "just below a power of 2": torch.tensor([1.999, -3.999, 0.4999, 255.9]),
    }
    for case, x in cases.items():
        with watch.Dtypes() as dtypes:
            got = answer(x.clone())
        if torch.bfloat16 in dtypes.seen:
            raise Wrong(f"{case}: it makes a tensor in torch.bfloat16")
        _compare_rounded(case, x, watch.tensor_like(got, x, case))
    table = cases["numbers of all sizes"].view(40, 100)
    got = watch.tensor_like(answer(table.clone()), table, "a table of 40 x 100 numbers")
    _compare_rounded("a table of 40 x 100 numbers", table.flatten(), got.flatten())


def _compare_rounded(case: str, x: Tensor, got: Tensor) -> None:
    """Wrong, with a guess at the mistake, if numbers are not rounded as torch rounds them."""
    right = x.bfloat16().float()
    wrong = (got != right).nonzero()[:, 0]
    if len(wrong) == 0:
        return
    m, e = torch.frexp(x)
    suspects = {
        "you cut off, without rounding": torch.ldexp(torch.trunc(m * 256) / 256, e),
        "you keep 7 bits": torch.ldexp(torch.round(m * 128) / 128, e),
        "you keep 9 bits": torch.ldexp(torch.round(m * 512) / 512, e),
        "2 ** e of a whole number overflows: torch.ldexp": torch.round(m * 256) / 256 * 2**e,
    }
    hint = ""
    for mistake, made in suspects.items():
        if torch.equal(made, got):
            hint = f" ({mistake})"
    i = int(wrong[0])
    said = f"{case}: {len(wrong)} of {len(x)} are wrong, the first {x[i]:.8g}"
    raise Wrong(f"{said}: it becomes {right[i]:.8g}, yours {got[i]:.8g}{hint}")
