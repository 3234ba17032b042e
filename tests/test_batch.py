"""Many lines with one load: each answer is that of its line alone, and no run has to begin anew."""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from processor import Message
from qwen2vl_app import batch, batch_lines, command_line, json_answer, progress
from qwen2vl_app.batch import BatchDefaults, BatchRunner
from qwen2vl_app.batch_memory import MemoryEstimate, RowSize
from qwen2vl_app.boxes import find_boxes
from tests.helpers.drawn_media import noise
from tests.helpers.interrupts import take_interrupts

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
IMAGES = ["shapes.png", "wide.png", "tall.png", "many.png", "triangle.png", "word.png"]
PROMPTS = ["Describe this image.", "How many objects do you see?", "What colour is it?", "Why?"]


def run(capsys, *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    code = command_line.main([str(argument) for argument in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def records_of(text: str) -> list[dict]:
    """The records of an output, which has nothing but whole lines."""
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def write_lines(file: Path, lines: list[dict | bytes]) -> Path:
    """A file of JSON lines; a line that is given as bytes is written as it is."""
    contents = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    file.write_bytes(b"".join(content + b"\n" for content in contents))
    return file


def without_times(text: str) -> list[dict]:
    """The records without what differs from run to run."""
    records = records_of(text)
    for record in records:
        del record["seconds"]
    return records


# ------------------------------------------------------------------------------ as if it were alone


def random_line(rng: random.Random, folder: Path) -> dict:
    """A line of any kind: text, images of any size, a clip, or messages; greedy or sampled."""
    line: dict = {}
    kind = rng.choice(["text", "image", "image", "noise", "images", "video", "messages"])
    image = str(EXAMPLES / rng.choice(IMAGES))
    if kind == "noise":
        height, width = rng.randint(20, 150), rng.randint(20, 150)
        image = str(folder / f"{height}x{width}.png")
        noise(height, width).save(image)
    if kind in ("image", "noise"):
        line["image"] = image
    if kind == "images":
        line["images"] = [str(EXAMPLES / name) for name in rng.sample(IMAGES, rng.randint(2, 3))]
    if kind == "video":
        line["video"] = str(EXAMPLES / "moving.mp4")
        line["fps"] = rng.choice([0.5, 1])
    if kind == "messages":
        content = [{"type": "image", "path": image}, {"type": "text", "text": rng.choice(PROMPTS)}]
        line["messages"] = [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": content},
            {"role": "assistant", "content": "A star."},
            {"role": "user", "content": "And what else?"},
        ]
    else:
        line["prompt"] = " ".join(rng.choices(PROMPTS, k=rng.randint(1, 3)))

    # Few different settings, so that many lines share them.
    line["max_new_tokens"] = rng.choice([3, 12])
    line["max_pixels"] = rng.choice([15_000, 30_000])
    if rng.random() < 0.6:
        line["seed"] = rng.randrange(2**63)
        line.update(rng.choice([{"temperature": 1.0}, {"temperature": 0.7, "top_k": 40}]))
        line.update(rng.choice([{}, {"top_p": 0.9}, {"repetition_penalty": 1.3}]))
    elif rng.random() < 0.3:
        line["repetition_penalty"] = 1.2
    return line


def messages_of(line: dict) -> list[Message]:
    """The conversation that a line of `random_line` means, written out by hand."""
    if "messages" in line:
        return line["messages"]
    sources = line.get("images", [line["image"]] if "image" in line else [])
    items = [{"type": "image", "path": source} for source in sources]
    if "video" in line:
        items.append({"type": "video", "path": line["video"]})
    return [{"role": "user", "content": [*items, {"type": "text", "text": line["prompt"]}]}]


def answer_alone(tiny, line: dict) -> tuple[str, int]:
    """The answer to a line and its number of tokens, by `generate` with a batch of one."""
    model, processor = tiny
    options = {name: line[name] for name in ("max_pixels", "fps") if name in line}
    inputs = processor.apply_chat_template(
        messages_of(line), tokenize=True, add_generation_prompt=True, return_dict=True, **options
    )
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    settings = {name: line[name] for name in names if name in line}
    ids = model.generate(**inputs, **settings)[0, inputs.input_ids.shape[1] :].tolist()
    return processor.decode([i for i in ids if i not in (690, 692)]), len(ids)


def test_each_answer_equals_its_answer_alone(tiny, tmp_path, amount):
    """Greedy and sampled, in any company, in float32."""
    rng = random.Random(0)
    lines = [random_line(rng, tmp_path) for _ in range(amount(20, 1000))]
    given = [batch_lines.Line(i, line) for i, line in enumerate(lines, start=1)]
    # From one line at a time to all that are in a window.
    sampled = 0
    start = 0
    while start < len(given):
        part = given[start : start + rng.randint(8, 130)]
        memory = rng.choice([1e3, 2e7, 1e8, 4e9])
        runner = BatchRunner(*tiny, BatchDefaults(), memory)
        records = list(runner.records(iter(part), tqdm(disable=True)))
        assert [record["line"] for record in records] == [line.number for line in part]
        for record, one in zip(records, part, strict=True):
            assert record["error"] is None, record
            found = (record["answer"], record["tokens"])
            assert found == answer_alone(tiny, one.fields), one.fields
            sampled += "seed" in record
        start += len(part)
    assert 0 < sampled < len(lines)


def test_lines_share_batches(tiny, monkeypatch):
    """Else the test before this one would prove nothing."""
    sizes = []
    generate = BatchRunner.generate

    def note_and_generate(self: BatchRunner, rows: list[batch.Row]) -> list[list[int]]:
        sizes.append(len(rows))
        return generate(self, rows)

    monkeypatch.setattr(BatchRunner, "generate", note_and_generate)
    fields = {"image": str(EXAMPLES / "wide.png"), "max_new_tokens": 1}
    lines = [batch_lines.Line(i, dict(fields)) for i in range(1, 71)]
    for memory, expected in ((4e9, [64, 6]), (1e3, [1] * 70)):
        sizes.clear()
        runner = BatchRunner(*tiny, BatchDefaults(), memory)
        assert len(list(runner.records(iter(lines), tqdm(disable=True)))) == 70
        assert sizes == expected


@pytest.mark.parametrize("compile", [False, True], ids=["plain", "compiled"])
def test_a_row_with_a_seed_of_its_own_draws_what_it_draws_alone(tiny, compile, amount):
    if compile and amount(0, 1) == 0:
        pytest.skip("compiling takes long: with --full")
    model, _ = tiny
    generator = torch.Generator().manual_seed(0)
    for case in range(amount(2, 20)):
        ids = torch.randint(0, 600, (3, 10), generator=generator)
        seeds = [case, 2**63 - 1 - case, case]
        settings = {"temperature": 1.0, "max_new_tokens": 12, "eos_token_id": []}
        together = model.generate(ids, seed=seeds, compile=compile, **settings)
        for row in range(3):
            alone = model.generate(ids[row : row + 1], seed=seeds[row], compile=compile, **settings)
            assert torch.equal(together[row], alone[0]), (case, row)


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3], [1, -1], [1, 2**63], [1, None], [1, True]])
def test_seeds_that_are_not_one_for_each_row_are_refused(tiny, seeds):
    model, _ = tiny
    with pytest.raises(ValueError, match="seed is"):
        model.generate(torch.zeros(2, 5).long(), seed=seeds)


