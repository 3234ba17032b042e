"""Checks of the tensors that a model is given.

Each is a ValueError in one line that names the tensor, what was found and what is needed. Without
them the same mistakes end in an obscure error of some kernel, or in a wrong answer. What costs a
look at the values is done once for a prompt, and not for each new token.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:  # names of types only: when this runs, it imports nothing from above
    from qwen2vl import KVCache, Qwen2VLConfig

ID_DTYPES = (torch.int64, torch.int32)  # those that an embedding can look up
LARGEST_SIDE = 2**20  # of a grid, far above every image: a larger number is a mistake


# ------------------------------------------------------------------------------- any tensor


def check_tensor(name: str, value: object, device: torch.device | None = None) -> None:
    """ValueError for what is no tensor, or one on another device than the model's."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        hint = f": write **{kind}" if isinstance(value, Mapping) else ""
        raise ValueError(f"{name} is a {kind}, a tensor is needed{hint}")
    if device is not None and value.device != device:
        raise ValueError(f"{name} is on {value.device}, the model is on {device}")


def check_shape(name: str, tensor: Tensor, needed: tuple[int, ...]) -> None:
    """ValueError unless the tensor has that shape."""
    if tensor.shape != needed:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, {needed} is needed")


def check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """ValueError unless the tensor has one of these dtypes."""
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype) for dtype in allowed)
        raise ValueError(f"{name} has dtype {tensor.dtype}, {names} is needed")


def check_range(name: str, values: Tensor, lowest: int, highest: int) -> None:
    """ValueError for integers that are not within lowest to highest; it reads the values."""
    if values.is_meta or values.numel() == 0:  # there are none to look at
        return
    smallest, largest = values.aminmax()
    for found in (int(smallest), int(largest)):
        if not lowest <= found <= highest:
            raise ValueError(f"{name} has the value {found}, {lowest} to {highest} is needed")


# ------------------------------------------------------------------- what the decoder reads


def check_ids(
    input_ids: Tensor, config: "Qwen2VLConfig", device: torch.device | None = None
) -> None:
    """ValueError unless these are ids (B, T) of the vocabulary; device: where they must be."""
    check_tensor("input_ids", input_ids, device)
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        shape = tuple(input_ids.shape)
        raise ValueError(f"input_ids has shape {shape}, (B, T) with B and T above 0 is needed")
    check_dtype("input_ids", input_ids, ID_DTYPES)
    check_range("input_ids", input_ids, 0, config.vocab_size - 1)


def check_embeds(
    embeds: Tensor, config: "Qwen2VLConfig", device: torch.device, dtype: torch.dtype
) -> None:
    """ValueError unless these are embeddings (B, T, D) in the dtype of the model."""
    check_tensor("inputs_embeds", embeds, device)
    size = config.hidden_size
    if embeds.ndim != 3 or embeds.shape[2] != size or embeds.numel() == 0:
        shape = tuple(embeds.shape)
        raise ValueError(
            f"inputs_embeds has shape {shape}, (B, T, {size}) with B and T above 0 is needed"
        )
    # Autocast has the layers cast their inputs.
    if embeds.dtype is not dtype and not torch.is_autocast_enabled(device.type):
        check_dtype("inputs_embeds", embeds, (dtype,))


def check_mask(
    mask: Tensor, batch: int, num_keys: int, device: torch.device, is_prompt: bool
) -> None:
    """ValueError unless this is a mask (B, S) of ones and zeros, of any dtype.

    is_prompt: read the values too.
    """
    check_tensor("attention_mask", mask, device)
    # As AttentionMask.for_decoder says it, for there is no other form.
    if mask.shape != (batch, num_keys):
        found = tuple(mask.shape)
        raise ValueError(f"attention_mask is {found}, ({batch}, {num_keys}) is needed")
    if mask.is_complex():
        raise ValueError(f"attention_mask has dtype {mask.dtype}, integers or bool are needed")
    if not is_prompt or mask.dtype is torch.bool or mask.is_meta:
        return
    is_other = (mask != 0) & (mask != 1)
    if is_other.any():
        value = mask[is_other][0].item()
        raise ValueError(f"attention_mask has the value {value:g}, 0 and 1 are needed")


