"""Plot how the training went, and what is taken for what.

python -m tiny.plots --training tiny/runs/all.run.pt        # loss and accuracy against minutes
python -m tiny.plots --answers answers.json                 # of `python -m tiny.evaluate --json answers.json`
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import matplotlib
import torch

from tiny.tasks import TASKS
from tiny.world import COLOURS, SHAPES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent / "plots"


def plot_training(run: dict, path: Path) -> None:
    """The loss of every step, smoothed, over the share of right answers per kind of thing shown."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
    seconds, _, losses, _ = zip(*run["log"], strict=True)
    smooth, mean = [], losses[0]
    for loss in losses:
        mean = 0.98 * mean + 0.02 * loss
        smooth.append(mean)
    above.plot([s / 60 for s in seconds], smooth, color="black")
    above.set(
        yscale="log",
        ylabel="loss per answer token (nats)",
        title=f"{run['scenes']:,} scenes, {run['steps']:,} steps",
    )
    styles = {"picture": "-", "words": "--", "pictures": "-.", "video": ":", "text": (0, (1, 3))}
    minutes = [s / 60 for s, _ in run["marks"]]
    for kind, tasks in TASKS.items():
        shares = [[marks[task] for task in tasks if task in marks] for _, marks in run["marks"]]
        points = [(m, 100 * sum(s) / len(s)) for m, s in zip(minutes, shares, strict=True) if s]
        if points:
            below.plot(
                *zip(*points, strict=True), linestyle=styles[kind], marker="o", markersize=3, label=kind
            )
    below.set(xlabel="minutes", ylabel="fresh questions answered right (%)", ylim=(0, 100))
    below.legend(title="about")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def plot_confusion(rows: list[dict], path: Path) -> None:
    """True against said, for the tasks colour and shape."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    for axes, task, names in zip(panels, ("colour", "shape"), (list(COLOURS), list(SHAPES)), strict=True):
        words = {row["answer"].rstrip(".").split()[-1].lower() for row in rows if row["task"] == task} & set(
            names
        )
        names = [name for name in names if name in words]
        counts = Counter()
        for row in rows:
            if row["task"] == task:
                said = row["said"].rstrip(".").split()[-1:]
                counts[row["answer"].rstrip(".").split()[-1].lower(), said[0].lower() if said else ""] += 1
        columns = [*names, "other"]
        grid = torch.zeros(len(names), len(columns))
        for (true, said), n in counts.items():
            grid[names.index(true), columns.index(said if said in names else "other")] += n
        share = 100 * grid / grid.sum(1, keepdim=True)
        axes.imshow(share, cmap="Greys", vmin=0, vmax=100)
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="said", ylabel="true", title=f"{task}: % of each row, {int(grid.sum())} questions")
        for i, row in enumerate(share.tolist()):
            for k, cell in enumerate(row):
                if cell >= 0.5:
                    axes.text(
                        k,
                        i,
                        f"{cell:.0f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if cell > 50 else "black",
                    )
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", type=Path, help="the state that training keeps beside its folder")
    parser.add_argument("--answers", type=Path, help="the JSON that the evaluation writes")
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if args.training:
        plot_training(torch.load(args.training, weights_only=True)["run"], FOLDER / "training.png")
    if args.answers:
        plot_confusion(json.loads(args.answers.read_text(encoding="utf-8")), FOLDER / "confusion.png")


if __name__ == "__main__":
    main()
