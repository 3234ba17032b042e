"""What runs on CUDA only, run with fake tensors: shapes, dtypes and devices, and no values.

No machine that these tests run on has a GPU. A fake tensor says that it is on CUDA and refuses what
CUDA tensors refuse: tensors of several devices, dtypes or shapes that don't go together. Whether
the values are right, `benchmarks/on_cuda.sh` finds out.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import device_mesh

from benchmarks.shapes import SHAPE_72B, SHAPES
from qwen2vl import (
    AttentionMask,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Sampling,
    attention,
    next_token,
)
from qwen2vl_extras import compiled, distributed, flash
from tests.helpers.fake_cuda import fake_cuda, fake_model

CUDA = torch.device("cuda:0")
OFFICIAL = {"2b": SHAPES["shape:2b"], "7b": SHAPES["shape:7b"], "72b": SHAPE_72B}
VISION_ROWS = (8, 12)  # the grid of an image, in patches


@pytest.fixture
def fake() -> Iterator[None]:
    """Every tensor made in the test is a fake one."""
    with fake_cuda():
        yield


def small(shape: dict) -> Qwen2VLConfig:
    """The config of an official shape with two layers of each transformer."""
    config = dict(shape, num_hidden_layers=2)
    config["vision_config"] = dict(shape["vision_config"], depth=2)
    return Qwen2VLConfig.from_dict(config)


def check(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert tuple(x.shape) == shape
    assert x.dtype == dtype
    assert x.device == CUDA


def run_all(model: Qwen2VLForConditionalGeneration, implementation: str) -> None:
    """An image, a prompt of two rows, and a token more for each; their shapes are checked."""
    config, dtype = model.config, model.dtype
    D = config.hidden_size
    h, w = VISION_ROWS
    pixels = torch.empty(h * w, 1176, device=CUDA)
    check(model.visual.encode(pixels, 1, h, w, implementation), (h * w // 4, D), dtype)

    cache = model.make_cache(2, 8)
    for length in (7, 1):
        ids = torch.zeros(2, length, dtype=torch.int64, device=CUDA)
        positions = torch.zeros(3, 2, length, dtype=torch.int64, device=CUDA)
        x = model.model.embed_tokens(ids)
        check(x, (2, length, D), dtype)
        # Layer by layer: `forward` looks at values, to refuse those that can't be right.
        cos, sin = model.model.rotary_table(positions, x.dtype)
        for i, layer in enumerate(model.model.layers):
            x, _ = layer(x, cos, sin, AttentionMask(causal=True), implementation, cache.layer(i))
        cache.length += length
        x = model.model.norm(x)
        check(x, (2, length, D), dtype)
        logits = model.compute_logits(x[:, -1:])
        check(logits, (2, 1, config.vocab_size), dtype)
    assert cache.length == 8


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "chunked", "flash_attention_2"])
@pytest.mark.parametrize("name", ["2b", "7b"])
def test_the_official_shapes_run_with_every_attention(fake, name, implementation):
    run_all(fake_model(small(OFFICIAL[name]), torch.bfloat16), implementation)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "chunked"])
def test_a_padded_batch_runs_with_every_attention(fake, implementation):
    """But for flash_attention_2, which reads from the mask how many tokens there are."""
    q = torch.empty(2, 12, 5, 128, device=CUDA, dtype=torch.bfloat16)
    k = torch.empty(2, 2, 9, 128, device=CUDA, dtype=torch.bfloat16)
    padding = torch.ones(2, 9, dtype=torch.bool, device=CUDA)
    dense = torch.ones(2, 1, 5, 9, dtype=torch.bool, device=CUDA)
    out, _ = attention(q, k, k, AttentionMask(True, padding, dense), implementation)
    check(out, (2, 5, 12 * 128), torch.bfloat16)


@pytest.mark.parametrize("heads", [(12, 2), (28, 4), (64, 8), (16, 16)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pytorchs_flash_kernel_takes_grouped_heads_of_packed_rows(fake, heads, causal, dtype):
    H, K = heads
    q = torch.empty(11, H, 128, device=CUDA, dtype=dtype)
    k = torch.empty(14, K, 128, device=CUDA, dtype=dtype)
    starts = torch.zeros(4, device=CUDA, dtype=torch.int32)
    out = flash.torch_kernel(q, k, k, starts, starts, 5, 6, causal=causal)
    check(out, (11, H, 128), dtype)


@torch.no_grad()
@pytest.mark.parametrize("name", ["2b", "7b"])
def test_int8_weights_run_with_few_and_with_many_rows(fake, name):
    """Few go through the int8 kernel, many through a product with unpacked weights."""
    model = fake_model(small(OFFICIAL[name]), torch.bfloat16, int8=True)
    assert model.lm_head.weight.dtype == torch.int8
    assert model.lm_head.weight.device == CUDA
    run_all(model, "sdpa")
    layer = model.model.layers[0].mlp.up_proj
    for rows in (1, 8, 64, 300):
        x = torch.empty(1, rows, layer.in_features, device=CUDA, dtype=torch.bfloat16)
        check(layer(x), (1, rows, layer.out_features), torch.bfloat16)


class StepWithoutGraph(compiled.CompiledStep):
    """Fake tensors have no CUDA graph: the step that it would record runs by itself."""

    def capture(self) -> None:
        pass


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", ["2b", "7b"])
def test_the_step_that_becomes_a_cuda_graph_runs(fake, monkeypatch, name, int8, batch):
    monkeypatch.setattr(compiled, "compile_once", lambda function: function)
    monkeypatch.setattr(torch._dynamo, "mark_dynamic", lambda tensor, axis: None)
    model = fake_model(small(OFFICIAL[name]), torch.bfloat16, int8=int8)
    cache = model.make_cache(batch, 12)
    cache.length = 7
    mask = torch.ones(batch, 7, dtype=torch.int64, device=CUDA)
    rope_deltas = torch.zeros(batch, 1, dtype=torch.int64, device=CUDA)
    step = StepWithoutGraph(model, cache, mask, rope_deltas)
    token = torch.zeros(batch, dtype=torch.int64, device=CUDA)
    for _ in range(2):
        check(step(token), (batch, model.config.vocab_size), torch.bfloat16)
    assert cache.length == 9
    check(step.column, (1,), torch.int64)


@pytest.mark.parametrize("do_sample", [False, True])
def test_tokens_are_chosen_on_the_device(fake, do_sample):
    sampling = Sampling(
        do_sample=do_sample,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
        repetition_penalty=1.05,
        eos_token_id=[1, 2],
        pad_token_id=0,
    )
    logits = torch.empty(3, 500, device=CUDA, dtype=torch.bfloat16)
    ids = torch.zeros(3, 7, dtype=torch.int64, device=CUDA)
    check(next_token(logits, ids, sampling, None), (3,), torch.int64)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "count"), [("2b", 4), ("7b", 2), ("72b", 2), ("72b", 8), ("72b", 16)]
)
def test_a_process_of_several_runs_its_part_of_an_official_shape(monkeypatch, name, count):
    """PyTorch's "fake" processes exchange nothing; the exchanges have their shapes and dtypes."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    config = small(OFFICIAL[name])
    for rank in (0, count - 1):
        dist.init_process_group("fake", rank=rank, world_size=count, store=FakeStore())
        try:
            # Making a mesh looks at values.
            mesh = device_mesh.init_device_mesh("cuda", (count,))
            monkeypatch.setattr(device_mesh, "init_device_mesh", lambda kind, size, mesh=mesh: mesh)
            with fake_cuda():
                part = distributed.Part(config, rank, count, "cuda:0", count)
                model = fake_model(config, torch.bfloat16, part=part)
                distributed.share(model, part)
                run_all(model, "sdpa")
                held = max(1, config.num_key_value_heads // count)
                assert model.make_cache(1, 1).keys.shape[2] == held
        finally:
            monkeypatch.undo()
            dist.destroy_process_group()
