"""Errors and notes of more than one file, each worded once."""

import difflib
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor


def check_options(
    given: Mapping[str, object],
    known: Collection[str],
    neutral: Mapping[str, Collection[object]],
    what: str,
) -> None:
    """ValueError for the first given option that would be ignored; `what` takes the options.

    known: the options that act. neutral: options of `transformers` that can't act here, each with
    the values that change nothing, which are taken.
    """
    for name, value in given.items():
        if name in neutral:
            # An array is compared element by element, and is none of these values.
            is_array = isinstance(value, (np.ndarray, torch.Tensor))
            if is_array or value not in neutral[name]:
                only = " or ".join(repr(one) for one in neutral[name])
                raise ValueError(f"{what} takes {name}={only} only, not {shorten(value)}")
        elif name not in known:
            raise ValueError(f"{what} has no option {name!r}{suggestion(name, known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the known one most like it, or all."""
    names = list(known)
    similar = difflib.get_close_matches(name, names, n=1)
    if similar:
        return f": did you mean {similar[0]!r}?"
    return f": there are {', '.join(names)}"


def shorten(value: object) -> str:
    """What a value looks like, in one line of at most 99 characters."""
    return " ".join(repr(value).split())[:99]


def note(text: str) -> None:
    """Say something that is no error, in one line: on stderr unless the program logs elsewhere."""
    logging.getLogger("qwen2vl").warning(text)


def raise_not_finite(dtype: torch.dtype, parameters: Iterable[tuple[str, Tensor]]) -> NoReturn:
    """ValueError for logits that hold NaN or infinity; parameters: those of the model, by name."""
    # Only now is every weight looked at: the first damaged one is the cause.
    for name, parameter in parameters:
        if not parameter.isfinite().all():
            raise ValueError(f"logits in {dtype} are not finite: {name} holds NaN or infinity")
    if dtype is torch.float16:
        raise ValueError(f"logits in {dtype} are not finite: load the model in bfloat16 or float32")
    raise ValueError(
        f"logits in {dtype} are not finite, though all weights are: are the pixel values finite?"
    )


def refuse_equal_logits(logits: Tensor, parameters: Iterable[tuple[str, Tensor]]) -> None:
    """ValueError for logits (B, vocabulary) that say nothing because a matrix is all zero.

    parameters: those of the model, by name.
    """
    is_same = logits.amin(-1) == logits.amax(-1)  # (B,)
    if not is_same.any():
        return
    for name, parameter in parameters:
        if parameter.ndim > 1 and not parameter.any():
            raise ValueError(f"all logits are equal: {name} is all zero, the weights are damaged")
