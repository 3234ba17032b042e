"""Generation: the reference's tokens and distributions, batches, ends of rows, seeds, errors."""

import math
import random
import re

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from qwen2vl import Sampling, warp_logits
from tests.helpers.reference import (
    KINDS,
    collate,
    random_inputs,
    random_pair,
    random_rows,
    rows_alone,
)


def new_tokens(
    ours,
    inputs: dict[str, Tensor],
    max_new_tokens: int = 12,
    do_sample: bool | None = False,
    eos_token_id: int | list[int] = -1,
    **settings,
) -> Tensor:
    """The tokens behind the prompt, (B, new tokens); by default greedy, without end tokens."""
    ids = ours.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        eos_token_id=eos_token_id,
        **settings,
    )
    return ids[:, inputs["input_ids"].shape[1] :]


# ----------------------------------------------------------------------------------- greedy tokens


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_equal_the_reference(kind, amount):
    for seed in range(amount(4, 20)):
        ours, theirs = random_pair(seed)
        inputs = random_inputs(ours.config, kind, seed)
        found = ours.generate(**inputs, max_new_tokens=40, eos_token_id=-1)
        expected = theirs.generate(
            **inputs,
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
            use_cache=True,
        )
        assert torch.equal(found, expected), f"seed {seed}"


def test_a_left_padded_batch_gives_the_tokens_of_its_rows_alone():
    ours, _ = random_pair(1)
    rows = random_rows(random.Random(1), ours.config, "mixed batch")
    inputs = collate(rows, ours.config, 1)
    together = new_tokens(ours, inputs)
    for i, alone in enumerate(rows_alone(rows, inputs, ours.config)):
        assert torch.equal(new_tokens(ours, alone)[0], together[i])


def test_what_was_generated_before_changes_nothing():
    ours, _ = random_pair(2)
    first = random_inputs(ours.config, "mixed batch", 2)
    second = random_inputs(ours.config, "image", 2)
    expected = new_tokens(ours, second)
    logits = ours(**second).logits
    new_tokens(ours, first)
    assert torch.equal(new_tokens(ours, second), expected)
    assert torch.equal(ours(**second).logits, logits)


def test_two_streams_taken_in_turns_do_not_see_each_other():
    ours, _ = random_pair(3)
    inputs = [random_inputs(ours.config, kind, 3) for kind in ("video", "image")]
    expected = [new_tokens(ours, one) for one in inputs]
    streams = []
    for one in inputs:
        streams.append(ours.stream(**one, max_new_tokens=12, do_sample=False, eos_token_id=-1))
    turns = list(zip(*streams, strict=True))
    for i in range(2):
        found = torch.stack([turn[i] for turn in turns], dim=1)
        assert torch.equal(found, expected[i])


def test_stream_and_generate_give_the_same_tokens_with_and_without_cache():
    ours, _ = random_pair(4)
    inputs = random_inputs(ours.config, "image", 4)
    tokens = new_tokens(ours, inputs)[0]
    streamed = ours.stream(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=-1)
    assert torch.equal(torch.cat(list(streamed)), tokens)
    # Without a cache: the whole prompt again for each token.
    longer = dict(inputs)
    for token in tokens:
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        assert ours(**longer).logits[0, -1].argmax() == token
        longer["input_ids"] = torch.cat((longer["input_ids"], token.view(1, 1)), dim=1)


def test_rows_stop_one_by_one_and_the_last_step_runs_no_forward():
    ours, _ = random_pair(5)
    inputs = random_inputs(ours.config, "mixed batch", 5)
    endless = new_tokens(ours, inputs)
    ends = [int(endless[0, 2]), int(endless[1, 4])]  # several end tokens
    calls = []
    ours.model.register_forward_hook(lambda *_: calls.append(1))
    stopped = new_tokens(ours, inputs, eos_token_id=ends, pad_token_id=7)
    assert len(calls) == stopped.shape[1]

    # Each row is that of the endless generation up to its end token, and then padding.
    for row, tokens in zip(stopped.tolist(), endless.tolist(), strict=True):
        expected = []
        for token in tokens:
            expected.append(token)
            if token in ends:
                break
        expected += [7] * (len(row) - len(expected))
        assert row == expected[: len(row)]


# --------------------------------------------------------------------------------- sampled tokens


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 5},
        {"top_p": 0.7},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.5, "repetition_penalty": 1.4},
        {"top_p": 0.01},
        {"repetition_penalty": 0.8},
    ],
    ids=str,
)
def test_distributions_equal_the_reference(settings, figure):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 90, generator=generator) * 3
    ids = torch.randint(90, (8, 30), generator=generator)

    # The reference's steps, in its order.
    steps = {
        "repetition_penalty": logits_process.RepetitionPenaltyLogitsProcessor,
        "temperature": logits_process.TemperatureLogitsWarper,
        "top_k": logits_process.TopKLogitsWarper,
        "top_p": logits_process.TopPLogitsWarper,
    }
    reference = LogitsProcessorList()
    for name, step in steps.items():
        if name in settings:
            reference.append(step(settings[name]))
    expected = reference(ids, logits).softmax(-1)

    found = warp_logits(logits, ids, Sampling(do_sample=True, **settings)).softmax(-1)
    worst = (found - expected).abs().max().item()
    assert figure("sampling distributions, error", worst) <= 1e-6
    assert (found - logits.softmax(-1)).abs().max() >= 1e-2  # the setting does something


