"""Run notebooks from a clean kernel and keep their outputs, as they are committed.

    python notebooks/execute.py                         # all ten, about four minutes on two quiet cores
    python notebooks/execute.py 04 06                   # some
    QWEN2VL_STORE=1 python notebooks/execute.py         # store what the reference says as well

To be done whenever the embedded checkpoint or the code that a notebook shows has changed.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Nothing of the machine stays: cells are numbered, keep their tags, and print as one output."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i:02d}"
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        merged = []
        for output in cell.get("outputs", []):
            if merged and output.output_type == merged[-1].output_type == "stream":
                merged[-1].text += output.text
            else:
                merged.append(output)
        if cell.cell_type == "code":
            cell.outputs = merged


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    began = time.time()
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env=os.environ | {"HF_HUB_OFFLINE": "1"})
    tidy(notebook)
    nbformat.write(notebook, path)
    print(f"{path.stem}: {time.time() - began:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


def main() -> None:
    for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
        if not sys.argv[1:] or path.name[:2] in sys.argv[1:]:
            execute(path)


if __name__ == "__main__":
    main()
