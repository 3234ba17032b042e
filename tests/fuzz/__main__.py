"""Hunt for input that ends in anything but an answer or a clear error of one line.

python -m tests.fuzz --minutes 30             # all targets, one after the other
python -m tests.fuzz clip --minutes 5 --seed 7

Coverage-guided: a case that reaches a line of this project that none before it reached joins
the cases that are changed further. The hunt runs in a child process; if a case kills it or keeps
it busy for HANG seconds, that is a finding too. Findings are written to --out: one file for each,
with the traceback, beside the pickled case.
"""

import argparse
import multiprocessing
import time
from pathlib import Path

from tests.fuzz.hunt import hunt
from tests.fuzz.targets import TARGETS

HANG = 60  # seconds


def watch(name: str, seconds: float, seed: int, out: Path) -> None:
    """Run `hunt` in processes of its own, a new one after each that died or hung."""
    end = time.monotonic() + seconds
    totals = [0, 0]  # cases, findings
    while (left := end - time.monotonic()) > 1:
        report = out / f"{name}.report"
        running = out / f"{name}.running"
        report.unlink(missing_ok=True)
        child = multiprocessing.get_context("spawn").Process(
            target=hunt, args=(name, left, seed, out)
        )
        child.start()
        verdict = wait(child, running)
        seed += 1
        if report.exists():
            tried, corpus, lines, findings = map(int, report.read_text().split())
            totals[0] += tried
            totals[1] += findings
            print(f"{name}: {tried} cases, {corpus} kept, {lines} lines, {findings} findings")
        if verdict is not None:
            totals[1] += 1
            print(f"{name}: {verdict}")
            if running.exists():
                running.replace(out / f"{name}-{seed}-{verdict.split()[0]}.case")
    print(f"{name}: {totals[0]} cases in all, {totals[1]} findings", flush=True)


def wait(child: multiprocessing.process.BaseProcess, running: Path) -> str | None:
    """Until the child ends: None, or that it was killed or hung."""
    while child.is_alive():
        child.join(1)
        started = running.stat().st_mtime if running.exists() else time.time()
        if child.is_alive() and time.time() - started > HANG:
            child.kill()
            child.join()
            return f"hang of over {HANG} s"
    return None if child.exitcode == 0 else f"killed, exit code {child.exitcode}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=30, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "findings")
    args = parser.parse_args()
    names = args.targets or list(TARGETS)
    for name in names:
        if name not in TARGETS:
            parser.error(f"no target {name!r}: there are {', '.join(TARGETS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        watch(name, 60 * args.minutes / len(names), args.seed, args.out)


if __name__ == "__main__":
    main()
