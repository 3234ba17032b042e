"""The badge that opens a notebook in Google Colab, and the cell that installs only there.

    python notebooks/colab.py OWNER/NAME    # the repository on GitHub that holds the notebooks

writes both into all notebooks, or changes the repository in those that have them. As they are
committed they name no real repository: your_name is no name that GitHub allows.
"""

import json
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
BADGE_START = "[![Open in Colab]"
# The image lies beside the notebooks: opening one asks nothing of the network.
BADGE = (
    BADGE_START + "(open_in_colab.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{notebook})\n"
)
CELL_ID = "colab"
CELL = """\
import sys

if "google.colab" in sys.modules:  # only there: get the files, and install what they need
    from subprocess import run

    run(["git", "clone", "https://github.com/{repository}", "/content/course"])
    run([sys.executable, "-m", "pip", "install", "/content/course", "transformers==4.57.6"])
    sys.path.insert(0, "/content/course/notebooks")"""


def add_badge(path: Path, repository: str) -> None:
    """Write the badge below the title, and the cell behind it; both replace older ones."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    first = notebook["cells"][0]
    lines = [line for line in first["source"] if not line.startswith(BADGE_START)]
    # Below the title come an empty line, the badge, and another empty line.
    badge = BADGE.format(repository=repository, notebook=path.name)
    has_badge = len(lines) < len(first["source"])
    first["source"] = [*lines[:2], badge, *([] if has_badge else ["\n"]), *lines[2:]]

    cells = [cell for cell in notebook["cells"] if "colab" not in cell["metadata"].get("tags", [])]
    code = CELL.format(repository=repository)
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": CELL_ID,
        "metadata": {"tags": ["colab"]},
        "outputs": [],
        "source": code.splitlines(keepends=True),
    }
    notebook["cells"] = [cells[0], cell, *cells[1:]]
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> int:
    repository = sys.argv[1] if len(sys.argv) == 2 else ""
    if not re.fullmatch(r"[\w-]+/[\w.-]+", repository):
        print("error: give the repository on GitHub as OWNER/NAME", file=sys.stderr)
        return 2
    for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
        add_badge(path, repository)
    return 0


if __name__ == "__main__":
    sys.exit(main())
