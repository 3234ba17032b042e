"""How the notebooks measure time and memory."""

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def seconds() -> float:
    """A clock that waits until the GPU, where there is one, has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have returned and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0

    def freed(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, operation: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """PyTorch calls this for every operation on tensors."""
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        inputs = {storage_id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            # A view of an input, or an input changed in place, brings no memory of its own.
            if isinstance(x, Tensor) and storage_id(x) not in inputs:
                storage = x.untyped_storage()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                # The finalizer runs when the storage is freed, but not at the program's end.
                weakref.finalize(storage, self.freed, storage.nbytes()).atexit = False
        return result


def storage_id(x: Tensor) -> int:
    """The same number for all tensors that share their memory."""
    return x.untyped_storage()._cdata


def peak_memory(run: Callable[[], object]) -> float:
    """Megabytes of tensors that run() holds at most at one time, beyond what was there before."""
    with LiveMemory() as memory:
        run()
    return memory.peak / 1e6


def time_modules(modules: dict[str, nn.Module], run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds spent in each module, by name, while run() runs."""
    names = {module: name for name, module in modules.items()}
    spent = dict.fromkeys(modules, 0.0)
    starts: dict[nn.Module, float] = {}

    def before(module: nn.Module, args: tuple) -> None:
        starts[module] = seconds()

    def after(module: nn.Module, args: tuple, result: object) -> None:
        spent[names[module]] += 1000 * (seconds() - starts[module])

    hooks = []
    for module in modules.values():
        hooks.append(module.register_forward_pre_hook(before))
        hooks.append(module.register_forward_hook(after))
    run()
    for hook in hooks:
        hook.remove()
    return spent