# --------------------------------------------------------------------------------- sizes and memory


def random_size(rng: random.Random) -> RowSize:
    frame = 4 * rng.randint(0, 400)
    return RowSize(
        tokens=rng.randint(5, 3000),
        new_tokens=rng.choice([1, 50, 512]),
        patches=3 * frame,
        largest_media=2 * frame,
        largest_frame=frame,
    )


def test_batches_stay_within_the_memory_and_lose_no_row(tiny, amount):
    model, processor = tiny
    rng = random.Random(1)
    for case in range(amount(20, 300)):
        memory = 10 ** rng.uniform(5, 9.5)
        runner = BatchRunner(model, processor, BatchDefaults(), memory)
        settings = [batch.AnswerSettings(n) for n in (1, 50, 512)]
        rows = []
        for number in range(rng.randint(1, 40)):
            size = random_size(rng)
            one = settings[(1, 50, 512).index(size.new_tokens)]
            line = batch_lines.Line(number)
            rows.append(batch.Row(line, {}, one, batch.Sampling(), 0, size, 0.0))
        batches = runner.batches(list(rows))
        numbers = [row.line.number for rows_of_one in batches for row in rows_of_one]
        assert sorted(numbers) == list(range(len(rows))), case
        firsts = [min(row.line.number for row in rows_of_one) for rows_of_one in batches]
        assert firsts == sorted(firsts), case
        for rows_of_one in batches:
            assert len({row.settings for row in rows_of_one}) == 1, case
            estimate = MemoryEstimate(model).batch([row.size for row in rows_of_one])
            assert len(rows_of_one) == 1 or estimate <= memory, case
            lengths = [row.size.tokens for row in rows_of_one]
            assert max(lengths) <= 1.25 * min(lengths) + 32, case


