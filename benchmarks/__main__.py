"""The command line of the benchmarks: measure stage after stage, then print the table."""

import argparse
import math
import sys
import textwrap
import time
from pathlib import Path

from benchmarks import llama_cpp
from benchmarks.budget import QUICK_MINUTES, Budget
from benchmarks.limits import MachineLimits
from benchmarks.measure import Result, StageMeasurement, progress
from benchmarks.models import NO_REFERENCE, Models
from benchmarks.plot import draw_plot
from benchmarks.report import Report, describe_machine, table_rows
from benchmarks.settings import add_arguments, dtype_name, is_installed, settings_from
from benchmarks.stage import MATRIX_PRODUCTS, Stage
from benchmarks.stages.catalogue import TYPICAL_SECONDS, choose_stages, make_stage
from benchmarks.stages.decode import rounding_error

ABOUT = """This project beside `transformers`: the same weights and inputs, in turn, in one run.

Every stage is run by all contestants in turn, after a round that is not counted. The table on
stdout shows medians, with the least and the most in brackets; how many times faster than the
reference's fastest setting that is; its share of the machine's limit, measured between the runs
(read bandwidth for decoding, the rate of matrix products for vision and prefill); and the memory
at the peak, weights aside, in a process of its own. Progress goes to stderr."""

EXAMPLES = """examples:
  python -m benchmarks                                   # the official 2B shape, under 10 minutes
  python -m benchmarks --full --json 2b.json --plot out  # all stages: more than an hour; a plot
  python -m benchmarks --model tiny --stages prefill,decode-1
  python -m benchmarks --model shape:7b --device cuda --full

stages:
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    names = ", ".join(TYPICAL_SECONDS)
    stages = textwrap.fill(names, width=98, initial_indent="  ", subsequent_indent="  ")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=ABOUT,
        epilog=EXAMPLES + stages,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument(
        "--stages",
        metavar="NAMES",
        help="only these, separated by commas, without a limit on the time; decode-1 stands for "
        "all that begin with decode-1-",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="the time for all stages together (default: no limit; for the quick set "
        f"{QUICK_MINUTES:g})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw benchmarks.png there")
    parser.add_argument(
        "--no-memory",
        action="store_true",
        help="leave out the peak memory, which takes a process for each contestant",
    )
    return parser.parse_args(argv)


def time_limit(args: argparse.Namespace) -> float:
    """Seconds for all stages together, infinity for no limit."""
    if args.minutes is not None:
        if args.minutes <= 0:
            raise ValueError(f"--minutes must be above 0, got {args.minutes:g}")
        return 60 * args.minutes
    if args.full or args.stages is not None:
        return math.inf
    return 60 * QUICK_MINUTES


def limit_in_words(budget: Budget) -> str:
    """For the remark under the table."""
    if math.isinf(budget.seconds):
        return ""
    return f", of {budget.seconds / 60:g} that were allowed"


def prepare_outputs(args: argparse.Namespace) -> None:
    """Make the folders of the outputs, so that a wrong path is an error before the long work."""
    if args.plot is not None:
        if not is_installed("matplotlib"):
            raise ValueError('--plot needs matplotlib: pip install -e ".[dev]" brings it')
        args.plot.mkdir(parents=True, exist_ok=True)
    if args.json is not None:
        if args.json.is_dir():
            raise ValueError(f"--json takes a file, {args.json} is a folder")
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.touch()


def least_seconds(stage: Stage, limits: MachineLimits) -> float:
    """What an uncounted and a counted round take at this machine's rate of matrix products."""
    rounds = 2 if stage.warm_up else 1
    return rounds * stage.operations / limits.median(MATRIX_PRODUCTS)


