"""Instances: each query's best classes compete by score; masks may overlap.

MaskFormer's authors have no instance inference; the reference is Mask2Former's (arXiv 2112.01527, section 4.1): the Q
best (query, class) pairs, scored by class probability times the mean mask probability inside the mask.

Shapes: B batch, Q queries, C classes, N instances, H W image, h w stride-4 map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from maskformer.processing.masks import RunLengths, encode_run_lengths
from maskformer.processing.panoptic import SegmentInfo
from maskformer.processing.predictions import InferenceProtocol, Prediction, split_predictions


class InstanceResult(TypedDict):
    """`segmentation`: int32 [H, W] (-1 = void, ids from 0), bool [N, H, W], or one run-length dict per segment."""

    segmentation: Tensor | list[RunLengths]
    segments_info: list[SegmentInfo]


class _Candidate(NamedTuple):
    score: float
    label: int
    query: int


@torch.no_grad()
def instance_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float | None = None,
    target_sizes: Sequence[Any] | Tensor | None = None,
    return_coco_annotation: bool = False,
    return_binary_maps: bool = False,
    *,
    pixel_mask: Any = None,
    protocol: InferenceProtocol = "transformers",
) -> list[InstanceResult]:
    """Instances of each image, highest score first; their ids are their places in `segments_info`.

    Args:
        outputs: has `class_queries_logits` [B, Q, C + 1] and `masks_queries_logits` [B, Q, h, w].
        threshold: lowest score (class probability x mean mask probability, measured at stride 4) to keep.
        mask_threshold: resized mask probability from which a pixel belongs to the instance.
        overlap_mask_area_threshold: share of its mask an instance must keep visible under the instances above it;
            None: overlaps do not matter.
        target_sizes: (height, width) of each result; None: the size of the logits without padding, or of the input
            without padding under the paper's protocols.
        return_coco_annotation: `segmentation` is a list of COCO run lengths, one per segment, overlaps kept.
        return_binary_maps: `segmentation` is bool [N, H, W], overlaps kept. Otherwise it is one map, in which the
            higher score is on top.
        pixel_mask: [B, H, W] from the processor; its padding is cropped first. None: no padding.
        protocol: "transformers" resizes probabilities once; the others resize the logits by way of the input size.

    Raises:
        ValueError: both forms of output asked for, sizes or masks that do not belong to the batch, unknown protocol.
    """
    if return_coco_annotation and return_binary_maps:
        raise ValueError("return_coco_annotation and return_binary_maps exclude each other; choose one of them.")
    wants_masks = return_coco_annotation or return_binary_maps or overlap_mask_area_threshold is not None
    results: list[InstanceResult] = []
    for prediction in split_predictions(outputs, target_sizes, pixel_mask, protocol):
        candidates = _candidates(prediction, threshold)
        label_map = None
        if not wants_masks and candidates and protocol == "transformers":
            label_map = _top_map(prediction, candidates, mask_threshold)
        if label_map is not None:
            segments = [_segment(number, candidate) for number, candidate in enumerate(candidates)]
            results.append({"segmentation": label_map, "segments_info": segments})
            continue
        instances = _instances(prediction, candidates, mask_threshold)
        label_map, segments, masks = _stack_up(prediction, instances, overlap_mask_area_threshold)
        segmentation: Tensor | list[RunLengths] = label_map
        if return_coco_annotation:
            segmentation = [encode_run_lengths(mask) for mask in masks]
        elif return_binary_maps:
            segmentation = torch.stack(masks) if masks else label_map.new_zeros(0, *label_map.shape, dtype=torch.bool)
        results.append({"segmentation": segmentation, "segments_info": segments})
    return results


def _segment(number: int, candidate: _Candidate) -> SegmentInfo:
    return SegmentInfo(id=number, label_id=candidate.label, was_fused=False, score=round(candidate.score, 6))


def _top_map(prediction: Prediction, candidates: list[_Candidate], mask_threshold: float) -> Tensor | None:
    """The map alone, without any mask at full size; None where an instance would be empty and needs a closer look."""
    queries = [candidate.query for candidate in candidates]
    probs = prediction.mask_logits[queries].sigmoid()
    probs, resize = prediction.placement.window(probs, prediction.target_size)
    if int(resize.areas_above(probs, mask_threshold).min()) == 0:
        return None
    return resize.topmost(probs, mask_threshold)


def _stack_up(
    prediction: Prediction, instances: Iterator[tuple[_Candidate, Tensor]], lowest_share: float | None
) -> tuple[Tensor, list[SegmentInfo], list[Tensor]]:
    """The map [H, W] with the best instance on top, the list of instances and their whole masks [H, W]."""
    device = prediction.mask_logits.device
    label_map = torch.full(prediction.output_size, -1, dtype=torch.int32, device=device)
    segments: list[SegmentInfo] = []
    masks: list[Tensor] = []
    for candidate, mask in instances:
        visible = mask & (label_map < 0)
        if lowest_share is not None and int(visible.sum()) / int(mask.sum()) < lowest_share:
            continue
        label_map.masked_fill_(visible, len(segments))
        segments.append(_segment(len(segments), candidate))
        masks.append(mask)
    return label_map, segments, masks


def _instances(
    prediction: Prediction, candidates: list[_Candidate], mask_threshold: float
) -> Iterator[tuple[_Candidate, Tensor]]:
    """The candidates with their masks bool [H, W]; none of them is empty."""
    for candidate in candidates:
        logits = prediction.mask_logits[candidate.query, None]  # [1, h, w]
        if prediction.protocol == "transformers":
            probs, resize = prediction.placement.window(logits.sigmoid(), prediction.target_size)
            mask = resize.mask_above(probs[0], mask_threshold)
        else:
            mask = prediction.resized_probs(logits)[0] >= mask_threshold
        if not mask.any():
            # a thin instance, or a high threshold: better its cells than nothing
            mask = prediction.resized_nearest((logits > 0).float())[0] > 0
        if mask.any():
            yield candidate, mask


def _candidates(prediction: Prediction, threshold: float) -> list[_Candidate]:
    """(score, class, query) of the Q best pairs that reach the threshold, best first."""
    probs = prediction.class_logits.softmax(-1)[:, :-1]  # [Q, C]
    num_queries, num_classes = probs.shape
    class_scores, flat = probs.flatten().topk(num_queries)  # [Q] of Q * C
    queries = flat.div(num_classes, rounding_mode="floor")
    logits = prediction.placement.crop(prediction.mask_logits)
    inside = logits > 0
    area = inside.flatten(1).sum(1)  # [Q]
    # the small constant is part of the published score
    quality = (logits.sigmoid() * inside).flatten(1).sum(1) / (area + 1e-6)
    scores = class_scores * quality[queries]
    candidates: list[_Candidate] = []
    for place in scores.argsort(descending=True, stable=True).tolist():
        query = int(queries[place])
        if float(scores[place]) >= threshold and int(area[query]) > 0:
            candidates.append(_Candidate(float(scores[place]), int(flat[place]) % num_classes, query))
    return candidates
