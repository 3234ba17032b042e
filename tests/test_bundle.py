"""The bundle for laptops without a network: its wheels, what is in it, what it refuses."""

import importlib.util
import itertools
import json
import random
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import venv
from pathlib import Path

import pytest
from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

from qwen2vl_app import bundle
from qwen2vl_app.bundle import Wheel
from qwen2vl_app.bundle_start import LAPTOPS, start_page

ROOT = Path(bundle.__file__).parent.parent


def lock_of(packages: dict[str, list[str]]) -> dict:
    """A pylock.toml, as it is read, with these wheels of each package."""
    entries = []
    for name, filenames in packages.items():
        wheels = []
        for filename in filenames:
            url = f"https://files.example/packages/{filename.replace('+', '%2B')}"
            wheels.append({"url": url, "size": 1000, "hashes": {"sha256": filename}})
        entries.append({"name": name, "version": "1.0", "wheels": wheels})
    return {"packages": entries}


# In the order in which a laptop with Python 3.12 should get them.
PREFERRED = (
    "x-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
    "x-1.0-cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "x-1.0-py3-none-manylinux_2_28_x86_64.whl",
    "x-1.0-py3-none-any.whl",
)


@pytest.mark.parametrize("seed", range(20))
def test_of_several_wheels_the_most_special_is_taken(seed):
    rng = random.Random(seed)
    first = rng.randrange(len(PREFERRED))
    offered = list(PREFERRED[first:])
    rng.shuffle(offered)
    (wheel,) = bundle.wheels_of(lock_of({"x": offered}), "3.12")
    assert wheel.filename == PREFERRED[first]
    assert (wheel.package, wheel.size, wheel.sha256) == ("x", 1000, PREFERRED[first])


def test_an_escaped_address_gives_the_filename():
    name = "torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl"
    (wheel,) = bundle.wheels_of(lock_of({"torch": [name]}), "3.12")
    assert wheel.filename == name
    assert "%2B" in wheel.url


def test_a_wheel_on_this_machine_has_the_size_of_its_file(tmp_path):
    file = tmp_path / "x-1.0-py3-none-any.whl"
    file.write_bytes(b"12345")
    lock = {
        "packages": [
            {
                "name": "x",
                "version": "1",
                "wheels": [{"url": file.as_uri(), "hashes": {"sha256": "0"}}],
            }
        ]
    }
    assert bundle.wheels_of(lock, "3.12")[0].size == 5


def test_pip_is_told_every_tag_that_it_needs():
    wheels = [Wheel("x", "", name, 0, "") for name in PREFERRED]
    options = bundle.tag_options(wheels)
    told = set(zip(options[::2], options[1::2], strict=True))
    needed: set[Tag] = set()
    for name in PREFERRED:
        needed |= parse_wheel_filename(name)[3]
    for tag in needed:
        assert ("--platform", tag.platform) in told
        assert ("--abi", tag.abi) in told


def test_linux_gets_torch_without_cuda_unless_one_is_at_hand(tmp_path):
    cpu = ["--torch-backend", "cpu"]
    assert bundle.source_options("linux", []) == cpu
    assert bundle.source_options("windows", []) == []
    (tmp_path / "numpy-2.0-py3-none-any.whl").touch()
    links = ["--find-links", str(tmp_path)]
    assert bundle.source_options("linux", [str(tmp_path)]) == links + cpu
    (tmp_path / "torch-2.13.0+cpu-cp312-cp312-linux_x86_64.whl").touch()
    assert bundle.source_options("linux", [str(tmp_path)]) == links


def test_the_repository_is_that_of_the_last_commit(tmp_path):
    git = subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True, check=False)
    if git.returncode != 0:
        pytest.skip("this is no clone: there is no commit to copy")
    bundle.copy_repository(tmp_path)
    bundle.copy_repository(tmp_path)  # a second time over the first
    copied = tmp_path / bundle.REPOSITORY
    archive = tmp_path / "head.tar"
    subprocess.run(["git", "-C", ROOT, "archive", "-o", archive, "HEAD"], check=True)
    with tarfile.open(archive) as files:
        names = {member.name for member in files if member.isfile()}
    found = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    assert found == names
    assert "qwen2vl.py" in names


