"""MaskFormer done right: universal image segmentation by mask classification (arXiv 2107.06278).

Public names are loaded on first use, so importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskformer.checkpoints.loading import load_model as load_model
    from maskformer.configuration import MaskFormerConfig as MaskFormerConfig
    from maskformer.inference import Segmenter as Segmenter
    from maskformer.modeling.maskformer import MaskFormerForInstanceSegmentation as MaskFormerForInstanceSegmentation
    from maskformer.modeling.maskformer import MaskFormerModel as MaskFormerModel
    from maskformer.modeling.outputs import (
        MaskFormerForInstanceSegmentationOutput as MaskFormerForInstanceSegmentationOutput,
    )
    from maskformer.modeling.outputs import MaskFormerModelOutput as MaskFormerModelOutput
    from maskformer.modeling.per_pixel import PerPixelBaseline as PerPixelBaseline
    from maskformer.modeling.per_pixel import PerPixelBaselinePlus as PerPixelBaselinePlus
    from maskformer.processing.image_processor import MaskFormerFeatureExtractor as MaskFormerFeatureExtractor
    from maskformer.processing.image_processor import MaskFormerImageProcessor as MaskFormerImageProcessor

__version__ = "0.1.0"

_HOMES = {
    "MaskFormerConfig": "maskformer.configuration",
    "MaskFormerModel": "maskformer.modeling.maskformer",
    "MaskFormerForInstanceSegmentation": "maskformer.modeling.maskformer",
    "MaskFormerModelOutput": "maskformer.modeling.outputs",
    "MaskFormerForInstanceSegmentationOutput": "maskformer.modeling.outputs",
    "PerPixelBaseline": "maskformer.modeling.per_pixel",
    "PerPixelBaselinePlus": "maskformer.modeling.per_pixel",
    "MaskFormerImageProcessor": "maskformer.processing.image_processor",
    "MaskFormerFeatureExtractor": "maskformer.processing.image_processor",
    "load_model": "maskformer.checkpoints.loading",
    "Segmenter": "maskformer.inference",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maskformer' has no attribute '{name}'; it offers {', '.join(sorted(_HOMES))}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
