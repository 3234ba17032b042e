"""A model on several CUDA devices of one process: whole layers, one device after the other.

This is what device_map="auto" does with weights that don't fit on one device, as the `accelerate`
library does. Only one device computes at a time, so it makes room, not speed: for that several
processes share a model (distributed.py).

The decoder layers are spread. All else, the vision transformer, the embedding and the head, is on
the first device, where inputs and logits are. Between two devices only the hidden states of the
new tokens travel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen2vl_extras.checks import check_integer
from qwen2vl_extras.errors import note

if TYPE_CHECKING:  # names of types only: when this runs, it imports nothing from above
    from qwen2vl import (
        AttentionMask,
        KVCache,
        LayerCache,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
    )

LAYER = "model.layers."  # how the paths of the decoder layers' parameters begin


# -------------------------------------------------------------------------------- which layer where


def fill(rest: int, layers: list[int], room: list[float]) -> list[int] | None:
    """The device of each layer, if all layers find room in this order; else None.

    rest: bytes of what must be on the first device; layers: bytes of each layer; room: bytes on
    each device. The first layer is on the first device as well.
    """
    devices: list[int] = []
    device = 0
    left = room[0] - rest
    for size in layers:
        while size > left:
            device += 1
            if device == len(room) or not devices:
                return None
            left = room[device]
        devices.append(device)
        left -= size
    return devices


def place_layers(rest: int, layers: list[int], free: list[float]) -> list[int]:
    """The device of each layer, so that all devices are about equally full.

    Arguments as in `fill`. MemoryError, with both numbers, if the devices are too small.
    """
    # The smallest part of each device's memory in which everything finds room.
    for percent in range(1, 101):
        devices = fill(rest, layers, [size * percent / 100 for size in free])
        if devices is not None:
            return devices
    total = rest + sum(layers)
    raise MemoryError(
        f"the weights take {total / 1e9:.1f} GB, and whole layers of them don't fit in the "
        f"{sum(free) / 1e9:.1f} GB that {len(free)} CUDA devices have free; none goes to the CPU, "
        "from where a GPU would have to fetch it for each token"
    )


@dataclass(frozen=True)
class Layout:
    """Which device each decoder layer is on. All else is on the first layer's device."""

    config: "Qwen2VLConfig"
    devices: list[torch.device]  # of each layer

    @property
    def first(self) -> torch.device:
        return self.devices[0]

    def device_of(self, path: str) -> torch.device:
        """The device of a parameter, say of "model.layers.3.mlp.up_proj.weight"."""
        if not path.startswith(LAYER):
            return self.first
        number = path.removeprefix(LAYER).partition(".")[0]
        return self.devices[int(number)]

    def make_cache(self, batch: int, capacity: int, dtype: torch.dtype) -> "KVCache":
        """A cache for this model, which serves as a KVCache."""
        return cast("KVCache", SpreadCache(self.config, batch, capacity, self.devices, dtype))


def choose_layout(
    config: "Qwen2VLConfig", sizes: Mapping[str, int], free: Mapping[str, float]
) -> Layout | None:
    """Where the layers go; None if the whole model goes to one device.

    sizes: bytes of each parameter, by path; free: bytes on each CUDA device, by its name.
    MemoryError if not even all devices together have room.
    """
    total = sum(sizes.values())
    names = list(free)
    if len(free) < 2 or total <= free[names[0]]:
        return None

    layers = [0] * config.num_hidden_layers
    for path, size in sizes.items():
        if path.startswith(LAYER):
            layers[int(path.removeprefix(LAYER).partition(".")[0])] += size
    rest = total - sum(layers)
    numbers = place_layers(rest, layers, list(free.values()))
    devices = [torch.device(names[number]) for number in numbers]
    used = ", ".join(str(device) for device in dict.fromkeys(devices))
    note(f"the weights take {total / 1e9:.1f} GB: the layers are spread over {used}")
    return Layout(config, devices)


# --------------------------------------------------------------------------------------- running it


def attach(model: "Qwen2VLForConditionalGeneration", layout: Layout) -> None:
    """Let a model whose layers are on several devices run as any other does."""
    for layer, device in zip(model.model.layers, layout.devices, strict=True):
        layer.register_forward_pre_hook(MoveToLayer(device))
    model.model.norm.register_forward_pre_hook(MoveBack(layout.first))
    model.layout = layout


class MoveToLayer:
    """A hook that brings what a DecoderLayer gets to the layer's device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, layer: nn.Module, arguments: tuple) -> tuple:
        """The arguments of DecoderLayer.forward, moved."""
        x, cos, sin, mask, implementation, cache = arguments
        return (
            x.to(self.device),
            cos.to(self.device),
            sin.to(self.device),
            self.move_mask(mask),
            implementation,
            cache,
        )

    def move_mask(self, mask: "AttentionMask") -> "AttentionMask":
        padding = mask.key_padding_mask
        if padding is None:  # then there is nothing to move
            return mask
        assert mask.dense is not None
        return replace(
            mask, key_padding_mask=padding.to(self.device), dense=mask.dense.to(self.device)
        )


class MoveBack:
    """A hook that brings the last hidden states to the first device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, norm: nn.Module, arguments: tuple) -> tuple:
        (x,) = arguments
        return (x.to(self.device),)


class SpreadCache:
    """A KVCache whose layers are on several devices, with the same use."""

    def __init__(
        self,
        config: "Qwen2VLConfig",
        batch: int,
        capacity: int,
        devices: list[torch.device],
        dtype: torch.dtype,
    ) -> None:
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        self.layer_keys = []  # of each layer, (B, K, capacity, d)
        self.layer_values = []
        for device in devices:
            self.layer_keys.append(torch.empty(shape, device=device, dtype=dtype))
            self.layer_values.append(torch.empty(shape, device=device, dtype=dtype))
        self.capacity = capacity
        self.length = 0

    @property
    def keys(self) -> Tensor:
        """The first layer's keys in place of each layer's: what checks of shapes look at."""
        return self.layer_keys[0].expand(len(self.layer_keys), -1, -1, -1, -1)

    def crop(self, length: int) -> None:
        """Forget all tokens but the first `length`: the next ones are written over the others."""
        check_integer("length", length, 0, self.length)
        self.length = length

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens, if there is less; what the cache holds stays."""
        missing = capacity - self.capacity
        if missing <= 0:
            return
        for i in range(len(self.layer_keys)):
            self.layer_keys[i] = F.pad(self.layer_keys[i], (0, 0, 0, missing))
            self.layer_values[i] = F.pad(self.layer_values[i], (0, 0, 0, missing))
        self.capacity = capacity

    def layer(self, index: int) -> "LayerCache":
        """The part of the cache that decoder layer `index` reads and writes."""
        return cast("LayerCache", SpreadLayer(self, index))


@dataclass(frozen=True)
class SpreadLayer:
    """One layer's part of a SpreadCache, as LayerCache is of a KVCache."""

    cache: SpreadCache
    index: int

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, K, T, d); return all keys and values so far (B, K, S, d)."""
        start = self.cache.length
        end = start + k.shape[2]
        if end > self.cache.capacity:
            raise ValueError(f"the cache holds {self.cache.capacity} tokens, {end} are needed")
        keys = self.cache.layer_keys[self.index]
        values = self.cache.layer_values[self.index]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return keys[:, :, :end], values[:, :, :end]