MEMORY_PROGRAM = """
import json, sys
from tqdm import tqdm
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_app.batch import BatchDefaults, BatchRunner
from qwen2vl_app.batch_lines import find_lines

def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024

model = Qwen2VLForConditionalGeneration.from_pretrained("tiny")
runner = BatchRunner(model, Qwen2VLProcessor.from_pretrained("tiny"), BatchDefaults(), 3e7)
lines, total = find_lines([sys.argv[1]])
sizes = []
for record in runner.records(lines, tqdm(disable=True)):
    assert record["error"] is None
    sizes.append(resident())
print(json.dumps(sizes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of a process")
def test_memory_is_flat_over_many_lines(tmp_path, amount, figure):
    """What the first quarter took is enough for all."""
    count = amount(120, 1000)
    names = [IMAGES[i % len(IMAGES)] for i in range(count)]
    lines = [{"image": str(EXAMPLES / name), "max_new_tokens": 3} for name in names]
    file = write_lines(tmp_path / "lines.jsonl", lines)
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)
    assert len(sizes) == count
    growth = max(sizes) - max(sizes[: count // 4])
    assert figure("batch: growth of memory over the last three quarters, MB", growth / 1e6) < 30


# ------------------------------------------------------------------------------------ what is wrong

SHAPES = str(EXAMPLES / "shapes.png")
GOOD = {"image": SHAPES, "max_new_tokens": 3}

# What a line may be, and what its error says: the field, or what else is wrong with it.
FAULTS: list[tuple[dict | bytes, str]] = [
    (b"not json", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b'{"prompt": "caf\xe9"}', "not valid JSON"),
    (b'{"prompt": NaN}', "NaN is not a value of JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b"[1, 2]", "a JSON object is needed"),
    (b"3", "a JSON object is needed"),
    ({}, "it asks nothing"),
    ({"id": 5, "max_new_tokens": 3}, "it asks nothing"),
    ({"system": "Be brief."}, "it asks nothing"),
    ({"image": "nowhere.png"}, "no such image: 'nowhere.png'"),
    ({"image": str(ROOT / "pyproject.toml")}, "cannot read the image"),
    ({"image": 5}, "image: "),
    ({"image": [SHAPES]}, "image: "),
    ({"images": SHAPES}, "images is a list"),
    ({"images": [SHAPES, 3]}, "images: "),
    ({"images": [SHAPES, "nowhere.png"]}, "no such image: 'nowhere.png'"),
    ({"image": SHAPES, "images": [SHAPES]}, "image and images exclude"),
    ({"image": {"path": SHAPES, "max_pixel": 9}}, "'max_pixel'"),
    ({"image": {"max_pixels": 9000}}, "no source"),
    ({"image": "data:image/png;base64,AAAA"}, "image"),
    ({"video": "nowhere.mp4"}, "no such video: 'nowhere.mp4'"),
    ({"video": True}, "video: "),
    ({"videos": {}}, "videos is a list"),
    ({"prompt": 3}, "prompt is a text"),
    ({"prompt": ["a"]}, "prompt is a text"),
    ({"prompt": "a", "system": 3}, "system is a text"),
    ({"prompt": "half a pair: \ud83d"}, "surrogates not allowed"),
    ({"prompt": "a " * 5000}, "tokens"),
    ({"messages": []}, "messages is a list"),
    ({"messages": "Hello"}, "messages is a list"),
    ({"messages": [3]}, "message"),
    ({"messages": [{"role": "robot", "content": "Hello"}]}, "role"),
    ({"messages": [{"role": "user"}]}, "content"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "no source"),
    ({"messages": [{"role": "user", "content": "Hello"}], "prompt": "Why?"}, "messages and prompt"),
    ({"messages": [{"role": "user", "content": "Hello"}], "image": SHAPES}, "messages and image"),
    ({"prompt": "a", "temprature": 1}, "did you mean 'temperature'?"),
    ({"prompt": "a", "label": "dog"}, "'label'"),
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "temperature": [1]}, "temperature"),
    ({"prompt": "a", "temperature": True}, "temperature"),
    ({"prompt": "a", "top_k": 1.5}, "top_k"),
    ({"prompt": "a", "top_p": 2}, "top_p"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
    ({"prompt": "a", "do_sample": "yes"}, "do_sample"),
    ({"prompt": "a", "seed": -1}, "seed"),
    ({"prompt": "a", "seed": 2**63}, "seed"),
    ({"prompt": "a", "seed": 1.0}, "seed"),
    ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens"),
    ({"prompt": "a", "max_new_tokens": 5000}, "max_new_tokens"),
    ({"prompt": "a", "max_new_tokens": "many"}, "max_new_tokens"),
    ({"image": SHAPES, "max_pixels": 100}, "max_pixels"),
    ({"image": SHAPES, "max_pixels": "small"}, "max_pixels"),
    ({"image": SHAPES, "min_pixels": -1}, "min_pixels"),
    ({"video": str(EXAMPLES / "moving.mp4"), "fps": 0}, "fps"),
    ({"video": str(EXAMPLES / "moving.mp4"), "fps": 1, "nframes": 4}, "exclude each other"),
]


def test_a_bad_line_is_one_record_that_names_line_and_field(capsys, tmp_path, amount):
    """All faults in one file, each between good lines that are answered as if it were not there."""
    rng = random.Random(2)
    _, alone, _ = run(capsys, "--batch", write_lines(tmp_path / "good.jsonl", [GOOD]))
    (expected,) = records_of(alone)
    for _ in range(amount(1, 20)):
        lines: list[dict | bytes] = []
        faults: dict[int, str] = {}
        for line, fault in rng.sample(FAULTS, len(FAULTS)):
            lines += rng.choice([[], [], [b""], [GOOD]])
            lines.append(line)
            faults[len(lines)] = fault
        code, out, _ = run(capsys, "--batch", write_lines(tmp_path / "lines.jsonl", lines))
        assert code == 1
        records = records_of(out)
        numbers = [number for number, line in enumerate(lines, start=1) if line != b""]
        assert [record["line"] for record in records] == numbers
        for record in records:
            number = record["line"]
            if number not in faults:
                assert record["error"] is None and record["answer"] == expected["answer"]
                continue
            message = record["error"]
            assert message.startswith(f"line {number}: ") and "\n" not in message, lines[number - 1]
            assert faults[number] in message, (lines[number - 1], message)
            assert record["answer"] is None


def test_what_fails_while_it_is_computed_costs_that_line_alone(tiny, monkeypatch):
    """The batch runs out of memory; its rows are answered one by one, and one fails again."""
    stream = type(tiny[0]).stream
    failing = 3  # the seed of the line that fails

    def fail(self, input_ids, *given, **settings):
        if len(input_ids) > 2 or settings["seed"] == [failing]:
            raise MemoryError
        return stream(self, input_ids, *given, **settings)

    monkeypatch.setattr(type(tiny[0]), "stream", fail)
    lines = [batch_lines.Line(i, {**GOOD, "seed": i}) for i in range(1, 6)]
    runner = BatchRunner(*tiny, BatchDefaults())
    records = list(runner.records(iter(lines), tqdm(disable=True)))
    assert [record["error"] is None for record in records] == [True, True, False, True, True]
    assert records[2]["error"].startswith("line 3: out of memory")


def test_a_mistake_of_the_program_is_not_taken_for_a_bad_line(tiny, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(type(tiny[0]), "stream", fail)
    runner = BatchRunner(*tiny, BatchDefaults())
    with pytest.raises(RuntimeError, match="shapes"):
        list(runner.records(iter([batch_lines.Line(1, GOOD)]), tqdm(disable=True)))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch", "nowhere.jsonl"], "no such file, folder or glob"),
        (["--batch", "*.nothing"], "no such file, folder or glob"),
        (["--batch", "tests"], "no file in this folder"),
        (["--batch", "tiny/checkpoint/model.safetensors"], "it is not text"),
        (["--batch", "pyproject.toml", "README.md"], "'pyproject.toml' is no image"),
        (["--batch", "examples", "--chat"], "--chat"),
        (["--batch", "examples", "--trace"], "--trace"),
        (["--batch", "examples", "--boxes", "out.png"], "--boxes"),
        (["--batch", "examples", "--image", "a.png"], "--image"),
        (["--batch", "examples", "--video", "a.mp4"], "--video"),
        (["--batch", "examples", "--batch-memory", "0"], "--batch-memory"),
        (["--batch", "examples", "--batch-memory", "nan"], "--batch-memory"),
        (["--batch", "examples", "--out", "nowhere/out.jsonl"], "there is no folder 'nowhere'"),
        (["--batch", "examples", "--out", "tests"], "is no file"),
        (["--batch", "examples/wide.png", "--out", "examples/wide.png"], "would overwrite"),
        (["--batch", "examples", "--out", "pyproject.toml"], "is no record"),
        (["--out", "out.jsonl"], "it needs --batch"),
        (["--json", "--chat"], "it does not go with --chat"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_start_is_refused_before_the_model_loads(capsys, monkeypatch, argv, message):
    def never(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(command_line, "load_both", never)
    monkeypatch.chdir(ROOT)
    before = (ROOT / "pyproject.toml").read_bytes()
    code, out, err = run(capsys, *argv)
    (line,) = err.splitlines()
    assert (code, out) == (2, "") and line.startswith("error: ") and message in line
    assert (ROOT / "pyproject.toml").read_bytes() == before


# -------------------------------------------------------------------------------- where they are


def test_folders_globs_names_and_lines_mean_the_same(capsys, monkeypatch, tmp_path):
    for name in ("b.png", "a.PNG"):
        noise(40, 40).save(tmp_path / name)
    for name in ("notes.txt", ".c.png"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    answers = []
    for sources in (["."], ["*.[pP]*"], ["a.PNG", "b.png"], ["./a.PNG", "b.*"]):
        code, out, _ = run(capsys, "--batch", *sources, "--prompt", "Why?", "--max-new-tokens", 4)
        records = records_of(out)
        assert code == 0
        assert [Path(str(record["id"])).name for record in records] == ["a.PNG", "b.png"]
        answers.append([record["answer"] for record in records])
    lines = [{"image": name, "prompt": "Why?", "max_new_tokens": 4} for name in ("a.PNG", "b.png")]
    file = write_lines(tmp_path / "lines.jsonl", lines)
    answers.append([record["answer"] for record in records_of(run(capsys, "--batch", file)[1])])
    stdin = io.TextIOWrapper(io.BytesIO(file.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    answers.append([record["answer"] for record in records_of(run(capsys, "--batch", "-")[1])])
    assert answers == [answers[0]] * 6


def test_a_batch_of_one_image_answers_as_the_plain_command(capsys):
    argv = ["--prompt", "What colour is the ring?"]
    _, plain, _ = run(capsys, "--image", EXAMPLES / "wide.png", *argv)
    _, out, err = run(capsys, "--batch", EXAMPLES / "wide.png", *argv)
    assert records_of(out)[0]["answer"] + "\n" == plain
    assert "batch: 100%" in err and "1/1" in err


@pytest.mark.parametrize(
    "value", ["x", 0, -1.5, True, ["a", 1], {"a": None}, "\ud83d", "\u2028é😀"]
)
def test_an_id_comes_back_as_it_is(capsys, tmp_path, value):
    file = write_lines(tmp_path / "lines.jsonl", [{**GOOD, "id": value}])
    code, out, _ = run(capsys, "--batch", file, "--out", tmp_path / "out.jsonl")
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert (code, out) == (0, "")
    assert records_of(text)[0]["id"] == value


def test_letters_that_a_terminal_lacks_are_still_json(capsys, tmp_path):
    """An id with an emoji, on a stdout that knows ASCII only."""
    file = write_lines(tmp_path / "lines.jsonl", [{**GOOD, "id": "é😀"}])
    command = [sys.executable, "qwen2vl.py", "--batch", str(file)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment)
    assert records_of(done.stdout.decode("ascii"))[0]["id"] == "é😀"


def test_the_default_length_ends_where_the_context_ends(tiny, monkeypatch):
    """As a limit for all lines it takes what there is room for; a line's own length must fit."""
    model, processor = tiny
    filler = {"prompt": "star " * 4040}
    lines = [batch_lines.Line(1, filler), batch_lines.Line(2, {**filler, "max_new_tokens": 512})]
    runner = BatchRunner(model, processor, BatchDefaults())
    first, second = (runner.prepare(line) for line in lines)
    assert first.settings.max_new_tokens + first.size.tokens == 4096
    assert "max_new_tokens is 512" in second["error"]


