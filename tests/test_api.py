"""The API of the documentation page and the official examples, and what wrong tensors end in.

Right values are those of transformers 4.57.6 with the same weights, or those of the plain call.
"""

import copy
import json
import pickle
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as Slow

import load
from processor import (
    BatchFeature,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorFast,
    Qwen2VLProcessor,
)
from qwen2vl import KVCache, Qwen2VLForConditionalGeneration, get_rope_index
from qwen2vl_extras import arguments, processor_files
from tests.helpers.reference import KINDS, random_inputs, random_pair

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = load.EMBEDDED


@pytest.fixture(scope="module")
def pair():
    return random_pair(1)


# ------------------------------------------------------------------------------- wrong tensors


def image_inputs(model) -> dict:
    return random_inputs(model.config, "image", 1)


def wrong_forward_calls(model) -> dict[str, dict]:
    """Changes of right inputs of one image, each of which makes them wrong, by a description."""
    right = image_inputs(model)
    ids, mask = right["input_ids"], right["attention_mask"]
    pixels, grid = right["pixel_values"], right["image_grid_thw"]
    length = ids.shape[1]
    vocabulary, D = model.config.vocab_size, model.config.hidden_size
    embeds = torch.zeros(1, length, D)
    no_media = {"input_ids": None, "pixel_values": None, "image_grid_thw": None}
    position_ids = torch.zeros(3, 1, length, dtype=torch.long)
    calls: dict[str, dict] = {}

    def cache(rows: int = 1, dtype: torch.dtype = torch.float32) -> KVCache:
        return KVCache(model.config, rows, length + 4, dtype=dtype)

    # Ids.
    calls["ids of one axis"] = {"input_ids": ids[0]}
    calls["ids of three axes"] = {"input_ids": ids[None]}
    calls["ids of no axis"] = {"input_ids": torch.tensor(3)}
    for dtype in (torch.float32, torch.bool, torch.int16, torch.uint8, torch.bfloat16):
        calls[f"ids of {dtype}"] = {"input_ids": ids.to(dtype)}
    calls["an empty prompt"] = {"input_ids": ids[:, :0], "attention_mask": None}
    calls["an empty batch"] = {"input_ids": ids[:0], "attention_mask": None}
    for value in (-1, -100, vocabulary, vocabulary + 7, 2**40):
        changed = ids.clone()
        changed[0, 0] = value
        calls[f"the id {value}"] = {"input_ids": changed}
    calls["ids on meta"] = {"input_ids": ids.to("meta")}
    calls["ids as a list"] = {"input_ids": ids.tolist()}
    calls["ids as an array"] = {"input_ids": ids.numpy()}
    calls["ids as the whole batch"] = {"input_ids": BatchFeature(input_ids=ids)}
    calls["neither ids nor embeddings"] = no_media
    calls["ids and embeddings"] = {"inputs_embeds": embeds}

    # The mask.
    for size in (length - 1, length + 1, 0):
        calls[f"a mask of {size}"] = {"attention_mask": torch.ones(1, size)}
    calls["a mask of two rows"] = {"attention_mask": mask.expand(2, -1)}
    calls["a mask of one axis"] = {"attention_mask": mask[0]}
    calls["a mask of four axes"] = {"attention_mask": torch.ones(1, 1, length, length)}
    calls["a mask with a 2"] = {"attention_mask": mask * 2}
    calls["a mask with minus infinity"] = {"attention_mask": torch.log(mask.float() * 0)}
    calls["a mask with a half"] = {"attention_mask": mask / 2}
    calls["a complex mask"] = {"attention_mask": mask.to(torch.complex64)}
    calls["a mask on meta"] = {"attention_mask": mask.to("meta")}
    calls["a mask as a list"] = {"attention_mask": mask.tolist()}

    # Pixels and grids, of images and under the names of videos.
    calls["pixels without a grid"] = {"image_grid_thw": None}
    calls["a grid without pixels"] = {"pixel_values": None}
    calls["neither, but placeholders"] = {"pixel_values": None, "image_grid_thw": None}
    as_video = {"pixel_values": None, "image_grid_thw": None}
    calls["an image as a video"] = {
        "pixel_values_videos": pixels,
        "video_grid_thw": grid,
        **as_video,
    }
    calls["a video's grid without pixels"] = {"video_grid_thw": grid}
    calls["a video's pixels without a grid"] = {"pixel_values_videos": pixels}
    calls["a video without placeholders"] = {"pixel_values_videos": pixels, "video_grid_thw": grid}
    t, h, w = grid[0].tolist()
    for wrong in ([t, h + 1, w], [t, h, w + 1], [0, h, w], [t, 0, w], [t, h, -w], [-1, -h, w]):
        calls[f"the grid {wrong}"] = {"image_grid_thw": torch.tensor([wrong])}
    calls["a huge grid"] = {"image_grid_thw": torch.tensor([[2**62, 2, 2]])}
    calls["a grid of twice the patches"] = {"image_grid_thw": torch.tensor([[2 * t, h, w]])}
    calls["two grids for one image"] = {"image_grid_thw": grid.expand(2, -1)}
    calls["no grids"] = {"image_grid_thw": grid[:0]}
    calls["a grid of one axis"] = {"image_grid_thw": grid[0]}
    calls["a grid of three axes"] = {"image_grid_thw": grid[None]}
    calls["a grid of two columns"] = {"image_grid_thw": grid[:, :2]}
    calls["a grid of four columns"] = {"image_grid_thw": torch.ones(1, 4, dtype=torch.long)}
    for dtype in (torch.float32, torch.bool, torch.float16):
        calls[f"a grid of {dtype}"] = {"image_grid_thw": grid.to(dtype)}
    calls["a grid as a list"] = {"image_grid_thw": grid.tolist()}
    calls["a grid on meta"] = {"image_grid_thw": grid.to("meta")}
    calls["patches too narrow"] = {"pixel_values": pixels[:, :-1]}
    calls["patches too wide"] = {"pixel_values": torch.cat((pixels, pixels), dim=1)}
    calls["pixels of three axes"] = {"pixel_values": pixels[None]}
    calls["pixels of one axis"] = {"pixel_values": pixels.flatten()}
    calls["an image in place of patches"] = {"pixel_values": torch.zeros(3, 56, 56)}
    calls["a patch too few"] = {"pixel_values": pixels[1:]}
    calls["no patches"] = {"pixel_values": pixels[:0]}
    calls["bytes"] = {"pixel_values": pixels.to(torch.uint8)}
    calls["whole numbers"] = {"pixel_values": pixels.long()}
    for value in (float("nan"), float("inf")):
        damaged = pixels.clone()
        damaged[0, 7] = value
        calls[f"pixels with {value}"] = {"pixel_values": damaged}
    calls["pixels on meta"] = {"pixel_values": pixels.to("meta")}
    calls["pixels as an array"] = {"pixel_values": pixels.numpy()}

    # Positions, labels, logits.
    for shape in ((1, length), (3, length), (3, 2, length), (2, 1, length), (3, 1, length + 1)):
        wrong_positions = torch.zeros(shape, dtype=torch.long)
        calls[f"positions {shape}"] = {"position_ids": wrong_positions}
    calls["boolean positions"] = {"position_ids": position_ids.bool()}
    calls["positions on meta"] = {"position_ids": position_ids.to("meta")}
    calls["labels too short"] = {"labels": ids[:, 1:]}
    calls["labels of one axis"] = {"labels": ids[0]}
    calls["float labels"] = {"labels": ids.float()}
    for value in (-1, -99, vocabulary):
        changed = ids.clone()
        changed[0, -1] = value
        calls[f"the label {value}"] = {"labels": changed}
    calls["labels on meta"] = {"labels": ids.to("meta")}
    for keep in (-1, length + 1, 1.5, "all", torch.tensor([1])):
        calls[f"logits_to_keep {keep}"] = {"logits_to_keep": keep}
    calls["labels and logits_to_keep"] = {"labels": ids, "logits_to_keep": 1}

    # Embeddings.
    for shape in ((1, length, D + 1), (length, D), (1, 0, D), (1, 1, length, D)):
        calls[f"embeddings {shape}"] = {
            **no_media,
            "inputs_embeds": torch.zeros(shape),
            "attention_mask": None,
        }
    calls["embeddings in float64"] = {**no_media, "inputs_embeds": embeds.double()}
    calls["whole embeddings"] = {**no_media, "inputs_embeds": embeds.long()}
    calls["embeddings and pixels"] = {"input_ids": None, "inputs_embeds": embeds}
    calls["embeddings and a grid"] = {
        "input_ids": None,
        "inputs_embeds": embeds,
        "pixel_values": None,
        "position_ids": position_ids,
    }
    calls["embeddings without positions"] = {**no_media, "inputs_embeds": embeds}

    # The cache and what comes after a prompt.
    calls["a cache of two rows"] = {"past_key_values": cache(rows=2)}
    calls["a cache in bfloat16"] = {"past_key_values": cache(dtype=torch.bfloat16)}
    calls["a cache on meta"] = {
        "past_key_values": KVCache(model.config, 1, 99, torch.device("meta"), torch.float32)
    }
    calls["a cache of transformers"] = {"past_key_values": transformers.DynamicCache()}
    calls["a cache that is too small"] = {"past_key_values": KVCache(model.config, 1, 3)}
    calls["deltas of a prompt"] = {"rope_deltas": torch.tensor([[0]])}
    filled = cache()
    with torch.no_grad():
        model(**right, past_key_values=filled)
    step = {**no_media, "input_ids": ids[:, :1], "attention_mask": None, "past_key_values": filled}
    calls["no deltas after a prompt"] = {**step, "rope_deltas": None}
    for wrong_deltas in (torch.tensor([0]), torch.tensor([[0], [0]]), torch.tensor([[0.5]]), -3):
        calls[f"deltas {wrong_deltas}"] = {**step, "rope_deltas": wrong_deltas}
    calls["a mask of the step only"] = {
        **step,
        "rope_deltas": torch.tensor([[0]]),
        "attention_mask": mask[:, :1],
    }

    # Arguments that would be ignored.
    for name in ("atention_mask", "pixel_value", "image_grid_hw", "label", "num_logits_to_keep"):
        calls[f"the argument {name}"] = {name: None}
    calls["use_cache as a word"] = {"use_cache": "yes"}
    types = torch.zeros_like(ids)
    calls["token types that contradict"] = {"mm_token_type_ids": types}
    calls["token types too short"] = {"mm_token_type_ids": types[:, 1:]}
    calls["seconds for no video"] = {"second_per_grid_ts": [1.0]}
    return calls


