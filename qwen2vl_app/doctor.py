"""Is this laptop ready for the course?

    python -m qwen2vl_app.doctor

One line for each thing that has to be there, and at the end "ready" or what to mend first.
Nothing is downloaded or changed. The exit code is 0 if all is ready, else 1.
"""

import argparse
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from qwen2vl_app.web.addresses import listen, next_free_port, own_address

ROOT = Path(__file__).parent.parent
OLDEST_PYTHON = (3, 10)
# The packages of pyproject.toml and the names under which Python imports them.
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "huggingface-hub": "huggingface_hub",
    "tqdm": "tqdm",
    "pillow": "PIL",
    "av": "av",
}
# What the notebooks use besides.
NOTEBOOK_PACKAGES = {
    "jupyterlab": "jupyterlab",
    "matplotlib": "matplotlib",
    "ipywidgets": "ipywidgets",
}
# What the notebooks compare with.
REFERENCE_PACKAGES = {"transformers": "transformers"}
# What the page is served with.
PAGE_PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "qrcode": "qrcode"}
PAGE_PORT = 8000
TINY_BYTES = 0.7e9  # of memory that a question to `tiny` takes, PyTorch included
TWO_BILLION_BYTES = 5.5e9  # that a question to the 2B in bfloat16 takes
SLOW_ANSWER = 5.0  # seconds

OK = "ok"
NOTE = "note"  # the course can be held, but something is slow or left out
MEND = "MEND"


class Finding(NamedTuple):
    """What was found out about one thing."""

    state: str  # OK, NOTE or MEND
    thing: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:4}  {self.thing:9}  {self.text}"


# ------------------------------------------------------------------------------------ checks


def check_python() -> Finding:
    """The version of Python and the machine that it was made for."""
    found = f"{platform.python_version()} for {platform.system()} {platform.machine()}"
    oldest = ".".join(str(number) for number in OLDEST_PYTHON)
    if sys.version_info < OLDEST_PYTHON:
        return Finding(MEND, "Python", f"{found}: the oldest that works is {oldest}")
    if sys.maxsize < 2**32:
        return Finding(MEND, "Python", f"{found}: of 32 bits, PyTorch needs 64")
    return Finding(OK, "Python", found)


def check_packages() -> Finding:
    """Whether all packages can be imported, and which versions they have."""
    broken = what_fails(PACKAGES)
    if broken:
        return Finding(MEND, "packages", f"{'; '.join(broken)}: run {install('.')}")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return Finding(OK, "packages", ", ".join(versions))


def install(project: str) -> str:
    """The command that installs the repository; from the packages beside it, in a bundle."""
    if (ROOT.parent / "wheels").is_dir():
        # They are those of `.[dev]`; a part alone would leave the rest for another time.
        return 'pip install --no-index --find-links ../wheels -e ".[dev]"'
    return "pip install -e ." if project == "." else f'pip install -e "{project}"'


def what_fails(packages: dict[str, str]) -> list[str]:
    """The packages that can't be imported, each with the reason."""
    broken = []
    for name, module in packages.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            broken.append(f"{name} is missing")
        except (ImportError, OSError) as error:  # a library of the system is missing, say
            broken.append(f"{name} can't be imported ({str(error).splitlines()[0]})")
    return broken


def check_memory() -> Finding:
    """Whether there is memory enough for the embedded model, and for the official 2B."""
    from qwen2vl_extras.devices import available_memory

    free = available_memory("cpu")
    if free == float("inf"):
        return Finding(NOTE, "memory", "how much is free is not known on this system")
    found = f"{free / 1e9:.1f} GB free"
    if free < TINY_BYTES:
        return Finding(
            MEND, "memory", f"{found}, tiny takes {TINY_BYTES / 1e9:.1f}: close programs"
        )
    if free < TWO_BILLION_BYTES:
        return Finding(OK, "memory", f"{found}: enough for tiny, not for the official 2B")
    # The weights of the 2B are in no bundle.
    text = "enough for tiny and for the official 2B, whose weights have to be downloaded"
    return Finding(OK, "memory", f"{found}: {text}")


def check_disk() -> Finding:
    """Whether there is room for outputs here, and for the official 2B."""
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / 1e9:.1f} GB free"
    if free < 0.2e9:
        return Finding(MEND, "disk", f"{found}: delete something")
    return Finding(OK, "disk", found)


def check_threads() -> Finding:
    """How many cores PyTorch uses."""
    import torch

    cores = os.cpu_count() or 1
    used = torch.get_num_threads()
    text = f"{used} of {cores} cores"
    if used == 1 and cores > 1:
        return Finding(NOTE, "threads", f"{text}: is OMP_NUM_THREADS set?")
    return Finding(OK, "threads", text)


