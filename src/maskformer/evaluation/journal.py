"""What an evaluation has counted so far, image by image, on disk: an interrupted one goes on from there.

One file per process, `journal-RANK.jsonl`: the settings in the first line, then a record per image. A line is written
at once, and one that was cut off does not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Journal:
    """The records of all processes in a directory, and the file of this one.

    Args:
        directory: made if it is missing.
        settings: whatever must be the same for records to belong together.
        rank: of this process.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], rank: int) -> None:
        self.directory, self.settings = directory, json.loads(json.dumps(settings, default=sorted))  # sets
        self.path = directory / f"journal-{rank}.jsonl"
        self._checked = False
        directory.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Forget every record."""
        for path in self.directory.glob("journal-*.jsonl"):
            path.unlink()

    def records(self) -> Iterator[Record]:
        """The records of all files.

        Raises:
            ValueError: they belong to another evaluation.
        """
        for path in sorted(self.directory.glob("journal-*.jsonl")):
            with path.open(encoding="utf-8") as file:
                lines = (json.loads(line) for line in file if line.endswith("}\n"))
                settings = next(lines, {"settings": self.settings})["settings"]
                other = [name for name in self.settings if settings.get(name) != self.settings[name]]
                if other:
                    raise ValueError(
                        f"{path} is of another evaluation: its {other[0]} is {settings.get(other[0])!r}, now it is "
                        f"{self.settings[other[0]]!r}; start anew without --resume, or in another directory"
                    )
                yield from lines

    def append(self, record: Record) -> None:
        """Add the record of an image."""
        with self.path.open("ab", buffering=0) as file:
            if not self._checked:
                whole = self.path.read_bytes().rfind(b"\n") + 1
                file.truncate(whole)  # a line that was cut off
                file.write(b"" if whole else _line({"settings": self.settings}))
                self._checked = True
            file.write(_line(record))


def _line(content: Record) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
