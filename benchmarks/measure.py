"""Timing: all contestants in turn, and their peak memory in processes of their own."""

import math
import statistics
import sys
import time
from dataclasses import dataclass

import torch

from benchmarks.limits import MachineLimits
from benchmarks.processes import run_python, status_is_readable
from benchmarks.settings import Settings
from benchmarks.stage import Contestant, Run, Stage


@dataclass
class Result:
    """One contestant's figures in one stage. Times are in seconds, memory is in bytes."""

    stage: str
    contestant: str
    is_reference: bool
    median: float
    least: float
    most: float
    rounds: int
    ratio: float | None  # time of the reference's fastest setting / this one's
    limit: str | None  # which of the machine's limits the job meets
    share: float | None  # of that limit
    peak_memory: int | None
    note: str


def progress(message: str) -> None:
    """A line on stderr."""
    print(message, file=sys.stderr, flush=True)


class StageMeasurement:
    """Runs one stage and keeps what it gives.

    deadline: by `time.monotonic()`; when one more round would end after it, the stage has no
    further round. One counted round there is in any case.
    """

    def __init__(self, stage: Stage, limits: MachineLimits, deadline: float = math.inf) -> None:
        self.stage = stage
        self.limits = limits
        self.deadline = deadline
        self.runs: dict[str, list[Run]] = {c.name: [] for c in stage.contestants}
        self.rates: dict[str, list[float]] = {c.limit: [] for c in stage.contestants if c.limit}
        self.peaks: dict[str, int] = {}

    @torch.no_grad()
    def run_rounds(self) -> None:
        """One uncounted round, if the stage has one, then the counted ones."""
        if self.stage.warm_up:
            progress("  uncounted round")
            self.run_round(0, counted=False)
        for i in range(self.stage.rounds):
            progress(f"  round {i + 1} of {self.stage.rounds}")
            start = time.monotonic()
            self.run_round(i, counted=True)
            end = time.monotonic()
            if end + (end - start) > self.deadline:
                return

    def run_round(self, number: int, counted: bool) -> None:
        """All contestants once, each round from another one on, the machine's limit before each."""
        contestants = self.stage.contestants
        first = number % len(contestants)
        for contestant in contestants[first:] + contestants[:first]:
            for limit, rates in self.rates.items():
                rates.append(self.limits.measure(limit))
            run = contestant.run()
            if counted:
                self.runs[contestant.name].append(run)

    def measure_peaks(self, stage_name: str, settings: Settings) -> None:
        """The peak memory of each contestant, as long as there is time.

        stage_name: as in the catalogue. Without it the table has empty cells, and the rest goes on.
        """
        if not status_is_readable() and settings.device.type == "cpu":
            progress("  no peak memory: only Linux tells it")
            return
        for contestant in self.stage.contestants:
            if time.monotonic() > self.deadline:
                return
            progress(f"  peak memory of {contestant.name}")
            command = ["-m", "benchmarks.processes.peak_memory", stage_name, contestant.name]
            try:
                output = run_python(command + settings.to_arguments())
            except RuntimeError as error:
                progress(f"  no peak memory: {error}")
                return
            self.peaks[contestant.name] = int(output.splitlines()[-1])

    def results(self) -> list[Result]:
        """The figures of all contestants, in the stage's order."""
        return [self.result(contestant) for contestant in self.stage.contestants]

    def result(self, contestant: Contestant) -> Result:
        seconds = [run.seconds for run in self.runs[contestant.name]]
        median = self.median_seconds(contestant)
        share = None
        if contestant.limit is not None:
            best_rate = statistics.median(self.rates[contestant.limit])
            share = contestant.amount / median / best_rate
        return Result(
            stage=self.stage.name,
            contestant=contestant.name,
            is_reference=contestant.is_reference(),
            median=median,
            least=min(seconds),
            most=max(seconds),
            rounds=len(seconds),
            ratio=self.ratio(contestant),
            limit=contestant.limit,
            share=share,
            peak_memory=self.peak_memory(contestant),
            note=self.note(len(seconds)),
        )

    def median_seconds(self, contestant: Contestant) -> float:
        return statistics.median(run.seconds for run in self.runs[contestant.name])

    def ratio(self, contestant: Contestant) -> float | None:
        """How many times faster than the fastest setting of the reference for the same variant."""
        rivals = [
            self.median_seconds(other)
            for other in self.stage.contestants
            if other.is_reference() and other.variant == contestant.variant
        ]
        if not rivals:
            return None
        return min(rivals) / self.median_seconds(contestant)

    def peak_memory(self, contestant: Contestant) -> int | None:
        """From the process of its own, else the highest that the runs themselves have told."""
        if contestant.name in self.peaks:
            return self.peaks[contestant.name]
        told = [run.peak_memory for run in self.runs[contestant.name]]
        return max((peak for peak in told if peak is not None), default=None)

    def note(self, rounds: int) -> str:
        """The stage's note, and how many rounds there were if time allowed fewer than planned."""
        notes = [self.stage.note] if self.stage.note else []
        if rounds < self.stage.rounds:
            notes.append(f"{rounds} of {self.stage.rounds} rounds for lack of time")
        return "; ".join(notes)
