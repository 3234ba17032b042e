"""How much memory a model takes, by arithmetic: weights, cache and activations.

The activations are those of one prompt, of which all tokens belong to one image: of a longer prompt
of text they are fewer.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # names of types only: when this runs, it imports nothing from above
    from qwen2vl import Qwen2VLConfig

USUAL_TOKENS = 2048  # of a prompt with an image and its answer
FLOAT32 = 4  # bytes


def cache_bytes(config: "Qwen2VLConfig", count: int, itemsize: int, tokens: int) -> int:
    """Keys and values of so many tokens in one of `count` processes."""
    heads = max(1, config.num_key_value_heads // count)
    return 2 * config.num_hidden_layers * heads * config.head_dim * tokens * itemsize


def decoder_bytes(config: "Qwen2VLConfig", count: int, itemsize: int, tokens: int) -> int:
    """The most that activations of the decoder take while it reads a prompt."""
    D = config.hidden_size
    own_heads = D // count  # queries of this process, of one token
    own_inner = -(-config.intermediate_size // count)
    # The embeddings, the residual, what attention and MLP add to it, and the tables of M-RoPE stay
    # all the time.
    stays = 4 * D * itemsize + 2 * config.head_dim * itemsize
    # Beside them one of these: a norm in float32; rotated queries; the gate and what it lets pass.
    norm = 3 * D * FLOAT32
    attention = 6 * own_heads * itemsize
    mlp = 3 * own_inner * itemsize
    # At the end the logits of the last token, and copies in float32 to choose from.
    logits = config.vocab_size * (itemsize + 3 * FLOAT32)
    return tokens * (stays + max(norm, attention, mlp)) + logits


def vision_bytes(config: "Qwen2VLConfig", count: int, itemsize: int, patches: int) -> int:
    """The most that activations of the vision transformer take for an image of so many patches."""
    v = config.vision_config
    D = v.embed_dim
    own_heads = D // count
    own_inner = -(-int(D * v.mlp_ratio) // count)
    pixels = v.in_chans * v.temporal_patch_size * v.patch_size**2
    # Pixels in float32 and once more in the dtype of the weights, two hidden states, 2D-RoPE.
    table = 2 * (D // v.num_heads) * FLOAT32
    stays = pixels * (FLOAT32 + itemsize) + 2 * D * itemsize + table
    # Rotation computes in float32: a copy, its two products, and the turned halves.
    attention = 5 * own_heads * itemsize + 4 * own_heads * FLOAT32
    mlp = 4 * own_inner * itemsize
    return patches * (stays + max(attention, mlp))


def prompt_bytes(config: "Qwen2VLConfig", count: int, itemsize: int, tokens: int) -> int:
    """Cache and activations in one of `count` processes of one image of so many tokens."""
    patches = tokens * config.vision_config.spatial_merge_size**2
    decoder = decoder_bytes(config, count, itemsize, tokens)
    # The vision transformer has ended when the decoder begins.
    vision = vision_bytes(config, count, itemsize, patches)
    return cache_bytes(config, count, itemsize, tokens) + max(decoder, vision)


class Fit(NamedTuple):
    """What one of several processes holds, in bytes, and the longest prompt that fits as well."""

    weights: int
    cache: int  # of USUAL_TOKENS
    activations: int  # of a prompt of so many
    tokens: int  # 0 where not even the weights fit


def fit(config: "Qwen2VLConfig", count: int, itemsize: int, weights: int, room: float) -> Fit:
    """What fits in `room` bytes on each of `count` devices; weights: bytes of those on each."""
    cache = cache_bytes(config, count, itemsize, USUAL_TOKENS)
    activations = prompt_bytes(config, count, itemsize, USUAL_TOKENS) - cache
    # All of them grow with the tokens: the largest number that fits, by halving.
    low = 0
    high = config.max_position_embeddings + 1
    while high - low > 1:
        middle = (low + high) // 2
        if weights + prompt_bytes(config, count, itemsize, middle) <= room:
            low = middle
        else:
            high = middle
    return Fit(weights, cache, activations, low)


def sent_bytes(config: "Qwen2VLConfig", count: int, itemsize: int, batch: int) -> float:
    """What one of `count` processes sends to others for one token of each row.

    Two sums in each layer and one for the embedding, of D numbers, and the logits. In a ring each
    process sends a sum's numbers on twice, less its own part, and its logits to all others.
    """
    others = count - 1
    sums = (2 * config.num_hidden_layers + 1) * config.hidden_size
    logits = -(-config.vocab_size // count)
    return batch * itemsize * (2 * sums * others / count + logits * others)
