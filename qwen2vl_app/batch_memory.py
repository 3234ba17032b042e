"""How much memory a batch takes beside the weights: an estimate from shapes, before it runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qwen2vl import Qwen2VLForConditionalGeneration

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class RowSize:
    """What the memory of a row depends on."""

    tokens: int  # of the prompt
    new_tokens: int  # at most
    patches: int  # of all images and videos
    largest_media: int  # patches of the largest image or video
    largest_frame: int  # patches of its frames


class MemoryEstimate:
    """Bytes that batches of one model take."""

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        config = model.config
        vision = config.vision_config
        self.itemsize = model.dtype.itemsize
        self.is_eager = model.attn_implementation == "eager"
        self.heads = config.num_attention_heads
        self.vision_heads = vision.num_heads

        # Values that are there at the same time, by what there is one of each for.
        kv_size = config.num_key_value_heads * config.head_dim
        self.cached_values = 2 * config.num_hidden_layers * kv_size  # of a token, in all layers
        # Of a token in one layer: the MLP's gate, its SiLU, up and their product; x, q, k, v.
        self.token_values = 4 * config.intermediate_size + 6 * config.hidden_size
        # Of a patch in one layer: the MLP's two products; x, qkv, q and k in float32.
        inner = int(vision.embed_dim * vision.mlp_ratio)
        self.patch_values = 3 * inner + 12 * vision.embed_dim
        self.pixel_values = vision.in_chans * vision.temporal_patch_size * vision.patch_size**2
        # The scores of the next token, in float32: sorted, summed up, and drawn from.
        self.vocabulary_bytes = 8 * config.vocab_size * FLOAT32

    def pixels(self, row: RowSize) -> int:
        """Bytes of the patches of a row that is prepared and waits."""
        return row.patches * self.pixel_values * FLOAT32

    def batch(self, rows: Sequence[RowSize]) -> int:
        """Bytes that it takes to answer these rows together."""
        # Every row is as long as the longest.
        tokens = max(row.tokens for row in rows)
        new_tokens = max(row.new_tokens for row in rows)
        cache = (tokens + new_tokens) * self.cached_values * self.itemsize
        # The mask (T, S) of a row, in booleans and in floats; eager has scores of each head, too.
        scores = tokens**2 * (2 + FLOAT32)
        if self.is_eager:
            scores += 3 * self.heads * tokens**2 * FLOAT32
        activations = tokens * self.token_values * self.itemsize
        row_bytes = cache + scores + activations + self.vocabulary_bytes

        # The patches of all rows once more in one tensor; images are encoded one after another.
        pixels = sum(self.pixels(row) for row in rows)
        vision = max(self.vision(row) for row in rows)
        return len(rows) * row_bytes + pixels + vision

    def vision(self, row: RowSize) -> int:
        """Bytes in the vision transformer, for the largest image or video of a row."""
        size = row.largest_media * self.patch_values * max(self.itemsize, FLOAT32)
        if self.is_eager:
            frames = math.ceil(row.largest_media / max(1, row.largest_frame))
            size += 3 * frames * self.vision_heads * row.largest_frame**2 * FLOAT32
        return size
