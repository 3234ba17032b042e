"""Images and videos that are there several times, so that each is opened and encoded once."""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def first_of_equal(images: Sequence[Tensor], grids: Sequence[list[int]]) -> list[int]:
    """For each image or video the number of the first one with the same patches and grid.

    images: the patches (P, 1176) of each; grids: [t, h, w] of each.
    """
    numbers = list(range(len(images)))
    if len(images) < 2 or images[0].is_meta:  # there are no values to look at
        return numbers
    # Equal images have equal sums, which tells most others apart at the price of one look.
    sums = torch.stack([pixels.sum(dtype=torch.float64) for pixels in images]).tolist()
    candidates: dict[tuple, list[int]] = {}  # different images, by sum and grid
    for i in range(len(images)):
        alike = candidates.setdefault((sums[i], *grids[i]), [])
        equal = [earlier for earlier in alike if torch.equal(images[earlier], images[i])]
        if equal:
            numbers[i] = equal[0]
        else:
            alike.append(i)
    return numbers


def first_of_same(media: Sequence[object]) -> list[int]:
    """For each source or message item the number of the first one that is the same.

    The same object, an equal path, URL or content of a file, or an item with the same entries.
    """
    numbers: list[int] = []
    for i, one in enumerate(media):
        number = i
        for earlier in range(i):
            if is_same(media[earlier], one):
                number = numbers[earlier]
                break
        numbers.append(number)
    return numbers


def is_same(a: object, b: object) -> bool:
    """Whether two sources or items are one; arrays and images are if they are one object."""
    if a is b:
        return True
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    is_plain = isinstance(a, (str, os.PathLike, bytes, int, float))
    return is_plain and type(a) is type(b) and a == b