# --------------------------------------------------------------------------------- START.md

SETS = [
    targets for number in (1, 2, 5) for targets in itertools.combinations(bundle.TARGETS, number)
]


@pytest.mark.parametrize("targets", SETS, ids=" ".join)
def test_start_says_first_for_whom_it_is_and_only_their_commands(targets):
    for pythons, extras in itertools.product((["3.11"], ["3.12", "3.13"]), (["dev"], ["web"], [])):
        text = start_page(targets, pythons, extras, False)
        before, first_command, _ = text.partition("```")
        assert first_command
        for target in bundle.TARGETS:
            named = f"* {LAPTOPS[target]}, with Python {' or '.join(pythons)}\n"
            assert (named in before) == (target in targets), (target, targets)
        has_windows = "windows" in targets
        has_others = set(targets) != {"windows"}
        assert ("PowerShell" in text) == has_windows
        assert (f"py -{pythons[0]} -m venv" in text) == has_windows
        assert (f"\npython{pythons[0]} -m venv" in text) == has_others
        assert ("source .venv/bin/activate" in text) == has_others
        assert ("\nOn Linux" in text) == any(name.startswith("linux") for name in targets)
        assert ("On macOS" in text or "and macOS:" in text) == any("macos" in t for t in targets)
        assert "{" not in text


def test_start_of_all_extras_says_to_skip_other_installations():
    skip = "skip every `pip install` in the other documents"
    assert skip in start_page(["linux"], ["3.11"], ["dev"], False)
    assert skip not in start_page(["linux"], ["3.11"], ["web"], False)
    assert "--web" in start_page(["linux"], ["3.11"], ["web"], False)
    assert "--web" not in start_page(["linux"], ["3.11"], [], False)
    assert "jupyter" not in start_page(["linux"], ["3.11"], ["web"], False)


def test_start_leads_to_the_workshop_and_the_quiet_jupyter_of_the_course():
    course = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    text = " ".join(start_page(["linux"], ["3.11"], ["dev"], True).split())
    for heading in ("A workshop of half a day", "A workshop of two days"):
        assert f"“{heading}”" in text
        assert f"\n## {heading}\n" in course
    (quiet,) = [line for line in course.splitlines() if "news_url" in line]
    assert quiet in text
    assert text.count("jupyter lab") == 1
    assert "--directory ../slides" in text


def test_start_is_written_for_what_was_asked(tmp_path):
    args = bundle.parse_arguments(
        [str(tmp_path), "--target", "macos", "--target", "windows", "--python", "3.12"]
    )
    bundle.write_start(args)
    text = (tmp_path / "START.md").read_text(encoding="utf-8")
    assert 'pip install --no-index --find-links ../wheels -e ".[dev]"' in text
    assert text == start_page(["macos", "windows"], ["3.12"], ["dev"], False)


# --------------------------------------------------------------------- badges and slides


NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_copied_notebook_loses_what_colab_needs_and_nothing_else(tmp_path, path):
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    bundle.drop_colab(copy)
    text = copy.read_text(encoding="utf-8")
    assert "colab" not in text.lower() and "your_name" not in text
    before = json.loads(path.read_text(encoding="utf-8"))
    after = json.loads(text)
    kept = [cell for cell in before["cells"] if cell["metadata"].get("tags") != ["colab"]]
    # The first cell has lost the badge and one empty line; all others are as they were.
    lost = [line for line in kept[0]["source"] if line not in after["cells"][0]["source"]]
    assert all("Open in Colab" in line for line in lost)
    assert len(kept[0]["source"]) - len(after["cells"][0]["source"]) == 2 * len(lost)
    assert after["cells"][1:] == kept[1:]
    bundle.drop_colab(copy)
    assert copy.read_text(encoding="utf-8") == text


