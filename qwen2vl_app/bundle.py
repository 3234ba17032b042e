"""A folder for a USB stick: this repository and all that it needs, for laptops without a network.

    python -m qwen2vl_app.bundle /media/stick/qwen2vl                       # for laptops like this
    python -m qwen2vl_app.bundle OUT --target windows --target macos --python 3.12 --python 3.13
    python -m qwen2vl_app.bundle OUT --target linux --dry-run               # says the size only
    python -m qwen2vl_app.bundle OUT --target linux --find-links ~/wheels   # wheels at hand first

For each target and Python, uv resolves the packages of pyproject.toml (uv is in the extra `kit`:
pip install -e ".[kit]"), and pip fetches them as wheels, checked by their hashes. Linux gets
PyTorch without CUDA, from PyTorch's own index unless `--find-links` has it. START.md in the folder
says how to begin. A second call adds what is missing. Where npm is installed, the slides of all
notebooks are made too.
"""

import argparse
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, cast
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from qwen2vl_app.bundle_start import REPOSITORY, start_page

ROOT = Path(__file__).parent.parent
# What uv calls each kind of laptop.
TARGETS = {
    "linux": "x86_64-manylinux_2_28",
    "linux-arm": "aarch64-manylinux_2_28",
    "macos": "aarch64-apple-darwin",
    "macos-intel": "x86_64-apple-darwin",
    "windows": "x86_64-pc-windows-msvc",
}


class WheelEntry(TypedDict, total=False):
    """A wheel in a pylock.toml; an index need not tell the size."""

    url: str
    size: int
    hashes: dict[str, str]


class PackageEntry(TypedDict):
    """A package in a pylock.toml, with its wheels for one target."""

    name: str
    wheels: list[WheelEntry]


class Lock(TypedDict):
    """What this file reads of a pylock.toml (packaging.python.org/specifications/pylock-toml)."""

    packages: list[PackageEntry]


class Wheel(NamedTuple):
    """One file that a target needs."""

    package: str
    url: str
    filename: str
    size: int  # in bytes; 0 if the index does not say
    sha256: str


# ------------------------------------------------------------------------- what is needed


def this_target() -> str:
    """The target that is like this machine. ValueError if there is none."""
    system = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}.get(platform.system())
    is_arm = platform.machine().lower() in ("arm64", "aarch64")
    if system == "macos":
        return "macos" if is_arm else "macos-intel"
    if system == "linux":
        return "linux-arm" if is_arm else "linux"
    if system is None:
        raise ValueError(f"this system, {platform.system()}, is no target: name one with --target")
    return system


def resolve(
    target: str, python: str, extras: Sequence[str], find_links: Sequence[str]
) -> list[Wheel]:
    """The wheels that a target needs for one Python, as uv resolves them.

    ValueError with uv's reason if there is no such set.
    """
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "pylock.toml"
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-progress"]
        command += [str(ROOT / "pyproject.toml"), "--format", "pylock.toml", "-o", str(lock)]
        command += ["--python-platform", TARGETS[target], "--python-version", python]
        command += ["--only-binary", ":all:"]
        for extra in extras:
            command += ["--extra", extra]
        command += source_options(target, find_links)
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode != 0:
            reason = " ".join(found.stderr.split())
            raise ValueError(f"no packages for {target} and Python {python}: {reason[:600]}")
        return wheels_of(read_lock(lock), python)


def source_options(target: str, find_links: Sequence[str]) -> list[str]:
    """Where wheels come from besides the index: folders at hand; for Linux without a PyTorch in
    these, PyTorch's own index of wheels for the CPU.
    """
    options = []
    has_torch = False
    for folder in find_links:
        options += ["--find-links", folder]
        has_torch = has_torch or any(Path(folder).glob("torch-*"))
    if target.startswith("linux") and not has_torch:
        options += ["--torch-backend", "cpu"]
    return options


