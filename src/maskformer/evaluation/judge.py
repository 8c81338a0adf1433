"""From one image's prediction and truth to integers that are summed: one judge per task (paper section 4.1).

    judge(...)   the record of one image, which JSON can hold; nothing is counted. Its `score` (0 to 100, or None) tells
                 how well the image went
    count(...)   adds a record to `counts` (integers, by name) or to `records` (what cannot be summed)
    confusion    pixels by (true, predicted) class, [C, C], or [C + 1, C + 1] with "nothing" as the last class
    summary()    the numbers of the whole in percent, the most important one first, and a row for each class in the data

What is counted is a sum of integers, or a union of records, so neither the order of the images nor the number of
processes changes a digit. C classes, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.data.sample import Region, Sample, expand
from maskformer.evaluation.average_precision import AveragePrecision, Backend
from maskformer.evaluation.miou import MeanIoU
from maskformer.evaluation.panoptic_quality import PanopticQuality
from maskformer.evaluation.submission import AnnotationFile
from maskformer.processing.masks import encode_run_lengths
from maskformer.results import Segmentation

Record = dict[str, Any]
Counts = dict[str, NDArray[np.int64]]
Metrics = dict[str, float | None]
Row = dict[str, Any]  # of the table of classes: id, name and the numbers

_IGNORED = -1


class SemanticJudge:
    """Mean IoU and its relatives. `table` is the data's label id of each of the model's."""

    def __init__(self, names: Sequence[str], table: NDArray[np.int64]) -> None:
        self.names, self.table = names, table
        self.iou = MeanIoU(len(names), _IGNORED)
        self.records: list[Record] = []

    def judge(self, result: Segmentation, sample: Sample, index: int) -> Record:
        one = MeanIoU(len(self.names), _IGNORED)
        one.update(self.table[result.segmentation], sample.class_map(_IGNORED))
        score = round(one.result().mean_iou, 4) if one.confusion.any() else None
        return {"score": score, "confusion": _sparse(one.confusion)}

    def count(self, record: Record) -> None:
        _add(self.iou.confusion, record["confusion"])

    @property
    def counts(self) -> Counts:
        return {"confusion": self.iou.confusion}

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        return self.iou.confusion

    def summary(self) -> tuple[Metrics, list[Row]]:
        result, true, predicted = self.iou.result(), self.iou.confusion.sum(1), self.iou.confusion.sum(0)
        rows = [
            {"id": label, "name": self.names[label], "IoU": iou, "ACC": result.accuracy[label]}
            | {"pixels": int(true[label]), "predicted": int(predicted[label])}
            for label, iou in result.iou.items()
        ]
        means = (result.mean_iou, result.frequency_weighted_iou, result.mean_accuracy, result.pixel_accuracy)
        return dict(zip(("mIoU", "fwIoU", "mACC", "pACC"), means, strict=True)), rows


class PanopticJudge:
    """Panoptic quality, and the confusion of classes by pixels. `isthing` is by label id of the data."""

    def __init__(self, names: Sequence[str], table: NDArray[np.int64], isthing: Sequence[bool]) -> None:
        self.names, self.table = names, table
        self.categories = [
            {"id": label, "name": name, "isthing": thing}
            for label, (name, thing) in enumerate(zip(names, isthing, strict=True))
        ]
        self.quality = PanopticQuality(self.categories)
        self.pixels = MeanIoU(len(names) + 1, _IGNORED)
        self.records: list[Record] = []

    def judge(self, result: Segmentation, sample: Sample, index: int) -> Record:
        segments = [{"id": each.id, "category_id": int(self.table[each.label_id])} for each in result.segments]
        ids, truth = panoptic_truth(sample)
        one, pixels = PanopticQuality(self.categories), MeanIoU(len(self.names) + 1, _IGNORED)
        one.update(result.segmentation, segments, ids, truth)
        classes = np.full(max((each["id"] for each in segments), default=0) + 1, len(self.names), np.int32)
        classes[[each["id"] for each in segments]] = [each["category_id"] for each in segments]
        pixels.update(classes[result.segmentation], sample.class_map(_IGNORED))
        score = round(one.result().all.pq, 4) if one.state.any() else None
        return {"score": score, "quality": _sparse(one.state), "pixels": _sparse(pixels.confusion)}

    def count(self, record: Record) -> None:
        _add(self.quality.state, record["quality"])
        _add(self.pixels.confusion, record["pixels"])

    @property
    def counts(self) -> Counts:
        return {"quality": self.quality.state, "pixels": self.pixels.confusion}

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        return self.pixels.confusion

    def summary(self) -> tuple[Metrics, list[Row]]:
        result = self.quality.result()
        means = {"": result.all, "_th": result.things, "_st": result.stuff}
        metrics: Metrics = {
            f"{name.upper()}{suffix}": None if mean is None else getattr(mean, name)
            for suffix, mean in means.items()
            for name in ("pq", "sq", "rq")
        }
        rows = [
            {"id": label, "name": each.name, "isthing": each.isthing, "PQ": each.pq, "SQ": each.sq, "RQ": each.rq}
            | {"TP": each.true_positives, "FP": each.false_positives, "FN": each.false_negatives}
            | {"predicted": each.true_positives + each.false_positives}
            for label, each in result.per_class.items()
        ]
        return metrics, rows


class InstanceJudge:
    """Average precision of masks, by mask IoU and, if asked for, by boundary IoU."""

    def __init__(
        self, annotations: AnnotationFile, table: NDArray[np.int64], backend: Backend, boundary: bool = False
    ) -> None:
        entries = annotations.dataset.categories
        names, isthing = [entry.name for entry in entries], [entry.isthing for entry in entries]
        self.annotations, self.names, self.table, self.isthing = annotations, names, table, isthing
        categories = [{"id": label, "name": name} for label, name in enumerate(names) if isthing[label]]
        self.precision = AveragePrecision(categories, backend)
        self.boundary = AveragePrecision(categories, boundary=True) if boundary else None
        self.records: list[Record] = []

    def judge(self, result: Segmentation, sample: Sample, index: int) -> Record:
        detections = [
            (int(self.table[each.label_id]), each.score, each.rle())
            for each in result.segments
            if self.isthing[self.table[each.label_id]]
        ]
        truth = [
            (region.label_id, encode_run_lengths(torch.from_numpy(mask)), area, region.iscrowd)
            for region, mask, area in instance_truth(sample, self.annotations.region_areas(index, sample.areas()))
        ]
        one = AveragePrecision(self.precision.categories, self.precision.backend)
        image_id = self.annotations.ids[index] if self.annotations.ids else index
        record = one.update(image_id, sample.size, detections, truth)
        return {"score": _instance_score(record), "instances": record}

    def count(self, record: Record) -> None:
        self.records.append(record["instances"])

    @property
    def counts(self) -> Counts:
        return {}

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        return None

    def summary(self) -> tuple[Metrics, list[Row]]:
        self.precision.records = self.records
        result = self.precision.result()
        metrics = dict(result.numbers)
        if self.boundary is not None:
            self.boundary.records = self.records
            metrics |= {f"boundary_{name}": value for name, value in self.boundary.result().numbers.items()}
        found = np.bincount([each[0] for record in self.records for each in record["detections"]], minlength=1)
        rows = [
            {"id": label, "name": self.names[label], **numbers, "predicted": int(found[label : label + 1].sum())}
            for label, numbers in result.per_class.items()
        ]
        return metrics, rows


Judge: TypeAlias = SemanticJudge | PanopticJudge | InstanceJudge


def panoptic_truth(sample: Sample) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Ids [H, W] and segments as `PanopticQuality` wants them.

    Ignored pixels are void. Background, which some formats have and COCO's has not, is neither void nor a segment:
    what is predicted there is wrong.
    """
    flat = sample.flattened()
    counted = [region.label_id >= 0 for region in flat.regions]
    ids = np.array([len(counted) + 1, *(place if kept else 0 for place, kept in enumerate(counted, 1))], np.int32)
    segments = [
        {"id": place, "category_id": region.label_id, "iscrowd": int(region.iscrowd)}
        for place, region in enumerate(flat.regions, 1)
        if region.label_id >= 0
    ]
    return ids[flat.planes[0]], segments


