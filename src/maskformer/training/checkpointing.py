"""The checkpoints of a run, which hold all that a continuation needs.

RUN/checkpoints/step-N has the model, and `training.pt` with everything else. Beside them lie RUN/config.yaml,
RUN/log.jsonl, RUN/best and RUN/model (to be used: with the averaged weights where there are some).
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from maskformer.checkpoints.writing import torch_file, written_whole
from maskformer.training.config import TrainingConfig

_STATE = "training.pt"


def save_checkpoint(
    config: TrainingConfig, step: int, write_model: Callable[[Path], Any], state: dict[str, Any]
) -> None:
    """Writes the checkpoint of a step, then removes all but the newest."""
    with written_whole(config.out / "checkpoints" / f"step-{step:08}") as path:
        write_model(path)
        with torch_file(path / _STATE) as file:
            torch.save(state, file)
    for old in _checkpoints(config.out)[: -config.keep]:
        shutil.rmtree(old)


def latest_checkpoint(out: Path) -> Path | None:
    """The newest of a run, or None."""
    return (_checkpoints(out) or [None])[-1]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """All but the model's weights.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return torch.load(checkpoint / _STATE, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError) as error:
        raise ValueError(f"the checkpoint {checkpoint} is damaged: remove it and resume from the one before") from error


def _checkpoints(out: Path) -> list[Path]:
    found = out.joinpath("checkpoints").glob("step-*[0-9]")  # the others are not whole
    return sorted(path for path in found if (path / _STATE).is_file())
