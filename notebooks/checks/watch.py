"""Watch a reader's answer while it runs: what it calls, what it copies, which dtypes it makes.

Some exercises can be passed without doing them: the shipped code, or one call of a library, does
the whole thing. The values are right then, so a checker has to look at the way.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from course import Wrong
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Calls:
    """Notes the names of all functions that are called inside its `with` block.

    A Python function is noted as "file.name" ("processor.decode"), a method of a built-in type as
    "Type.name" ("bytes.decode"), each also by its bare name.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __enter__(self) -> "Calls":
        self.before = sys.getprofile()
        sys.setprofile(self.note)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self.before)

    def note(self, frame: FrameType, event: str, function: Any) -> None:
        """The interpreter calls this whenever a function starts or returns."""
        if event == "call":
            name = frame.f_code.co_name
            owner = Path(frame.f_code.co_filename).stem
        elif event == "c_call":
            name = function.__name__
            owner = type(getattr(function, "__self__", None)).__name__
        else:
            return
        self.names |= {name, f"{owner}.{name}"}


def without_calls(answer: Callable, *forbidden: str) -> Callable:
    """The answer as a function that raises Wrong after a call of something forbidden.

    forbidden: bare names, or "file.name" and "Type.name" as in `Calls`.
    """

    def watched(*args: Any) -> Any:
        with Calls() as calls:
            result = answer(*args)
        used = sorted(calls.names & set(forbidden))
        if used:
            name = used[0].split(".")[-1]
            raise Wrong(f"it calls `{name}`, which is not allowed here: write it out yourself")
        return result

    return watched


class _Mode(TorchDispatchMode):
    """A mode that doesn't import PyTorch's compiler at its first call, which takes seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Copies(_Mode):
    """Notes the largest tensor that is made of some given ones without others, views included.

    What is computed from the first together with the others (a product of queries and keys)
    doesn't count.
    """

    def __init__(self, sources: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        super().__init__()
        self.alive = [*sources, *others]  # kept, so that no id is used twice
        self.of_sources = {id(x) for x in sources}
        self.of_others = {id(x) for x in others}
        self.largest = 0

    def __torch_dispatch__(
        self, operation: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """PyTorch calls this for every operation on tensors."""
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        inputs = {id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.alive += results
        if inputs & self.of_others:
            self.of_others |= {id(x) for x in results}
        elif inputs & self.of_sources:
            self.of_sources |= {id(x) for x in results}
            self.largest = max([self.largest, *(x.numel() for x in results)])
        return result


class Dtypes(_Mode):
    """Notes the dtypes of all tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, operation: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """PyTorch calls this for every operation on tensors."""
        result = operation(*args, **(kwargs or {}))
        self.seen |= {x.dtype for x in tree_leaves(result) if isinstance(x, Tensor)}
        return result


# ---------------------------------------------------------------------------- the form of an answer


def whole_number(found: object, case: str) -> int:
    """`found`, an int; else Wrong. (True is no number.)"""
    if found is None:
        raise Wrong("it returns None: is the `return` missing?")
    if not isinstance(found, int) or isinstance(found, bool):
        kind = type(found).__name__
        raise Wrong(f"{case}: an `int` is wanted, yours gives {found!r:.60}, a {kind}")
    return found


def whole_numbers(found: object, case: str) -> list[int]:
    """`found`, a list of int; else Wrong."""
    if found is None:
        raise Wrong("it returns None: is the `return` missing?")
    if not isinstance(found, list):
        raise Wrong(f"{case}: a list is wanted, yours gives a {type(found).__name__}")
    for number in found:
        whole_number(number, f"{case}, in the list")
    return found


def tensor_like(found: object, right: Tensor, case: str) -> Tensor:
    """`found`, a tensor with the shape and dtype of `right`; else Wrong."""
    if found is None:
        raise Wrong("it returns None: is the `return` missing?")
    if not isinstance(found, Tensor):
        raise Wrong(f"{case}: a tensor is wanted, yours gives a {type(found).__name__}")
    if found.shape != right.shape:
        wanted, given = tuple(right.shape), tuple(found.shape)
        raise Wrong(f"{case}: the shape {wanted} is wanted, yours gives {given}")
    if found.dtype != right.dtype:
        raise Wrong(f"{case}: numbers in {right.dtype} are wanted, yours are in {found.dtype}")
    return found
