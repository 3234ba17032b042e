"""int8 weights: rounded rightly, half the memory, nearly the same answers."""

import copy

import pytest
import torch
import torch.nn as nn

from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_extras import int8_products, products
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


# ------------------------------------------------------------------- whole numbers times whole ones


@pytest.fixture
def fbgemm():
    if not int8_products.run_here():
        pytest.skip("this CPU has no products of int8 by FBGEMM")
    with int8_products.chosen():
        yield


LONG = 8960  # the longest row of the 2B checkpoint


def rows_of(kind: str, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, LONG, generator=generator)
    if kind == "one large number":
        x[:, 5] = 3000
    if kind == "largest sums":
        x = torch.tensor([[1.0], [-1.0], [0.7]]).expand(-1, LONG)
    if kind == "zeros":
        x[1] = 0
    if kind == "tiny numbers":
        x = x * 1e-20
    if kind == "many rows":
        x = torch.randn(int8_products.ROWS_AT_ONCE + 3, LONG, generator=generator)
    return x.to(dtype)


KINDS = ["even", "one large number", "largest sums", "zeros", "tiny numbers", "many rows"]


@pytest.mark.usefixtures("fbgemm")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_product_of_whole_numbers_is_as_exact_as_one_of_floats(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (48, LONG), generator=generator).to(torch.int8)
    weight[7] = 127  # no sum is larger
    scale = torch.rand(48, generator=generator) + 0.1
    x = rows_of(kind, dtype)
    rounded = weight.double() * scale.double()[:, None]
    expected = x.double() @ rounded.T  # (n, out)
    found = int8_products.product(x, int8_products.pack(weight, scale), 48)
    assert found.dtype == dtype

    # Each number is rounded to the finest step, by less than half of it: the spread of that is
    # step / sqrt(12). The sums of some thousand of these stay within six times their spread.
    finest = int8_products.STEPS * int8_products.FINER ** (int8_products.PARTS - 1)
    spread = x.double().abs().amax(1, keepdim=True) / finest / 12**0.5 * rounded.norm(dim=1)
    room = PRODUCT_ERROR[dtype] * expected.abs().amax(1, keepdim=True)
    assert ((found.double() - expected).abs() <= 6 * spread + room).all()


@pytest.mark.usefixtures("fbgemm")
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_finite_after_a_product_of_whole_numbers(number):
    weight = torch.ones(16, 32, dtype=torch.int8)
    x = torch.ones(3, 32)
    x[1, 4] = number
    found = int8_products.product(x, int8_products.pack(weight, torch.ones(16)), 16)
    assert found.isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.usefixtures("fbgemm")
@torch.no_grad()
def test_a_packed_layer_holds_its_weight_once_and_can_be_copied():
    layer = quantize(nn.Linear(96, 64))
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    for keeps in (True, False):
        packed = copy.deepcopy(layer)
        packed.pack(keep_weight=keeps)
        packed.pack(keep_weight=keeps)  # changes nothing
        assert (packed.weight is not None) == keeps
        again = copy.deepcopy(packed)
        del packed
        assert error(again(x), expected) <= PRODUCT_ERROR[torch.float32]
        assert again.state_dict().keys() <= layer.state_dict().keys()


@pytest.mark.parametrize("has_fbgemm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_int8_gives_the_tokens_of_plain_int8(tiny, dtype, has_fbgemm, monkeypatch):
    if has_fbgemm and not int8_products.run_here():
        pytest.skip("this CPU has no products of int8 by FBGEMM")
    monkeypatch.setattr(int8_products, "run_here", lambda: has_fbgemm)
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", dtype, "cpu", int8=True)
    ids = torch.randint(100, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 6, "eos_token_id": -1, "temperature": 0}
    plain = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options, compile=True), plain)
    assert torch.equal(model.generate(ids, **options), plain)  # packed by now
    layers = [m for m in model.model.layers.modules() if isinstance(m, Int8Linear)]
    assert all((layer.weight is None) == has_fbgemm for layer in layers)
    assert model.lm_head.weight is model.model.embed_tokens.weight


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
