"""Predictions of a data set, one image after the other, with the time that each stage took.

B batch, Q queries, C classes, h w stride-4 map.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.data.dataset import SegmentationDataset
from maskformer.data.sample import Sample
from maskformer.evaluation.average_precision import Backend
from maskformer.evaluation.protocol import ClockedProcessor, Protocol
from maskformer.evaluation.test_time_augmentation import AugmentedSegmenter
from maskformer.inference import Segmenter
from maskformer.results import Segmentation, Task
from maskformer.tiling import TiledSegmenter

STAGES = ("load", "forward", "post_processing", "metric")


@dataclass(frozen=True, slots=True)
class Options:
    """How to evaluate; the defaults are those of the library.

    Attributes:
        protocol: sizes and order of the steps; see `protocol.paper_protocol`.
        post_processing: thresholds, for `Segmenter.stream`. Instances are kept down to score 0 by default, as average
            precision wants them.
        batch_size: images of one padded size per forward pass, at most.
        tile: side of the tiles of larger images, None for no tiles; `tile_overlap` is what neighbours share at least,
            by default an eighth.
        augment: average semantic scores over the protocol's sizes and mirrored images.
        limit: only that many images, the first ones.
        by_order: the model's classes are the data's in the same order, whatever their names.
        backend: whose code computes average precision; `boundary` adds it by boundary IoU.
        directory: where to keep what has been counted, so that `resume` can go on from it; None: nowhere.
        submission: write the benchmark's submission files into the directory.
    """

    protocol: Protocol = field(default_factory=Protocol)
    post_processing: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 4
    tile: int | None = None
    tile_overlap: int | None = None
    augment: bool = False
    limit: int | None = None
    by_order: bool = False
    backend: Backend = "pycocotools"
    boundary: bool = False
    directory: Path | None = None
    resume: bool = False
    submission: bool = False


class Loop:
    """A model on the images of a data set.

    Attributes:
        entropy: sum over the queries seen of the entropy of their classes (1 = every class alike), and their number.
        outputs: of the latest forward pass.
    """

    def __init__(self, segmenter: Segmenter, task: Task, options: Options) -> None:
        if options.augment and options.tile is not None:
            raise ValueError("test-time augmentation and tiles exclude each other: choose one")
        protocol = options.protocol
        steps = () if protocol.edges is None else (protocol.edges,)
        clocked = ClockedProcessor.like(segmenter.image_processor, protocol.pad_divisor, *steps)
        self.predictor: Any = Segmenter(segmenter.model, clocked, task)
        self._processors = [clocked]
        if options.augment:
            self.predictor = AugmentedSegmenter(self.predictor, protocol)
            self._processors = self.predictor.processors
        elif options.tile is not None:
            self.predictor = TiledSegmenter(self.predictor, options.tile, options.tile_overlap)
        self.model, self.task = segmenter.model, task
        self.stream_options = {"batch_size": options.batch_size, **({"threshold": 0.0} if task == "instance" else {})}
        self.stream_options |= protocol.post_processing | dict(options.post_processing)
        self.entropy = np.zeros(2)
        self.outputs: Any = None
        self._clocks = {"read": 0.0, "stream": 0.0, "forward": 0.0}
        self._last = np.zeros(3)

    def results(
        self, dataset: SegmentationDataset, indices: Sequence[int]
    ) -> Iterator[tuple[int, Segmentation, Sample]]:
        """(index, prediction, sample) of each image."""
        waiting: deque[tuple[int, Sample]] = deque()

        def pictures() -> Iterator[NDArray[np.uint8]]:
            for index in indices:
                start = time.perf_counter()
                waiting.append((index, dataset[index]))
                self._clocks["read"] += time.perf_counter() - start
                yield waiting[-1][1].image

        hooks = [self.model.register_forward_pre_hook(self._begin), self.model.register_forward_hook(self._end)]
        try:
            stream = self.predictor.stream(pictures(), self.task, **self.stream_options)
            while True:
                start = time.perf_counter()
                result = next(stream, None)
                self._clocks["stream"] += time.perf_counter() - start
                if result is None:
                    return
                index, sample = waiting.popleft()
                yield index, result, sample
        finally:
            for hook in hooks:
                hook.remove()

    def lap(self) -> dict[str, float]:
        """Seconds in each stage before the metric since the last call."""
        load = self._clocks["read"] + sum(processor.seconds for processor in self._processors)
        forward = self._clocks["forward"]
        now = np.array([load, forward, self._clocks["stream"] - load - forward])
        spent, self._last = now - self._last, now
        return dict(zip(STAGES[:3], spent.tolist(), strict=True))

    def _begin(self, *_: Any) -> None:
        self.outputs = None  # not beside the next ones
        self._clocks["forward"] -= _now()

    def _end(self, _model: Any, _inputs: Any, outputs: Any) -> None:
        self._clocks["forward"] += _now()
        self.outputs = outputs
        logits = getattr(outputs, "class_queries_logits", None)  # [B, Q, C + 1]
        if logits is None:
            logits = outputs.logits[..., ::8, ::8].movedim(1, -1)  # [B, h / 8, w / 8, C]
        log_probs = logits.float().log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1) / np.log(logits.shape[-1])
        self.entropy += (float(entropy.sum()), entropy.numel())


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # kernels run on after the call that starts them
    return time.perf_counter()
