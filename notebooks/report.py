"""A comparison of both sides as Markdown, for people, and as JSON, for programs."""

import dataclasses
import hashlib
import json
import math
import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch
from comparison import LEGEND, Comparison, Summary, Table, markdown_table, show_number
from safetensors import safe_open
from torch import Tensor

from load import find_checkpoint, tensor_headers

HASHED = "visual.patch_embed.proj.weight"  # the tensor whose hash stands in a report


@dataclass
class Report:
    """What is written about a run."""

    facts: dict[str, str]  # model, dtype, versions, image ...
    table: Table
    costs: dict[str, tuple[float, float]]  # of ours and theirs, by what was measured
    published: list[Comparison] = field(default_factory=list)

    def all_rows(self) -> Table:
        """The stages, and the published outputs behind them."""
        return Table([*self.table.rows, *self.published])

    def to_markdown(self) -> str:
        """The whole report as one page."""
        facts = [["", ""], *([name, value] for name, value in self.facts.items())]
        costs = [["", "ours", "theirs"]]
        for name, (ours, theirs) in self.costs.items():
            costs.append([name, show_number(ours), show_number(theirs)])
        legend = ", ".join(f"{sign} {meaning}" for sign, meaning in LEGEND.items())
        parts = [
            f"# Ours beside transformers: {self.facts['model']}",
            f"**{self.all_rows().conclusion()}**",
            markdown_table(facts),
            "## Stages",
            legend + ".",
            markdown_table(self.all_rows().cells()),
            "## The same numbers of both",
            markdown_table(value_cells(self.all_rows().rows)),
            "## Time and memory",
            markdown_table(costs),
        ]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """The same for programs; NaN and infinity are written as null."""
        rows = [dataclasses.asdict(row) for row in self.all_rows().rows]
        content = {
            "facts": self.facts,
            "first_wrong": self.all_rows().first_wrong(),
            "stages": rows,
            "costs": self.costs,
        }
        return json.dumps(without_nan(content), ensure_ascii=False, indent=1) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write `against.md` and `against.json` into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        page, data = folder / "against.md", folder / "against.json"
        page.write_text(self.to_markdown(), encoding="utf-8")
        data.write_text(self.to_json(), encoding="utf-8")
        return [page, data]


def value_cells(rows: list[Comparison]) -> list[list[str]]:
    """Mean, spread and five values of both sides of each stage: two lines a stage."""
    lines = [["stage", "", "mean", "spread", "five values, evenly spread"]]
    for row in rows:
        for name, side in (("ours", row.ours or Summary()), ("theirs", row.theirs)):
            if side.text or row.theirs.text:
                numbers = ["", "", f"`{side.text!r}`"]
            else:
                values = ", ".join(map(show_number, side.values))
                numbers = [show_number(side.mean), show_number(side.spread), values]
            lines.append([row.stage if name == "ours" else "", name, *numbers])
    return lines


def without_nan(x: object) -> object:
    """The same with None for numbers that JSON does not have."""
    if isinstance(x, dict):
        return {key: without_nan(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [without_nan(value) for value in x]
    if isinstance(x, float) and not math.isfinite(x):
        return None
    return x


def versions() -> dict[str, str]:
    """What a result may depend on."""
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }


def stored_hash(name: str) -> str:
    """The SHA-256 of one tensor of a checkpoint, as it is stored."""
    headers = tensor_headers(find_checkpoint(name))
    for stored_name, header in headers.items():
        if stored_name.endswith(HASHED):
            with safe_open(header.file, framework="pt") as file:
                return tensor_hash(file.get_tensor(stored_name))
    raise ValueError(f"{name} has no tensor {HASHED}")


def tensor_hash(x: Tensor) -> str:
    """The SHA-256 of a tensor's bytes, in hexadecimal."""
    return hashlib.sha256(x.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
