"""Each stage's shapes, time and memory while a model runs: the table that `--trace` prints.

Hooks on the modules of each stage read the clock before and after a call. Nothing of the model is
replaced, and the hooks are removed at the end, also after an error.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from qwen2vl import Qwen2VLForConditionalGeneration

LINE = "{:8}{:16}{:>6}{:>10}{:>12}{:>11}  {}"  # one line of the table
VISION_STAGES = ("patch embedding", "vision blocks", "merger")
TITLES = ("phase", "stage", "calls", "ms", "weights MB", "result MB", "shapes of the last call")


@dataclass
class Row:
    """What was measured of one stage in one phase."""

    weights: int  # bytes, of all modules of the stage
    calls: int = 0
    seconds: float = 0.0  # all calls together
    result: int = 0  # bytes, of one call's output
    shapes: str = ""  # the last call's input -> output


class Trace:
    """Measures the stages of a model, in the prefill and in decode steps."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, compiled: bool) -> None:
        self.compiled = compiled
        self.device = model.device
        self.phase = "prefill"
        self.started = 0.0  # when the stage that is running began
        self.first_step = 0.0  # seconds, of the first decode step
        self.rows: dict[tuple[str, str], Row] = {}  # by phase and stage
        self.stage_of: dict[nn.Module, str] = {}
        self.weights: dict[str, int] = {}  # bytes, by stage
        self.hooks = []

        # Each module of a stage gets two hooks, one for before and one for after its forward.
        for stage, modules in find_stages(model).items():
            self.weights[stage] = sum(p.nbytes for module in modules for p in module.parameters())
            for module in modules:
                self.stage_of[module] = stage
                self.hooks.append(module.register_forward_pre_hook(self.before))
                self.hooks.append(module.register_forward_hook(self.after))

        # A decode step needs no vision. In one list, a table that head and embedding share counts
        # once.
        text_modules = nn.ModuleList([model.model, model.lm_head])
        self.weights["whole step"] = sum(p.nbytes for p in text_modules.parameters())

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Hook: a stage begins."""
        self.wait()
        self.started = time.perf_counter()

    def after(
        self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> None:
        """Hook: a stage has ended."""
        self.wait()
        seconds = time.perf_counter() - self.started
        # A decoder layer returns its attention weights, too: they come second.
        result = output[0] if isinstance(output, tuple) else output
        stage = self.stage_of[module]
        self.add(stage, seconds, args[0], result)
        if stage == "head":  # the last stage of a pass: every pass after the first is a decode step
            self.phase = "decode"
            if self.compiled:  # before the step is compiled: the compiler must not meet the hooks
                self.remove_hooks()

    def wait(self) -> None:
        """Wait until the device has done all its work: only then does the clock tell its time."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def add(self, stage: str, seconds: float, x: Tensor, y: Tensor) -> None:
        """Count one call that turned x into y."""
        key = (self.phase, stage)
        if key not in self.rows:
            self.rows[key] = Row(self.weights[stage])
        row = self.rows[key]
        row.calls += 1
        row.seconds += seconds
        row.result = y.nbytes
        row.shapes = f"{tuple(x.shape)} -> {tuple(y.shape)}"

    def steps(self, tokens: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pass on the tokens (B,) of `model.stream`, and time each decode step as a whole.

        That is the time from one token to the next: with sampling, without what the caller does
        with a token.
        """
        start = time.perf_counter()
        for i, token in enumerate(tokens):
            self.wait()
            seconds = time.perf_counter() - start
            if i > 0:  # the first token comes from the prefill, not from a decode step
                self.add("whole step", seconds, token, token)  # a token in, a token out
            if i == 1:
                self.first_step = seconds
            yield token
            start = time.perf_counter()

    def remove_hooks(self) -> None:
        """Leave the model as it was; a second call does nothing."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def phase_seconds(self) -> dict[str, float]:
        """Seconds of the vision transformer, of the decoder's prefill, and of all decode steps."""
        seconds = {"vision": 0.0, "prefill": 0.0, "decode": 0.0}
        for (phase, stage), row in self.rows.items():
            if stage in VISION_STAGES:
                seconds["vision"] += row.seconds
            elif phase == "prefill":
                seconds["prefill"] += row.seconds
            elif stage == "whole step":  # whose stages are in it
                seconds["decode"] += row.seconds
        return seconds

    def print_table(self) -> None:
        """Write the table to stderr."""
        # In the order in which the stages were first called.
        print(LINE.format(*TITLES), file=sys.stderr)
        for (phase, stage), row in self.rows.items():
            ms = f"{1000 * row.seconds:.1f}"
            weights = f"{row.weights / 1e6:.3f}"
            result = f"{row.result / 1e6:.3f}"
            line = LINE.format(phase, stage, row.calls, ms, weights, result, row.shapes)
            print(line, file=sys.stderr)
        if self.compiled and self.first_step > 0:
            first = f"the first whole step took {1000 * self.first_step:.1f} ms"
            print(f"{first}, with compiling if it was needed", file=sys.stderr)


def find_stages(model: Qwen2VLForConditionalGeneration) -> dict[str, list[nn.Module]]:
    """The modules of each stage, in the order in which an image passes through them."""
    return {
        "patch embedding": [model.visual.patch_embed],
        "vision blocks": list(model.visual.blocks),
        "merger": [model.visual.merger],
        "embedding": [model.model.embed_tokens],
        "decoder layers": list(model.model.layers),
        "head": [model.lm_head],
    }


@contextlib.contextmanager
def trace_stages(
    model: Qwen2VLForConditionalGeneration, compiled: bool = False, table: bool = True
) -> Iterator[Trace]:
    """Time the stages of a model while it generates; at the end, write a table to stderr.

    Milliseconds and calls are summed over a stage's layers and images, for the pass over the prompt
    (prefill) and for all steps behind it (decode). Weights are the whole stage's, the result is one
    call's. `Trace.steps` adds the time of whole decode steps. compiled: decoding is compiled; such
    a step does not run through the modules, so that only the prefill and whole steps are timed.
    table: whether to write it.
    """
    trace = Trace(model, compiled)
    try:
        yield trace
    finally:
        trace.remove_hooks()
    if table:
        trace.print_table()