# ------------------------------------------------------------------------------ broken off, gone on


@pytest.fixture
def questions(tmp_path) -> Path:
    """Eight lines, of which two are wrong and three are sampled."""
    lines: list[dict | bytes] = []
    for i in range(8):
        line = {"id": f"q{i}", "image": str(EXAMPLES / IMAGES[i % 3]), "max_new_tokens": 4}
        if i % 3 == 1:
            line["temperature"] = 1
            line["seed"] = i
        lines.append(line)
    lines[2] = b"no json"
    lines[5] = {"id": "q5", "image": "nowhere.png"}
    return write_lines(tmp_path / "questions.jsonl", lines)


def test_a_broken_off_run_goes_on_where_it_stopped(capsys, tmp_path, questions, amount):
    """Cut at any byte, also in the middle of a record: afterwards all is as in one run."""
    whole = tmp_path / "whole.jsonl"
    assert run(capsys, "--batch", questions, "--out", whole)[0] == 1
    content = whole.read_bytes()
    out = tmp_path / "out.jsonl"
    rng = random.Random(3)
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    cuts = [0, 1, len(content) - 1, len(content), rng.choice(ends), rng.choice(ends) + 1]
    cuts += [rng.randrange(len(content)) for _ in range(amount(4, 100))]
    for cut in cuts:
        out.write_bytes(content[:cut])
        code, stdout, err = run(capsys, "--batch", questions, "--out", out)
        assert (code, stdout) == (1, ""), cut
        text = out.read_text(encoding="utf-8")
        assert without_times(text) == without_times(content.decode()), cut
        # What was there stayed, to the byte.
        kept = content[:cut].rfind(b"\n") + 1
        assert out.read_bytes()[:kept] == content[:kept], cut
        if kept == len(content):
            assert "all 8 lines are there" in err
        elif kept:
            assert f"{content[:kept].count(10)}/8" in err


