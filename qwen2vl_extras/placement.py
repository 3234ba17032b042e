"""Where the weights of a model go: to one device, to several, or a part of them to this process."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwen2vl_extras import distributed, spread

if TYPE_CHECKING:  # names of types only: when this runs, it imports nothing from above
    from qwen2vl import Qwen2VLForConditionalGeneration


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

    def move(self, path: str, tensor: Tensor) -> Tensor:
        """A weight on its own device."""
        return tensor if self.layout is None else tensor.to(self.layout.device_of(path))

    def finish(self, model: "Qwen2VLForConditionalGeneration") -> None:
        """Let a model with such weights run as any other does."""
        if self.part is not None:
            distributed.share(model, self.part)
        if self.layout is not None:
            spread.attach(model, self.layout)
