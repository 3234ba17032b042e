"""End to end: four prompts with images in one padded batch, from the images to their new tokens."""

import time

import torch
from PIL import Image
from torch import Tensor

from benchmarks.models import Models
from benchmarks.settings import OURS, REFERENCE
from benchmarks.stage import Contestant, Run, Stage, synchronise
from benchmarks.stages.preprocessing import make_image
from processor import Qwen2VLImageProcessor

NEW_TOKENS = 8
# The sizes (width, height) of the images in each of the four prompts.
IMAGE_SIZES = [[(640, 480)], [(480, 640), (320, 240)], [], [(320, 240)]]
MAX_PIXELS = 1280 * 28 * 28


class EndToEnd:
    """The four prompts, as ids that stand for words: the official shapes have no tokenizer here."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.images: list[Image.Image] = []
        for sizes in IMAGE_SIZES:
            self.images += [make_image(width, height) for width, height in sizes]

    def stage(self) -> Stage:
        contestants = [Contestant(OURS, self.ours)]
        if self.models.has_reference:
            contestants.append(Contestant(REFERENCE, self.reference))
        name = f"batch of 4, {len(self.images)} images, end to end"
        return Stage(name, contestants, note=f"{NEW_TOKENS} new tokens each", rounds=2)

    def ours(self) -> Run:
        model = self.models.ours()
        processor = Qwen2VLImageProcessor(max_pixels=MAX_PIXELS)
        start = time.perf_counter()
        features = processor(self.images)
        input_ids, attention_mask = self.padded_prompts(features["image_grid_thw"])
        model.generate(
            input_ids,
            attention_mask,
            pixel_values=features["pixel_values"].to(self.models.device),
            image_grid_thw=features["image_grid_thw"].to(self.models.device),
            max_new_tokens=NEW_TOKENS,
            eos_token_id=-1,  # no token: none ends early
            temperature=0,
        )
        synchronise(self.models.device)
        return Run(time.perf_counter() - start)

    def reference(self) -> Run:
        assert self.models.transformers is not None
        model = self.models.reference()
        processor = self.models.transformers.Qwen2VLImageProcessor(max_pixels=MAX_PIXELS)
        start = time.perf_counter()
        features = processor(images=self.images, return_tensors="pt")
        input_ids, attention_mask = self.padded_prompts(features["image_grid_thw"])
        model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=features["pixel_values"].to(self.models.device),
            image_grid_thw=features["image_grid_thw"].to(self.models.device),
            max_new_tokens=NEW_TOKENS,
            eos_token_id=-1,
            do_sample=False,
            pad_token_id=0,
        )
        synchronise(self.models.device)
        return Run(time.perf_counter() - start)

    def padded_prompts(self, image_grid_thw: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (4, T), padded on the left, for images with these grids."""
        config = self.models.config
        patches_per_token = config.vision_config.spatial_merge_size**2
        image_tokens = iter((image_grid_thw.prod(-1) // patches_per_token).tolist())
        rows = []
        for sizes in IMAGE_SIZES:
            # Words, then the images, then words.
            row = [config.bos_token_id - 1 - i for i in range(20)]
            for _ in sizes:
                row.append(config.vision_start_token_id)
                row += [config.image_token_id] * next(image_tokens)
                row.append(config.vision_end_token_id)
            row += range(10)
            rows.append(row)

        T = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (T - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.models.device), mask.to(self.models.device)
