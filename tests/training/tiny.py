"""A checkpoint of some thousand weights, settings to train it with, and what a run has logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from maskformer.data.sample import Sample
from maskformer.data.scene_set import SceneDataset
from maskformer.data.scenes import LABELS
from maskformer.training.batches import Order
from maskformer.training.config import TrainingConfig
from maskformer.training.recipes import resolve

from ..networks import tiny_network

SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
}


def save_tiny(
    directory: Path,
    architecture: str = "MaskFormerForInstanceSegmentation",
    labels: dict[int, str] = LABELS,
    dropout: float = 0.0,
) -> str:
    decoder = {"decoder_layers": 2, "num_queries": 32, "dropout": dropout}
    tiny_network(SWIN, decoder, labels, architecture).save_pretrained(directory)
    return str(directory)


def curve(run: Path) -> list[dict[str, Any]]:
    """What the run has logged."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def settings(out: Path, model: str, **fields: Any) -> TrainingConfig:
    return resolve(
        {
            "data": "scenes:6",
            "out": out,
            "model": model,
            "steps": 8,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "min_sizes": [48, 64],
            "test_size": 64,
            "eval_every": 0,
            "save_every": 3,
            "log_every": 1,
            "workers": 0,
            "warm_up_steps": 2,
            "trackers": [],
            "device": "cpu",
            **fields,
        }
    )


class HalfEmpty(SceneDataset):
    """Four scenes; the third and fourth sample of a training have nothing to learn in them."""

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(4, size=(64, 96))
        places = [index for batch in Order(4, config) for index, _ in batch]
        self.empty = places[2:4]

    def read(self, index: int) -> Sample:
        sample = super().read(index)
        if index not in self.empty:
            return sample
        return Sample(sample.image, np.zeros_like(sample.planes), (), path=sample.path)
