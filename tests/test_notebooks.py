"""The course: every notebook runs from a clean kernel, every exercise tells right from wrong."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
ids = [path.stem for path in NOTEBOOKS]


def tagged(cell: nbformat.NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def code_of(solution: nbformat.NotebookNode) -> str:
    """The Python in a folded solution."""
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


def with_answers_tried(path: Path) -> tuple[nbformat.NotebookNode, dict[int, str]]:
    """The notebook, where each exercise's stub is followed by its wrong answers and its solution.

    Also returns how the output of every check begins, by the number of its cell.
    """
    notebook = nbformat.read(path, as_version=4)
    untried = wrong_answers(path)
    cells: list[nbformat.NotebookNode] = []
    expected: dict[int, str] = {}
    for cell in notebook.cells:
        cells.append(cell)
        if tagged(cell, "check"):
            expected[len(cells) - 1] = NOT_WRITTEN
            check = cell.source
        if tagged(cell, "solution"):
            solution = code_of(cell)
            exercise = functions(solution) & untried.keys()
            assert exercise, f"no wrong answer for {functions(solution)}"
            trials = [(code, WRONG) for name in exercise for code in untried.pop(name)]
            trials.append((solution, RIGHT))
            for code, outcome in trials:
                cells.append(nbformat.v4.new_code_cell(code))
                cells.append(nbformat.v4.new_code_cell(check))
                expected[len(cells) - 1] = outcome
    assert not untried, f"wrong answers for no exercise: {set(untried)}"
    notebook.cells = cells
    return notebook, expected


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def execute(notebook: nbformat.NotebookNode, **environment: str) -> None:
    """Run all cells in a new kernel, offline, in the notebooks' folder; raise a cell's error."""
    variables = dict(os.environ, HF_HUB_OFFLINE="1", QWEN2VL_TRAIN_STEPS="8")
    # Pictures without sliders; one step of fine-tuning where the model is a large one.
    variables.update(QWEN2VL_STATIC="1", QWEN2VL_LORA_STEPS="1")
    variables.update(environment)
    # The timeout of a cell guards against a hang: without AVX-512 training takes many minutes.
    client = NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env=variables)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_runs_and_its_exercises_tell_right_from_wrong(path):
    notebook, expected = with_answers_tried(path)
    execute(notebook)
    for number, outcome in expected.items():
        text = printed(notebook.cells[number])
        answer = notebook.cells[number - 1].source
        assert text.startswith(outcome), f"{outcome} expected for:\n{answer}\n\n{text}"
        # A wrong answer has to be recognised, not just to crash.
        assert "it stopped with" not in text, f"{answer}\n\n{text}"


@pytest.mark.parametrize("path", NOTEBOOKS[1:2], ids=ids[1:2])
def test_without_transformers_the_stored_reference_takes_its_place(path):
    execute(nbformat.read(path, as_version=4), QWEN2VL_NO_TRANSFORMERS="1")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS[:9] + NOTEBOOKS[10:], ids=ids[:9] + ids[10:])
def test_a_notebook_runs_at_the_2b_shape(path, checkpoint_2b):
    """Random weights give random answers: steps that judge answers only show them, and say so."""
    notebook = nbformat.read(path, as_version=4)
    execute(notebook, QWEN2VL_MODEL=str(checkpoint_2b[0]))
    assert "it needs trained weights" in "".join(map(printed, notebook.cells))


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
        if tagged(cell, "solution"):
            assert code_of(cell) and "<details>" in cell.source

    # Short cells, and more prose than code.
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert max(source.count("\n") + 1 for source in code) <= 25
    prose = [
        cell.source
        for cell in cells
        if cell.cell_type == "markdown" and not tagged(cell, "solution")
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
