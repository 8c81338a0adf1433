"""Panoptic maps: every pixel goes to one query, queries that lost too much of their mask are dropped.

Paper, section 3.4 ("General inference") and the overlap test of its appendix: a query is kept when its best class is
not "no object" and its probability exceeds `threshold`; a pixel goes to the query with the largest class x mask
probability; a query stays when it won at least `overlap_mask_area_threshold` of the area its mask claims.

Shapes: B batch, Q queries, C classes, K kept queries, H W image, h w stride-4 map.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from maskformer.processing.placement import strongest_plane
from maskformer.processing.predictions import InferenceProtocol, Prediction, split_predictions


class SegmentInfo(TypedDict):
    """One segment of a map: its value there, its class, whether several queries make it up, and its score."""

    id: int
    label_id: int
    was_fused: bool
    score: float


class PanopticResult(TypedDict):
    """`segmentation` int32 [H, W], 0 = void, ids from 1; one entry of `segments_info` per id, in that order."""

    segmentation: Tensor
    segments_info: list[SegmentInfo]


@torch.no_grad()
def panoptic_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] | None = None,
    target_sizes: Sequence[Any] | Tensor | None = None,
    *,
    pixel_mask: Any = None,
    protocol: InferenceProtocol = "transformers",
) -> list[PanopticResult]:
    """A map of segments and their list, per image.

    Args:
        outputs: has `class_queries_logits` [B, Q, C + 1] and `masks_queries_logits` [B, Q, h, w].
        threshold: class probability a query must exceed.
        mask_threshold: mask probability from which a pixel counts as claimed by a query.
        overlap_mask_area_threshold: share of its claimed area a query must win.
        label_ids_to_fuse: classes whose queries form one segment ("stuff"); its score is its best query's.
        target_sizes: (height, width) of each result; None: the size of the logits without padding, or of the input
            without padding under the paper's protocols.
        pixel_mask: [B, H, W] from the processor; its padding is cropped before resizing. None: no padding.
        protocol: "transformers" resizes probabilities once; "paper" and "paper-panoptic" resize the logits by way of
            the input size.

    Raises:
        ValueError: sizes or masks that do not belong to the batch, or an unknown protocol.
    """
    fused = frozenset(label_ids_to_fuse or ())
    results: list[PanopticResult] = []
    for prediction in split_predictions(outputs, target_sizes, pixel_mask, protocol):
        probs, labels = prediction.class_logits.softmax(-1).max(-1)
        no_object = prediction.class_logits.shape[-1] - 1
        kept = ((labels != no_object) & (probs > threshold)).nonzero().flatten()
        if len(kept) == 0:
            void = torch.zeros(prediction.output_size, dtype=torch.int32, device=labels.device)
            results.append({"segmentation": void, "segments_info": []})
            continue
        winner, shares = _assign_pixels(prediction, kept, probs[kept], mask_threshold)
        visible = [share >= overlap_mask_area_threshold if share is not None else False for share in shares]
        ids, segments = _number_segments(labels[kept].tolist(), probs[kept].tolist(), visible, fused)
        segmentation = torch.tensor(ids, dtype=torch.int32, device=winner.device)[winner]
        results.append({"segmentation": segmentation, "segments_info": segments})
    return results


def _assign_pixels(
    prediction: Prediction, kept: Tensor, scores: Tensor, mask_threshold: float
) -> tuple[Tensor, list[float | None]]:
    """The kept query of each pixel [H, W], and for each query won / claimed area (None where either is zero)."""
    if prediction.protocol == "transformers":
        probs = prediction.mask_logits[kept].sigmoid()  # [K, h, w]
        probs, resize = prediction.placement.window(probs, prediction.target_size)
        winner = resize.strongest_plane(probs * scores[:, None, None])
        return winner, _shares(winner, resize.areas_above(probs, mask_threshold))
    claimed: list[Tensor] = []

    def weighted_groups() -> Iterator[Tensor]:
        groups = zip(kept.split(prediction.group_size), scores.split(prediction.group_size), strict=True)
        for queries, weights in groups:
            probs = prediction.resized_probs(prediction.mask_logits[queries])  # [K, H, W]
            claimed.append((probs >= mask_threshold).flatten(1).sum(1))
            yield probs * weights[:, None, None]

    winner = strongest_plane(weighted_groups())
    return winner, _shares(winner, torch.cat(claimed))


def _shares(winner: Tensor, claimed: Tensor) -> list[float | None]:
    won = winner.flatten().bincount(minlength=len(claimed)).tolist()
    return [mine / area if mine and area else None for mine, area in zip(won, claimed.tolist(), strict=True)]


def _number_segments(
    labels: list[int], scores: list[float], visible: list[bool], fused: frozenset[int]
) -> tuple[list[int], list[SegmentInfo]]:
    """The segment id of each kept query (0: none), counting up in query order, and the list of segments."""
    segments: list[SegmentInfo] = []
    by_label: dict[int, SegmentInfo] = {}
    ids: list[int] = []
    for label, score, is_visible in zip(labels, scores, visible, strict=True):
        if not is_visible:
            ids.append(0)
            continue
        score = round(score, 6)
        segment = by_label.get(label)
        if segment is None:
            segment = SegmentInfo(id=len(segments) + 1, label_id=label, was_fused=label in fused, score=score)
            segments.append(segment)
            if label in fused:
                by_label[label] = segment
        segment["score"] = max(segment["score"], score)
        ids.append(segment["id"])
    return ids, segments
