"""Linear layers whose weights stay in four bits in memory, multiplied by PyTorch's own products.

A weight is (code - 8) * scale + zero, with a scale and a zero for each group of inputs of each
output. PyTorch has one product for CPUs and one for CUDA. `why_not` states what they take;
a layer that they don't take is unpacked when it is read, and a note says so.

PyTorch's product for CPUs wants the codes of some outputs in blocks, and is busy with unpacking
them where there is no AVX-512. Compiled decoding reads them otherwise, as words.py tells, and wants
the codes of each output in a row. A layer holds them in one of these two orders at a time.

The product for CUDA has never run on a GPU here: its shapes are checked, its results are not.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from qwen2vl_extras import products, words
from qwen2vl_extras.packed_layout import ROWS_AT_ONCE, GroupedWeight

KERNEL_GROUPS = (256, 128, 64, 32)  # the sizes of groups that PyTorch's products know
ROWS_MULTIPLE = 16  # outputs come in multiples of this
MIDDLE = 8  # the products take it off every code
MANY_ROWS = 128  # from this many rows of x on, unpacked weights are faster on a CPU
FEW_ROWS = 8  # up to this many are a step of decoding, not a prompt
SHORTEST_GROUP = 64  # whose codes, eight a word, fill a vector of words


# -------------------------------------------------------------------------------- what can be held


def why_not(
    weight_shape: tuple[int, ...], group_size: int, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Why a weight (out, in) with groups of that size can't stay in four bits; None if it can."""
    out_features, in_features = weight_shape
    if out_features % ROWS_MULTIPLE:
        return f"{out_features} outputs are no multiple of {ROWS_MULTIPLE}"
    if kernel_group(group_size) is None:
        return f"groups of {group_size} are no multiple of {KERNEL_GROUPS[-1]}"
    if in_features % group_size:
        return f"groups of {group_size} don't divide {in_features} inputs"
    if device.type == "cuda" and dtype != torch.bfloat16:
        return f"on CUDA the product is in bfloat16, not {dtype}"
    if device.type not in ("cpu", "cuda"):
        return f"{device.type} has no product of four bits here"
    return None


def kernel_group(group_size: int) -> int | None:
    """The largest group that PyTorch knows and that divides `group_size`; None if there is none.

    A larger group is several of these with the same scale and zero.
    """
    for size in KERNEL_GROUPS:
        if group_size % size == 0:
            return size
    return None


def equal_groups(weight: GroupedWeight) -> bool:
    """Whether all groups have the same number of inputs, in whatever order these come."""
    if weight.groups is None:
        return True
    counts = torch.bincount(weight.groups, minlength=len(weight.scales))
    return bool((counts == counts[0]).all())


# ------------------------------------------------------------------------------------- the layer


