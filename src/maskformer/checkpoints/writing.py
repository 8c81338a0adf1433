"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PARTIAL = ".partial"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A free path to write a file or directory to, which takes the place of `path` at the end.

    After an error the old one is as it was. A killed process leaves the old one or the new one; of a directory, it may
    leave the old one as `NAME.old.partial`, which the next to write there puts back. That one also removes whatever
    else ends in `PARTIAL`.
    """
    if not path.name:
        raise ValueError(f"{path} is where you are, which cannot be replaced: give a directory that does not exist yet")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (path.with_name(path.name + suffix + PARTIAL) for suffix in ("", ".old"))
    _tidy(path, partial, old)
    try:
        yield partial
        for file in partial.iterdir() if partial.is_dir() else [partial]:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if path.is_dir():  # a file is replaced in one go, a directory that holds something is not
            os.replace(path, old)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
        raise OSError(number or 0, reason or str(error), str(path)) from error  # the name that the user knows
    finally:
        _tidy(path, partial, old)


@contextlib.contextmanager
def torch_file(path: Path) -> Iterator[io.BufferedWriter]:
    """A file for torch to save to; with a path, or a file that raises, it ends the process where the disk is full."""
    with _Patient(io.FileIO(path, "wb")) as file:
        yield file
        if file.error is not None:
            raise file.error


class _Patient(io.BufferedWriter):
    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            return memoryview(data).nbytes


def _tidy(path: Path, partial: Path, old: Path) -> None:
    if old.exists() and not path.exists():
        os.replace(old, path)
    for left in (partial, old):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)
