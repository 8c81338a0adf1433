"""Bilinear upsampling of one map in blocks that stay in the cache, and its adjoint, the gradient's way back.

`F.interpolate(mode="bilinear", align_corners=False)`, but as products with small matrices: torch's own kernels take
four times as long forwards and ten times backwards, and want the whole full-size map in memory.

Both classes cut the full-size map into blocks and are used alike: `load` a small map; for each block `upsample` it,
`gather` other full-size maps of the same pixels, and `collect` gradients of these pixels; then `gradients`.
The order of the pixels within a block is their own affair. An object is scratch space for one thread. All views of it
are made once, because a view costs as much as a tenth of an operation on a block.

Shapes: H W full-size map, h w small map, y x upsampling factors, n pixels of a block, M scratch maps of a block,
G gradients collected at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Block", "CellUpsampling", "TileUpsampling", "Upsampling", "build_upsampling"]

Size = tuple[int, int]

# The mask loss has eight maps of a block in the works: with 32,000 pixels in float32 they are 1 MB, an L2 cache.
# Smaller blocks pay for the calls to torch, larger ones for memory traffic; between half and double little changes.
PIXELS_AT_ONCE = 32_000
# Narrow tiles make small matrices, but a tile twice as high as this one needs longer ones from the left.
TILE = (256, 64)


class Block(Protocol):
    """Some pixels of the full-size map, and scratch space for values of them that all blocks share.

    Attributes:
        maps: [M, n]
    """

    maps: Tensor

    def upsample(self) -> None:
        """Writes the pixels into the first of the maps."""
        ...

    def gather(self, large: Tensor, into: int) -> None:
        """Writes the same pixels of a full-size map, laid out by `Upsampling.lay_out`, into a map as 0 and 1."""
        ...

    def collect(self) -> None:
        """Adds up gradients of the pixels, the first G of the maps."""
        ...


class Upsampling(Protocol):
    """What the two ways of upsampling have in common."""

    @property
    def blocks(self) -> Sequence[Block]: ...

    def load(self, small: Tensor) -> None:
        """Takes the next map [h, w] of any floating type and forgets the gradients of the last."""
        ...

    def lay_out(self, large: Tensor) -> Tensor:
        """A view of a full-size bool map [H, W], for `Block.gather`."""
        ...

    def gradients(self) -> Tensor:
        """The collected gradients as gradients of the small map, [G, h, w]; valid until the next `load`."""
        ...


def build_upsampling(small: Size, large: Size, num_maps: int, num_gradients: int, dtype: torch.dtype) -> Upsampling:
    """The fastest way from one size to the other: cells for whole factors, such as 4, and tiles for the rest."""
    factor_y, factor_x = large[0] // small[0], large[1] // small[1]
    whole = large == (small[0] * factor_y, small[1] * factor_x)
    if whole and factor_y * large[1] <= PIXELS_AT_ONCE:  # a row of cells must fit in a block
        return CellUpsampling(small, large, num_maps, num_gradients, dtype)
    return TileUpsampling(small, large, num_maps, num_gradients, dtype)


class CellUpsampling:
    """Whole factors: the y * x pixels of a cell depend on the 3 * 3 small pixels around it, everywhere alike.

    So a block, some rows of cells, is one product [yx, 9] @ [9, cells], and its adjoint the transposed one. The pixels
    of a block are ordered by their place in the cell first: [y, x, rows of cells, w].
    """

    def __init__(self, small: Size, large: Size, num_maps: int, num_gradients: int, dtype: torch.dtype) -> None:
        (height, width), factors = small, (large[0] // small[0], large[1] // small[1])
        self.size, self.factors = small, factors
        weights_y, weights_x = (_cell_weights(factor).to(dtype) for factor in factors)
        kernel = torch.einsum("ya,xb->yxab", weights_y, weights_x)  # [y, x, 3, 3]
        self.windows = kernel.new_empty(3, 3, height, width)
        self.collected = kernel.new_empty(num_gradients, 3, 3, height, width)
        self.padded = kernel.new_empty(num_gradients, height + 2, width + 2)
        num_rows = min(height, max(1, PIXELS_AT_ONCE // (factors[0] * large[1])))
        maps = kernel.new_empty(num_maps, num_rows * factors[0] * large[1])
        spans = [slice(top, min(height, top + num_rows)) for top in range(0, height, num_rows)]
        scratch = {rows: _CellMaps(maps, kernel, rows, width) for rows in {span.stop - span.start for span in spans}}
        self.blocks = [
            _CellBlock(span, scratch[span.stop - span.start], self.windows, self.collected) for span in spans
        ]

    def load(self, small: Tensor) -> None:
        height, width = self.size
        # Repeating the border is what clamping the coordinates to the map amounts to.
        padded = F.pad(small[None, None].to(self.windows.dtype), (1, 1, 1, 1), mode="replicate")  # [1, 1, h+2, w+2]
        # Every third of a third is the map shifted by one pixel more.
        self.windows.copy_(padded.as_strided((3, 3, height, width), (width + 2, 1, width + 2, 1)))

    def lay_out(self, large: Tensor) -> Tensor:
        (height, width), (factor_y, factor_x) = self.size, self.factors
        pixels = large.view(torch.uint8)  # reads faster than bool
        return pixels.view(height, factor_y, width, factor_x).permute(1, 3, 0, 2)  # [y, x, h, w]

    def gradients(self) -> Tensor:
        height, width = self.size
        padded = self.padded.zero_()
        for y in range(3):
            for x in range(3):
                padded[:, y : y + height, x : x + width] += self.collected[:, y, x]
        for border, inside in ((0, 1), (-1, -2)):
            padded[:, inside] += padded[:, border]
        for border, inside in ((0, 1), (-1, -2)):
            padded[:, :, inside] += padded[:, :, border]
        return padded[:, 1:-1, 1:-1]


class _CellMaps:
    """The scratch space of blocks of the same size, seen in different ways, and the weights."""

    def __init__(self, maps: Tensor, kernel: Tensor, num_rows: int, width: int) -> None:
        size = (*kernel.shape[:2], num_rows, width)
        self.maps = maps[:, : math.prod(size)]  # [M, n]
        self.pixels = self.maps.view(-1, *size).unbind()  # [y, x, rows, w]
        self.cells = self.maps.view(len(maps), size[0] * size[1], -1).unbind()  # [yx, cells]
        self.kernel = kernel.view(-1, 9)  # [yx, 9]
        self.kernel_transposed = self.kernel.T.contiguous()


class _CellBlock:
    """Rows of cells; see `CellUpsampling`."""

    def __init__(self, rows: slice, scratch: _CellMaps, windows: Tensor, collected: Tensor) -> None:
        self.rows, self.scratch, self.maps = rows, scratch, scratch.maps
        self.windows = _flat(windows, rows)
        self.collected = [_flat(gradient, rows) for gradient in collected]  # [9, cells]

    def upsample(self) -> None:
        torch.mm(self.scratch.kernel, self.windows, out=self.scratch.cells[0])

    def gather(self, large: Tensor, into: int) -> None:
        self.scratch.pixels[into].copy_(large[:, :, self.rows])

    def collect(self) -> None:
        for gradient, collected in zip(self.scratch.cells, self.collected, strict=False):  # the first G of the maps
            torch.mm(self.scratch.kernel_transposed, gradient, out=collected)


def _flat(windows: Tensor, rows: slice) -> Tensor:
    """Some rows of [3, 3, h, w] as [9, cells]."""
    width = windows.shape[-1]
    return windows.view(9, -1)[:, rows.start * width : rows.stop * width]


class TileUpsampling:
    """Any sizes: a block is a tile, upsampled by a product with a matrix from either side.

    The matrices hold the weights of those small pixels that the tile's pixels need at all, so that a tile much wider
    than the blur of the interpolation, but much narrower than the map, costs least.
    """

    def __init__(self, small: Size, large: Size, num_maps: int, num_gradients: int, dtype: torch.dtype) -> None:
        self.small = torch.empty(small, dtype=dtype, device="cpu")
        self.collected = torch.empty(num_gradients, *small, dtype=dtype, device="cpu")
        rows, columns = (_spans(small[axis], large[axis], TILE[axis], dtype) for axis in (0, 1))
        scratch = self.small.new_empty(num_maps, len(rows[0].weights) * len(columns[0].weights))
        self.blocks = [_Tile(row, column, self.small, self.collected, scratch) for row in rows for column in columns]

    def load(self, small: Tensor) -> None:
        self.small.copy_(small)
        self.collected.zero_()

    def lay_out(self, large: Tensor) -> Tensor:
        return large.view(torch.uint8)

    def gradients(self) -> Tensor:
        return self.collected


class _Span(NamedTuple):
    """Neighbouring pixels of one axis, and the small pixels they are made of."""

    large: slice
    small: slice
    weights: Tensor  # [large, small]


class _Tile:
    """See `TileUpsampling`."""

    def __init__(self, rows: _Span, columns: _Span, small: Tensor, collected: Tensor, scratch: Tensor) -> None:
        height, width = len(rows.weights), len(columns.weights)
        self.large = rows.large, columns.large
        self.from_left, self.from_right = rows.weights, columns.weights.T
        self.small = small[rows.small, columns.small]
        self.maps = scratch[:, : height * width]
        self.pixels = [pixels.view(height, width) for pixels in self.maps]
        self.collected = [gradient[rows.small, columns.small] for gradient in collected]

    def upsample(self) -> None:
        torch.mm(self.from_left @ self.small, self.from_right, out=self.pixels[0])

    def gather(self, large: Tensor, into: int) -> None:
        self.pixels[into].copy_(large[self.large])

    def collect(self) -> None:
        for gradient, collected in zip(self.pixels, self.collected, strict=False):  # the first G of the maps
            collected.addmm_(self.from_left.T, gradient @ self.from_right.T)


def _spans(small: int, large: int, length: int, dtype: torch.dtype) -> list[_Span]:
    identity = torch.eye(small, dtype=dtype, device="cpu")[None]
    weights = F.interpolate(identity, size=large, mode="linear", align_corners=False)[0].T  # [large, small]
    spans: list[_Span] = []
    for start in range(0, large, length):
        part = weights[start : start + length]
        used = part.any(dim=0).nonzero()
        needed = slice(int(used[0]), int(used[-1]) + 1)
        spans.append(_Span(slice(start, start + len(part)), needed, part[:, needed].contiguous()))
    return spans


def _cell_weights(factor: int) -> Tensor:
    """[factor, 3] weights of the small pixels before, at and after a cell for each pixel in it, along one axis."""
    # The centre of small pixel i lies at full-size coordinate factor * (i + 1/2).
    offset = (torch.arange(factor, dtype=torch.float64, device="cpu") + 0.5) / factor - 0.5  # in small pixels
    before, after = (-offset).clamp(min=0), offset.clamp(min=0)
    return torch.stack([before, 1 - before - after, after], dim=1)
