"""What a training leaves on disk, each directory whole or not there at all.

RUN/config.yaml, RUN/log.jsonl, RUN/checkpoints/step-N (the model, and `training.pt` with all else that a continuation
needs), RUN/best and RUN/model (to be used: with the averaged weights where there are some).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATE = "training.pt"
_PARTIAL = ".partial"


class Checkpoints:
    """The checkpoints of a run.

    Args:
        out: directory of the run; it is made when something is written.
        keep: how many to keep.
    """

    def __init__(self, out: Path, keep: int) -> None:
        self.directory, self.keep = out / "checkpoints", keep

    def save(self, step: int, write_model: Callable[[Path], Any], state: dict[str, Any]) -> Path:
        """Writes the checkpoint of a step, then removes the oldest."""

        def write(path: Path) -> None:
            write_model(path)
            torch.save(state, path / _STATE)

        path = self.directory / f"step-{step:08}"
        write_directory(path, write)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)
        return path

    def all(self) -> list[Path]:
        """The whole ones, oldest first."""
        found = self.directory.glob("step-*") if self.directory.is_dir() else ()
        return sorted(path for path in found if not path.name.endswith(_PARTIAL) and (path / _STATE).is_file())

    def latest(self) -> Path | None:
        """The newest, or None."""
        return (self.all() or [None])[-1]

    @staticmethod
    def state(path: Path) -> dict[str, Any]:
        """All but the model's weights.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            return torch.load(path / _STATE, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError) as error:
            raise ValueError(f"the checkpoint {path} is damaged: remove it and resume from the one before") from error


def write_directory(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with an empty directory that then takes the place of `path`.

    An interruption leaves the old directory or the new one, and at most a `.partial` one beside it.
    """
    partial = path.with_name(path.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    for file in partial.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    old = path.with_name(path.name + ".old" + _PARTIAL)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)
