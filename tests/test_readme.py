"""The pages tell the truth: code and commands run; what they name and link to exists."""

import ast
import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from qwen2vl_app import command_line

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (
    "README.md",
    "BENCHMARKS.md",
    "PROOFS.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "notebooks/README.md",
    "tests/README.md",
    "tiny/README.md",
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    """The lines in README that ask the model."""
    lines = "".join(code_blocks("sh")).splitlines()
    return [line for line in lines if line.startswith("python qwen2vl.py")]


def arguments(command: str) -> list[str]:
    """The arguments of a command line in README."""
    words = shlex.split(command)
    assert words[:2] == ["python", "qwen2vl.py"]
    return words[2:]


def promised_answers() -> list[tuple[str, str]]:
    """Each command line in README whose answer stands there, with that answer."""
    promised = []
    # In the table at the top: a command in backticks, and its answer in bold letters.
    first, second = re.findall(r"`([^`]*)`<br><br>\*\*([^*]*)\*\*", README)
    command, answer = first
    more, second_answer = second
    promised.append((command, answer))
    promised.append((command + more.removeprefix("…"), second_answer))
    # Above a command line: `# answers: ...`.
    commands = "".join(code_blocks("sh"))
    for answer, command in re.findall(r"^# answers: (.*)\n(python .*)$", commands, re.MULTILINE):
        promised.append((command, answer))
    return promised


def test_readme_has_at_most_1800_words() -> None:
    assert len(README.split()) <= 1800


def test_the_set_up_section_has_what_the_gate_reads() -> None:
    section = re.search(r"^## Set up\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)[1]
    commands = [line for line in section.splitlines() if line.startswith("pip install")]
    assert commands == [
        "pip install -e . && python qwen2vl.py --image examples/shapes.png",
        'pip install -e ".[dev]" && pytest',
    ]
    assert code_blocks("text") == ["A red circle and a blue star.\n"]


def test_the_python_block_prints_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = code_blocks("python")
    promised = re.search(r"# (\[.*\])$", code, re.MULTILINE)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().strip() == promised


@pytest.mark.parametrize(("command", "answer"), promised_answers())
def test_the_model_gives_the_answers_in_readme(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, answer: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert command_line.main(arguments(command)) == 0
    assert capsys.readouterr().out == answer + "\n"


def test_every_command_line_parses() -> None:
    assert len(command_lines()) >= 5
    for command in command_lines():
        command_line.parse_arguments(arguments(command))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_image_exists(page: str) -> None:
    text = read(page)
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if not target.startswith(("http", "#"))]
    assert local
    for target in local:
        path = target.split("#")[0]
        assert ((ROOT / page).parent / path).exists(), target


def test_every_test_that_a_page_names_exists() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", "".join(map(read, PAGES)))
    assert len(named) >= 30
    for file, name in named:
        assert re.search(rf"^(def|class) {name}\b", read(file), re.MULTILINE), f"{file}::{name}"


def test_every_file_that_a_page_names_exists() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:\w+/)+[\w.]+\.\w+)`", read(page)):
            exists = (ROOT / name).exists() or ((ROOT / page).parent / name).exists()
            assert exists or name.startswith("tiny/runs/"), f"{page}: {name}"


def test_every_file_of_tests_is_in_their_table() -> None:
    listed = re.findall(r"^\| \[`(\w+\.py)`\]", read("tests/README.md"), re.MULTILINE)
    files = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    assert files <= set(listed)


def defined_names(file: str) -> set[str]:
    """The functions, classes and constants of a file, and methods as `Class.method`."""
    names = set()
    for node in ast.parse(read(file)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
            names.update(f"{node.name}.{method}" for method in methods)
        if isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        if isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
    return names


def test_every_symbol_in_the_table_of_the_paper_exists() -> None:
    section = README.split("## From the paper to the code")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \d.*", section, re.MULTILINE)
    assert len(rows) >= 5
    for row in rows:
        code = re.split(r"(?<!\\)\|", row)[2]
        # "`a`, `b` in `file.py`, `c` in `other.py`"
        for symbols, file in re.findall(r"((?:`[\w.]+`,? )+)in `([\w/]+\.py)`", code):
            missing = set(re.findall(r"`([\w.]+)`", symbols)) - defined_names(file)
            assert not missing, f"{file} has no {missing}"


def test_the_citation_has_the_title_and_version_of_the_package() -> None:
    citation = read("CITATION.cff")
    project = read("pyproject.toml")
    for cited, own in (("title", "name"), ("version", "version")):
        value = re.search(rf'^{own} = "(.*)"$', project, re.MULTILINE)[1]
        assert f'\n{cited}: "{value}"\n' in citation
