"""The vision transformer: the patches of one image to tokens of the decoder."""

import math

import torch
from torch import Tensor, nn

from benchmarks.costs import vision_operations
from benchmarks.models import Models
from benchmarks.settings import OURS, REFERENCE
from benchmarks.stage import MATRIX_PRODUCTS, Contestant, Run, Stage, time_call

# Above so many patches two layers are timed, and their time is scaled to all.
ALL_LAYERS_UP_TO = {"quick": 1024, "full": 4096}
# Above so many the reference is left out: two layers take it longer than the whole quick set.
REFERENCE_UP_TO = 16384


def square_grid(patches: int) -> Tensor:
    """The most nearly square grid (1, 3) of so many patches whose rows and columns are even."""
    height = math.isqrt(patches)
    while height % 2 == 1 or patches % (2 * height) != 0:
        height -= 1
    return torch.tensor([[1, height, patches // height]])


class Vision:
    """Random pixels of one image, and both towers that encode them."""

    def __init__(self, models: Models, patches: int) -> None:
        v = models.config.vision_config
        values_per_patch = v.in_chans * v.temporal_patch_size * v.patch_size**2
        self.models = models
        self.patches = patches
        self.depth = v.depth
        self.pixels = torch.randn(patches, values_per_patch).to(models.device, models.dtype)
        self.grid = square_grid(patches).to(models.device)
        self.all_layers = patches <= ALL_LAYERS_UP_TO["full" if models.settings.full else "quick"]

    def stage(self) -> Stage:
        operations = vision_operations(self.models.config, self.patches)
        contestants = [Contestant(OURS, self.ours, MATRIX_PRODUCTS, operations)]
        if self.models.has_reference and self.patches <= REFERENCE_UP_TO:
            contestants.append(Contestant(REFERENCE, self.reference, MATRIX_PRODUCTS, operations))
        stage = Stage(f"vision, {self.patches:,} patches", contestants)
        stage.operations = operations * len(contestants)
        if not self.all_layers:
            stage.note = f"2 of {self.depth} layers timed, scaled"
            stage.operations *= 2 / self.depth

        # What takes a minute or more a run is run less often.
        if self.patches > 16384:
            stage.rounds = 1
            stage.warm_up = False
        elif self.patches > 4096 or (self.patches > 1024 and self.all_layers):
            stage.rounds = 2
            stage.warm_up = False
        return stage

    def ours(self) -> Run:
        arguments = (self.pixels, self.grid, self.models.settings.attention)
        return Run(self.time_tower(self.models.ours().visual, arguments))

    def reference(self) -> Run:
        return Run(self.time_tower(self.models.reference().model.visual, (self.pixels, self.grid)))

    def time_tower(self, tower: nn.Module, arguments: tuple) -> float:
        """Seconds of all layers; or what two layers add to a pass without layers, scaled to all."""
        device = self.models.device
        if self.all_layers:
            return time_call(tower, arguments, device)
        layers = tower.blocks
        assert isinstance(layers, nn.ModuleList)
        try:
            tower.blocks = layers[:0]
            outside = time_call(tower, arguments, device)
            tower.blocks = layers[:2]
            with_two = time_call(tower, arguments, device)
        finally:
            tower.blocks = layers
        return outside + (with_two - outside) * len(layers) / 2
