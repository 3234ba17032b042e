"""Ours beside theirs: what a stage gave on both sides, how far apart it is, and whether that holds.

A `Comparison` is one stage, shown as a small table. A `Table` holds many of them, shown one a line.
Both have a plain text form, an HTML form (Jupyter and GitHub show it) and a Markdown form.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NUM_VALUES = 5  # how many numbers of a stage are shown, at the same places of both sides
HOLDS, FAILS, TIE, INHERITED, SHOWN = "✓", "✗", "≈", "↓", "–"
LEGEND = {
    HOLDS: "within its bar",
    FAILS: "not within its bar",
    TIE: "another token, as probable as theirs within the bar",
    INHERITED: "right by itself: off because a stage before it is",
    SHOWN: "shown only",
}


# --------------------------------------------------------------------------------- how far apart


def largest_relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest number of theirs; NaN if any number is NaN."""
    if ours.numel() == 0:
        return 0.0
    # In float64, so that nothing is rounded here.
    a, b = ours.double(), theirs.double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def mean_relative(ours: Tensor, theirs: Tensor) -> float:
    """The root of the mean square of the differences over that of theirs.

    Rounding errors of many numbers average out in it, so it depends little on which numbers
    they are: in bfloat16 it tells more than the largest of them.
    """
    a, b = ours.double(), theirs.double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


@dataclass(frozen=True)
class Measure:
    """One way to compare a stage: how far apart the two sides are, and how far they may be."""

    name: str
    apart: float
    bar: float

    @property
    def holds(self) -> bool:
        return self.apart <= self.bar  # false for NaN


# ---------------------------------------------------------------------------------- one side


@dataclass(frozen=True)
class Summary:
    """What is shown of one side of a stage: of a tensor its numbers, of a text the text."""

    shape: tuple[int, ...] = ()
    mean: float = 0.0
    spread: float = 0.0  # the standard deviation
    values: tuple[float, ...] = ()  # evenly spread over the tensor
    text: str = ""


