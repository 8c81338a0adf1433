"""Small networks of both kinds, and the same network in transformers' classes, for the tests of the network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from maskformer import MaskFormerConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]

BACKBONES: dict[str, dict[str, Any]] = {
    f"swin-window{window}": {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 2, 2, 1],
        "num_heads": [1, 2, 2, 2],
        "window_size": window,
        "image_size": 64,
        "drop_path_rate": 0.0,
        "out_features": STAGES,
    }
    for window in (4, 5, 7, 12)
} | {
    f"resnet-{layer_type}": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [16, 16, 24, 32],
        "depths": [1, 1, 2, 1],
        "layer_type": layer_type,
        "out_features": STAGES,
    }
    for layer_type in ("basic", "bottleneck")
}
BACKBONES["convnext"] = {
    "model_type": "convnext",
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "drop_path_rate": 0.0,
    "out_features": STAGES,
}


def decoder_fields(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "detr",
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "num_queries": 10,
        "dropout": 0.0,
        **changes,
    }


def model_fields(backbone: str, **changes: Any) -> dict[str, Any]:
    return {
        "backbone_config": dict(BACKBONES[backbone]),
        "decoder_config": decoder_fields(),
        "fpn_feature_size": 32,
        "mask_feature_size": 16,
        "num_labels": 5,
        **changes,
    }


def small_config(backbone: str = "swin-window4", **changes: Any) -> MaskFormerConfig:
    return MaskFormerConfig(**model_fields(backbone, **changes))


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Weights of a size that lets every part matter, and batch statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(parameter.data + 0.05 * noise)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))


@pytest.fixture(scope="session")
def peer_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directories written by transformers' own class, one per backbone, made when first asked for."""
    made: dict[str, Path] = {}

    def make(backbone: str) -> Path:
        if backbone not in made:
            directory = tmp_path_factory.mktemp(backbone)
            torch.manual_seed(0)
            config = transformers.MaskFormerConfig(**model_fields(backbone))
            model = transformers.MaskFormerForInstanceSegmentation(config)
            randomize(model)
            model.save_pretrained(directory)
            made[backbone] = directory
        return made[backbone]

    return make


def labels(sizes: list[tuple[int, int]], counts: list[int], seed: int = 1) -> dict[str, list[torch.Tensor]]:
    """Targets of the sizes and counts: rectangles and their classes."""
    generator = torch.Generator().manual_seed(seed)
    masks, classes = [], []
    for (height, width), count in zip(sizes, counts, strict=True):
        mask = torch.zeros(count, height, width)
        for index in range(count):
            top = int(torch.randint(height // 2, (1,), generator=generator))
            left = int(torch.randint(width // 2, (1,), generator=generator))
            mask[index, top : top + height // 2, left : left + width // 2] = 1
        masks.append(mask)
        classes.append(torch.randint(5, (count,), generator=generator))
    return {"mask_labels": masks, "class_labels": classes}
