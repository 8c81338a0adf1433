"""What is traced: the network alone, or with the post-processing of `processing.postprocessing` as tensor operations.

The post-processors drop queries and count segments, so their sizes depend on the values; a graph's must not. Here all
Q queries stay, and what is no segment is -1. The maps have the size of `pixel_values`, padding included.

Shapes: B batch, Q queries, C classes, K planes, H W input, h w stride-4 map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.configuration import PER_PIXEL_MODEL_TYPE
from maskformer.processing.placement import STRIDE


class LogitsGraph(nn.Module):
    """`pixel_values` [B, 3, H, W] to the logits, both float32 whatever the network computes in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        config: Any = network.config
        self.is_per_pixel = config.model_type == PER_PIXEL_MODEL_TYPE
        self.logits = ("logits",) if self.is_per_pixel else ("class_queries_logits", "masks_queries_logits")
        self.output_names: tuple[str, ...] = self.logits
        self.network = network
        self.dtype = next(network.parameters()).dtype

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs: Any = self.network(pixel_values=pixel_values.to(self.dtype))
        return tuple(getattr(outputs, name).float() for name in self.logits)


class SemanticGraph(LogitsGraph):
    """`segmentation` int32 [B, H, W], the class of each pixel, and `class_scores` [B, C], the best of each class."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.output_names = ("segmentation", "class_scores")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        logits = super().forward(pixel_values)
        if self.is_per_pixel:
            planes = logits[0]
            class_scores = planes.softmax(1).amax((2, 3))  # [B, C]
        else:
            probs = logits[0].softmax(-1)[..., :-1]  # [B, Q, C]
            class_scores = probs.amax(1)
            # As a product of matrices: runtimes have a fast one, and not always a fast einsum.
            votes = probs.transpose(1, 2) @ logits[1].sigmoid().flatten(2)
            planes = votes.unflatten(2, logits[1].shape[2:])  # [B, C, h * w] -> [B, C, h, w]
        return cropped(at_stride_one(planes).argmax(1).to(torch.int32), pixel_values), class_scores


class PanopticGraph(LogitsGraph):
    """Segments, numbered from 1 in the order of their queries, by the default thresholds of `panoptic_segmentation`.

    `segmentation` int32 [B, H, W], 0 = void; `segment_labels` int32 and `segment_scores` float32 [B, Q], where entry
    i belongs to segment i + 1 and is -1 beyond the last.
    """

    fused: Tensor
    threshold, mask_threshold, overlap_mask_area_threshold = 0.5, 0.5, 0.8

    def __init__(self, network: nn.Module, label_ids_to_fuse: frozenset[int] = frozenset()) -> None:
        super().__init__(network)
        self.output_names = ("segmentation", "segment_labels", "segment_scores")
        config: Any = network.config
        fused = torch.tensor([label in label_ids_to_fuse for label in range(config.num_labels + 1)])  # [C + 1]
        self.register_buffer("fused", fused, persistent=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        class_logits, mask_logits = super().forward(pixel_values)
        scores, labels = class_logits.softmax(-1).max(-1)  # [B, Q]
        kept = (labels != class_logits.shape[-1] - 1) & (scores > self.threshold)
        probs = at_stride_one(mask_logits.sigmoid())  # [B, Q, 4 h, 4 w]
        rows, columns = (
            torch.arange(reach, device=probs.device) < length
            for reach, length in zip(probs.shape[-2:], pixel_values.shape[-2:], strict=True)
        )
        inside = (rows[:, None] & columns).flatten()  # [4 h * 4 w]
        claimed = ((probs >= self.mask_threshold).flatten(2) & inside).sum(2)  # [B, Q]
        winner = torch.where(kept[:, :, None, None], probs * scores[:, :, None, None], -1.0).argmax(1)
        pixels = winner.flatten(1)  # [B, 4 h * 4 w]
        won = torch.zeros_like(labels).scatter_add(1, pixels, inside.long().expand_as(pixels))  # [B, Q]
        share = won.float() / claimed.clamp(min=1).float()
        visible = kept & (won > 0) & (claimed > 0) & (share >= self.overlap_mask_area_threshold)
        ids, segment_labels, segment_scores = self._number(labels, scores, visible)
        segmentation = ids.to(torch.int32).gather(1, pixels).unflatten(1, winner.shape[1:])  # [B, 4 h, 4 w]
        return cropped(segmentation, pixel_values), segment_labels.to(torch.int32), segment_scores

    def _number(self, labels: Tensor, scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The segment of each query (0: none), and the label and score of each segment, all [B, Q]."""
        num_queries = labels.shape[1]
        alone = torch.eye(num_queries, dtype=torch.bool, device=labels.device)
        same = (labels[:, :, None] == labels[:, None, :]) & self.fused[labels][:, :, None]
        together = (same & visible[:, None, :]) | alone  # [B, Q, Q]: which queries make up the segment of each
        leader = together.to(torch.uint8).argmax(2)  # the first of them
        leads = visible & (leader == torch.arange(num_queries, device=labels.device))
        number = leads.long().cumsum(1)  # of a leader: its segment
        ids = torch.where(visible, number.gather(1, leader), 0)
        best = torch.where(together, scores[:, None, :], 0.0).amax(2)
        slot = torch.where(leads, number - 1, num_queries)  # the others share a slot that is cut off

        def by_segment(values: Tensor) -> Tensor:
            empty = torch.full_like(values, -1)
            return torch.cat((empty, empty[:, :1]), 1).scatter(1, slot, values)[:, :-1]

        return ids, by_segment(labels), by_segment(best)


def at_stride_one(planes: Tensor) -> Tensor:
    """Planes [B, K, h, w] at [B, K, 4 h, 4 w], which may reach beyond the input.

    By the stride and not by the input's size, as `Placement.window` resizes.
    """
    return F.interpolate(planes, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)


def cropped(maps: Tensor, pixel_values: Tensor) -> Tensor:
    """Maps [B, 4 h, 4 w] at the size of the input [B, H, W].

    By indices: of a slice the tracer would ask whether it cuts anything off, and let the graph hold for one case.
    """
    rows, columns = (torch.arange(length, device=maps.device) for length in pixel_values.shape[-2:])
    return maps.index_select(1, rows).index_select(2, columns)