def read_lock(file: Path) -> Lock:
    """The content of a pylock.toml, as uv has written it."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # of the extra kit
    return cast(Lock, tomllib.loads(file.read_text(encoding="utf-8")))


def wheels_of(lock: Lock, python: str) -> list[Wheel]:
    """The wheels that a pylock.toml lists for one target, one for each package."""
    wheels = []
    for package in lock["packages"]:
        choices = [read_wheel(package["name"], entry) for entry in package["wheels"]]
        wheels.append(min(choices, key=lambda wheel: preference(wheel.filename, python)))
    return wheels


def read_wheel(package: str, entry: WheelEntry) -> Wheel:
    """One entry of the list of wheels of a package."""
    url = entry["url"]
    path = urlsplit(url).path
    size = entry.get("size", 0)
    if url.startswith("file:"):
        size = Path(url2pathname(path)).stat().st_size
    filename = unquote(path).rpartition("/")[2]
    return Wheel(package, url, filename, size, entry["hashes"]["sha256"])


def preference(filename: str, python: str) -> tuple[int, bool, str]:
    """What sorts the wheels of a package, all of which fit: made for this Python alone, for it
    and later ones, for any; then those with compiled code before those without.
    """
    # name-version[-build]-python-abi-platform.whl
    abi, platforms = filename.removesuffix(".whl").rsplit("-", 2)[1:]
    if f"cp{python.replace('.', '')}" in abi:
        rank = 0
    elif abi == "abi3":
        rank = 1
    else:
        rank = 2
    return rank, platforms == "any", filename


# --------------------------------------------------------------------------------- fetching


def fetch(wheels: list[Wheel], target: str, python: str, folder: Path) -> None:
    """Download those wheels that the folder lacks. ValueError if that fails; pip says why."""
    missing = [wheel for wheel in wheels if not (folder / wheel.filename).exists()]
    if not missing:
        return
    # By their addresses: of a name and a version pip would choose a wheel anew.
    lines = [f"{wheel.package} @ {wheel.url} --hash=sha256:{wheel.sha256}" for wheel in missing]
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(folder)]
        command += ["--python-version", python, "--implementation", "cp"]
        command += tag_options(missing)
        command += ["-r", str(requirements)]
        # pip's own progress, on stderr as all that is no result.
        done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise ValueError(f"pip could not fetch all wheels for {target} and Python {python}")


def tag_options(wheels: list[Wheel]) -> list[str]:
    """pip takes wheels for another machine only if it is told each of their tags."""
    platforms: set[str] = set()
    abis: set[str] = set()
    for wheel in wheels:
        _, abi, tags = wheel.filename.removesuffix(".whl").rsplit("-", 2)
        abis.update(abi.split("."))
        platforms.update(tags.split("."))
    options = []
    for tag in sorted(platforms):
        options += ["--platform", tag]
    for abi in sorted(abis):
        options += ["--abi", abi]
    return options


def copy_repository(out: Path) -> None:
    """The files of the last commit. ValueError where this is no clone."""
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "repository.tar"
        command = ["git", "-C", str(ROOT), "archive", "--output", str(archive), "HEAD"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ValueError("git is missing: the bundle copies the clone's last commit") from None
        if done.returncode != 0:
            reason = " ".join(done.stderr.split())
            raise ValueError(f"{ROOT} is no clone that git can read: {reason}")
        shutil.rmtree(out / REPOSITORY, ignore_errors=True)
        with tarfile.open(archive) as files:
            files.extractall(out / REPOSITORY, filter="data")
    for notebook in sorted((out / REPOSITORY / "notebooks").glob("*.ipynb")):
        drop_colab(notebook)


def drop_colab(file: Path) -> None:
    """Take the badge “Open in Colab” and the cell that belongs to it out of a notebook.

    Without a network the one is a broken image, and the other never runs.
    """
    notebook = json.loads(file.read_text(encoding="utf-8"))
    kept = [cell for cell in notebook["cells"] if "colab" not in cell["metadata"].get("tags", [])]
    for cell in kept:
        if cell["cell_type"] == "markdown":
            cell["source"] = without_badge(cell["source"])
    notebook["cells"] = kept
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def without_badge(lines: list[str]) -> list[str]:
    """The lines of a cell without the badge and the empty line below it."""
    kept: list[str] = []
    after_badge = False
    for line in lines:
        is_badge = line.startswith("[![Open in Colab]")
        if not is_badge and not (after_badge and line == "\n"):
            kept.append(line)
        after_badge = is_badge
    return kept


# ------------------------------------------------------------------------------------ slides


def why_no_slides() -> str | None:
    """What is missing to make slides; None if nothing is."""
    if shutil.which("npm") is None:
        return "npm is missing, it comes with Node.js"
    if importlib.util.find_spec("nbconvert") is None:
        return 'nbconvert is missing: run pip install -e ".[dev]"'
    return None


def add_slides(out: Path, asked: bool) -> None:
    """Make the slides of the notebooks that were copied, and say how large they are.

    asked: for on the command line. Then ValueError if there can be none, else a line says so.
    """
    reason = why_no_slides()
    if reason is None:
        reason = make_slides(out)
    if reason is None:
        files = [file for file in (out / "slides").rglob("*") if file.is_file()]
        print(f"slides: {sum(file.stat().st_size for file in files) / 1e6:,.0f} MB")
    elif asked:
        raise ValueError(f"no slides: {reason}")
    else:
        print(f"no slides: {reason}")


def make_slides(out: Path) -> str | None:
    """Run slides.py of the copy; gives the reason if it fails.

    Their index.html, which is written last, is there only if all are.
    """
    program = out / REPOSITORY / "notebooks" / "slides.py"
    folder = out / "slides"
    (folder / "index.html").unlink(missing_ok=True)
    command = [sys.executable, str(program), str(folder)]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, check=False)
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"{program} failed"]
    return lines[-1].removeprefix("error: ")


# ------------------------------------------------------------------------------------- main


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    this_python = f"{sys.version_info.major}.{sys.version_info.minor}"
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="the folder, made where there is none")
    add(
        "--target",
        action="append",
        choices=tuple(TARGETS),
        help="a kind of laptop (default: one like this); repeatable",
    )
    add(
        "--python",
        action="append",
        metavar="VERSION",
        help=f"of the laptops (default: this one, {this_python}); repeatable",
    )
    add(
        "--extra",
        action="append",
        metavar="NAME",
        help="of pyproject.toml (default: dev, for the notebooks); repeatable",
    )
    add(
        "--find-links",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder with wheels that come before those of the index; repeatable",
    )
    add(
        "--slides",
        action=argparse.BooleanOptionalAction,
        help="make slides of the notebooks, about 40 MB (default: if npm is installed)",
    )
    add("--dry-run", action="store_true", help="say what is needed and how large it is, no more")
    args = parser.parse_args(argv)
    args.target = args.target or [this_target()]
    args.python = args.python or [this_python]
    args.extra = args.extra or ["dev"]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        make_bundle(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def make_bundle(args: argparse.Namespace) -> None:
    """Resolve all targets, say how much that is, then fetch and copy."""
    if (ROOT.parent / "wheels").is_dir() and not (ROOT / ".git").exists():
        raise ValueError("this is a bundle's copy: to make another stick, copy the whole folder")
    if importlib.util.find_spec("uv") is None:
        raise ValueError('uv is missing: run pip install -e ".[kit]"')
    no_slides = why_no_slides()
    if args.slides and no_slides is not None:
        raise ValueError(f"no slides: {no_slides}")
    folder = args.out / "wheels"
    needed: dict[tuple[str, str], list[Wheel]] = {}
    for target in args.target:
        for python in args.python:
            wheels = resolve(target, python, args.extra, args.find_links)
            needed[target, python] = wheels
            print(f"{target}, Python {python}: {describe(wheels)}")
    # Wheels of pure Python serve all.
    distinct = {wheel.filename: wheel for wheels in needed.values() for wheel in wheels}
    missing = [wheel for wheel in distinct.values() if not (folder / wheel.filename).exists()]
    print(f"in all {describe(list(distinct.values()))}, to be fetched {describe(missing)}")
    if args.dry_run:
        wanted = args.slides is not False and no_slides is None
        print(f"slides: {'about 40 MB' if wanted else 'none'}")
        return

    folder.mkdir(parents=True, exist_ok=True)
    for (target, python), wheels in needed.items():
        fetch(wheels, target, python, folder)
    copy_repository(args.out)
    if args.slides is not False:
        add_slides(args.out, asked=args.slides is True)
    write_start(args)
    print(f"{args.out / 'START.md'} says how to begin")


def write_start(args: argparse.Namespace) -> None:
    """START.md, for the targets of this call."""
    has_slides = (args.out / "slides" / "index.html").exists()
    text = start_page(args.target, args.python, args.extra, has_slides)
    (args.out / "START.md").write_text(text, encoding="utf-8")


def describe(wheels: list[Wheel]) -> str:
    """How many files, and how large they are together."""
    return f"{len(wheels)} wheels, {sum(wheel.size for wheel in wheels) / 1e6:,.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
