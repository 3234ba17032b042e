"""bfloat16: our rounding errors are no larger than the reference's."""

import pytest
import torch
from reference import KINDS, random_inputs, random_pair

# Errors scatter by seed, so their squares are pooled over many inputs before the two are compared.
BAR = 1.05


@pytest.mark.parametrize("attn", ["eager", "sdpa", "blocks"])
@torch.no_grad()
def test_bfloat16_errors_pooled_over_inputs_are_within_the_references(attn, amount, figure):
    squares = {"ours": 0.0, "theirs": 0.0}
    for seed in range(amount(8, 24)):
        ours, theirs = (model.bfloat16() for model in random_pair(seed, attn=attn))
        batches = [random_inputs(ours.config, kind, seed) for kind in KINDS]
        rounded = (
            [ours(**inputs).logits for inputs in batches],
            [theirs(**inputs).logits for inputs in batches],
        )
        theirs.double()  # the weights stay rounded; only the arithmetic is exact now
        theirs.set_attn_implementation("sdpa")  # their eager masks padding with NaN in float64
        for inputs, a, b in zip(batches, *rounded, strict=True):
            real = inputs["attention_mask"].bool()
            exact = theirs(**inputs).logits
            squares["ours"] += (a[real] - exact[real]).square().mean().item()
            squares["theirs"] += (b[real] - exact[real]).square().mean().item()
    ratio = (squares["ours"] / squares["theirs"]) ** 0.5
    assert squares["theirs"] > 0
    assert figure(f"bfloat16, {attn}: RMS error, ours / reference's", ratio) <= BAR
