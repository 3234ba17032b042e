"""Which weights of a model are in 8 or 4 bits: those that its checkpoint packs, and int8 and int4.

Each weight is rounded as soon as it is read, some rows at a time, so that no second copy of it is
needed.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn as nn
from torch import Tensor

from qwen2vl_extras.errors import note
from qwen2vl_extras.int4 import MIDDLE, ROWS_MULTIPLE, Int4Linear, why_not
from qwen2vl_extras.int8 import quantize
from qwen2vl_extras.packed_layers import PackedLayers, StoredTensor
from qwen2vl_extras.packed_layout import ROWS_AT_ONCE, GroupedWeight

# The linear layers of the decoder. With int4 the vision transformer keeps its dtype, as in the
# official four-bit checkpoints.
DECODER = "model.layers."
# The matrices of tokens, which are int8 where the decoder is int4.
TOKENS = ("model.embed_tokens.weight", "lm_head.weight")
GROUPS = (128, 64, 32)  # sizes of groups, the first that fits all layers counts
LARGEST_CODE = 15

Header = TypeVar("Header", bound=StoredTensor)


class Quantization:
    """Which weights of a model are in 8 or 4 bits, and how they get there.

    shapes: those of the model's parameters, by name. int8: all matrices of linear layers and the
    embedding. int4: the decoder's linear layers, and the matrices of tokens in int8. A layer that
    can't be int4 keeps its dtype, and a note says so. packed: the layers that the checkpoint has
    packed, which stay as they are.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        int8: bool,
        int4: bool,
        packed: PackedLayers | None = None,
    ) -> None:
        if int8 and int4:
            raise ValueError("int8 and int4 are both asked for; take one")
        self.shapes = shapes
        self.int8 = int8
        self.int4 = int4
        self.packed = packed
        self.group_size = 0
        self.left_out: set[str] = set()
        if int4:
            self.choose_group(shapes)

    # --------------------------------------------------------------------- before anything is read

    def refuse_adapter(self, adapter: Path) -> None:
        """ValueError for an adapter of packed weights: no change can be added to these exactly."""
        if self.packed is not None:
            raise ValueError(
                f"{adapter} can't be merged into {self.packed.folder}, whose weights are packed "
                f"({self.packed.form.source}): give the unquantized model as base= (--base), and "
                "int4 to round the result"
            )

    def refuse_processes(self) -> None:
        """ValueError where weights can't be divided among processes: those hold floats only."""
        for name, is_asked in (("int8", self.int8), ("int4", self.int4)):
            if is_asked:
                raise ValueError(
                    f"{name} does not go with several processes: they hold floats only"
                )
        if self.packed is not None:
            raise ValueError(
                f"{self.packed.folder}: packed weights ({self.packed.form.source}) do not go with "
                "several processes: they hold floats only"
            )

    def stored_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor that must be in the files, by name."""
        return self.shapes if self.packed is None else self.packed.stored_shapes

    def take_packed(self, headers: Mapping[str, Header]) -> dict[str, Header]:
        """The headers of the model's own parameters; those of packed layers are kept here."""
        if self.packed is None:
            return dict(headers)
        taken = self.packed.take(headers, self.shapes)
        return {name: header for name, header in headers.items() if name not in taken}

    def choose_group(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Groups of 128, or of 64 or 32 where these divide the inputs of more layers."""
        candidates = {}
        for name, shape in shapes.items():
            if name.startswith(DECODER) and len(shape) == 2 and not self.is_packed(name):
                candidates[name] = shape
        if not candidates:
            return
        fewest = len(candidates) + 1
        reasons: dict[str, str] = {}
        for size in GROUPS:
            found = reasons_against(candidates, size)
            if len(found) < fewest:
                fewest = len(found)
                reasons = found
                self.group_size = size
        self.left_out = set(reasons)
        if self.group_size != GROUPS[0]:
            note(f"int4: groups of {self.group_size}, since {GROUPS[0]} don't divide all inputs")
        if reasons:
            first = min(reasons)
            note(f"int4: {fewest} weights keep their dtype; of {first}, {reasons[first]}")

    def is_packed(self, name: str) -> bool:
        """Whether the checkpoint itself has this weight in four bits."""
        return self.packed is not None and self.packed.stays_packed(name)

    def pick_dtype(
        self, wanted: str | torch.dtype, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """The dtype that the model runs in; `dtype` is what was wanted, "auto" resolved.

        A checkpoint in float16 with weights in four or eight bits runs in bfloat16 unless the
        caller has named a dtype. ValueError for int4 where there is no product of four bits.
        """
        is_quantized = self.int4 or self.packed is not None
        if is_quantized and wanted == "auto" and dtype == torch.float16:
            note(f"a quantized checkpoint in {dtype} runs in bfloat16, in which its products are")
            dtype = torch.bfloat16
        if self.int4 and self.group_size:
            reason = why_not((ROWS_MULTIPLE, self.group_size), self.group_size, device, dtype)
            if reason is not None:
                raise ValueError(f"int4 can't run: {reason}; bfloat16 on cpu or cuda can")
        return dtype

    def bits(self, name: str, shape: tuple[int, ...]) -> int:
        """Bits of a weight after rounding: 8 or 4, or 0 for one that is not rounded."""
        if self.is_packed(name):
            return 0
        is_matrix = len(shape) == 2 and name.endswith(".weight")
        if self.int8 and is_matrix:
            return 8
        if self.int4 and name in TOKENS:
            return 8
        if self.int4 and is_matrix and name.startswith(DECODER) and name not in self.left_out:
            return 4
        return 0

    def sizes(self, dtype: torch.dtype) -> dict[str, int]:
        """Bytes of each parameter in memory by its name, scales left aside."""
        sizes = {}
        for name, shape in self.shapes.items():
            bits = 4 if self.is_packed(name) else self.bits(name, shape)
            sizes[name] = math.prod(shape) * (bits or 8 * dtype.itemsize) // 8
        return sizes

    # -------------------------------------------------------------------------- while it is read

    def round_layer(self, model: nn.Module, path: str) -> None:
        """Let a rounded layer take the place of the one whose weight, at `path`, was just read.

        Nothing happens where that parameter is not to be rounded. ValueError for NaN.
        """
        layer, _, name = path.rpartition(".")
        if name == "weight":
            # A bias may come before the weight, and is taken over by the new layer, or after it,
            # and is set on that.
            model.set_submodule(layer, self.rounded(path, model.get_submodule(layer)))

    def read_packed(
        self, model: nn.Module, device_of: Callable[[str], torch.device], dtype: torch.dtype
    ) -> None:
        """Read the packed layers, one by one, and let them take the places of the model's own.

        device_of: tells where the layer of that name is to be.
        """
        if self.packed is None:
            return
        for layer, module in self.packed.read_layers(model, device_of, dtype):
            # What had to be unpacked may have to be rounded.
            model.set_submodule(layer, self.rounded(f"{layer}.weight", module))

    def rounded(self, name: str, module: nn.Module) -> nn.Module:
        """A layer, whose weight is called `name`, rounded if it is to be; or the layer itself."""
        weight = module.weight
        if not isinstance(weight, Tensor) or not isinstance(module, nn.Linear | nn.Embedding):
            return module
        bits = self.bits(name, tuple(weight.shape))
        if bits == 8:
            return quantize(module)
        if bits == 4 and isinstance(module, nn.Linear):
            rounded = round_to_groups(name, weight.detach(), self.group_size)
            return Int4Linear(rounded, weight.device, weight.dtype, module.bias)
        return module


def reasons_against(shapes: Mapping[str, tuple[int, ...]], group_size: int) -> dict[str, str]:
    """Why weights can't be in four bits with groups of that size, by name."""
    reasons = {}
    for name, shape in shapes.items():
        reason = why_not(shape, group_size, torch.device("cpu"), torch.bfloat16)
        if reason is not None:
            reasons[name] = reason
    return reasons


def round_to_groups(name: str, weight: Tensor, group_size: int) -> GroupedWeight:
    """Round a matrix (out, in) to the nearest of 16 values in each group of `group_size` inputs.

    The values are -8 to 7 times a scale. The number of the largest magnitude becomes -8, so the
    scale is negative where that number is positive, as in llama.cpp's Q4_0; of two such numbers
    the negative one. All zeros are 8, which every reader of GPTQ's layout knows as symmetric.
    """
    out_features, in_features = weight.shape
    num_groups = in_features // group_size
    codes = torch.empty(out_features, in_features, dtype=torch.int8)
    scales = torch.empty(num_groups, out_features, dtype=torch.float16)
    wide = torch.empty(min(ROWS_AT_ONCE, out_features), num_groups, group_size)
    for start in range(0, out_features, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        groups = wide[: len(weight[rows])]
        groups.copy_(weight[rows].unflatten(1, (num_groups, group_size)))
        highest, lowest = groups.amax(2), groups.amin(2)  # (rows, groups)
        scale = torch.where(highest > -lowest, highest, lowest) / -MIDDLE
        # As it will be stored, so that codes are the nearest to what it really is.
        scale = scale.to(weight.dtype).to(torch.float16)
        if not scale.isfinite().all():
            raise ValueError(f"{name} holds NaN, infinity or numbers too large for int4")
        # Where the scale is 0 all numbers are 0 or next to it, and so are the codes less 8.
        divisor = scale.float().masked_fill_(scale == 0, 1)
        steps = groups.div_(divisor.unsqueeze(2)).round_().to(torch.int8)
        codes[rows] = steps.add_(MIDDLE).clamp_(0, LARGEST_CODE).flatten(1)
        scales[:, rows] = scale.T
    zeros = torch.full_like(scales, MIDDLE, dtype=torch.uint8)
    return GroupedWeight(codes.view(torch.uint8), scales, zeros)
