"""What is measured, and how: the settings that this program and the processes it starts share."""

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from qwen2vl import ATTENTION_IMPLEMENTATIONS, check_attention_runs, pick_attention

# Children run here, so that `-m benchmarks...` finds this package.
ROOT = Path(__file__).parent.parent
# In the names of contestants; those of the reference start with the second.
OURS = "ours"
REFERENCE = "transformers"


@dataclass(frozen=True)
class Settings:
    """The model, and how it runs. With `full` there are none of the quick set's shortcuts."""

    model: str  # "shape:2b", "shape:7b", "tiny", a folder or a Hub name
    device: torch.device
    dtype: torch.dtype
    attention: str  # one of ATTENTION_IMPLEMENTATIONS
    full: bool
    reference: bool = True  # whether `transformers` is measured as well, where it is installed

    def to_arguments(self) -> list[str]:
        """The command line that gives a child process the same settings."""
        arguments = ["--model", self.model, "--device", str(self.device)]
        arguments += ["--dtype", dtype_name(self.dtype), "--attn", self.attention]
        if self.full:
            arguments.append("--full")
        if not self.reference:
            arguments.append("--no-reference")
        return arguments


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 to "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that make up `Settings`."""
    parser.add_argument(
        "--model",
        default="shape:2b",
        help="shape:2b (default) or shape:7b: the official sizes with random weights, which cost "
        "the same time as trained ones; or tiny, a folder, a name on the Hub",
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        choices=("cpu", "cuda"),
        help="default: cuda where there is one",
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
        help="default: bfloat16",
    )
    parser.add_argument(
        "--attn",
        default="auto",
        choices=("auto", *ATTENTION_IMPLEMENTATIONS),
        help="our attention (default: auto, the fastest); transformers gets the same, or sdpa "
        "instead of chunked",
    )
    parser.add_argument(
        "--no-reference", action="store_true", help="measure this project only, not `transformers`"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--quick",
        action="store_true",
        help="the default: the eight main stages, in under ten minutes on two slow cores. Of the "
        "vision transformer above 1,024 patches two layers are timed and scaled to all; a stage "
        "that runs out of its share of the time gets fewer rounds, or is left out. The table says "
        "where",
    )
    group.add_argument(
        "--full",
        action="store_true",
        help="all stages, vision with all layers up to 4,096 patches, and no limit on the time",
    )


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings that the arguments ask for; ValueError if this machine can't run them."""
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device here")
    attention = pick_attention(args.attn, device, dtype)
    check_attention_runs(attention, device, dtype)

    # Children run in another folder: a relative path must not change its meaning there.
    model = args.model
    if Path(model).is_dir() and model != "tiny":
        model = str(Path(model).resolve())
    return Settings(model, device, dtype, attention, args.full, not args.no_reference)


def is_installed(package: str) -> bool:
    """Whether the package can be found, without importing it."""
    return importlib.util.find_spec(package) is not None