def check_tiny() -> Finding:
    """Whether the embedded model loads, sees a red circle, and how long its answer takes."""
    from PIL import Image, ImageDraw

    from processor import BatchFeature, Qwen2VLProcessor
    from qwen2vl import Qwen2VLForConditionalGeneration

    start = time.perf_counter()
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="cpu")
    loaded = time.perf_counter()
    image = Image.new("RGB", (84, 84), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 64, 64), fill=(214, 39, 40))
    items = [{"type": "image", "image": image}, {"type": "text", "text": "Describe this image."}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": items}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
    )
    assert isinstance(inputs, BatchFeature)  # no string, since it is tokenized
    tensors: dict[str, Any] = {**inputs}
    ids = model.generate(**tensors, max_new_tokens=20, do_sample=False)
    new = ids[:, tensors["input_ids"].shape[1] :]
    said = processor.batch_decode(new, skip_special_tokens=True)[0]
    answered = time.perf_counter()

    times = f"loaded in {duration(loaded - start)}, answered in {duration(answered - loaded)}"
    if said != "A red circle.":
        return Finding(MEND, "tiny", f"{times}: it said {said!r} to a red circle")
    if answered - loaded > SLOW_ANSWER:
        return Finding(NOTE, "tiny", f"{times}: slow, is another program busy?")
    return Finding(OK, "tiny", f"{times}: {said}")


def duration(seconds: float) -> str:
    """In milliseconds where seconds would say little."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def check_notebooks() -> Finding:
    """Whether Jupyter and what the notebooks import are there."""
    broken = what_fails(NOTEBOOK_PACKAGES)
    if broken:
        reason = "; ".join(broken)
        return Finding(MEND, "notebooks", f"{reason}: run {install('.[dev]')}")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in NOTEBOOK_PACKAGES]
    return Finding(OK, "notebooks", ", ".join(versions))


def check_reference() -> Finding:
    """Whether the notebooks can ask transformers, or take what it once said."""
    broken = what_fails(REFERENCE_PACKAGES)
    if broken:
        text = f"{broken[0]}, stored arrays take its place: run {install('.[dev]')}"
        return Finding(NOTE, "reference", text)
    return Finding(OK, "reference", f"transformers {importlib.metadata.version('transformers')}")


def check_kernel() -> Finding:
    """Whether Jupyter's kernel "python3" is this Python."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ModuleNotFoundError:
        return Finding(MEND, "kernel", f"Jupyter is missing: run {install('.[dev]')}")
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        text = f"Jupyter has no kernel python3: run {install('.[dev]')}"
        return Finding(MEND, "kernel", text)
    program = shutil.which(command)
    if program is None:
        return Finding(
            MEND, "kernel", f"{command}, which Jupyter's kernel python3 names, is missing"
        )
    # "python" is whichever comes first when Jupyter is started from this environment.
    is_here = Path(program).parent == Path(sys.executable).parent
    if re.fullmatch(r"python[\d.]*", command) or is_here:
        return Finding(OK, "kernel", "python3")
    return Finding(NOTE, "kernel", f"python3 is {program}, not {sys.executable}")


def check_browser() -> Finding:
    """Whether Python knows how to open a browser."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return Finding(NOTE, "browser", "none found: open by hand the address that Jupyter prints")
    return Finding(OK, "browser", getattr(browser, "name", type(browser).__name__))


def check_page() -> Finding:
    """Whether the page can be served."""
    broken = what_fails(PAGE_PACKAGES)
    if broken:
        reason = "; ".join(broken)
        return Finding(NOTE, "page", f"can't be served, {reason}: run {install('.[web]')}")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PAGE_PACKAGES]
    return Finding(OK, "page", ", ".join(versions))


def check_port() -> Finding:
    """Whether the page's port is free."""
    try:
        listen("127.0.0.1", PAGE_PORT).close()
    except OSError:
        free = next_free_port("127.0.0.1", PAGE_PORT)
        advice = "" if free is None else f": start the page with --port {free}"
        return Finding(NOTE, "port", f"{PAGE_PORT} is taken{advice}")
    return Finding(OK, "port", f"{PAGE_PORT} is free")


def check_network() -> Finding:
    """Whether phones can find this machine."""
    address = own_address()
    if address is None:
        advice = "connect to the room's Wi-Fi, or open a hotspot"
        return Finding(NOTE, "network", f"no address, so no phone can join the page: {advice}")
    return Finding(OK, "network", f"phones find the page at {address}, if --host 0.0.0.0 is given")


# Each with those that have to be ok before it makes sense.
CHECKS: tuple[tuple[str, Callable[[], Finding]], ...] = (
    ("", check_python),
    ("", check_packages),
    ("packages", check_memory),
    ("", check_disk),
    ("packages", check_threads),
    ("packages", check_tiny),
    ("", check_notebooks),
    ("", check_reference),
    ("", check_kernel),
    ("", check_browser),
    ("", check_page),
    ("page", check_port),
    ("page", check_network),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    to_mend = []
    for needed, check in CHECKS:
        if needed in to_mend:
            continue
        finding = check()
        print(finding, flush=True)
        if finding.state == MEND:
            to_mend.append(finding.thing)
    if to_mend:
        print(f"\nnot ready: mend {', '.join(to_mend)}, then run this again")
        return 1
    print("\nready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