class Benchmark:
    """The stages of one call, one after another; what fails costs that stage and nothing else."""

    def __init__(self, args: argparse.Namespace, models: Models, report: Report) -> None:
        self.args = args
        self.models = models
        self.report = report
        self.has_failed = False

    def run(self, names: list[str], budget: Budget) -> None:
        """Run the stages; Ctrl-C ends them early, and what was measured so far is kept."""
        try:
            for i, name in enumerate(names):
                progress(f"[{i + 1}/{len(names)}] {name}")
                self.run_stage(name, budget)
                self.write_json()
        except KeyboardInterrupt:
            self.has_failed = True
            self.remark("Interrupted: later stages are missing.")

    def run_stage(self, name: str, budget: Budget) -> None:
        """Build the stage, measure it if there is time, keep its results."""
        if name.startswith("llama-") and not llama_cpp.is_installed():
            self.remark(f"{name} was left out: {llama_cpp.NOT_INSTALLED}.")
            return
        if not budget.has_time_for(name, time.monotonic()):
            self.remark(f"{name} was left out: less than half of its time was left.")
            return
        try:
            stage = make_stage(name, self.models)
            least = least_seconds(stage, self.report.limits)
            if not budget.has_time_for(name, time.monotonic(), least):
                dtype = dtype_name(self.models.dtype)
                self.remark(
                    f"{name} was left out: it takes {least:,.0f} s here in {dtype}, or more."
                )
                return
            results = self.measure(name, stage, budget.deadlines[name], least)
        except Exception as error:
            self.failed(name, error)
            return
        self.report.results += results
        for row in table_rows(results):
            progress(row)

    def measure(self, name: str, stage: Stage, deadline: float, least: float) -> list[Result]:
        """Peak memory, if there is time for both, then the rounds."""
        measurement = StageMeasurement(stage, self.report.limits, deadline)
        has_time = time.monotonic() + 2 * least <= deadline
        if stage.measure_memory and has_time and not self.args.no_memory:
            measurement.measure_peaks(name, self.models.settings)
        measurement.run_rounds()
        return measurement.results()

    def finish(self) -> None:
        """Print the table, then what can only be done at the end."""
        for kind in ("int8", "int4"):
            if not any(kind in result.contestant for result in self.report.results):
                continue
            try:
                self.report.remarks.append(rounding_error(self.models, kind))
            except Exception as error:
                self.failed(f"the comparison of {kind} logits", error)
        self.report.remarks += llama_cpp.against_llama_cpp(self.report.results)
        print(self.report.text(), flush=True)
        self.write_json()
        if self.args.plot is not None:
            try:
                progress(f"plot: {draw_plot(self.report.results, self.args.plot)}")
            except Exception as error:
                self.failed("the plot", error)

    def write_json(self) -> None:
        """After each stage, so that a long run that is broken off has left its figures."""
        if self.args.json is None:
            return
        try:
            self.report.write_json(self.args.json)
        except OSError as error:
            self.has_failed = True
            progress(f"{self.args.json} could not be written: {error}")

    def failed(self, what: str, error: Exception) -> None:
        self.has_failed = True
        self.remark(f"{what} failed: {type(error).__name__}: {error}")

    def remark(self, text: str) -> None:
        """A line that goes to stderr now and under the table at the end."""
        progress(text)
        self.report.remarks.append(text)


def main(argv: list[str] | None = None) -> int:
    """0, or 1 if a stage failed, or 2 after a line on stderr about a wrong argument."""
    start = time.monotonic()
    args = parse_arguments(argv)
    try:
        names = choose_stages(args.stages, args.full)
        budget = Budget(names, time_limit(args), start)
        settings = settings_from(args)
        prepare_outputs(args)
        models = Models(settings)
    except (ValueError, OSError) as error:
        progress(f"error: {error}")
        return 2
    if not models.has_reference and models.settings.reference:
        progress(NO_REFERENCE)

    limits = MachineLimits(models.device, models.dtype)
    words = ["python", "-m", "benchmarks", *(sys.argv[1:] if argv is None else argv)]
    report = Report(" ".join(words), describe_machine(models), limits)
    progress(f"{settings.model} on {report.machine}; the machine {limits.describe()}")

    benchmark = Benchmark(args, models, report)
    benchmark.run(names, budget)
    minutes = (time.monotonic() - start) / 60
    report.remarks.append(f"Measured in {minutes:.1f} minutes{limit_in_words(budget)}.")
    benchmark.finish()
    return 1 if benchmark.has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
