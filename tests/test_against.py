"""Ours beside the reference: the table holds for right code, and finds mistakes at their stage."""

import json
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
import pytest
import torch

import qwen2vl
from notebooks import against
from tests.helpers.official_layout import noisy_image, save_official_layout, save_tiny_layout

# The files beside the notebooks import each other by plain names, once `against` is imported.
import colab  # isort: skip
import comparison  # isort: skip
import mistakes  # isort: skip
import our_side  # isort: skip
import precision  # isort: skip
import published  # isort: skip
import verdicts  # isort: skip
from side import Question, Rounding, Side  # isort: skip
from verdicts import table_of  # isort: skip

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SHAPES = str(ROOT / "examples" / "shapes.png")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Pair:
    """Our side of a checkpoint in one dtype, and what the reference said."""

    ours: our_side.OurSide
    question: Question
    theirs: Side
    rounding: Rounding

    def table(self):
        side = self.ours.ask(self.question, self.theirs, measured=False)
        return table_of(side, self.theirs, self.rounding, self.ours.processor.decode)


def make_pair(folder: Path, dtype: str) -> Pair:
    question = Question(noisy_image(1), "Describe this image.", max_new_tokens=4)
    theirs, rounding = against.their_answer(str(folder), DTYPES[dtype], "cpu", None, question)
    ours = our_side.OurSide(*against.our_model(str(folder), DTYPES[dtype], "cpu", None))
    return Pair(ours, question, theirs, rounding)


@pytest.fixture(scope="module", params=DTYPES)
def small(request, tmp_path_factory) -> Pair:
    """Random weights, four blocks and four layers, the embedded model's tokenizer."""
    folder = save_tiny_layout(ROOT / "tiny" / "checkpoint", tmp_path_factory.mktemp("small"))
    return make_pair(folder, request.param)


@pytest.fixture(scope="module", params=DTYPES)
def official_layout(request, official, tmp_path_factory) -> Pair:
    """Random weights, 32 blocks and 28 layers, the official tokenizer and template."""
    folder = save_official_layout(official, tmp_path_factory.mktemp("official"))
    return make_pair(folder, request.param)


def assert_found(pair: Pair, chosen: list[mistakes.Mistake]) -> None:
    is_bfloat16 = pair.ours.model.dtype is torch.bfloat16
    for mistake in chosen:
        with mistakes.planted(mistake.replacements):
            found = pair.table().first_wrong()
        expected = mistake.stage if is_bfloat16 or not mistake.only_bfloat16 else None
        assert found == expected, f"{mistake.name}: found at {found}"


def test_all_stages_of_a_small_checkpoint_hold(small):
    table = small.table()
    assert table.first_wrong() is None, table
    # Four blocks and four layers, each with attention and MLP apart, and the twelve of an answer.
    assert len(table.rows) == 6 + 1 + 3 * 4 + 3 + 2 + 3 * 4 + 2 + 1 + 4 + 1


def test_every_planted_mistake_is_found_at_its_stage(small, amount):
    every = mistakes.all_mistakes(small.ours.model, small.ours.processor)
    assert len(every) >= 30
    # A sample from the first to the last stage, or all of them.
    step = len(every) // amount(12, len(every))
    assert_found(small, every[::step])
    assert small.table().first_wrong() is None  # nothing of them stays


def test_the_official_layout_holds_and_finds_mistakes(official_layout, amount):
    assert official_layout.table().first_wrong() is None
    chosen = mistakes.all_mistakes(official_layout.ours.model, official_layout.ours.processor)
    assert_found(official_layout, chosen[:: amount(11, 1)])


# ------------------------------------------------------------------------------- what a table says


def test_behind_a_wrong_stage_those_that_hold_alone_are_marked_as_inherited(small):
    chosen = mistakes.all_mistakes(small.ours.model, small.ours.processor)
    one = next(mistake for mistake in chosen if mistake.stage == "decoder layer 1")
    with mistakes.planted(one.replacements):
        rows = {row.stage: row.verdict for row in small.table().rows}
    assert rows["decoder layer 0"] == comparison.HOLDS
    assert rows["decoder layer 1"] == comparison.FAILS
    for stage in ("decoder layer 2", "decoder layer 3", "final norm", "logits"):
        assert rows[stage] == comparison.INHERITED, stage


