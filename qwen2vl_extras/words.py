"""A row times a matrix whose weights have 16, 8 or 4 bits, for the compiler, on a CPU.

A core that turns weights of few bits into floats one by one is busy with that, and the memory
waits. Here a matrix is read in words of 32 bits, each of which holds several weights that follow
one another. The first weights of many words are cut out at once and multiplied by the inputs that
belong to them, then the second ones, and so on.

This is fast only when it is compiled. As it stands here, it makes tensors as large as the matrix.
"""

import math

import torch
from torch import Tensor

from qwen2vl_extras.packed_layout import WORD_BITS

# The compiler adds up more than this many terms in a careful, slow way.
MAX_TERMS = 4096


def fit(matrix: Tensor) -> bool:
    """Whether the rows of a matrix (out, ...) are whole words; its memory has to begin with one."""
    return matrix.is_contiguous() and matrix.shape[1] * matrix.itemsize * 8 % WORD_BITS == 0


def bfloat16_row(x: Tensor, weight: Tensor) -> Tensor:
    """A row (D,) times a matrix (out, D) in bfloat16, summed in float32: (out,)."""
    first, second = in_turn(x, 2)
    words = in_words(weight)
    # A bfloat16 is the upper half of a float32.
    lower = (words << 16).view(torch.float32)
    upper = (words & -(1 << 16)).view(torch.float32)
    return add_up(lower * first + upper * second)


def int8_row(x: Tensor, weight: Tensor) -> Tensor:
    """A row (D,) times a matrix (out, D) in int8, summed in float32: (out,)."""
    # A byte is taken as the uppermost of its word, which has the sign: 2^24 times as much.
    inputs = in_turn(x.float() / 2**24, 4)
    words = in_words(weight)
    uppermost = -(1 << 24)
    terms = (words & uppermost).float() * inputs[3]
    for j in range(3):
        byte = (words << (24 - 8 * j)) & uppermost
        terms = terms + byte.float() * inputs[j]
    return add_up(terms)


def int4_row(x: Tensor, codes: Tensor, scales_and_zeros: Tensor) -> Tensor:
    """A row (D,) times a matrix in four bits, summed in float32: (out,).

    codes: uint8 (out, D / 2), the code of an even input in the lower half of a byte, that of the
    next one in the upper half. scales_and_zeros: bfloat16 (out, groups, 2); a weight is
    (code - 8) * scale + zero.
    """
    groups = scales_and_zeros.shape[1]
    # The j-th code of a word is left where it is, and is 16^j times as much. The last one is moved
    # to the lower end, since the uppermost bit is a sign.
    factors = [16.0**-j for j in range(7)] + [1.0]
    inputs = in_turn(x, 8, factors).view(8, groups, -1)  # (8, groups, words of a group)
    sums = in_turn(x.float().view(-1, 8).sum(1), 1).view(groups, -1)  # of the inputs of each word

    words = in_words(codes).unflatten(1, (groups, -1))
    pair = in_words(scales_and_zeros.flatten(1)).unsqueeze(-1)  # (out, groups, 1)
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


def in_words(matrix: Tensor) -> Tensor:
    """A matrix (out, ...) as whole numbers of 32 bits, (out, words).

    They are read as floats first: of these the compiler loads a whole vector at once.
    """
    return matrix.view(torch.float32).view(torch.int32)


def add_up(terms: Tensor) -> Tensor:
    """The sums (out,) of terms (out, n), in pieces of equal size, each at most MAX_TERMS long."""
    pieces = math.ceil(terms.shape[1] / MAX_TERMS)
    while terms.shape[1] % pieces:
        pieces += 1
    return terms.unflatten(1, (pieces, -1)).sum(-1).sum(-1)