def test_the_same_seed_draws_the_same_tokens_and_another_others():
    ours, _ = random_pair(6)
    inputs = random_inputs(ours.config, "image", 6)

    def draw(seed: int) -> Tensor:
        return new_tokens(ours, inputs, do_sample=True, seed=seed, max_new_tokens=30)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert not torch.equal(draw(1), new_tokens(ours, inputs, max_new_tokens=30))


def test_samples_follow_the_distribution():
    """2,000 draws of one token against the softmax of the logits: a chi-squared test at 1e-6."""
    ours, _ = random_pair(7)
    ids = torch.tensor([[3, 5, 8]]).expand(2000, -1)
    drawn = ours.generate(ids, max_new_tokens=1, temperature=0.5, top_k=4, seed=0)[:, -1]

    logits = ours(ids[:1]).logits[0, -1]
    top = logits.topk(4)
    expected = 2000 * (top.values / 0.5).softmax(-1)
    counts = torch.tensor([(drawn == i).sum() for i in top.indices])
    assert counts.sum() == 2000  # nothing outside the four most probable
    assert ((counts - expected) ** 2 / expected).sum() <= 30.7  # 3 degrees of freedom


# --------------------------------------------------------------------------------------- settings

# What the official generation_config.json says, with other end tokens.
OFFICIAL = {
    "do_sample": True,
    "temperature": 0.01,
    "top_p": 0.001,
    "top_k": 1,
    "eos_token_id": [11, 12],
}


def resolve(**chosen) -> Sampling:
    """The settings of a caller who chooses these, with the official defaults."""
    config = random_pair(0)[0].config
    return Sampling.resolve(config, OFFICIAL, chosen)


def test_the_official_defaults_hold_until_the_caller_sets_a_sampling_setting():
    assert resolve().top_k == 1
    assert resolve().temperature == 0.01
    assert resolve(repetition_penalty=1.2).top_k == 1
    warm = resolve(temperature=0.9)
    assert (warm.do_sample, warm.temperature, warm.top_k, warm.top_p) == (True, 0.9, 0, 1.0)
    assert not resolve(do_sample=False).do_sample
    assert list(warm.eos_token_id) == [11, 12]
    assert not resolve(temperature=0).do_sample


def test_a_temperature_near_zero_is_greedy_and_not_an_overflow():
    ours, _ = random_pair(6)
    inputs = random_inputs(ours.config, "image", 6)
    cold = new_tokens(ours, inputs, do_sample=None, temperature=1e-40)
    assert torch.equal(cold, new_tokens(ours, inputs))


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1), ("top_k", -1), ("top_p", 0), ("top_p", 1.1)]
)
def test_settings_out_of_range_are_errors_that_name_them(name, value):
    with pytest.raises(ValueError, match=rf"{name}={value}\b"):
        resolve(**{name: value})


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("max_new_token", "max_new_tokens"), ("temprature", "temperature"), ("topk", "top_k")],
)
def test_an_unknown_argument_is_refused_with_the_nearest_known_one(wrong, nearest):
    ours, _ = random_pair(8)
    ids = torch.tensor([[1, 2]])
    expected = f"has no argument '{wrong}': did you mean '{nearest}'?"
    with pytest.raises(ValueError, match=re.escape(f"generate {expected}")):
        ours.generate(ids, **{wrong: 3})
    with pytest.raises(ValueError, match=re.escape(f"stream {expected}")):
        next(ours.stream(ids, **{wrong: 3}))


def test_prompts_that_leave_no_room_and_right_padding_are_errors():
    ours, _ = random_pair(8)
    expected = "max_new_tokens is 4095; after 2 tokens this model takes 4094"
    with pytest.raises(ValueError, match=expected):
        ours.generate(torch.tensor([[1, 2]]), max_new_tokens=4095)
    with pytest.raises(ValueError, match="padding on the left"):
        ours.generate(torch.tensor([[1, 2]]), attention_mask=torch.tensor([[1, 0]]))


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_k": 5, "top_p": 0.5}])
def test_float16_logits_are_finite_or_an_error_says_so(settings):
    ours, _ = random_pair(9)
    ours = ours.half()
    assert ours(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    for value in (60000, math.nan):
        ours.lm_head.weight.data.fill_(value)
        with pytest.raises(ValueError, match="float16 are not finite"):
            ours.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, **settings)
