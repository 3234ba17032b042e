"""Slides made from the notebooks, for a room without a network.

    python notebooks/slides.py slides              # all notebooks, into the folder "slides"
    python notebooks/slides.py slides 00 01        # some
    python -m http.server 8080 --directory slides  # then open http://localhost:8080

They are `jupyter nbconvert --to slides` of the notebooks as they are, with their stored outputs.
What they need besides (reveal.js, MathJax, jQuery, RequireJS) is fetched from npm once, of fixed
versions, and lies beside them, so that no request leaves. So make them before the room: `npm`
comes with Node.js, and `python -m qwen2vl_app.bundle` puts them on the stick.

Where a slide begins follows from the cells: a heading of the first or second order begins a slide,
one of the third a slide below it; solutions are left out. A tag on a cell says otherwise: slide,
subslide, fragment, skip, notes.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import nbformat
from colab import BADGE_START
from nbconvert import SlidesExporter

FOLDER = Path(__file__).resolve().parent
# npm package and version: the files of it that slides load.
PACKAGES = {
    "reveal.js@4.6.1": ("dist", "plugin/notes"),
    "mathjax@2.7.9": ("MathJax.js", "config", "jax", "extensions", "fonts/HTML-CSS/TeX/woff"),
    "jquery@3.7.1": ("dist/jquery.min.js",),
    "requirejs@2.3.7": ("require.js",),
}
NEED_NPM = "slides need npm and a network once: make them before the room, on the stick"
# npm would ask an unreachable network for minutes, and say nothing.
NPM_OPTIONS = ("--silent", "--prefer-offline", "--fetch-retries", "1")
NPM_OPTIONS += ("--fetch-retry-mintimeout", "1000", "--fetch-retry-maxtimeout", "1000")
PATIENCE = 120  # seconds for one package; the largest is MathJax with 15 MB
SLIDE_TAGS = ("slide", "subslide", "fragment", "skip", "notes")
# nbconvert asks for a module that draws mermaid diagrams; there are none.
NO_MERMAID = "export default { initialize() {} };\n"


def fetch_assets(out: Path) -> None:
    """Put the files of PACKAGES into out/assets, unless they are there."""
    assets = out / "assets"
    (assets).mkdir(parents=True, exist_ok=True)
    (assets / "no-mermaid.js").write_text(NO_MERMAID, encoding="utf-8")
    for package, parts in PACKAGES.items():
        target = assets / package.partition("@")[0]
        if not target.exists():
            fetch_package(package, parts, target)


def fetch_package(package: str, parts: tuple[str, ...], target: Path) -> None:
    """Download an npm package and keep some of its files and folders. OSError if that fails."""
    print(f"fetching {package} from npm", flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        archive = download(package, Path(temporary))
        with tarfile.open(archive) as packed:
            packed.extractall(temporary, filter="data")
        # Under its name only when it is whole.
        kept = Path(temporary) / "kept"
        for part in parts:
            source = Path(temporary) / "package" / part
            (kept / part).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, kept / part)
            else:
                shutil.copyfile(source, kept / part)
        kept.rename(target)


def download(package: str, folder: Path) -> Path:
    """The archive of an npm package, in this folder. OSError if npm can't get it."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"{NEED_NPM} (npm is missing: it comes with Node.js)")
    command = [npm, "pack", package, *NPM_OPTIONS, "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{NEED_NPM} (npm had no {package} after {PATIENCE} s)") from None
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        raise ConnectionError(f"{NEED_NPM} (npm could not fetch {package})")
    return archives[0]


def slide_type(cell: nbformat.NotebookNode) -> str:
    """How a cell stands among the slides; "" for on the slide of the cell before."""
    tags = cell.metadata.get("tags", [])
    for tag in SLIDE_TAGS:
        if tag in tags:
            return tag
    if "solution" in tags:
        return "skip"
    if cell.cell_type == "markdown" and cell.source.startswith(("# ", "## ")):
        return "slide"
    if cell.cell_type == "markdown" and cell.source.startswith("### "):
        return "subslide"
    # A picture on a slide of its own, below the text about it.
    return "subslide" if shows_picture(cell) else ""


def shows_picture(cell: nbformat.NotebookNode) -> bool:
    for output in cell.get("outputs", []):
        if "image/png" in output.get("data", {}) or "image/svg+xml" in output.get("data", {}):
            return True
    return False


def without_colab(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The cells without the badge “Open in Colab” and without the cell that belongs to it."""
    kept = [cell for cell in cells if "colab" not in cell.metadata.get("tags", [])]
    for cell in kept:
        lines = cell.source.split("\n")
        cell.source = "\n".join(line for line in lines if not line.startswith(BADGE_START))
    return kept


def split_at_headings(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The cells, with a new one at each heading in a text, where a slide begins."""
    parts = []
    for cell in cells:
        if cell.cell_type != "markdown" or "```" in cell.source:
            parts.append(cell)
            continue
        text: list[str] = []
        for line in cell.source.split("\n"):
            if line.startswith(("# ", "## ", "### ")) and any(text):
                parts.append(nbformat.v4.new_markdown_cell("\n".join(text), metadata=cell.metadata))
                text = []
            text.append(line)
        parts.append(nbformat.v4.new_markdown_cell("\n".join(text), metadata=cell.metadata))
    return parts


def make_slides(path: Path, out: Path) -> Path:
    """Write the slides of one notebook; returns their file."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = split_at_headings(without_colab(notebook.cells))
    for cell in notebook.cells:
        cell.metadata["slideshow"] = {"slide_type": slide_type(cell)}
    exporter = SlidesExporter(
        reveal_url_prefix="assets/reveal.js",
        mathjax_url="assets/mathjax/MathJax.js?config=TeX-AMS_HTML-full,Safe",
        jquery_url="assets/jquery/dist/jquery.min.js",
        require_js_url="assets/requirejs/require.js",
        mermaid_js_url="./assets/no-mermaid.js",
        reveal_theme="white",  # its fonts lie beside it; others ask Google for theirs
        reveal_scroll=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    text, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    file = out / f"{path.stem}.html"
    file.write_text(text, encoding="utf-8")
    return file


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("python notebooks/slides.py FOLDER [NUMBER ...]")
    out, chosen = Path(sys.argv[1]), sys.argv[2:]
    try:
        fetch_assets(out)
    except OSError as error:
        sys.exit(f"error: {error}")
    links = []
    for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
        if not chosen or path.name[:2] in chosen:
            file = make_slides(path, out)
            links.append(f'<li><a href="{file.name}">{file.stem}</a></li>')
            print(file)
    page = f"<!doctype html><meta charset='utf-8'><title>Slides</title><ul>{''.join(links)}</ul>"
    (out / "index.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
