"""Two models on the same images: how far their logits, maps and metrics are apart.

B is often the same weights in transformers' class. Each model sees the image through its own image processor.
H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.checkpoints.loading import resolve_checkpoint
from maskformer.data.dataset import SegmentationDataset
from maskformer.evaluation.evaluate import build_judge
from maskformer.evaluation.judge import Judge, PanopticJudge, class_map, panoptic_segments
from maskformer.evaluation.loop import Loop, Options
from maskformer.evaluation.panoptic_quality import PanopticQuality
from maskformer.evaluation.submission import AnnotationFile
from maskformer.inference import Segmenter
from maskformer.results import Segmentation, Task

PEER = "transformers:"


@dataclass(frozen=True, slots=True)
class Difference:
    """Of the logits of one name, over all images.

    Attributes:
        largest: of the absolute differences.
        mean: of the absolute differences.
        relative: the differences' norm over that of A's logits.
    """

    largest: float
    mean: float
    relative: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out.

    Attributes:
        metrics: of A and of B, by name, in percent.
        logits: by name; empty where the two have logits of different shapes.
        pixel_agreement: percent of the pixels to which both give the same class.
        map_agreement: panoptic quality of B's maps with A's as truth, in percent; None for other tasks.
        identical_maps: images whose class maps are the same at every pixel.
    """

    task: Task
    num_images: int
    metrics: dict[str, tuple[float | None, float | None]]
    logits: dict[str, Difference]
    pixel_agreement: float
    map_agreement: float | None
    identical_maps: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def load_for_comparison(name: str, task: Task | None = None, device: str | None = None) -> Segmenter:
    """The Segmenter of a checkpoint, in float32; "transformers:NAME" puts its weights into transformers' own class.

    Raises:
        ValueError: there is no such checkpoint, or transformers cannot hold it.
    """
    checkpoint = name.removeprefix(PEER)
    ours = Segmenter.from_pretrained(checkpoint, task, device, torch.float32)
    if checkpoint == name:
        return ours
    from transformers import MaskFormerForInstanceSegmentation

    try:
        peer = MaskFormerForInstanceSegmentation.from_pretrained(resolve_checkpoint(checkpoint))
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"transformers cannot load {checkpoint}: {error}") from error
    return Segmenter(peer, ours.image_processor, ours.task, ours.device, torch.float32)


def compare(
    a: Segmenter,
    b: Segmenter,
    dataset: SegmentationDataset,
    task: Task,
    options: Options | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare two models image by image; options as for `evaluate`.

    Raises:
        ValueError: class lists that do not match each other or the data.
    """
    options = replace(options or Options(), batch_size=1)  # so that the latest logits are those of the image
    annotations = AnnotationFile(dataset)
    judges = [build_judge(each, annotations, task, options) for each in (a, b)]
    loops = [Loop(each, task, options) for each in (a, b)]
    wanted = range(len(dataset))[: options.limit]
    agreement = _Agreement(judges)
    streams = [loop.results(dataset, wanted) for loop in loops]
    for number, ((index, one, sample), (_, other, _)) in enumerate(zip(*streams, strict=True), start=1):
        for judge, result in zip(judges, (one, other), strict=True):
            judge.count(judge.judge(result, sample, index))
        agreement.add(one, other, (loops[0].outputs, loops[1].outputs))
        if progress is not None:
            progress(number, len(wanted))
    ours, theirs = (judge.summary()[0] for judge in judges)
    return Comparison(
        task,
        len(wanted),
        {name: (ours[name], theirs[name]) for name in ours},
        agreement.differences(),
        100 * agreement.same / agreement.pixels,
        agreement.quality.result().all.pq if agreement.quality and agreement.quality.state.any() else None,
        agreement.identical,
    )


class _Agreement:
    """Sums over images of what two models differ in."""

    def __init__(self, judges: list[Judge]) -> None:
        self.tables = [judge.table for judge in judges]
        first = judges[0]
        self.quality = PanopticQuality(first.quality.categories) if isinstance(first, PanopticJudge) else None
        self.same = self.pixels = self.identical = 0
        # by name of the logits: largest and sum of the differences, sums of their squares and of A's, numbers
        self.logits: dict[str, NDArray[np.float64]] = {}

    def add(self, one: Segmentation, other: Segmentation, outputs: tuple[Any, Any]) -> None:
        same = class_map(one, self.tables[0], -1) == class_map(other, self.tables[1], -1)
        self.same += int(same.sum())
        self.pixels += same.size
        self.identical += bool(same.all())
        if self.quality is not None:
            truth, predicted = panoptic_segments(one, self.tables[0]), panoptic_segments(other, self.tables[1])
            self.quality.update(other.segmentation, predicted, one.segmentation, truth)
        for name in ("class_queries_logits", "masks_queries_logits", "logits"):
            ours, theirs = (getattr(each, name, None) for each in outputs)
            if ours is not None and theirs is not None and ours.shape == theirs.shape:
                apart = (ours.double() - theirs.double()).abs()
                sums = torch.stack([apart.sum(), apart.square().sum(), ours.double().square().sum()])
                held = self.logits.setdefault(name, np.zeros(5))
                held[0] = max(held[0], float(apart.max()))
                held[1:] += (*sums.tolist(), apart.numel())

    def differences(self) -> dict[str, Difference]:
        return {
            name: Difference(float(largest), float(total / count), float(np.sqrt(squares / max(norm, 1e-30))))
            for name, (largest, total, squares, norm, count) in self.logits.items()
        }
