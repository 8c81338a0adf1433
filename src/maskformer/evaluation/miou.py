"""Mean intersection over union and its relatives, from a confusion matrix that is summed image by image.

The numbers of semantic segmentation as the paper reports them (section 4.1, mIoU) and as detectron2, the authors'
framework, counts them: a class counts where the truth has it; pixels of the truth to ignore count nowhere.
C classes, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class MeanIoUResult:
    """All in percent. `iou` and `accuracy` are by class id and hold the classes with pixels in the truth only."""

    mean_iou: float
    frequency_weighted_iou: float  # classes weighted by their pixels in the truth
    mean_accuracy: float
    pixel_accuracy: float
    iou: dict[int, float]
    accuracy: dict[int, float]


class MeanIoU:
    """Counts pixels by (true class, predicted class).

    `confusion` int64 [C, C] (rows: truth) is the whole state: the sum of the matrices of several processes is the
    matrix of all their images, exactly.

    Source: arXiv 2107.06278, section 4.1 (evaluation metrics).

    Examples:
        >>> metric = MeanIoU(num_classes=2)
        >>> metric.update(np.array([[0, 1]]), np.array([[0, 255]]))  # 255 is ignored
        >>> metric.result().mean_iou  # percent
        100.0
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"MeanIoU got num_classes={num_classes}, expected at least 1.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.confusion: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: ArrayLike, truth: ArrayLike) -> None:
        """Add one image, or several of one size: integer class maps of the same shape, [H, W] or any other.

        Raises:
            ValueError: for maps of different shapes or without integers, for a predicted class outside of 0 to
                C - 1, and for a true class outside of it that is not `ignore_index`.
        """
        predicted, true = np.asarray(prediction), np.asarray(truth)
        if predicted.shape != true.shape:
            raise ValueError(
                f"MeanIoU got a prediction of shape {predicted.shape} for a truth of shape {true.shape}, expected the "
                "same; post-process with target_sizes=[(height, width)] of the truth."
            )
        valid = true != self.ignore_index
        self._check("predicted", predicted)
        self._check("true", true[valid])
        pairs = true[valid].astype(np.int64) * self.num_classes + predicted[valid].astype(np.int64)
        counts = np.bincount(pairs, minlength=self.num_classes**2)
        self.confusion += counts.reshape(self.num_classes, self.num_classes)  # [C, C]

    def result(self) -> MeanIoUResult:
        """The metrics over all images so far.

        Raises:
            ValueError: if no pixel of any class has been seen.
        """
        hits = self.confusion.diagonal()
        true, predicted = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        classes = np.flatnonzero(true)
        if not classes.size:
            raise ValueError(
                "MeanIoU has seen no pixel that is not ignored; call update with at least one labelled image, and "
                f"check ignore_index ({self.ignore_index})."
            )
        iou = 100 * hits[classes] / (true + predicted - hits)[classes]
        accuracy = 100 * hits[classes] / true[classes]
        return MeanIoUResult(
            mean_iou=float(iou.mean()),
            frequency_weighted_iou=float((iou * true[classes]).sum() / true.sum()),
            mean_accuracy=float(accuracy.mean()),
            pixel_accuracy=float(100 * hits.sum() / true.sum()),
            iou=dict(zip(classes.tolist(), iou.tolist(), strict=True)),
            accuracy=dict(zip(classes.tolist(), accuracy.tolist(), strict=True)),
        )

    def _check(self, which: str, classes: NDArray[np.generic]) -> None:
        if not np.issubdtype(classes.dtype, np.integer):
            raise ValueError(f"MeanIoU got {which} classes of {classes.dtype}, expected integers; take the argmax.")
        if classes.size and (int(classes.min()) < 0 or int(classes.max()) >= self.num_classes):
            raise ValueError(
                f"MeanIoU got {which} classes from {classes.min()} to {classes.max()}, expected 0 to "
                f"{self.num_classes - 1}; check num_classes, and ignore_index ({self.ignore_index}) for the truth."
            )
