"""An exported file against its network: three sizes, one picture and three, drawn scenes. H W picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskformer.checkpoints.exported import ExportedNetwork
from maskformer.data.scenes import draw_scene
from maskformer.inference import Segmenter

SIZES = ((192, 256), (256, 192), (203, 301))
BATCHES = (1, 3)


@dataclass(frozen=True)
class Comparison:
    """One batch through both."""

    size: tuple[int, int]
    batch: int
    difference: float
    """The largest of the logits, relative to the largest logit; of maps, the share of pixels in another segment."""
    seconds: float
    eager_seconds: float


@torch.inference_mode()
def compare(exported: ExportedNetwork, source: Segmenter) -> Iterator[Comparison]:
    """Each size and batch in turn, against the model of `source`, and its post-processor for maps."""

    def eager(pixel_values: Tensor) -> Any:
        outputs = source.model(pixel_values=pixel_values)
        return outputs if exported.graph_task is None else list(_maps(outputs, source, exported.graph_task, size))

    for size in SIZES:
        pictures = torch.stack([_picture(seed, size, source) for seed in range(max(BATCHES))])
        exported(pictures[:1])  # the first run of a size finds memory and kernels for it
        for batch in BATCHES:
            expected, eager_seconds = _timed(eager, pictures[:batch])
            outputs, seconds = _timed(exported, pictures[:batch])
            if exported.graph_task is None:
                each = [_difference(getattr(expected, name), value) for name, value in vars(outputs).items()]
                found = float(np.max(each))  # numpy's: NaN counts as the largest
            else:
                found = 1 - sum(_agreement(index, each, outputs) for index, each in enumerate(expected)) / batch
            yield Comparison(size, batch, found, seconds, eager_seconds)


def _difference(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).abs().max() / expected.abs().max())


def _maps(logits: Any, source: Segmenter, task: str, size: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each picture's map [H, W] by the post-processor, and the label of each of its values."""
    batch, processor = len(logits[0]), source.image_processor
    where: dict[str, Any] = {"target_sizes": [size] * batch, "pixel_mask": torch.ones(batch, *size)}
    if task == "semantic":
        maps: Any = processor.post_process_semantic_segmentation(logits, **where)
        yield from ((each.numpy(), np.arange(int(each.max()) + 1)) for each in maps)
        return
    for result in processor.post_process_panoptic_segmentation(logits, label_ids_to_fuse=source.stuff_ids, **where):
        labels = [-1, *(info["label_id"] for info in result["segments_info"])]
        yield result["segmentation"].numpy(), np.array(labels)


def _agreement(index: int, expected: tuple[np.ndarray, np.ndarray], outputs: Any) -> float:
    found, found_labels = outputs.segmentation[index].numpy(), np.arange(int(outputs.segmentation.max()) + 1)
    if hasattr(outputs, "segment_labels"):
        found_labels = np.append(-1, outputs.segment_labels[index].numpy())
    return map_agreement(*expected, found, found_labels)


def map_agreement(
    expected: np.ndarray, expected_labels: np.ndarray, found: np.ndarray, found_labels: np.ndarray
) -> float:
    """Share of the pixels [H, W] with the same segment, whatever its number.

    Each segment counts with the one of its label that covers most of it; the labels are indexed by the maps' values.
    """
    pairs, counts = np.unique(expected.astype(np.int64) * len(found_labels) + found, return_counts=True)
    most: dict[int, int] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        wanted, given = divmod(pair, len(found_labels))
        if expected_labels[wanted] == found_labels[given]:
            most[wanted] = max(most.get(wanted, 0), count)
    return sum(most.values()) / expected.size


def _picture(seed: int, size: tuple[int, int], source: Segmenter) -> Tensor:
    """A drawn scene [3, H, W], normalised as the checkpoint wants it but of exactly this size."""
    if source.num_channels != 3:
        return torch.randn(source.num_channels, *size, generator=torch.Generator().manual_seed(seed))
    scene = draw_scene(seed, size).image
    return source.image_processor(scene, return_tensors="pt", do_resize=False, do_pad=False)["pixel_values"][0]


def _timed(run: Callable[..., Any], pixel_values: Tensor) -> tuple[Any, float]:
    start = time.perf_counter()
    outputs = run(pixel_values)
    return outputs, time.perf_counter() - start