def stick_with(tmp_path: Path, slides_program: str) -> Path:
    """A bundle whose repository has only this slides.py."""
    folder = tmp_path / bundle.REPOSITORY / "notebooks"
    folder.mkdir(parents=True)
    (folder / "slides.py").write_text(slides_program, encoding="utf-8")
    return tmp_path


GOOD_SLIDES = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
(folder / "index.html").write_bytes(b"x" * 2_000_000)
"""
NO_NETWORK = 'import sys; sys.exit("error: slides need npm and a network once")'


def test_slides_lie_on_the_stick_with_their_size_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bundle, "why_no_slides", lambda: None)
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)  # what a program can write to
    bundle.add_slides(stick_with(tmp_path, GOOD_SLIDES), asked=False)
    assert capsys.readouterr().out == "slides: 2 MB\n"
    assert (tmp_path / "slides" / "index.html").exists()


@pytest.mark.parametrize("missing", [None, "npm is missing, it comes with Node.js"])
def test_without_slides_a_line_says_why_unless_they_were_asked_for(
    monkeypatch, tmp_path, capsys, missing
):
    monkeypatch.setattr(bundle, "why_no_slides", lambda: missing)
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    stick = stick_with(tmp_path, NO_NETWORK)
    reason = missing or "slides need npm and a network once"
    bundle.add_slides(stick, asked=False)
    assert capsys.readouterr().out == f"no slides: {reason}\n"
    with pytest.raises(ValueError, match=f"^no slides: {reason}$"):
        bundle.add_slides(stick, asked=True)
    assert not (tmp_path / "slides").exists()


def test_what_slides_need_is_looked_for(monkeypatch):
    monkeypatch.setattr(bundle.shutil, "which", lambda name: None)
    assert bundle.why_no_slides().startswith("npm is missing")
    monkeypatch.setattr(bundle.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(bundle.importlib.util, "find_spec", lambda name: None)
    assert bundle.why_no_slides().startswith("nbconvert is missing")
    monkeypatch.setattr(bundle.importlib.util, "find_spec", lambda name: name)
    assert bundle.why_no_slides() is None


def bundle_of_no_packages(monkeypatch, out: Path, *options: str) -> int:
    """The whole command, but for the packages."""
    in_clone = subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True, check=False)
    if in_clone.returncode != 0:
        pytest.skip("this is no clone: there is no commit to copy")
    monkeypatch.setattr(bundle.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(bundle, "resolve", lambda *arguments: [])
    return bundle.main([str(out), "--target", "linux", "--python", "3.11", *options])


@pytest.mark.parametrize("has_npm", [True, False])
def test_slides_are_made_if_npm_is_there_and_start_leads_to_them(
    monkeypatch, tmp_path, capsys, has_npm
):
    def make(out: Path) -> None:
        (out / "slides").mkdir()
        (out / "slides" / "index.html").write_bytes(b"x" * 3_000_000)

    monkeypatch.setattr(bundle.shutil, "which", lambda name: "npm" if has_npm else None)
    monkeypatch.setattr(bundle, "make_slides", make)
    assert bundle_of_no_packages(monkeypatch, tmp_path) == 0
    said = capsys.readouterr().out
    assert ("slides: 3 MB" in said) == has_npm
    assert ("no slides: npm is missing" in said) != has_npm
    start = (tmp_path / "START.md").read_text(encoding="utf-8")
    assert ("../slides" in start) == has_npm
    # The copy's notebooks are those without badges.
    copied = tmp_path / bundle.REPOSITORY / "notebooks" / "00_one_answer.ipynb"
    assert "Open in Colab" not in copied.read_text(encoding="utf-8")


def test_slides_that_were_asked_for_or_refused_are_not_decided_by_npm(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(bundle.shutil, "which", lambda name: None)
    assert bundle_of_no_packages(monkeypatch, tmp_path / "a", "--slides") == 2
    assert capsys.readouterr().err.startswith("error: no slides: npm is missing")
    assert not (tmp_path / "a").exists()  # it is said before anything is fetched
    monkeypatch.setattr(bundle.shutil, "which", lambda name: "npm")
    assert bundle_of_no_packages(monkeypatch, tmp_path / "b", "--no-slides") == 0
    assert "slides:" not in capsys.readouterr().out
    assert not (tmp_path / "b" / "slides").exists()


# ----------------------------------------------------------------------- laptops and errors


def test_a_copy_on_a_stick_says_how_to_make_another(monkeypatch, tmp_path, capsys):
    (tmp_path / "wheels").mkdir()
    monkeypatch.setattr(bundle, "ROOT", tmp_path / bundle.REPOSITORY)
    assert bundle.main([str(tmp_path / "out"), "--target", "linux"]) == 2
    assert "to make another stick, copy the whole folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("system", "machine", "target"),
    [
        ("Linux", "x86_64", "linux"),
        ("Linux", "aarch64", "linux-arm"),
        ("Darwin", "arm64", "macos"),
        ("Darwin", "x86_64", "macos-intel"),
        ("Windows", "AMD64", "windows"),
    ],
)
def test_the_default_is_a_laptop_like_this(monkeypatch, system, machine, target):
    monkeypatch.setattr(bundle.platform, "system", lambda: system)
    monkeypatch.setattr(bundle.platform, "machine", lambda: machine)
    assert bundle.this_target() == target


def test_an_unknown_system_has_to_name_a_target(monkeypatch):
    monkeypatch.setattr(bundle.platform, "system", lambda: "FreeBSD")
    with pytest.raises(ValueError, match="FreeBSD, is no target: name one with --target"):
        bundle.this_target()


def run_main(*argv: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "qwen2vl_app.bundle", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_without_uv_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bundle.importlib.util, "find_spec", lambda name: None)
    assert bundle.main([str(tmp_path / "out"), "--target", "linux"]) == 2
    assert 'uv is missing: run pip install -e ".[kit]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_set_that_cannot_be_had_is_refused_in_one_line(monkeypatch, tmp_path):
    def fail(command: list[str], **options: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", "  × No solution\n  ╰─▶ torch\n")

    monkeypatch.setattr(bundle.subprocess, "run", fail)
    with pytest.raises(
        ValueError, match=r"^no packages for macos-intel and Python 3\.12: × No"
    ) as e:
        bundle.resolve("macos-intel", "3.12", ["dev"], [])
    assert "\n" not in str(e.value)


# --------------------------------------------------------------- with a network, on its own


def needs_uv_and_an_index() -> None:
    if importlib.util.find_spec("uv") is None:
        pytest.skip("uv is missing: it is in the extra kit")
    try:
        urllib.request.urlopen("https://pypi.org/simple/tqdm/", timeout=10).close()
    except (urllib.error.URLError, TimeoutError):
        pytest.skip("no package index can be reached")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["windows", "macos"])
def test_downloads_for_other_systems_are_the_list_that_was_resolved(tmp_path, target):
    needs_uv_and_an_index()
    wheels = bundle.resolve(target, "3.12", ["dev"], [])
    bundle.fetch(wheels, target, "3.12", tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {wheel.filename for wheel in wheels}
    for wheel in wheels:
        assert (tmp_path / wheel.filename).stat().st_size == wheel.size


@pytest.mark.slow
def test_a_bundle_installs_without_an_index(tmp_path):
    needs_uv_and_an_index()
    links = sorted(Path("/opt/wheels").glob("torch-*"))  # a PyTorch for the CPU, if one lies there
    given = ["--find-links", str(links[0].parent)] if links else []
    done = run_main(str(tmp_path / "stick"), *given)
    assert done.returncode == 0, done.stderr
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    repository = tmp_path / "stick" / bundle.REPOSITORY
    options = ["--no-index", "--find-links", "../wheels", "-q", "-e", ".[dev]"]
    subprocess.run([python, "-m", "pip", "install", *options], cwd=repository, check=True)
    ready = subprocess.run(
        [python, "-m", "qwen2vl_app.doctor"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ready.returncode == 0, ready.stdout
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert {"torch", "transformers", "jupyterlab"} <= names
