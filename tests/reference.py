"""Random small models, ours and the reference's with the same weights, and random inputs for both.

The reference is transformers 4.57.6. Weights have standard deviation 1/sqrt(fan_in) and biases are not zero:
at the reference's own 0.02 a small model hardly reacts to positions, and comparing logits proves little.
"""

import copy
import random
from dataclasses import dataclass

import torch
import transformers

from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration

assert transformers.__version__ == "4.57.6", (
    f"the oracle is transformers 4.57.6, not {transformers.__version__}"
)

TOLERANCE = 1e-5  # max |ours - reference| / max |reference|, float32
KINDS = ("text", "picture", "pictures", "video", "mixed batch")


def random_config(seed: int, tied: bool = False) -> dict:
    """A flat config.json of a small model with shapes drawn at random."""
    rng = random.Random(seed)
    K, group = rng.choice([(1, 2), (2, 1), (2, 2), (2, 3)])
    half = rng.choice([8, 16])  # of the head size
    time = rng.randint(1, half - 2)
    row = rng.randint(1, half - time - 1)
    vision_heads, vision_d = rng.choice([1, 2, 3]), rng.choice([8, 16, 20])
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


def random_pair(seed: int, tied: bool = False, attn: str = "sdpa"):
    """(ours, reference) with the same random weights, in float32."""
    config = random_config(seed, tied)
    theirs = transformers.Qwen2VLForConditionalGeneration(reference_config(config)).eval()
    theirs.set_attn_implementation("eager" if attn == "blocks" else attn)  # blocks: eager, in parts
    generator = torch.Generator().manual_seed(seed)
    for p in theirs.parameters():
        values = torch.randn(p.shape, generator=generator)
        p.data = values * p[0].numel() ** -0.5 if p.ndim > 1 else 1 + 0.3 * values  # norms and biases alike
    ours = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config), attn).eval()
    ours.load_state_dict(official_names(theirs.state_dict()))
    return ours, theirs


def reference_config(config: dict) -> transformers.Qwen2VLConfig:
    """The reference's config from a flat official one, copied since the reference writes into it."""
    return transformers.Qwen2VLConfig(**copy.deepcopy(config))


def official_names(state: dict) -> dict:
    """The reference's state_dict under the official checkpoints' names."""
    renamed = {"model.visual.": "visual.", "model.language_model.": "model."}
    for theirs, official in renamed.items():
        state = {
            official + k.removeprefix(theirs) if k.startswith(theirs) else k: v for k, v in state.items()
        }
    return state


@dataclass
class Row:
    """One prompt and the grids of its pictures and videos."""

    ids: list[int]
    images: list[list[int]]
    videos: list[list[int]]


def random_row(rng: random.Random, config: Qwen2VLConfig, media: list[str], longest: int = 4) -> Row:
    """Text, and between it the media in the given order, each between its markers; clips to t = `longest`."""
    row = Row([], [], [])

    def text(least: int) -> None:
        row.ids.extend(rng.randrange(config.bos_token_id) for _ in range(rng.randint(least, 9)))

    text(2)
    for kind in media:
        h, w = 2 * rng.randint(1, 4), 2 * rng.randint(1, 4)
        t = rng.randint(1, longest) if kind == "video" else 1
        token = config.video_token_id if kind == "video" else config.image_token_id
        row.ids += [config.vision_start_token_id, *[token] * (t * h * w // 4), config.vision_end_token_id]
        (row.videos if kind == "video" else row.images).append([t, h, w])
        text(0)
    text(1)
    return row


def random_rows(rng: random.Random, config: Qwen2VLConfig, kind: str) -> list[Row]:
    """The prompts of one batch of the given kind."""
    media = {
        "text": [[]],
        "picture": [["image"]],
        "pictures": [["image"] * rng.randint(2, 3)],
        "video": [["video"]],
        "mixed batch": [["image"], [], ["video", "image"], ["image", "image", "video"]],
    }
    return [random_row(rng, config, one) for one in media[kind]]


def collate(rows: list[Row], config: Qwen2VLConfig, seed: int) -> dict[str, torch.Tensor]:
    """Rows as a left-padded batch, with pixel values drawn for their grids."""
    T = max(len(row.ids) for row in rows)
    inputs = {
        "input_ids": torch.tensor([[config.bos_token_id] * (T - len(row.ids)) + row.ids for row in rows]),
        "attention_mask": torch.tensor([[0] * (T - len(row.ids)) + [1] * len(row.ids) for row in rows]),
    }
    generator = torch.Generator().manual_seed(seed)
    for key, grid_key, grids in (
        ("pixel_values", "image_grid_thw", [grid for row in rows for grid in row.images]),
        ("pixel_values_videos", "video_grid_thw", [grid for row in rows for grid in row.videos]),
    ):
        if grids:
            inputs[grid_key] = torch.tensor(grids)
            inputs[key] = torch.randn(int(inputs[grid_key].prod(-1).sum()), 1176, generator=generator)
    return inputs


def rows_alone(rows: list[Row], inputs: dict, config: Qwen2VLConfig) -> list[dict[str, torch.Tensor]]:
    """The rows of a batch as batches of one, with the pixel values that they have in it."""
    alone, at = [], {"pixel_values": 0, "pixel_values_videos": 0}
    for row in rows:
        one = collate([row], config, 0)
        for key, grids in (("pixel_values", row.images), ("pixel_values_videos", row.videos)):
            n = sum(t * h * w for t, h, w in grids)
            if n:
                one[key] = inputs[key][at[key] : at[key] + n]
            at[key] += n
        alone.append(one)
    return alone


def random_inputs(config: Qwen2VLConfig, kind: str, seed: int) -> dict[str, torch.Tensor]:
    """Model inputs of the given kind."""
    return collate(random_rows(random.Random(seed), config, kind), config, seed)


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """max |difference| / max |reference|."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()
