"""What a bilinear resize decides - which plane is strongest, what lies above a threshold - without the resize.

The output pixels between the same four cells of the small map form a block. A bilinear value never exceeds the
largest of its block's corners and never falls below the smallest, so inside most blocks the corners settle the matter
for all pixels at once; only the blocks they leave open are interpolated, and only for the planes still in question.
The result is that of the plain resize, except where two values differ by less than float32 can tell.

With numba, on a CPU, this is done by compiled loops over bands of rows (`resized_loops.py`), one after the other in
each thread; otherwise by torch's operations on all blocks.

Shapes: K planes, h w small map, H W output, g f rows and columns of blocks, b r c pixels of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskformer.kernels import compiled
from maskformer.kernels.resized_loops import find_strongest, mark_above
from maskformer.kernels.threads import in_threads

# How far rounding may carry an interpolated value past its corners, relative to their size.
MARGIN = 1e-6
# Small-map values that are bounded at once, and pixels that are interpolated at once: what fits in the caches.
VALUES_AT_ONCE = 2**19
PIXELS_AT_ONCE = 2**17
# Compared values of a band, 4 MB, and the fewest bands, so that no thread waits long for the last.
BAND_VALUES = 2**20
LEAST_BANDS = 16


@dataclass(frozen=True)
class Axis:
    """One axis of a resize: blocks of output pixels between the same two cells."""

    low: Tensor  # [g] the cell before each block
    high: Tensor  # [g] the cell after it
    start: Tensor  # [g] the block's first pixel
    count: Tensor  # [g] its number of pixels
    weight: Tensor  # [length] of the cell after, for each pixel

    @classmethod
    def build(cls, cells: int, length: int, scale: float | None, device: torch.device) -> Axis:
        """`cells` to `length` pixels; `scale` is pixels per cell where it is not length / cells.

        Positions are computed in float32, as torch's own resize does.
        """
        ratio = torch.tensor(cells / length if scale is None else 1 / scale, dtype=torch.float32, device=device)
        position = (ratio * (torch.arange(length, dtype=torch.float32, device=device) + 0.5) - 0.5).clamp(min=0)
        cell = position.long().clamp(max=cells - 1)
        low, count = cell.unique_consecutive(return_counts=True)
        high = (low + 1).clamp(max=cells - 1)
        return cls(low, high, count.cumsum(0) - count, count, position - cell)

    def arrays(self) -> tuple[Any, Any, Any, Any, Any]:
        """As the compiled loops want it."""
        return (self.low.numpy(), self.high.numpy(), self.start.numpy(), self.count.numpy(), self.weight.numpy())

    def pixels(self, blocks: Tensor, most: int) -> Tensor:
        """[b, most]: the pixels of the blocks [b]; those with fewer than `most` repeat their last."""
        steps = torch.arange(most, device=blocks.device)
        return self.start[blocks, None] + torch.minimum(steps, self.count[blocks, None] - 1)


class Resize:
    """A resize from [h, w] to [H, W] by `scales` (pixels per cell; None where that is the ratio of the sizes)."""

    def __init__(
        self,
        cells: tuple[int, int],
        size: tuple[int, int],
        scales: tuple[float | None, float | None] = (None, None),
        device: torch.device | None = None,
    ) -> None:
        self.cells, self.size, self.scales = cells, size, scales
        device = device or torch.device("cpu")
        self.rows, self.columns = (Axis.build(*each, device) for each in zip(cells, size, scales, strict=True))
        self.block = int(self.rows.count.max()), int(self.columns.count.max())

    def plain(self, planes: Tensor) -> Tensor:
        """The resize itself: [K, h, w] -> [K, H, W]."""
        return torch.ops.aten.upsample_bilinear2d.default(planes[None], list(self.size), False, *self.scales)[0]

    def strongest_plane(
        self, planes: Tensor, mix: Callable[[Tensor], Tensor] | None = None, dtype: torch.dtype = torch.int64
    ) -> Tensor:
        """[H, W]: `plain(planes).argmax(0)` for planes [K, h, w]; ties go to the lowest index.

        With `mix`, the argmax of what it makes of the planes, cell by cell: it is given some rows of them at a time,
        [K, some, w] -> [C, some, w], so that C planes need not exist together.
        """
        if not _is_for_loops(planes):
            return self._strongest_plane(planes if mix is None else mix(planes)).to(dtype)
        result = planes.new_empty(self.size, dtype=dtype)
        rows, columns, array = self.rows.arrays(), self.columns.arrays(), result.numpy()
        count = len(planes) if mix is None else len(mix(planes[:, :1]))
        bands = self._bands(BAND_VALUES // max(1, count * self.cells[1]))

        def work(numbers: Iterator[int]) -> None:
            for number in numbers:
                start, stop = bands[number]
                first, last = int(rows[0][start]), int(rows[1][stop - 1])
                band = planes[:, first : last + 1]
                band = (band if mix is None else mix(band)).contiguous().numpy()
                find_strongest(band, first, bands[number], rows, columns, MARGIN, array)

        in_threads(work, len(bands))
        return result

    def _strongest_plane(self, planes: Tensor) -> Tensor:
        best, winner = self._corners(planes, torch.minimum).max(0)  # [g, f]: at least this much is reached
        contested = self._corners(planes, torch.maximum) >= best - MARGIN * best.abs()  # [K, g, f]
        open_blocks = (contested.sum(0, dtype=torch.int32) > 1).nonzero()  # [b, 2]
        if len(open_blocks) * math.prod(self.block) * 2 > self.size[0] * self.size[1] * len(planes):
            return self.plain(planes).argmax(0)
        result = self._spread(winner)
        if len(open_blocks) == 0:
            return result
        for blocks in open_blocks.split(self._blocks_at_once):
            self._settle(planes, contested, blocks, result)
        return result

    def areas_above(self, planes: Tensor, threshold: float) -> Tensor:
        """int64 [K]: pixels of `plain(planes)` that reach the threshold."""
        if _is_for_loops(planes):
            return self._mark(planes, threshold, planes.new_empty(0, 0, dtype=torch.int32))
        inside, open_blocks = self._above(planes, threshold)
        # Products count faster than integers do: float32 is exact for a row, and float64 for the rows together.
        areas = ((inside.float() @ self.columns.count.float()).double() @ self.rows.count.double()).long()
        for entries in open_blocks.split(self._blocks_at_once):
            reached = self._interpolate(planes, entries[:, 0], entries[:, 1:]) >= threshold
            areas.index_add_(0, entries[:, 0], (reached & self._exists(entries[:, 1:])).sum((1, 2)))
        return areas

    def mask_above(self, plane: Tensor, threshold: float) -> Tensor:
        """bool [H, W]: where `plain(plane)` of a plane [h, w] reaches the threshold."""
        if _is_for_loops(plane):
            result = plane.new_zeros(self.size, dtype=torch.uint8)
            self._mark(plane[None], threshold, result, 1)
            return result.view(torch.bool)
        inside, entries = self._above(plane[None], threshold)
        result = self._spread(inside[0])
        for part in entries.split(self._blocks_at_once):
            values = self._interpolate(plane[None], part[:, 0], part[:, 1:])
            self._write(result, part[:, 1:], values >= threshold)
        return result

    def topmost(self, planes: Tensor, threshold: float) -> Tensor:
        """int32 [H, W]: the first of the planes [K, h, w] that reaches the threshold there, -1 where none does."""
        if _is_for_loops(planes):
            result = planes.new_full(self.size, -1, dtype=torch.int32)
            self._mark(planes, threshold, result)
            return result
        inside, entries = self._above(planes, threshold)
        first = torch.where(inside.any(0), inside.to(torch.uint8).argmax(0), len(planes))  # [g, f]
        entries = entries[entries[:, 0] < first[entries[:, 1], entries[:, 2]]]  # the others lie underneath
        first = torch.where(first < len(planes), first, -1).to(torch.int32)
        result = self._spread(first)
        counts = entries[:, 0].bincount(minlength=len(planes)).tolist()
        # From the last to the first, so that the first remains.
        for part in reversed(entries.split(counts)):
            for few in part.split(self._blocks_at_once):
                reached = self._interpolate(planes, few[:, 0], few[:, 1:]) >= threshold
                rows, columns = self._pixels(few[:, 1:])
                before = result[rows[:, :, None], columns[:, None, :]]
                self._write(result, few[:, 1:], torch.where(reached, few[:, :1, None].to(torch.int32), before))
        return result

    def _bands(self, most: int) -> list[tuple[int, int]]:
        """Rows of blocks, `most` of them in a band, as (start, stop)."""
        count = len(self.rows.low)
        step = max(1, min(most, count // LEAST_BANDS))
        return [(start, min(start + step, count)) for start in range(0, count, step)]

    def _mark(self, planes: Tensor, threshold: float, result: Tensor, offset: int = 0) -> Tensor:
        """int64 [K]: areas above the threshold; `result`, unless it is empty, is filled as `mark_above` says."""
        bands, margin = self._bands(len(self.rows.low)), MARGIN * abs(threshold)
        areas = planes.new_zeros(len(bands), len(planes), dtype=torch.int64)
        rows, columns = self.rows.arrays(), self.columns.arrays()
        values, counts, marks = planes.contiguous().numpy(), areas.numpy(), result.numpy()

        def work(numbers: Iterator[int]) -> None:
            for number in numbers:
                mark_above(values, threshold, margin, bands[number], rows, columns, counts[number], marks, offset)

        in_threads(work, len(bands))
        return areas.sum(0)

    @property
    def _blocks_at_once(self) -> int:
        return max(1, PIXELS_AT_ONCE // math.prod(self.block))

    def _spread(self, values: Tensor) -> Tensor:
        """One value per block [g, f] to one per pixel [H, W]."""
        return values.repeat_interleave(self.rows.count, 0).repeat_interleave(self.columns.count, 1)

    def _corners(self, planes: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The largest or smallest corner of every block, [K, h, w] -> [K, g, f]; a few planes at once."""
        rows, columns = self.rows, self.columns
        found: list[Tensor] = []
        for part in planes.split(max(1, VALUES_AT_ONCE // max(1, planes[:1].numel()))):
            picked = pick(part.index_select(1, rows.low), part.index_select(1, rows.high))
            found.append(pick(picked.index_select(2, columns.low), picked.index_select(2, columns.high)))
        return torch.cat(found)

    def _above(self, planes: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Blocks that reach the threshold everywhere [K, g, f], and those that do so in part, as [b, (k, g, f)]."""
        margin = MARGIN * abs(threshold)
        inside = self._corners(planes, torch.minimum) >= threshold + margin
        reaches = self._corners(planes, torch.maximum) >= threshold - margin
        return inside, (reaches & ~inside).nonzero()

    def _settle(self, planes: Tensor, contested: Tensor, blocks: Tensor, result: Tensor) -> None:
        """Compares, in each block, the planes that may win there, in the order of their indices."""
        entries = contested[:, blocks[:, 0], blocks[:, 1]].T.nonzero()  # [n, (block, plane)], sorted
        count = entries[:, 0].bincount(minlength=len(blocks))
        first = count.cumsum(0) - count
        best = planes.new_full((len(blocks), *self.block), -torch.inf)
        winner = torch.zeros(best.shape, dtype=torch.int64, device=planes.device)
        for rank in range(int(count.max())):
            left = (count > rank).nonzero().flatten()
            plane = entries[first[left] + rank, 1]
            values = self._interpolate(planes, plane, blocks[left])
            before = best[left]
            stronger = values > before
            best[left] = torch.where(stronger, values, before)
            winner[left] = torch.where(stronger, plane[:, None, None], winner[left])
        self._write(result, blocks, winner)

    def _pixels(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [b, r] and columns [b, c] of the blocks' pixels; smaller blocks repeat their last."""
        (row, column), (height, width) = blocks.unbind(1), self.block
        return self.rows.pixels(row, height), self.columns.pixels(column, width)

    def _exists(self, blocks: Tensor) -> Tensor:
        """bool [b, r, c]: False for the repetitions in smaller blocks."""
        rows, columns = (
            torch.arange(most, device=blocks.device) < axis.count[block, None]
            for axis, most, block in zip((self.rows, self.columns), self.block, blocks.unbind(1), strict=True)
        )
        return rows[:, :, None] & columns[:, None, :]

    def _interpolate(self, planes: Tensor, index: Tensor, blocks: Tensor) -> Tensor:
        """Values [b, r, c] of the planes `index` [b] in the blocks [b, 2]."""
        rows, columns = self._pixels(blocks)
        below = self.rows.weight[rows][:, :, None]  # [b, r, 1]
        right = self.columns.weight[columns][:, None, :]  # [b, 1, c]
        top, bottom = self.rows.low[blocks[:, 0]], self.rows.high[blocks[:, 0]]
        before, after = self.columns.low[blocks[:, 1]], self.columns.high[blocks[:, 1]]
        corners = [planes[index, y, x][:, None, None] for y in (top, bottom) for x in (before, after)]
        upper = corners[0] * (1 - right) + corners[1] * right  # [b, 1, c]
        lower = corners[2] * (1 - right) + corners[3] * right
        return upper * (1 - below) + lower * below

    def _write(self, result: Tensor, blocks: Tensor, values: Tensor) -> None:
        rows, columns = self._pixels(blocks)
        # A repeated pixel is written several times with the same value: the repetitions use its own weights.
        result[rows[:, :, None], columns[:, None, :]] = values


def _is_for_loops(planes: Tensor) -> bool:
    plain = planes.device.type == "cpu" and planes.dtype == torch.float32 and type(planes) is Tensor
    return compiled.available and plain and not torch.compiler.is_compiling()
