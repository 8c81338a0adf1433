"""From a model's two logits to segments: semantic, panoptic and instance, as pure functions (paper, section 3.4).

The three functions share these arguments; sizes or masks of another batch and unknown protocols are a ValueError:

    outputs       has `class_queries_logits` [B, Q, C + 1] and `masks_queries_logits` [B, Q, h, w]
    target_sizes  (height, width) of each result; None: the size of the logits, or of the input under the paper's
                  protocols, without padding
    pixel_mask    [B, H, W] from the processor; its padding is cropped before resizing; None: no padding
    protocol      "transformers": sigmoid at stride 4, crop the padding, one bilinear resize to the target size
                  "paper": logits up to the padded input size; semantic: class scores there, crop, resize the scores;
                  panoptic and instance: crop and resize the logits, then sigmoid
                  "paper-panoptic": as "paper", but the semantic map too comes from resized logits, as in the authors'
                  panoptic configurations (the published mIoU and PQ were measured with the authors' orders)

Outputs live on the logits' device; half-precision logits are computed in float32; inputs are never modified.

Shapes: B batch, Q queries, C classes, K some classes or queries, N instances, H W image, h w stride-4 map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

from maskformer.kernels.dense import linear
from maskformer.processing.masks import encode_run_lengths
from maskformer.processing.placement import InferenceProtocol, Placement, placements, split_outputs, strongest_plane

VALUES_AT_ONCE = 2**24
"""Scores held at once while classes are resized one group after the other (64 MiB of float32)."""
ROWS_AT_ONCE = 64
"""Rows of a map that are renumbered at once."""
QUERIES_AT_ONCE = 25
"""Masks whose cells are looked at together."""

P = ParamSpec("P")
R = TypeVar("R")


def _in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Without a gradient, and without the caller's autocast, which multiplies scores and counts in half precision."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        outputs: Any = args[0] if args else kwargs["outputs"]
        logits = getattr(outputs, "class_queries_logits", None)
        kind: str = (outputs.logits if logits is None else logits).device.type
        with torch.no_grad(), torch.autocast(kind if is_autocast_available(kind) else "cpu", enabled=False):
            return function(*args, **kwargs)

    return run


class SemanticResult(dict[str, Tensor]):
    """`segmentation` int64 [H, W] and `segmentation_scores` float32 [C, H, W], as keys and as attributes."""

    def __getattr__(self, name: str) -> Tensor:
        if name not in self:
            raise AttributeError(f"a semantic result has {', '.join(self)}, not {name}")
        return self[name]


class SegmentInfo(TypedDict):
    """One segment of a map: its value there, its class, whether several queries make it up, and its score."""

    id: int
    label_id: int
    was_fused: bool
    score: float


class SegmentsResult(TypedDict):
    """An int32 map [H, W] and one entry per segment, in the order of the ids (panoptic: 0 = void, instances: -1)."""

    segmentation: Any
    segments_info: list[SegmentInfo]


@_in_full_precision
def semantic_segmentation(
    outputs: Any,
    target_sizes: Sequence[Any] | Tensor | None = None,
    return_segmentation_scores: bool = False,
    *,
    pixel_mask: Any = None,
    protocol: InferenceProtocol = "transformers",
) -> list[Tensor] | list[SemanticResult]:
    """The class of every pixel, one int64 map [H, W] per image: every query votes for its classes where its mask is.

    A vote is the softmax without the no-object class, times the mask probability; ties go to the lowest class. From
    a per-pixel baseline, `outputs` has `logits` [B, C, h, w]. `return_segmentation_scores` makes the results
    `SemanticResult`s (all scores at once: large).
    """
    if getattr(outputs, "class_queries_logits", None) is not None:
        images = split_outputs(outputs, target_sizes, pixel_mask, protocol)
    else:
        logits = outputs.logits.detach()
        places = placements(logits, target_sizes, pixel_mask, protocol)
        images = ((None, image.float(), place) for image, place in zip(logits, places, strict=True))
    results: list[Any] = []
    for class_logits, planes, place in images:
        if protocol != "transformers":
            groups = _paper_scores(class_logits, planes, place, protocol)
            result = torch.cat(list(groups)) if return_segmentation_scores else strongest_plane(groups)
        else:
            planes, resize = place.window(planes)
            mix = None if class_logits is None else partial(_class_scores, class_logits.softmax(-1)[:, :-1])
            if return_segmentation_scores:
                result = resize.plain(planes if mix is None else mix(planes))
            else:
                result = resize.strongest_plane(planes, mix)
        if return_segmentation_scores:
            result = SemanticResult(segmentation=result.argmax(0), segmentation_scores=result)
        results.append(result)
    return results


def _class_scores(probs: Tensor, mask_logits: Tensor) -> Tensor:
    """Each query's votes [Q, C] where its mask [Q, h, w] is, summed: [C, h, w]."""
    masks = mask_logits.flatten(1).T.sigmoid()  # [h * w, Q]
    return linear(probs.T.contiguous(), masks.contiguous()).unflatten(1, mask_logits.shape[1:])  # [C, h, w]


