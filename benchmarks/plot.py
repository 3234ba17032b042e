"""The plot: vision time against the size of the image, decoding speed against the context."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Result
from benchmarks.settings import REFERENCE

if TYPE_CHECKING:  # matplotlib is only needed where a plot is drawn
    from matplotlib.axes import Axes

FILE_NAME = "benchmarks.png"
MARKERS = "os^vDPX*"

# Of each contestant the points (x, y) of its line.
Lines = dict[str, list[tuple[int, float]]]


def vision_lines(results: list[Result]) -> Lines:
    """Patches and seconds."""
    lines: Lines = {}
    for result in results:
        match = re.fullmatch(r"vision, ([\d,]+) patches", result.stage)
        if match:
            patches = int(match[1].replace(",", ""))
            lines.setdefault(result.contestant, []).append((patches, result.median))
    return lines


def decode_lines(results: list[Result]) -> Lines:
    """Tokens before, and tokens a second, of one row."""
    lines: Lines = {}
    for result in results:
        match = re.fullmatch(r"decode, batch 1, ([\d,]+) tokens before", result.stage)
        if match:
            context = int(match[1].replace(",", ""))
            lines.setdefault(result.contestant, []).append((context, 1 / result.median))
    return lines


def draw_lines(axes: "Axes", lines: Lines) -> None:
    """One line a contestant: ours in colours, the reference's grey and dashed."""
    for i, (contestant, points) in enumerate(lines.items()):
        xs, ys = zip(*sorted(points), strict=True)
        is_reference = contestant.startswith(REFERENCE)
        axes.plot(
            xs,
            ys,
            marker=MARKERS[i % len(MARKERS)],
            label=contestant,
            color="0.4" if is_reference else f"C{i}",
            linestyle="--" if is_reference else "-",
        )
    measured = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(measured, [f"{x:,}" for x in measured])
    axes.minorticks_off()
    if lines:
        axes.legend(fontsize="small")


def draw_plot(results: list[Result], folder: Path) -> Path:
    """Write benchmarks.png into the folder, which is made if it is missing; returns the file."""
    import matplotlib

    matplotlib.use("Agg")  # draws into a file, on machines without a screen too
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    draw_lines(left, vision_lines(results))
    left.set(title="Vision transformer", xlabel="patches of an image", ylabel="seconds")
    left.set_yscale("log")
    draw_lines(right, decode_lines(results))
    right.set(title="Decoding", xlabel="tokens before", ylabel="tokens a second")
    right.set_ylim(bottom=0)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE_NAME
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file
