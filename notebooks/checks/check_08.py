"""What notebook 08 draws, what it borrows from the reference, and the checks of its exercises."""

import contextlib
import statistics
import time
from collections.abc import Callable
from functools import partial

import course
import matplotlib.pyplot as plt
import torch
from course import Wrong

from load import find_checkpoint

WRONG = [
    """
def first_wrong(ours, theirs, tolerance):
    for name, reference in theirs.items():
        if (ours[name] - reference).abs().max() > tolerance:  # absolute, and blind to NaN
            return name
    return None
""",
    """
def to_bfloat16(x):
    m, e = torch.frexp(x)
    return torch.ldexp(torch.trunc(m * 256) / 256, e)  # cut off, not rounded
""",
]


# ------------------------------------------------------------------------------------------------------ plots


def draw_orders(errors: torch.Tensor, n: int) -> None:
    """How far sums of the same n numbers are from the true one, relative to the largest number."""
    plt.figure(figsize=(8, 3))
    sums, counts = errors.unique(return_counts=True)
    plt.vlines(sums * 1e7, 0, counts, color="black", lw=4)
    plt.axvline(0, color="#d55e00", ls="--", lw=1.5, label="the true sum")
    plt.legend()
    plt.xlabel("distance from the true sum, relative to the largest term (units of 1e-7)")
    plt.ylabel("orders")
    plt.title(f"the same {n} numbers, added in {len(errors):,} different orders in float32")
    plt.show()


