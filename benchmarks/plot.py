"""The plots: how the time grows with the patches of an image, with the context, with the batch."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Result
from benchmarks.settings import REFERENCE

if TYPE_CHECKING:  # matplotlib is only needed where a plot is drawn
    from matplotlib.axes import Axes

FILE_NAME = "benchmarks.png"
MARKERS = "os^vDPX*"

# Title, what the horizontal axis counts, and the names of the stages that it is drawn from.
PANELS = (
    ("Vision transformer", "patches of an image", r"vision, ([\d,]+) patches"),
    ("One token more", "tokens before", r"one token, batch 1, ([\d,]+) tokens before"),
    ("One token more, 256 before", "rows", r"one token, batch (\d+), 256 tokens before"),
)

# Of each contestant the points (x, y) of its line.
Lines = dict[str, list[tuple[int, float]]]


def lines_of(results: list[Result], stage: str) -> Lines:
    """Seconds against the number that the stage's name has: a regular expression with a group."""
    lines: Lines = {}
    for result in results:
        match = re.fullmatch(stage, result.stage)
        if match:
            number = int(match[1].replace(",", ""))
            lines.setdefault(result.contestant, []).append((number, result.median))
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

    figure, panels = pyplot.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    for axes, (title, xlabel, stage) in zip(panels, PANELS, strict=True):
        draw_lines(axes, lines_of(results, stage))
        axes.set(title=title, xlabel=xlabel, ylabel="seconds")
    panels[0].set_yscale("log")
    for axes in panels[1:]:
        axes.set_ylim(bottom=0)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE_NAME
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file
