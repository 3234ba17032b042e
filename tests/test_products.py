"""Products of 16-bit weights in float32: exact but for their rounding, and only where they win."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from qwen2vl import Qwen2VLForConditionalGeneration, pick_attention
from qwen2vl_extras import products
from qwen2vl_extras.products import MANY_ROWS, OUTPUTS_AT_ONCE, WideLinear

ROOT = Path(__file__).parent.parent
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(params=[True, False], ids=["multiplies", "does not"])
def multiplies(request, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU that multiplies 16-bit numbers itself, and one that doesn't."""
    monkeypatch.setattr(products, "multiplies", lambda dtype: dtype not in HALVES or request.param)
    return request.param


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@torch.no_grad()
def test_a_product_in_float32_is_the_exact_one_rounded(dtype, amount: Callable):
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    half_a_step = torch.finfo(dtype).eps / 2  # relative: what rounding the result may cost
    for _ in range(amount(30, 500)):
        sizes = [rng.randint(1, 200), rng.choice([1, 7, 300, OUTPUTS_AT_ONCE + rng.randint(0, 99)])]
        x = torch.randn(2, rng.randint(1, 60), sizes[0], generator=generator).to(dtype)
        weight = torch.randn(sizes[1], sizes[0], generator=generator).to(dtype)
        bias = torch.randn(sizes[1], generator=generator).to(dtype) if rng.random() < 0.5 else None
        found = products.in_float32(x, weight, bias)
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        assert found.dtype == dtype
        assert found.shape == exact.shape
        # What float32 itself rounds away is far below that, but where a sum nearly cancels.
        sum_of_sizes = F.linear(x.double().abs(), weight.double().abs())
        bound = half_a_step * exact.abs() + 1e-6 * (sum_of_sizes + 1)
        assert ((found.double() - exact).abs() <= bound).all(), (x.shape, weight.shape)


def test_layers_are_widened_only_where_the_cpu_can_not_multiply_their_weights(multiplies):
    model = nn.Sequential(
        nn.Linear(4, 4, dtype=torch.bfloat16),
        nn.Linear(4, 4, dtype=torch.float16),
        nn.Linear(4, 4),
        nn.Linear(4, 4, dtype=torch.bfloat16, device="meta"),
        nn.Embedding(4, 4, dtype=torch.bfloat16),
    )
    names = list(model.state_dict())
    products.widen(model)
    widened = [type(layer) is WideLinear for layer in model]
    assert widened == [not multiplies, not multiplies, False, False, False]
    assert list(model.state_dict()) == names


def test_attention_in_chunks_is_for_cpus_that_multiply(multiplies):
    cpu = torch.device("cpu")
    assert pick_attention("auto", cpu, torch.bfloat16) == ("chunked" if multiplies else "sdpa")
    assert pick_attention("auto", cpu, torch.float32) == "sdpa"
    assert pick_attention("auto", torch.device("cuda"), torch.bfloat16) == "sdpa"
    assert pick_attention("eager", cpu, torch.bfloat16) == "eager"


def test_few_rows_are_multiplied_as_ever_and_many_in_float32():
    plain = nn.Linear(50, 30, dtype=torch.bfloat16)
    wide = WideLinear(50, 30, dtype=torch.bfloat16)
    wide.load_state_dict(plain.state_dict())
    few = torch.randn(MANY_ROWS - 1, 50).bfloat16()
    many = torch.randn(MANY_ROWS, 50).bfloat16()
    assert torch.equal(wide(few), plain(few))
    assert torch.equal(wide(many), products.in_float32(many, plain.weight, plain.bias))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_gradients_are_the_exact_ones_rounded(bias, frozen):
    """Of the input, and of weight and bias unless they are frozen, as under a LoRA adapter."""
    generator = torch.Generator().manual_seed(0)
    wide = WideLinear(70, 2 * OUTPUTS_AT_ONCE + 3, bias=bias, dtype=torch.bfloat16)
    wide.requires_grad_(not frozen)
    exact = nn.Linear(70, wide.out_features, bias=bias, dtype=torch.float64)
    exact.load_state_dict(wide.state_dict())
    x = torch.randn(2, MANY_ROWS, 70, generator=generator).bfloat16().requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    # A gradient of its own for each output; few numbers, which bfloat16 holds exactly.
    grad = torch.randint(-4, 5, (2, MANY_ROWS, wide.out_features), generator=generator)
    wide(x).backward(grad.bfloat16())
    exact(exact_x).backward(grad.double())

    pairs = [(x.grad, exact_x.grad)]
    for ours, theirs in zip(wide.parameters(), exact.parameters(), strict=True):
        assert (ours.grad is None) == frozen
        if not frozen:
            pairs.append((ours.grad, theirs.grad))
    for found, expected in pairs:
        assert found.dtype == torch.bfloat16
        bound = 2**-8 * expected.abs() + 1e-5 * expected.abs().max()
        assert ((found.double() - expected).abs() <= bound).all()


def squared_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).pow(2).mean())


@torch.no_grad()
def test_logits_are_as_near_to_those_of_float32(tiny, monkeypatch, figure):
    """Of the same weights, rounded to bfloat16. Most of the error is that of activations."""
    _, processor = tiny

    def load(can_multiply: bool) -> Qwen2VLForConditionalGeneration:
        monkeypatch.setattr(products, "multiplies", lambda dtype: can_multiply)
        return Qwen2VLForConditionalGeneration.from_pretrained(
            "tiny", torch.bfloat16, "cpu", attn_implementation="sdpa"
        )

    plain, wide, exact = load(True), load(False), load(True).float()
    linear_layers = [module for module in wide.modules() if isinstance(module, nn.Linear)]
    assert all(type(layer) is WideLinear for layer in linear_layers)
    assert not any(type(module) is WideLinear for module in plain.modules())

    errors = {"plain": 0.0, "wide": 0.0}
    for name in ("shapes", "triangle", "tall", "many"):
        content = [
            {"type": "image", "path": str(ROOT / "examples" / f"{name}.png")},
            {"type": "text", "text": "How many objects do you see?"},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
        )
        expected = exact(**inputs).logits.double()
        errors["plain"] += squared_error(plain(**inputs).logits, expected)
        errors["wide"] += squared_error(wide(**inputs).logits, expected)
    ratio = (errors["wide"] / errors["plain"]) ** 0.5
    assert figure("bfloat16: RMS error, products in float32 / plain", ratio) <= 1.1
