"""bfloat16: our rounding errors are no larger than the reference's."""

import subprocess
import sys

import pytest
import torch

from tests.helpers.reference import KINDS, random_inputs, random_pair

# Errors scatter by seed, so their squares are pooled over many inputs before the two are compared.
MAX_RATIO = 1.05


@pytest.mark.parametrize("attn", ["eager", "sdpa", "chunked"])
@torch.no_grad()
def test_bfloat16_errors_pooled_over_inputs_are_within_the_references(attn, amount, figure):
    our_squares = 0.0
    their_squares = 0.0
    for seed in range(amount(8, 24)):
        ours, theirs = random_pair(seed, attn=attn)
        ours = ours.bfloat16()
        theirs = theirs.bfloat16()
        batches = [random_inputs(ours.config, kind, seed) for kind in KINDS]
        our_logits = [ours(**inputs).logits for inputs in batches]
        their_logits = [theirs(**inputs).logits for inputs in batches]

        # The weights stay rounded; only the arithmetic is exact now.
        theirs.double()
        theirs.set_attn_implementation("sdpa")  # their eager masks padding with NaN in float64
        for inputs, a, b in zip(batches, our_logits, their_logits, strict=True):
            is_token = inputs["attention_mask"].bool()
            exact = theirs(**inputs).logits[is_token]
            our_squares += (a[is_token] - exact).square().mean().item()
            their_squares += (b[is_token] - exact).square().mean().item()

    assert their_squares > 0
    ratio = (our_squares / their_squares) ** 0.5
    assert figure(f"bfloat16, {attn}: RMS error, ours / reference's", ratio) <= MAX_RATIO


FIRST_CALLS = """
import torch
import qwen2vl
angles = torch.linspace(0, 30, 8000)
assert torch.equal(angles.cos(), angles.cos())
assert torch.equal(angles.sin(), angles.sin())
"""


def test_the_first_rotary_table_of_a_process_is_as_exact_as_the_next(amount):
    """MKL's race (first_calls.py) spoils one process of ten on some processors, and none here."""
    for _ in range(amount(4, 40)):
        subprocess.run([sys.executable, "-c", FIRST_CALLS], check=True)
