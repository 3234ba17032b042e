"""The command line: the answer and nothing else on stdout, one clear line for whatever is wrong."""

import importlib.metadata
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qwen2vl
from qwen2vl_app import command_line
from qwen2vl_extras import compiled

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
# What is drawn there, as tiny/examples.py names it.
DRAWN = {
    "shapes.png": "A red circle and a blue star.",
    "triangle.png": "A green triangle.",
    "wide.png": "An orange cross and a purple ring.",
    "tall.png": "A pink star and a black square.",
}


def run(capsys, *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    code = command_line.main([str(argument) for argument in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", DRAWN)
def test_the_examples_are_described_rightly_and_nothing_else_is_on_stdout(capsys, name):
    assert run(capsys, "--image", EXAMPLES / name)[:2] == (0, DRAWN[name] + "\n")


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("shapes.png", "What is to the left of the blue star?", "The red circle."),
        ("shapes.png", "What colour is the star?", "Blue."),
        ("shapes.png", "What shape is the blue object?", "A star."),
        ("shapes.png", "How many objects do you see?", "Two."),
        ("shapes.png", "Is there a green square?", "No."),
        ("wide.png", "What colour is the ring?", "Purple."),
    ],
)
def test_questions_about_the_examples_are_answered_rightly(capsys, name, question, answer):
    assert run(capsys, "--image", EXAMPLES / name, "--prompt", question)[:2] == (0, answer + "\n")


@pytest.mark.parametrize(
    "program", [["qwen2vl.py"], ["-m", "qwen2vl_app.command_line"]], ids=["script", "module"]
)
def test_a_process_of_its_own_streams_the_same_answer(program):
    command = [sys.executable, *program, "--image", "examples/shapes.png"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout) == (0, DRAWN["shapes.png"] + "\n")
    assert done.stderr.startswith("model: tiny")


def test_the_script_runs_from_another_folder(tmp_path):
    command = [sys.executable, ROOT / "qwen2vl.py", "--image", EXAMPLES / "shapes.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, DRAWN["shapes.png"] + "\n")


def test_loading_imports_no_compiler():
    """That would take a second; nor `transformers`, nor what reads videos."""
    code = (
        "import sys; import processor, qwen2vl, qwen2vl_app.command_line; "
        "qwen2vl.Qwen2VLForConditionalGeneration.from_pretrained('tiny'); "
        "processor.Qwen2VLProcessor.from_pretrained('tiny'); "
        "print({'torch._dynamo', 'transformers', 'av'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


def test_the_model_alone_needs_no_image_libraries():
    code = "import sys; import qwen2vl; print({'PIL', 'av', 'processor'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


def test_the_answer_is_printed_token_by_token(monkeypatch):
    written = []

    def write(text: str) -> int:
        written.append(text)
        return len(text)

    monkeypatch.setattr(sys.stdout, "write", write)
    command_line.main(["--image", str(EXAMPLES / "shapes.png")])
    pieces = [text for text in written if text.strip()]
    assert "".join(pieces) == DRAWN["shapes.png"]
    assert len(pieces) >= 6


@pytest.mark.parametrize(
    "argv",
    [
        "--video moving.mp4 --fps 1",
        "--image wide.png --image tall.png --prompt 'What differs?'",
        "--prompt 'Who are you?' --system 'You are brief.'",
        "--image wide.png --top-k 5 --top-p 0.9 --seed 1",
        "--image wide.png --attn eager --dtype bfloat16 --max-pixels 20000",
        "--image wide.png --attn chunked --min-pixels 50000",
    ],
    ids=["video", "two images", "text only", "sampled", "eager bfloat16", "chunked"],
)
def test_other_inputs_give_an_answer_too(capsys, monkeypatch, argv):
    monkeypatch.chdir(EXAMPLES)
    code, out, _ = run(capsys, *shlex.split(argv), "--max-new-tokens", "12")
    assert code == 0 and out.endswith("\n") and len(out.strip()) > 0


def test_the_same_seed_samples_the_same_answer(capsys):
    argv = [
        "--image",
        EXAMPLES / "wide.png",
        "--temperature",
        "3",
        "--max-new-tokens",
        "20",
        "--seed",
    ]
    first, again, other = (run(capsys, *argv, seed)[1] for seed in (1, 1, 2))
    assert first == again != other


def test_a_high_temperature_is_said_to_give_nonsense(capsys):
    argv = ["--image", EXAMPLES / "wide.png", "--max-new-tokens", "3", "--temperature"]
    notes = {}
    for temperature in ("0", "1", "1.5", "2"):
        code, _, err = run(capsys, *argv, temperature)
        assert code == 0
        notes[temperature] = [line for line in err.splitlines() if line.startswith("note: ")]
    (note,) = notes.pop("2")
    assert "temperature 2 " in note and "expect nonsense" in note
    assert list(notes.values()) == [[], [], []]


@pytest.mark.parametrize(("option", "stored"), [("--int8", torch.int8), ("--int4", torch.uint8)])
def test_rounded_weights_are_used_and_answer_the_same(capsys, monkeypatch, option, stored):
    loaded = []
    load = qwen2vl.Qwen2VLForConditionalGeneration.from_pretrained

    def load_and_note(*given, **options):
        loaded.append(load(*given, **options))
        return loaded[-1]

    model_class = qwen2vl.Qwen2VLForConditionalGeneration
    monkeypatch.setattr(model_class, "from_pretrained", load_and_note)
    code, out, _ = run(capsys, "--image", EXAMPLES / "shapes.png", option)
    assert (code, out) == (0, DRAWN["shapes.png"] + "\n")
    assert loaded[0].lm_head.weight.dtype == torch.int8  # with int4 as well
    assert loaded[0].model.layers[0].mlp.up_proj.weight.dtype == stored
    assert loaded[0].dtype == torch.float32


@pytest.fixture
def compiled_steps(monkeypatch) -> list:
    """A list that gets an entry for each compiled step that is made."""
    made = []
    prepare = compiled.CompiledStep.__init__

    def note_and_prepare(step, *given):
        made.append(step)
        prepare(step, *given)

    monkeypatch.setattr(compiled.CompiledStep, "__init__", note_and_prepare)
    return made


def test_compiled_decoding_is_used_and_answers_the_same(capsys, compiled_steps):
    code, out, _ = run(capsys, "--image", EXAMPLES / "shapes.png", "--compile")
    assert (code, out) == (0, DRAWN["shapes.png"] + "\n")
    assert len(compiled_steps) == 1


def test_a_chat_remembers_resets_and_survives_what_is_wrong(capsys, monkeypatch):
    turns = ["Describe this image.", "/image nowhere.png", "How many objects do you see?", "/reset"]
    turns += [f"/image {EXAMPLES / 'triangle.png'}", "Describe this image.", "/quit", "not reached"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(turns)))
    code, out, err = run(capsys, "--chat", "--image", EXAMPLES / "shapes.png")
    assert (code, out) == (0, f"{DRAWN['shapes.png']}\nTwo.\n{DRAWN['triangle.png']}\n")
    errors = [line for line in err.splitlines() if "error" in line]
    assert len(errors) == 1 and errors[0].endswith("> error: no such image: 'nowhere.png'")


def test_trace_shows_each_stage_with_its_shapes_on_stderr(capsys):
    code, out, err = run(capsys, "--image", EXAMPLES / "shapes.png", "--trace")
    assert (code, out) == (0, DRAWN["shapes.png"] + "\n")
    assert (
        "(96, 1176) -> (96, 128)" in err
    )  # 168 x 112 px are 12 x 8 patches of 3 * 2 * 14 * 14 values
    assert "(1, 96, 128) -> (24, 192)" in err  # and 24 tokens
    for stage in ("vision blocks", "decoder layers", "head"):
        assert stage in err


def trace_rows(err: str) -> dict[tuple[str, str], int]:
    """How often each stage was called, by phase and stage, from the table on stderr."""
    rows = {}
    for line in err.splitlines():
        found = re.match(r"(prefill|decode) +([a-z ]+?) +(\d+) +\d+\.\d ", line)
        if found is not None:
            rows[found[1], found[2]] = int(found[3])
    return rows


def test_trace_and_compile_go_together(capsys, compiled_steps):
    """The prefill stage by stage, and each decode step as a whole; the second run compiles nothing
    any more.
    """
    for _ in range(2):
        argv = ["--image", EXAMPLES / "shapes.png", "--trace", "--compile"]
        code, out, err = run(capsys, *argv)
        assert (code, out) == (0, DRAWN["shapes.png"] + "\n")
        rows = trace_rows(err)
        steps = rows.pop(("decode", "whole step"))
        assert steps >= 6
        assert {phase for phase, _ in rows} == {"prefill"} and len(rows) == 6
        assert rows["prefill", "decoder layers"] == rows["prefill", "vision blocks"] == 4
    assert len(compiled_steps) == 2

    # Without --compile as many whole steps, and the stages of each.
    _, _, err = run(capsys, "--image", EXAMPLES / "shapes.png", "--trace")
    rows = trace_rows(err)
    assert rows["decode", "whole step"] == rows["decode", "head"] == steps
    assert rows["decode", "decoder layers"] == 4 * steps


def test_boxes_are_drawn_after_the_answer(capsys, tmp_path):
    out_file = tmp_path / "found.png"
    argv = ["--image", EXAMPLES / "many.png", "--prompt", "Find the orange diamond."]
    code, out, err = run(capsys, *argv, "--boxes", out_file)
    assert code == 0
    assert out == run(capsys, *argv)[1]  # the answer is the same
    assert err.splitlines()[-1] == f"{out_file}: the orange diamond"

    # The frame of the box is there, in the first colour.
    (box,) = command_line.find_boxes(out)
    drawn = np.asarray(Image.open(out_file))
    x = round(box.left * drawn.shape[1] / 1000)
    y = round((box.top + box.bottom) / 2 * drawn.shape[0] / 1000)
    assert drawn[y, x].tolist() == [0xD6, 0x27, 0x28]


def test_an_answer_without_a_box_is_a_note_not_an_error(capsys, tmp_path):
    out_file = tmp_path / "found.png"
    code, out, err = run(capsys, "--image", EXAMPLES / "shapes.png", "--boxes", out_file)
    assert (code, out) == (0, DRAWN["shapes.png"] + "\n")
    assert err.splitlines()[-1] == f"no box in the answer: {out_file} was not written"
    assert not out_file.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--boxes", "out.png"], "one --image and no --video, not 0 and 0"),
        (["--image", "a.png", "--image", "b.png", "--boxes", "out.png"], "not 2 and 0"),
        (["--image", "a.png", "--video", "b.mp4", "--boxes", "out.png"], "not 1 and 1"),
        (["--image", "a.png", "--chat", "--boxes", "out.png"], "it does not go with --chat"),
        (["--image", "a.png", "--boxes", "nowhere/out.png"], "there is no folder 'nowhere'"),
        (["--image", "a.png", "--boxes", "out"], "must end in .png"),
        (["--image", "nowhere.png", "--boxes", "out.png"], "no such image: 'nowhere.png'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_boxes_that_cannot_be_drawn_are_refused_before_the_model_loads(
    capsys, monkeypatch, tmp_path, argv, message
):
    def never(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(qwen2vl.Qwen2VLForConditionalGeneration, "from_pretrained", never)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ") and message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--image", "nowhere.png"], "no such image: 'nowhere.png'"),
        (["--image", "pyproject.toml"], "cannot read the image 'pyproject.toml'"),
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
        (["--video", EXAMPLES / "moving.mp4", "--fps", "0"], "fps is a number from"),
        (["--video", EXAMPLES / "moving.mp4", "--fps", "nan"], "fps is a number from"),
        (["--top-p", "2"], "top_p=2"),
        (["--prompt", "a " * 5000], "tokens"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_input_ends_in_one_line_that_names_it(capsys, monkeypatch, argv, message):
    monkeypatch.chdir(ROOT)
    code, out, err = run(capsys, *argv)
    notes = (*command_line.TINY_NOTE.splitlines(), "weights: ")  # a bar, where loading takes long
    errors = [line for line in err.splitlines() if line and not line.startswith(notes)]
    assert (code, out) == (2, "")
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]


def test_flash_attention_without_cuda_is_refused_before_anything_is_loaded(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    code, out, err = run(capsys, "--attn", "flash_attention_2", "--image", EXAMPLES / "wide.png")
    assert (code, out) == (2, "")
    assert (
        "error: flash_attention_2 needs CUDA, float16 or bfloat16; here cpu, torch.float32" in err
    )


def test_memory_that_runs_out_is_one_line(capsys, monkeypatch):
    def no_room(*_, **__):
        raise MemoryError

    monkeypatch.setattr(qwen2vl.KVCache, "__init__", no_room)
    code, out, err = run(capsys, "--image", EXAMPLES / "wide.png")
    assert (code, out) == (2, "") and "error: out of memory" in err


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise on Windows")
def test_a_closed_pipe_ends_it_quietly():
    command = f"{sys.executable} qwen2vl.py --image examples/shapes.png | head -c 3"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == DRAWN["shapes.png"][:3]
    assert "rror" not in done.stderr


def test_help_has_examples_and_warns_of_high_temperatures(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "python qwen2vl.py --image examples/shapes.png" in text
    assert "above 1.5: nonsense" in " ".join(text.split())


def test_the_examples_in_help_parse():
    lines = re.findall(r"^  python qwen2vl.py (.*)$", command_line.EXAMPLES, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        command_line.parse_arguments(shlex.split(line))


@pytest.mark.parametrize("name", ["auto", *qwen2vl.ATTENTION_IMPLEMENTATIONS])
def test_every_attention_implementation_can_be_chosen(name):
    assert command_line.parse_arguments(["--attn", name]).attn == name


def test_the_version_is_that_of_pyproject(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["--version"])
    assert stopped.value.code == 0
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    number = re.search(r'^version = "(\d+\.\d+\.\d+)"$', pyproject, re.MULTILINE)[1]
    assert capsys.readouterr().out == f"qwen2vl-from-scratch {number}\n"


def test_without_its_pyproject_the_version_is_that_of_the_installed_package(monkeypatch, tmp_path):
    """As in a wheel; a pyproject.toml of another project that lies there is not taken for ours."""
    monkeypatch.setattr(command_line, "__file__", str(tmp_path / "qwen2vl_app" / "x.py"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"7.8.9 of {name}")
    assert command_line.version() == "7.8.9 of qwen2vl-from-scratch"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "1.2.3"\n')
    assert command_line.version() == "7.8.9 of qwen2vl-from-scratch"
