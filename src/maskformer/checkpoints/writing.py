"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A free path to write a file or directory to, which takes the place of `path` at the end.

    After an error the old one is as it was. A killed process leaves the old one or the new one, and at most something
    that ends in `PARTIAL` beside it, which the next to write there removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (path.with_name(path.name + suffix + PARTIAL) for suffix in ("", ".old"))
    _remove(partial)
    try:
        yield partial
        for file in partial.iterdir() if partial.is_dir() else [partial]:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        _remove(old)
        if path.is_dir():  # a file is replaced in one go, a directory that holds something is not
            os.replace(path, old)
        os.replace(partial, path)
        _remove(old)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
