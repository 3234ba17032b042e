"""In which dtype a checkpoint is compared: float32 where the memory holds it, else bfloat16."""

import math

import torch

from load import find_checkpoint, tensor_headers
from qwen2vl_extras.devices import available_memory, pick_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What is kept of a run to be compared, and what a pass takes, for each number of the weights: at
# the shape of the 2B model and 256 tokens of an image 2.6 GB.
BYTES_BESIDE = 1.2


def choose_dtype(
    name: str, asked: str | None, device: str, num_models: int
) -> tuple[torch.dtype, str]:
    """The dtype for so many copies of a checkpoint at one time, and a line that says why.

    asked: "float32", "bfloat16", or None for float32 where the memory holds it. ValueError for
    another dtype or device; MemoryError with both numbers if not even bfloat16 fits.
    """
    if asked is not None and asked not in DTYPES:
        raise ValueError(f"dtype {asked!r:.99} is not one of {', '.join(DTYPES)}")
    pick_device(device, 0)  # a ValueError for a device that is not there
    headers = tensor_headers(find_checkpoint(name)).values()
    numbers = sum(math.prod(header.shape) for header in headers)
    free = available_memory(device)

    def needed(dtype: str) -> float:
        return numbers * (num_models * DTYPES[dtype].itemsize + BYTES_BESIDE)

    chosen = asked
    if chosen is None:
        chosen = "float32" if needed("float32") <= free else "bfloat16"
    if needed(chosen) > free:
        raise MemoryError(
            f"{name} in {chosen} takes {needed(chosen) / 1e9:.1f} GB here, {device} has "
            f"{free / 1e9:.1f} GB free"
        )
    models = "one model" if num_models == 1 else f"{num_models} models"
    numbers_text = (
        f"{models}: {needed('float32') / 1e9:.2f} GB in float32, "
        f"{needed('bfloat16') / 1e9:.2f} GB in bfloat16; {free / 1e9:.1f} GB are free"
    )
    return DTYPES[chosen], f"{chosen} ({numbers_text})"
