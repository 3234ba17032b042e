"""What a job takes by arithmetic: floating-point operations of matrix products, and bytes read.

A multiplication and an addition count as two operations. Divided by a measured time, and by what
the machine can do, this gives the share of the machine's limit in the table.
"""

from qwen2vl import Qwen2VLConfig


def vision_operations(config: Qwen2VLConfig, patches: int) -> int:
    """Of the vision transformer, for one image of so many patches."""
    v = config.vision_config
    D = v.embed_dim

    # One layer: qkv and proj, the MLP, and scores and weighted sum of attention (patches x
    # patches).
    weights = 4 * D * D + 2 * D * int(D * v.mlp_ratio)
    layer = 2 * patches * weights + 4 * patches**2 * D

    # Before and after the layers: the patch embedding, and the merger on tokens of 2 x 2 patches.
    values_per_patch = v.in_chans * v.temporal_patch_size * v.patch_size**2
    embedding = 2 * patches * values_per_patch * D
    tokens = patches // v.spatial_merge_size**2
    merged = D * v.spatial_merge_size**2
    merger = 2 * tokens * merged * (merged + v.hidden_size)
    return embedding + v.depth * layer + merger


def layer_parameters(config: Qwen2VLConfig) -> int:
    """How many numbers the matrices of all decoder layers hold."""
    D = config.hidden_size
    key_value_width = config.num_key_value_heads * config.head_dim
    attention = 2 * D * D + 2 * D * key_value_width  # q and o, k and v
    mlp = 3 * D * config.intermediate_size
    return config.num_hidden_layers * (attention + mlp)


def head_parameters(config: Qwen2VLConfig) -> int:
    """How many numbers the matrix of the head holds."""
    return config.hidden_size * config.vocab_size


def prefill_operations(config: Qwen2VLConfig, tokens: int) -> int:
    """Of the decoder for a prompt of so many tokens, and of the head for its last one."""
    layers = 2 * tokens * layer_parameters(config)
    # Causal attention needs half of the tokens x tokens scores: 2 instead of 4 operations each.
    attention = 2 * config.num_hidden_layers * tokens**2 * config.hidden_size
    head = 2 * head_parameters(config)
    return layers + attention + head


def cache_numbers(config: Qwen2VLConfig, batch: int, tokens: int) -> int:
    """How many numbers the keys and values of so many tokens in each row are."""
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return per_token * tokens * batch


def bytes_of_a_step(
    config: Qwen2VLConfig, batch: int, tokens: int, layers: float, head: float, cache: int
) -> int:
    """What one token of each row reads: the decoder, the head, and the cache of so many tokens.

    layers, head, cache: the bytes that a number of each takes.
    """
    weights = layers * layer_parameters(config) + head * head_parameters(config)
    return int(weights) + cache * cache_numbers(config, batch, tokens)
