"""Run notebooks from a clean kernel and keep their outputs, as they are committed.

    python notebooks/execute.py                       # all of them: about twenty minutes
    python notebooks/execute.py 04 06                 # some
    QWEN2VL_STORE=1 python notebooks/execute.py       # store what the reference says as well

To be done whenever the embedded checkpoint or the code that a notebook shows has changed, on a
machine with nothing else to do: some notebooks measure times. Notebook 09 trains for ten minutes
(QWEN2VL_TRAIN_MINUTES) and then fine-tunes twice; notebook 10 fine-tunes for two minutes; the
others take a minute or two each.

A notebook runs to its end even if a cell stops, for instance because a claim about the model's
answers does not hold with new weights. Then its failed cells are listed, it stays as it was on the
disk, and the exit code is 1.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path) -> bool:
    """Run one notebook offline, in its folder; write it back unless a cell has failed.

    Returns whether all cells ran.
    """
    notebook = nbformat.read(path, as_version=4)
    start = time.time()
    client = NotebookClient(
        notebook, timeout=1800, allow_errors=True, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env=dict(os.environ, HF_HUB_OFFLINE="1", QWEN2VL_STATIC="1"))
    failures = failed_cells(notebook)
    if failures:
        print(f"{path.stem}: not written, {len(failures)} cells failed", *failures, sep="\n  ")
        return False
    remove_traces(notebook)
    nbformat.write(notebook, path)
    seconds, size = time.time() - start, path.stat().st_size / 1000
    print(f"{path.stem}: {seconds:.0f} s, {size:.0f} kB", flush=True)
    return True


def failed_cells(notebook: nbformat.NotebookNode) -> list[str]:
    """A line for each cell that stopped with an error: its number in the file, and the error."""
    failures = []
    for i, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                failures.append(f"cell {i}: {output.ename}: {output.evalue}")
    return failures


def remove_traces(notebook: nbformat.NotebookNode) -> None:
    """Keep nothing of the machine and the run: cells are numbered, only their tags stay."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i:02d}"
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        if cell.cell_type == "code":
            cell.outputs = joined_prints(cell.outputs)


def joined_prints(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs, with what was printed to one stream without a break as one."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        is_print = output.output_type == "stream"
        if is_print and joined and output.name == joined[-1].get("name"):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def main() -> None:
    chosen = sys.argv[1:]
    all_ran = True
    for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
        if not chosen or path.name[:2] in chosen:
            all_ran = execute(path) and all_ran
    sys.exit(0 if all_ran else 1)


if __name__ == "__main__":
    main()
