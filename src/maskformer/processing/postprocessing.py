"""From a model's two logits to segments: semantic, panoptic and instance, as pure functions.

Three orders of the same steps (`protocol`):

    "transformers"    sigmoid at stride 4, crop the padding, one bilinear resize to the target size (default)
    "paper"           logits up to the padded input size; semantic: class scores there, crop, resize the scores;
                      panoptic and instance: crop and resize the logits, then sigmoid
    "paper-panoptic"  as "paper", but the semantic map too comes from resized logits, as in the authors' panoptic
                      configurations

The published mIoU and PQ were measured with the authors' orders. Outputs live on the logits' device; half-precision
logits are computed in float32; inputs are never modified.
"""

from __future__ import annotations

from maskformer.processing.instance import InstanceResult, instance_segmentation
from maskformer.processing.panoptic import PanopticResult, SegmentInfo, panoptic_segmentation
from maskformer.processing.predictions import InferenceProtocol
from maskformer.processing.semantic import SemanticResult, semantic_segmentation

__all__ = [
    "InferenceProtocol",
    "InstanceResult",
    "PanopticResult",
    "SegmentInfo",
    "SemanticResult",
    "instance_segmentation",
    "panoptic_segmentation",
    "semantic_segmentation",
]