@pytest.mark.parametrize("number", [0, 2])
def test_a_stage_that_stops_with_an_error_is_named_and_ends_the_table(small, number):
    def stop(*args, **options):
        raise ValueError("no\nmore")

    mlp = small.ours.model.visual.blocks[number].mlp
    with mistakes.planted([(mlp, "forward", stop)]):
        table = small.table()
    assert table.first_wrong() == f"vision block {number}: MLP"
    assert table.rows[-1].remark == "not reached: ValueError: no"
    assert repr(table) and table.rows[-1].judgement()


@pytest.mark.parametrize(
    ("gap", "bar", "verdict"),
    [(0.0, 0.1, "≈"), (0.09, 0.1, "≈"), (0.11, 0.1, "✗"), (1e-6, 1e-7, "✗")],
)
def test_another_token_is_a_tie_only_within_the_bar(gap, bar, verdict):
    row = comparison.compare("token 1", "a", "b", [comparison.Measure("start to end", 0.0, 1.0)])
    logits = torch.tensor([5.0, 5.0 - gap], dtype=torch.float64)
    verdicts.judge_token(row, 1, 0, logits, bar)
    assert row.verdict == verdict


@pytest.mark.parametrize("place", [0, 3, 7])
def test_one_nan_or_another_shape_holds_in_no_measure(place):
    theirs = torch.arange(1.0, 9.0).view(2, 4)
    ours = theirs.clone()
    ours.view(-1)[place] = float("nan")
    for measure in (comparison.largest_relative, comparison.mean_relative):
        measures = [comparison.Measure("m", measure(ours, theirs), 1e9)]
        row = comparison.compare("x", ours, theirs, measures)
        assert not row.holds
    assert not comparison.compare("x", ours, theirs).holds
    assert not comparison.compare("x", theirs.view(4, 2), theirs).holds


# ------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_command_writes_the_table_as_markdown_and_json(tmp_path, capsys, dtype):
    options = ["--model", "tiny", "--image", SHAPES, "--dtype", dtype, "--out", str(tmp_path)]
    assert against.main([*options, "--published", "2b"]) == 0
    content = json.loads((tmp_path / "against.json").read_text(encoding="utf-8"))
    assert content["first_wrong"] is None
    assert content["facts"]["dtype"] == dtype
    stages = [stage["stage"] for stage in content["stages"]]
    for stage in ("pixels", "vision block 3", "decoder layer 3: MLP", "logits", "answer"):
        assert stage in stages
    page = (tmp_path / "against.md").read_text(encoding="utf-8")
    assert all(f"| {stage} |" in page for stage in stages)
    assert content["facts"]["answer, ours"] in page
    assert capsys.readouterr().out.strip().endswith("stages hold.")