def _paper_scores(
    class_logits: Tensor | None, planes: Tensor, place: Placement, protocol: InferenceProtocol
) -> Iterator[Tensor]:
    """Scores [K, H, W] a group of classes at a time, so that the memory does not grow with their number."""
    group = max(1, VALUES_AT_ONCE // max(height * width for height, width in (place.padded, place.target)))
    if class_logits is None:
        return (place.from_input(place.to_input(few)) for few in planes.split(group))
    mask_logits, masks_first = place.to_input(planes), protocol == "paper-panoptic"
    mask_probs = (place.from_input(mask_logits) if masks_first else mask_logits).sigmoid_()  # [Q, H, W]
    groups = class_logits.softmax(-1)[:, :-1].split(group, dim=1)
    scores = (torch.einsum("qk,qhw->khw", probs, mask_probs) for probs in groups)
    return scores if masks_first else map(place.from_input, scores)


def _paper_probs(mask_logits: Tensor, place: Placement) -> Iterator[Tensor]:
    """Each query's mask probabilities [H, W]."""
    return (place.from_input(place.to_input(one[None])).sigmoid()[0] for one in mask_logits)


@_in_full_precision
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
) -> list[SegmentsResult]:
    """Segments of each image, ids from 1: every pixel goes to the query with the largest class x mask score.

    Args:
        threshold: class probability a query must exceed, with a class other than "no object".
        mask_threshold: mask probability from which a pixel counts as claimed by a query.
        overlap_mask_area_threshold: share of its claimed area a query must win (the overlap test of the appendix).
        label_ids_to_fuse: classes whose queries form one segment ("stuff"); its score is its best query's.
    """
    results: list[SegmentsResult] = []
    fused = () if label_ids_to_fuse is None else [int(label) for label in label_ids_to_fuse]  # arrays have no truth
    for class_logits, mask_logits, place in split_outputs(outputs, target_sizes, pixel_mask, protocol):
        scores, labels = class_logits.softmax(-1).max(-1)  # [Q]
        kept = ((labels != class_logits.shape[-1] - 1) & (scores > threshold)).nonzero().flatten()
        segments: list[SegmentInfo] = []
        if len(kept) == 0:
            segmentation = torch.zeros(place.target, dtype=torch.int32, device=kept.device)
        else:
            scores, labels, mask_logits = scores[kept], labels[kept], mask_logits[kept]
            segmentation, claimed = _assign_pixels(mask_logits, scores, place, mask_threshold, protocol)
            won = segmentation.flatten().bincount(minlength=len(kept))
            areas = zip(won.tolist(), claimed, strict=True)
            visible = [mine * area > 0 and mine / area >= overlap_mask_area_threshold for mine, area in areas]
            ids, segments = _number_segments(labels.tolist(), scores.tolist(), visible, fused)
            table = torch.tensor(ids, dtype=torch.int32, device=kept.device)
            for rows in segmentation.split(ROWS_AT_ONCE):  # in place: the map is the largest thing here
                rows.copy_(table[rows])
        results.append({"segmentation": segmentation, "segments_info": segments})
    return results


def _assign_pixels(
    mask_logits: Tensor, scores: Tensor, place: Placement, mask_threshold: float, protocol: InferenceProtocol
) -> tuple[Tensor, list[int]]:
    """The query that wins each pixel, int32 [H, W], and the area each query claims [K]."""
    if protocol == "transformers":
        probs, resize = place.window(mask_logits.sigmoid())
        claimed = resize.areas_above(probs, mask_threshold).tolist()
        return resize.strongest_plane(probs, lambda some: some * scores[:, None, None], torch.int32), claimed
    claimed: list[int] = []

    def weighted() -> Iterator[Tensor]:
        for prob, score in zip(_paper_probs(mask_logits, place), scores, strict=True):
            claimed.append(int((prob >= mask_threshold).sum()))
            yield prob[None] * score

    return strongest_plane(weighted()).to(torch.int32), claimed


def _number_segments(
    labels: list[int], scores: list[float], visible: list[bool], fused: Collection[int]
) -> tuple[list[int], list[SegmentInfo]]:
    """The segment id of each query (0: none), counting up in query order, and the list of segments."""
    segments: list[SegmentInfo] = []
    by_label: dict[int, SegmentInfo] = {}
    ids = [0] * len(labels)
    for query in (query for query, is_visible in enumerate(visible) if is_visible):
        label, score = labels[query], round(scores[query], 6)
        if label not in by_label or label not in fused:
            number = len(segments) + 1
            by_label[label] = SegmentInfo(id=number, label_id=label, was_fused=label in fused, score=score)
            segments.append(by_label[label])
        segment = by_label[label]
        segment["score"] = max(segment["score"], score)
        ids[query] = segment["id"]
    return ids, segments


