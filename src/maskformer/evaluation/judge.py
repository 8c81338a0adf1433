"""From one image's prediction and truth to integers that are summed: one judge per task (paper section 4.1).

What is counted is a sum of integers, or a union of records, so neither the order of the images nor the number of
processes changes a digit. C classes, H W image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.data.classes import Category
from maskformer.data.sample import IGNORED, Sample, expand
from maskformer.evaluation.average_precision import AveragePrecision, Backend
from maskformer.evaluation.miou import MeanIoU
from maskformer.evaluation.panoptic_quality import PanopticQuality
from maskformer.evaluation.submission import AnnotationFile
from maskformer.processing.masks import RunLengths, encode_run_lengths
from maskformer.results import Segmentation

Record = dict[str, Any]
Metrics = dict[str, float | None]
Row = dict[str, Any]  # of the table of classes: id, name and the numbers


class Judge(ABC):
    """What the three have in common.

    Args:
        categories: the C classes of the data, by label id.
        table: int64: the data's label id of each of the model's.

    Attributes:
        counts: integers by name, which are added up over images and processes.
        records: of the images, where they cannot be summed.
        confusion: pixels by (true, predicted) class, [C, C], or [C + 1, C + 1] with "nothing" as the last class.
    """

    def __init__(self, categories: Sequence[Category], table: NDArray[np.int64]) -> None:
        self.table = table
        self.names = [category.name for category in categories]
        self.isthing = [category.isthing for category in categories]
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.records: list[Record] = []
        self.confusion: NDArray[np.int64] | None = None

    @abstractmethod
    def judge(self, result: Segmentation, sample: Sample, index: int) -> Record:
        """The record of one image, which JSON can hold; nothing is counted.

        Its `score` (0 to 100, or None) tells how well the image went.
        """

    def count(self, record: Record) -> None:
        """Add the record of an image."""
        for name, counts in self.counts.items():
            places, numbers = record[name]
            counts.reshape(-1)[places] += np.array(numbers, np.int64)

    @abstractmethod
    def summary(self) -> tuple[Metrics, list[Row]]:
        """The whole in percent, the most important number first, and a row for each class in the data."""


class SemanticJudge(Judge):
    """Mean IoU and its relatives."""

    def __init__(self, categories: Sequence[Category], table: NDArray[np.int64]) -> None:
        super().__init__(categories, table)
        self.iou = MeanIoU(len(categories), IGNORED)
        self.confusion = self.iou.confusion
        self.counts = {"confusion": self.iou.confusion}

    def judge(self, result: Segmentation, sample: Sample, index: int) -> Record:
        one = MeanIoU(len(self.names), IGNORED)
        one.update(class_map(result, self.table, IGNORED), sample.class_map(IGNORED))
        score = round(one.result().mean_iou, 4) if one.confusion.any() else None
        return {"score": score, "confusion": _sparse(one.confusion)}

    def summary(self) -> tuple[Metrics, list[Row]]:
        result, true, predicted = self.iou.result(), self.iou.confusion.sum(1), self.iou.confusion.sum(0)
        rows = [
            {"id": label, "name": self.names[label], "IoU": iou, "ACC": result.accuracy[label]}
            | {"pixels": int(true[label]), "predicted": int(predicted[label])}
            for label, iou in result.iou.items()
        ]
        means = (result.mean_iou, result.frequency_weighted_iou, result.mean_accuracy, result.pixel_accuracy)
        return dict(zip(("mIoU", "fwIoU", "mACC", "pACC"), means, strict=True)), rows


class PanopticJudge(Judge):
    """Panoptic quality, and the confusion of classes by pixels."""

    def __init__(self, categories: Sequence[Category], table: NDArray[np.int64]) -> None:
        super().__init__(categories, table)
        self.quality = PanopticQuality(
            [{"id": label, "name": each.name, "isthing": each.isthing} for label, each in enumerate(categories)]
        )
        self.confusion = np.zeros((len(categories) + 1, len(categories) + 1), np.int64)
        self.counts = {"quality": self.quality.state, "pixels": self.confusion}

    def judge(self, result: Segmentation, sample: Sample, index: int) -> Record:
        one, pixels = PanopticQuality(self.quality.categories), MeanIoU(len(self.names) + 1, IGNORED)
        one.update(result.segmentation, panoptic_segments(result, self.table), *panoptic_truth(sample))
        pixels.update(class_map(result, self.table, len(self.names)), sample.class_map(IGNORED))
        score = round(one.result().all.pq, 4) if one.state.any() else None
        return {"score": score, "quality": _sparse(one.state), "pixels": _sparse(pixels.confusion)}

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


class InstanceJudge(Judge):
    """Average precision of masks, by mask IoU and, if asked for, by boundary IoU."""

    def __init__(
        self, annotations: AnnotationFile, table: NDArray[np.int64], backend: Backend, boundary: bool = False
    ) -> None:
        super().__init__(annotations.dataset.categories, table)
        self.annotations = annotations
        things = [{"id": label, "name": name} for label, name in enumerate(self.names) if self.isthing[label]]
        self.precision = AveragePrecision(things, backend)
        self.boundary = AveragePrecision(things, boundary=True) if boundary else None

    def judge(self, result: Segmentation, sample: Sample, index: int) -> Record:
        detections = [
            (int(self.table[each.label_id]), each.score, each.rle())
            for each in result.segments
            if self.isthing[self.table[each.label_id]]
        ]
        truth: list[tuple[int, RunLengths, float, bool]] = []
        areas = self.annotations.region_areas(index, sample.areas())
        for place, (region, area) in enumerate(zip(sample.regions, areas, strict=True)):
            if region.isthing and region.label_id >= 0:
                mask = expand(sample.planes, place, sample.overlapping)
                truth.append((region.label_id, encode_run_lengths(torch.from_numpy(mask)), area, region.iscrowd))
        one = AveragePrecision(self.precision.categories, self.precision.backend)
        image_id = self.annotations.image_id(index) if self.annotations.is_coco else index
        record = one.update(image_id, sample.size, detections, truth)
        return {"score": _instance_score(record), "instances": record}

    def count(self, record: Record) -> None:
        self.records.append(record["instances"])

    def summary(self) -> tuple[Metrics, list[Row]]:
        self.precision.records = self.records
        result = self.precision.result()
        metrics = dict(result.numbers)
        if self.boundary is not None:
            self.boundary.records = self.records
            metrics |= {f"boundary_{name}": value for name, value in self.boundary.result().numbers.items()}
        found = Counter(each[0] for record in self.records for each in record["detections"])
        rows = [
            {"id": label, "name": self.names[label], **numbers, "predicted": found[label]}
            for label, numbers in result.per_class.items()
        ]
        return metrics, rows


def class_map(result: Segmentation, table: NDArray[np.int64], nothing: int) -> NDArray[np.int64]:
    """[H, W]: the data's label id of each pixel, `nothing` where no segment is."""
    if result.task == "semantic":
        return table[result.segmentation]
    labels = np.full(max((each.id for each in result.segments), default=0) + 2, nothing)  # void is 0, or -1: the last
    labels[[each.id for each in result.segments]] = [table[each.label_id] for each in result.segments]
    return labels[result.segmentation]


def panoptic_segments(result: Segmentation, table: NDArray[np.int64]) -> list[dict[str, int]]:
    """The segments of a prediction as `PanopticQuality` wants them, with the data's label ids."""
    return [{"id": each.id, "category_id": int(table[each.label_id])} for each in result.segments]


def panoptic_truth(sample: Sample) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Ids [H, W] and segments as `PanopticQuality` wants them.

    Ignored pixels are void. Background, which some formats have and COCO's has not, is neither void nor a segment:
    what is predicted there is wrong.
    """
    flat = sample.flattened()
    places = [place if region.label_id >= 0 else 0 for place, region in enumerate(flat.regions, 1)]
    ids = np.array([len(places) + 1, *places], np.int32)
    segments = [
        {"id": place, "category_id": region.label_id, "iscrowd": int(region.iscrowd)}
        for place, region in zip(places, flat.regions, strict=True)
        if place
    ]
    return ids[flat.planes[0]], segments


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
