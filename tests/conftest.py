"""What the tests share: `--full`, the folder of the official texts, the embedded checkpoint."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import load
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration

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


@pytest.fixture(scope="session")
def checkpoint_2b(official, tmp_path_factory) -> tuple[Path, int]:
    """A folder with random weights in the 2B shape and the official texts, and the bytes of the weights."""
    folder = tmp_path_factory.mktemp("2b")
    if shutil.disk_usage(folder).free < 12e9:
        pytest.skip("less than 12 GB of disk are free")
    for file in official.glob("*.json"):
        if not file.name.startswith("config-"):
            shutil.copy(file, folder / file.name)
    config = json.loads((official / "config-2b.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, p in model.named_parameters():
        values = torch.empty(p.shape, dtype=torch.bfloat16)
        std = p[0].numel() ** -0.5 if p.ndim > 1 else 0.1
        tensors[name] = values.normal_(1.0 if "norm" in name else 0.0, std, generator=generator)
    load.save_checkpoint(folder, config, tensors, max_shard_size="2GB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder, sum(tensor.nbytes for tensor in tensors.values())
