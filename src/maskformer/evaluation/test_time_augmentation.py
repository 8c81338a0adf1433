"""Semantic maps from several sizes and the mirrored image ("multi-scale + flip", paper section 4.1 and table 1).

As in the authors' code: the image at test size is resized to each size, and mirrored; the class scores of every
version, at the image's own size, are averaged. B batch, Q queries, C K classes, H W image, h w stride-4 map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskformer.evaluation.protocol import ClockedProcessor, Protocol
from maskformer.inference import Segmenter
from maskformer.processing.loading import read_image
from maskformer.processing.placement import strongest_plane
from maskformer.processing.postprocessing import semantic_segmentation
from maskformer.results import Segmentation, segments_of_map

# Scores held at once, of all classes of a group at the image's size: 256 MiB, twice.
_SCORES_AT_ONCE = 2**26


class AugmentedSegmenter:
    """Segments each image once per size and mirror image; semantic maps only, as the authors.

    Args:
        segmenter: whose model is used.
        protocol: has the sizes.

    Raises:
        ValueError: a protocol without sizes.
    """

    def __init__(self, segmenter: Segmenter, protocol: Protocol) -> None:
        if not protocol.augmented_edges or protocol.edges is None:
            raise ValueError("test-time augmentation needs the published sizes: use the paper's protocol")
        self.segmenter, self.flip = segmenter, protocol.flip
        self.processors = [
            ClockedProcessor.like(segmenter.image_processor, protocol.pad_divisor, protocol.edges, edges)
            for edges in protocol.augmented_edges
        ]

    def stream(
        self, images: Iterable[Any], task: Any = "semantic", *, batch_size: int = 1, protocol: Any = "paper"
    ) -> Iterator[Segmentation]:
        """As `Segmenter.stream`, image by image.

        Raises:
            ValueError: another task.
        """
        if task != "semantic":
            raise ValueError(f"test-time augmentation averages semantic scores, as the authors do; got task {task!r}")
        segmenter = self.segmenter
        for number, image in enumerate(images):
            picture = read_image(image, segmenter.num_channels, None, f"image {number}")
            size = (int(picture.shape[-2]), int(picture.shape[-1]))
            versions = list(self._versions(picture))
            winner = strongest_plane(self._score_groups(versions, size, protocol))
            segmentation = winner.to(torch.int32).cpu().numpy()
            present = np.flatnonzero(np.bincount(segmentation.ravel())).tolist()
            infos = [{"id": label, "label_id": label, "score": 1.0} for label in present]
            segments = segments_of_map(segmentation, infos, segmenter.labels, segmenter.stuff_ids)
            yield Segmentation("semantic", segmentation, segments, size, segmenter.labels, image)

    @torch.inference_mode()
    def _versions(self, picture: Tensor) -> Iterator[tuple[bool, Any, Tensor]]:
        """(mirrored, logits, pixel mask) of each version."""
        device = self.segmenter.device
        dtype = next(self.segmenter.model.parameters()).dtype
        for processor in self.processors:
            inputs = processor(picture, return_tensors="pt", input_data_format="channels_first")
            valid = int(inputs["pixel_mask"][0, 0].sum())
            for mirrored in (False, True)[: 2 if self.flip else 1]:
                pixel_values = inputs["pixel_values"].to(device, dtype)
                if mirrored:  # the image, not the padding to its right
                    pixel_values[..., :valid] = pixel_values[..., :valid].flip(-1)
                outputs = self.segmenter.model(pixel_values=pixel_values)
                names = ("logits",) if self.segmenter.is_per_pixel else ("class_queries_logits", "masks_queries_logits")
                yield mirrored, SimpleNamespace(**{name: outputs[name].float() for name in names}), inputs["pixel_mask"]

    def _score_groups(
        self, versions: list[tuple[bool, Any, Tensor]], size: tuple[int, int], protocol: Any
    ) -> Iterator[Tensor]:
        """Summed scores [K, H, W], one group of classes after the other, so that 847 classes fit too."""
        group = max(1, _SCORES_AT_ONCE // (size[0] * size[1]))
        for start in range(0, len(self.segmenter.labels), group):
            total: Tensor | None = None
            for mirrored, outputs, pixel_mask in versions:
                some = _of_classes(outputs, slice(start, start + group))
                found: Any = semantic_segmentation(some, [size], True, pixel_mask=pixel_mask, protocol=protocol)
                scores = found[0].segmentation_scores  # [K, H, W]
                scores = scores.flip(-1) if mirrored else scores
                total = scores if total is None else total.add_(scores)
            assert total is not None, "there is at least one size"
            yield total


def _of_classes(outputs: Any, classes: slice) -> Any:
    """The same outputs for some of the classes, with the probabilities these have among all."""
    if hasattr(outputs, "logits"):
        return SimpleNamespace(logits=outputs.logits[:, classes])
    log_probs = outputs.class_queries_logits.log_softmax(-1)  # [1, Q, C + 1]
    some = log_probs[..., :-1][..., classes]
    rest = (1 - some.exp().sum(-1, keepdim=True)).clamp(min=0).log()  # counts as "no object"
    return SimpleNamespace(
        class_queries_logits=torch.cat([some, rest], -1), masks_queries_logits=outputs.masks_queries_logits
    )
