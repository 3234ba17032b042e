"""The names of all stages, and which file builds which."""

from benchmarks.models import Models
from benchmarks.stage import Stage
from benchmarks.stages.batch import BatchOfLines
from benchmarks.stages.chat import ChatTurns
from benchmarks.stages.cold_start import cold_start_stage
from benchmarks.stages.decode import Decode
from benchmarks.stages.end_to_end import EndToEnd
from benchmarks.stages.llama_cpp import LlamaCppDecode, LlamaCppPrefill
from benchmarks.stages.loading import Loading
from benchmarks.stages.prefill import Prefill
from benchmarks.stages.preprocessing import ImagePreprocessing, VideoPreprocessing
from benchmarks.stages.step import OneToken
from benchmarks.stages.vision import Vision

# About how many seconds a stage takes on two cores that multiply at 700 GFLOP/s. Only the
# proportions count: they divide the time there is (budget.py).
QUICK_SECONDS = {
    "cold": 45,
    "load": 75,
    "preprocess-1080p": 25,
    "vision-256": 30,
    "vision-1024": 55,
    "vision-4096": 60,
    "prefill-300": 40,
    "decode-1-300": 180,
}
MORE_SECONDS = {
    "preprocess-4k": 30,
    "preprocess-clip": 40,
    "preprocess-long-clip": 60,
    "vision-16384": 150,
    "vision-65536": 450,
    "prefill-4000": 250,
    "decode-8-300": 270,
    "decode-1-1000": 120,
    "decode-1-2000": 220,
    "mixed": 250,
    "quantized-prefill": 120,
    "quantized-load": 200,
    "batch": 600,
    "chat": 120,
    "step-1-256": 20,
    "step-1-1024": 20,
    "step-1-4096": 25,
    "step-1-16384": 50,
    "step-2-256": 20,
    "step-4-256": 20,
    "step-8-256": 25,
    "step-16-256": 30,
    "llama-prefill": 200,
    "llama-decode": 400,
}
TYPICAL_SECONDS = {**QUICK_SECONDS, **MORE_SECONDS}


def choose_stages(wanted: str | None, full: bool) -> list[str]:
    """The names to run: all of the quick or the full set, or those that `wanted` names.

    wanted: names separated by commas; "decode" or "decode-1" stands for all that begin so.
    ValueError for a name that fits none.
    """
    if wanted is None:
        return list(TYPICAL_SECONDS if full else QUICK_SECONDS)
    beginnings = [name.strip() for name in wanted.split(",")]
    chosen = []
    for name in TYPICAL_SECONDS:
        if any(begins_with(name, beginning) for beginning in beginnings):
            chosen.append(name)
    for beginning in beginnings:
        if not any(begins_with(name, beginning) for name in TYPICAL_SECONDS):
            known = ", ".join(TYPICAL_SECONDS)
            raise ValueError(f"there is no stage {beginning!r}; the stages are {known}")
    return chosen


def begins_with(name: str, beginning: str) -> bool:
    """Whether a stage's name is `beginning`, or that and more parts behind a dash."""
    return name == beginning or name.startswith(beginning + "-")


def make_stage(name: str, models: Models) -> Stage:
    """Build the stage of this name; its inputs are made here, its models when they first run."""
    kind, _, size = name.partition("-")
    if kind == "cold":
        return cold_start_stage(models)
    if kind == "load":
        return Loading(models).stage()
    if name == "quantized-load":
        return Loading(models, quantized=True).stage()
    if name == "quantized-prefill":
        return Prefill(models, tokens=300, quantized=True).stage()
    if kind == "vision":
        return Vision(models, patches=int(size)).stage()
    if kind == "prefill":
        return Prefill(models, tokens=int(size)).stage()
    if kind == "decode":
        batch, context = size.split("-")
        return Decode(models, int(batch), int(context)).stage()
    if name == "llama-prefill":
        return LlamaCppPrefill(models, tokens=300).stage()
    if name == "llama-decode":
        return LlamaCppDecode(models, context=300).stage()
    if kind == "step":
        batch, context = size.split("-")
        return OneToken(models, int(batch), int(context)).stage()
    if kind == "mixed":
        return EndToEnd(models).stage()
    if kind == "chat":
        return ChatTurns(models).stage()
    if kind == "batch":
        return BatchOfLines(models).stage()
    if name == "preprocess-1080p":
        return ImagePreprocessing(models, "1080p", width=1920, height=1080).stage()
    if name == "preprocess-4k":
        return ImagePreprocessing(models, "4K", width=3840, height=2160).stage()
    if name == "preprocess-clip":
        return VideoPreprocessing(models, seconds=60).stage()
    if name == "preprocess-long-clip":
        return VideoPreprocessing(models, seconds=600).stage()
    raise ValueError(f"there is no stage {name!r}")
