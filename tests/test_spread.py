"""A model whose layers are spread over several devices computes what it computes on one.

No machine of ours had two GPUs. What can go wrong there, a tensor on the wrong device, is found by
fake tensors: they have shapes, dtypes and devices, "cuda:0" and "cuda:1" among them, but no values,
and refuse to be combined with those of another device as real ones do.
"""

import random
import re
from collections.abc import Iterator

import pytest
import torch

from qwen2vl import AttentionMask, KVCache, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_extras import spread
from tests.helpers.fake_cuda import fake_cuda, fake_model
from tests.helpers.reference import random_config, random_inputs, random_pair

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------- which layer where


def random_sizes(rng: random.Random) -> tuple[int, list[int], list[float]]:
    """Bytes of what must be on the first device, of each layer, and free on each device."""
    rest = rng.randint(0, 50)
    layers = [rng.randint(1, 20)] * rng.randint(1, 40)
    free = [float(rng.randint(1, 300)) for _ in range(rng.randint(2, 5))]
    return rest, layers, free


def used_bytes(rest: int, layers: list[int], devices: list[int], count: int) -> list[int]:
    """Of each device."""
    used = [0] * count
    used[0] = rest
    for size, device in zip(layers, devices, strict=True):
        used[device] += size
    return used


def test_layers_stay_in_order_within_the_room_there_is(amount):
    placed = 0
    for seed in range(amount(300, 5000)):
        rest, layers, free = random_sizes(random.Random(seed))
        try:
            devices = spread.place_layers(rest, layers, free)
        except MemoryError:
            continue
        placed += 1
        assert devices == sorted(devices), seed
        assert devices[0] == 0, seed
        used = used_bytes(rest, layers, devices, len(free))
        assert all(taken <= room for taken, room in zip(used, free, strict=True)), seed
    assert placed > amount(300, 5000) / 10


