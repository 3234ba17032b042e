"""Imports run one way, down, and stop at public names: the layout of README's table."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the lowest to the highest: a module imports from its own package and from levels below.
LEVELS = [
    ["qwen2vl_extras", "load"],
    ["processor", "qwen2vl"],
    ["qwen2vl_app"],
    ["tiny", "benchmarks", "notebooks"],
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = [ROOT / "load.py", ROOT / "processor.py", ROOT / "qwen2vl.py"]
for package in ("qwen2vl_extras", "qwen2vl_app", "tiny", "benchmarks"):
    FILES += sorted((ROOT / package).rglob("*.py"))


def is_left_out(node: ast.AST) -> bool:
    """Whether a block runs only for a type checker, or only when its file is a script."""
    if not isinstance(node, ast.If):
        return False
    condition = ast.unparse(node.test)
    return condition == "TYPE_CHECKING" or condition == "__name__ == '__main__'"


def imported_names(tree: ast.AST) -> list[tuple[str, list[str]]]:
    """Every import that is executed: the first part of the module, and the names taken from it."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if is_left_out(node):
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            found.append(((node.module or "").split(".")[0], names))
        found += imported_names(node)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_down_and_take_public_names(file):
    own = file.relative_to(ROOT).parts[0].removesuffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for module, names in imported_names(tree):
        if module not in LEVEL_OF:  # a library
            continue
        assert module == own or LEVEL_OF[module] < LEVEL_OF[own], module
        assert not [name for name in names if name.startswith("_")], module


def test_the_three_files_stand_alone_at_the_top():
    assert {file.name for file in ROOT.glob("*.py")} == {"load.py", "processor.py", "qwen2vl.py"}


def test_the_check_sees_an_import_that_runs_up():
    tree = ast.parse("import torch\ndef f():\n    from qwen2vl import _private\n")
    assert imported_names(tree) == [("torch", []), ("qwen2vl", ["_private"])]
    assert imported_names(ast.parse("if TYPE_CHECKING:\n    import qwen2vl\n")) == []
