"""The loops of `resized.py`, block by block and compiled; what they decide and why is said there.

An axis comes as the tuple of its five arrays (low, high, start, count, weight), see `resized.Axis`. The output's rows
between two rows of cells are decided together: bounds for all their blocks first, along the cells, where the processor
does sixteen at once, and then the few blocks that are left open.

Shapes: K planes, h w small map, H W output, g f rows and columns of blocks.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from maskformer.kernels.compiled import compiled

Array: TypeAlias = NDArray[Any]
Axis: TypeAlias = tuple[Array, Array, Array, Array, Array]


@compiled
def find_strongest(
    planes: Array, first: int, blocks: tuple[int, int], rows: Axis, columns: Axis, margin: float, result: Array
) -> None:
    """`result` [H, W] gets the strongest of `planes` [K, some rows from `first` on, w] for the rows of `blocks`."""
    low, high, start, count, _ = rows
    left, right, begin, width, _ = columns
    num, across = planes.shape[0], len(left)
    lower, upper = np.empty(planes.shape[2], planes.dtype), np.empty(planes.shape[2], planes.dtype)
    best = np.empty(across, planes.dtype)
    may_win = np.empty(across, np.uint8)
    candidates, found = np.empty((across, num), np.int32), np.empty(across, np.int32)
    line = np.empty(result.shape[1], result.dtype)
    highest = np.empty((count.max(), width.max()), np.float64)  # as the values are: rounded, it is below its equals
    for row in range(blocks[0], blocks[1]):
        top, bottom = low[row] - first, high[row] - first
        best[:] = -np.inf
        for k in range(num):
            above, below = planes[k, top], planes[k, bottom]
            for x in range(len(lower)):
                lower[x] = min(above[x], below[x])
            for f in range(across):
                least = min(lower[left[f]], lower[right[f]])
                best[f] = max(best[f], least)  # at least this much is reached
        for f in range(across):
            best[f] -= margin * abs(best[f])
            found[f] = 0
            candidates[f, 0] = 0  # what stays where all is NaN
        for k in range(num):
            above, below = planes[k, top], planes[k, bottom]
            for x in range(len(upper)):
                upper[x] = max(above[x], below[x])
            hits = 0
            for f in range(across):
                may_win[f] = max(upper[left[f]], upper[right[f]]) >= best[f]
                hits += may_win[f]
            if hits:
                for f in range(across):
                    if may_win[f]:
                        candidates[f, found[f]] = k
                        found[f] += 1
        for f in range(across):
            line[begin[f] : begin[f] + width[f]] = candidates[f, 0]
        for y in range(start[row], start[row] + count[row]):
            result[y] = line
        for f in range(across):
            if found[f] > 1:
                _compare(planes, candidates[f, : found[f]], (top, bottom), (row, f), rows, columns, highest, result)


@compiled
def _compare(
    planes: Array,
    candidates: Array,
    between: tuple[int, int],
    block: tuple[int, int],
    rows: Axis,
    columns: Axis,
    highest: Array,
    result: Array,
) -> None:
    """Interpolates the candidates in one block; the first of equals stays."""
    (top, bottom), (row, f) = between, block
    (_, _, start, count, down), (left, right, begin, width, along) = rows, columns
    highest[:] = -np.inf
    for k in candidates:
        a, b = planes[k, top, left[f]], planes[k, top, right[f]]
        c, d = planes[k, bottom, left[f]], planes[k, bottom, right[f]]
        for i in range(count[row]):
            y = start[row] + i
            for j in range(width[f]):
                x = begin[f] + j
                above, below = a * (1 - along[x]) + b * along[x], c * (1 - along[x]) + d * along[x]
                value = above * (1 - down[y]) + below * down[y]
                if value > highest[i, j]:
                    highest[i, j] = value
                    result[y, x] = k


@compiled
def mark_above(
    planes: Array,
    threshold: float,
    margin: float,
    blocks: tuple[int, int],
    rows: Axis,
    columns: Axis,
    areas: Array,
    result: Array,
    offset: int,
) -> None:
    """Adds to `areas` [K] how many pixels of each plane [K, h, w] reach the threshold, within the rows of `blocks`.

    `result` [H, W], unless it is empty, gets the number of the first such plane plus `offset` where there is one.
    """
    low, high, start, count, down = rows
    left, right, begin, width, along = columns
    sure, possible = threshold + margin, threshold - margin
    for k in range(planes.shape[0] - 1, -1, -1):  # from the last to the first, so that the first remains
        for row in range(blocks[0], blocks[1]):
            above, below = planes[k, low[row]], planes[k, high[row]]
            for f in range(len(left)):
                a, b, c, d = above[left[f]], above[right[f]], below[left[f]], below[right[f]]
                if max(max(a, b), max(c, d)) < possible:
                    continue
                inside = min(min(a, b), min(c, d)) >= sure
                if inside and len(result) == 0:
                    areas[k] += count[row] * width[f]
                    continue
                for y in range(start[row], start[row] + count[row]):
                    for x in range(begin[f], begin[f] + width[f]):
                        upper, lower = a * (1 - along[x]) + b * along[x], c * (1 - along[x]) + d * along[x]
                        if inside or upper * (1 - down[y]) + lower * down[y] >= threshold:
                            areas[k] += 1
                            if len(result):
                                result[y, x] = k + offset