def test_what_is_refused_fits_in_no_other_way(amount):
    """Layers in order, as many as there is room for on each device, is the most that can fit."""
    refused = 0
    for seed in range(amount(300, 5000)):
        rest, layers, free = random_sizes(random.Random(seed))
        size = layers[0]
        # At least one layer is on the first device; one that is too small for a layer is skipped.
        first = int((free[0] - rest) // size) if free[0] >= rest else 0
        room = first + sum(int(other // size) for other in free[1:])
        fits = first >= 1 and room >= len(layers)
        if fits:
            spread.place_layers(rest, layers, free)
            continue
        refused += 1
        with pytest.raises(MemoryError, match=r"none goes to the CPU") as caught:
            spread.place_layers(rest, layers, free)
        text = str(caught.value)
        assert f"{(rest + sum(layers)) / 1e9:.1f} GB" in text
        assert f"{sum(free) / 1e9:.1f} GB that {len(free)} CUDA devices" in text
    assert refused > amount(300, 5000) / 10


def test_devices_are_about_equally_full():
    devices = spread.place_layers(10, [10] * 79, [300.0, 300.0, 300.0, 300.0])
    used = used_bytes(10, [10] * 79, devices, 4)
    assert max(used) - min(used) <= 20


def test_a_model_that_fits_on_the_first_device_stays_there():
    config = Qwen2VLConfig.from_dict(random_config(0))
    sizes = {"model.embed_tokens.weight": 60, "model.layers.0.mlp.up_proj.weight": 40}
    assert spread.choose_layout(config, sizes, {"cuda:0": 100.0, "cuda:1": 100.0}) is None
    assert spread.choose_layout(config, sizes, {"cuda:0": 10.0}) is None
    assert spread.choose_layout(config, sizes, {}) is None


def test_the_72b_model_is_spread_over_two_gpus_of_80_gb_and_not_over_one(caplog):
    """146.8 GB in bfloat16: 80 layers of 1.7 GB, and 7.7 GB beside them."""
    config = random_config(0)
    config.update(num_hidden_layers=80)
    sizes = {"visual": int(2.7e9), "model.embed_tokens.weight": int(2.5e9), "lm_head": int(2.5e9)}
    for i in range(80):
        sizes[f"model.layers.{i}.mlp.up_proj.weight"] = int(1.7387e9)
    free = {"cuda:0": 79e9, "cuda:1": 79e9}
    layout = spread.choose_layout(Qwen2VLConfig.from_dict(config), sizes, free)
    assert layout is not None
    assert layout.first == torch.device("cuda:0")
    assert len(set(layout.devices)) == 2
    assert "spread over cuda:0, cuda:1" in caplog.text
    with pytest.raises(MemoryError, match=r"take 146\.8 GB, .* 140\.0 GB that 2 CUDA devices"):
        spread.choose_layout(
            Qwen2VLConfig.from_dict(config), sizes, {"cuda:0": 70e9, "cuda:1": 70e9}
        )


# ------------------------------------------------------------------------------------- the results


@pytest.mark.parametrize("kind", ["image", "mixed batch"])
def test_a_spread_model_generates_what_it_does_on_one_device(kind):
    """Both devices are the CPU here: the hooks and the cache are those of several devices."""
    ours, _ = random_pair(3)
    inputs = random_inputs(ours.config, kind, 3)
    settings = {"max_new_tokens": 8, "eos_token_id": -1, "do_sample": False}
    with torch.no_grad():
        logits = ours(**inputs).logits
    tokens = ours.generate(**inputs, **settings)
    spread.attach(ours, spread.Layout(ours.config, [CPU] * ours.config.num_hidden_layers))
    with torch.no_grad():
        assert torch.equal(ours(**inputs).logits, logits)
    assert torch.equal(ours.generate(**inputs, **settings), tokens)
    with pytest.raises(ValueError, match="compile=True needs a model on one device"):
        ours.generate(**inputs, **settings, compile=True)


@pytest.fixture
def fake() -> Iterator[tuple[Qwen2VLForConditionalGeneration, spread.Layout]]:
    """A model with fake weights, two layers on cuda:0 and one on cuda:1, and all else on cuda:0."""
    config = random_config(1)
    config.update(num_hidden_layers=3)
    with fake_cuda():
        devices = [torch.device("cuda:0")] * 2 + [torch.device("cuda:1")]
        layout = spread.Layout(Qwen2VLConfig.from_dict(config), devices)
        model = fake_model(layout.config, torch.float32, layout.device_of)
        yield model, layout


def run_decoder(
    model: Qwen2VLForConditionalGeneration, cache: KVCache, is_padded: bool
) -> torch.Tensor:
    """A prompt of two rows, then one token: the logits, on fake devices."""
    device = model.model.embed_tokens.weight.device
    for length in (7, 1):
        embeds = torch.empty(2, length, model.config.hidden_size, device=device)
        positions = torch.zeros(3, 2, length, dtype=torch.int64, device=device)
        cos, sin = model.model.rotary_table(positions, embeds.dtype)
        mask = AttentionMask(causal=True)
        if is_padded:
            num_keys = cache.length + length
            padding = torch.ones(2, num_keys, dtype=torch.bool, device=device)
            dense = torch.ones(2, 1, length, num_keys, dtype=torch.bool, device=device)
            mask = AttentionMask(True, padding, dense)
        x = embeds
        for i, layer in enumerate(model.model.layers):
            x, _ = layer(x, cos, sin, mask, "sdpa", cache.layer(i))
        cache.length += length
        logits = model.compute_logits(model.model.norm(x))
    return logits


@torch.no_grad()
@pytest.mark.parametrize("is_padded", [False, True])
def test_every_tensor_of_a_spread_model_is_on_the_device_where_it_is_needed(fake, is_padded):
    model, layout = fake
    spread.attach(model, layout)
    cache = layout.make_cache(2, 8, torch.float32)
    logits = run_decoder(model, cache, is_padded)
    assert logits.device == torch.device("cuda:0")
    assert logits.shape == (2, 1, model.config.vocab_size)
    assert [keys.device for keys in cache.layer_keys] == layout.devices
    assert cache.keys.shape == KVCache(model.config, 2, 8, CPU).keys.shape
    assert model.device == torch.device("cuda:0")


@torch.no_grad()
def test_fake_tensors_see_what_the_hooks_prevent(fake):
    model, layout = fake
    cache = layout.make_cache(2, 8, torch.float32)
    with pytest.raises(RuntimeError, match=re.compile("two different devices|same device")):
        run_decoder(model, cache, is_padded=False)
