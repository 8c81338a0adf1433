"""The scripts for loops of one's own run, and what they leave is a checkpoint."""

import runpy
from pathlib import Path

import pytest

from maskformer import Segmenter

from .data.publishers import NAMES, write_label_maps
from .training.tiny import save_tiny

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("script", ["finetune_with_trainer", "finetune_with_accelerate"])
def test_fine_tuning(tmp_path, script, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_label_maps(tmp_path / "data")
    model = save_tiny(tmp_path / "first", labels=dict(enumerate("abc")))
    words = ["--data", str(tmp_path / "data"), "--model", model, "--out", str(tmp_path / "run")]
    main = runpy.run_path(str(EXAMPLES / f"{script}.py"))["main"]
    metrics = main([*words, "--steps", "2", "--batch", "2", "--size", "64"])
    assert 0 <= metrics["mIoU"] <= 100
    segmenter = Segmenter.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert list(segmenter.labels.values()) == NAMES
    assert segmenter.task == "semantic"
