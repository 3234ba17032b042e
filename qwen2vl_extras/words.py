"""A row times a matrix whose weights have 16, 8 or 4 bits, for the compiler, on a CPU.

A core that turns weights of few bits into floats one by one is busy with that, and the memory
waits. Here a matrix is read in words of 32 bits, each of which holds several weights that follow
one another. The first weights of many words are cut out at once and multiplied by the inputs that
belong to them, then the second ones, and so on.

This is fast only when it is compiled. As it stands here, it makes tensors as large as the matrix.
"""

import math
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from qwen2vl_extras.int4 import Int4Linear
from qwen2vl_extras.packed_layout import WORD_BITS

# The compiler adds up more than this many terms in a careful, slow way.
MAX_TERMS = 4096


class Words(NamedTuple):
    """The weight of a linear layer in words of 32 bits, for a single row.

    They are read as floats: of these the compiler loads a whole vector at once. weight: (out,
    words) float32. pairs: of weights in four bits the scale and the zero of each group as a word,
    (out, groups) float32. order: the input of each column, (in,), where they are not in turn.
    """

    bits: int  # of a weight: 16, 8 or 4
    weight: Tensor
    pairs: Tensor | None = None
    order: Tensor | None = None


def words_of(layer: nn.Linear) -> Words | None:
    """The weight of a layer in words, in the same memory; None for one that is not read so.

    Of weights in int8 it leaves out the scales.
    """
    weight = layer.weight.detach()
    if weight.device.type != "cpu":
        return None
    if isinstance(layer, Int4Linear):
        if not layer.is_in_rows or not layer.fits_words:
            return None
        pairs = layer.scales_and_zeros.flatten(1).view(torch.float32)
        return Words(4, weight.view(torch.float32), pairs, layer.order)
    bits = {torch.bfloat16: 16, torch.int8: 8}.get(weight.dtype)
    if bits is None or not is_whole_words(weight):
        return None
    return Words(bits, weight.view(torch.float32))


def is_whole_words(matrix: Tensor) -> bool:
    """Whether a matrix (out, ...) begins with a word, and its rows end with one."""
    ends_in_a_word = matrix.shape[1] * matrix.itemsize * 8 % WORD_BITS == 0
    begins_in_a_word = matrix.storage_offset() * matrix.itemsize * 8 % WORD_BITS == 0
    return matrix.is_contiguous() and ends_in_a_word and begins_in_a_word


def row_product(x: Tensor, matrix: Words) -> Tensor:
    """A row (in,) times a matrix in words, summed in float32: (out,)."""
    if matrix.order is not None:
        x = x[matrix.order]
    if matrix.bits == 16:
        return bfloat16_row(x, matrix.weight)
    if matrix.bits == 8:
        return int8_row(x, matrix.weight)
    assert matrix.pairs is not None
    return int4_row(x, matrix.weight, matrix.pairs)


def bfloat16_row(x: Tensor, weight: Tensor) -> Tensor:
    """A row (D,) times a matrix in bfloat16, (out, D / 2) words: (out,)."""
    first, second = in_turn(x, 2)
    words = weight.view(torch.int32)
    # A bfloat16 is the upper half of a float32.
    lower = (words << 16).view(torch.float32)
    upper = (words & -(1 << 16)).view(torch.float32)
    return add_up(lower * first + upper * second)


def int8_row(x: Tensor, weight: Tensor) -> Tensor:
    """A row (D,) times a matrix in int8, (out, D / 4) words: (out,)."""
    # A byte is taken as the uppermost of its word, which has the sign: 2^24 times as much.
    inputs = in_turn(x.float() / 2**24, 4)
    words = weight.view(torch.int32)
    uppermost = -(1 << 24)
    terms = (words & uppermost).float() * inputs[3]
    for j in range(3):
        byte = (words << (24 - 8 * j)) & uppermost
        terms = terms + byte.float() * inputs[j]
    return add_up(terms)


def int4_row(x: Tensor, codes: Tensor, pairs: Tensor) -> Tensor:
    """A row (D,) times a matrix in four bits: (out,).

    codes: (out, D / 8) words, in each of which the code of the first input has the lowest bits.
    pairs: (out, groups) words, with a scale and a zero in bfloat16; a weight is
    (code - 8) * scale + zero.
    """
    groups = pairs.shape[1]
    # The j-th code of a word is left where it is, and is 16^j times as much. The last one is moved
    # to the lower end, since the uppermost bit is a sign.
    factors = [16.0**-j for j in range(7)] + [1.0]
    inputs = in_turn(x, 8, factors).view(8, groups, -1)  # (8, groups, words of a group)
    sums = in_turn(x.float().view(-1, 8).sum(1), 1).view(groups, -1)  # of the inputs of each word

    words = codes.view(torch.int32).unflatten(1, (groups, -1))
    pair = pairs.view(torch.int32).unsqueeze(-1)  # (out, groups, 1)
    scale = (pair << 16).view(torch.float32)
    zero = (pair & -(1 << 16)).view(torch.float32)
    # Two sums, so that none of them waits for long: of the lower codes and of the upper ones.
    lower = -8 * sums
    for j in range(4):
        lower = lower + (words & (15 << 4 * j)).float() * inputs[j]
    upper = ((words >> 28) & 15).float() * inputs[7]
    for j in range(4, 7):
        upper = upper + (words & (15 << 4 * j)).float() * inputs[j]
    return (lower * scale + zero * sums).sum((1, 2)) + (upper * scale).sum((1, 2))


def in_turn(x: Tensor, count: int, factors: list[float] | None = None) -> Tensor:
    """x (D,) in float32 as (count, D / count): in row j each count-th number from the j-th on.

    factors: of each row. On a CPU the compiler writes what torch.cat gives into memory, so that
    these numbers lie one behind the other where they are multiplied.
    """
    rows = []
    for j in range(count):
        row = x[j::count].float()
        rows.append(row if factors is None else row * factors[j])
    return torch.cat(rows).view(count, -1)


def add_up(terms: Tensor) -> Tensor:
    """The sums (out,) of terms (out, n), in pieces of equal size, each at most MAX_TERMS long."""
    pieces = math.ceil(terms.shape[1] / MAX_TERMS)
    while terms.shape[1] % pieces:
        pieces += 1
    return terms.unflatten(1, (pieces, -1)).sum(-1).sum(-1)
