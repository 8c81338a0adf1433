"""Binary masks and their other forms: label maps, COCO run lengths, boxes, padded stacks.

Shapes: N masks, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F


class RunLengths(TypedDict):
    """COCO's uncompressed run-length encoding: `size` [height, width] and `counts` down the columns, zeros first."""

    size: list[int]
    counts: list[int]


def masks_from_map(label_map: Tensor, ids: Sequence[int], size: tuple[int, int] | None = None) -> Tensor:
    """bool [N, H, W]: where the map [h, w] equals each id; False beyond the map when `size` is larger."""
    height, width = label_map.shape
    masks = torch.zeros(len(ids), *(size or (height, width)), dtype=torch.bool, device=label_map.device)
    for mask, label in zip(masks, ids, strict=True):
        torch.eq(label_map, label, out=mask[:height, :width])
    return masks


def map_from_masks(masks: Tensor, ids: Sequence[int] | None = None, void: int = -1) -> Tensor:
    """int32 [H, W] label map of binary masks [N, H, W]; the first mask wins where several overlap.

    `ids` defaults to 0, 1, 2, ...; pixels of no mask become `void`.
    """
    label_map = torch.full(masks.shape[-2:], void, dtype=torch.int32, device=masks.device)
    labels = range(len(masks)) if ids is None else ids
    for mask, label in reversed(list(zip(masks, labels, strict=True))):
        label_map.masked_fill_(mask.bool(), label)
    return label_map


def pad_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad [N, h, w] at the bottom and right with 0 to (height, width): padding belongs to no segment."""
    height, width = masks.shape[-2:]
    return F.pad(masks, (0, size[1] - width, 0, size[0] - height))


def present_ids(label_map: Tensor) -> list[int]:
    """The distinct values of an integer map, ascending."""
    if label_map.numel() == 0:
        return []
    low, high = (int(value) for value in label_map.aminmax())
    if low < 0 or high >= 2**20:
        return label_map.unique().tolist()
    # counting is many times faster than the sort inside unique()
    return label_map.flatten().bincount().nonzero().flatten().tolist()


def encode_run_lengths(mask: Tensor) -> RunLengths:
    """COCO run lengths of one binary mask [H, W]: column-major, starting with the (possibly empty) run of zeros."""
    height, width = mask.shape
    pixels = mask.bool().T.flatten()  # [W * H], down the columns
    if pixels.numel() == 0:
        return {"size": [height, width], "counts": [0]}
    changes = (pixels[1:] != pixels[:-1]).nonzero().flatten() + 1
    edges = [0, *changes.tolist(), pixels.numel()]
    counts = [after - before for before, after in pairwise(edges)]
    return {"size": [height, width], "counts": [0, *counts] if bool(pixels[0]) else counts}


def decode_run_lengths(run_lengths: RunLengths) -> Tensor:
    """bool [H, W] of COCO's uncompressed run lengths.

    Raises:
        ValueError: the counts do not add up to height x width.
    """
    height, width = run_lengths["size"]
    counts = torch.tensor(run_lengths["counts"], dtype=torch.int64)
    if int(counts.sum()) != height * width:
        raise ValueError(f"run lengths add up to {int(counts.sum())} pixels; expected {height} x {width}.")
    values = (torch.arange(len(counts)) % 2).bool()
    return values.repeat_interleave(counts).view(width, height).T.contiguous()  # [H, W]


def mask_boxes(masks: Tensor) -> Tensor:
    """int64 [N, 4]: the tight box (x, y, width, height) of each mask [N, H, W] in pixels, COCO's order; 0 if empty."""
    boxes = torch.zeros(len(masks), 4, dtype=torch.int64, device=masks.device)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if len(rows):
            x, y = columns[0], rows[0]
            box.copy_(torch.stack((x, y, columns[-1] - x + 1, rows[-1] - y + 1)))
    return boxes
