"""Networks of some thousand weights."""

from __future__ import annotations

from typing import Any

import torch

from maskformer.checkpoints.loading import model_class
from maskformer.configuration import MaskFormerConfig, PerPixelBaselineConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def tiny_network(
    backbone: dict[str, Any],
    decoder: dict[str, Any],
    labels: dict[int, str],
    architecture: str = "MaskFormerForInstanceSegmentation",
) -> Any:
    """With the same random weights each time; a baseline+ has a query for each class."""
    torch.manual_seed(0)
    if architecture == "PerPixelBaselinePlus":
        decoder = {**decoder, "num_queries": len(labels)}
    cls: Any = PerPixelBaselineConfig if architecture.startswith("PerPixel") else MaskFormerConfig
    config = cls(
        backbone_config={"out_features": STAGES, **backbone},
        decoder_config={
            "model_type": "detr",
            "d_model": 32,
            "encoder_layers": 0,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 32,
            **decoder,
        },
        fpn_feature_size=32,
        mask_feature_size=16,
        id2label=labels,
        architectures=[architecture],
    )
    return model_class(architecture)(config)
