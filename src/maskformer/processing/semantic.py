"""Semantic maps: every query votes for its classes wherever its mask is, the class with the most votes wins.

Paper, section 3.4 ("Semantic inference"): softmax without the no-object class, times the mask probability, summed
over the queries. Classes are resized a few at a time, so the memory does not grow with their number.

Shapes: Q queries, C classes, K a group of classes, H W image, h w stride-4 map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from maskformer.processing.placement import checked_sizes, placements, planes_per_group, strongest_plane
from maskformer.processing.predictions import InferenceProtocol, Prediction, check_protocol, split_predictions


class SemanticResult(dict[str, Tensor]):
    """`segmentation` int64 [H, W] and `segmentation_scores` float32 [C, H, W], as keys and as attributes."""

    def __getattr__(self, name: str) -> Tensor:
        if name not in self:
            raise AttributeError(f"a semantic result has {', '.join(self)}, not {name}")
        return self[name]


@torch.no_grad()
def semantic_segmentation(
    outputs: Any,
    target_sizes: Sequence[Any] | Tensor | None = None,
    return_segmentation_scores: bool = False,
    *,
    pixel_mask: Any = None,
    protocol: InferenceProtocol = "transformers",
) -> list[Tensor] | list[SemanticResult]:
    """The class of every pixel, one int64 map [H, W] per image, ties to the lowest class.

    Args:
        outputs: has `class_queries_logits` [B, Q, C + 1] and `masks_queries_logits` [B, Q, h, w]; or, from a
            per-pixel baseline, `logits` [B, C, h, w].
        target_sizes: (height, width) of each result; None: the size of the logits without padding, or of the input
            without padding under the paper's protocols.
        return_segmentation_scores: return a `SemanticResult` instead (all scores at once: large).
        pixel_mask: [B, H, W] from the processor; its padding is cropped before resizing. None: no padding.
        protocol: "transformers" resizes the scores once; "paper" upsamples the logits to the input size first and
            resizes the scores; "paper-panoptic" resizes the logits all the way first.

    Raises:
        ValueError: sizes or masks that do not belong to the batch, or an unknown protocol.
    """
    by_queries = getattr(outputs, "class_queries_logits", None) is not None
    if protocol == "transformers" and not return_segmentation_scores:
        return list(_strongest_classes(outputs, by_queries, target_sizes, pixel_mask))
    if by_queries:
        images = map(_query_scores, split_predictions(outputs, target_sizes, pixel_mask, protocol))
    else:
        images = _per_pixel_scores(outputs.logits.detach(), target_sizes, pixel_mask, protocol)
    if return_segmentation_scores:
        return [_with_scores(torch.cat(list(groups))) for groups in images]  # [C, H, W] each
    return [strongest_plane(groups) for groups in images]


def _strongest_classes(
    outputs: Any, by_queries: bool, target_sizes: Sequence[Any] | Tensor | None, pixel_mask: Any
) -> Iterator[Tensor]:
    """The maps without the resized scores: see `kernels.resized`."""
    if by_queries:
        for prediction in split_predictions(outputs, target_sizes, pixel_mask, "transformers"):
            probs = prediction.class_logits.softmax(-1)[:, :-1]  # [Q, C]
            masks = prediction.mask_logits.sigmoid()  # [Q, h, w]
            scores = (probs.T @ masks.flatten(1)).unflatten(1, masks.shape[1:])  # [C, h, w]
            scores, resize = prediction.placement.window(scores, prediction.target_size)
            yield resize.strongest_plane(scores)
        return
    logits = outputs.logits.detach()
    sizes = checked_sizes(target_sizes, len(logits))
    for image, place, size in zip(logits, placements(logits, pixel_mask), sizes, strict=True):
        scores, resize = place.window(image.float(), size)
        yield resize.strongest_plane(scores)


def _with_scores(scores: Tensor) -> SemanticResult:
    return SemanticResult(segmentation=scores.argmax(0), segmentation_scores=scores)


def _query_scores(prediction: Prediction) -> Iterator[Tensor]:
    """Scores [K, H, W] at the output size, a group of classes at a time."""
    class_probs = prediction.class_logits.softmax(-1)[:, :-1]  # [Q, C]
    place, size = prediction.placement, prediction.target_size
    if prediction.protocol == "transformers":
        mask_probs = place.crop(prediction.mask_logits.sigmoid())  # [Q, h, w] without padding
        resize = partial(place.resize, size=size)
    else:
        first = size if prediction.protocol == "paper-panoptic" else None
        mask_probs = place.resize_through_input(prediction.mask_logits, first).sigmoid_()  # [Q, H, W]
        resize = partial(place.resize_input, size=size if first is None else None)
    # a matrix product reads all queries, so it takes more classes at once than the resize that follows
    for group in class_probs.split(4 * planes_per_group(mask_probs.shape[-2:]), dim=1):
        scores = torch.einsum("qk,qhw->khw", group, mask_probs)
        yield from map(resize, scores.split(prediction.group_size))


def _per_pixel_scores(
    logits: Tensor, target_sizes: Sequence[Any] | Tensor | None, pixel_mask: Any, protocol: InferenceProtocol
) -> Iterator[Iterator[Tensor]]:
    """The same for each image of a per-pixel classifier's logits [B, C, h, w], which are resized as they are."""
    check_protocol(protocol)
    sizes = checked_sizes(target_sizes, len(logits))
    for image, place, size in zip(logits, placements(logits, pixel_mask), sizes, strict=True):
        resize = place.resize if protocol == "transformers" else place.resize_through_input
        groups = image.float().split(planes_per_group(size, place.padded))
        yield map(partial(resize, size=size), groups)
