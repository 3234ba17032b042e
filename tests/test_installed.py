"""Installed from a wheel, it works in any folder, whatever other files are called there."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "shapes.png"
ANSWER = "A red circle and a blue star.\n"
# Files of this project had these names, or still have them: a user's own may, too.
TAKEN_NAMES = ("media", "fast", "pixels", "stages", "boxes", "tiny", "benchmarks", "tests")
PACKAGES = ("qwen2vl_extras", "qwen2vl_app", "tiny")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def succeed(command: list, **options) -> str:
    """Run a command, and return its stdout; it must exit with 0."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def has_setuptools() -> bool:
    """Whether this environment has the setuptools that pyproject.toml asks for."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = int(re.search(r'"setuptools>=(\d+)"', pyproject)[1])
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= needed
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the installed project in it, by way of a wheel of a copy of this tree."""
    pytest.importorskip("pip", reason="there is no pip in this environment")
    scratch = tmp_path_factory.mktemp("wheel")
    tree = scratch / "tree"
    tree.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    ignored = shutil.ignore_patterns("__pycache__", "runs")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)

    # With setuptools at hand it needs no network.
    isolation = ["--no-build-isolation"] if has_setuptools() else []
    wheels = scratch / "wheels"
    succeed([*PIP, "wheel", "--no-deps", *isolation, "--wheel-dir", wheels, tree])
    (wheel,) = wheels.iterdir()
    target = scratch / "installed"
    succeed([*PIP, "install", "--no-deps", "--no-index", "--target", target, wheel])
    return target


@pytest.fixture
def environment(installed) -> dict[str, str]:
    """The variables of a process that finds the installed project, and not this clone."""
    return os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(params=["packages", "modules"])
def occupied(request, tmp_path) -> Path:
    """A folder in which each of the names is taken: by a package, or by a module and a folder."""
    for name in TAKEN_NAMES:
        (tmp_path / name).mkdir()
        file = tmp_path / name / "__init__.py"
        if request.param == "modules":
            file = tmp_path / f"{name}.py"
        file.write_text(f"raise ImportError('{name} of the user was imported')\n")
    return tmp_path


def test_the_wheel_has_what_is_imported_and_the_checkpoint_and_nothing_else(installed):
    found = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert found - {"bin", "Scripts", "__pycache__"} == {
        "qwen2vl.py",
        "processor.py",
        "load.py",
        *PACKAGES,
    }
    for package in PACKAGES:
        ours = {path.name for path in (ROOT / package).glob("*.py")}
        assert {path.name for path in (installed / package).glob("*.py")} == ours
    # Files that are no code: the checkpoint, and what the page is made of.
    for folder in ("tiny/checkpoint", "qwen2vl_app/web/static"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file():
                copy = installed / file.relative_to(ROOT)
                assert copy.read_bytes() == file.read_bytes()


def test_the_answer_is_the_same_beside_files_of_the_same_names(occupied, environment):
    command = [sys.executable, "-m", "qwen2vl_app.command_line", "--image", EXAMPLE]
    assert succeed(command, cwd=occupied, env=environment) == ANSWER


def test_imports_find_the_installed_files_beside_files_of_the_same_names(
    occupied, environment, installed
):
    code = (
        "from qwen2vl import Qwen2VLForConditionalGeneration\n"
        "from processor import Qwen2VLProcessor\n"
        "import qwen2vl, processor, qwen2vl_app.boxes, qwen2vl_extras.media\n"
        "for module in (qwen2vl, processor, qwen2vl_app.boxes, qwen2vl_extras.media):\n"
        "    print(module.__file__)\n"
    )
    # Negative control: there the other names are the user's.
    done = subprocess.run(
        [sys.executable, "-c", "import media"], capture_output=True, text=True, cwd=occupied
    )
    assert "ImportError: media of the user was imported" in done.stderr

    printed = succeed([sys.executable, "-c", code], cwd=occupied, env=environment)
    names = ("qwen2vl.py", "processor.py", "qwen2vl_app/boxes.py", "qwen2vl_extras/media.py")
    assert [Path(line) for line in printed.splitlines()] == [installed / name for name in names]


def test_the_console_command_is_there_and_knows_its_version(installed, environment, tmp_path):
    (information,) = installed.glob("*.dist-info")
    declared = (information / "entry_points.txt").read_text(encoding="utf-8")
    assert "qwen2vl = qwen2vl_app.start:main" in declared
    folders = [str(installed / "bin"), str(installed / "Scripts")]  # the second on Windows
    command = shutil.which("qwen2vl", path=os.pathsep.join(folders))
    number = information.name.removesuffix(".dist-info").split("-")[1]
    printed = succeed([command, "--version"], cwd=tmp_path, env=environment)
    assert printed == f"qwen2vl-from-scratch {number}\n"
