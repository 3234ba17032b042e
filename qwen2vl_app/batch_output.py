"""Where the records of `--batch` go: stdout, or a file that an earlier run may have begun.

A record is written as soon as all records before it are, so that a run that was broken off has
left the first lines of what a whole run writes, and perhaps the beginning of one more. A later run
goes on behind them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from qwen2vl_app.batch_lines import Line
from qwen2vl_app.records import RECORD_START, to_json_line


class BatchOutput:
    """Writes records, and knows those that an earlier run wrote.

    out: a file's name; None: stdout, where nothing can have been written before. ValueError or
    OSError if nothing can be written there, or if it holds anything but records.
    """

    def __init__(self, out: str | None, sources: list[str]) -> None:
        self.path = None if out is None else Path(out)
        self.file: TextIO = sys.stdout
        self.ids: list[object] = []  # of the records that are there
        self.errors = 0  # how many records, earlier ones included, are errors
        if self.path is not None:
            check_path(self.path, sources)
            kept = self.read_earlier()
            # What follows the last whole record is the beginning of one, which is made again.
            self.file = self.path.open("a", encoding="utf-8", newline="\n")
            self.file.truncate(kept)

    def read_earlier(self) -> int:
        """Count what an earlier run wrote; returns the bytes of its whole records."""
        assert self.path is not None
        kept = 0
        if not self.path.exists():
            return kept
        with self.path.open("rb") as file:
            for number, content in enumerate(file, start=1):
                if not content.endswith(b"\n") and is_beginning(content):
                    return kept
                record = parse_record(content)
                if record is None:
                    raise ValueError(
                        f"--out {str(self.path)!r} exists, and its line {number} is no record of "
                        "--batch: name a new file"
                    )
                self.ids.append(record["id"])
                self.errors += record["error"] is not None
                kept += len(content)
        return kept

    @property
    def count(self) -> int:
        """How many records an earlier run has written."""
        return len(self.ids)

    def skip_earlier(self, lines: Iterator[Line]) -> Iterator[Line]:
        """The lines that have no record yet; ValueError if a record is not that of its line."""
        for id_of_record in self.ids:
            line = next(lines, None)
            if line is None or line.id != id_of_record:
                found = (
                    "there is no such line" if line is None else f"that line has {line.id!r:.99}"
                )
                raise ValueError(
                    f"--out {str(self.path)!r} belongs to another batch: it has a record of the id "
                    f"{id_of_record!r:.99}, {found}"
                )
        return lines

    def write(self, record: dict[str, object]) -> None:
        """Write one record, and let it reach the file at once."""
        self.errors += record["error"] is not None
        self.file.write(to_json_line(record, self.file.encoding or "utf-8") + "\n")
        self.file.flush()

    def close(self) -> None:
        if self.path is not None:
            self.file.close()


def check_path(path: Path, sources: list[str]) -> None:
    """ValueError if a file can't be made there, or would overwrite what is read."""
    if path.exists() and not path.is_file():
        raise ValueError(f"--out {str(path)!r} is no file")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    for source in sources:
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise ValueError(f"--out {str(path)!r} would overwrite what --batch reads")


def is_beginning(content: bytes) -> bool:
    """Whether these bytes are those of a record that was not written to its end."""
    start = RECORD_START.encode()
    return content.startswith(start) or start.startswith(content)


def parse_record(content: bytes) -> dict | None:
    """The record in a line of the file; None if it is anything else."""
    if not content.startswith(RECORD_START.encode()):
        return None
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return record if {"id", "error", "answer"} <= record.keys() else None
