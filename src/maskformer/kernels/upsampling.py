"""Bilinear upsampling of one map in blocks that stay in the cache, and its adjoint, the gradient's way back.

`F.interpolate(mode="bilinear", align_corners=False)`, but as products with small matrices: torch's own kernels take
four times as long forwards and ten times backwards, and want the whole full-size map in memory.

Both classes are used alike: `load` a small map; for each block `upsample` it into the first of the block's scratch
maps, `gather` the same pixels of other full-size maps (as `lay_out` shows them) into other scratch maps, and `collect`
gradients of these pixels, the first G scratch maps; then read `gradients`, which the next `load` overwrites. The order
of the pixels in a block is its own affair. An object is scratch space for one thread; its views are made once, because
a view costs as much as a tenth of an operation on a block.

Shapes: H W full-size map, h w small map, y x upsampling factors, n pixels of a block, M scratch maps of a block,
G gradients collected at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]

# The mask loss has eight maps of a block in the works: with 32,000 pixels in float32 they are 1 MB, an L2 cache.
# Smaller blocks pay for the calls to torch, larger ones for memory traffic; between half and double little changes.
PIXELS_AT_ONCE = 32_000
# Narrow tiles make small matrices, but a tile twice as high as this one needs longer ones from the left.
TILE = (256, 64)


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
        self.size, self.factors = small, (large[0] // small[0], large[1] // small[1])
        # The middle one of three cells has the weights of all: [y, 3] and [x, 3].
        rows, columns = (_weights(3, 3 * factor, dtype)[factor : 2 * factor] for factor in self.factors)
        kernel = torch.kron(rows, columns)  # [yx, 9]
        self.windows = kernel.new_empty(9, *small)
        self.collected = kernel.new_empty(num_gradients, 9, *small)
        num_rows = min(small[0], max(1, PIXELS_AT_ONCE // (self.factors[0] * large[1])))
        scratch = kernel.new_empty(num_maps, *self.factors, num_rows, small[1])
        spans = [slice(top, min(small[0], top + num_rows)) for top in range(0, small[0], num_rows)]
        self.blocks = [
            _CellBlock(rows, kernel, scratch, self.windows[:, rows], self.collected[:, :, rows]) for rows in spans
        ]

    def load(self, small: Tensor) -> None:
        (height, width), row = self.size, self.size[1] + 2
        # Repeating the border is what clamping the coordinates to the map amounts to.
        padded = F.pad(small[None, None].to(self.windows.dtype), (1, 1, 1, 1), mode="replicate")  # [1, 1, h+2, w+2]
        # Every third of a third is the map shifted by one pixel more.
        self.windows.view(3, 3, height, width).copy_(padded.as_strided((3, 3, height, width), (row, 1, row, 1)))

    def lay_out(self, large: Tensor) -> Tensor:
        (height, width), (factor_y, factor_x) = self.size, self.factors
        pixels = large.view(torch.uint8)  # reads faster than bool
        return pixels.view(height, factor_y, width, factor_x).permute(1, 3, 0, 2)  # [y, x, h, w]

    def gradients(self) -> Tensor:
        height, width = self.size
        padded = self.collected.new_zeros(len(self.collected), height + 2, width + 2)
        for window, gradient in enumerate(self.collected.unbind(1)):
            y, x = divmod(window, 3)
            padded[:, y : y + height, x : x + width] += gradient
        for axis in (1, 2):
            for border, inside in ((0, 1), (-1, -2)):
                padded.select(axis, inside).add_(padded.select(axis, border))
        return padded[:, 1:-1, 1:-1]


class _CellBlock:
    """The cells in some rows."""

    def __init__(self, rows: slice, kernel: Tensor, scratch: Tensor, windows: Tensor, collected: Tensor) -> None:
        self.rows, self.kernel, self.kernel_transposed = rows, kernel, kernel.T.contiguous()
        size = (*scratch.shape[1:3], rows.stop - rows.start, scratch.shape[4])
        self.maps = scratch.flatten(1)[:, : math.prod(size)]  # [M, n]
        self.values = self.maps.unbind()
        self.pixels = self.maps.view(-1, *size).unbind()  # [y, x, rows, w]
        self.cells = self.maps.view(len(scratch), len(kernel), -1).unbind()  # [yx, cells]
        self.windows = windows.view(9, -1)  # [9, cells]
        self.collected = collected.view(-1, *self.windows.shape).unbind()  # [9, cells]

    def upsample(self) -> None:
        torch.mm(self.kernel, self.windows, out=self.cells[0])

    def gather(self, large: Tensor, into: int) -> None:
        self.pixels[into].copy_(large[:, :, self.rows])

    def collect(self) -> None:
        for gradient, collected in zip(self.cells, self.collected, strict=False):  # the first G of the maps
            torch.mm(self.kernel_transposed, gradient, out=collected)


class TileUpsampling:
    """Any sizes: a block is a tile, upsampled by a product with a matrix from either side.

    The matrices hold the weights of those small pixels that the tile's pixels need at all, so that a tile much wider
    than the blur of the interpolation, but much narrower than the map, costs least.
    """

    def __init__(self, small: Size, large: Size, num_maps: int, num_gradients: int, dtype: torch.dtype) -> None:
        self.small = torch.empty(small, dtype=dtype, device="cpu")
        self.collected = self.small.new_empty(num_gradients, *small)
        rows, columns = (_spans(small[axis], large[axis], TILE[axis], dtype) for axis in (0, 1))
        scratch = self.small.new_empty(num_maps, min(TILE[0], large[0]) * min(TILE[1], large[1]))
        self.blocks = [_Tile(row, column, self.small, self.collected, scratch) for row in rows for column in columns]

    def load(self, small: Tensor) -> None:
        self.small.copy_(small)
        self.collected.zero_()

    def lay_out(self, large: Tensor) -> Tensor:
        return large.view(torch.uint8)

    def gradients(self) -> Tensor:
        return self.collected


# Neighbouring pixels of one axis, the small pixels they are made of, and the weights [large, small].
_Span = tuple[slice, slice, Tensor]


class _Tile:
    def __init__(self, rows: _Span, columns: _Span, small: Tensor, collected: Tensor, scratch: Tensor) -> None:
        size = height, width = len(rows[2]), len(columns[2])
        self.large = rows[0], columns[0]
        self.from_left, self.from_right = rows[2], columns[2].T
        self.small = small[rows[1], columns[1]]
        self.maps = scratch[:, : height * width]
        self.values = self.maps.unbind()
        self.pixels = self.maps.view(-1, *size).unbind()
        self.collected = collected[:, rows[1], columns[1]].unbind()

    def upsample(self) -> None:
        torch.mm(self.from_left @ self.small, self.from_right, out=self.pixels[0])

    def gather(self, large: Tensor, into: int) -> None:
        self.pixels[into].copy_(large[self.large])

    def collect(self) -> None:
        for gradient, collected in zip(self.pixels, self.collected, strict=False):  # the first G of the maps
            collected.addmm_(self.from_left.T, gradient @ self.from_right.T)


Upsampling = CellUpsampling | TileUpsampling
Block = _CellBlock | _Tile


def _weights(small: int, large: int, dtype: torch.dtype) -> Tensor:
    """[large, small]: what each small pixel of an axis adds to each large one."""
    identity = torch.eye(small, dtype=dtype, device="cpu")[None]
    return F.interpolate(identity, size=large, mode="linear", align_corners=False)[0].T.contiguous()


def _spans(small: int, large: int, length: int, dtype: torch.dtype) -> list[_Span]:
    spans: list[_Span] = []
    for start, part in zip(range(0, large, length), _weights(small, large, dtype).split(length), strict=True):
        used = part.any(dim=0).nonzero()
        needed = slice(int(used[0]), int(used[-1]) + 1)
        spans.append((slice(start, start + len(part)), needed, part[:, needed].contiguous()))
    return spans
