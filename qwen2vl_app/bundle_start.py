"""START.md of a bundle: how to begin, on the laptops that its packages are for, and no others."""

from collections.abc import Sequence

REPOSITORY = "qwen2vl-from-scratch"  # the folder of the repository in the bundle
# For whom each target's packages are.
LAPTOPS = {
    "linux": "Linux on an Intel or AMD processor (x86_64)",
    "linux-arm": "Linux on an ARM processor (aarch64)",
    "macos": "macOS on an Apple processor (M1 and later)",
    "macos-intel": "macOS on an Intel processor",
    "windows": "Windows on an Intel or AMD processor (64 bits)",
}

HEAD = """# Qwen2-VL without a network

For laptops with

{laptops}

and for no others: the packages in `wheels` fit only these. Python itself is not here:
{check} has to answer on the
laptop{debian}.

## Set up, once

Copy this folder to the laptop first: a stick is slow. Then open a terminal in the copy.
"""
UNIX = """
On {system}:

```sh
cd {repository}
{python} -m venv .venv
source .venv/bin/activate
pip install --no-index --find-links ../wheels -e "{project}"
python -m qwen2vl_app.doctor
```
"""
WINDOWS = """
On Windows, in PowerShell:

```powershell
cd {repository}
{python} -m venv .venv
.venv\\Scripts\\activate
pip install --no-index --find-links ..\\wheels -e "{project}"
python -m qwen2vl_app.doctor
```

If PowerShell refuses to run scripts, enter `Set-ExecutionPolicy -Scope Process RemoteSigned` first.
"""
INSTALLED = """
The last command says whether all is ready. {installed}

In each new terminal, first `cd {repository}` and {activate}.

## Begin
"""
ALL_INSTALLED = (
    "Everything, the page included, is installed then:\n"
    "skip every `pip install` in the other documents."
)
PART_INSTALLED = (
    "Installed is then `{project}`; what else the other\ndocuments install with pip is not here."
)
COURSE = """
The course, in the browser:

```sh
jupyter lab notebooks --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate
```
"""  # noqa: E501 (a command that is copied as one line)
PAGE = """
The page (draw, ask, look inside), for this laptop or, with phones, for the room:

```sh
python qwen2vl.py --web
python qwen2vl.py --web --host 0.0.0.0
```
"""
QUESTION = """
A question:

```sh
python qwen2vl.py --image examples/shapes.png --prompt "Describe this image."
```
"""
SLIDES = """
The slides, at <http://localhost:8080>:

```sh
python -m http.server 8080 --directory ../slides
```
"""
LEADERS = """
You lead? Read `{repository}/notebooks/README.md`, “A workshop of half a day” or “A workshop of
two days”.
"""


def start_page(
    targets: Sequence[str], pythons: Sequence[str], extras: Sequence[str], has_slides: bool
) -> str:
    """The text of START.md.

    targets: keys of LAPTOPS. pythons: versions such as "3.11". extras: of pyproject.toml.
    """
    project = f".[{','.join(extras)}]"
    windows = [target for target in targets if target == "windows"]
    unix = [target for target in targets if target != "windows"]
    parts = [head(targets, pythons)]
    if unix:
        system = " and ".join(systems(unix))
        python = f"python{pythons[0]}"
        parts.append(
            UNIX.format(system=system, repository=REPOSITORY, python=python, project=project)
        )
    if windows:
        python = f"py -{pythons[0]}"
        parts.append(WINDOWS.format(repository=REPOSITORY, python=python, project=project))
    parts.append(installed(bool(unix), bool(windows), extras, project))
    parts.append(begin(extras, has_slides))
    return "".join(parts)


def systems(targets: Sequence[str]) -> list[str]:
    """The systems of these targets, without their processors, each once."""
    return list(dict.fromkeys(LAPTOPS[target].partition(" ")[0] for target in targets))


def head(targets: Sequence[str], pythons: Sequence[str]) -> str:
    """For which laptops this is, first of all."""
    versions = f"Python {' or '.join(pythons)}"
    laptops = "\n".join(f"* {LAPTOPS[target]}, with {versions}" for target in targets)
    names = systems(targets)
    checks = []
    if names != ["Windows"]:
        checks += [f"`python{version} --version`" for version in pythons]
    if "Windows" in names:
        checks += [f"`py -{version} --version`" for version in pythons]
    check = "one of " + ", ".join(checks) if len(checks) > 1 else checks[0]
    debian = ""
    if "Linux" in names:
        debian = f" (on Debian and Ubuntu the package `python{pythons[0]}-venv` is needed too)"
    text = HEAD.format(laptops=laptops, check=check, debian=debian)
    if len(pythons) > 1:
        text += f"With Python {' or '.join(pythons[1:])}, write that for {pythons[0]} below.\n"
    return text


def installed(unix: bool, windows: bool, extras: Sequence[str], project: str) -> str:
    """What is there after the set-up, and what each new terminal needs."""
    said = ALL_INSTALLED if "dev" in extras else PART_INSTALLED.format(project=project)
    activate = "`source .venv/bin/activate`"
    if not unix:
        activate = "`.venv\\Scripts\\activate`"
    elif windows:
        activate += " (on Windows `.venv\\Scripts\\activate`)"
    return INSTALLED.format(installed=said, repository=REPOSITORY, activate=activate)


def begin(extras: Sequence[str], has_slides: bool) -> str:
    """The commands that these extras make possible."""
    text = ""
    if "dev" in extras:
        text += COURSE
    if "dev" in extras or "web" in extras:
        text += PAGE
    if not text:
        text += QUESTION
    if has_slides:
        text += SLIDES
    return text + LEADERS.format(repository=REPOSITORY)
