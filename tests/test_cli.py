"""The command line: the answer on stdout and nothing else there, one clear line for whatever is wrong."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qwen2vl

EXAMPLES = Path(__file__).parent.parent / "examples"
# What is drawn there, as tiny/examples.py names it.
DRAWN = {
    "shapes.png": "A red circle and a blue star.",
    "triangle.png": "A green triangle.",
    "wide.png": "An orange cross and a purple ring.",
    "tall.png": "A pink star and a black square.",
}


def run(capsys, *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    code = qwen2vl.main(list(map(str, argv)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", DRAWN)
def test_the_examples_are_described_rightly_and_nothing_else_is_on_stdout(capsys, name):
    assert run(capsys, "--image", EXAMPLES / name)[:2] == (0, DRAWN[name] + "\n")


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("shapes.png", "What is left of the blue star?", "The red circle."),
        ("shapes.png", "What colour is the star?", "Blue."),
        ("shapes.png", "What shape is the blue object?", "A star."),
        ("shapes.png", "How many objects do you see?", "Two."),
        ("shapes.png", "Is there a green square?", "No."),
        ("wide.png", "What colour is the ring?", "Purple."),
    ],
)
def test_questions_about_the_examples_are_answered_rightly(capsys, name, question, answer):
    assert run(capsys, "--image", EXAMPLES / name, "--prompt", question)[:2] == (0, answer + "\n")


def test_a_process_of_its_own_streams_the_same_answer():
    command = [sys.executable, "qwen2vl.py", "--image", "examples/shapes.png"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parent, env=environment)
    assert (done.returncode, done.stdout) == (0, DRAWN["shapes.png"] + "\n")
    assert done.stderr.startswith("model: tiny")


def test_loading_imports_no_compiler():
    """That would take a second; nor `transformers`."""
    code = (
        "import sys; import processor, qwen2vl; "
        "qwen2vl.Qwen2VLForConditionalGeneration.from_pretrained('tiny'); "
        "processor.Qwen2VLProcessor.from_pretrained('tiny'); "
        "print({'torch._dynamo', 'transformers', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert done.stdout == "set()\n", done.stderr


def test_the_answer_is_printed_token_by_token(monkeypatch):
    written = []
    monkeypatch.setattr(sys.stdout, "write", lambda text: written.append(text) or len(text))
    qwen2vl.main(["--image", str(EXAMPLES / "shapes.png")])
    pieces = [text for text in written if text.strip()]
    assert "".join(pieces) == DRAWN["shapes.png"]
    assert len(pieces) >= 6


@pytest.mark.parametrize(
    "argv",
    [
        ["--video", EXAMPLES / "moving.mp4", "--fps", "1"],
        ["--image", EXAMPLES / "wide.png", "--image", EXAMPLES / "tall.png", "--prompt", "What differs?"],
        ["--prompt", "Who are you?", "--system", "You are brief."],
        ["--image", EXAMPLES / "wide.png", "--top-k", "5", "--top-p", "0.9", "--seed", "1"],
        ["--image", EXAMPLES / "wide.png", "--attn", "eager", "--dtype", "bfloat16", "--max-pixels", "20000"],
    ],
    ids=["video", "two pictures", "text only", "sampled", "eager bfloat16"],
)  # fmt: skip
def test_other_inputs_give_an_answer_too(capsys, argv):
    code, out, _ = run(capsys, *argv, "--max-new-tokens", "12")
    assert code == 0 and out.endswith("\n") and len(out.strip()) > 0


def test_the_same_seed_samples_the_same_answer(capsys):
    argv = ["--image", EXAMPLES / "wide.png", "--temperature", "3", "--max-new-tokens", "20", "--seed"]
    first, again, other = (run(capsys, *argv, seed)[1] for seed in (1, 1, 2))
    assert first == again != other


def test_int8_weights_are_used_and_answer_the_same(capsys, monkeypatch):
    loaded, load = [], qwen2vl.Qwen2VLForConditionalGeneration.from_pretrained
    monkeypatch.setattr(
        qwen2vl.Qwen2VLForConditionalGeneration,
        "from_pretrained",
        lambda *given, **options: loaded.append(load(*given, **options)) or loaded[-1],
    )
    code, out, _ = run(capsys, "--image", EXAMPLES / "shapes.png", "--int8")
    assert (code, out) == (0, DRAWN["shapes.png"] + "\n")
    assert loaded[0].lm_head.weight.dtype == torch.int8 and loaded[0].dtype == torch.float32


def test_compiled_decoding_is_used_and_answers_the_same(capsys, monkeypatch):
    made, make = [], qwen2vl.fast.CompiledStep
    monkeypatch.setattr(qwen2vl.fast, "CompiledStep", lambda *given: made.append(given) or make(*given))
    code, out, _ = run(capsys, "--image", EXAMPLES / "shapes.png", "--compile")
    assert (code, out, len(made)) == (0, DRAWN["shapes.png"] + "\n", 1)


def test_a_chat_remembers_resets_and_survives_what_is_wrong(capsys, monkeypatch):
    turns = [
        "Describe this image.",
        "/image nowhere.png",
        "And this?",
        "How many objects do you see?",
        "/reset",
    ]
    turns += [f"/image {EXAMPLES / 'triangle.png'}", "Describe this image.", "/quit", "not reached"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(turns)))
    code, out, err = run(capsys, "--chat", "--image", EXAMPLES / "shapes.png")
    assert (code, out) == (0, f"{DRAWN['shapes.png']}\nTwo.\n{DRAWN['triangle.png']}\n")
    errors = [line for line in err.splitlines() if "error" in line]
    assert len(errors) == 1 and errors[0].endswith("> error: no such picture: 'nowhere.png'")


def test_trace_shows_each_stage_with_its_shapes_on_stderr(capsys):
    code, out, err = run(capsys, "--image", EXAMPLES / "shapes.png", "--trace")
    assert (code, out) == (0, DRAWN["shapes.png"] + "\n")
    assert "(96, 1176) -> (96, 128)" in err  # 168 x 112 px are 12 x 8 patches of 3 * 2 * 14 * 14 values
    assert "(1, 96, 128) -> (24, 192)" in err  # and 24 tokens
    for stage in ("vision blocks", "decoder layers", "head"):
        assert stage in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--image", "nowhere.png"], "no such picture: 'nowhere.png'"),
        (["--image", "pyproject.toml"], "cannot read the picture 'pyproject.toml'"),
        (["--video", "nowhere.mp4"], "no such video: 'nowhere.mp4'"),
        (["--video", "pyproject.toml"], "cannot read the video 'pyproject.toml'"),
        (["--model", "nowhere"], "'nowhere'"),
        (["--model", "tests"], "tests has no"),
        (["--device", "tpu"], "tpu"),
        (["--dtype", "int3"], "int3"),
        (["--image", EXAMPLES / "wide.png", "--max-pixels", "100"], "max_pixels 100"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--max-new-tokens", "5000"], "max_new_tokens is 5000"),
        (["--temperature", "-1"], "temperature=-1"),
        (["--temperature", "nan"], "temperature=nan"),
        (["--temperature", "inf"], "temperature=inf"),
        (["--model", ""], "neither a folder"),
        (["--prompt", "half a pair: \udcff"], "surrogates not allowed"),
        (["--video", EXAMPLES / "moving.mp4", "--fps", "0"], "fps 0.0 must be above 0"),
        (["--video", EXAMPLES / "moving.mp4", "--fps", "nan"], "fps nan must be above 0"),
        (["--top-p", "2"], "top_p=2"),
        (["--prompt", "a " * 5000], "tokens"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_input_ends_in_one_line_that_names_it(capsys, monkeypatch, argv, message):
    monkeypatch.chdir(EXAMPLES.parent)
    code, out, err = run(capsys, *argv)
    told = "model: tiny", "For real pictures", "weights: "  # the bar, where loading takes long
    errors = [line for line in err.splitlines() if line and not line.startswith(told)]
    assert (code, out) == (2, "")
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]


def test_flash_attention_without_cuda_is_refused_before_anything_is_loaded(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    code, out, err = run(capsys, "--attn", "flash_attention_2", "--image", EXAMPLES / "wide.png")
    assert (code, out) == (2, "")
    assert "error: flash_attention_2 needs CUDA, float16 or bfloat16; here cpu, torch.float32" in err


def test_memory_that_runs_out_is_one_line(capsys, monkeypatch):
    def no_room(*_, **__):
        raise MemoryError

    monkeypatch.setattr(qwen2vl.KVCache, "__init__", no_room)
    code, out, err = run(capsys, "--image", EXAMPLES / "wide.png")
    assert (code, out) == (2, "") and "error: out of memory" in err


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise on Windows")
def test_a_closed_pipe_ends_it_quietly():
    command = f"{sys.executable} qwen2vl.py --image examples/shapes.png | head -c 3"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert done.stdout == DRAWN["shapes.png"][:3]
    assert "rror" not in done.stderr


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as exit:
        qwen2vl.main(["--help"])
    assert exit.value.code == 0
    assert "python qwen2vl.py --image examples/shapes.png" in capsys.readouterr().out