class Int4Linear(nn.Linear):
    """nn.Linear whose weight is four bits a number, packed as PyTorch's product wants it.

    weight: the packed codes, uint8 (out, in / 2) on a CPU. scales_and_zeros: (groups, out, 2) in
    the dtype of x. order: the input that each column of the packed weight belongs to, (in,), or
    None if they are in turn. is_in_rows: whether both are there in the other order, that of
    compiled decoding: scales_and_zeros is (out, groups, 2) then.
    """

    scales_and_zeros: Tensor
    order: Tensor | None
    is_in_rows = False

    def __init__(
        self,
        weight: GroupedWeight,
        device: torch.device,
        dtype: torch.dtype,
        bias: nn.Parameter | None = None,
    ) -> None:
        out_features, in_features = weight.codes.shape
        super().__init__(in_features, out_features, bias=False, device="meta")
        self.register_parameter("bias", bias)

        # Inputs of one group next to each other.
        codes = weight.codes
        order = None
        if weight.groups is not None:
            order = weight.groups.argsort(stable=True)
            codes = codes[:, order]
            order = order.to(device)
        self.register_buffer("order", order)

        # Larger groups than PyTorch knows are repeated.
        self.checkpoint_group = in_features // len(weight.scales)
        group_size = kernel_group(self.checkpoint_group)
        assert group_size is not None, "why_not has said so"
        self.group_size = group_size
        repeats = self.checkpoint_group // group_size
        scales = weight.scales.float()
        zeros = (MIDDLE - weight.zeros.float()) * scales
        both = torch.stack((scales, zeros), dim=-1).repeat_interleave(repeats, dim=0)
        self.register_buffer("scales_and_zeros", both.to(device, dtype).contiguous())
        self.weight = nn.Parameter(pack(codes, device), requires_grad=False)
        self.parts: Sequence[Blocks | Rows] = []
        if device.type == "cpu":
            self.parts = split_in_blocks(out_features)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.order is not None:
            rows = rows.index_select(1, self.order)
        if self.is_in_rows and len(rows) <= FEW_ROWS and not torch.compiler.is_compiling():
            self.arrange_in_blocks()  # decoding is not compiled any more
        if uses_packed_product(rows) and not self.is_in_rows:
            y = packed_product(rows, self.weight, self.group_size, self.scales_and_zeros)
        else:
            y = unpacked_product(rows, self.weight, self.by_group(), self.parts)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def grouped_weight(self) -> GroupedWeight:
        """The codes, scales and zeros of the checkpoint. ValueError unless they are on the CPU."""
        if self.weight.device.type != "cpu":
            raise ValueError(
                f"four-bit weights on {self.weight.device} can't be saved: load them with "
                "device_map='cpu'"
            )
        codes = unpack_codes(self.weight, self.in_features, self.parts)
        groups = None
        if self.order is not None:
            # Back to the order of the inputs.
            places = self.order.argsort()
            codes = codes[:, places]
            groups = places // self.checkpoint_group
        return GroupedWeight(codes, self.checkpoint_scales(), self.checkpoint_zeros(), groups)

    def by_group(self) -> Tensor:
        """Scales and zeros, (groups, out, 2)."""
        if self.is_in_rows:
            return self.scales_and_zeros.transpose(0, 1)
        return self.scales_and_zeros

    def checkpoint_scales(self) -> Tensor:
        """The scales (groups, out) of the checkpoint's groups."""
        repeats = self.checkpoint_group // self.group_size
        return self.by_group()[::repeats, :, 0]

    def checkpoint_zeros(self) -> Tensor:
        """The zeros (groups, out) of the checkpoint's groups, as uint8."""
        repeats = self.checkpoint_group // self.group_size
        scales, shifts = self.by_group()[::repeats].float().unbind(-1)  # (groups, out)
        # What was rounded are scale and zero times scale: their quotient is near a whole number.
        # Where the scale is 0 every zero is as good.
        quotient = torch.where(scales == 0, 0, shifts / scales)
        return (MIDDLE - quotient).round().to(torch.uint8)

    # ------------------------------------------------------------------- the two orders on a CPU

    def can_be_in_rows(self) -> bool:
        """Whether compiled decoding can read this layer."""
        is_on_cpu = self.weight.device.type == "cpu"
        in_bfloat16 = self.scales_and_zeros.dtype == torch.bfloat16
        return is_on_cpu and in_bfloat16 and self.group_size >= SHORTEST_GROUP

    def arrange_in_rows(self) -> None:
        """The codes of each output one behind the other, for `row_product`."""
        codes = unpack_codes(self.weight, self.in_features, self.parts)
        self.weight.data = codes[:, 0::2] | codes[:, 1::2] << 4
        self.scales_and_zeros = self.scales_and_zeros.transpose(0, 1).contiguous()
        self.parts = split_in_rows(self.out_features)
        self.is_in_rows = True

    def arrange_in_blocks(self) -> None:
        """Back to the order that PyTorch's product wants."""
        codes = unpack_codes(self.weight, self.in_features, self.parts)
        self.weight.data = pack(codes, self.weight.device)
        self.scales_and_zeros = self.by_group().contiguous()
        self.parts = split_in_blocks(self.out_features)
        self.is_in_rows = False

    def row_product(self, x: Tensor) -> Tensor:
        """A single row (in,) times the weight, which is in rows, for the compiler: (out,)."""
        if self.order is not None:
            x = x[self.order]
        return words.int4_row(x, self.weight, self.scales_and_zeros)


