"""The drawings of notebook 08: rounding, differences by stage, costs by stage."""

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from plots.lettering import show

LINES = ("-", "--", ":", "-.", "-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "x", "*")
COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#777777", "#000000", "#cc79a7")
SMALLEST = 1e-9  # where a difference of 0 is drawn on a log axis
LARGEST = 10  # where NaN is drawn


def draw_orders(errors: Tensor, n: int) -> None:
    """How far sums of the same n numbers are from the true one, relative to the largest number."""
    plt.figure(figsize=(8, 3))
    sums, counts = errors.unique(return_counts=True)
    plt.vlines(sums * 1e7, 0, counts, color="black", lw=4)
    plt.axvline(0, color="#d55e00", ls="--", lw=1.5, label="the true sum")
    plt.legend()
    plt.xlabel("distance from the true sum, relative to the largest term (units of 1e-7)")
    plt.ylabel("orders")
    plt.title(f"the same {n} numbers, added in {len(errors):,} different orders in float32")
    show()


def draw_curves(
    stages: list[str], curves: dict[str, list[float]], tolerance: float, title: str
) -> None:
    """The relative difference at every stage, on a log axis with the tolerance."""
    _, axes = plt.subplots(figsize=(11, 4.4))
    for i, (name, curve) in enumerate(curves.items()):
        heights = []
        for value in curve:
            is_nan = value != value
            heights.append(LARGEST if is_nan else max(value, SMALLEST))
        axes.plot(
            heights, ls=LINES[i], marker=MARKERS[i], ms=5, color=COLOURS[i], lw=1.4, label=name
        )
    axes.axhline(tolerance, color="black", lw=2, ls="-")
    text = f"tolerance: {tolerance:.0e}"
    axes.text(len(stages) - 0.6, tolerance * 0.8, text, fontsize=9, va="top", ha="right")
    axes.set_yscale("log")
    axes.set_ylim(SMALLEST * 0.7, LARGEST)
    every = max(1, len(stages) // 20)
    ticks = range(0, len(stages), every)
    axes.set_xticks(ticks, stages[::every], rotation=40, ha="right", fontsize=9)
    axes.set(ylabel="relative difference", title=title)
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    show()


def draw_changed(num_changed: dict[str, int], n: int) -> None:
    """How many of n answers each mistake changes."""
    _, axes = plt.subplots(figsize=(8, 2.8))
    names = list(num_changed)[::-1]
    counts = [num_changed[name] for name in names]
    axes.barh(names, counts, color="0.7", edgecolor="black", hatch="//")
    for y, count in enumerate(counts):
        axes.text(count + 0.1, y, f"{count} of {n}", va="center", fontsize=9)
    axes.set(xlim=(0, n + 1.5), xlabel="answers that differ from the undamaged model's")
    axes.set_title("“Where is …?”: how often each mistake changes the answer")
    axes.grid(False)
    show()


def draw_costs(
    prefill_ms: dict[str, float],
    step_ms: dict[str, float],
    weight_bytes: dict[str, int],
    result_bytes: dict[str, int],
) -> None:
    """By stage: the time of prefill and of a decode step, the weights, and the largest result.

    The blocks of the vision transformer count as one stage, and so do the decoder's layers.
    """
    weight_mb = {stage: size / 1e6 for stage, size in weight_bytes.items()}
    result_mb = {stage: size / 1e6 for stage, size in result_bytes.items()}
    panels = [
        (_grouped(prefill_ms), sum, "prefill", "ms", "0.35", ""),
        (_grouped(step_ms), sum, "one decoded token", "ms", "0.85", "//"),
        (_grouped(weight_mb), sum, "weights", "MB", "0.6", ".."),
        (_grouped(result_mb), max, "largest result in prefill", "MB", "1", "xx"),
    ]
    names = list(_grouped(prefill_ms))[::-1]
    _, all_axes = plt.subplots(1, 4, figsize=(13, 3.4), sharey=True)
    for axes, panel in zip(all_axes, panels, strict=True):
        groups, combine, title, unit, colour, hatch = panel
        lengths = [combine(groups[name]) for name in names]
        axes.barh(names, lengths, color=colour, hatch=hatch, edgecolor="black")
        for y, length in enumerate(lengths):
            text = f"{length:.0f}" if length >= 10 else f"{length:.2g}"
            axes.text(length, y, f" {text}", va="center", fontsize=8)
        axes.set(xlabel=unit, title=title, xlim=(0, 1.25 * max(lengths) + 1e-9))
        axes.grid(False)
    show()


def _grouped(numbers: dict[str, float]) -> dict[str, list[float]]:
    """The numbers of "decoder layer 0", "decoder layer 1", ... together under "decoder layers"."""
    groups: dict[str, list[float]] = {}
    for stage, value in numbers.items():
        name, _, number = stage.rpartition(" ")
        group = f"{name}s" if number.isdigit() else stage
        groups.setdefault(group, []).append(value)
    return groups


# ---------------------------------------------------------------------------------------- exercises


def draw_first_wrong(differences: dict[str, float], tolerance: float, answer: str | None) -> None:
    """The relative differences of made-up stages, and the stage that an answer names."""
    stages = list(differences)
    values = list(differences.values())
    _, axes = plt.subplots(figsize=(7, 2.8))
    axes.semilogy(stages, values, "o-")
    axes.axhline(tolerance, color="black", lw=2, ls="-")
    axes.text(-0.2, 1.4 * tolerance, f"tolerance: {tolerance:.0e}", fontsize=9)
    if answer in stages:
        x = stages.index(answer)
        axes.plot(x, values[x], "ks", ms=14, mfc="none", ls="")
        axes.annotate("your answer", (x, values[x]), (x - 0.9, values[x] * 3), fontsize=9)
    axes.set(ylabel="relative difference", ylim=(1e-8, 1))
    axes.set_title("a made-up comparison, and the stage that you name")
    show()


def draw_rounding(x: Tensor, yours: Tensor) -> None:
    """Numbers rounded by torch and by an answer."""
    plt.figure(figsize=(8, 3.2))
    plt.plot(x, x, label="the number itself", lw=1)
    plt.plot(x, x.to(torch.bfloat16).float(), label="torch.bfloat16", lw=3, color="0.7", ls="-")
    plt.plot(x, yours, label="yours", color="#d55e00", ls="--")
    plt.xlabel("before")
    plt.ylabel("after")
    plt.title(f"numbers between {x[0]:g} and {x[-1]:g}, rounded to 8 significant bits")
    plt.legend()
    show()
