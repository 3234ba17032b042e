"""The devices that PyTorch sees here, and how much memory they have left."""

import os
import re
import sys
from pathlib import Path

import torch


def pick_device(device_map: str | torch.device, nbytes: int) -> torch.device:
    """Return the device asked for, if it exists and the weights, `nbytes`, fit in its memory.

    device_map (so called in `transformers`): a device, or "auto" for CUDA, else MPS, else the
    CPU; "cuda" is PyTorch's current device. ValueError for a device that does not exist;
    MemoryError with needed and free gigabytes.
    """
    present = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        present.append("mps")
    present.append("cpu")

    device = str(device_map)
    if device == "auto":
        device = present[0]
    elif device == "cuda" and torch.cuda.device_count():
        device = f"cuda:{torch.cuda.current_device()}"
    elif device == "mps:0":  # there is only one
        device = "mps"
    if device not in present:
        raise ValueError(
            f"device '{device_map!s:.99}' is not there: this PyTorch sees {', '.join(present)}"
        )

    free = available_memory(device)
    if nbytes > free:
        raise MemoryError(
            f"the weights take {nbytes / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free"
        )
    return torch.device(device)


def available_memory(device: str) -> float:
    """Bytes that a device has left; on macOS all that it has, elsewhere infinity if unknown."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # what PyTorch keeps of freed tensors is free as well
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "linux":
        match = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        return 1024 * int(match[1]) if match else float("inf")
    if sys.platform == "darwin":  # MPS uses the memory of the CPU
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float("inf")


def free_cuda_memory(nbytes: int) -> dict[str, float]:
    """Bytes that each CUDA device has left, by its name; of the first alone if `nbytes` fit there.

    To look at a device takes some of its memory.
    """
    free = {}
    for i in range(torch.cuda.device_count()):
        free[f"cuda:{i}"] = available_memory(f"cuda:{i}")
        if nbytes <= free["cuda:0"]:
            break
    return free
