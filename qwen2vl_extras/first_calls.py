"""The first call of PyTorch's sine and cosine, made before several threads make it at once.

On a CPU, PyTorch hands both to Intel's MKL, each thread a part of the tensor. MKL looks for the
kernel of a function at its first call. Where several threads make that call together, one of
them may get a kernel of low accuracy, this once: the rotary tables of a process are then off by
up to 1.5e-4, and the next ones are right (pytorch issue 188792; seen here on a processor with
AMX in one process of ten). A call with a single number stays on one thread.
"""

import torch


def settle() -> None:
    """Call both with one number, which settles the kernels of this process."""
    one = torch.ones(1)
    one.cos()
    one.sin()
