"""Where an image lies inside the padded input and the mask maps, and how maps are brought back to the image's size.

    input  |<------------ padded ------------>|        pixels
           |<------- valid ------->|..padding.|
    maps   |<-- ceil(valid / stride) cells -->|        h x w cells; the last valid cell may hold padding in part

Shapes: B batch, Q queries, C classes, K any number of planes, H W image, h w map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.kernels.resized import Resize

Size = tuple[int, int]
InferenceProtocol: TypeAlias = Literal["transformers", "paper", "paper-panoptic"]

STRIDE = 4


@dataclass(frozen=True)
class Placement:
    """One image of a batch: its padded and valid size in input pixels, its result's size, input pixels per map cell."""

    padded: Size
    valid: Size
    target: Size
    stride: int = STRIDE

    def crop(self, maps: Tensor) -> Tensor:
        """Maps [K, h, w] without the cells that hold padding only."""
        return maps[..., : -(-self.valid[0] // self.stride), : -(-self.valid[1] // self.stride)]

    def window(self, maps: Tensor) -> tuple[Tensor, Resize]:
        """The cropped maps [K, h, w], and the one bilinear resize that brings them to the target size.

        A valid size that is no multiple of the stride is a fractional window: the resize follows valid / stride
        cells, not the rounded number, so that objects stay where they are in the picture.
        """
        maps = self.crop(maps)
        scales: list[float | None] = [None, None]
        for axis, (valid, size) in enumerate(zip(self.valid, self.target, strict=True)):
            if valid % self.stride == 0:
                continue  # without a scale the kernel divides the sizes itself, which rounds like an ordinary resize
            scales[axis] = size / (valid / self.stride)
            if maps.shape[axis - 2] == size:
                # the kernels ignore the scale of an axis whose length stays the same: one more copy of the last
                # cell, at which they clamp anyway, makes the lengths differ
                maps = torch.cat((maps, maps.narrow(axis - 2, size - 1, 1)), axis - 2)
        cells = int(maps.shape[-2]), int(maps.shape[-1])
        return maps, Resize(cells, self.target, (scales[0], scales[1]), maps.device)

    def resize_nearest(self, maps: Tensor) -> Tensor:
        """The same to [K, H, W] with the nearest cell instead of interpolation."""
        maps, resize = self.window(maps)
        return torch.ops.aten.upsample_nearest2d.default(maps[None], list(resize.size), *resize.scales)[0]

    def to_input(self, maps: Tensor) -> Tensor:
        """The authors' first step: maps [K, h, w] at the padded input's size, without the padding."""
        upsampled = F.interpolate(maps[None], size=self.padded, mode="bilinear", align_corners=False)[0]
        return upsampled[..., : self.valid[0], : self.valid[1]]

    def from_input(self, planes: Tensor) -> Tensor:
        """The authors' second step: planes of the valid input's size at the target size [K, H, W]."""
        if self.target == self.valid:
            return planes
        return F.interpolate(planes[None], size=self.target, mode="bilinear", align_corners=False)[0]


def split_outputs(
    outputs: Any, target_sizes: Sequence[Any] | Tensor | None, pixel_mask: Any, protocol: InferenceProtocol
) -> Iterator[tuple[Tensor, Tensor, Placement]]:
    """float32 class logits [Q, C + 1], mask logits [Q, h, w] and the placement of each image; errors as below."""
    class_logits, mask_logits = outputs.class_queries_logits.detach(), outputs.masks_queries_logits.detach()
    if class_logits.ndim != 3 or mask_logits.ndim != 4 or class_logits.shape[:2] != mask_logits.shape[:2]:
        raise ValueError(
            f"outputs have class logits {tuple(class_logits.shape)} and mask logits {tuple(mask_logits.shape)}; "
            "expected [B, Q, C + 1] and [B, Q, h, w]."
        )
    places = placements(mask_logits, target_sizes, pixel_mask, protocol)
    for classes, masks, place in zip(class_logits, mask_logits, places, strict=True):
        yield classes.float(), masks.float(), place


def placements(
    maps: Tensor, target_sizes: Sequence[Any] | Tensor | None, pixel_mask: Any, protocol: InferenceProtocol
) -> list[Placement]:
    """Where each image of a batch lies in maps [B, K, h, w]; the other arguments are those of `postprocessing`.

    A ValueError tells of masks or sizes that do not belong to the batch, and of unknown protocols.
    """
    if protocol not in get_args(InferenceProtocol):
        known = ", ".join(get_args(InferenceProtocol))
        raise ValueError(f"protocol {protocol!r} is unknown; choose one of {known}.")
    batch, _, height, width = maps.shape
    if target_sizes is not None and len(target_sizes) != batch:
        raise ValueError(f"target_sizes has {len(target_sizes)} entries for {batch} images; pass one per image.")
    stride, padded = STRIDE, (height * STRIDE, width * STRIDE)
    valid_sizes = [padded] * batch
    if pixel_mask is not None:
        pixel_mask = torch.as_tensor(pixel_mask, device=getattr(pixel_mask, "device", "cpu"))
        if pixel_mask.ndim != 3 or len(pixel_mask) != batch:
            raise ValueError(f"pixel_mask has shape {tuple(pixel_mask.shape)}; expected [{batch}, H, W].")
        padded = (int(pixel_mask.shape[1]), int(pixel_mask.shape[2]))
        stride = _stride((height, width), padded)
        valid_sizes = [_valid_size(mask) for mask in pixel_mask.bool()]
    found: list[Placement] = []
    for index, valid in enumerate(valid_sizes):
        if target_sizes is not None:
            target = _checked_size(target_sizes[index])
        elif protocol == "transformers":  # the cells themselves, the last of them whole
            target = -(-valid[0] // stride), -(-valid[1] // stride)
            valid = target[0] * stride, target[1] * stride
        else:
            target = valid
        found.append(Placement(padded, valid, target, stride))
    return found


def _valid_size(mask: Tensor) -> Size:
    height, width = int(mask[:, 0].sum()), int(mask[0].sum())
    if height * width == 0 or int(mask.sum()) != height * width or not mask[:height, :width].all():
        raise ValueError("pixel_mask must be 1 on a rectangle at the top left (the image) and 0 elsewhere.")
    return height, width


def _stride(grid: Size, padded: Size) -> int:
    for stride in (STRIDE, *range(1, 65)):  # plain transformer backbones have other strides than 4
        if all(-(-pixels // stride) == cells for pixels, cells in zip(padded, grid, strict=True)):
            return stride
    raise ValueError(
        f"pixel_mask of {padded[0]} x {padded[1]} does not belong to mask logits of {grid[0]} x {grid[1]}; "
        f"expected about {grid[0] * STRIDE} x {grid[1] * STRIDE}, the size of the pixel_values."
    )


def _checked_size(entry: Any) -> Size:
    numbers = [int(number) for number in torch.as_tensor(entry, device="cpu").flatten()]
    if len(numbers) != 2 or min(numbers) < 1:
        raise ValueError(f"target_sizes holds {numbers}; expected (height, width) in pixels, both at least 1.")
    return numbers[0], numbers[1]


def strongest_plane(groups: Iterable[Tensor]) -> Tensor:
    """int64 [H, W]: at each pixel the index of the largest plane; ties go to the lowest index.

    Equal to an argmax over all planes, which come as groups [K, H, W] so that they need not exist together.
    """
    planes = (plane for group in groups for plane in group)
    best = next(planes).clone()
    winner = torch.zeros_like(best, dtype=torch.int64)
    for index, plane in enumerate(planes, start=1):
        winner.masked_fill_(plane > best, index)
        torch.maximum(best, plane, out=best)
    return winner
