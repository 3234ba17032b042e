"""int8 weights: rounded rightly, half the memory, nearly the same answers."""

import pytest
import torch
import torch.nn as nn

from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_extras import products
from qwen2vl_extras.int8 import MANY_ROWS, Int8Embedding, Int8Linear, quantize
from tests.helpers.reference import error
from tiny.evaluate import answer_questions, random_question
from tiny.tasks import TASKS

# How exactly a scale is stored, and how exactly a product is computed.
SCALE_ERROR = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
PRODUCT_ERROR = {torch.float32: 2e-6, torch.bfloat16: 0.01}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("multiplies", [True, False], ids=["multiplies", "does not"])
@torch.no_grad()
def test_int8_layers_multiply_by_the_rounded_weight(dtype, bias, multiplies, monkeypatch):
    """On CPUs that multiply bfloat16 themselves, and on others."""
    monkeypatch.setattr(products, "multiplies", lambda dtype: multiplies or dtype == torch.float32)
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(96, 64, bias, dtype=dtype)
    weight = torch.randn(64, 96, generator=generator).to(dtype)
    layer.weight.data = weight
    int8 = quantize(layer)
    assert int8.weight.dtype == torch.int8
    assert int8.weight.abs().amax(1).eq(127).all()

    # Each weight is off by half a step at most, and by what its scale is off.
    rounded = int8.weight.double() * int8.scale.double()[:, None]
    steps = weight.double().abs().amax(1, keepdim=True) / 127  # (out, 1)
    assert ((rounded - weight).abs() <= steps * (0.5 + 128 * SCALE_ERROR[dtype])).all()

    compiled = torch.compile(int8)
    for rows, run in ((1, int8), (1, compiled), (5, int8), (MANY_ROWS, int8), (3, compiled)):
        x = torch.randn(rows, 96, generator=generator).to(dtype)
        expected = x.double() @ rounded.T
        if bias:
            expected = expected + layer.bias.double()
        found = run(x[None])  # (1, rows, out)
        assert error(found.double(), expected[None]) <= PRODUCT_ERROR[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_int8_gives_the_tokens_of_plain_int8(tiny, dtype):
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", dtype, "cpu", int8=True)
    ids = torch.randint(100, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 6, "eos_token_id": -1, "temperature": 0}
    plain = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options, compile=True), plain)


# ---------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize(
    ("layer", "kind"),
    [(nn.Linear(6, 4), Int8Linear), (nn.Embedding(6, 4), Int8Embedding)],
    ids=["linear", "embedding"],
)
def test_quantizing_returns_a_new_layer_and_leaves_the_old_one(layer, kind):
    old_type = type(layer)
    old_weight = layer.weight.detach().clone()
    int8 = quantize(layer)
    assert int8 is not layer
    assert type(int8) is kind
    assert type(layer) is old_type
    assert list(layer.state_dict()) == list(old_type(6, 4).state_dict())
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, old_weight)


def test_other_modules_are_not_quantized():
    for module in (nn.LayerNorm(4), nn.Conv2d(1, 1, 1), quantize(nn.Linear(6, 4))):
        assert quantize(module) is module


def test_int8_halves_the_memory_and_hardly_changes_the_answers(tiny, figure):
    whole, processor = tiny
    load = Qwen2VLForConditionalGeneration.from_pretrained
    full = load("tiny", torch.bfloat16, "cpu")
    int8 = load("tiny", torch.bfloat16, "cpu", int8=True)
    assert int8.lm_head.weight is int8.model.embed_tokens.weight

    def count_bytes(model: nn.Module) -> int:
        tensors = {*model.parameters(), *model.buffers()}  # shared ones count once
        return sum(tensor.nbytes for tensor in tensors)

    ratio = count_bytes(int8) / count_bytes(full)
    assert figure("int8 memory against bfloat16", ratio) < 0.6

    questions = []
    for task in TASKS["image"]:
        for i in range(4):
            questions.append(random_question("image", task, i, "int8"))
    # In float32, in which every CPU is fast.
    rounded = load("tiny", torch.float32, "cpu", int8=True)
    answers = answer_questions(whole, processor, questions)
    int8_answers = answer_questions(rounded, processor, questions)
    same = sum(a == b for a, b in zip(answers, int8_answers, strict=True))
    assert figure("int8 answers equal to float32's", same / len(questions)) >= 0.9


def test_int8_weights_are_not_saved(tmp_path):
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="cpu", int8=True)
    with pytest.raises(ValueError, match="int8"):
        model.save_pretrained(tmp_path / "copy")
    assert not list(tmp_path.iterdir())
