"""Binary masks as COCO run lengths and back. H W image."""

from __future__ import annotations

from itertools import pairwise
from typing import TypedDict

import torch
from torch import Tensor


class RunLengths(TypedDict):
    """COCO's uncompressed run-length encoding: `size` [height, width] and `counts` down the columns, zeros first."""

    size: list[int]
    counts: list[int]


def encode_run_lengths(mask: Tensor) -> RunLengths:
    """COCO run lengths of one binary mask [H, W]: column-major, starting with the (possibly empty) run of zeros."""
    height, width = mask.shape
    pixels = mask.bool().T.flatten()  # [W * H], down the columns
    changes = (pixels[1:] != pixels[:-1]).nonzero().flatten() + 1
    counts = [after - before for before, after in pairwise([0, *changes.tolist(), pixels.numel()])]
    return {"size": [height, width], "counts": [0, *counts] if bool(pixels[0]) else counts}


def decode_run_lengths(run_lengths: RunLengths) -> Tensor:
    """bool [H, W] of COCO's uncompressed run lengths.

    Raises:
        ValueError: the counts do not add up to height x width.
    """
    height, width = run_lengths["size"]
    counts = torch.tensor(run_lengths["counts"], dtype=torch.int64, device="cpu")
    if int(counts.sum()) != height * width:
        raise ValueError(f"run lengths add up to {int(counts.sum())} pixels; expected {height} x {width}.")
    values = (torch.arange(len(counts), device="cpu") % 2).bool()
    return values.repeat_interleave(counts).view(width, height).T.contiguous()  # [H, W]
