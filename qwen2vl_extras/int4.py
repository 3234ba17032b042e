"""Linear layers whose weights stay in four bits in memory.

A weight is (code - 8) * scale + zero, with a scale and a zero for each group of inputs of each
output. On a CPU the codes of each output are in a row. Compiled decoding multiplies by them as they
are (words.py), and for a prompt some outputs at a time are unpacked. A step of decoding that is not
compiled calls PyTorch's product, which wants the codes in blocks: they are brought into that order
when the first such step is asked for.

PyTorch has another product for CUDA. It has never run on a GPU here: its shapes are checked, its
results are not. `why_not` states what the products take; a layer that they don't take is unpacked
when it is read, and a note says so.
"""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn as nn
from torch import Tensor

from qwen2vl_extras import products
from qwen2vl_extras.packed_layout import GroupedWeight, pack_pairs, unpack_pairs

KERNEL_GROUPS = (256, 128, 64, 32)  # the sizes of groups that PyTorch's products know
ROWS_MULTIPLE = 16  # outputs come in multiples of this
MIDDLE = 8  # the products take it off every code
FEW_ROWS = 8  # up to this many rows of x are a step of decoding, not a prompt
MANY_ROWS = 128  # from this many on, weights in blocks are faster unpacked
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
    """nn.Linear whose weight is four bits a number, two numbers to a byte.

    weight: on a CPU uint8 (out, in / 2), in rows or in blocks. scales_and_zeros: in the dtype of x,
    (out, groups, 2) with weights in rows, else (groups, out, 2). order: the input that each column
    of the weight belongs to, (in,), or None if they are in turn.
    """

    scales_and_zeros: Tensor
    order: Tensor | None

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

        self.is_in_rows = device.type == "cpu"
        if self.is_in_rows:
            packed = pack_pairs(codes)
            both = both.transpose(0, 1)
        else:
            packed = pack_for_cuda(codes.to(device))
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales_and_zeros", both.to(device, dtype).contiguous())
        # Whether compiled steps can read the rows in words.
        fills_vectors = group_size >= SHORTEST_GROUP
        self.fits_words = self.is_in_rows and dtype == torch.bfloat16 and fills_vectors

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.order is not None:
            rows = rows.index_select(1, self.order)
        if len(rows) <= FEW_ROWS and not torch.compiler.is_compiling():
            self.arrange_for_steps(compiled=False)
        if self.is_in_rows or (len(rows) >= MANY_ROWS and not rows.is_cuda):
            y = self.unpacked_product(rows)
        else:
            y = packed_product(rows, self.weight, self.group_size, self.scales_and_zeros)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def unpacked_product(self, rows: Tensor) -> Tensor:
        """rows (n, in), in the order of the weight, times the weight: (n, out)."""
        dtype = torch.float32 if products.needs_float32(rows) else rows.dtype
        return products.in_parts(rows, dtype, self.out_features, self.unpack)

    def unpack(self, outputs: slice) -> Tensor:
        """The weights (n, in) of some outputs in float32."""
        codes = self.codes_of(outputs)
        scales, zeros = self.by_output()[outputs].float().unbind(-1)  # (n, groups)
        steps = codes.view(torch.int8).sub_(MIDDLE).float().unflatten(1, (scales.shape[1], -1))
        return steps.mul_(scales.unsqueeze(2)).add_(zeros.unsqueeze(2)).flatten(1)

    def codes_of(self, outputs: slice) -> Tensor:
        """The codes (n, in) of some outputs, on a CPU: uint8. They begin where a block does."""
        packed = self.weight[outputs]
        return unpack_pairs(packed if self.is_in_rows else blocks_to_rows(packed))

    def by_output(self) -> Tensor:
        """Scales and zeros, (out, groups, 2)."""
        return self.scales_and_zeros if self.is_in_rows else self.scales_and_zeros.transpose(0, 1)

    # ------------------------------------------------------------------------------ as it was read

    def grouped_weight(self) -> GroupedWeight:
        """The codes, scales and zeros of the checkpoint. ValueError unless they are on the CPU."""
        if self.weight.device.type != "cpu":
            raise ValueError(
                f"four-bit weights on {self.weight.device} can't be saved: load them with "
                "device_map='cpu'"
            )
        codes = self.codes_of(slice(None))
        groups = None
        if self.order is not None:
            # Back to the order of the inputs.
            places = self.order.argsort()
            codes = codes[:, places]
            groups = places // self.checkpoint_group
        return GroupedWeight(codes, self.checkpoint_scales(), self.checkpoint_zeros(), groups)

    def checkpoint_scales(self) -> Tensor:
        """The scales (groups, out) of the checkpoint's groups."""
        repeats = self.checkpoint_group // self.group_size
        return self.by_output()[:, ::repeats, 0].T

    def checkpoint_zeros(self) -> Tensor:
        """The zeros (groups, out) of the checkpoint's groups, as uint8."""
        repeats = self.checkpoint_group // self.group_size
        scales, shifts = self.by_output()[:, ::repeats].float().unbind(-1)  # (out, groups)
        # What was rounded are scale and zero times scale: their quotient is near a whole number.
        # Where the scale is 0 every zero is as good.
        quotient = torch.where(scales == 0, 0, shifts / scales)
        return (MIDDLE - quotient).round().to(torch.uint8).T

    # ------------------------------------------------------------------- the two orders on a CPU

    def arrange_for_steps(self, compiled: bool) -> None:
        """Bring the codes into the order in which steps of decoding read them.

        Nothing happens on CUDA, where they never are in rows, and in other dtypes than bfloat16, in
        which PyTorch's product is slow: there weights are unpacked for each step.
        """
        in_bfloat16 = self.scales_and_zeros.dtype == torch.bfloat16
        in_rows = compiled and self.fits_words
        if not in_bfloat16 or in_rows == self.is_in_rows:
            return
        rearrange = blocks_to_rows if in_rows else rows_to_blocks
        packed = rearrange(self.weight)
        scales_and_zeros = self.scales_and_zeros.transpose(0, 1).contiguous()
        # All at once, so that an interruption before it leaves the layer whole.
        self.weight.data = packed
        self.scales_and_zeros = scales_and_zeros
        self.is_in_rows = in_rows


