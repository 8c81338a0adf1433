"""A network of some thousand weights, settings for it, and one step of a trainer for comparison between processes.

python tiny.py CHECKPOINT RESULT ACCUMULATION        # alone, or under torchrun
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskformer.checkpoints.loading import model_class
from maskformer.configuration import MaskFormerConfig, PerPixelBaselineConfig
from maskformer.data.sample import Sample
from maskformer.data.scene_set import SceneDataset
from maskformer.data.scenes import LABELS
from maskformer.training.batches import Order
from maskformer.training.config import TrainingConfig
from maskformer.training.recipes import resolve

SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
DECODER = {
    "model_type": "detr",
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "encoder_layers": 0,
    "encoder_attention_heads": 2,
    "num_queries": 32,
}


def save_tiny(
    directory: Path,
    architecture: str = "MaskFormerForInstanceSegmentation",
    labels: dict[int, str] = LABELS,
    dropout: float = 0.0,
) -> str:
    torch.manual_seed(0)
    decoder = {**DECODER, "dropout": dropout}
    if architecture == "PerPixelBaselinePlus":
        decoder["num_queries"] = len(labels)
    cls: Any = PerPixelBaselineConfig if architecture.startswith("PerPixel") else MaskFormerConfig
    config = cls(
        backbone_config=SWIN,
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=16,
        id2label=labels,
        architectures=[architecture],
    )
    model_class(architecture)(config).save_pretrained(directory)
    return str(directory)


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
