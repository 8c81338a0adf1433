"""A batch of model outputs, split into one float32 prediction per image.

Shapes: B batch, Q queries, C classes, K any number of planes, H W image, h w stride-4 map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from maskformer.processing.placement import Placement, Size, checked_sizes, placements, planes_per_group

InferenceProtocol: TypeAlias = Literal["transformers", "paper", "paper-panoptic"]


@dataclass(frozen=True)
class Prediction:
    """The queries of one image and where the image lies in their maps."""

    class_logits: Tensor
    """[Q, C + 1], the last class is "no object"."""
    mask_logits: Tensor
    """[Q, h, w]"""
    placement: Placement
    target_size: Size | None
    protocol: InferenceProtocol

    @property
    def output_size(self) -> Size:
        """(height, width) of the result."""
        if self.target_size is not None:
            return self.target_size
        return self.placement.cells if self.protocol == "transformers" else self.placement.valid

    @property
    def group_size(self) -> int:
        """Planes to hold at once at the output size (and on the way there)."""
        return planes_per_group(self.output_size, None if self.protocol == "transformers" else self.placement.padded)

    def resized_probs(self, mask_logits: Tensor) -> Tensor:
        """Mask probabilities [K, H, W] at the output size, of logits [K, h, w], in the protocol's order."""
        if self.protocol == "transformers":
            return self.placement.resize(mask_logits.sigmoid(), self.target_size)
        return self.placement.resize_through_input(mask_logits, self.target_size).sigmoid()

    def resized_nearest(self, planes: Tensor) -> Tensor:
        """Planes [K, h, w] at the output size [K, H, W] by picking the nearest cell."""
        unchanged = self.protocol == "transformers" and self.target_size is None
        return self.placement.resize_nearest(planes, None if unchanged else self.output_size)


def check_protocol(protocol: str) -> None:
    """Raises ValueError for an unknown protocol."""
    if protocol not in get_args(InferenceProtocol):
        known = ", ".join(get_args(InferenceProtocol))
        raise ValueError(f"protocol {protocol!r} is unknown; choose one of {known}.")


def split_predictions(
    outputs: Any, target_sizes: Sequence[Any] | Tensor | None, pixel_mask: Any, protocol: InferenceProtocol
) -> Iterator[Prediction]:
    """One prediction per image, float32, never modified in place.

    Args:
        outputs: any object with `class_queries_logits` [B, Q, C + 1] and `masks_queries_logits` [B, Q, h, w].
        target_sizes: (height, width) of each result, or None.
        pixel_mask: [B, H, W], 1 where the input shows the image, as the processor returns it; None: no padding.

    Raises:
        ValueError: an unknown protocol, or sizes or masks that do not belong to the batch.
    """
    check_protocol(protocol)
    class_logits, mask_logits = outputs.class_queries_logits.detach(), outputs.masks_queries_logits.detach()
    if class_logits.ndim != 3 or mask_logits.ndim != 4 or class_logits.shape[:2] != mask_logits.shape[:2]:
        raise ValueError(
            f"outputs have class logits {tuple(class_logits.shape)} and mask logits {tuple(mask_logits.shape)}; "
            "expected [B, Q, C + 1] and [B, Q, h, w]."
        )
    sizes = checked_sizes(target_sizes, len(class_logits))
    for index, placement in enumerate(placements(mask_logits, pixel_mask)):
        yield Prediction(class_logits[index].float(), mask_logits[index].float(), placement, sizes[index], protocol)