# Of these a name is all there is to say; the others name two numbers, shapes or dtypes.
def names_or_numbers(message: str, change: dict) -> bool:
    is_named = any(name in message for name in change) or "inputs_embeds" in message
    return is_named or len(re.findall(r"-?\d+", message)) >= 2


def check_message(call, description: str, change: dict) -> None:
    try:
        call()
    except ValueError as error:
        message = str(error)
        assert "\n" not in message, description
        assert names_or_numbers(message, change), f"{description}: {message}"
    except Exception as error:  # whatever a kernel raises is what must not happen
        raise AssertionError(f"{description}: {type(error).__name__} {error}") from error
    else:
        raise AssertionError(f"{description}: no error")


def test_wrong_calls_of_forward_are_one_line_that_names_what_is_needed(pair):
    model, _ = pair
    calls = wrong_forward_calls(model)
    assert len(calls) >= 80
    for description, change in calls.items():
        inputs = {**image_inputs(model), **change}
        check_message(lambda: model(**inputs), description, change)  # noqa: B023


def test_wrong_calls_leave_no_trace(pair):
    model, _ = pair
    right = image_inputs(model)
    expected = model(**right).logits
    cache = KVCache(model.config, 1, 200)
    with pytest.raises(ValueError, match="labels"):
        model(**right, past_key_values=cache, labels=right["input_ids"] + 500)
    assert cache.length == 0
    assert torch.equal(model(**right, past_key_values=cache).logits, expected)


