"""The sizes of the official checkpoints, so that they can be timed without their weights.

Source: config.json at huggingface.co/Qwen/Qwen2-VL-2B-Instruct and
huggingface.co/Qwen/Qwen2-VL-7B-Instruct.
"""


def official_config(
    hidden_size: int,
    intermediate_size: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    vocab_size: int,
    tie_word_embeddings: bool,
) -> dict:
    """A config.json of the family; the checkpoints differ in the six sizes that are arguments."""
    return {
        "model_type": "qwen2_vl",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": 28,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "vocab_size": vocab_size,
        "tie_word_embeddings": tie_word_embeddings,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "num_heads": 16,
            "mlp_ratio": 4,
            "in_chans": 3,
            "hidden_size": hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


SHAPES = {
    "shape:2b": official_config(
        hidden_size=1536,
        intermediate_size=8960,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "shape:7b": official_config(
        hidden_size=3584,
        intermediate_size=18944,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    ),
}

# Too large for the one device of the benchmarks; what several share is computed and tested with it.
# Source: config.json at huggingface.co/Qwen/Qwen2-VL-72B-Instruct.
SHAPE_72B = official_config(
    hidden_size=8192,
    intermediate_size=29568,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=152064,
    tie_word_embeddings=False,
)
SHAPE_72B["num_hidden_layers"] = 80