def instance_truth(sample: Sample, areas: Sequence[float]) -> Iterator[tuple[Region, NDArray[np.bool_], float]]:
    """The countable regions with their masks [H, W] and areas, one at a time."""
    for place, (region, area) in enumerate(zip(sample.regions, areas, strict=True)):
        if region.isthing and region.label_id >= 0:
            yield region, expand(sample.planes, place, sample.overlapping), area


def _instance_score(record: Record) -> float | None:
    """How well one image went: the IoU of the best detection of each instance, over the mean of both numbers."""
    from pycocotools import mask

    truth = [each for each in record["truth"] if not each[3]]
    found = [each for each in record["detections"] if each[1] >= 0.5]
    if not truth and not found:
        return None
    total = 0.0
    ours: Any
    theirs: Any
    for category in {each[0] for each in truth}:
        ours, theirs = (  # their types know bytes only
            [{"size": record["size"], "counts": each[place]} for each in entries if each[0] == category]
            for entries, place in ((found, 2), (truth, 1))
        )
        if ours:
            total += float(np.max(mask.iou(ours, theirs, [0] * len(theirs)), axis=0).sum())
    return round(200 * total / (len(truth) + len(found)), 4)


def _sparse(counts: NDArray[np.int64]) -> list[list[int]]:
    """Where the numbers other than zero are, and what they are."""
    places = np.flatnonzero(counts)
    return [places.tolist(), counts.ravel()[places].tolist()]


def _add(counts: NDArray[np.int64], sparse: list[list[int]]) -> None:
    counts.reshape(-1)[sparse[0]] += np.array(sparse[1], np.int64)
