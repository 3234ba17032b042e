"""Plot how the training went, and what is taken for what.

python -m tiny.plots --training tiny/runs/both.run.pt    # loss and accuracy against minutes
python -m tiny.plots --answers answers.json    # of python -m tiny.evaluate --json answers.json
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import torch

from tiny.tasks import TASKS
from tiny.train import Progress
from tiny.world import COLOURS, SHAPES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent / "plots"
LINE_STYLES = {"image": "-", "words": "--", "images": "-.", "video": ":", "text": (0, (1, 3))}


def plot_training(progress: Progress, path: Path) -> None:
    """The loss of every step, over the share of right answers per kind of thing shown."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
    plot_loss(above, progress)
    plot_accuracy(below, progress)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def plot_loss(axes: plt.Axes, progress: Progress) -> None:
    minutes = [seconds / 60 for seconds, _, _, _ in progress.log]
    losses = [loss for _, _, loss, _ in progress.log]
    smooth = []
    mean = losses[0]
    for loss in losses:
        mean = 0.98 * mean + 0.02 * loss
        smooth.append(mean)
    axes.plot(minutes, smooth, color="black")
    axes.set(
        yscale="log",
        ylabel="loss per answer token (nats)",
        title=f"{progress.scenes:,} scenes, {progress.steps:,} steps",
    )


def plot_accuracy(axes: plt.Axes, progress: Progress) -> None:
    """A line for each kind: the mean over those of its tasks that were asked."""
    for kind, tasks in TASKS.items():
        minutes = []
        percent = []
        for seconds, accuracy in progress.accuracies:
            shares = [accuracy[task] for task in tasks if task in accuracy]
            if shares:
                minutes.append(seconds / 60)
                percent.append(100 * sum(shares) / len(shares))
        if minutes:
            style = LINE_STYLES[kind]
            axes.plot(minutes, percent, linestyle=style, marker="o", markersize=3, label=kind)
    axes.set(xlabel="minutes", ylabel="unseen questions answered right (%)", ylim=(0, 100))
    axes.legend(title="about")


def plot_confusion(rows: list[dict], path: Path) -> None:
    """True against said, for the tasks colour and shape."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    plot_task_confusion(panels[0], rows, "colour", list(COLOURS))
    plot_task_confusion(panels[1], rows, "shape", list(SHAPES))
    figure.savefig(path, dpi=110)


def last_word(answer: str) -> str:
    """What an answer names: "A red star." is about a star."""
    words = answer.rstrip(".").split()
    return words[-1].lower() if words else ""


def plot_task_confusion(axes: plt.Axes, rows: list[dict], task: str, names: list[str]) -> None:
    """One row for each true name, one column for each that was said."""
    pairs = [
        (last_word(row["answer"]), last_word(row["said"])) for row in rows if row["task"] == task
    ]
    true_names = {true for true, _ in pairs}
    names = [name for name in names if name in true_names]
    columns = [*names, "other"]
    counts = np.zeros((len(names), len(columns)))
    for (true, said), count in Counter(pairs).items():
        column = said if said in names else "other"
        counts[names.index(true), columns.index(column)] += count
    percent = 100 * counts / counts.sum(1, keepdims=True)

    axes.imshow(percent, cmap="Greys", vmin=0, vmax=100)
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="said", ylabel="true")
    axes.set_title(f"{task}: % of each row, {int(counts.sum())} questions")
    for (row, column), cell in np.ndenumerate(percent):
        if cell >= 0.5:
            colour = "white" if cell > 50 else "black"
            text = f"{cell:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--training", type=Path, help="the state that training keeps beside its folder"
    )
    parser.add_argument("--answers", type=Path, help="the JSON that the evaluation writes")
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if args.training:
        state = torch.load(args.training, weights_only=True)
        name = args.training.name.removesuffix(".run.pt")
        plot_training(Progress.from_dict(state["run"]), FOLDER / f"training-{name}.png")
    if args.answers:
        rows = json.loads(args.answers.read_text(encoding="utf-8"))
        plot_confusion(rows, FOLDER / "confusion.png")


if __name__ == "__main__":
    main()
