"""The fast paths say what the plain ones say: compiled steps, int8 weights. The benchmark counts rightly."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from PIL import Image
from reference import TOLERANCE, error, random_inputs, random_pair
from torch.utils.flop_counter import FlopCounterMode

import bench
import fast
from qwen2vl import KVCache, Qwen2VLForConditionalGeneration
from tiny.evaluate import answers, fresh_question
from tiny.tasks import TASKS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def no_recompilation():
    """From the first call of what this gives on, compiling anything anew is an error."""
    yield lambda: torch.compiler.set_stance("fail_on_recompile")
    torch.compiler.set_stance("default")


# Batches and single rows, for at one row linear layers are multiplied and summed, at more they are not.
@pytest.mark.parametrize("kind", ["picture", "mixed batch"])
def test_a_compiled_step_gives_the_references_logits(kind, figure):
    ours, theirs = random_pair(5)
    inputs = random_inputs(ours.config, kind, 5)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    token = torch.arange(len(ids)) + 3
    longer = torch.cat((ids, token[:, None]), 1), torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
    with torch.no_grad():
        expected = theirs(**inputs | {"input_ids": longer[0], "attention_mask": longer[1]}).logits[:, -1]
        cache = KVCache(ours.config, *ids.shape[:1], ids.shape[1] + 9)
        prompt = ours(**inputs, past_key_values=cache)
        step = fast.CompiledStep(ours, cache, mask, prompt.rope_deltas)
        logits = step(token)
    assert figure(f"compiled step, {kind}", error(logits, expected)) <= TOLERANCE


@pytest.mark.parametrize(
    "settings", [{}, {"seed": 3, "temperature": 0.7, "top_p": 0.9}], ids=["greedy", "drawn"]
)
def test_compiled_generation_gives_the_same_tokens_and_compiles_once(settings, no_recompilation):
    ours, _ = random_pair(6)
    how = {"max_new_tokens": 12, "eos_token_id": -1, "repetition_penalty": 1.1} | settings
    for i, kind in enumerate(("picture", "text", "video", "pictures")):
        inputs = random_inputs(ours.config, kind, i)
        assert torch.equal(ours.generate(**inputs, **how, compile=True), ours.generate(**inputs, **how))
        no_recompilation()  # prompts of any kind and length, caches of any size


def test_compiled_rows_end_when_they_end():
    ours, _ = random_pair(7)
    inputs = random_inputs(ours.config, "mixed batch", 7)
    tokens = ours.generate(**inputs, max_new_tokens=30, eos_token_id=-1)[:, inputs["input_ids"].shape[1] :]
    ends = tokens[:, :6].flatten().tolist()  # every row ends within six tokens
    how = {"max_new_tokens": 30, "eos_token_id": ends, "pad_token_id": 1}
    ended = ours.generate(**inputs, **how)
    assert ended.shape[1] < inputs["input_ids"].shape[1] + 7
    assert torch.equal(ours.generate(**inputs, **how, compile=True), ended)


def test_compiled_streams_taken_in_turns_do_not_see_each_other():
    ours, _ = random_pair(8)
    inputs = [random_inputs(ours.config, kind, 8) for kind in ("video", "picture")]
    how = {"max_new_tokens": 8, "eos_token_id": -1}
    expected = [list(ours.stream(**one, **how)) for one in inputs]
    streams = [ours.stream(**one, **how, compile=True) for one in inputs]
    assert [list(turn) for turn in zip(*expected, strict=True)] == [
        list(turn) for turn in zip(*streams, strict=True)
    ]


@pytest.mark.parametrize(("rows", "columns"), [(8, 64), (7, 9000), (2, 4099)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_compiled_row_times_a_matrix_is_their_product(rows, columns, dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((columns,), (rows, columns))
    )
    product = torch.compile(fast.row_product, dynamic=False)(x, weight)
    assert error(product.double()[None], (weight.double() @ x.double())[None]) <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_int8_layers_multiply_by_the_rounded_weight(dtype, bias):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(96, 64, bias, dtype=dtype)
    weight = torch.randn(64, 96, generator=generator).to(dtype)
    layer.weight.data = weight
    rounded = fast.to_int8(layer) or layer.weight.double() * layer.scale.double()[:, None]
    steps = weight.double().abs().amax(1, keepdim=True) / 127  # per output channel
    assert layer.weight.dtype == torch.int8
    assert layer.weight.abs().amax(1).eq(127).all()
    exact = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]  # how exactly the scale itself is stored
    assert ((rounded - weight).abs() <= steps * (0.5 + 128 * exact)).all()
    compiled = torch.compile(layer)
    for rows, run in ((1, layer), (1, compiled), (5, layer), (fast.MANY_ROWS, layer), (3, compiled)):
        x = torch.randn(rows, 96, generator=generator).to(dtype)
        expected = x.double() @ rounded.T + (layer.bias.double() if bias else 0)
        with torch.no_grad():
            assert (
                error(run(x[None]).double(), expected[None])
                <= {torch.float32: 2e-6, torch.bfloat16: 0.01}[dtype]
            )


def test_int8_halves_the_memory_and_hardly_changes_the_answers(tiny, figure):
    _, processor = tiny
    full, int8 = (
        Qwen2VLForConditionalGeneration.from_pretrained("tiny", torch.bfloat16, "cpu", int8=int8)
        for int8 in (False, True)
    )
    sizes = [sum(t.nbytes for t in {*m.parameters(), *m.buffers()}) for m in (full, int8)]
    assert figure("int8 memory against bfloat16", sizes[1] / sizes[0]) < 0.6
    assert int8.lm_head.weight is int8.model.embed_tokens.weight
    questions = [fresh_question("picture", task, i, "int8") for task in TASKS["picture"] for i in range(4)]
    said = [answers(model, processor, questions) for model in (full, int8)]
    same = sum(a == b for a, b in zip(*said, strict=True)) / len(questions)
    assert figure("int8 answers equal to bfloat16's", same) >= 0.9


def test_int8_weights_are_not_saved(tmp_path):
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="cpu", int8=True)
    with pytest.raises(ValueError, match="int8"):
        model.save_pretrained(tmp_path / "copy")
    assert not list(tmp_path.iterdir())


def test_the_benchmark_counts_the_operations_that_pytorch_counts():
    ours, _ = random_pair(10)
    v = ours.config.vision_config
    pixels = torch.randn(64, v.in_chans * v.temporal_patch_size * v.patch_size**2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ours.visual(pixels, bench.grid_of(64), "eager")
    assert bench.vision_flops(ours.config, 64) == counter.get_total_flops()


def test_the_benchmark_measures_both_on_the_same_weights(tmp_path):
    out = tmp_path / "figures.json"
    command = ["--model", "tiny", "--device", "cpu", "--stages", "prefill-300,vision-256", "--json", out]
    done = subprocess.run(
        [sys.executable, "bench.py", *command, "--plot", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    results = json.loads(out.read_text())["results"]
    rows = {row["who"]: row for row in results if row["stage"].startswith("prefill")}
    ours, theirs = rows["ours"], rows["transformers"]
    assert ours["ratio"] == pytest.approx(theirs["median"] / ours["median"])
    assert theirs["least"] <= theirs["median"] <= theirs["most"]
    assert ours["memory"] >= 0 and theirs["memory"] >= 0  # 0: it fitted into what the uncounted run left
    assert "| prefill, 300 tokens | ours |" in done.stdout
    assert Image.open(tmp_path / "bench.png").size[0] > 1000


@pytest.mark.parametrize(("shape", "parameters"), [("shape:2b", 2_208_985_600), ("shape:7b", 8_291_375_616)])
def test_the_benchmarks_shapes_are_the_official_ones(shape, parameters):
    """The official checkpoints' total_size in model.safetensors.index.json, halved: bfloat16."""
    args = argparse.Namespace(model=shape, device="meta", dtype="bfloat16", attn="sdpa")
    assert sum(p.numel() for p in bench.Models(args).ours.parameters()) == parameters