@_in_full_precision
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
) -> list[SegmentsResult]:
    """Instances of each image, highest score first; their ids are their places in `segments_info`.

    The authors have no instance inference; the reference is Mask2Former's (arXiv 2112.01527, section 4.1): the Q best
    (query, class) pairs. Masks may overlap.

    Args:
        threshold: lowest score (class probability x mean probability inside the mask, at stride 4) to keep.
        mask_threshold: resized mask probability from which a pixel belongs to the instance.
        overlap_mask_area_threshold: share of its mask an instance must keep visible under the instances above it;
            None: overlaps do not matter.
        return_coco_annotation: `segmentation` is a list of COCO run lengths, one per segment, overlaps kept.
        return_binary_maps: `segmentation` is bool [N, H, W], overlaps kept. Both at once are a ValueError; without
            either it is one map, in which the higher score is on top.
    """
    if return_coco_annotation and return_binary_maps:
        raise ValueError("return_coco_annotation and return_binary_maps exclude each other; choose one of them.")
    only_map = not (return_coco_annotation or return_binary_maps) and overlap_mask_area_threshold is None
    only_map = only_map and protocol == "transformers"
    results: list[SegmentsResult] = []
    for class_logits, mask_logits, place in split_outputs(outputs, target_sizes, pixel_mask, protocol):
        queries, segments = _candidates(class_logits, place.crop(mask_logits), threshold)
        logits = mask_logits[queries]  # [N, h, w]
        segmentation = _topmost(logits, place, mask_threshold) if only_map and queries else None
        if segmentation is None:
            segmentation = torch.full(place.target, -1, dtype=torch.int32, device=logits.device)
            masks = _full_masks(logits, place, mask_threshold, protocol)
            segments, kept = _stack_up(masks, segments, segmentation, overlap_mask_area_threshold)
            if return_coco_annotation:
                segmentation = [encode_run_lengths(mask) for mask in kept]
            elif return_binary_maps:
                segmentation = torch.stack(kept) if kept else segmentation.new_zeros(0, *place.target).bool()
        results.append({"segmentation": segmentation, "segments_info": segments})
    return results


def _candidates(class_logits: Tensor, logits: Tensor, threshold: float) -> tuple[list[int], list[SegmentInfo]]:
    """The queries of the Q best (query, class) pairs that reach the threshold, best first, and their segments."""
    probs = class_logits.softmax(-1)[:, :-1]  # [Q, C]
    num_queries, num_classes = probs.shape
    class_scores, flat = probs.flatten().topk(num_queries)  # [Q] of Q * C
    pairs = flat.div(num_classes, rounding_mode="floor")
    areas: list[Tensor] = []
    totals: list[Tensor] = []
    for few in logits.split(QUERIES_AT_ONCE):
        inside = few > 0
        areas.append(inside.flatten(1).sum(1))
        totals.append(few.sigmoid().mul_(inside).flatten(1).sum(1))
    area = torch.cat(areas)  # [Q]
    quality = torch.cat(totals) / (area + 1e-6)  # the small constant is part of the published score
    scores = class_scores * quality[pairs]
    queries: list[int] = []
    segments: list[SegmentInfo] = []
    for place in scores.argsort(descending=True, stable=True).tolist():
        query, score, label = int(pairs[place]), float(scores[place]), int(flat[place]) % num_classes
        if score >= threshold and int(area[query]) > 0:
            segments.append(SegmentInfo(id=len(queries), label_id=label, was_fused=False, score=round(score, 6)))
            queries.append(query)
    return queries, segments


def _topmost(logits: Tensor, place: Placement, threshold: float) -> Tensor | None:
    """The map [H, W] alone, without any mask at full size; None where an instance would be empty."""
    probs, resize = place.window(logits.sigmoid())
    return resize.topmost(probs, threshold) if int(resize.areas_above(probs, threshold).min()) else None


def _full_masks(logits: Tensor, place: Placement, threshold: float, protocol: InferenceProtocol) -> Iterator[Tensor]:
    """The mask bool [H, W] of each of the mask logits [N, h, w]."""
    if protocol == "transformers":
        probs, resize = place.window(logits.sigmoid())
        masks = (resize.mask_above(prob, threshold) for prob in probs)
    else:
        masks = (prob >= threshold for prob in _paper_probs(logits, place))
    for one, mask in zip(logits, masks, strict=True):
        # a thin instance, or a high threshold: better its cells than nothing
        yield mask if mask.any() else place.resize_nearest((one[None] > 0).float())[0] > 0


def _stack_up(
    masks: Iterator[Tensor], candidates: list[SegmentInfo], label_map: Tensor, lowest_share: float | None
) -> tuple[list[SegmentInfo], list[Tensor]]:
    """Draws the instances on an empty map [H, W], the best on top; those that are left and their whole masks [H, W]."""
    segments: list[SegmentInfo] = []
    kept: list[Tensor] = []
    for mask, segment in zip(masks, candidates, strict=True):
        visible, area = mask & (label_map < 0), int(mask.sum())
        if area == 0 or (lowest_share is not None and int(visible.sum()) / area < lowest_share):
            continue
        segment["id"] = len(segments)
        label_map.masked_fill_(visible, segment["id"])
        segments.append(segment)
        kept.append(mask)
    return segments, kept
