"""The compiled step and its loop give what the plain ones give, and leave the model as it is."""

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from qwen2vl import AttentionMask, KVCache, Sampling, decode, eager_attention, next_token
from qwen2vl_extras import compiled
from qwen2vl_extras.int8 import Int8Linear
from qwen2vl_extras.words import words_of
from tests.helpers.reference import TOLERANCE, error, random_inputs, random_pair

GREEDY = {}
DRAWN = {"seed": 3, "temperature": 0.7, "top_p": 0.9}


@pytest.fixture
def forbid_compiling():
    """A function: from its first call on, compiling anything anew is an error."""
    yield lambda: torch.compiler.set_stance("fail_on_recompile")
    torch.compiler.set_stance("default")


# -------------------------------------------------------------------------------------- the step


# A single row and a batch: with one row, linear layers are computed in another way than with more.
@pytest.mark.parametrize("kind", ["image", "mixed batch"])
@torch.no_grad()
def test_a_compiled_step_gives_the_references_logits(kind, figure):
    ours, theirs = random_pair(5)
    inputs = random_inputs(ours.config, kind, 5)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    batch, length = ids.shape
    token = torch.arange(batch) + 3

    # The reference reads prompt and token in one pass.
    longer = dict(inputs)
    longer["input_ids"] = torch.cat((ids, token[:, None]), dim=1)
    longer["attention_mask"] = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
    expected = theirs(**longer).logits[:, -1]

    # Ours reads the prompt, and then the token with the compiled step.
    cache = KVCache(ours.config, batch, length + 9)
    prompt = ours(**inputs, past_key_values=cache)
    step = compiled.CompiledStep(ours, cache, mask, prompt.rope_deltas)
    logits = step(token)
    assert figure(f"compiled step, {kind}", error(logits, expected)) <= TOLERANCE


def compiled_row(x: Tensor, weight: Tensor) -> Tensor:
    """x (D,) times a weight (out, D) as a compiled step computes it, in the dtype of x."""
    if weight.dtype == torch.int8:
        layer = Int8Linear(weight, torch.ones(len(weight)))
    else:
        layer = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
        layer.weight = nn.Parameter(weight)
    return compiled.compile_once(compiled.linear)(layer, words_of(layer), x[None])[0]


