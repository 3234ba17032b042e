"""What the tests share: `--full`, measured figures, the official texts, the embedded checkpoint."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import load
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration

# The order of sums depends on the number of threads, so it is the same on every machine.
torch.set_num_threads(min(2, os.cpu_count() or 1))


# ----------------------------------------------------------------------- how many cases are tried


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "try all cases that the tables of PROOFS.md speak of, not a sample of them"
    parser.addoption("--full", action="store_true", help=help)


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`amount(sample, full)`: how many cases to try, by default or with --full."""
    is_full = request.config.getoption("--full")

    def choose(sample: int, full: int) -> int:
        return full if is_full else sample

    return choose


# ------------------------------------------------------------------------------- measured figures

FIGURES: dict[str, list[float]] = {}


@pytest.fixture(scope="session")
def figure() -> Callable[[str, float], float]:
    """`figure(claim, value)`: note a measured value, which the end of the run lists; return it."""

    def note(claim: str, value: float) -> float:
        FIGURES.setdefault(claim, []).append(value)
        return value

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("measured figures: lowest, highest, how many")
    for claim, values in sorted(FIGURES.items()):
        line = f"{claim:64} {min(values):10.3g} {max(values):10.3g} {len(values):7}"
        terminalreporter.line(line)


# ----------------------------------------------------------------------------- the official texts


@pytest.fixture(scope="session")
def official_texts() -> Path | None:
    """The folder of the official JSON files that QWEN2VL_OFFICIAL names; None if it is not set."""
    folder = os.environ.get("QWEN2VL_OFFICIAL")
    return Path(folder) if folder else None


@pytest.fixture(scope="session")
def official(official_texts: Path | None) -> Path:
    """The same folder for tests that can't do without; they are skipped if it is not set."""
    if official_texts is None:
        pytest.skip("QWEN2VL_OFFICIAL is not set: it names a folder with the official JSON files")
    return official_texts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that the variable changes, so that these can be run alone."""
    for item in items:
        if "official_texts" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.official_texts)


# ------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="session")
def tiny() -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """The embedded model on the CPU, and its processor."""
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="cpu")
    return model, Qwen2VLProcessor.from_pretrained("tiny")


@pytest.fixture(scope="session")
def checkpoint_2b(official: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with random weights in the 2B shape and the official texts, and its weights'
    bytes.
    """
    folder = tmp_path_factory.mktemp("2b")
    if shutil.disk_usage(folder).free < 12e9:
        pytest.skip("less than 12 GB of disk are free")
    for file in official.glob("*.json"):
        if not file.name.startswith("config-"):
            shutil.copy(file, folder / file.name)
    config = json.loads((official / "config-2b.json").read_text(encoding="utf-8"))

    # Random weights under the right names and in the right shapes.
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, p in model.named_parameters():
        mean = 1.0 if "norm" in name else 0.0
        std = p[0].numel() ** -0.5 if p.ndim > 1 else 0.1
        values = torch.empty(p.shape, dtype=torch.bfloat16)
        tensors[name] = values.normal_(mean, std, generator=generator)

    load.save_checkpoint(folder, config, tensors, max_shard_size="2GB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder, sum(tensor.nbytes for tensor in tensors.values())
