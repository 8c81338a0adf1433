"""Target masks in the compact form that data sets give them: an eighth of their size as bool, or less.

Shapes: N masks, L planes, P wanted masks, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedMasks:
    """N masks [H, W] in one index map where they cannot overlap, else as bits. Indexing makes bool masks of some.

    Attributes:
        planes: [L, H, W]. Index map (L = 1): k + 1 where region k is; uint8, or int16 from 256 regions on. Bits
            (`overlapping`): uint8, region k is bit k % 8 of plane k // 8.
        places: of each mask its region k.
        overlapping: which of the two `planes` are.
    """

    planes: Tensor
    places: tuple[int, ...]
    overlapping: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.places), self.planes.shape[1], self.planes.shape[2]

    def __len__(self) -> int:
        return len(self.places)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedMasks:
        return self.with_planes(self.planes.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedMasks:
        return self.with_planes(self.planes.pin_memory())

    def with_planes(self, planes: Tensor) -> PackedMasks:
        """The masks after a crop, padding with 0 or the like, done to the planes."""
        return replace(self, planes=planes)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """bool [P, H, W] of the masks whose numbers are in `rows` [P], on the device of the planes."""
        places = torch.tensor(self.places, dtype=torch.int64, device=self.planes.device)[rows, None, None]  # [P, 1, 1]
        if self.overlapping:
            return (self.planes[places.flatten() // 8] >> places.to(torch.uint8) % 8) % 2 != 0
        return self.planes == places + 1

    def unpack(self) -> Tensor:
        """bool [N, H, W] of all masks."""
        masks = torch.empty(self.shape, dtype=torch.bool, device=self.planes.device)
        for number, mask in enumerate(masks):  # one by one, because a comparison makes larger copies
            plane, bits, value = plane_of(self, number)
            torch.eq(plane & bits, value, out=mask)
        return masks


def plane_of(masks: Tensor | PackedMasks, row: int) -> tuple[Tensor, int, int]:
    """A plane [H, W] of integers and two numbers: the mask is where `plane & bits == value`. Nothing is copied."""
    if isinstance(masks, Tensor):
        return masks[row].view(torch.uint8), 1, 1
    place = masks.places[row]
    if masks.overlapping:
        return masks.planes[place // 8], 1 << place % 8, 1 << place % 8
    return masks.planes[0], torch.iinfo(masks.planes.dtype).max, place + 1