# Rows that are whole words and others, and sums that are split once and more often.
@pytest.mark.parametrize(("rows", "columns"), [(8, 64), (7, 9000), (2, 4099), (3, 40000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@torch.no_grad()
def test_a_compiled_row_times_a_matrix_is_their_product(rows, columns, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(columns, generator=generator).bfloat16().float()
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    if dtype == torch.int8:
        weight = torch.randint(-128, 128, (rows, columns), generator=generator).to(dtype)
    expected = weight.double() @ x.double()
    assert error(compiled_row(x, weight).double(), expected) <= 2e-6


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@torch.no_grad()
def test_what_is_not_finite_is_not_finite_after_a_compiled_row(dtype, number):
    x = torch.ones(64, dtype=torch.bfloat16)
    x[5] = number
    assert not compiled_row(x, torch.ones(8, 64).to(dtype)).isfinite().any()


def test_only_whole_words_are_read_as_words():
    """A matrix within other memory may begin in the middle of a word, and its rows may end so."""
    memory = torch.zeros(64 * 8 + 1, dtype=torch.bfloat16)
    for begin, columns, fits in ((0, 64, True), (1, 64, False), (0, 63, False), (2, 62, True)):
        layer = nn.Linear(columns, 8, bias=False, device="meta")
        weight = memory[begin : begin + 8 * columns].view(8, columns)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        assert (words_of(layer) is not None) == fits, (begin, columns)


@pytest.mark.parametrize("run", [compiled.query_attention, compiled.attend_by_sums])
def test_attention_of_one_query_is_eager_attention(run):
    """The two ways of CPUs and of CUDA, of which this CPU can compute both."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 1, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 9, 16, generator=generator)
    is_filled = torch.rand(2, 1, 1, 9, generator=generator) < 0.6
    expected, _ = eager_attention(q, k, v, AttentionMask(dense=is_filled))
    found = run(q if run is compiled.query_attention else q.view(2, 2, 3, 16), k, v, is_filled)
    assert error(found.reshape(q.shape), expected) <= TOLERANCE


# ------------------------------------------------------------------------- generation with the step


@pytest.mark.parametrize("settings", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_compiled_generation_gives_the_same_tokens_and_compiles_once(settings, forbid_compiling):
    ours, _ = random_pair(6)
    settings = dict(settings, max_new_tokens=12, eos_token_id=-1, repetition_penalty=1.1)
    for i, kind in enumerate(("image", "text", "video", "images")):
        inputs = random_inputs(ours.config, kind, i)
        fast = ours.generate(**inputs, **settings, compile=True)
        plain = ours.generate(**inputs, **settings)
        assert torch.equal(fast, plain)
        # What is compiled now serves prompts of any kind and length, and caches of any size.
        forbid_compiling()


def test_compiled_rows_end_when_they_end():
    ours, _ = random_pair(7)
    inputs = random_inputs(ours.config, "mixed batch", 7)
    length = inputs["input_ids"].shape[1]
    endless = ours.generate(**inputs, max_new_tokens=30, eos_token_id=-1)[:, length:]
    ends = endless[:, :6].flatten().tolist()  # every row ends within six tokens
    settings = {"max_new_tokens": 30, "eos_token_id": ends, "pad_token_id": 1}
    plain = ours.generate(**inputs, **settings)
    assert plain.shape[1] < length + 7
    assert torch.equal(ours.generate(**inputs, **settings, compile=True), plain)


def test_compiled_streams_taken_in_turns_do_not_see_each_other():
    ours, _ = random_pair(8)
    inputs = [random_inputs(ours.config, kind, 8) for kind in ("video", "image")]
    settings = {"max_new_tokens": 8, "eos_token_id": -1}
    expected = [torch.cat(list(ours.stream(**one, **settings))) for one in inputs]
    streams = [ours.stream(**one, **settings, compile=True) for one in inputs]
    turns = list(zip(*streams, strict=True))
    for i in range(2):
        assert torch.equal(torch.cat([turn[i] for turn in turns]), expected[i])


def test_compiled_generation_changes_no_module_for_good():
    ours, _ = random_pair(7)
    inputs = random_inputs(ours.config, "mixed batch", 7)

    def describe() -> tuple[dict[str, type], list[str], dict[str, int]]:
        types = {name: type(module) for name, module in ours.named_modules()}
        keys = list(ours.state_dict())
        addresses = {name: p.data_ptr() for name, p in ours.named_parameters()}
        return types, keys, addresses

    before = describe()
    stream = ours.stream(**inputs, max_new_tokens=4, eos_token_id=-1, compile=True)
    next(stream)
    next(stream)
    assert describe() == before  # not even while it runs
    assert len(list(stream)) == 2
    ours.generate(**inputs, max_new_tokens=4, eos_token_id=-1, compile=True)
    assert describe() == before


# ------------------------------------------------------------------------ the loop that runs ahead


@torch.no_grad()
def run_loop(
    ours, inputs: dict[str, Tensor], sampling: Sampling, is_ahead: bool, compile: bool
) -> Tensor:
    """At most 12 new tokens of each row, (B, new tokens), by the plain loop or the other."""
    input_ids = inputs["input_ids"]
    media = (
        inputs.get("pixel_values"),
        inputs.get("image_grid_thw"),
        inputs.get("pixel_values_videos"),
        inputs.get("video_grid_thw"),
    )
    logits, step = ours.prefill(input_ids, inputs["attention_mask"], media, 12, compile)
    generator = torch.Generator().manual_seed(0)
    if is_ahead:
        tokens = compiled.decode_ahead(step, logits, input_ids, 12, sampling, generator, next_token)
    else:
        tokens = decode(step, logits, input_ids, 12, sampling, generator)
    return torch.stack(list(tokens), dim=1)


@pytest.mark.parametrize("compile", [False, True], ids=["plain step", "compiled step"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "drawn"])
def test_the_loop_that_runs_ahead_gives_the_tokens_of_the_plain_loop(compile, do_sample):
    ours, _ = random_pair(7)
    inputs = random_inputs(ours.config, "mixed batch", 7)
    endless = Sampling(do_sample=do_sample, eos_token_id=-1)
    expected = run_loop(ours, inputs, endless, is_ahead=False, compile=False)
    assert expected.shape[1] == 12
    assert torch.equal(run_loop(ours, inputs, endless, is_ahead=True, compile=compile), expected)

    # Rows end one by one, the first of them at its third token, all of them before the last step.
    ends = expected[:, 2:6].flatten().tolist()
    ended = Sampling(do_sample=do_sample, eos_token_id=ends, pad_token_id=1)
    expected = run_loop(ours, inputs, ended, is_ahead=False, compile=False)
    assert expected.shape[1] < 12
    assert torch.equal(run_loop(ours, inputs, ended, is_ahead=True, compile=compile), expected)


@torch.no_grad()
def test_the_loop_that_runs_ahead_hands_out_no_token_of_damaged_logits():
    ours, _ = random_pair(9)
    ours.lm_head.weight.data.fill_(torch.nan)
    inputs = random_inputs(ours.config, "text", 9)
    media = (None, None, None, None)
    logits, step = ours.prefill(inputs["input_ids"], None, media, 4, compile=False)
    tokens = compiled.decode_ahead(
        step, logits, inputs["input_ids"], 4, Sampling(), None, next_token
    )
    with pytest.raises(ValueError, match="float32 are not finite"):
        next(tokens)
