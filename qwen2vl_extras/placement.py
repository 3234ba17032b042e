"""Where the weights of a model go: to one device, to several, or a part of them to this process."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwen2vl_extras import distributed, products, spread
from qwen2vl_extras.devices import available_memory, free_cuda_memory, pick_device

if TYPE_CHECKING:  # names of types only: when this runs, it imports nothing from above
    from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration


@dataclass(frozen=True)
class Placement:
    """One device; or with `layout` several, or with `part` one of several processes' devices."""

    device: torch.device  # of inputs and logits
    part: distributed.Part | None = None
    layout: spread.Layout | None = None

    def cut(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Of whole weights (path, tensor) what this process holds."""
        for path, tensor in weights:
            if self.part is not None:
                tensor = self.part.read(path, tensor, tuple(tensor.shape))
            yield path, tensor

    def device_of(self, path: str) -> torch.device:
        """Where the weight of that path, or the layer with its name, is."""
        return self.device if self.layout is None else self.layout.device_of(path)

    def move(self, path: str, tensor: Tensor) -> Tensor:
        """A weight on its own device."""
        return tensor if self.layout is None else tensor.to(self.layout.device_of(path))

    def finish(self, model: "Qwen2VLForConditionalGeneration") -> None:
        """Let a model with such weights run as any other does."""
        if self.part is not None:
            distributed.share(model, self.part)
        else:
            products.widen(model)
        if self.layout is not None:
            spread.attach(model, self.layout)


def choose(
    config: "Qwen2VLConfig",
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    device_map: str | torch.device,
    is_shared: bool,
) -> Placement:
    """Where the weights go. Errors are those of `pick_device`.

    shapes, sizes: shape and bytes of each parameter, by path; is_shared: whether the processes of
    this launch share the model.
    """
    if is_shared:
        part = distributed.find_part(config, device_map)
        held = part.count_bytes(shapes, sizes)
        device = pick_device(part.device, held)
        part.check_memory(held, sizes, available_memory(part.device))
        return Placement(device, part)

    nbytes = sum(sizes.values())
    if device_map == "auto":
        layout = spread.choose_layout(config, sizes, free_cuda_memory(nbytes))
        if layout is not None:
            return Placement(layout.first, layout=layout)
    return Placement(pick_device(device_map, nbytes))
