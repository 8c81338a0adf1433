"""Small checkpoints whose segments are sure of themselves, and the ONNX files of one of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maskformer.data.scenes import draw_scene
from maskformer.export.file import export_checkpoint
from maskformer.processing.image_processor import MaskFormerImageProcessor

from ..networks import tiny_network

LABELS = {0: "sky", 1: "road", 2: "car", 3: "person"}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [2, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 7,
}


def pictures() -> list[np.ndarray]:
    return [draw_scene(seed, size).image for seed, size in enumerate(((120, 90), (96, 200)))]


def save(directory: Path, backbone: dict = RESNET, architecture: str = "MaskFormerForInstanceSegmentation") -> str:
    model = tiny_network(backbone, {"decoder_layers": 1, "num_queries": 12}, LABELS, architecture)
    if hasattr(model, "class_predictor"):
        with torch.no_grad():
            torch.manual_seed(19)  # one of those with several segments in `pictures` and few ties
            model.class_predictor.weight.normal_(std=1.0)
            for parameter in model.mask_embedder.parameters():
                parameter.normal_(std=0.15)
    model.save_pretrained(directory)
    size = {"shortest_edge": 96, "longest_edge": 160}
    MaskFormerImageProcessor(size=size, label_ids_to_fuse=[0, 1]).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("export") / "resnet")


@pytest.fixture(scope="session")
def logits_file(checkpoint: str) -> Path:
    path = Path(checkpoint).parent / "logits.onnx"
    export_checkpoint(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def panoptic_file(checkpoint: str) -> Path:
    path = Path(checkpoint).parent / "panoptic.onnx"
    export_checkpoint(checkpoint, path, "panoptic")
    return path
