"""Where an image lies inside the padded input and the mask maps, and how maps are brought back to the image's size.

    input  |<------------ padded ------------>|        pixels
           |<------- valid ------->|..padding.|
    maps   |<-- ceil(valid / stride) cells -->|        h x w cells; the last valid cell may hold padding in part

Shapes: K any number of planes, H W image, h w map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.kernels.resized import Resize

Size = tuple[int, int]

STRIDE = 4
PLANE_BUDGET = 2**22
"""Values held at once while planes are resized one group after the other (16 MiB of float32)."""


@dataclass(frozen=True)
class Placement:
    """One image of a batch: its padded and valid size in input pixels, and the input pixels per map cell."""

    padded: Size
    valid: Size
    stride: int = STRIDE

    @property
    def cells(self) -> Size:
        """(rows, columns) of the map that hold some of the image."""
        return -(-self.valid[0] // self.stride), -(-self.valid[1] // self.stride)

    def crop(self, maps: Tensor) -> Tensor:
        """Maps [K, h, w] without the cells that hold padding only."""
        return maps[..., : self.cells[0], : self.cells[1]]

    def resize(self, maps: Tensor, size: Size | None) -> Tensor:
        """Crop maps [K, h, w] and resize them bilinearly, once, to [K, *size]; size None: only crop.

        A valid size that is no multiple of the stride is a fractional window: the resize follows valid / stride
        cells, not the rounded number, so that objects stay where they are in the picture.
        """
        if size is None:
            return self.crop(maps)
        maps, scales = self._window(maps, size)
        return torch.ops.aten.upsample_bilinear2d.default(maps[None], list(size), False, *scales)[0]

    def window(self, maps: Tensor, size: Size | None) -> tuple[Tensor, Resize]:
        """The cropped maps [K, h, w] and the resize that `resize` would do, for what can be decided without it."""
        if size is None:
            return self.crop(maps), Resize(self.cells, self.cells, device=maps.device)
        maps, scales = self._window(maps, size)
        cells = maps.shape[-2], maps.shape[-1]
        return maps, Resize((int(cells[0]), int(cells[1])), size, (scales[0], scales[1]), maps.device)

    def resize_nearest(self, maps: Tensor, size: Size | None) -> Tensor:
        """The same with the nearest cell instead of interpolation."""
        if size is None:
            return self.crop(maps)
        maps, scales = self._window(maps, size)
        return torch.ops.aten.upsample_nearest2d.default(maps[None], list(size), *scales)[0]

    def resize_through_input(self, maps: Tensor, size: Size | None) -> Tensor:
        """The authors' order: up to the padded input size, crop the padding, then to `size`; None: the valid size."""
        upsampled = F.interpolate(maps[None], size=self.padded, mode="bilinear", align_corners=False)[0]
        return self.resize_input(upsampled[..., : self.valid[0], : self.valid[1]], size)

    def resize_input(self, planes: Tensor, size: Size | None) -> Tensor:
        """Planes [K, H, W] of the valid input size, resized to `size`; None: unchanged."""
        if size in (None, self.valid):
            return planes
        return F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)[0]

    def _window(self, maps: Tensor, size: Size) -> tuple[Tensor, list[float | None]]:
        """The cropped maps, and output pixels per cell along each axis for torch's kernels."""
        maps = self.crop(maps)
        # None lets the kernel divide the sizes itself, which rounds like an ordinary resize of the whole map
        scales = [
            None if valid % self.stride == 0 else target / (valid / self.stride)
            for valid, target in zip(self.valid, size, strict=True)
        ]
        # the kernels ignore the scale of an axis whose length stays the same: one more copy of the last cell, at
        # which they clamp anyway, makes the lengths differ
        extra = [
            int(scale is not None and cells == target)
            for scale, cells, target in zip(scales, self.cells, size, strict=True)
        ]
        if any(extra):
            maps = F.pad(maps[None], (0, extra[1], 0, extra[0]), mode="replicate")[0]
        return maps, scales


def placements(maps: Tensor, pixel_mask: Any) -> list[Placement]:
    """Where each image of a batch lies, from mask maps [B, Q, h, w] and the processor's pixel mask [B, H, W].

    Without a pixel mask nothing is padding.

    Raises:
        ValueError: the pixel mask belongs to another batch, or is not one rectangle at the top left per image.
    """
    batch, _, height, width = maps.shape
    if pixel_mask is None:
        whole = (height * STRIDE, width * STRIDE)
        return [Placement(whole, whole)] * batch
    pixel_mask = torch.as_tensor(pixel_mask)
    if pixel_mask.ndim != 3 or len(pixel_mask) != batch:
        raise ValueError(f"pixel_mask has shape {tuple(pixel_mask.shape)}; expected [{batch}, H, W], as preprocessed.")
    padded = (int(pixel_mask.shape[1]), int(pixel_mask.shape[2]))
    stride = _stride((height, width), padded)
    found: list[Placement] = []
    for index, mask in enumerate(pixel_mask.bool()):
        valid = int(mask[:, 0].sum()), int(mask[0].sum())
        if valid[0] * valid[1] == 0 or int(mask.sum()) != valid[0] * valid[1] or not mask[valid[0] - 1, valid[1] - 1]:
            raise ValueError(
                f"pixel_mask {index} must be 1 on a rectangle at the top left (the image) and 0 elsewhere."
            )
        found.append(Placement(padded, valid, stride))
    return found


def _stride(grid: Size, padded: Size) -> int:
    for stride in (STRIDE, *range(1, 65)):  # plain transformer backbones have other strides than 4
        if all(-(-pixels // stride) == cells for pixels, cells in zip(padded, grid, strict=True)):
            return stride
    raise ValueError(
        f"pixel_mask of {padded[0]} x {padded[1]} does not belong to mask logits of {grid[0]} x {grid[1]}; "
        f"expected about {grid[0] * STRIDE} x {grid[1] * STRIDE}, the size of the pixel_values."
    )


def planes_per_group(*sizes: Sequence[int] | None) -> int:
    """How many planes of the largest of these sizes to hold at once."""
    return max(1, PLANE_BUDGET // max((size[0] * size[1] for size in sizes if size is not None), default=1))


def strongest_plane(groups: Iterable[Tensor]) -> Tensor:
    """int64 [H, W]: at each pixel the index of the largest plane; ties go to the lowest index.

    Equal to an argmax over all planes, which come as groups [K, H, W] so that they need not exist together.
    """
    best, winner, index = torch.empty(0), torch.empty(0), 0
    for group in groups:
        for plane in group:
            if index == 0:
                best, winner = plane.clone(), torch.zeros_like(plane, dtype=torch.int64)
            else:
                winner.masked_fill_(plane > best, index)
                torch.maximum(best, plane, out=best)
            index += 1
    assert index, "no planes"
    return winner


def checked_sizes(target_sizes: Sequence[Any] | Tensor | None, batch: int) -> list[Size | None]:
    """One (height, width) per image, or None for each.

    Raises:
        ValueError: another number of sizes than images, or a size that is not two positive numbers.
    """
    if target_sizes is None:
        return [None] * batch
    if len(target_sizes) != batch:
        raise ValueError(f"target_sizes has {len(target_sizes)} entries for {batch} images; pass one per image.")
    sizes: list[Size | None] = []
    for entry in target_sizes:
        numbers = [int(number) for number in entry]
        if len(numbers) != 2 or min(numbers) < 1:
            raise ValueError(f"target_sizes holds {numbers}; expected (height, width) in pixels, both at least 1.")
        sizes.append((numbers[0], numbers[1]))
    return sizes
