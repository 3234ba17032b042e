"""What is printed and written: the table, the machine in a line, all figures as JSON."""

import datetime
import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.limits import MachineLimits
from benchmarks.measure import Result
from benchmarks.models import Models
from benchmarks.settings import dtype_name

HEADER = [
    "| stage | who | time | against the reference | of the limit | peak memory |",
    "| --- | --- | --- | --- | --- | --- |",
]


@dataclass
class Report:
    """All that was measured so far, and what was not, with its reason."""

    command: str
    machine: str
    limits: MachineLimits
    results: list[Result] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Markdown: the command and the machine, the table, then the remarks."""
        title = f"`{self.command}` on {self.machine}, which {self.limits.describe()}:"
        paragraphs = [title, "\n".join(HEADER + table_rows(self.results))]
        return "\n\n".join(paragraphs + self.remarks)

    def write_json(self, file: Path) -> None:
        figures = {
            "command": self.command,
            "machine": self.machine,
            "limits": self.limits.rates,
            "results": [asdict(result) for result in self.results],
            "remarks": self.remarks,
        }
        file.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def table_rows(results: list[Result]) -> list[str]:
    """The results as rows of a Markdown table; a stage's note stands in its first row."""
    rows = []
    previous_stage = None
    for result in results:
        stage = result.stage
        if result.note and stage != previous_stage:
            stage += f" ({result.note})"
        previous_stage = result.stage
        spread = f"{duration(result.least)} to {duration(result.most)}"
        cells = [
            stage,
            result.contestant,
            f"{duration(result.median)} ({spread})",
            "" if result.ratio is None or result.is_reference else f"{result.ratio:.2f} ×",
            "" if result.share is None else f"{result.share:.0%} of {result.limit}",
            "" if result.peak_memory is None else f"{result.peak_memory / 1e6:,.0f} MB",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def duration(seconds: float) -> str:
    """Three digits: "2.16 s", "81.6 ms"."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.3g} ms"


def describe_machine(models: Models) -> str:
    """Processor or GPU, versions, dtype and today's date, in a line."""
    parts = [f"{os.cpu_count()} cores of {processor_name()}"]
    if models.device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(models.device))
    parts.append(f"torch {torch.__version__}")
    if models.transformers is not None:
        parts.append(f"transformers {models.transformers.__version__}")
    parts.append(dtype_name(models.dtype))
    parts.append(datetime.date.today().isoformat())
    return ", ".join(parts)


def processor_name() -> str:
    """As Linux names it, else as Python does."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        match = re.search(r"model name\s*: (.*)", file.read_text())
        if match:
            return match[1]
    return platform.processor() or platform.machine()