STYLES = [("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("-", "v"), ("--", "x"), (":", "*")]
COLOURS = ["#000000", "#d55e00", "#0072b2", "#009e73", "#777777", "#000000", "#cc79a7"]


def draw_curves(stages: list[str], curves: dict[str, list[float]], tolerance: float, title: str) -> None:
    """The relative difference at every stage, on a log axis with the bar."""
    least = 1e-9
    _, axes = plt.subplots(figsize=(11, 4.4))
    for (name, curve), (line, marker), colour in zip(curves.items(), STYLES, COLOURS, strict=False):
        heights = [max(value, least) if value == value else 10 for value in curve]
        axes.plot(heights, ls=line, marker=marker, ms=5, color=colour, lw=1.4, label=name)
    axes.axhline(tolerance, color="black", lw=2, ls="-")
    axes.text(len(stages) - 0.6, tolerance * 0.8, f"bar: {tolerance:.0e}", fontsize=9, va="top", ha="right")
    axes.set_yscale("log")
    axes.set_ylim(least * 0.7, 10)
    every = max(1, len(stages) // 20)
    axes.set_xticks(range(0, len(stages), every), stages[::every], rotation=40, ha="right", fontsize=9)
    axes.set(ylabel="relative difference", title=title)
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    plt.show()


def draw_changed(changed: dict[str, int], n: int) -> None:
    """How many of n answers each mistake changes."""
    _, axes = plt.subplots(figsize=(8, 2.8))
    names = list(changed)[::-1]
    axes.barh(names, [changed[name] for name in names], color="0.7", edgecolor="black", hatch="//")
    for y, name in enumerate(names):
        axes.text(changed[name] + 0.1, y, f"{changed[name]} of {n}", va="center", fontsize=9)
    axes.set(xlim=(0, n + 1.5), xlabel="answers that differ from the undamaged model's")
    axes.set_title("“Where is …?”: how often each mistake is heard")
    axes.grid(False)
    plt.show()


def clock(modules: dict, run: Callable) -> dict[str, float]:
    """Milliseconds spent in each module while run() runs (on a GPU: until the work is handed over)."""
    spent, began, hooks = dict.fromkeys(modules, 0.0), {}, []

    def start(name: str, *_) -> None:
        began[name] = time.perf_counter()

    def stop(name: str, *_) -> None:
        spent[name] += 1000 * (time.perf_counter() - began[name])

    for name, module in modules.items():
        hooks.append(module.register_forward_pre_hook(partial(start, name)))
        hooks.append(module.register_forward_hook(partial(stop, name)))
    run()
    for handle in hooks:
        handle.remove()
    return spent


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def grouped(numbers: dict[str, float], most: bool = False) -> dict[str, float]:
    """Blocks and layers as one: their sum, or with `most` the largest."""
    groups: dict[str, list[float]] = {}
    for name, value in numbers.items():
        head, _, last = name.rpartition(" ")
        groups.setdefault(f"{head}s" if last.isdigit() else name, []).append(value)
    return {name: max(values) if most else sum(values) for name, values in groups.items()}


def draw_costs(prefill: dict, step: dict, weights: dict, results: dict) -> None:
    """Time of both phases in ms, and bytes of weights and of one result, by stage."""
    names = list(grouped(prefill))[::-1]
    columns = [
        (grouped(prefill), 1, "prefill", "ms", "0.35", ""),
        (grouped(step), 1, "one decoded token", "ms", "0.85", "//"),
        (grouped(weights), 1e6, "weights", "MB", "0.6", ".."),
        (grouped(results, most=True), 1e6, "largest result in prefill", "MB", "1", "xx"),
    ]
    _, panels = plt.subplots(1, 4, figsize=(13, 3.4), sharey=True)
    for axes, (values, unit, title, label, colour, hatch) in zip(panels, columns, strict=True):
        lengths = [values[name] / unit for name in names]
        axes.barh(names, lengths, color=colour, hatch=hatch, edgecolor="black")
        for y, length in enumerate(lengths):
            text = f"{length:.0f}" if length >= 10 else f"{length:.2g}"
            axes.text(length, y, f" {text}", va="center", fontsize=8)
        axes.set(xlabel=label, title=title, xlim=(0, 1.25 * max(lengths) + 1e-9))
        axes.grid(False)
    plt.show()


# -------------------------------------------------------------------------------------------- the reference


def ids(processor, inputs) -> torch.Tensor:
    """The prompt's text, with its slots, as the reference's tokenizer encodes it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint(course.MODEL))
    return torch.tensor(tokenizer([processor.decode(row) for row in inputs.input_ids]).input_ids)


def pixels(processor, picture) -> torch.Tensor:
    """The picture's patches by the reference's Pillow-based image processor."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    ours = processor.image_processor
    limits = {"min_pixels": ours.min_pixels, "max_pixels": ours.max_pixels}
    theirs = Qwen2VLImageProcessor(image_mean=ours.image_mean, image_std=ours.image_std, **limits)
    return torch.as_tensor(theirs(images=picture, return_tensors="pt")["pixel_values"])


# From transformers' integration tests, tests/models/qwen2_vl/test_modeling_qwen2_vl.py.
DOG = "https://qianwen-res.oss-accelerate-overseas.aliyuncs.com/Qwen2-VL/demo_small.jpg"
DOG_IDS = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 151652]
DOG_PIXELS = [[0.8792, 0.8792, 0.9084], [1.1858, 1.1858, 1.2296], [1.2004, 1.2004, 1.2150]]
DOG_ANSWER = "The dog in the picture appears to be a Labrador Retriever."


def published(model, processor) -> None:
    """Compares ids, pixels and the answer with the published ones, and says what can't be had."""
    content = [{"type": "image", "url": DOG}, {"type": "text", "text": "What kind of dog is this?"}]
    try:
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
    except OSError as error:
        print(f"– not compared: {error}")
        return
    given = model.generate(**inputs.to(model.device), max_new_tokens=30)[0, inputs.input_ids.shape[1] :]
    answer = processor.decode(given, skip_special_tokens=True)
    print("it says:", answer)
    pixels = inputs.pixel_values[: len(DOG_PIXELS), :3]
    same = {
        "the first ids": inputs.input_ids[0, : len(DOG_IDS)].tolist() == DOG_IDS,
        "the first pixel values, to 3e-3": bool((pixels - torch.tensor(DOG_PIXELS)).abs().max() <= 3e-3),
        "the answer (that of the 7B model)": answer.startswith(DOG_ANSWER),
    }
    for what, holds in same.items():
        print("✓" if holds else "✗", what, "as published" if holds else "are not the published ones")


# -------------------------------------------------------------------------------------- the first wrong stage


def first_wrong(answer: Callable) -> None:
    """Exercise 1: the name of the first stage above the tolerance."""
    generator = torch.Generator().manual_seed(1)
    scales = {"pixels": 1.0, "tower": 50.0, "merger": 0.01, "decoder": 5.0, "logits": 20.0}

    def case(bad: dict[str, float], noise: float = 1e-7) -> tuple[dict, dict]:
        theirs = {name: s * torch.randn(6, 8, generator=generator) for name, s in scales.items()}
        ours = {}
        for name, x in theirs.items():
            ours[name] = x + noise * x.abs().max() * (2 * torch.rand(6, 8, generator=generator) - 1)
            if name in bad:
                ours[name][2, 3] = x[2, 3] + bad[name] * x.abs().max()
        return ours, theirs

    plain = case({"merger": 3e-3, "decoder": 1e-2, "logits": 2e-2})
    got = answer(*plain, 1e-5)
    _draw_first(*plain, got)
    _expect("the merger is 3e-3 off, and all behind it", got, "merger")
    _expect("all stages agree to 1e-7", answer(*case({}), 1e-5), None)
    said = "the tower's numbers are around 50: some 1e-4 there is a difference of 2e-6, relatively"
    _expect(said, answer(*case({}, 2e-6), 1e-5), None)
    said = "the merger's numbers are around 0.01: what is 1e-4 of them looks small in absolute numbers"
    _expect(said, answer(*case({"merger": 1e-4, "logits": 1}), 1e-5), "merger")
    said = "only the logits are off, by the double of a tolerance of 1e-3"
    _expect(said, answer(*case({"logits": 2e-3}), 1e-3), "logits")
    broken = case({})
    broken[0]["decoder"][0, 0] = float("nan")
    _expect("one number of the decoder is NaN", answer(*broken, 1e-5), "decoder")
    broken = case({})
    broken[1]["merger"] = -broken[1]["merger"].abs() - 0.01
    broken[0]["merger"] = 1.01 * broken[1]["merger"]
    _expect("the merger's numbers are all negative, and 1 % off", answer(*broken, 1e-5), "merger")
    broken = case({})
    broken[0]["tower"] = broken[0]["tower"][:4]
    with contextlib.suppress(RuntimeError):
        _expect("the tower has 4 rows where the reference has 6", answer(*broken, 1e-5), "tower")
        return
    raise Wrong("with shapes (4, 8) and (6, 8) at the tower your function stops, but it should say: tower")


def _expect(case: str, got: str | None, true: str | None) -> None:
    if got != true:
        raise Wrong(f"{case}: the answer is {true!r}, you gave {got!r}")


def _draw_first(ours: dict, theirs: dict, got: str | None) -> None:
    values = [course.difference(ours[name], x) for name, x in theirs.items()]
    _, axes = plt.subplots(figsize=(7, 2.8))
    axes.semilogy(list(theirs), values, "o-")
    axes.axhline(1e-5, color="black", lw=2, ls="-")
    axes.text(-0.2, 1.4e-5, "bar: 1e-05", fontsize=9)
    if got in theirs:
        at = list(theirs).index(got)
        axes.plot(at, values[at], "ks", ms=14, mfc="none", ls="")
        axes.annotate("your answer", (at, values[at]), (at - 0.9, values[at] * 3), fontsize=9)
    axes.set(ylabel="relative difference", ylim=(1e-8, 1))
    axes.set_title("a made-up comparison, and the stage that you name")
    plt.show()


# --------------------------------------------------------------------------------------------------- bfloat16


def to_bfloat16(answer: Callable) -> None:
    """Exercise 2: rounding to 8 significant bits."""
    x = torch.linspace(1, 1.04, 401)
    got = answer(x.clone())
    if not isinstance(got, torch.Tensor) or got.shape != x.shape or got.dtype != torch.float32:
        raise Wrong(f"give back a float32 tensor of the same shape, not {got!r:.60}")
    plt.figure(figsize=(8, 3.2))
    plt.plot(x, x, label="the number itself", lw=1)
    plt.plot(x, x.bfloat16().float(), label="torch.bfloat16", lw=3, color="0.7", ls="-")
    plt.plot(x, got, label="yours", color="#d55e00", ls="--")
    plt.xlabel("before")
    plt.ylabel("after")
    plt.title("numbers between 1 and 1.04, rounded to 8 significant bits")
    plt.legend()
    plt.show()
    generator = torch.Generator().manual_seed(2)
    sizes = 10.0 ** torch.randint(-12, 13, (4000,), generator=generator)
    ordinary = torch.randn(4000, generator=generator) * sizes
    ties = torch.tensor([1 + k / 256 for k in range(1, 16, 2)])
    cases = {
        "numbers of all sizes": ordinary,
        "ties, half way between two": torch.cat((ties, -ties)),
        "numbers near 1": x,
        "0 and whole powers of 2": torch.tensor([0.0, 1.0, -2.0, 0.125, 65536.0]),
    }
    for name, numbers in cases.items():
        got, true = answer(numbers.clone()), numbers.bfloat16().float()
        wrong = (got != true).nonzero()[:, 0]
        if len(wrong):
            i = int(wrong[0])
            said = f"{name}: {len(wrong)} of {len(numbers)} are wrong, the first {numbers[i]:.8g}"
            m, e = torch.frexp(numbers)
            suspects = {
                "you cut off, without rounding": torch.trunc(m * 256) / 256,
                "you keep 7 bits": torch.round(m * 128) / 128,
                "you keep 9 bits": torch.round(m * 512) / 512,
            }
            hint = next(
                (f" ({why})" for why, x in suspects.items() if torch.equal(torch.ldexp(x, e), got)), ""
            )
            raise Wrong(f"{said}: it becomes {true[i]:.8g}, yours {got[i]:.8g}{hint}")