def value_places(n: int) -> list[int]:
    """The places of the numbers that are shown, of n: evenly spread from the first to the last."""
    if n <= NUM_VALUES:
        return list(range(n))
    return [i * (n - 1) // (NUM_VALUES - 1) for i in range(NUM_VALUES)]


def summarize(x: Tensor | str) -> Summary:
    """The summary of one side."""
    if isinstance(x, str):
        return Summary(text=x)
    numbers = x.detach().cpu().flatten()
    values = tuple(float(numbers[place]) for place in value_places(len(numbers)))
    if not len(numbers):
        return Summary(shape=tuple(x.shape))
    wide = numbers.double()
    spread = float(wide.std(correction=0))
    return Summary(tuple(x.shape), float(wide.mean()), spread, values)


# --------------------------------------------------------------------------------- one stage


@dataclass
class Comparison:
    """A stage of both sides, the measures that it must hold, and the verdict."""

    stage: str
    ours: Summary | None  # None for a stage that was not reached
    theirs: Summary
    largest: float  # the largest difference, in the stage's own units
    measures: list[Measure] = field(default_factory=list)
    verdict: str = HOLDS
    remark: str = ""

    @property
    def holds(self) -> bool:
        return self.verdict != FAILS

    @property
    def is_missing(self) -> bool:
        return self.ours is None

    def rows(self) -> list[list[str]]:
        """The cells of the small table: a row of titles, ours, theirs."""
        if self.theirs.text:
            ours = "" if self.ours is None else repr(self.ours.text)
            return [[self.stage, "text"], ["ours", ours], ["theirs", repr(self.theirs.text)]]
        places = value_places(math.prod(self.theirs.shape))
        titles = [self.stage, "shape", "mean", "spread", *[f"[{place}]" for place in places]]
        ours = self.ours or Summary()
        return [titles, side_cells("ours", ours, titles), side_cells("theirs", self.theirs, titles)]

    def judgement(self) -> str:
        """The line below the small table."""
        parts = [f"{self.verdict} largest difference {show_number(self.largest)}"]
        if self.theirs.text:
            parts = [f"{self.verdict} " + ("equal" if self.ours == self.theirs else "not equal")]
        for measure in self.measures:
            parts.append(f"{measure.name} {measure.apart:.1e} of {measure.bar:.1e} allowed")
        if self.remark:
            parts.append(self.remark)
        return "; ".join(parts)

    def __repr__(self) -> str:
        return align(self.rows()) + "\n" + self.judgement()

    def _repr_html_(self) -> str:  # Jupyter calls this
        return html_table(self.rows()) + f"<p>{html.escape(self.judgement())}</p>"


def side_cells(name: str, side: Summary, titles: Sequence[str]) -> list[str]:
    """One side of a tensor as cells, as many as there are titles."""
    shape = " × ".join(map(str, side.shape))
    numbers = [side.mean, side.spread, *side.values]
    cells = [name, shape, *map(show_number, numbers)]
    return (cells + [""] * len(titles))[: len(titles)]


def show_number(x: float) -> str:
    """A number in at most nine characters or so."""
    is_whole = math.isfinite(x) and x == int(x) and abs(x) < 1e9
    return str(int(x)) if is_whole else f"{x:.5g}"


def compare(
    stage: str, ours: Tensor | str | None, theirs: Tensor | str, measures: Sequence[Measure] = ()
) -> Comparison:
    """Both sides of a stage; without measures they must be equal to the last bit.

    ours is None for a stage that was not reached.
    """
    summary = None if ours is None else summarize(ours)
    result = Comparison(stage, summary, summarize(theirs), 0.0, list(measures))
    if ours is None:
        result.largest = math.nan
        result.verdict = FAILS
        return result
    if isinstance(ours, str) or isinstance(theirs, str):
        result.verdict = HOLDS if ours == theirs else FAILS
        return result
    if ours.shape != theirs.shape:
        result.largest = math.nan
        result.verdict = FAILS
        result.remark = f"the shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}"
        return result
    if theirs.numel():
        result.largest = float((ours.double() - theirs.double()).abs().max())
    holds = all(measure.holds for measure in measures) if measures else result.largest == 0
    result.verdict = HOLDS if holds else FAILS
    return result


# --------------------------------------------------------------------------------- many stages


@dataclass
class Table:
    """All stages of a run in their order."""

    rows: list[Comparison] = field(default_factory=list)

    def first_wrong(self) -> str | None:
        """The name of the first stage that doesn't hold."""
        for row in self.rows:
            if not row.holds:
                return row.stage
        return None

    def measure_names(self) -> list[str]:
        """The names of all measures, in the order of their first use."""
        names: dict[str, None] = {}
        for row in self.rows:
            for measure in row.measures:
                names[measure.name] = None
        return list(names)

    def cells(self) -> list[list[str]]:
        """A row of titles, and a row for each stage."""
        names = self.measure_names()
        titles = ["", "stage", "shape", "largest difference"]
        for name in names:
            titles += [name, "bar"]
        lines = [titles]
        for row in self.rows:
            shape = " × ".join(map(str, row.theirs.shape))
            largest = "" if row.theirs.text else show_number(row.largest)
            if row.theirs.text:
                shape = shorten(row.theirs.text)
            line = [row.verdict, row.stage, shape, largest]
            of_name = {measure.name: measure for measure in row.measures}
            for name in names:
                measure = of_name.get(name)
                line += [f"{measure.apart:.1e}", f"{measure.bar:.1e}"] if measure else ["", ""]
            lines.append(line)
        return lines

    def conclusion(self) -> str:
        """One sentence on all stages."""
        if not self.rows:
            return "No stage was compared: there is no reference here."
        wrong = self.first_wrong()
        if wrong is None:
            return f"All {len(self.rows)} stages hold."
        count = sum(not row.holds for row in self.rows)
        return f"The first stage that does not hold: {wrong} ({count} of {len(self.rows)})."

    def __repr__(self) -> str:
        return align(self.cells()) + "\n" + self.conclusion()

    def _repr_html_(self) -> str:  # Jupyter calls this
        return html_table(self.cells()) + f"<p>{html.escape(self.conclusion())}</p>"


# --------------------------------------------------------------------------------- how it is shown


def shorten(text: str, longest: int = 24) -> str:
    """A text in quotes, cut if it is long."""
    whole = repr(text)
    return whole if len(whole) <= longest else whole[: longest - 1] + "…"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, as plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Cells as an HTML table whose first row are titles."""
    lines = ["<table>"]
    for i, row in enumerate(rows):
        tag = "th" if i == 0 else "td"
        cells = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table whose first row are titles."""
    lines = []
    for i, row in enumerate(rows):
        cells = [cell.replace("|", "\\|").replace("\n", "⏎") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
        if i == 0:
            lines.append("|" + " --- |" * len(row))
    return "\n".join(lines)


def as_rows(x: Tensor) -> Tensor:
    """(..., D) to (rows, D) on the CPU: two sides may keep other axes before the last."""
    return torch.atleast_2d(x.detach()).flatten(0, -2).cpu()
