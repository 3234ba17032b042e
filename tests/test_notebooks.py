"""The course: every notebook runs from a clean kernel, every exercise tells right from wrong."""

import ast
import os
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient

from qwen2vl_extras.devices import available_memory
from tests.helpers.official_layout import save_official_layout

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
ids = [path.stem for path in NOTEBOOKS]


def tagged(cell: nbformat.NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def code_of(solution: nbformat.NotebookNode) -> str:
    """The Python in a folded solution or a folded aside."""
    return "\n".join(re.findall(r"```python\n(.*?)```", solution.source, flags=re.DOTALL))


def functions(code: str) -> set[str]:
    return {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}


def wrong_answers(path: Path) -> dict[str, list[str]]:
    """A notebook's wrong answers, by the function that they define.

    They are cells of `notebooks/wrong_answers/NN.py`, each below a line
    "# %% function: what is wrong".
    """
    text = (FOLDER / "wrong_answers" / f"{path.stem[:2]}.py").read_text(encoding="utf-8")
    answers: dict[str, list[str]] = {}
    for cell in text.split("\n# %% ")[1:]:
        title, code = cell.split("\n", 1)
        function, _, mistake = title.partition(": ")
        assert mistake, f"{title!r} does not say what is wrong"
        assert function in functions(code), f"the cell {title!r} does not define {function}"
        answers.setdefault(function, []).append(code)
    return answers


NOT_WRITTEN, WRONG, RIGHT = "…", "✗", "✓ right"


class Trial(NamedTuple):
    """What is tried at an exercise: an answer, how the check's output begins, and its cell."""

    answer: str
    outcome: str
    cell: int


class Executed(NamedTuple):
    """A notebook with more cells than it has, run to its end whatever a cell raised."""

    path: Path
    cells: list[nbformat.NotebookNode]
    again: set[int]  # the cells that run for the second time in a row
    asides: set[int]  # the cells with the code of folded asides
    trials: list[Trial]


def with_more_cells(path: Path, long_ones_too: bool) -> Executed:
    """The notebook; each code cell twice, asides unfolded, stubs followed by answers to try.

    long_ones_too: whether the cells tagged "long" run twice as well.
    """
    untried = wrong_answers(path)
    executed = Executed(path, [], set(), set(), [])
    cells = executed.cells
    for cell in nbformat.read(path, as_version=4).cells:
        cells.append(cell)
        if cell.cell_type == "code" and (long_ones_too or not tagged(cell, "long")):
            cells.append(nbformat.v4.new_code_cell(cell.source))
            executed.again.add(len(cells) - 1)
        if tagged(cell, "check"):
            check = cell.source
            executed.trials.append(Trial("the stub", NOT_WRITTEN, len(cells) - 1))
        if tagged(cell, "aside"):
            for code in re.findall(r"```python\n(.*?)```", cell.source, flags=re.DOTALL):
                cells.append(nbformat.v4.new_code_cell(code))
                executed.asides.add(len(cells) - 1)
        if tagged(cell, "solution"):
            for answer, outcome in answers_to(cell, untried):
                cells.append(nbformat.v4.new_code_cell(answer))
                cells.append(nbformat.v4.new_code_cell(check))
                executed.trials.append(Trial(answer, outcome, len(cells) - 1))
            # The solution once more: nothing that a checker keeps may be used up.
            cells.append(nbformat.v4.new_code_cell(check))
            executed.trials.append(Trial("the solution again", RIGHT, len(cells) - 1))
    assert not untried, f"wrong answers for no exercise: {set(untried)}"
    return executed


def answers_to(
    solution: nbformat.NotebookNode, untried: dict[str, list[str]]
) -> list[tuple[str, str]]:
    """All answers to an exercise with their outcome; the wrong ones are taken out of `untried`."""
    right = code_of(solution)
    trials = []
    for name in functions(right) & untried.keys():
        trials += [(code, WRONG) for code in untried.pop(name)]
    trials.append((right, RIGHT))
    return trials


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def error_of(cell: nbformat.NotebookNode) -> str | None:
    """The error that a cell has stopped with, in one line."""
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}"
    return None


