"""Imports run one way, down, and take public names only; public signatures say what they take."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the lowest to the highest: a module imports from its own package and from levels below.
LEVELS = [
    ["qwen2vl_extras"],
    ["load"],
    ["processor", "qwen2vl"],
    ["qwen2vl_app"],
    ["tiny", "benchmarks"],
    ["notebooks"],
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
THREE_FILES = [ROOT / "load.py", ROOT / "processor.py", ROOT / "qwen2vl.py"]
# Notebooks import what lies beside them by these names.
BESIDE_NOTEBOOKS = tuple(file.stem for file in (ROOT / "notebooks").glob("*.py"))
BESIDE_NOTEBOOKS += ("checks", "plots")


def package_files(*packages: str) -> list[Path]:
    files = []
    for package in packages:
        files += sorted((ROOT / package).rglob("*.py"))
    return files


TYPED_FILES = THREE_FILES + package_files("qwen2vl_extras", "qwen2vl_app")
FILES = TYPED_FILES + package_files("tiny", "benchmarks", "notebooks")


def path_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------ imports


def is_left_out(node: ast.AST) -> bool:
    """Whether a block runs only for a type checker, or only when its file is a script."""
    if not isinstance(node, ast.If):
        return False
    return ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")


def executed_imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that is executed when the file is imported, or a function of it is called."""
    for node in ast.iter_child_nodes(tree):
        if is_left_out(node):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from executed_imports(node)


def project_part(module: str | None) -> str:
    """The file or package of this project that a dotted name leads to, or a library."""
    first = (module or "").split(".")[0]
    return "notebooks" if first in BESIDE_NOTEBOOKS else first


def imported_parts(tree: ast.AST) -> set[str]:
    """The files and packages of this project that a file imports."""
    parts = set()
    for node in executed_imports(tree):
        if isinstance(node, ast.Import):
            parts |= {project_part(alias.name) for alias in node.names}
        else:
            parts.add(project_part(node.module))
    return parts & LEVEL_OF.keys()


@pytest.mark.parametrize("file", FILES, ids=path_of)
def test_imports_run_down(file):
    own = file.relative_to(ROOT).parts[0].removesuffix(".py")
    for part in imported_parts(parse(file)):
        assert part == own or LEVEL_OF[part] < LEVEL_OF[own], part


def test_the_check_sees_an_import_that_runs_up():
    upward = "import torch\ndef f():\n    from qwen2vl_app.chat import run_chat\n"
    assert imported_parts(ast.parse(upward)) == {"qwen2vl_app"}
    for condition in ("TYPE_CHECKING", "__name__ == '__main__'"):
        assert not imported_parts(ast.parse(f"if {condition}:\n    import qwen2vl\n"))


def test_the_three_files_stand_alone_at_the_top():
    assert set(ROOT.glob("*.py")) == set(THREE_FILES)


# ------------------------------------------------------------------------------------ private names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(tree: ast.Module) -> set[str]:
    """The private names of other files of this project that a file takes."""
    found = set()
    # `from load import _name`, and which names stand for modules of this project.
    modules = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for alias in node.names:
            source = alias.name if isinstance(node, ast.Import) else node.module
            if project_part(source) not in (*LEVEL_OF, "tests"):
                continue
            modules.add(alias.asname or alias.name.split(".")[0])
            if is_private(alias.name):
                found.add(alias.name)
    # `load._name`.
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value).split(".")[0]
            if owner in modules:
                found.add(ast.unparse(node))
    return found


@pytest.mark.parametrize("file", FILES + package_files("tests"), ids=path_of)
def test_no_private_name_of_another_file_is_taken(file):
    assert not private_names(parse(file))


def test_the_check_sees_private_names():
    for code in (
        "from load import _headers",
        "import load\nload._headers()",
        "from qwen2vl_extras import media as m\nm._open()",
    ):
        assert private_names(ast.parse(code)), code
    assert not private_names(ast.parse("import torch, load\ntorch._dynamo\nload.__file__"))


# --------------------------------------------------------------------------------------- signatures


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Functions and methods whose name, and that of their class, is public; and __call__ etc."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not is_private(node.name):
            yield from public_functions(node)
        if isinstance(node, ast.FunctionDef) and not is_private(node.name):
            yield node


def annotations(function: ast.FunctionDef) -> list[ast.expr]:
    """All types in a signature."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    found = [argument.annotation for argument in every] + [function.returns]
    return [annotation for annotation in found if annotation is not None]


@pytest.mark.parametrize("file", TYPED_FILES, ids=path_of)
def test_no_public_signature_takes_or_gives_anything(file):
    for function in public_functions(parse(file)):
        for annotation in annotations(function):
            names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
            assert "Any" not in names, function.name
        # Keyword arguments that are not listed are checked by name, and so are called these.
        kwarg = function.args.kwarg
        if kwarg is not None:
            assert kwarg.arg in ("options", "given", "unknown"), function.name