def test_a_killed_run_goes_on_where_it_stopped(capsys, tmp_path, amount):
    """Killed at random moments, which leave nothing to clean up with."""
    lines = [{"image": str(EXAMPLES / IMAGES[i % 6]), "max_new_tokens": 8} for i in range(120)]
    file = write_lines(tmp_path / "lines.jsonl", lines)
    out = tmp_path / "out.jsonl"
    rng = random.Random(4)
    command = [sys.executable, "qwen2vl.py", "--batch", str(file), "--out", str(out)]
    command += ["--batch-memory", "0.02"]
    before = 0
    for _ in range(amount(1, 12)):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not out.exists() or out.stat().st_size <= before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        assert out.stat().st_size >= before
        before = out.stat().st_size
    assert before > 0
    assert run(capsys, "--batch", file, "--out", out)[0] == 0
    records = records_of(out.read_text(encoding="utf-8"))
    assert [record["line"] for record in records] == list(range(1, 121))
    for i, record in enumerate(records):
        assert record["answer"] == records[i % 6]["answer"], i


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT")
def test_ctrl_c_ends_a_batch_with_130_and_whole_records(tmp_path):
    lines = [{"image": str(EXAMPLES / "many.png"), "max_new_tokens": 30} for _ in range(400)]
    file = write_lines(tmp_path / "lines.jsonl", lines)
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "qwen2vl.py", "--batch", str(file), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--batch-memory", "0.02"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=take_interrupts,
    )
    while not out.exists() or out.stat().st_size == 0:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    assert 0 < len(records_of(out.read_text(encoding="utf-8"))) < 400


