"""What this machine can do at best: how fast it reads memory and multiplies matrices."""

import statistics

import torch
from torch import Tensor

from benchmarks.settings import dtype_name
from benchmarks.stage import MATRIX_PRODUCTS, READ_BANDWIDTH, time_call
from qwen2vl_extras import products

LARGEST = 4096  # rows of the matrices that are multiplied


def choose_matrices(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two matrices, as large as a product of half a second allows."""
    rows = 256
    while True:
        a = torch.randn(rows, rows, device=device).to(dtype)
        b = torch.randn(rows, 2 * rows, device=device).to(dtype)
        time_call(torch.matmul, (a, b), device)  # the first call also starts libraries
        seconds = time_call(torch.matmul, (a, b), device)
        if rows == LARGEST or 8 * seconds > 0.5:  # twice the rows take eight times as long
            return a, b
        rows *= 2


class MachineLimits:
    """Measured again and again, since other users of the machine come and go.

    `rates` holds all measurements: bytes a second, and floating-point operations a second. Where a
    CPU can't multiply matrices of the dtype, the latter are those of float32.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        # Far more than any cache of the processor holds: 1 GB, on a GPU 8 GB.
        self.buffer = torch.ones(2**28 if device.type == "cpu" else 2**31, device=device)
        self.note = ""
        if device.type == "cpu" and not products.multiplies(dtype):
            self.note = f" in float32, since this CPU can't multiply {dtype_name(dtype)}"
            dtype = torch.float32
        self.a, self.b = choose_matrices(device, dtype)
        self.rates: dict[str, list[float]] = {READ_BANDWIDTH: [], MATRIX_PRODUCTS: []}

        # The first measurement also pays for libraries that start: it is not kept.
        for limit in self.rates:
            self.measure(limit)
            self.rates[limit].clear()
        for _ in range(3):
            for limit in self.rates:
                self.measure(limit)

    def measure(self, limit: str) -> float:
        """Measure one of the two limits now; the rate is kept and returned."""
        if limit == READ_BANDWIDTH:
            amount = self.buffer.nbytes
            seconds = time_call(torch.sum, (self.buffer,), self.device)
        else:
            amount = 2 * len(self.a) * self.b.numel()  # a multiplication and an addition
            seconds = time_call(torch.matmul, (self.a, self.b), self.device)
        rate = amount / seconds
        self.rates[limit].append(rate)
        return rate

    def median(self, limit: str) -> float:
        """The median of all measurements so far."""
        return statistics.median(self.rates[limit])

    def describe(self) -> str:
        """Both limits: the median, and in brackets the lowest and the highest."""
        return (
            f"reads {self.spread(READ_BANDWIDTH, 1)} GB/s "
            f"and multiplies at {self.spread(MATRIX_PRODUCTS, 0)} GFLOP/s{self.note}"
        )

    def spread(self, limit: str, digits: int) -> str:
        rates = [rate / 1e9 for rate in self.rates[limit]]
        values = (statistics.median(rates), min(rates), max(rates))
        median, lowest, highest = (f"{value:,.{digits}f}" for value in values)
        return f"{median} ({lowest} to {highest})"
