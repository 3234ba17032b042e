"""README tells the truth: its code runs, its table counts lines rightly, what it points to is there."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import qwen2vl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *(ROOT / name / "README.md" for name in ("tiny", "tests", "notebooks"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_block_prints_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    for code in blocks("python"):
        promised = re.search(r"# (\[.*\])$", code, re.MULTILINE)[1]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "README.md", "exec"), {})
        assert printed.getvalue().strip() == promised


def test_the_table_counts_lines_rightly_and_the_three_files_stay_readable_in_an_evening():
    counted = dict(re.findall(r"^\| \[`(\w+\.py)`\]\(\w+\.py\) \|.*\| (\d+) \|$", README, re.MULTILINE))
    lines = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in counted}
    assert {name: int(n) for name, n in counted.items()} == lines
    assert sum(lines[name] for name in ("qwen2vl.py", "processor.py", "load.py")) < 1400


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_picture_is_there(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if not target.startswith(("http", "#"))]
    assert local
    for target in local:
        assert (page.parent / target).exists(), target


def test_every_command_line_parses():
    commands = [
        line for block in blocks("sh") for line in block.splitlines() if line.startswith("python qwen2vl.py")
    ]
    assert len(commands) >= 5
    for command in commands:
        words = re.findall(r'"[^"]*"|\S+', re.split(r"  #| \| ", command)[0])
        qwen2vl.parse_arguments([word.strip('"') for word in words[2:]])


def test_every_test_that_a_table_names_exists():
    named = re.findall(
        r"`(tests/\w+\.py)::(\w+)`", "".join(page.read_text(encoding="utf-8") for page in PAGES)
    )
    assert len(named) >= 30
    for file, name in named:
        assert re.search(
            rf"^(def|class) {name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
        ), f"{file}::{name}"