def test_wrong_calls_of_generate_and_stream_are_refused_at_once(pair):
    model, _ = pair
    for description, change in wrong_generate_calls(model).items():
        inputs = {**image_inputs(model), **change}
        check_message(lambda: model.generate(**inputs), description, change)  # noqa: B023
    # `stream` says it when it is called, before its first token is asked for.
    for change in ({"num_beams": 3}, {"seed": -1}, {"input_ids": torch.tensor([1])}):
        with pytest.raises(ValueError):
            model.stream(**{**image_inputs(model), **change})


def wrong_generate_calls(model) -> dict[str, dict]:
    right = image_inputs(model)
    calls = {}
    # What a prompt can't be: as in forward.
    for description, change in wrong_forward_calls(model).items():
        if all(name in right for name in change) and right.keys() - change.keys():
            calls[description] = change
    # Arguments with values that can't be had.
    wrong_values = {
        "num_beams": 3,
        "num_return_sequences": 2,
        "stopping_criteria": [print],
        "logits_processor": [print],
        "assistant_model": model,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_attentions": True,
        "no_repeat_ngram_size": 3,
        "length_penalty": 2.0,
        "typical_p": 0.5,
        "min_p": 0.1,
        "min_new_tokens": 5,
        "min_length": 50,
        "max_time": 1.0,
        "stop_strings": ["."],
        "bad_words_ids": [[1]],
        "guidance_scale": 2.0,
        "generation_config": transformers.GenerationConfig(),
        "penalty_alpha": 0.6,
        "suppress_tokens": torch.tensor([1, 2]),
        "use_cache": "no",
        "cache_implementation": "quantized",
        "labels": right["input_ids"],
        "inputs_embeds": torch.zeros(1, 3, model.config.hidden_size),
        "position_ids": torch.zeros(3, 1, 3),
        "past_key_values": KVCache(model.config, 2, 9),  # of one prompt
        "rope_deltas": torch.zeros(1, 1, dtype=torch.long),  # without a cache
    }
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "do_sample"):
        wrong_values[name] = "much"
    wrong_values["eos_token_id"] = "<|im_end|>"
    for name, value in wrong_values.items():
        calls[f"{name}={value!r:.40}"] = {name: value}
    for value in (0, -1, 10**6, 2.5, "8", True - 1):
        calls[f"max_new_tokens {value!r}"] = {"max_new_tokens": value}
    length = right["input_ids"].shape[1]
    for value in (length, 0, 10**6, 2.5):
        calls[f"max_length {value!r}"] = {"max_length": value}
    calls["both lengths"] = {"max_length": 99, "max_new_tokens": 5}
    for value in (-1, 1.5, "x", 2**64):
        calls[f"seed {value!r}"] = {"seed": value}
    for value in (-1, model.config.vocab_size):
        calls[f"pad_token_id {value}"] = {"pad_token_id": value}
    # True is the number 1 in Python, but no number of tokens.
    numbers = ["temperature", "top_k", "top_p", "repetition_penalty", "eos_token_id"]
    for name in (*numbers, "pad_token_id", "seed", "max_new_tokens", "max_length"):
        calls[f"{name}=True"] = {name: True}
    for name in ("max_new_token", "temprature", "num_beam", "streamers", "stop_criteria"):
        calls[f"the argument {name}"] = {name: 1}
    calls["a streamer that is none"] = {"streamer": print}
    last = torch.ones_like(right["attention_mask"])
    last[:, -1] = 0
    calls["padding on the right"] = {"attention_mask": last}
    return calls


