"""Errors that more than one file raises, each worded once."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import torch


def refuse_unknown(unknown: Mapping[str, object], function: Callable[..., object]) -> None:
    """ValueError for the first unknown argument, with the known one most like it."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name in unknown:
        raise ValueError(f"{function.__name__} has no argument {name!r}{suggestion(name, known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the known one most like it, or all."""
    names = list(known)
    similar = difflib.get_close_matches(name, names, n=1)
    if similar:
        return f": did you mean {similar[0]!r}?"
    return f": there are {', '.join(names)}"


def raise_not_finite(dtype: torch.dtype) -> NoReturn:
    """ValueError for logits that hold NaN or infinity."""
    if dtype is torch.float16:
        raise ValueError(f"logits in {dtype} are not finite: load the model in bfloat16 or float32")
    raise ValueError(f"logits in {dtype} are not finite: are the weights damaged?")
