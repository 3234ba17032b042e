"""A stage: one job, and the contestants that do it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from benchmarks.settings import REFERENCE

# The machine's two limits, as the table names them.
READ_BANDWIDTH = "read bandwidth"
MATRIX_PRODUCTS = "matrix products"


class Run(NamedTuple):
    """What one run gives."""

    seconds: float
    peak_memory: int | None = None  # bytes, where the run itself measures them


@dataclass
class Contestant:
    """One way to do the stage's job: our code or the reference, with some setting."""

    name: str  # starts with "ours" or "transformers"
    run: Callable[[], Run]
    limit: str | None = None  # which of the machine's limits the job meets
    amount: float = 0  # operations of matrix products, or bytes read, in one run
    variant: str = ""  # contestants are compared within a variant of the job

    def is_reference(self) -> bool:
        return self.name.startswith(REFERENCE)


@dataclass
class Stage:
    """A job that all contestants do in turn."""

    name: str  # as the table prints it
    contestants: list[Contestant]
    note: str = ""
    rounds: int = 3  # counted runs of each contestant
    warm_up: bool = True  # one uncounted run before them
    measure_memory: bool = True  # of each contestant, in a process of its own
    operations: float = (
        0  # of matrix products in one round of all contestants: tells its least time
    )


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(function: Callable, arguments: tuple, device: torch.device) -> float:
    """Seconds that function(*arguments) takes, its work on the device included."""
    start = time.perf_counter()
    function(*arguments)
    synchronise(device)
    return time.perf_counter() - start