@pytest.mark.parametrize(
    "content",
    [b"hello", b"hello\n", b"{}\n", b'{"line": 1}\n', b'{"line": 1, "id": 1, "answer": 2\n', b"\n"],
)
def test_a_file_of_something_else_is_never_written_to(capsys, tmp_path, questions, content):
    out = tmp_path / "mine.txt"
    out.write_bytes(content)
    code, _, err = run(capsys, "--batch", questions, "--out", out)
    assert code == 2 and "is no record of --batch" in err
    assert out.read_bytes() == content


def test_the_records_of_another_batch_are_refused(capsys, tmp_path, questions):
    out = tmp_path / "out.jsonl"
    assert run(capsys, "--batch", questions, "--out", out)[0] == 1
    content = out.read_bytes()
    shorter = write_lines(tmp_path / "shorter.jsonl", [{**GOOD, "id": "q0"}])
    other = write_lines(tmp_path / "other.jsonl", [{**GOOD, "id": "p0"}] * 9)
    for file, reason in ((shorter, "there is no such line"), (other, "that line has 'p0'")):
        code, _, err = run(capsys, "--batch", file, "--out", out)
        assert code == 2 and "belongs to another batch" in err and reason in err
    assert out.read_bytes() == content


# ------------------------------------------------------------------------------------ one as JSON


