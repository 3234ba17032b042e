"""The child process of the hunt: tries cases, and keeps those that reach new lines."""

import hashlib
import pickle
import random
import sys
import time
from pathlib import Path
from types import FrameType

import torch

import load
from tests.fuzz.targets import TARGETS, Target, problem_of

ROOT = Path(load.__file__).parent


class Coverage:
    """The lines of this project that ran, as (file, line)."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        sources = [ROOT / name for name in ("load.py", "processor.py", "qwen2vl.py")]
        sources += (ROOT / "qwen2vl_extras").glob("*.py")
        self.files = {str(path) for path in sources}

    def trace(self, frame: FrameType, event: str, argument: object):
        """For sys.settrace: follow functions of this project only."""
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.trace


def hunt(name: str, seconds: float, seed: int, out: Path) -> None:
    """The child process: try cases until the time is over."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    target = TARGETS[name]()
    corpus = list(target.seeds)
    coverage = Coverage()
    end = time.monotonic() + seconds
    tried = 0
    findings: set[str] = set()
    while time.monotonic() < end:
        if tried < len(target.seeds):
            case = target.seeds[tried]
        else:
            case = target.mutate(rng.choice(corpus), rng)
            if rng.random() < 0.3:
                case = target.mutate(case, rng)
        # If this case kills the process, the parent finds it here.
        (out / f"{name}.running").write_bytes(pickled(case))

        known = len(coverage.lines)
        sys.settrace(coverage.trace)
        problem = run_case(target, case)
        sys.settrace(None)
        tried += 1
        if problem is not None:
            keep(out, name, case, problem, findings)
        elif len(coverage.lines) > known:
            corpus.append(case)
        report = f"{tried} {len(corpus)} {len(coverage.lines)} {len(findings)}"
        (out / f"{name}.report").write_text(report)


def run_case(target: Target, case: object) -> str | None:
    """None, or the problem and where it arose."""
    try:
        return problem_of(target, case)
    except RecursionError:
        return "RecursionError"


def keep(out: Path, name: str, case: object, problem: str, findings: set[str]) -> None:
    """Write a finding, once for each kind of problem."""
    kind = problem[:60]
    if kind in findings:
        return
    findings.add(kind)
    stem = f"{name}-{hashlib.sha256(kind.encode(errors='replace')).hexdigest()[:8]}"
    (out / f"{stem}.case").write_bytes(pickled(case))
    text = f"{problem}\n\n{case!r:.2000}\n"
    (out / f"{stem}.txt").write_text(text, encoding="utf-8", errors="replace")


def pickled(case: object) -> bytes:
    try:
        return pickle.dumps(case)
    except RecursionError:
        return pickle.dumps(repr(type(case)))