def arrange_for_compiled_steps(layers: nn.Module) -> None:
    """Let compiled decoding read all four-bit layers as it does best."""
    for module in layers.modules():
        if isinstance(module, Int4Linear):
            module.arrange_for_steps(compiled=True)


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


def pack_for_cuda(codes: Tensor) -> Tensor:
    """Codes (out, in) as int32 (out / 8, in / (16 k), 32, k / 2): k tiles of 16 inputs together."""
    pairs = codes[:, 0::2] << 4 | codes[:, 1::2]  # two codes a byte, the first in the high half
    tiles = next(k for k in (8, 4, 2) if codes.shape[1] % (16 * k) == 0)
    return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles)


# PyTorch packs blocks of outputs on a CPU: for one input after the other, the codes of all outputs
# of the block, two a byte. How many outputs, and in which order, depends on the vector units.
# Packing the numbers of the outputs tells both.


def pack_for_cpu(codes: Tensor) -> Tensor:
    """Codes (out, in) in blocks, as PyTorch itself packs them: uint8 (out, in / 2)."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)


@cache
def block_size() -> int:
    """How many outputs PyTorch packs together on this CPU."""
    # All codes of the first input are 0, of the second 1: the first bytes are 0.
    codes = torch.tensor([0, 1], dtype=torch.uint8).expand(128, -1)
    packed = pack_for_cpu(codes).flatten()
    return 2 * int(packed.ne(0).int().argmax())


@cache
def order_of_block(size: int) -> Tensor:
    """The outputs (size,) of a block: those in the lower halves of its bytes, then the others."""
    numbers = torch.arange(size, dtype=torch.uint8)
    # A code has four bits of a number. The first bytes are those of the first input.
    lower = pack_for_cpu((numbers & 15)[:, None].expand(-1, 2)).flatten()[: size // 2]
    upper = pack_for_cpu((numbers >> 4)[:, None].expand(-1, 2)).flatten()[: size // 2]
    in_low_halves = (lower & 15) | (upper & 15) << 4
    in_high_halves = (lower >> 4) | (upper & 240)
    order = torch.cat((in_low_halves, in_high_halves))
    assert order.sort().values.equal(numbers), "PyTorch packs outputs in an unknown way"
    return order.long()


def blocks_of(out_features: int) -> Iterator[tuple[slice, Tensor]]:
    """Outputs that are in blocks of one size, and the order in these: full blocks, then the rest.

    Of the full ones, those of products.OUTPUTS_AT_ONCE outputs come at a time.
    """
    size = block_size()
    full = out_features // size * size
    for start in range(0, full, products.OUTPUTS_AT_ONCE):
        yield slice(start, min(start + products.OUTPUTS_AT_ONCE, full)), order_of_block(size)
    if full < out_features:
        yield slice(full, out_features), order_of_block(out_features - full)


def rows_to_blocks(rows: Tensor) -> Tensor:
    """Codes in rows to codes in blocks, both uint8 (out, in / 2)."""
    packed = torch.empty_like(rows)
    for outputs, order in blocks_of(len(rows)):
        blocks = rows[outputs].unflatten(0, (-1, len(order)))  # (blocks, size, in / 2)
        low, high = blocks[:, order].chunk(2, dim=1)  # those in the halves of a block's bytes
        even = low & 15 | high << 4  # bytes of even inputs
        odd = low >> 4 | high & 240
        by_input = torch.stack((even, odd), dim=1).permute(0, 3, 1, 2)  # (blocks, in / 2, 2, bytes)
        packed[outputs] = by_input.reshape(-1, rows.shape[1])
    return packed


def blocks_to_rows(packed: Tensor) -> Tensor:
    """Codes in blocks to codes in rows, both uint8 (out, in / 2)."""
    rows = torch.empty_like(packed)
    for outputs, order in blocks_of(len(packed)):
        by_input = packed[outputs].view(-1, packed.shape[1], 2, len(order) // 2)
        even, odd = by_input.permute(2, 0, 3, 1).contiguous()  # (blocks, bytes, in / 2)
        low = even & 15 | odd << 4  # the rows of outputs in the lower halves of a block's bytes
        high = even >> 4 | odd & 240
        blocks = rows[outputs].unflatten(0, (-1, len(order)))
        blocks[:, order] = torch.cat((low, high), dim=1)
    return rows