@pytest.mark.parametrize("more", [[], ["--trace"], ["--temperature", "1", "--seed", "3"]])
def test_json_tells_what_the_plain_command_prints_and_how_long_it_took(capsys, more):
    argv = ["--image", EXAMPLES / "many.png", "--prompt", "Find the orange diamond.", *more]
    _, plain, _ = run(capsys, *argv)
    code, out, err = run(capsys, *argv, "--json")
    record = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert record["answer"] + "\n" == plain
    assert record["boxes"] == [box._asdict() for box in find_boxes(plain)]
    assert set(record) == {"answer", "boxes", "prompt_tokens", "tokens", "seconds"}
    seconds = record["seconds"]
    assert list(seconds) == ["load", "inputs", "vision", "prefill", "decode", "total"]
    total = seconds.pop("total")
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) <= total
    assert ("vision blocks" in err) == ("--trace" in more)


def test_json_counts_the_tokens_that_the_model_reads_and_writes(capsys, tiny):
    line = {"image": str(EXAMPLES / "shapes.png"), "prompt": "Describe this image."}
    model, processor = tiny
    inputs = processor.apply_chat_template(
        messages_of(line), tokenize=True, add_generation_prompt=True, return_dict=True
    )
    record = json.loads(run(capsys, "--image", line["image"], "--json")[1])
    assert record["prompt_tokens"] == inputs.input_ids.shape[1]
    new = model.generate(**inputs).shape[1] - inputs.input_ids.shape[1]
    assert record["tokens"] == new


def test_json_and_boxes_go_together(capsys, tmp_path):
    out_file = tmp_path / "found.png"
    argv = ["--image", EXAMPLES / "many.png", "--prompt", "Find the orange diamond."]
    code, out, err = run(capsys, *argv, "--json", "--boxes", out_file)
    assert code == 0 and len(json.loads(out)["boxes"]) == 1
    assert out_file.exists() and "the orange diamond" in err


# ------------------------------------------------------------------------------- long work is shown


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def question(processor, *names: str):
    items = [{"type": "image", "path": str(EXAMPLES / name)} for name in names]
    messages = [{"role": "user", "content": [*items, {"type": "text", "text": "What is it?"}]}]
    return processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True
    )


@pytest.mark.parametrize("names", [["many.png"], ["shapes.png", "tall.png", "many.png"]])
def test_bars_count_every_layer_and_leave_the_model_as_it_was(tiny, monkeypatch, capsys, names):
    model, processor = tiny
    inputs = question(processor, *names)
    expected = model.generate(**inputs, max_new_tokens=4)
    monkeypatch.setattr(progress, "DELAY", 0)
    kept = {}
    begin = progress.ReadingBars.begin

    def begin_and_keep(self, title):
        begin(self, title)
        kept[title] = self.bars[title]

    monkeypatch.setattr(progress.ReadingBars, "begin", begin_and_keep)
    tokens = []
    with progress.reading_bars(model, inputs):
        for token in model.stream(**inputs, max_new_tokens=4):
            assert hooks(model) == 0  # gone when decoding begins
            tokens.append(token)
    assert torch.equal(torch.stack(tokens, dim=1), expected[:, inputs.input_ids.shape[1] :])
    assert list(kept) == ["vision", "prefill"]
    for title, bar in kept.items():
        assert bar.n == bar.total, title
    assert kept["vision"].total == 4 * inputs.image_grid_thw.prod(-1).sum()
    err = capsys.readouterr().err
    assert re.search(r"vision: +\d+%\|.*\d\d:\d\d<", err) and "prefill: " in err


def test_bars_of_a_text_or_of_short_work_show_nothing(tiny, monkeypatch, capsys):
    model, processor = tiny
    assert progress.DELAY == 2
    monkeypatch.setattr(progress, "DELAY", 3600)  # a busy machine may need two seconds for anything
    for names in ([], ["shapes.png"]):
        inputs = question(processor, *names)
        with progress.reading_bars(model, inputs):
            model.generate(**inputs, max_new_tokens=2)
        assert hooks(model) == 0
    assert capsys.readouterr().err == ""


def test_bars_are_gone_when_reading_fails(tiny):
    model, processor = tiny
    inputs = question(processor, "shapes.png")
    inputs["pixel_values"][0] = float("nan")
    with pytest.raises(ValueError, match="NaN"), progress.reading_bars(model, inputs):
        model.generate(**inputs)
    assert hooks(model) == 0


