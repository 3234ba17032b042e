"""Each stage's shapes, time and memory while a model runs: what `qwen2vl.py --trace` prints."""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn as nn


@contextlib.contextmanager
def trace_stages(model: nn.Module) -> Iterator[None]:
    """Time the stages of a `Qwen2VLForConditionalGeneration`; at the end, write a table to stderr.

    Milliseconds and calls are summed over a stage's layers and pictures, before the first token (prefill) and
    after it (decode). Weights are the whole stage's, the result is one call's.
    """
    vision, decoder, rows = model.visual, model.model, {}
    stages = {
        "patch embedding": [vision.patch_embed],
        "vision blocks": vision.blocks,
        "merger": [vision.merger],
        "embedding": [decoder.embed_tokens],
        "decoder layers": decoder.layers,
        "head": [model.lm_head],
    }

    def timed(stage: str, weights: int, forward: Callable) -> Callable:
        def run(x: torch.Tensor, *args, **kwargs):
            phase, start = "decode" if ("prefill", "head") in rows else "prefill", time.perf_counter()
            out = forward(x, *args, **kwargs)
            y = out[0] if isinstance(out, tuple) else out
            if y.device.type != "cpu":
                getattr(torch, y.device.type).synchronize()
            calls, ms = rows.get((phase, stage), (0, 0.0))[:2]
            numbers = calls + 1, ms + 1000 * (time.perf_counter() - start), weights / 1e6, y.nbytes / 1e6
            rows[phase, stage] = (*numbers, f"{tuple(x.shape)} -> {tuple(y.shape)}")
            return out

        return run

    for stage, modules in stages.items():
        weights = sum(p.nbytes for module in modules for p in module.parameters())
        for module in modules:
            module.forward = timed(stage, weights, module.forward)  # found before the class's own
    try:
        yield
    finally:
        for module in itertools.chain(*stages.values()):
            del module.forward
    heads = ("phase", "stage", "calls", "ms", "weights MB", "result MB", "shapes of the last call")
    print("{:8}{:16}{:>6}{:>10}{:>12}{:>11}  {}".format(*heads), file=sys.stderr)
    for (phase, stage), (*numbers, shapes) in rows.items():
        print(
            "{:8}{:16}{:6}{:10.1f}{:12.3f}{:11.3f}  {}".format(phase, stage, *numbers, shapes),
            file=sys.stderr,
        )