def execute(notebook: nbformat.NotebookNode, to_the_end: bool = False, **environment: str) -> None:
    """Run all cells in a new kernel, offline, in the notebooks' folder.

    A cell's error is raised, or with to_the_end left in the cell's outputs.
    """
    variables = dict(os.environ, HF_HUB_OFFLINE="1", QWEN2VL_TRAIN_STEPS="8")
    # Pictures without sliders; one step of fine-tuning where the model is a large one.
    variables.update(QWEN2VL_STATIC="1", QWEN2VL_LORA_STEPS="1")
    variables.update(environment)
    client = NotebookClient(
        notebook,
        timeout=3600,  # against a hang: without AVX-512 training takes many minutes
        allow_errors=to_the_end,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute(env=variables)


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=ids)
def executed(request) -> Executed:
    """Each notebook with its answers, run once for all tests that look at what came out."""
    notebook = nbformat.read(request.param, as_version=4)
    result = with_more_cells(request.param, request.config.getoption("--full"))
    notebook.cells = result.cells
    execute(notebook, to_the_end=True)
    return result


def test_every_cell_runs_after_a_restart_and_twice_in_a_row(executed):
    """Its claims hold then: a claim that doesn't is an AssertionError of its cell."""
    stopped = []
    for number, cell in enumerate(executed.cells):
        error = error_of(cell)
        if error:
            when = "the second time" if number in executed.again else "the first time"
            stopped.append(f"{when}: {error}\n{cell.source}\n")
    assert not stopped, f"{len(stopped)} cells of {executed.path.name}:\n\n" + "\n".join(stopped)


def test_an_exercise_tells_right_from_wrong(executed):
    for answer, outcome, number in executed.trials:
        text = printed(executed.cells[number])
        assert text.startswith(outcome), f"{outcome} expected for:\n{answer}\n\n{text}"
        # A wrong answer has to be recognised, not just to crash.
        assert "it stopped with" not in text, f"{answer}\n\n{text}"


def test_no_message_to_a_wrong_answer_shows_the_solution(executed):
    solutions = []
    for cell in executed.cells:
        if tagged(cell, "solution"):
            solutions += [line.strip() for line in code_of(cell).splitlines()]
    solutions = [line.split("  #")[0] for line in solutions if len(line) > 12]
    for _, _, number in executed.trials:
        text = printed(executed.cells[number])
        assert not [line for line in solutions if line in text], text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_an_exercise_has_at_least_five_wrong_answers(path):
    for name, answers in wrong_answers(path).items():
        assert len(answers) >= 5, f"{name} has {len(answers)}"
        assert len(set(answers)) == len(answers), f"{name} has one answer twice"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_what_a_notebook_says_of_this_checkpoint_is_checked_by_its_cells(path):
    """`course.answered` holds a sentence to what these weights do; other weights show it only."""
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert "course.answered(" in code, "its sentences about answers are not checked"


def test_without_transformers_the_stored_reference_takes_its_place(amount):
    for path in NOTEBOOKS[: amount(1, 9)]:
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, QWEN2VL_NO_TRANSFORMERS="1")
        lines = "".join(map(printed, notebook.cells)).splitlines()
        missing = [line for line in lines if line.startswith("–") and "no reference here" in line]
        # Only texts have none stored.
        assert all("prompt text" in line for line in missing), f"{path.name}: {missing}"


ASKED = re.compile(r'"(\d\d_\w*)(\{\w+\})?"')