def check_positions(position_ids: Tensor, batch: int, length: int, device: torch.device) -> None:
    """ValueError unless these are positions (3, B, T)."""
    check_tensor("position_ids", position_ids, device)
    check_shape("position_ids", position_ids, (3, batch, length))
    if position_ids.dtype is torch.bool or position_ids.is_complex():
        raise ValueError(f"position_ids has dtype {position_ids.dtype}, torch.int64 is needed")


def check_cache(
    cache: "KVCache", config: "Qwen2VLConfig", batch: int, device: torch.device, dtype: torch.dtype
) -> None:
    """ValueError unless the cache was made for this model and batch."""
    keys = getattr(cache, "keys", None)
    if not isinstance(keys, Tensor):  # a cache of transformers, say
        kind = type(cache).__name__
        raise ValueError(f"past_key_values is a {kind}, a KVCache is needed")
    heads, size = config.num_key_value_heads, config.head_dim
    needed = (config.num_hidden_layers, batch, heads, cache.capacity, size)
    # The values were made as the keys were.
    check_tensor("past_key_values", keys, device)
    check_shape("past_key_values", keys, needed)
    if keys.dtype is not dtype and not torch.is_autocast_enabled(device.type):
        check_dtype("past_key_values", keys, (dtype,))


def check_kept_cache(
    cache: "KVCache | None",
    rope_deltas: Tensor | None,
    config: "Qwen2VLConfig",
    batch: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """ValueError unless the cache, or None, may hold the beginning of prompts of `length` tokens.

    rope_deltas: (B, 1), needed as soon as the cache holds a token.
    """
    held = 0
    if cache is not None:
        check_cache(cache, config, batch, device, dtype)
        held = cache.length
    if held >= length:
        raise ValueError(
            f"past_key_values holds {held} tokens, input_ids has {length}: at least 1 more is "
            "needed, see KVCache.crop"
        )
    if held and rope_deltas is None:
        raise ValueError(f"past_key_values holds {held} tokens: rope_deltas are needed with it")
    if rope_deltas is not None:
        if not held:
            raise ValueError("rope_deltas are for tokens after a prompt, the cache holds 0 tokens")
        check_rope_deltas(rope_deltas, batch, device)


def check_decoder(
    config: "Qwen2VLConfig",
    device: torch.device,
    dtype: torch.dtype,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: "KVCache | None",
) -> tuple[int, int]:
    """ValueError for what the decoder can't read; returns (B, T) of its input.

    device: that of the embedding table; dtype: that of hidden states.
    """
    if input_ids is not None and inputs_embeds is None:
        check_ids(input_ids, config, device)
        batch, length = input_ids.shape
    elif inputs_embeds is not None and input_ids is None:
        check_embeds(inputs_embeds, config, device, dtype)
        batch, length = inputs_embeds.shape[:2]
    else:
        raise ValueError("give exactly one of input_ids and inputs_embeds")

    past = 0
    if cache is not None:
        check_cache(cache, config, batch, device, dtype)
        past = cache.length
    if attention_mask is not None:
        check_mask(attention_mask, batch, past + length, device, is_prompt=past == 0)
    if position_ids is not None:
        check_positions(position_ids, batch, length, device)
    return batch, length


# ------------------------------------------------------------ what only the whole model reads


def check_labels(
    labels: Tensor | None,
    logits_to_keep: int,
    config: "Qwen2VLConfig",
    batch: int,
    length: int,
    device: torch.device,
) -> None:
    """ValueError unless labels are ids (B, T) of the vocabulary or -100, or None.

    logits_to_keep: how many of the last positions get logits; labels need those of all, 0.
    """
    check_logits_to_keep(logits_to_keep, length, labels is not None)
    if labels is None:
        return
    check_tensor("labels", labels, device)
    check_shape("labels", labels, (batch, length))
    check_dtype("labels", labels, ID_DTYPES)
    # -100 means no loss.
    known = labels.masked_fill(labels == -100, 0)
    check_range("labels", known, 0, config.vocab_size - 1)


def check_logits_to_keep(logits_to_keep: int, length: int, has_labels: bool) -> None:
    """ValueError unless that many of the last positions can get logits."""
    if not is_whole(logits_to_keep):
        kind = type(logits_to_keep).__name__
        raise ValueError(f"logits_to_keep is a {kind}, a number from 0 to {length} is needed")
    if not 0 <= logits_to_keep <= length:
        raise ValueError(f"logits_to_keep is {logits_to_keep}, 0 to {length} is needed")
    if has_labels and logits_to_keep:
        raise ValueError(f"labels need all logits, logits_to_keep is {logits_to_keep}")


def check_rope_deltas(rope_deltas: Tensor, batch: int, device: torch.device) -> None:
    """ValueError unless this is one number for each row, (B, 1)."""
    check_tensor("rope_deltas", rope_deltas, device)
    check_shape("rope_deltas", rope_deltas, (batch, 1))
    check_dtype("rope_deltas", rope_deltas, ID_DTYPES)


def check_redundant(
    given: Mapping[str, object],
    config: "Qwen2VLConfig",
    input_ids: Tensor | None,
    video_grid_thw: Tensor | None,
) -> None:
    """ValueError for inputs of `transformers` that contradict what other inputs say.

    mm_token_type_ids (B, T): 1 for the placeholders of images, 0 for text; those of videos have
    0 from transformers 4.57, and 2 from later versions. second_per_grid_ts: the seconds between
    two patches of each video, which Qwen2-VL, unlike its successor, makes no use of.
    """
    seconds = given.get("second_per_grid_ts")
    if isinstance(seconds, (list, tuple, Tensor)):
        videos = 0 if video_grid_thw is None else len(video_grid_thw)
        if len(seconds) != videos:
            raise ValueError(f"second_per_grid_ts is for {len(seconds)} videos, {videos} are given")
    elif seconds is not None:
        raise ValueError(f"second_per_grid_ts is a {type(seconds).__name__}, a list is needed")

    types = given.get("mm_token_type_ids")
    if types is None or input_ids is None:
        return
    check_tensor("mm_token_type_ids", types)
    assert isinstance(types, Tensor)  # as was just checked
    check_shape("mm_token_type_ids", types, tuple(input_ids.shape))
    is_image = (types == 1).to(input_ids.device)
    found, needed = int(is_image.sum()), int((input_ids == config.image_token_id).sum())
    if not torch.equal(is_image, input_ids == config.image_token_id):
        raise ValueError(
            f"mm_token_type_ids marks {found} tokens as images, input_ids has {needed} placeholders"
        )


# ------------------------------------------------------------------------------- generation


def check_last_token(attention_mask: Tensor) -> None:
    """ValueError if a row of the mask (B, T) ends in padding, after which nothing can come."""
    if not attention_mask[:, -1].all():
        raise ValueError(
            "generation needs padding on the left, this attention_mask ends in padding"
        )


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number. True and False are numbers in Python, but not here."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_integer(name: str, value: object, lowest: int, highest: int) -> None:
    """ValueError unless the value is a whole number within lowest to highest."""
    if not is_whole(value) or not lowest <= value <= highest:
        raise ValueError(
            f"{name} is {value!r:.99}, a whole number from {lowest} to {highest} is needed"
        )


def check_number(name: str, value: object, lowest: float, highest: float) -> None:
    """ValueError unless the value is a number within lowest to highest."""
    if not (isinstance(value, float) or is_whole(value)) or not lowest <= value <= highest:
        raise ValueError(f"{name}={value!r:.99} is not within {lowest:g} to {highest:g}")


def check_switch(name: str, value: object) -> None:
    """ValueError unless the value is True or False, or the number of one of them."""
    if not isinstance(value, int) or value not in (0, 1):
        raise ValueError(f"{name} is {value!r:.99}, True or False is needed")


def check_token_ids(name: str, value: object) -> None:
    """ValueError unless the value is a token id or a list of them."""
    ids = value if isinstance(value, (list, tuple)) else [value]
    for one in ids:
        if not is_whole(one):
            raise ValueError(f"{name} is {value!r:.99}, a token id or a list of them is needed")


# ----------------------------------------------------------------------- images and videos


def check_media(
    kind: str,
    pixels: Tensor | None,
    grid_thw: Tensor | None,
    patch_values: int,
    merge_size: int,
    device: torch.device,
) -> None:
    """ValueError unless these are the patches and the grids of images, or of videos.

    kind: "image" or "video"; pixels: (patches, patch_values) of floats; grid_thw: (images, 3).
    None for both is right where a prompt has no images.
    """
    pixels_name = "pixel_values" if kind == "image" else "pixel_values_videos"
    grid_name = f"{kind}_grid_thw"
    if pixels is None and grid_thw is None:
        return
    if grid_thw is None:
        raise ValueError(f"{pixels_name} is given, {grid_name} is needed with it")
    if pixels is None:
        raise ValueError(f"{grid_name} is given, {pixels_name} is needed with it")
    # The grids say how many patches there are.
    grids = read_grids(grid_name, grid_thw, merge_size)
    needed = sum(math.prod(grid) for grid in grids)
    check_tensor(pixels_name, pixels, device)
    check_patches(pixels_name, pixels, needed, patch_values)


def check_patches(name: str, pixels: Tensor, num_patches: int, patch_values: int) -> None:
    """ValueError unless these are so many patches, finite and in a floating dtype."""
    if pixels.ndim != 2 or pixels.shape[1] != patch_values:
        shape = tuple(pixels.shape)
        raise ValueError(f"{name} has shape {shape}, (patches, {patch_values}) is needed")
    if len(pixels) != num_patches:
        raise ValueError(f"the grids hold {num_patches} patches, {name} has {len(pixels)}")
    if not pixels.is_floating_point():
        raise ValueError(f"{name} has dtype {pixels.dtype}, a floating dtype is needed")
    if not pixels.is_meta and not pixels.isfinite().all():
        count = int((~pixels.isfinite()).sum())
        raise ValueError(f"{name} has {count} values that are NaN or infinite, 0 are allowed")


def read_grids(name: str, grid_thw: Tensor, merge_size: int) -> list[list[int]]:
    """The grids (images, 3) as lists [t, h, w]; ValueError for what is no grid."""
    check_tensor(name, grid_thw)
    if grid_thw.ndim != 2 or grid_thw.shape[1] != 3 or len(grid_thw) == 0:
        shape = tuple(grid_thw.shape)
        raise ValueError(f"{name} has shape {shape}, (images, 3) with at least 1 image is needed")
    if grid_thw.dtype is torch.bool or grid_thw.is_floating_point() or grid_thw.is_complex():
        raise ValueError(f"{name} has dtype {grid_thw.dtype}, torch.int64 is needed")
    if grid_thw.is_meta:
        raise ValueError(f"{name} is on meta, where it has no values: a grid with values is needed")

    grids = grid_thw.tolist()
    for i, (t, h, w) in enumerate(grids):
        sides_fit = h % merge_size == 0 and w % merge_size == 0
        in_range = min(t, h, w) >= 1 and max(t, h, w) <= LARGEST_SIDE
        if not (sides_fit and in_range):
            raise ValueError(
                f"{name}[{i}] is {[t, h, w]}: t from 1, h and w in multiples of {merge_size} "
                f"from {merge_size} are needed, at most {LARGEST_SIDE} each"
            )
    return grids
