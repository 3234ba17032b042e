"""What the tests share: `--full`, the folder of the official texts, the embedded checkpoint."""

import os
from pathlib import Path

import pytest
import torch

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration

# One thread more or less changes the order of sums, and the tests run beside others: keep it fixed.
torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the whole figures of README's table, not a sample")


@pytest.fixture(scope="session")
def amount(request):
    """`amount(sample, full)`: how many cases to try, by default or with --full."""
    return lambda sample, full: full if request.config.getoption("--full") else sample


FIGURES: dict[str, list[float]] = {}


@pytest.fixture(scope="session")
def figure():
    """`figure(claim, value)`: notes a measured value, which the end of the run lists; returns it."""

    def note(claim: str, value: float) -> float:
        FIGURES.setdefault(claim, []).append(value)
        return value

    return note


def pytest_terminal_summary(terminalreporter):
    if FIGURES:
        terminalreporter.section("figures measured: least, most, how many")
    for claim, values in sorted(FIGURES.items()):
        terminalreporter.line(f"{claim:64} {min(values):10.3g} {max(values):10.3g} {len(values):7}")


@pytest.fixture(scope="session")
def official() -> Path:
    """The folder of the official configs, tokenizer and chat template, named by QWEN2VL_OFFICIAL."""
    folder = os.environ.get("QWEN2VL_OFFICIAL")
    if not folder:
        pytest.skip("QWEN2VL_OFFICIAL is not set: it names a folder with the official configs and tokenizer")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny() -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """The embedded model on the CPU, and its processor."""
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="cpu")
    return model, Qwen2VLProcessor.from_pretrained("tiny")
