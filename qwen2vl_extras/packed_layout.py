"""The published layouts of AWQ and GPTQ: 4-bit and 8-bit codes in words of 32 bits.

  GPTQ  qweight (in / n, out)      a word holds n = 32 / bits codes of an output, for n inputs
        qzeros  (groups, out / n)  the zeros of n outputs, each less one (in version 2 not)
        scales  (groups, out)
        g_idx   (in,)              the group of each input; in any order where desc_act is true
  AWQ   qweight (in, out / 8)      a word holds the codes of an input, for 8 outputs
        qzeros  (groups, out / 8)  in the same order
        scales  (groups, out)

In a word the first code has the lowest bits. AWQ's eight outputs are in the order of AWQ_ORDER.

Sources: AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda.py (pack); GPTQModel,
gptqmodel/utils/model.py (the versions of qzeros); AutoAWQ, awq/modules/linear/gemm.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qwen2vl_extras.packed_config import PackedFormat

WORD_BITS = 32
# The output that each code of an AWQ word belongs to, from the lowest bits on.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
ROWS_AT_ONCE = 512  # outputs that are computed with at a time, so that little memory is needed


@dataclass
class GroupedWeight:
    """A matrix in whole numbers: weight[o, i] = (codes[o, i] - zeros[g, o]) * scales[g, o].

    groups: g of each input i; None if the groups have one size and follow one another.
    """

    codes: Tensor  # (out, in) uint8
    scales: Tensor  # (number of groups, out)
    zeros: Tensor  # (number of groups, out) uint8
    groups: Tensor | None = None  # (in,) int64

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The matrix (out, in), computed in float32 and rounded once."""
        weight = torch.empty(self.codes.shape, dtype=dtype)
        groups = self.groups
        if groups is None:
            size = self.codes.shape[1] // len(self.scales)
            groups = torch.arange(self.codes.shape[1]) // size
        for start in range(0, len(weight), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            zeros = self.zeros[:, rows].float()[groups].T  # (rows, in)
            scales = self.scales[:, rows].float()[groups].T
            weight[rows] = (self.codes[rows].float() - zeros) * scales
        return weight


# ------------------------------------------------------------------------------------- from words


def unpack_pairs(pairs: Tensor) -> Tensor:
    """Bytes (..., n) to the two 4-bit codes of each, (..., 2 n) as uint8, the lower bits first."""
    wide = pairs.to(torch.int16)
    # The lower byte of 16 bits comes first in memory: it gets the lower code, the other the upper.
    return (wide << 4).bitwise_or_(wide).bitwise_and_(0x0F0F).view(torch.uint8)


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """int32 words (...) to their codes (..., 32 / bits) as uint8, the lowest bits first."""
    in_bytes = words.contiguous().unsqueeze(-1).view(torch.uint8)  # (..., 4)
    return in_bytes if bits == 8 else unpack_pairs(in_bytes)


def read_codes(form: PackedFormat, qweight: Tensor) -> Tensor:
    """The codes (out, in) of a matrix."""
    if form.method == "awq":
        in_features, words = qweight.shape
        codes = torch.empty(words, 8, in_features, dtype=torch.uint8)
        for start in range(0, words, ROWS_AT_ONCE // 8):
            some = slice(start, start + ROWS_AT_ONCE // 8)
            part = qweight[:, some].T.contiguous()
            for i, output in enumerate(AWQ_ORDER):
                codes[some, output] = (part >> 4 * i) & 15
        return codes.flatten(0, 1)
    words, out_features = qweight.shape
    in_features = words * WORD_BITS // form.bits
    codes = torch.empty(out_features, in_features, dtype=torch.uint8)
    for start in range(0, out_features, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = unpack_words(qweight[:, rows].T, form.bits)  # (outputs, words, n)
        codes[rows] = part.flatten(1)
    return codes


def read_zeros(form: PackedFormat, qzeros: Tensor) -> Tensor:
    """The zeros (groups, out)."""
    if form.method == "awq":
        return in_order(unpack_words(qzeros, 4)).flatten(1)
    if form.zeros == "word less one":
        return unpack_words(add_to_words(qzeros, ones_in_word(form.bits)), form.bits).flatten(1)
    zeros = unpack_words(qzeros, form.bits).flatten(1)
    if form.zeros == "less one":
        # 0 less one has become the largest code.
        zeros = (zeros + 1).bitwise_and_(2**form.bits - 1)
    return zeros


def in_order(codes: Tensor) -> Tensor:
    """Codes (..., 8) of AWQ words, sorted by output."""
    places = torch.tensor(AWQ_ORDER).argsort()
    return codes[..., places]


def ones_in_word(bits: int) -> int:
    """A word in which every code is 1."""
    return sum(1 << shift for shift in range(0, WORD_BITS, bits))


def add_to_words(words: Tensor, number: int) -> Tensor:
    """Add a number to int32 words; what does not fit into 32 bits is lost, as in C."""
    total = (words.long() + number) & (2**WORD_BITS - 1)
    return as_words(total)


def as_words(numbers: Tensor) -> Tensor:
    """Numbers from 0 to 2^32 - 1 as int32 words with the same bits."""
    is_high = numbers >= 2 ** (WORD_BITS - 1)
    return torch.where(is_high, numbers - 2**WORD_BITS, numbers).to(torch.int32)


# --------------------------------------------------------------------------------------- to words


def pack_pairs(codes: Tensor) -> Tensor:
    """4-bit codes (..., 2 n) as uint8, two to a byte (..., n), the first in the lower bits."""
    wide = codes.flatten().view(torch.int16)
    pairs = (wide >> 4).bitwise_or_(wide).to(torch.uint8)  # the lower byte of the 16 bits
    return pairs.view(*codes.shape[:-1], -1)


def pack_words(codes: Tensor) -> Tensor:
    """4-bit codes (..., 8 n) as uint8, eight to an int32 word (..., n), the first in the lowest."""
    return pack_pairs(codes).view(torch.int32)


def write_codes(codes: Tensor) -> Tensor:
    """4-bit codes (out, in) as GPTQ's qweight (in / 8, out)."""
    out_features, in_features = codes.shape
    words = torch.empty(in_features // 8, out_features, dtype=torch.int32)
    for start in range(0, out_features, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        words[:, rows] = pack_words(codes[rows]).T
    return words


def write_zeros(zeros: Tensor) -> Tensor:
    """4-bit zeros (groups, out) as the qzeros (groups, out / 8) of GPTQ's version 2."""
    return pack_words(zeros)