def arrange_in_rows(layers: nn.Module) -> None:
    """Let compiled decoding read the four-bit layers that it can read."""
    found = []
    for module in layers.modules():
        if isinstance(module, Int4Linear) and not module.is_in_rows and module.can_be_in_rows():
            found.append(module)
    # One core arranges one layer at a time.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(Int4Linear.arrange_in_rows, found):
            pass  # an error is raised here


def uses_packed_product(rows: Tensor) -> bool:
    """Whether PyTorch's product of four bits is used, or the weight is unpacked a part at a time.

    On a CPU the product is fast in bfloat16 only, and slower for many rows than unpacking.
    """
    if rows.is_cuda:
        return True
    return rows.dtype == torch.bfloat16 and len(rows) < MANY_ROWS


def packed_product(
    rows: Tensor, weight: Tensor, group_size: int, scales_and_zeros: Tensor
) -> Tensor:
    """PyTorch's product: rows (n, in) to (n, out)."""
    if rows.is_cuda:
        return torch.ops.aten._weight_int4pack_mm(rows, weight, group_size, scales_and_zeros)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(
        rows.contiguous(), weight, group_size, scales_and_zeros
    )


# -------------------------------------------------------------------------- PyTorch's packed form


def pack(codes: Tensor, device: torch.device) -> Tensor:
    """Codes (out, in) in the form that the product of this device wants."""
    if device.type == "cuda":
        return pack_for_cuda(codes.to(device))
    packed = torch.empty(codes.shape[0], codes.shape[1] // 2, dtype=torch.uint8)
    # A part is packed like the whole, since it begins where PyTorch begins a block.
    for start in range(0, len(codes), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        packed[rows] = pack_for_cpu(codes[rows])
    return packed


def pack_for_cpu(codes: Tensor) -> Tensor:
    """Codes (out, in) as uint8 (out, in / 2)."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)


def pack_for_cuda(codes: Tensor) -> Tensor:
    """Codes (out, in) as int32 (out / 8, in / (16 k), 32, k / 2): k tiles of 16 inputs together."""
    pairs = codes[:, 0::2] << 4 | codes[:, 1::2]  # two codes a byte, the first in the high half
    tiles = next(k for k in (8, 4, 2) if codes.shape[1] % (16 * k) == 0)
    return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles)


# PyTorch packs blocks of outputs on a CPU: for one input after the other, the codes of all outputs
# of the block, two a byte. How many outputs, and in which order, depends on the vector units.
# Packing the numbers of the outputs tells both.


@dataclass(frozen=True)
class Blocks:
    """Some blocks of equal size that follow one another in a packed weight."""

    start: int  # the first output
    count: int  # of blocks
    rows: Tensor  # (size,) the outputs of a block: those in its bytes' low halves, then the others

    def outputs(self) -> Tensor:
        """The outputs (n,) of all its blocks, in their order there."""
        firsts = self.start + len(self.rows) * torch.arange(self.count)
        return (firsts[:, None] + self.rows).flatten()

    def codes(self, weight: Tensor, in_features: int) -> Tensor:
        """The codes (in, n) of its outputs as uint8."""
        size = len(self.rows)
        begin = self.start * in_features // 2
        end = begin + self.count * size * in_features // 2
        packed = weight.view(-1)[begin:end].view(self.count, in_features, size // 2)
        codes = torch.cat((packed & 15, packed >> 4), dim=-1)  # (count, in, size)
        return codes.transpose(0, 1).reshape(in_features, -1)


def split_in_blocks(out_features: int) -> list[Blocks]:
    """The parts of a packed weight: full blocks, about ROWS_AT_ONCE outputs each, and the rest."""
    size = block_size()
    rows = rows_of_block(size)
    full = out_features // size
    at_once = ROWS_AT_ONCE // size
    parts = []
    for first in range(0, full, at_once):
        parts.append(Blocks(first * size, min(at_once, full - first), rows))
    rest = out_features - full * size
    if rest:
        parts.append(Blocks(full * size, 1, rows_of_block(rest)))
    return parts


def block_size() -> int:
    """How many outputs PyTorch packs together on this CPU."""
    # All codes of the first input are 0, of the second 1: the first bytes are 0.
    codes = torch.tensor([0, 1], dtype=torch.uint8).expand(128, -1)
    packed = pack_for_cpu(codes).flatten()
    return 2 * int(packed.ne(0).int().argmax())


def rows_of_block(size: int) -> Tensor:
    """The order that PyTorch brings the outputs of a block into, as in `Blocks.rows`."""
    numbers = torch.arange(size, dtype=torch.uint8)
    # A code has four bits of a number. The first bytes are those of the first input.
    lower = pack_for_cpu((numbers & 15)[:, None].expand(-1, 2)).flatten()[: size // 2]
    upper = pack_for_cpu((numbers >> 4)[:, None].expand(-1, 2)).flatten()[: size // 2]
    in_low_halves = (lower & 15) | (upper & 15) << 4
    in_high_halves = (lower >> 4) | (upper & 240)
    rows = torch.cat((in_low_halves, in_high_halves))
    assert rows.sort().values.equal(numbers), "PyTorch packs outputs in an unknown way"
    return rows.long()


@dataclass(frozen=True)
class Rows:
    """Some outputs of a weight whose codes are in rows, two a byte, the first in the low half."""

    start: int
    stop: int

    def outputs(self) -> slice:
        """Which they are."""
        return slice(self.start, self.stop)

    def codes(self, weight: Tensor, in_features: int) -> Tensor:
        """The codes (in, n) of its outputs as uint8."""
        packed = weight[self.start : self.stop]
        return torch.stack((packed & 15, packed >> 4), dim=-1).view(-1, in_features).T


def split_in_rows(out_features: int) -> list[Rows]:
    """The parts of a weight in rows: ROWS_AT_ONCE outputs each, the last one fewer."""
    parts = []
    for start in range(0, out_features, ROWS_AT_ONCE):
        parts.append(Rows(start, min(start + ROWS_AT_ONCE, out_features)))
    return parts


def unpack_codes(weight: Tensor, in_features: int, parts: Sequence[Blocks | Rows]) -> Tensor:
    """The codes (out, in) of a weight that is packed for a CPU."""
    codes = torch.empty(len(weight), in_features, dtype=torch.uint8)
    for part in parts:
        codes[part.outputs()] = part.codes(weight, in_features).T
    return codes


def unpacked_product(
    rows: Tensor, weight: Tensor, scales_and_zeros: Tensor, parts: Sequence[Blocks | Rows]
) -> Tensor:
    """rows (n, in) times a weight packed for a CPU, unpacked a part at a time: (n, out)."""
    y = rows.new_empty(len(rows), len(weight))
    dtype = torch.float32 if products.needs_float32(rows) else rows.dtype
    rows = rows.to(dtype)
    for part in parts:
        outputs = part.outputs()
        scales, zeros = scales_and_zeros[:, outputs].to(dtype).unbind(-1)  # (groups, outputs)
        # Whole numbers up to 15 are exact in every dtype.
        steps = part.codes(weight, rows.shape[1]).to(dtype) - MIDDLE
        steps = steps.unflatten(0, (len(scales), -1))  # (groups, size, outputs)
        unpacked = torch.addcmul(zeros[:, None], steps, scales[:, None])
        y[:, outputs] = (rows @ unpacked.flatten(0, 1)).to(y.dtype)
    return y
