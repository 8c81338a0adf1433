"""Panoptic quality (Kirillov et al., arXiv 1801.00868), image by image, with the official matching.

A predicted and a true segment of one class match if their IoU is above 0.5, where the union leaves out the predicted
pixels that are void in the truth. Crowds of the truth match nothing and are not missed. A predicted segment without a
match is no false positive if more than half of it lies on void or on the crowd of its class. Then, per class,
PQ = sum of the matches' IoU / (TP + FP / 2 + FN / 2) = SQ x RQ. Classes without any TP, FP, FN are left out of means.
C categories, T true segments, P predicted segments, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskformer.visualization import places_of, value_of

# IoUs between 0.5 and 1 are multiples of 2^-53 as float64, hence 2^53 x IoU is an integer. It is summed in two parts
# that cannot overflow before 2^36 matches, so the sum is exact, whatever the order and however it was sharded.
_LOW_BITS, _ALL_BITS = 26, 53


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """The quality of one class in percent, and its numbers of segments."""

    id: int
    name: str
    isthing: bool
    pq: float
    sq: float
    rq: float
    true_positives: int
    false_positives: int
    false_negatives: int


@dataclass(frozen=True, slots=True)
class MeanQuality:
    """Means in percent over the `num_classes` classes with support."""

    pq: float
    sq: float
    rq: float
    num_classes: int


@dataclass(frozen=True, slots=True)
class PanopticQualityResult:
    """`things` or `stuff` is None if no such class has support; `per_class` holds those with support, by id."""

    all: MeanQuality
    things: MeanQuality | None
    stuff: MeanQuality | None
    per_class: dict[int, ClassQuality]


class _Segments(NamedTuple):
    """Segments as arrays [S], in the order they came in."""

    ids: NDArray[np.int64]
    category: NDArray[np.intp]  # place among the categories
    crowd: NDArray[np.bool_]


class PanopticQuality:
    """Matches segments image by image.

    Source: arXiv 1801.00868, section 4.1.

    Args:
        categories: dicts with `id`, `isthing` and `name`, as in COCO panoptic files.

    `state` int64 [C, 5] (true positives, false positives, false negatives, the IoU sum's upper and lower part) is all
    it knows: the sum of the states of several processes is the state of all their images, exactly.

    Examples:
        >>> metric = PanopticQuality([{"id": 1, "isthing": 1, "name": "cat"}])
        >>> ids = np.ones((4, 4), np.int32)
        >>> metric.update(ids, [{"id": 1, "label_id": 1}], ids, [{"id": 1, "category_id": 1}])
        >>> metric.result().all.pq  # percent
        100.0
    """

    def __init__(self, categories: Sequence[Mapping[str, Any]]) -> None:
        self.categories = categories
        self._place = {int(entry["id"]): place for place, entry in enumerate(categories)}
        if not categories or len(self._place) < len(categories):
            raise ValueError(
                f"PanopticQuality got {len(categories)} categories with {len(self._place)} different ids, expected at "
                "least one and no id twice."
            )
        self.state: NDArray[np.int64] = np.zeros((len(categories), 5), np.int64)

    def update(
        self, prediction: ArrayLike, prediction_segments: Sequence[Any], truth: ArrayLike, truth_segments: Sequence[Any]
    ) -> None:
        """Add one image.

        Args:
            prediction: [H, W] ids, 0 is void.
            prediction_segments: one per id, with `id` and `category_id` or `label_id`, by key or attribute.
            truth: [H, W] ids, 0 is void. Ids that no segment has are neither void nor a segment, as officially.
            truth_segments: likewise, with `iscrowd` where it is 1. Of several crowds of a class the last counts, as
                officially (their files hold one at most). A segment without a pixel is missed.

        Raises:
            ValueError: for maps of different sizes, an unknown category, an id below 1 or twice, and, in the
                prediction, an id without a segment or a segment without a pixel.
        """
        predicted_ids, true_ids = np.asarray(prediction), np.asarray(truth)
        if predicted_ids.shape != true_ids.shape:
            raise ValueError(
                f"PanopticQuality got a prediction of shape {predicted_ids.shape} for a truth of shape "
                f"{true_ids.shape}, expected the same; post-process with target_sizes=[(height, width)] of the truth."
            )
        predicted = self._read(prediction_segments, "prediction")
        true = self._read(truth_segments, "truth")
        shape = (len(true.ids) + 2, len(predicted.ids) + 2)
        pairs = _slots(true_ids, true.ids) * shape[1] + _slots(predicted_ids, predicted.ids)  # [H, W]
        counts = np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)  # [T + 2, P + 2]
        _check_prediction(counts, predicted_ids, predicted)
        self._add(counts, true, predicted)

    def result(self) -> PanopticQualityResult:
        """The metrics over all images so far.

        Raises:
            ValueError: if there has been no segment yet.
        """
        per_class: dict[int, ClassQuality] = {}
        for entry, (tp, fp, fn, high, low) in zip(self.categories, self.state.tolist(), strict=True):
            if tp + fp + fn:
                # Python divides its integers of any length with a single rounding.
                iou_sum = ((high << _LOW_BITS) + low) / (1 << _ALL_BITS)
                support = tp + 0.5 * fp + 0.5 * fn
                qualities = (100 * iou_sum / support, 100 * iou_sum / max(tp, 1), 100 * tp / support)
                number, name = int(entry["id"]), str(entry.get("name", entry["id"]))
                per_class[number] = ClassQuality(number, name, bool(entry["isthing"]), *qualities, tp, fp, fn)
        overall = _mean(list(per_class.values()))
        if overall is None:
            raise ValueError("PanopticQuality has seen no segment; call update with at least one labelled image.")
        things = _mean([quality for quality in per_class.values() if quality.isthing])
        stuff = _mean([quality for quality in per_class.values() if not quality.isthing])
        return PanopticQualityResult(overall, things, stuff, per_class)

    def _read(self, segments: Sequence[Any], which: str) -> _Segments:
        ids = np.array([value_of(segment, "id") for segment in segments], np.int64)
        category: list[int] = []
        for segment in segments:
            label = value_of(segment, "category_id")
            label = value_of(segment, "label_id") if label is None else label
            if label not in self._place:
                raise ValueError(
                    f"PanopticQuality got segment {value_of(segment, 'id')} of the {which} with category {label}, "
                    f"expected one of {sorted(self._place)}; give PanopticQuality every category of the data."
                )
            category.append(self._place[label])
        if len(np.unique(ids)) < len(ids) or (ids < 1).any():
            raise ValueError(
                f"PanopticQuality got segments of the {which} with the ids {sorted(ids.tolist())}, expected each once "
                "and from 1 on; 0 is void."
            )
        crowd = np.array([bool(value_of(segment, "iscrowd")) for segment in segments], np.bool_)
        return _Segments(ids, np.array(category, np.intp), crowd)

    def _add(self, counts: NDArray[np.int64], true: _Segments, predicted: _Segments) -> None:
        common, void = counts[1:-1, 1:-1], counts[0, 1:-1]  # [T, P], [P]
        areas = counts[:, 1:-1].sum(axis=0)  # [P]
        union = counts[1:-1].sum(axis=1)[:, None] + (areas - void)[None] - common  # [T, P]
        match = (2 * common > union) & (true.category[:, None] == predicted.category[None]) & ~true.crowd[:, None]
        rows, columns = np.nonzero(match)
        scaled = (common[rows, columns] / union[rows, columns] * 2.0**_ALL_BITS).astype(np.int64)
        matched = true.category[rows]
        np.add.at(self.state[:, 0], matched, 1)
        np.add.at(self.state[:, 3], matched, scaled >> _LOW_BITS)
        np.add.at(self.state[:, 4], matched, scaled & ((1 << _LOW_BITS) - 1))

        ignored = void.copy()
        for row in np.flatnonzero(true.crowd):
            same = predicted.category == true.category[row]
            ignored[same] = void[same] + common[row, same]
        wrong = ~match.any(axis=0) & (2 * ignored <= areas)
        missed = ~match.any(axis=1) & ~true.crowd
        np.add.at(self.state[:, 1], predicted.category[wrong], 1)
        np.add.at(self.state[:, 2], true.category[missed], 1)


def _slots(ids: NDArray[Any], known: NDArray[np.int64]) -> NDArray[np.intp]:
    """For every pixel: 0 void, 1 to S the place of its id among the `known`, S + 1 an id that is none of them."""
    places = places_of(ids, known)
    places[(places == 0) & (ids != 0)] = len(known) + 1
    return places


def _check_prediction(counts: NDArray[np.int64], ids: NDArray[Any], predicted: _Segments) -> None:
    if counts[:, -1].any():
        unknown = sorted(set(np.unique(ids).tolist()) - {0, *predicted.ids.tolist()})
        raise ValueError(
            f"PanopticQuality got a predicted map with ids {unknown[:5]} that no predicted segment has; list every id, "
            "and write void as 0."
        )
    areas = counts[:, 1:-1].sum(axis=0)
    if not areas.all():
        raise ValueError(
            f"PanopticQuality got predicted segments {predicted.ids[areas == 0].tolist()[:5]} without a pixel in the "
            "map; leave them out."
        )


def _mean(classes: list[ClassQuality]) -> MeanQuality | None:
    if not classes:
        return None
    sums = (sum(getattr(quality, name) for quality in classes) / len(classes) for name in ("pq", "sq", "rq"))
    return MeanQuality(*sums, num_classes=len(classes))
