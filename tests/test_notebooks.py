"""The course: every notebook runs from a clean kernel, every exercise can tell right from wrong."""

import ast
import importlib
import os
import re
import sys
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


def wrong_answers(path: Path) -> list[str]:
    """One for each exercise, from the notebook's checkers."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(f"checks.check_{path.stem[:2]}").WRONG
    finally:
        sys.path.remove(str(FOLDER))


def with_answers_tried(path: Path) -> nbformat.NotebookNode:
    """The notebook, each exercise followed by its three trials: the stub, a wrong answer, the solution."""
    notebook, cells, check = nbformat.read(path, as_version=4), [], None
    wrong = iter(wrong_answers(path))
    trial = nbformat.v4.new_code_cell
    for cell in notebook.cells:
        cells.append(cell)
        if tagged(cell, "check"):
            check = cell.source
            cells.append(trial("assert course.attempt.passed is False, 'the stub passes'"))
        elif tagged(cell, "solution"):
            answer = next(wrong)
            assert functions(answer) & functions(code_of(cell)), "the wrong answer is another exercise's"
            cells += [
                trial(answer), trial(check),
                trial("assert course.attempt.passed is False, 'a wrong answer passes'"),
                trial(code_of(cell)), trial(check),
                trial("assert course.attempt.passed, 'the solution fails'"),
            ]  # fmt: skip
    assert next(wrong, None) is None, "there are more wrong answers than exercises"
    notebook.cells = cells
    return notebook


def execute(notebook: nbformat.NotebookNode, **environment: str) -> None:
    """Run all cells in a kernel of its own, offline, in the notebooks' folder; a cell's error is raised."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "QWEN2VL_TRAIN_MINUTES": "1"} | environment
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env=environment)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_runs_and_its_exercises_tell_right_from_wrong(path):
    execute(with_answers_tried(path))


@pytest.mark.parametrize("path", NOTEBOOKS[1:2], ids=ids[1:2])
def test_without_transformers_the_stored_reference_takes_its_place(path):
    execute(nbformat.read(path, as_version=4), QWEN2VL_NO_TRANSFORMERS="1")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS[:9], ids=ids[:9])
def test_a_notebook_runs_at_the_2b_shape(path, checkpoint_2b):
    """Random weights answer nonsense: steps that judge answers only show them, and say so."""
    notebook = nbformat.read(path, as_version=4)
    execute(notebook, QWEN2VL_MODEL=str(checkpoint_2b[0]))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "it needs trained weights" in "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_follows_the_pattern(path):
    cells = nbformat.read(path, as_version=4).cells
    for tag, least in {"exercise": 2, "check": 2, "solution": 2, "break": 1}.items():
        assert sum(tagged(cell, tag) for cell in cells) >= least, f"fewer than {least} cells tagged {tag}"
    kinds = [tag for cell in cells for tag in ("exercise", "check", "solution") if tagged(cell, tag)]
    assert kinds == ["exercise", "check", "solution"] * (len(kinds) // 3)
    assert all(code_of(cell) and "<details>" in cell.source for cell in cells if tagged(cell, "solution"))
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert max(cell.source.count("\n") + 1 for cell in code) <= 25
    prose = [cell.source for cell in cells if cell.cell_type == "markdown" and not tagged(cell, "solution")]
    assert sum(map(len, prose)) > sum(len(cell.source) for cell in code), "more code than prose"
    text = "\n".join(prose)
    assert text.startswith("# ") and "arXiv" in text and re.search(r"[Ss]ection \d", text)
    assert "production" in text.lower(), "what the shipped code does differently is not said"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_is_committed_with_its_outputs(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert path.stat().st_size < 1e6
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)


def defined_in(path: Path) -> set[str]:
    """Functions, classes, methods ("Class.method") and constants of a module."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_every_symbol_that_a_notebook_points_to_exists(path):
    """They are written "`class X` in `file.py`", "`def f` in `file.py`" or "`X.f` in `file.py`"."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    pointers = re.findall(r"`(?:class |def )?([A-Za-z_][\w.]*)(?:\([^`)]*\))?` in `([\w/]+\.py)`", text)
    assert pointers, "it points nowhere"
    for name, file in pointers:
        assert name in defined_in(ROOT / file), f"`{name}` is not in `{file}`"
