"""The memory that is computed before loading is what a model really takes.

Counted without a GPU: with fake tensors, which have sizes but no values, every tensor that is alive
is added up while the official shapes run.
"""

import weakref
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.shapes import SHAPE_72B, SHAPES
from benchmarks.what_fits import OWN_OF_CUDA, rows, weights_of_each
from qwen2vl import AttentionMask, KVCache, Qwen2VLConfig
from qwen2vl_extras import distributed, memory
from tests.helpers.fake_cuda import fake_cuda, fake_model

ROOT = Path(__file__).parent.parent
GB80 = 80e9 - OWN_OF_CUDA


class LiveBytes(TorchDispatchMode):
    """The bytes of all storages made in the `with` block that are alive, and their peak.

    before: tensors that were there before it.
    """

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.known = {x.untyped_storage()._cdata for x in before}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, torch.Tensor):
                self.add(one.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.remove, key, storage.nbytes())

    def remove(self, key: int, nbytes: int) -> None:
        self.known.discard(key)
        self.live -= nbytes


def one_layer(shape: dict) -> Qwen2VLConfig:
    """One decoder layer and one vision block: the others take their memory one after another."""
    config = dict(shape, num_hidden_layers=1)
    config["vision_config"] = dict(shape["vision_config"], depth=1)
    return Qwen2VLConfig.from_dict(config)


@torch.no_grad()
@pytest.mark.parametrize("name", ["2b", "7b", "72b"])
def test_activations_take_what_is_computed_and_little_less(name, figure):
    shape = SHAPE_72B if name == "72b" else SHAPES[f"shape:{name}"]
    tokens = 1024
    with fake_cuda():
        model = fake_model(one_layer(shape), torch.bfloat16)
        config = model.config
        pixels = torch.empty(4 * tokens, 1176, device="cuda")
        with LiveBytes([*model.parameters(), pixels]) as vision:
            model.visual.encode(pixels, 1, 64, 64)
        embeds = torch.empty(1, tokens, config.hidden_size, dtype=torch.bfloat16, device="cuda")
        positions = torch.zeros(3, 1, tokens, dtype=torch.int64, device="cuda")
        cache = KVCache(config, 1, tokens, torch.device("cuda"), torch.bfloat16)
        before = [*model.parameters(), embeds, positions, cache.keys, cache.values]
        with LiveBytes(before) as decoder:
            cos, sin = model.model.rotary_table(positions, torch.bfloat16)
            x, _ = model.model.layers[0](
                embeds, cos, sin, AttentionMask(causal=True), "sdpa", cache.layer(0)
            )
            model.compute_logits(model.model.norm(x)[:, -1:])
    # What was there before counts as well.
    embeds_bytes = embeds.nbytes
    found = decoder.peak + embeds_bytes
    computed = memory.decoder_bytes(config, 1, 2, tokens)
    assert 0.8 <= figure("decoder's activations: found / computed", found / computed) <= 1.02
    found = vision.peak + pixels.nbytes
    computed = memory.vision_bytes(config, 1, 2, 4 * tokens)
    assert 0.8 <= figure("vision's activations: found / computed", found / computed) <= 1.02


def test_the_cache_of_a_process_takes_what_is_computed():
    for name in SHAPES:
        config = Qwen2VLConfig.from_dict(SHAPES[name])
        cache = KVCache(config, 1, 100, torch.device("meta"), torch.bfloat16)
        whole = cache.keys.nbytes + cache.values.nbytes
        assert memory.cache_bytes(config, 1, 2, 100) == whole
        for count in distributed.allowed_counts(config):
            heads = max(1, config.num_key_value_heads // count)
            expected = whole * heads // config.num_key_value_heads
            assert memory.cache_bytes(config, count, 2, 100) == expected


def test_the_72b_model_fits_on_two_gpus_of_80_gb_and_not_on_one(figure):
    config = Qwen2VLConfig.from_dict(SHAPE_72B)
    tokens = {}
    for count in (1, 2, 4, 8):
        weights = weights_of_each(config, count)
        fit = memory.fit(config, count, 2, weights, GB80)
        tokens[count] = fit.tokens
        figure(f"72B on {count}: weights of each, GB", weights / 1e9)
        figure(f"72B on {count}: cache of 2,048 tokens, GB", fit.cache / 1e9)
        figure(f"72B on {count}: activations of 2,048 tokens, GB", fit.activations / 1e9)
        figure(f"72B on {count}: tokens that fit", fit.tokens)
    assert tokens[1] == 0
    assert 0 < tokens[2] < tokens[4]
    assert tokens[8] == config.max_position_embeddings


def test_the_table_of_what_fits_is_the_one_in_the_benchmarks_page():
    page = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    for row in rows(GB80):
        assert row in page
