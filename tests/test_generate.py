"""Generation: the reference's tokens and distributions; promises about batches, ends, seeds and state."""

import math
import random

import pytest
import torch
from reference import collate, random_inputs, random_pair, random_rows, rows_alone
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from qwen2vl import Sampling, warp_logits


def fresh(ours, inputs: dict, **settings) -> torch.Tensor:
    """The new tokens of a greedy generation without end tokens."""
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1} | settings
    return ours.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("kind", ["text", "picture", "pictures", "video", "mixed batch"])
def test_greedy_tokens_equal_the_reference(kind, amount):
    for seed in range(amount(4, 20)):
        ours, theirs = random_pair(seed)
        inputs = random_inputs(ours.config, kind, seed)
        expected = theirs.generate(
            **inputs, max_new_tokens=40, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
        )
        assert torch.equal(ours.generate(**inputs, max_new_tokens=40, eos_token_id=-1), expected), (
            f"seed {seed}"
        )


def test_a_left_padded_batch_gives_the_tokens_of_its_rows_alone():
    ours, _ = random_pair(1)
    rows = random_rows(random.Random(1), ours.config, "mixed batch")
    inputs = collate(rows, ours.config, 1)
    together = fresh(ours, inputs)
    for i, alone in enumerate(rows_alone(rows, inputs, ours.config)):
        assert torch.equal(fresh(ours, alone)[0], together[i])


def test_what_was_generated_before_changes_nothing():
    ours, _ = random_pair(2)
    first, second = (random_inputs(ours.config, kind, 2) for kind in ("mixed batch", "picture"))
    expected, logits = fresh(ours, second), ours(**second).logits
    fresh(ours, first)
    assert torch.equal(fresh(ours, second), expected)
    assert torch.equal(ours(**second).logits, logits)


def test_two_streams_taken_in_turns_do_not_see_each_other():
    ours, _ = random_pair(3)
    inputs = [random_inputs(ours.config, kind, 3) for kind in ("video", "picture")]
    expected = [fresh(ours, one) for one in inputs]
    streams = [ours.stream(**one, max_new_tokens=12, do_sample=False, eos_token_id=-1) for one in inputs]
    turns = list(zip(*streams, strict=True))
    for i in range(2):
        assert torch.equal(torch.stack([turn[i] for turn in turns], dim=1), expected[i])


def test_stream_and_generate_give_the_same_tokens_with_and_without_cache():
    ours, _ = random_pair(4)
    inputs = random_inputs(ours.config, "picture", 4)
    tokens = fresh(ours, inputs)[0]
    ids = inputs["input_ids"]
    for token in tokens:  # the slow way: the whole prompt again for each token
        mask = torch.ones_like(ids)
        assert ours(**(inputs | {"input_ids": ids, "attention_mask": mask})).logits[0, -1].argmax() == token
        ids = torch.cat((ids, token.view(1, 1)), 1)


def test_rows_stop_one_by_one_and_the_last_step_runs_no_forward():
    ours, _ = random_pair(5)
    inputs = random_inputs(ours.config, "mixed batch", 5)
    free = fresh(ours, inputs)
    ends = [int(free[0, 2]), int(free[1, 4])]  # several end tokens
    calls = []
    ours.model.register_forward_hook(lambda *_: calls.append(1))
    stopped = fresh(ours, inputs, eos_token_id=ends, pad_token_id=7)
    assert len(calls) == stopped.shape[1]
    for row, expected in zip(stopped.tolist(), free.tolist(), strict=True):
        at = next((i for i, token in enumerate(expected) if token in ends), len(expected) - 1)
        expected = expected[: at + 1] + [7] * (len(row) - at - 1)
        assert row == expected[: len(row)]


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
    logits, seen = (
        torch.randn(8, 90, generator=generator) * 3,
        torch.randint(90, (8, 30), generator=generator),
    )
    reference = LogitsProcessorList()
    for name, kind in (
        ("repetition_penalty", logits_process.RepetitionPenaltyLogitsProcessor),
        ("temperature", logits_process.TemperatureLogitsWarper),
        ("top_k", logits_process.TopKLogitsWarper),
        ("top_p", logits_process.TopPLogitsWarper),
    ):
        if name in settings:
            reference.append(kind(settings[name]))
    expected = reference(seen, logits).softmax(-1)
    found = warp_logits(logits, seen, Sampling(do_sample=True, **settings)).softmax(-1)
    assert figure("sampling distributions, error", (found - expected).abs().max().item()) <= 1e-6
    assert (found - logits.softmax(-1)).abs().max() >= 1e-2  # the setting does something


