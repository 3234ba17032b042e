"""Random small models, ours and the reference's with the same weights, and random inputs for
both.

The reference is transformers 4.57.6. Weights have standard deviation 1/sqrt(fan_in), and biases
are not zero: with the 0.02 that the reference itself initialises with, a small model hardly
reacts to positions, and comparing logits proves little.
"""

import copy
import random
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration

assert transformers.__version__ == "4.57.6", (
    f"the reference is transformers 4.57.6, not {transformers.__version__}"
)

TOLERANCE = 1e-5  # max |ours - reference| / max |reference|, float32
KINDS = ("text", "image", "images", "video", "mixed batch")


# ----------------------------------------------------------------------------------------- models


def random_config(seed: int, tied: bool = False) -> dict:
    """A flat config.json of a small model with shapes drawn at random."""
    rng = random.Random(seed)
    K, group = rng.choice([(1, 2), (2, 1), (2, 2), (2, 3)])
    half = rng.choice([8, 16])  # of the head size
    time = rng.randint(1, half - 2)
    row = rng.randint(1, half - time - 1)
    vision_heads = rng.choice([1, 2, 3])
    vision_d = rng.choice([8, 16, 20])
    vocabulary = rng.randint(60, 200)
    D = K * group * half * 2
    return {
        "model_type": "qwen2_vl",
        "vocab_size": vocabulary,
        "hidden_size": D,
        "intermediate_size": rng.randint(20, 90),
        "num_hidden_layers": rng.randint(2, 4),
        "num_attention_heads": K * group,
        "num_key_value_heads": K,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": rng.choice([100.0, 10_000.0, 1e6]),
        "rope_scaling": {"type": "mrope", "mrope_section": [time, row, half - time - row]},
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "bos_token_id": vocabulary - 6,
        "eos_token_id": vocabulary - 5,
        "vision_start_token_id": vocabulary - 4,
        "vision_end_token_id": vocabulary - 3,
        "image_token_id": vocabulary - 2,
        "video_token_id": vocabulary - 1,
        "vision_config": {
            "depth": rng.randint(1, 3),
            "embed_dim": vision_heads * vision_d,
            "num_heads": vision_heads,
            "mlp_ratio": rng.choice([2, 4]),
            "in_chans": 3,
            "hidden_size": D,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def random_pair(
    seed: int, tied: bool = False, attn: str = "sdpa"
) -> tuple[Qwen2VLForConditionalGeneration, transformers.Qwen2VLForConditionalGeneration]:
    """(ours, reference) with the same random weights, in float32."""
    config = random_config(seed, tied)
    theirs = transformers.Qwen2VLForConditionalGeneration(reference_config(config)).eval()
    # The reference has no chunked attention, which computes what eager does.
    theirs.set_attn_implementation("eager" if attn == "chunked" else attn)

    fill_randomly(theirs, seed)
    ours = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config), attn).eval()
    ours.load_state_dict(official_names(theirs.state_dict()))
    return ours, theirs


def fill_randomly(model: torch.nn.Module, seed: int) -> None:
    """Draw all weights of a model: matrices of std 1/sqrt(fan_in), vectors around 1."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        values = torch.randn(p.shape, generator=generator)
        if p.ndim > 1:
            fan_in = p[0].numel()
            p.data = values * fan_in**-0.5
        else:  # norms and biases alike
            p.data = 1 + 0.3 * values


def reference_config(config: dict) -> transformers.Qwen2VLConfig:
    """The reference's config from a flat official one: of a copy, since it writes into it."""
    return transformers.Qwen2VLConfig(**copy.deepcopy(config))


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's state_dict under the names of the official checkpoints."""
    official = {}
    for name, tensor in state.items():
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        official[name] = tensor
    return official


# ----------------------------------------------------------------------------------------- inputs


@dataclass
class Row:
    """One prompt, and the grids of its images and videos."""

    ids: list[int]
    images: list[list[int]]
    videos: list[list[int]]