def test_wrong_calls_of_the_parts_are_refused_too(pair):
    model, _ = pair
    right = image_inputs(model)
    ids, grid, pixels = right["input_ids"], right["image_grid_thw"], right["pixel_values"]
    visual, decoder = model.visual, model.model
    config = model.config
    mask = right["attention_mask"]
    calls = {
        "positions of one axis": lambda: get_rope_index(config, ids[0], grid),
        "positions of float ids": lambda: get_rope_index(config, ids.float(), grid),
        "positions of an id": lambda: get_rope_index(config, ids + 10**6, grid),
        "positions, odd grid": lambda: get_rope_index(config, ids, grid + 1),
        "positions, zero grid": lambda: get_rope_index(config, ids, grid * 0),
        "positions, float grid": lambda: get_rope_index(config, ids, grid.float()),
        "positions, flat grid": lambda: get_rope_index(config, ids, grid[0]),
        "positions, a grid too many": lambda: get_rope_index(config, ids, grid.expand(2, -1)),
        "positions, no grid": lambda: get_rope_index(config, ids),
        "positions, video": lambda: get_rope_index(config, ids, None, grid),
        "positions, mask": lambda: get_rope_index(config, ids, grid, None, mask[:, 1:]),
        "positions, mask of twos": lambda: get_rope_index(config, ids, grid, None, mask * 2),
        "positions of the model": lambda: model.get_rope_index(ids.tolist(), grid),
        "pixels alone": lambda: visual(pixels, None),
        "grid alone": lambda: visual(None, grid),
        "nothing": lambda: visual(None, None),
        "features, odd grid": lambda: visual(pixels, grid + 1),
        "features, narrow": lambda: visual(pixels[:, 1:], grid),
        "features, a patch too few": lambda: visual(pixels[1:], grid),
        "features, NaN": lambda: visual(pixels * torch.nan, grid),
        "features, bytes": lambda: visual(pixels.byte(), grid),
        "features, meta": lambda: visual(pixels.to("meta"), grid),
        "features, attention": lambda: visual(pixels, grid, "fast"),
        "decoder, nothing": lambda: decoder(),
        "decoder, flat": lambda: decoder(ids[0]),
        "decoder, float": lambda: decoder(ids.float()),
        "decoder, id": lambda: decoder(ids - 10**6),
        "decoder, mask": lambda: decoder(ids, mask[:, 1:]),
        "decoder, positions": lambda: decoder(ids, position_ids=ids),
        "decoder, cache": lambda: decoder(ids, past_key_values=KVCache(config, 3, 99)),
        "decoder, both": lambda: decoder(ids, inputs_embeds=torch.zeros(1, 2, 3)),
        "decoder, embeddings": lambda: decoder(inputs_embeds=torch.zeros(1, 2, 3)),
        "decoder, dtype": lambda: decoder(
            inputs_embeds=torch.zeros(1, 2, config.hidden_size).half()
        ),
    }
    names = dict.fromkeys(["image", "pixel_values", "input_ids", "attention", "attention_mask"])
    for description, call in calls.items():
        check_message(call, description, names)


# -------------------------------------------------------------------------- unusual, but right