def test_the_command_exits_with_1_and_names_the_first_wrong_stage(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(qwen2vl.MLP, "forward", mistakes.gelu_gate)
    options = ["--image", SHAPES, "--dtype", "float32", "--out", str(tmp_path)]
    assert against.main(options) == 1
    assert "decoder layer 0: MLP" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", SHAPES, "--model", "no/such folder"], "no/such folder"),
        (["--image", SHAPES, "--device", "toaster"], "toaster"),
    ],
)
def test_the_command_exits_with_2_and_one_line_for_bad_input(tmp_path, capsys, options, said):
    assert against.main([*options, "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize(
    ("asked", "free", "num_models", "chosen"),
    [
        (None, 1e9, 1, "float32"),
        (None, 1e9, 2, "float32"),
        (None, 20e6, 1, "float32"),
        (None, 20e6, 2, "bfloat16"),
        ("bfloat16", 1e9, 1, "bfloat16"),
        ("float32", 1e9, 1, "float32"),
    ],
)
def test_float32_is_taken_where_the_memory_holds_it(monkeypatch, asked, free, num_models, chosen):
    monkeypatch.setattr(precision, "available_memory", lambda device: free)
    dtype, reason = precision.choose_dtype("tiny", asked, "cpu", num_models)
    assert dtype is DTYPES[chosen]
    assert f"{free / 1e9:.1f} GB are free" in reason and "in float32" in reason


def test_what_fits_in_no_dtype_and_an_unknown_dtype_are_errors(monkeypatch):
    with pytest.raises(ValueError, match="float64"):
        precision.choose_dtype("tiny", "float64", "cpu", 1)
    monkeypatch.setattr(precision, "available_memory", lambda device: 1e6)
    with pytest.raises(MemoryError, match="GB free"):
        precision.choose_dtype("tiny", None, "cpu", 1)


# ------------------------------------------------------------------------------- published outputs


@pytest.mark.parametrize("size", published.SHAPES)
def test_published_numbers_hold_and_what_cannot_be_had_is_said(tiny, size, monkeypatch):
    def unreachable(source):
        raise OSError("no network")

    monkeypatch.setattr(published, "load_image", unreachable)
    rows = published.compare_published(size, *tiny)
    assert len(rows) >= 4 and all(row.holds for row in rows)
    shown = [row for row in rows if row.verdict == comparison.SHOWN]
    assert len(shown) == (size == "7b")
    assert all("no network" in row.remark for row in shown)


def test_a_checkpoint_is_known_by_shape_and_name_together(tiny):
    config = tiny[0].config
    assert published.which_checkpoint("Qwen/Qwen2-VL-2B-Instruct", config) is None
    hidden_size, num_layers, vocabulary = published.SHAPES["2b"]
    official = replace(
        config, hidden_size=hidden_size, num_hidden_layers=num_layers, vocab_size=vocabulary
    )
    assert published.which_checkpoint("Qwen/Qwen2-VL-2B-Instruct", official) == "2b"
    assert (
        published.which_checkpoint("/cache/models--Qwen--Qwen2-VL-2B-Instruct/1", official) == "2b"
    )
    assert published.which_checkpoint("someone/finetune", official) is None


# ---------------------------------------------------------------------------- around the notebooks

in_a_clone = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="this is no clone: the bundle takes the badges out"
)


@in_a_clone
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_colab_and_installs_only_there(path):
    first, cell = nbformat.read(path, as_version=4).cells[:2]
    assert f"/blob/main/notebooks/{path.name})" in first.source
    assert "colab" in cell.metadata.tags
    before = list(sys.path)
    exec(cell.source, {})
    assert sys.path == before


@in_a_clone
def test_the_badge_can_be_written_again_for_another_repository(tmp_path):
    path = tmp_path / NOTEBOOKS[0].name
    path.write_bytes(NOTEBOOKS[0].read_bytes())
    for repository in ("one/course", "two/course.py"):
        colab.add_badge(path, repository)
    text = path.read_text(encoding="utf-8")
    assert text.count("two/course.py") == 2 and "one/course" not in text
    assert len(text.splitlines()) == len(NOTEBOOKS[0].read_text(encoding="utf-8").splitlines())


def test_the_dev_container_runs_the_first_command_of_readme():
    file = ROOT / ".devcontainer" / "devcontainer.json"
    command = json.loads(file.read_text(encoding="utf-8"))["postCreateCommand"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(line for line in readme.splitlines() if line.startswith("pip install -e ."))
    assert command.startswith(first)


TEXTS = ("图片", "한국어", "العربية", "हिन्दी", "ไทย", "🌟", "\x07", "日本", "ქართული", "A\nβ", "½")


@pytest.mark.parametrize("text", TEXTS)
def test_labels_in_any_script_are_drawn_without_missing_glyphs(text):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from plots.lettering import drawable, show

    _, axes = plt.subplots()
    axes.set_xticks([0], [text])
    axes.set_title(text)
    axes.text(0, 0, text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*non-interactive.*")
        show()
        plt.gcf().canvas.draw()
    plt.close("all")
    assert drawable("A") == "A"
    if not text.isascii() and text not in ("A\nβ", "½"):
        assert drawable(text).isascii() or drawable(text) == text