def test_what_the_reference_said_is_stored_for_all_that_is_asked_and_for_nothing_else():
    stored = {file.stem for file in (FOLDER / "reference").glob("*.npy")}
    asked = set()
    for path in NOTEBOOKS:
        code = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
        for name, changing in ASKED.findall(code):
            matching = {one for one in stored if one.startswith(name)} if changing else {name}
            assert matching, f"{path.name} asks for {name}…, of which none is stored"
            asked |= matching
    assert stored == asked


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_shows_the_reference_beside_ours_and_all_stages_at_its_end(path):
    """`compare` shows both sides; `reference` alone is for a plot that needs the numbers."""
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    if path.stem.startswith("08"):  # its long table has all of them
        assert "table_of(" in code and code.count("course.reference(") == 1
        return
    assert code.count("course.compare") >= 2 and "course.reference(" not in code
    last = [cell for cell in cells if cell.source == "course.summary()"][-1]
    shown = last.outputs[0].data["text/plain"]
    assert shown.endswith("stages hold.") and len(shown.splitlines()) >= 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_notebook_runs_on_the_official_layout(dtype, official, tmp_path, amount):
    """Official tokenizer, template, depths and vocabulary; small widths and random weights."""
    folder = save_official_layout(official, tmp_path)
    for path in NOTEBOOKS[:9][:: amount(9, 1)]:
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, QWEN2VL_MODEL=str(folder), QWEN2VL_DTYPE=dtype)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        said = "".join(output.text for output in outputs if output.get("name") == "stderr")
        assert "Glyph" not in said, f"{path.name}: {said}"  # a label that the font can't draw
        assert any("stages hold." in str(output.get("data")) for output in outputs), path.name


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "gigabytes"), [("bfloat16", 12), ("float32", 21)])
@pytest.mark.parametrize("path", NOTEBOOKS[:9] + NOTEBOOKS[10:], ids=ids[:9] + ids[10:])
def test_a_notebook_runs_at_the_2b_shape(path, dtype, gigabytes, checkpoint_2b):
    """Random weights give random answers: steps that judge answers only show them, and say so."""
    if available_memory("cpu") < gigabytes * 1e9:
        pytest.skip(f"two 2B models in {dtype} take {gigabytes} GB")
    notebook = nbformat.read(path, as_version=4)
    execute(notebook, QWEN2VL_MODEL=str(checkpoint_2b[0]), QWEN2VL_DTYPE=dtype)
    assert "it needs trained weights" in "".join(map(printed, notebook.cells))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_no_cell_counts_layers_from_1(path):
    """A checkpoint's names count from 0, and so does every label and every sentence."""
    for cell in nbformat.read(path, as_version=4).cells:
        from_1 = re.findall(r"\b(?:layer|block)s? \{\w+ \+ 1\}", cell.source)
        assert not from_1, from_1
    drawings = (FOLDER / "plots" / f"plots_{path.stem[:2]}.py").read_text(encoding="utf-8")
    for function in drawings.split("\ndef ")[1:]:
        if re.search(r"\b(layer|block)", function):
            assert "range(1, len(" not in function, function


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_follows_the_pattern(path):
    cells = nbformat.read(path, as_version=4).cells

    # Exercises, each followed by its check and its folded solution, and cells that break something.
    for tag, least in {"exercise": 2, "check": 2, "solution": 2, "break": 1}.items():
        found = sum(tagged(cell, tag) for cell in cells)
        assert found >= least, f"fewer than {least} cells tagged {tag}"
    steps = ("exercise", "check", "solution")
    order = [tag for cell in cells for tag in steps if tagged(cell, tag)]
    assert order == list(steps) * (len(order) // 3)
    for cell in cells:
        if tagged(cell, "solution") or tagged(cell, "aside"):
            assert code_of(cell) and "<details>" in cell.source

    # Short cells, and more prose than code.
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert max(source.count("\n") + 1 for source in code) <= 25
    prose = [
        cell.source
        for cell in cells
        if cell.cell_type == "markdown" and not (tagged(cell, "solution") or tagged(cell, "aside"))
    ]
    assert sum(map(len, prose)) > sum(map(len, code)), "more code than prose"

    # A title, a section of the paper, and what the shipped code does otherwise.
    text = "\n".join(prose)
    assert text.startswith("# ") and "arXiv" in text and re.search(r"[Ss]ection \d", text)
    assert "production" in text.lower(), "what the shipped code does differently is not said"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_is_committed_with_its_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert path.stat().st_size < 1e6
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_pictures_in_the_text_of_a_notebook_lie_beside_it(path):
    """Opening it asks nothing of the network."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    pictures += re.findall(r"<img[^>]*src=[\"']([^\"']*)", text)
    missing = [picture for picture in pictures if not (FOLDER / picture).is_file()]
    assert not missing


def defined_in(path: Path) -> set[str]:
    """Functions, classes, methods ("Class.method") and constants of a module."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    names.add(f"{node.name}.{part.name}")
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


POINTER = re.compile(r"`(?:class |def )?([A-Za-z_][\w.]*)(?:\([^`)]*\))?` in `([\w/]+\.py)`")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_every_symbol_that_a_notebook_points_to_exists(path):
    """They are written "`class X` in `file.py`", "`def f` in `file.py`" or "`X.f` in `file.py`"."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    pointers = POINTER.findall(text)
    assert pointers, "it points nowhere"
    for name, file in pointers:
        assert name in defined_in(ROOT / file), f"`{name}` is not in `{file}`"
