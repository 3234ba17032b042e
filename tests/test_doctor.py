"""The doctor: what a workshop needs, and what it says when something is missing."""

import importlib
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from PIL import Image

from qwen2vl_app import doctor
from qwen2vl_app.doctor import MEND, NOTE, OK

ROOT = Path(doctor.__file__).parent.parent


def test_a_machine_on_which_the_tests_run_is_ready():
    command = [sys.executable, "-m", "qwen2vl_app.doctor"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    *lines, blank, verdict = found.stdout.splitlines()
    assert (blank, verdict) == ("", "ready")
    things = [line.split()[1] for line in lines]
    assert things[:3] == ["Python", "packages", "memory"]
    assert len(things) == len(doctor.CHECKS) == len(set(things))


def test_it_answers_with_the_embedded_model():
    finding = doctor.check_tiny()
    assert finding.state in (OK, NOTE)  # a slow machine is ready too
    assert "answered in" in finding.text


def test_a_model_that_sees_nothing_is_no_ready_machine(monkeypatch):
    """The red circle is painted white: the answer is another."""
    monkeypatch.setattr(
        "PIL.ImageDraw.Draw", lambda image: namedtuple("Pen", ["ellipse"])(lambda *a, **k: None)
    )
    assert isinstance(Image.new("RGB", (1, 1)), Image.Image)
    finding = doctor.check_tiny()
    assert finding.state == MEND
    assert "to a red circle" in finding.text


def test_an_old_python_is_named_with_the_oldest_that_works(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.18")
    finding = doctor.check_python()
    assert finding.state == MEND
    assert "3.9.18" in finding.text and "3.10" in finding.text


@pytest.mark.parametrize("name", sorted(doctor.PACKAGES))
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'x'"), "{} is missing"),
        (OSError("libX.so.1: cannot open\nmore"), "{} can't be imported (libX.so.1: cannot open)"),
    ],
)
def test_each_package_that_fails_is_named_in_one_line(monkeypatch, name, error, said):
    import_module = importlib.import_module

    def fail(module: str) -> object:
        if module == doctor.PACKAGES[name]:
            raise error
        return import_module(module)

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    finding = doctor.check_packages()
    assert finding.state == MEND
    assert said.format(name) in finding.text
    assert "pip install -e ." in finding.text
    assert "\n" not in finding.text


@pytest.mark.parametrize(
    ("free", "state", "said"),
    [
        (0.1e9, MEND, "close programs"),
        (2e9, OK, "not for the official 2B"),
        (8e9, OK, "for the official 2B, whose weights have to be downloaded"),
        (float("inf"), NOTE, "not known"),
    ],
)
def test_memory_is_judged_by_what_is_free(monkeypatch, free, state, said):
    monkeypatch.setattr("qwen2vl_extras.devices.available_memory", lambda device: free)
    finding = doctor.check_memory()
    assert finding.state == state
    assert said in finding.text


def test_a_full_disk_is_to_be_mended(monkeypatch):
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    assert doctor.check_disk().state == MEND


def test_a_kernel_of_another_python_is_noticed(monkeypatch, tmp_path):
    kernelspec = pytest.importorskip("jupyter_client.kernelspec", reason="needs jupyter")
    other = tmp_path / "myprogram"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    spec = namedtuple("spec", ["argv"])

    def name_kernel(command: str) -> None:
        monkeypatch.setattr(
            kernelspec.KernelSpecManager, "get_kernel_spec", lambda self, name: spec([command])
        )

    name_kernel(str(other))
    assert doctor.check_kernel().state == NOTE
    name_kernel(str(tmp_path / "gone"))
    assert doctor.check_kernel().state == MEND
    name_kernel(sys.executable)
    assert doctor.check_kernel().state == OK


OTHERS = (
    *[(name, "check_notebooks", MEND) for name in doctor.NOTEBOOK_PACKAGES],
    *[(name, "check_reference", NOTE) for name in doctor.REFERENCE_PACKAGES],
    *[(name, "check_page", NOTE) for name in doctor.PAGE_PACKAGES],
)


def without(monkeypatch, module: str) -> None:
    """As if this package was not installed."""
    import_module = importlib.import_module

    def fail(name: str, package: str | None = None) -> object:
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return import_module(name, package)

    monkeypatch.setattr(doctor.importlib, "import_module", fail)


@pytest.mark.parametrize(("name", "check", "state"), OTHERS)
def test_what_the_notebooks_and_the_page_lack_is_named(monkeypatch, name, check, state):
    without(monkeypatch, name)
    finding = getattr(doctor, check)()
    assert finding.state == state
    assert f"{name} is missing" in finding.text
    assert 'run pip install -e ".[' in finding.text


@pytest.mark.parametrize(
    ("name", "check"), [("torch", "check_packages")] + [(name, check) for name, check, _ in OTHERS]
)
def test_beside_the_packages_of_a_bundle_the_advice_needs_no_network(
    monkeypatch, tmp_path, name, check
):
    repository = tmp_path / "stick" / "repository"
    repository.mkdir(parents=True)
    (tmp_path / "stick" / "wheels").mkdir()
    monkeypatch.setattr(doctor, "ROOT", repository)
    without(monkeypatch, name)
    advice = 'run pip install --no-index --find-links ../wheels -e ".[dev]"'
    assert getattr(doctor, check)().text.endswith(advice)


def test_short_times_are_not_said_to_be_none():
    said = [doctor.duration(seconds) for seconds in (0.0042, 0.3, 0.9, 1.0, 12.34)]
    assert said == ["4 ms", "300 ms", "900 ms", "1.0 s", "12.3 s"]


def test_a_taken_port_is_noticed_with_one_that_is_free(monkeypatch):
    with doctor.listen("127.0.0.1", 0) as taken:
        monkeypatch.setattr(doctor, "PAGE_PORT", taken.getsockname()[1])
        finding = doctor.check_port()
        assert finding.state == NOTE
        advised = int(finding.text.rpartition("--port ")[2])
        doctor.listen("127.0.0.1", advised).close()
    assert doctor.check_port().state == OK


def test_a_machine_that_no_phone_can_reach_is_noticed(monkeypatch):
    monkeypatch.setattr(doctor, "own_address", lambda: None)
    assert doctor.check_network().state == NOTE
    monkeypatch.setattr(doctor, "own_address", lambda: "192.168.43.1")
    assert "192.168.43.1" in doctor.check_network().text


def test_the_verdict_names_what_is_to_be_mended(monkeypatch, capsys):
    broken = doctor.Finding(MEND, "packages", "torch is missing")
    never = doctor.Finding(OK, "tiny", "should not have been tried")
    monkeypatch.setattr(sys, "argv", ["doctor"])
    monkeypatch.setattr(doctor, "CHECKS", (("", lambda: broken), ("packages", lambda: never)))
    assert doctor.main() == 1
    said = capsys.readouterr().out
    assert said.endswith("not ready: mend packages, then run this again\n")
    assert "should not" not in said