def test_long_reading_is_announced_with_a_limit_that_makes_it_short(
    tiny, monkeypatch, caplog, amount
):
    """Whatever the machine's speed: the limit named comes down to half a minute, if any does."""
    model, processor = tiny
    rng = random.Random(5)
    announced = 0
    monkeypatch.setattr(progress, "LEAST_PATCHES", 600)  # smaller images are sooner made
    for case in range(amount(15, 300)):
        sizes = [(rng.randint(150, 700), rng.randint(150, 700)) for _ in range(rng.randint(1, 2))]
        images = [noise(height, width) for height, width in sizes]

        def inputs_of(max_pixels: float, images=images):
            items = [{"type": "image", "image": image} for image in images]
            messages = [{"role": "user", "content": [*items, {"type": "text", "text": "Why?"}]}]
            return processor.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=True,
                max_pixels=int(max_pixels),
            )  # fmt: skip

        per_token = 10 ** rng.uniform(-2.5, -1)
        vision = progress.LayerTime(per_token / 2, per_token / 10_000)
        here = progress.ReadingTime(vision, 4, progress.LayerTime(per_token, 0), 4)
        monkeypatch.setattr(progress, "measure_reading", lambda model, here=here: here)
        caplog.clear()
        inputs = inputs_of(2**22)
        progress.note_long_reading(model, inputs)
        patches = sum(h * w for _, h, w in progress.grids_of(inputs))
        seconds = here.seconds(progress.grids_of(inputs), 1, inputs.input_ids.shape[1])
        if patches < progress.LEAST_PATCHES or seconds <= 60:
            assert caplog.messages == [], case
            continue
        announced += 1
        (line,) = caplog.messages
        named = re.search(r"to read here; with --max-pixels (\d+) about (.+)$", line)
        if named is None:  # nothing makes it less: each image has the smallest limit already
            tokens = [h * w // 4 for _, h, w in progress.grids_of(inputs)]
            assert max(tokens) <= 160 and line.endswith("to read here"), (case, line)
            continue
        limit = int(named[1])
        # An image is never larger than its limit: it takes that long at most.
        shrunk = inputs_of(limit)
        less = here.seconds(progress.grids_of(shrunk), 1, shrunk.input_ids.shape[1])
        assert less <= 30 or limit == 160 * 28 * 28, (case, line)
        assert less < seconds
    assert announced >= 2


def test_the_machine_is_measured_in_the_first_layers(tiny):
    """Each of both transformers, by its own layer; the weights of the others are not looked at."""
    model, _ = tiny
    called = []
    layers = [*model.visual.blocks, *model.model.layers]
    originals = [layer.forward for layer in layers]
    for i, layer in enumerate(layers):

        def forward(*given, i=i, original=originals[i]):
            called.append(i)
            return original(*given)

        layer.forward = forward
    try:
        here = progress.measure_reading(model)
    finally:
        for layer in layers:
            del layer.forward
    assert set(called) == {0, len(model.visual.blocks)}
    for part in (here.vision, here.decoder):
        assert part.linear >= 0 and part.quadratic > 0
    assert (here.vision_layers, here.decoder_layers) == (4, 4)
    # Twice the images take twice the time, more patches in one image more than that.
    one = here.seconds([(1, 10, 10)], 0, 0)
    assert here.seconds([(1, 10, 10)] * 2, 0, 0) == pytest.approx(2 * one)
    assert here.seconds([(2, 10, 10)], 0, 0) == pytest.approx(2 * one)
    assert here.seconds([(1, 20, 10)], 0, 0) > 2 * one


@pytest.mark.parametrize(
    ("seconds", "text"), [(61, "61 s"), (200, "3 minutes"), (4000, "67 minutes"), (9000, "2 hours")]
)
def test_times_are_told_in_words(seconds, text):
    assert progress.in_words(seconds) == text


def test_a_bar_appears_while_one_answer_is_read(capsys, monkeypatch):
    """Of the command line, with --json and without."""
    monkeypatch.setattr(progress, "DELAY", 0)
    for more in ([], ["--json"], ["--trace"]):
        err = run(capsys, "--image", EXAMPLES / "many.png", *more)[2]
        assert "vision: " in err and "prefill: " in err, more


def test_the_line_about_long_reading_comes_before_the_answer(capsys, monkeypatch):
    for module in (command_line, json_answer):
        said = []
        monkeypatch.setattr(module, "note_long_reading", lambda model, inputs, s=said: s.append(1))
        run(
            capsys, "--image", EXAMPLES / "many.png", *(["--json"] if module is json_answer else [])
        )
        assert said == [1]
