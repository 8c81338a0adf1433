"""A disk that is full when a run is gone on with, and when a checkpoint is written."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from maskformer.checkpoints.writing import torch_file, written_whole
from maskformer.results import write_whole
from maskformer.training.trainer import train

from .tiny import save_tiny, settings

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_settings_and_log_of_a_run_survive_it(tmp_path, monkeypatch):
    config = settings(tmp_path / "run", save_tiny(tmp_path / "first"), steps=1, batch_size=1)
    train(config)
    files = [tmp_path / "run" / name for name in ("config.yaml", "log.jsonl")]
    before = [file.read_bytes() for file in files]
    write_text = Path.write_text

    def full_from(start: str) -> Callable[..., int]:
        def write(path: Path, text: str, **options: Any) -> int:
            if not text.startswith(start):
                return write_text(path, text, **options)
            write_text(path, text[:9], **options)
            raise FULL

        return write

    for file, content in zip(files, before, strict=True):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_text", full_from(content[:9].decode()))
            with pytest.raises(OSError, match=f"No space left on device: '{file}'"):
                train(config, resume=True)
        assert [file.read_bytes() for file in files] == before
    assert train(config, resume=True).step == 1


def test_lines_of_the_log_that_are_damaged_are_left_out(tmp_path):
    """A machine that loses its power may leave zeros, and then go on below them."""
    config = settings(tmp_path / "run", save_tiny(tmp_path / "first"), steps=1, batch_size=1)
    train(config)
    log = tmp_path / "run" / "log.jsonl"
    before = log.read_bytes()
    log.write_bytes(b'\0\0\0\n{"step": 1, "lo\n\xff\n7\n{}\n' + before)
    train(config, resume=True)
    assert log.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is at /dev/full, on Linux alone")
def test_torch_is_not_told_of_it(tmp_path):
    """It would end the process."""
    with pytest.raises(OSError, match="No space left"), torch_file(Path("/dev/full")) as file:
        torch.save({"weights": torch.zeros(100_000)}, file)
    with torch_file(tmp_path / "state.pt") as file:
        torch.save({"weights": torch.ones(3)}, file)
    assert torch.load(tmp_path / "state.pt")["weights"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("error", [FULL, SafetensorError("No space left on device (os error 28)")])
def test_it_is_told_with_the_name_that_was_asked_for(tmp_path, error):
    with pytest.raises(OSError, match="No space left") as caught, written_whole(tmp_path / "model"):
        raise error
    assert caught.value.filename == str(tmp_path / "model")

    def write(part: Path) -> None:
        raise FULL

    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "a.png", write)
    assert caught.value.filename == str(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
