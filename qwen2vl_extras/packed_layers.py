"""The packed layers of a checkpoint: which tensors they have, and reading them one by one.

In place of X.weight such a layer has X.qweight, X.qzeros, X.scales and, of GPTQ, X.g_idx. Layers
that were left out of the quantization, such as those of the vision transformer, have X.weight.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
import torch.nn as nn
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from qwen2vl_extras import packed_layout, tensor_names
from qwen2vl_extras.errors import note
from qwen2vl_extras.int4 import Int4Linear, equal_groups, why_not
from qwen2vl_extras.packed_config import PARTS, PackedFormat, read_format
from qwen2vl_extras.packed_layout import WORD_BITS, GroupedWeight

DTYPES = {
    ".qweight": ("I32",),
    ".qzeros": ("I32",),
    ".scales": ("F16", "BF16", "F32"),
    ".g_idx": ("I32", "I64"),
}


class StoredTensor(Protocol):
    """What the header of a safetensors file says about a tensor."""

    @property
    def file(self) -> Path: ...
    @property
    def stored_name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


def find(
    folder: Path, config: Mapping, found: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> "PackedLayers | None":
    """The packed layers of a folder; None where it has none.

    config: the content of config.json; found: the names of all tensors in the files; shapes: those
    of the model's parameters, by name. ValueError, in one line, where config and files disagree.
    """
    official = {tensor_names.official_name(name) for name in found}
    packed_names = sorted(name for name in official if name.endswith(".qweight"))
    form = read_format(folder, config)
    if form is None:
        if packed_names:
            raise ValueError(
                f"{folder}: the weights are packed ({tensor_names.printable(packed_names[0])}), "
                "but config.json has no quantization_config, which says how"
            )
        return None
    if not packed_names:
        # A file that an older tool wrote may be left over from before the weights were unpacked.
        if not config.get("quantization_config"):
            return None
        raise ValueError(
            f"{form.source} speaks of {form.method!r}, but the weights in {folder} hold no packed "
            "layer (*.qweight)"
        )
    return PackedLayers(folder, form, official, shapes)


class PackedLayers:
    """The packed layers of a folder. See `find` for the arguments; official: names in the files.

    stored_shapes: the shape of each tensor that must be in the files, by name: those of the
    model's parameters, but packed parts where there are any.
    """

    def __init__(
        self,
        folder: Path,
        form: PackedFormat,
        official: Collection[str],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.folder = folder
        self.form = form
        self.shapes: dict[str, tuple[int, ...]] = {}  # (out, in), by layer
        self.stored_shapes = dict(shapes)
        self.headers: dict[str, dict[str, StoredTensor]] = {}  # by layer and part
        self.extra_biases: dict[str, StoredTensor] = {}  # by layer
        for layer in layers_of(official, shapes):
            self.shapes[layer] = self.stored_shapes.pop(f"{layer}.weight")
            self.add_parts(layer, official)

    # ------------------------------------------------------------------- which tensors there are

    def add_parts(self, layer: str, official: Collection[str]) -> None:
        """Add what a packed layer must have to the stored shapes; or may have, if it is there."""
        for part, shape in self.part_shapes(layer, self.shapes[layer]).items():
            # Where the inputs are in turn some tools leave out which group each is in.
            is_needed = part != ".g_idx" or self.form.desc_act
            if is_needed or layer + part in official:
                self.stored_shapes[layer + part] = shape
        # AutoGPTQ writes a bias of zeros to layers that have none.
        bias = f"{layer}.bias"
        if bias in official and bias not in self.stored_shapes:
            self.stored_shapes[bias] = self.shapes[layer][:1]

    def part_shapes(self, layer: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes of a layer's parts."""
        out_features, in_features = shape
        per_word = WORD_BITS // self.form.bits
        group_size = self.form.group_size_of(in_features)
        if in_features % group_size:
            self.refuse_size("group_size", group_size, in_features, "inputs", layer)
        packed_side = out_features if self.form.method == "awq" else in_features
        for size, kind in ((out_features, "outputs"), (packed_side, "numbers in a row")):
            if size % per_word:
                self.refuse_size("32 / bits", per_word, size, kind, layer)
        groups = in_features // group_size
        if self.form.method == "awq":
            return {
                ".qweight": (in_features, out_features // per_word),
                ".qzeros": (groups, out_features // per_word),
                ".scales": (groups, out_features),
            }
        return {
            ".qweight": (in_features // per_word, out_features),
            ".qzeros": (groups, out_features // per_word),
            ".scales": (groups, out_features),
            ".g_idx": (in_features,),
        }

    def refuse_size(self, name: str, value: int, size: int, kind: str, layer: str) -> None:
        raise ValueError(
            f"{self.form.source}: {name} is {value}; it must divide {size}, the {kind} of {layer}"
        )

    def take(
        self, headers: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
    ) -> set[str]:
        """Keep the headers of packed parts; returns the names that are not the model's own.

        shapes: those of the model's parameters. ValueError for a part in a wrong dtype.
        """
        taken = set()
        for name, header in headers.items():
            if name in shapes:
                continue
            layer, _, part = name.rpartition(".")
            if part == "bias":
                self.extra_biases[layer] = header
            else:
                self.check_dtype(name, "." + part, header)
                self.headers.setdefault(layer, {})["." + part] = header
            taken.add(name)
        return taken

    def check_dtype(self, name: str, part: str, header: StoredTensor) -> None:
        """ValueError for a part in a dtype that it can't have."""
        if header.dtype not in DTYPES[part]:
            allowed = " or ".join(DTYPES[part])
            raise ValueError(
                f"{header.file}: {name} is stored in {header.dtype}; it must be {allowed}"
            )

    # ------------------------------------------------------------------------------------ reading

    def stays_packed(self, name: str) -> bool:
        """Whether the weight of this name is in four bits, and kept so where that is possible."""
        return self.form.bits == 4 and name.removesuffix(".weight") in self.shapes

    def read_layers(
        self, model: nn.Module, device_of: Callable[[str], torch.device], dtype: torch.dtype
    ) -> Iterator[tuple[str, nn.Module]]:
        """Read one packed layer after the other; yields its name and what takes its place.

        model: has the layers, without their weights. device_of: where each is to be. Eight bits,
        and what `why_not` names, are unpacked; a note says so at the end.
        """
        unpacked = {}  # why, by layer
        layers = sorted(self.headers, key=lambda layer: str(self.headers[layer][".qweight"].file))
        for layer in tqdm(layers, desc="packed weights", delay=2):
            weight = self.read(layer)
            device = device_of(layer)
            module = model.get_submodule(layer)
            assert isinstance(module, nn.Linear)
            reason = self.reason_to_unpack(layer, weight, device, dtype)
            if reason is None:
                module = Int4Linear(weight, device, dtype, module.bias)
            else:
                unpacked[layer] = reason
                module.weight = nn.Parameter(weight.unpack(dtype).to(device))
            yield layer, module
        self.note_unpacked(unpacked, dtype)

    def reason_to_unpack(
        self, layer: str, weight: GroupedWeight, device: torch.device, dtype: torch.dtype
    ) -> str | None:
        """Why a layer can't stay packed; None if it can."""
        if self.form.bits != 4:
            return f"PyTorch has no product of {self.form.bits} bits with groups"
        if not equal_groups(weight):
            return "its groups have different sizes"
        group_size = self.form.group_size_of(self.shapes[layer][1])
        return why_not(self.shapes[layer], group_size, device, dtype)

    def note_unpacked(self, unpacked: Mapping[str, str], dtype: torch.dtype) -> None:
        """Say once which layers take more memory than their file."""
        if unpacked:
            first = min(unpacked)
            note(
                f"{self.folder}: {len(unpacked)} of {len(self.shapes)} packed layers are unpacked "
                f"to {dtype} while they are read; of {first}, {unpacked[first]}"
            )

    def read(self, layer: str) -> GroupedWeight:
        """The whole numbers of a layer. ValueError for values that no quantization gives."""
        tensors = {part: read_tensor(header) for part, header in self.headers[layer].items()}
        scales = tensors[".scales"]
        if not scales.isfinite().all():
            self.refuse_values(layer, ".scales", "holds NaN or infinity")
        if layer in self.extra_biases and read_tensor(self.extra_biases[layer]).any():
            file = self.extra_biases[layer].file
            raise ValueError(f"{file}: {layer}.bias is not zero, but this layer has no bias")
        groups = self.read_groups(layer, tensors.get(".g_idx"), len(scales))
        codes = packed_layout.read_codes(self.form, tensors[".qweight"])
        zeros = packed_layout.read_zeros(self.form, tensors[".qzeros"])
        return GroupedWeight(codes, scales, zeros, groups)

    def read_groups(self, layer: str, g_idx: Tensor | None, num_groups: int) -> Tensor | None:
        """The group of each input; None if the groups are in turn and of one size."""
        if g_idx is None:
            return None
        groups = g_idx.long()
        if groups.min() < 0 or groups.max() >= num_groups:
            found = f"goes from {int(groups.min())} to {int(groups.max())}"
            self.refuse_values(layer, ".g_idx", f"{found}; it must be 0 to {num_groups - 1}")
        in_turn = torch.arange(len(groups)) // (len(groups) // num_groups)
        return None if groups.equal(in_turn) else groups

    def refuse_values(self, layer: str, part: str, problem: str) -> None:
        file = self.headers[layer][part].file
        raise ValueError(f"{file}: {layer}{part} {problem}: the weights are damaged")


def layers_of(official: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The layers of the model of which these names hold a packed part."""
    layers = set()
    for name in official:
        layer, _, part = name.rpartition(".")
        if "." + part in PARTS and f"{layer}.weight" in shapes:
            layers.add(layer)
    return sorted(layers)


def read_tensor(header: StoredTensor) -> Tensor:
    """A tensor of a file, which is opened for it alone: its memory is given back with it."""
    with safe_open(header.file, framework="pt") as tensors:
        return tensors.get_tensor(header.stored_name)