def test_the_same_seed_draws_the_same_tokens_and_another_others():
    ours, _ = random_pair(6)
    inputs = random_inputs(ours.config, "picture", 6)
    drawn = [fresh(ours, inputs, do_sample=True, seed=seed, max_new_tokens=30) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], fresh(ours, inputs, max_new_tokens=30))


def test_samples_follow_the_distribution():
    """2,000 draws of one token in one batch against the softmax of the logits: a chi-squared test at 1e-6."""
    ours, _ = random_pair(7)
    ids = torch.tensor([[3, 5, 8]]).expand(2000, -1)
    drawn = ours.generate(ids, max_new_tokens=1, temperature=0.5, top_k=4, seed=0)[:, -1]
    logits = ours(ids[:1]).logits[0, -1]
    top = logits.topk(4)
    expected = 2000 * (top.values / 0.5).softmax(-1)
    counts = torch.tensor([(drawn == i).sum() for i in top.indices])
    assert counts.sum() == 2000  # nothing outside the four likeliest
    assert ((counts - expected) ** 2 / expected).sum() <= 30.7  # 3 degrees of freedom


OFFICIAL = {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "eos_token_id": [11, 12]}


def resolve(**chosen) -> Sampling:
    return Sampling.resolve(random_pair(0)[0].config, OFFICIAL, chosen)


def test_the_official_defaults_hold_until_the_caller_sets_a_sampling_setting():
    assert resolve().top_k == 1 and resolve().temperature == 0.01
    assert resolve(repetition_penalty=1.2).top_k == 1
    warm = resolve(temperature=0.9)
    assert (warm.do_sample, warm.temperature, warm.top_k, warm.top_p) == (True, 0.9, 0, 1.0)
    assert not resolve(do_sample=False).do_sample
    assert list(warm.eos_token_id) == [11, 12]
    assert not resolve(temperature=0).do_sample


def test_a_temperature_near_zero_is_greedy_and_not_an_overflow():
    ours, _ = random_pair(6)
    inputs = random_inputs(ours.config, "picture", 6)
    assert torch.equal(fresh(ours, inputs, do_sample=None, temperature=1e-40), fresh(ours, inputs))


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}], ids=str)
def test_settings_out_of_range_are_errors_that_name_them(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"{name}={value}\b"):
        resolve(**wrong)


def test_prompts_that_leave_no_room_and_right_padding_are_errors():
    ours, _ = random_pair(8)
    with pytest.raises(ValueError, match="max_new_tokens is 4095; behind 2 tokens this model takes 4094"):
        ours.generate(torch.tensor([[1, 2]]), max_new_tokens=4095)
    with pytest.raises(ValueError, match="padding on the left"):
        ours.generate(torch.tensor([[1, 2]]), attention_mask=torch.tensor([[1, 0]]))


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_k": 5, "top_p": 0.5}])
def test_float16_logits_are_finite_or_an_error_says_so(settings):
    ours, _ = random_pair(9)
    ours = ours.half()
    assert ours(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    for fill in (60000, math.nan):
        ours.lm_head.weight.data.fill_(fill)
        with pytest.raises(ValueError, match="float16 are not finite"):
            ours.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, **settings)
