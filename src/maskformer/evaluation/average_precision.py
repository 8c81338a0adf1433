"""Average precision of masks with the official code: pycocotools, or faster-coco-eval for the same numbers sooner.

Images come one at a time and are kept as COCO's compressed run lengths until the official code ranks the detections
of all images at once. T true instances, D detections, C categories, H W image.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maskformer.results import compressed_runs

Backend = Literal["pycocotools", "faster-coco-eval"]
Record = dict[str, Any]

# The official order of the twelve numbers.
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
         "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")  # fmt: skip


@dataclass(frozen=True, slots=True)
class AveragePrecisionResult:
    """In percent, by name; None where no instance of that size exists (the official code prints -1).

    `per_class` holds AP and AP50 by category id, for the categories with instances.
    """

    numbers: dict[str, float | None]
    per_class: dict[int, dict[str, float]]


class AveragePrecision:
    """Collects detections and truth image by image; the union of several processes' records is that of their images.

    Source: arXiv 1405.0312, section 5; docs/evaluation.md.

    Args:
        categories: dicts with `id` and `name`.
        backend: whose code computes. Both give the same numbers.
        boundary: rank by boundary IoU (Cheng et al., arXiv 2103.16562) instead of mask IoU; faster-coco-eval only.

    Raises:
        ImportError: the backend is not installed.

    Examples:
        >>> metric = AveragePrecision([{"id": 1, "name": "cat"}])
        >>> runs = {"size": [4, 4], "counts": [0, 8, 8]}  # the left half
        >>> _ = metric.update(1, (4, 4), [(1, 0.9, runs)], [(1, runs, 8.0, False)])
        >>> round(metric.result().numbers["AP"])  # percent
        100
    """

    def __init__(
        self, categories: Sequence[Mapping[str, Any]], backend: Backend = "pycocotools", boundary: bool = False
    ) -> None:
        self.categories = [{"id": int(entry["id"]), "name": str(entry["name"])} for entry in categories]
        self.backend: Backend = "faster-coco-eval" if boundary else backend
        self.boundary = boundary
        self.records: list[Record] = []
        _official(self.backend)

    def update(
        self,
        image_id: int | str,
        size: tuple[int, int],
        detections: Sequence[tuple[int, float, Mapping[str, Any]]],
        truth: Sequence[tuple[int, Mapping[str, Any], float, bool]],
    ) -> Record:
        """Add one image and return what is kept of it, which JSON can hold.

        Args:
            image_id: detections of equal score rank in the order of these, as officially.
            size: (H, W).
            detections: (category id, score, COCO run lengths, compressed or not) each.
            truth: (category id, run lengths, area, whether it is a crowd) each; the area decides on small, medium and
                large and is that of the annotation file.

        Raises:
            ValueError: a category that is not among the given ones.
        """
        known = {entry["id"] for entry in self.categories}
        for category in [each[0] for each in detections] + [each[0] for each in truth]:
            if category not in known:
                raise ValueError(f"image {image_id} has category {category}, expected one of {sorted(known)}")
        record: Record = {
            "image_id": image_id,
            "size": list(size),
            "detections": [[category, score, compressed_runs(runs)["counts"]] for category, score, runs in detections],
            "truth": [
                [category, compressed_runs(runs)["counts"], area, int(crowd)] for category, runs, area, crowd in truth
            ],
        }
        self.records.append(record)
        return record

    def result(self) -> AveragePrecisionResult:
        """The twelve numbers, and per class, over all images so far.

        Raises:
            ValueError: no image, or an image twice.
        """
        ids = [record["image_id"] for record in self.records]
        if not ids or len(set(ids)) < len(ids):
            raise ValueError(f"average precision got {len(ids)} images with {len(set(ids))} ids, expected each once")
        # Numbers come before names.
        ranked = sorted(self.records, key=lambda record: (isinstance(record["image_id"], str), record["image_id"]))
        evaluation = self._evaluated(ranked)
        numbers = [None if value < 0 else 100 * float(value) for value in evaluation.stats[: len(NAMES)]]
        precision: NDArray[np.float64] = evaluation.eval["precision"]  # [IoUs, recalls, C, areas, limits]
        per_class: dict[int, dict[str, float]] = {}
        for place, number in enumerate(evaluation.params.catIds):
            of_class = precision[:, :, place, 0, -1]  # [IoUs, recalls], -1 without any truth
            if of_class.max() > -1:
                per_class[int(number)] = {"AP": 100 * _mean(of_class), "AP50": 100 * _mean(of_class[0])}
        return AveragePrecisionResult(dict(zip(NAMES, numbers, strict=True)), per_class)

    def _evaluated(self, records: list[Record]) -> Any:
        truths: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        images: list[dict[str, Any]] = []
        for number, record in enumerate(records, start=1):
            height, width = record["size"]
            images.append({"id": number, "height": height, "width": width})
            for category, counts, area, crowd in record["truth"]:
                runs = {"size": [height, width], "counts": counts}
                entry = {"id": len(truths) + 1, "image_id": number, "category_id": category, "segmentation": runs}
                truths.append({**entry, "area": area, "iscrowd": crowd, "bbox": [0, 0, 0, 0]})
            for category, score, counts in record["detections"]:
                runs = {"size": [height, width], "counts": counts}
                found.append({"image_id": number, "category_id": category, "segmentation": runs, "score": score})
        data = {"info": {}, "images": images, "categories": self.categories, "annotations": truths}
        coco, evaluator = _official(self.backend)
        with contextlib.redirect_stdout(io.StringIO()):  # the official code talks
            true = coco()
            true.dataset = data
            true.createIndex()
            predicted = true.loadRes(found) if found else coco()  # loadRes looks at the first one
            evaluation = evaluator(true, predicted, "boundary" if self.boundary else "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation


def _official(backend: Backend) -> tuple[Any, Any]:
    """The official annotation and evaluation classes."""
    try:
        if backend == "faster-coco-eval":
            from faster_coco_eval import COCO, COCOeval_faster

            return COCO, COCOeval_faster
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(f"average precision needs {backend}: pip install 'maskformer[eval]'") from error
    return COCO, COCOeval


def _mean(precision: NDArray[np.float64]) -> float:
    return float(precision[precision > -1].mean())