def random_row(
    rng: random.Random, config: Qwen2VLConfig, media: list[str], longest: int = 4
) -> Row:
    """Text and, in this order, the `media`, each between its markers; videos of t up to
    `longest`.
    """
    row = Row([], [], [])

    def add_text(least: int) -> None:
        for _ in range(rng.randint(least, 9)):
            row.ids.append(rng.randrange(config.bos_token_id))

    add_text(2)
    for kind in media:
        h = 2 * rng.randint(1, 4)
        w = 2 * rng.randint(1, 4)
        if kind == "video":
            t = rng.randint(1, longest)
            placeholder = config.video_token_id
            row.videos.append([t, h, w])
        else:
            t = 1
            placeholder = config.image_token_id
            row.images.append([t, h, w])
        row.ids.append(config.vision_start_token_id)
        row.ids.extend([placeholder] * (t * h * w // 4))
        row.ids.append(config.vision_end_token_id)
        add_text(0)
    add_text(1)
    return row


def random_rows(rng: random.Random, config: Qwen2VLConfig, kind: str) -> list[Row]:
    """The prompts of one batch of the given kind."""
    media = {
        "text": [[]],
        "image": [["image"]],
        "images": [["image"] * rng.randint(2, 3)],
        "video": [["video"]],
        "mixed batch": [["image"], [], ["video", "image"], ["image", "image", "video"]],
    }
    return [random_row(rng, config, one) for one in media[kind]]


def collate(rows: list[Row], config: Qwen2VLConfig, seed: int) -> dict[str, Tensor]:
    """Rows as a batch that is padded on the left, with pixel values drawn for their grids."""
    length = max(len(row.ids) for row in rows)
    input_ids, attention_mask = [], []
    for row in rows:
        missing = length - len(row.ids)
        input_ids.append([config.bos_token_id] * missing + row.ids)
        attention_mask.append([0] * missing + [1] * len(row.ids))
    inputs = {"input_ids": torch.tensor(input_ids), "attention_mask": torch.tensor(attention_mask)}

    images = [grid for row in rows for grid in row.images]
    videos = [grid for row in rows for grid in row.videos]
    generator = torch.Generator().manual_seed(seed)
    if images:
        inputs["image_grid_thw"] = torch.tensor(images)
        inputs["pixel_values"] = random_patches(images, generator)
    if videos:
        inputs["video_grid_thw"] = torch.tensor(videos)
        inputs["pixel_values_videos"] = random_patches(videos, generator)
    return inputs


def random_patches(grids: list[list[int]], generator: torch.Generator) -> Tensor:
    """Patches (patches of all grids, 1176) of noise."""
    return torch.randn(count_patches(grids), 1176, generator=generator)


def count_patches(grids: list[list[int]]) -> int:
    return sum(t * h * w for t, h, w in grids)


def rows_alone(
    rows: list[Row], inputs: dict[str, Tensor], config: Qwen2VLConfig
) -> list[dict[str, Tensor]]:
    """The rows of a batch as batches of one, with the pixel values that they have in it."""
    alone = []
    images_start = 0
    videos_start = 0
    for row in rows:
        one = collate([row], config, 0)
        images_end = images_start + count_patches(row.images)
        videos_end = videos_start + count_patches(row.videos)
        if row.images:
            one["pixel_values"] = inputs["pixel_values"][images_start:images_end]
        if row.videos:
            one["pixel_values_videos"] = inputs["pixel_values_videos"][videos_start:videos_end]
        images_start = images_end
        videos_start = videos_end
        alone.append(one)
    return alone


def random_inputs(config: Qwen2VLConfig, kind: str, seed: int) -> dict[str, Tensor]:
    """Model inputs of the given kind, one of KINDS."""
    return collate(random_rows(random.Random(seed), config, kind), config, seed)


# ----------------------------------------------------------------------------------------- errors


def error(ours: Tensor, reference: Tensor) -> float:
    """max |difference| / max |reference|."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()
