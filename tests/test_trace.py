"""The table of `--trace`: each stage's calls and shapes, of a model that stays as it is."""

import types
from pathlib import Path

import pytest
import torch

from processor import BatchFeature
from qwen2vl_app import trace
from qwen2vl_app.trace import trace_stages

EXAMPLES = Path(__file__).parent.parent / "examples"
NEW_TOKENS = 5


def question(processor, *names: str) -> BatchFeature:
    """A question about images in examples/."""
    items = [{"type": "image", "path": str(EXAMPLES / name)} for name in names]
    items.append({"type": "text", "text": "What is it?"})
    return processor.apply_chat_template(
        [{"role": "user", "content": items}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
    )


def table(text: str) -> dict[tuple[str, str], tuple[int, str]]:
    """Calls and shapes of the last call, by phase and stage."""
    titles, *lines = text.splitlines()
    expected = "phase stage calls ms weights MB result MB shapes of the last call"
    assert " ".join(titles.split()) == expected
    rows = {}
    for line in lines:
        phase, stage = line[:8].strip(), line[8:24].strip()
        calls, _, _, _, shapes = line[24:].split(maxsplit=4)
        assert (phase, stage) not in rows
        rows[phase, stage] = (int(calls), shapes)
    return rows


def hooks(model) -> int:
    """How many hooks hang on the model's modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_each_stage_is_counted_with_its_shapes(tiny, capsys):
    model, processor = tiny
    inputs = question(processor, "shapes.png")
    config = model.config
    with trace_stages(model):
        # No end token: so many new tokens as asked for.
        model.generate(**inputs, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    rows = table(capsys.readouterr().err)

    # 168 x 112 pixels are 12 x 8 patches of 3 * 2 * 14 * 14 values, which become 24 tokens.
    T = inputs.input_ids.shape[1]
    D_vision, D, vocabulary = config.vision_config.embed_dim, config.hidden_size, config.vocab_size
    assert list(rows) == [
        ("prefill", "embedding"),
        ("prefill", "patch embedding"),
        ("prefill", "vision blocks"),
        ("prefill", "merger"),
        ("prefill", "decoder layers"),
        ("prefill", "head"),
        ("decode", "embedding"),
        ("decode", "decoder layers"),
        ("decode", "head"),
    ]
    assert rows["prefill", "patch embedding"] == (1, f"(96, 1176) -> (96, {D_vision})")
    assert rows["prefill", "merger"] == (1, f"(1, 96, {D_vision}) -> (24, {D})")
    assert rows["prefill", "embedding"] == (1, f"(1, {T}) -> (1, {T}, {D})")
    assert rows["prefill", "head"] == (1, f"(1, {D}) -> (1, {vocabulary})")

    # All layers of a stage count together, and each new token but the first is a step.
    assert rows["prefill", "vision blocks"][0] == config.vision_config.depth
    assert rows["prefill", "decoder layers"][0] == config.num_hidden_layers
    steps = NEW_TOKENS - 1
    assert rows["decode", "decoder layers"] == (
        config.num_hidden_layers * steps,
        f"(1, 1, {D}) -> (1, 1, {D})",
    )
    assert rows["decode", "head"][0] == rows["decode", "embedding"][0] == steps


def test_images_are_counted_one_by_one(tiny, capsys):
    model, processor = tiny
    with trace_stages(model):
        model.generate(**question(processor, "wide.png", "tall.png"), max_new_tokens=1)
    rows = table(capsys.readouterr().err)
    assert rows["prefill", "vision blocks"][0] == 2 * model.config.vision_config.depth
    assert {phase for phase, _ in rows} == {"prefill"}  # one token needs no step


def test_tokens_are_the_same_and_the_model_stays_as_it_is(tiny):
    model, processor = tiny
    inputs = question(processor, "shapes.png")
    expected = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    before = hooks(model)
    with trace_stages(model):
        assert hooks(model) > before
        traced = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    assert torch.equal(traced, expected)
    assert hooks(model) == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_hooks_are_removed_after_an_error_which_is_not_hidden(tiny, capsys):
    model, _ = tiny
    before = hooks(model)
    with pytest.raises(RuntimeError, match="stop"), trace_stages(model):
        raise RuntimeError("stop")
    assert hooks(model) == before
    assert capsys.readouterr().err == ""


def test_whole_steps_are_passed_on_and_timed_without_what_the_caller_does(
    tiny, capsys, monkeypatch
):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(trace, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))

    def tokens():
        for i in range(4):
            clock.now += 100.0 if i == 0 else 0.25  # seconds: the prefill, then steps
            yield torch.tensor([i])

    passed_on = []
    with trace_stages(tiny[0]) as measured:
        measured.phase = "decode"  # which the head of the prefill sets
        for token in measured.steps(tokens()):
            passed_on.append(int(token))
            clock.now += 1000.0  # the caller takes its time
    assert passed_on == [0, 1, 2, 3]
    _, line = capsys.readouterr().err.splitlines()
    assert line.split()[:5] == ["decode", "whole", "step", "3", "750.0"]


def test_hooks_are_removed_before_a_step_is_compiled(tiny, capsys, monkeypatch):
    """Else the compiler would meet them. The step here is a stand-in that compiles nothing."""
    import qwen2vl
    from qwen2vl_extras import compiled

    model, processor = tiny
    seen = []

    class Step(qwen2vl.PlainStep):
        def __init__(self, *arguments):
            seen.append(hooks(model))
            super().__init__(*arguments)

    monkeypatch.setattr(compiled, "CompiledStep", Step)
    inputs = question(processor, "shapes.png")
    before = hooks(model)
    with trace_stages(model, compiled=True) as measured:
        stream = model.stream(**inputs, max_new_tokens=NEW_TOKENS, eos_token_id=[], compile=True)
        assert len(list(measured.steps(stream))) == NEW_TOKENS
    assert seen == [before]
    text, last_line = capsys.readouterr().err.rstrip("\n").rsplit("\n", 1)
    rows = table(text)
    assert rows.pop(("decode", "whole step")) == (NEW_TOKENS - 1, "(1,) -> (1,)")
    assert {phase for phase, _ in rows} == {"prefill"} and len(rows) == 6
    assert last_line.startswith("the first whole step took ")