def unusual_changes(inputs: dict) -> dict[str, dict]:
    """Changes of inputs that change nothing in the result, by a description."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    changes: dict[str, dict] = {"ids in int32": {"input_ids": ids.int()}}
    changes["ids that are not contiguous"] = {
        "input_ids": ids.repeat_interleave(2, dim=1)[:, ::2],
        "attention_mask": mask.t().contiguous().t(),
    }
    for dtype in (torch.bool, torch.int32, torch.uint8, torch.float32, torch.bfloat16):
        changes[f"a mask of {dtype}"] = {"attention_mask": mask.to(dtype)}
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if name not in inputs:
            changes[f"no {kind}, said"] = {name: None, f"{kind}_grid_thw": None}
            continue
        pixels, grid = inputs[name], inputs[f"{kind}_grid_thw"]
        for dtype in (torch.int32, torch.int16, torch.uint8):
            changes[f"{kind} grid of {dtype}"] = {f"{kind}_grid_thw": grid.to(dtype)}
        changes[f"{kind} pixels in float64"] = {name: pixels.double()}
        changes[f"{kind} pixels by column"] = {name: pixels.t().contiguous().t()}
    return changes


def neutral_calls(table: dict) -> dict[str, dict]:
    """Every value of a table of neutral arguments, None and an empty list."""
    calls = {}
    for name, values in table.items():
        for value in (*values, None, []):
            calls[f"{name}={value}"] = {name: value}
    return calls


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_unusual_but_right_inputs_change_nothing(kind, pair, amount):
    model, _ = pair
    inputs = random_inputs(model.config, kind, 3)
    plain = model(**inputs).logits
    is_token = inputs["attention_mask"].bool()
    changes = list(unusual_changes(inputs).items())
    changes = random.Random(kind).sample(changes, min(len(changes), amount(7, 99)))
    for description, change in changes:
        changed = model(**{**inputs, **change}).logits
        assert torch.equal(changed[is_token], plain[is_token]), description
    settings = {"max_new_tokens": 2, "do_sample": False, "repetition_penalty": 1.3}
    tokens = model.generate(**inputs, **settings)
    for description, change in changes:
        found = model.generate(**{**inputs, **change}, **settings)
        assert torch.equal(found, tokens), description
        assert found.dtype == torch.int64, description


@torch.no_grad()
def test_neutral_arguments_change_nothing(pair):
    model, _ = pair
    inputs = image_inputs(model)
    plain = model(**inputs).logits
    forward_calls = neutral_calls(arguments.FORWARD)
    forward_calls["types"] = {
        "mm_token_type_ids": (inputs["input_ids"] == model.config.image_token_id).long()
    }
    forward_calls["seconds"] = {"second_per_grid_ts": []}
    forward_calls["None for what is not asked for"] = {
        "output_hidden_states": None,
        "output_attentions": None,
        "return_dict": True,
        "labels": None,
    }
    for description, change in forward_calls.items():
        assert torch.equal(model(**inputs, **change).logits, plain), description
    ids = inputs["input_ids"][:, :3]
    tokens = model.generate(ids, max_new_tokens=1)
    calls = neutral_calls(arguments.GENERATE)
    calls["bos"] = {"bos_token_id": 7}
    for description, change in calls.items():
        found = model.generate(ids, max_new_tokens=1, **change)
        assert torch.equal(found, tokens), description


def test_the_neutral_arguments_are_all_that_transformers_has(pair):
    """Every setting of GenerationConfig and argument of `generate` there is known by name here."""
    model, _ = pair
    theirs = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    theirs -= {"transformers_version", "is_assistant"}
    code = transformers.GenerationMixin.generate.__code__
    theirs |= set(code.co_varnames[: code.co_argcount]) - {"self"}
    assert len(theirs) > 60
    for name in sorted(theirs):
        with pytest.raises(ValueError) as caught:
            model.generate(image_inputs(model)["input_ids"], **{name: object()})
        assert "has no argument" not in str(caught.value), name


# ------------------------------------------------------------------------- results of a forward


@torch.no_grad()
def test_an_output_is_read_as_that_of_transformers(pair):
    ours, theirs = pair
    inputs = image_inputs(ours)
    for labels in (None, inputs["input_ids"]):
        a = ours(**inputs, labels=labels, output_hidden_states=True)
        b = theirs(**inputs, labels=labels, output_hidden_states=True, use_cache=False)
        assert list(a.keys()) == list(a) == list(b.keys())
        assert len(a) == len(b) == len(a.to_tuple())
        assert ("loss" in a) == ("loss" in b) == (labels is not None)
        assert torch.equal(a["logits"], a.logits)
        for i, name in enumerate(b):
            assert a[i] is a[name]
            assert a.get(name) is a[name]
        torch.testing.assert_close(a[0], b[0], atol=1e-4, rtol=1e-4)
        assert [type(x) for x in a[:1]] == [type(x) for x in b[:1]]
        as_tuple = ours(**inputs, labels=labels, output_hidden_states=True, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert torch.equal(as_tuple[0], a[0])
    with pytest.raises(KeyError, match="loss"):
        ours(**inputs)["loss"]


@torch.no_grad()
def test_the_decoder_alone_takes_ids_and_gives_the_last_hidden_state(pair):
    ours, theirs = pair
    ids = random_inputs(ours.config, "text", 5)["input_ids"]
    found = ours.model(input_ids=ids)
    expected = theirs.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# ----------------------------------------------------------------------------------- generation


def test_max_length_counts_the_prompt(pair):
    ours, theirs = pair
    inputs = image_inputs(ours)
    length = inputs["input_ids"].shape[1]
    for new in (1, 5):
        found = ours.generate(**inputs, max_length=length + new, eos_token_id=-1)
        expected = theirs.generate(
            **inputs, max_length=length + new, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        assert torch.equal(found, expected)
    # As a default, in the file or set on the model.
    changed = copy.copy(ours)
    for name, value in (("max_new_tokens", 3), ("max_length", length + 3)):
        changed.generation_config = type(ours.generation_config)({name: value})
        found = changed.generate(**inputs, eos_token_id=-1)
        assert found.shape[1] == length + 3


class Recorder:
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_streamer_gets_what_that_of_transformers_gets(kind, pair):
    ours, theirs = pair
    inputs = random_inputs(ours.config, kind, 2)
    a, b = Recorder(), Recorder()
    ours.generate(**inputs, max_new_tokens=5, eos_token_id=-1, streamer=a)
    theirs.generate(
        **inputs, max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0, streamer=b
    )
    assert a.ended == b.ended == 1
    for x, y in zip(a.values, b.values, strict=True):
        assert torch.equal(x, y)


def test_the_streamers_of_transformers_work(tiny, capsys):
    model, processor = tiny
    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "image", "path": str(EXAMPLES / "shapes.png")},
                {"type": "text", "text": "Describe this image."},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    for tokenizer in (processor, processor.tokenizer):
        streamer = transformers.TextIteratorStreamer(
            tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60
        )
        settings = {**inputs, "streamer": streamer, "max_new_tokens": 32}
        thread = threading.Thread(target=model.generate, kwargs=settings)
        thread.start()
        assert "".join(streamer) == "A red circle and a blue star."
        thread.join()
    printer = transformers.TextStreamer(processor, skip_prompt=True, skip_special_tokens=True)
    model.generate(**inputs, streamer=printer, max_new_tokens=32)
    assert capsys.readouterr().out == "A red circle and a blue star.\n"


def test_a_streamer_ends_where_generation_fails(pair):
    model, _ = pair
    inputs = image_inputs(model)
    inputs["pixel_values"] = inputs["pixel_values"] * torch.nan
    recorder = Recorder()
    with pytest.raises(ValueError, match="NaN"):
        model.generate(**inputs, streamer=recorder)
    assert recorder.ended == 1


def test_generation_settings_are_attributes(tiny):
    model, _ = tiny
    model = copy.copy(model)
    model.generation_config = copy.deepcopy(model.generation_config)
    assert model.generation_config.do_sample is False
    assert model.generation_config.temperature is None
    model.generation_config.temperature = None  # as many examples do
    model.generation_config.max_new_tokens = 7
    assert model.generate(torch.tensor([[1, 2]]), eos_token_id=-1).shape == (1, 9)
    with pytest.raises(ValueError, match="num_beams can't be 4"):
        model.generation_config.num_beams = 4
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        model.generation_config.temprature = 0.5
    with pytest.raises(AttributeError, match="temprature"):
        _ = model.generation_config.temprature
    assert json.loads(json.dumps(model.generation_config))["max_new_tokens"] == 7


# ----------------------------------------------------------------------------- the batch of inputs


def batch() -> BatchFeature:
    return BatchFeature(
        input_ids=torch.tensor([[1, 2]]),
        attention_mask=torch.ones(1, 2, dtype=torch.bool),
        pixel_values=torch.ones(4, 3),
    )


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("cpu",), {}),
        (("cpu", torch.bfloat16), {}),
        ((torch.float16,), {}),
        ((torch.device("meta"),), {}),
        (("meta", torch.float64), {}),
        ((), {"device": "meta"}),
        ((), {"dtype": torch.bfloat16}),
        ((), {"device": "meta", "dtype": torch.float16, "non_blocking": True}),
        (("cpu",), {"dtype": torch.float16}),
        (("cpu",), {"non_blocking": True}),
        ((), {}),
    ],
)
def test_inputs_move_as_those_of_transformers(args, kwargs):
    found = batch()
    moved = found.to(*args, **kwargs)
    expected = transformers.BatchFeature(dict(batch())).to(*args, **kwargs)
    assert moved is found
    for name, value in expected.items():
        assert moved[name].dtype == value.dtype
        assert moved[name].device == value.device
        assert moved[name].shape == value.shape


def test_inputs_are_a_mapping_in_every_way_that_those_of_transformers_are():
    inputs = batch()
    theirs = transformers.BatchFeature(dict(batch()))
    assert list(inputs.keys()) == list(theirs.keys()) == list(inputs.data)
    assert {**inputs}.keys() == {**theirs}.keys()
    assert "pixel_values" in inputs
    assert "labels" not in inputs
    copies = (inputs.copy(), copy.copy(inputs), copy.deepcopy(inputs))
    for one in (*copies, pickle.loads(pickle.dumps(inputs))):
        assert type(one) is BatchFeature
        assert one is not inputs
        assert torch.equal(one.input_ids, inputs.input_ids)
        one["input_ids"] = torch.tensor([[9]])
        assert inputs.input_ids.shape == (1, 2)
    inputs.labels = inputs.input_ids
    assert inputs["labels"] is inputs.input_ids
    for wrong in (torch.int64, torch.bool):
        with pytest.raises(ValueError, match="floating"):
            inputs.to(wrong)
    with pytest.raises(ValueError, match="BatchFeature"):
        inputs.to(inputs)


@torch.no_grad()
def test_inputs_of_transformers_are_taken(pair):
    model, _ = pair
    inputs = image_inputs(model)
    expected = model(**inputs).logits
    types = (inputs["input_ids"] == model.config.image_token_id).long()
    for kind in (transformers.BatchFeature, transformers.BatchEncoding):
        theirs = kind({**inputs, "mm_token_type_ids": types})
        assert torch.equal(model(**theirs).logits, expected)
        assert torch.equal(
            model.generate(**theirs, max_new_tokens=3), model.generate(**inputs, max_new_tokens=3)
        )


# ------------------------------------------------------------------------------ image processors


def drawn_image(rng: random.Random) -> Image.Image:
    height, width = rng.randint(20, 200), rng.randint(20, 200)
    values = np.random.default_rng(rng.randrange(10**6)).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def test_preprocess_gives_the_pixels_of_transformers(amount):
    rng = random.Random(0)
    for case in range(amount(12, 150)):
        images = [drawn_image(rng) for _ in range(rng.randint(1, 3))]
        limits = {}
        if rng.random() < 0.7:
            limits["min_pixels"] = rng.choice([28 * 28, 56 * 56, 100 * 100])
            limits["max_pixels"] = rng.choice([112 * 112, 200 * 200])
        media = images[0] if len(images) == 1 and rng.random() < 0.5 else images
        found = Qwen2VLImageProcessor().preprocess(media, **limits, return_tensors="pt")
        # Of two limits in one call its own class in 4.57 needs both; the defaults are ours too.
        expected = Slow(min_pixels=56 * 56, max_pixels=28 * 28 * 1280).preprocess(
            media, **limits, return_tensors="pt"
        )
        assert torch.equal(found.image_grid_thw, expected["image_grid_thw"]), case
        torch.testing.assert_close(found.pixel_values, expected["pixel_values"], atol=1e-5, rtol=0)
        fast = Qwen2VLImageProcessorFast().preprocess(media, **limits, return_tensors="pt")
        assert torch.equal(fast.image_grid_thw, found.image_grid_thw), case
        assert torch.equal(
            fast.pixel_values, Qwen2VLImageProcessorFast()(media, **limits).pixel_values
        )


@pytest.mark.parametrize(
    "options",
    [{"videos": [1]}, {"return_tensors": "np"}, {"return_tensors": None}, {"max_pixel": 3}],
)
def test_preprocess_refuses_by_name(options):
    image = Image.new("RGB", (56, 56))
    with pytest.raises(ValueError, match=next(iter(options))):
        Qwen2VLImageProcessor().preprocess(image, **options)


def test_use_fast_chooses_the_class():
    slow, fast = Qwen2VLImageProcessor, Qwen2VLImageProcessorFast
    for called in (slow, fast):
        assert type(called.from_pretrained("tiny")) is called
        assert type(called.from_pretrained("tiny", use_fast=None)) is called
        assert type(called.from_pretrained("tiny", use_fast=False)) is slow
        assert type(called.from_pretrained("tiny", use_fast=True)) is fast
    assert type(Qwen2VLProcessor.from_pretrained("tiny").image_processor) is slow
    assert type(Qwen2VLProcessor.from_pretrained("tiny", use_fast=True).image_processor) is fast


def test_the_tokenizer_answers_what_examples_ask(tiny):
    _, processor = tiny
    tokenizer = processor.tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(TINY)
    for name in ("padding_side", "pad_token", "pad_token_id", "eos_token", "eos_token_id"):
        assert getattr(tokenizer, name) == getattr(theirs, name)
    ids = theirs("A red circle").input_ids
    assert tokenizer.decode(ids) == theirs.decode(ids)
    # The other side can't be had, and is not ignored.
    other = Qwen2VLProcessor.from_pretrained("tiny")
    other.tokenizer.padding_side = "right"
    with pytest.raises(ValueError, match="padding_side is 'right'"):
        other(text=["a", "b c"])


# ------------------------------------------------------------------------------ saved processors


def conversations() -> list[list[dict]]:
    image = {"type": "image", "path": str(EXAMPLES / "shapes.png")}
    video = {"type": "video", "path": str(EXAMPLES / "moving.mp4")}
    words = {"type": "text", "text": "What is this?"}
    answer = {"role": "assistant", "content": "A circle."}
    return [
        [{"role": "user", "content": [image, words]}],
        [{"role": "user", "content": [video, words, image]}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": [words]}, answer, {"role": "user", "content": [image]}],
    ]


def read(processor: Qwen2VLProcessor, conversation: list[dict]) -> BatchFeature:
    return processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, add_generation_prompt=True
    )


def assert_same(a: Qwen2VLProcessor, b: Qwen2VLProcessor) -> None:
    for conversation in conversations():
        x, y = read(a, conversation), read(b, conversation)
        assert x.keys() == y.keys()
        for name in x:
            assert torch.equal(x[name], y[name]), name


def processors() -> dict[str, Qwen2VLProcessor]:
    """Processors to be saved, by where they come from."""
    tokenizer = load.load_tokenizer(TINY)
    extended = Qwen2VLProcessor.from_pretrained("tiny")
    extended.tokenizer.add_special_tokens(["<memory>"])
    return {
        "tiny": Qwen2VLProcessor.from_pretrained("tiny"),
        "from parts": Qwen2VLProcessor(Qwen2VLImageProcessor(max_pixels=90 * 90), tokenizer),
        "with limits": Qwen2VLProcessor.from_pretrained("tiny", 40 * 40, 100 * 100),
        "fast": Qwen2VLProcessor.from_pretrained("tiny", use_fast=True),
        "with a token more": extended,
        "with limits of videos": Qwen2VLProcessor(
            Qwen2VLImageProcessor(), load.load_tokenizer(TINY), ({"fps": 1, "max_pixels": 60 * 60},)
        ),
    }


@pytest.mark.parametrize("name", list(processors()))
def test_a_saved_folder_is_complete_here_and_in_transformers(name, tmp_path, tiny):
    model, _ = tiny
    processor = processors()[name]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.partial"))

    # Here: the same inputs, and the same again when it is saved once more.
    again = Qwen2VLProcessor.from_pretrained(tmp_path, use_fast=name == "fast")
    assert_same(again, processor)
    second = tmp_path / "second"
    again.save_pretrained(second)
    for file in second.iterdir():
        assert file.read_text() == (tmp_path / file.name).read_text(), file.name

    # There: the same ids, pixels and logits.
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    in_python = transformers.Qwen2Tokenizer.from_pretrained(tmp_path)
    images = Slow.from_pretrained(tmp_path)
    weights = transformers.Qwen2VLForConditionalGeneration.from_pretrained(tmp_path)
    conversation = conversations()[0]
    inputs = read(processor, conversation)
    if name != "fast":
        pixels = images(Image.open(EXAMPLES / "shapes.png").convert("RGB"), return_tensors="pt")
        torch.testing.assert_close(pixels["pixel_values"], inputs.pixel_values, atol=1e-5, rtol=0)
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    tokens = int((inputs.input_ids == processor.image_token_id).sum())
    text = text.replace("<|image_pad|>", "<|image_pad|>" * tokens)
    for tokenizer in (theirs, in_python):
        assert tokenizer(text).input_ids == inputs.input_ids[0].tolist()
    loaded = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path, device_map="cpu")
    with torch.no_grad():
        expected = weights(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


def test_the_saved_template_renders_what_the_processor_renders(tmp_path, amount):
    processors()["from parts"].save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "chat_template.json").read_text())["chat_template"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Qwen2VLProcessor.from_pretrained(tmp_path)
    rng = random.Random(1)
    for case in range(amount(60, 600)):
        conversation = random_conversation(rng)
        options = {"add_generation_prompt": rng.random() < 0.5, "add_vision_id": rng.random() < 0.5}
        expected = theirs.apply_chat_template(
            conversation, chat_template=stored, tokenize=False, **options
        )
        assert ours.apply_chat_template(conversation, **options) == expected, case


def test_the_saved_template_renders_what_the_official_one_renders(official, amount):
    theirs = transformers.AutoTokenizer.from_pretrained(TINY)
    stored = json.loads((official / "chat_template.json").read_text())["chat_template"]
    rng = random.Random(2)
    for case in range(amount(60, 600)):
        conversation = random_conversation(rng)
        options = {"add_generation_prompt": rng.random() < 0.5, "add_vision_id": rng.random() < 0.5}
        found, expected = (
            theirs.apply_chat_template(conversation, chat_template=one, tokenize=False, **options)
            for one in (processor_files.CHAT_TEMPLATE, stored)
        )
        assert found == expected, case


def random_conversation(rng: random.Random) -> list[dict]:
    items = [
        {"type": "image"},
        {"type": "image", "image": "a.png"},
        {"image": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "video"},
        {"type": "video", "video": "a.mp4"},
        {"video": "a.mp4"},
        {"type": "text", "text": " spaces \n and lines\n"},
        {"type": "text", "text": "<b>{{ x }}</b>"},
        {"text": ""},
    ]
    messages = []
    for i in range(rng.randint(1, 5)):
        role = rng.choice(["user", "assistant", "system"] if i == 0 else ["user", "assistant"])
        content = rng.choices(items, k=rng.randint(0, 5))
        messages.append({"role": role, "content": rng.choice([content, "plain\n text "])})
    return messages


def test_texts_that_were_read_are_kept_as_they_were(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for file in TINY.glob("*.json"):
        (source / file.name).write_bytes(file.read_bytes())
    texts = {
        "chat_template.jinja": processor_files.CHAT_TEMPLATE + "{# ours #}",
        "special_tokens_map.json": '{"eos_token":   "<|im_end|>"}',
    }
    for filename, text in texts.items():
        (source / filename).write_text(text)
    processor = Qwen2VLProcessor.from_pretrained(source)
    target = tmp_path / "target"
    pickle_safe = copy.deepcopy(processor.source_texts)
    processor.save_pretrained(target)
    for filename, text in texts.items():
        assert (target / filename).read_text() == text
        assert pickle_safe[filename] == text
    config = "tokenizer_config.json"
    assert (target / config).read_text() == (source / config).read_text()
    assert not (target / "chat_template.json").exists()


def test_what_an_earlier_processor_left_is_gone_and_a_crash_leaves_no_half_file(
    tmp_path, monkeypatch
):
    for filename in processor_files.EVERY_FILE:
        (tmp_path / filename).write_text("old")
    (tmp_path / "README.md").write_text("kept")
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), load.load_tokenizer(TINY))

    # A disk that is full while the files are written.
    write = Path.write_text

    def full(self: Path, *args, **kwargs) -> int:
        if self.name.startswith("preprocessor"):
            raise OSError("no space left")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        processor.save_pretrained(tmp_path)
    for filename in processor_files.EVERY_FILE:
        assert (tmp_path / filename).read_text() == "old"
    monkeypatch.undo()

    processor.save_pretrained(tmp_path)
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {
        "README.md",
        "chat_template.json",
        "merges.txt",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() == 704
