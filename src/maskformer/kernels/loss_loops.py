"""The loss on the CPU as compiled loops: exponential and logarithm, the walk over a matched pair, the matching cost.

They stand in one file because numba, which keeps machine code on the disk, notices changes of their own file only.

Exponential and logarithm are in float32 such that LLVM vectorises them, which it does not do to library calls:
polynomials with the least largest relative error, found by iterated weighted least squares, within 2e-7 of the exact
values.

The walk (see `kernels.mask_loss`) looks at each pixel of a pair once. Bilinear upsampling is separable: a row of the
small map is widened once and serves all large rows beside it. On the way back the gradients of a large row are added
to the two wide rows it was made of, each of which is narrowed once. So the work per pixel has no indirect reads,
whatever the factor, and is vectorised.

The matching cost (see `kernels.matching_cost`) is made of sums over blocks of pixels that stay in the cache.

Shapes: H W target, h w stride-4 map; 3 maps are brought back: of the focal loss, slope and t slope. Q queries,
N targets, K pixels of a map, n pixels of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskformer.kernels.compiled import compiled, inlined, inlined_sums

__all__ = ["LARGEST", "TARGETS_AT_ONCE", "add_products", "exp_of_minus", "log1p_of_fraction", "walk"]

f32 = np.float32
ZERO, HALF, THREE_QUARTERS, ONE, TWO, THREE = f32(0), f32(0.5), f32(0.75), f32(1), f32(2), f32(3)

# exp(-28) = 7e-13 is the least probability of being wrong that counts. Its cube is about the smallest normal number;
# with subnormal ones, as surer masks would make them, processors take half as long again or longer.
LARGEST = f32(28)
LOG2_E = f32(1.44269504)
# Added to a number of moderate size, it leaves the nearest integer, plus the exponent's offset of 127, in the low bits.
ROUNDING = f32(1.5 * 2**23 + 127)
EXPONENT_PLACE = np.int32(23)
LOG_2, LOG_2_REST = f32(0.693359375), f32(-2.12194440e-4)  # the first has few bits: its multiples are exact
E2, E3, E4, E5, E6 = f32(0.49999992), f32(0.1666642), f32(0.041668224), f32(0.008374824), f32(0.0013836835)
L0, L1, L2, L3, L4 = f32(0.99999994), f32(-0.49999493), f32(0.33319098), f32(-0.24842982), f32(0.19106007)
L5, L6, L7, L8 = f32(-0.13663244), f32(0.07822593), f32(-0.029505229), f32(0.0052326913)

PIXELS_AT_ONCE = 512  # two maps of a query and 20 targets in float32 are an L1 cache
TARGETS_AT_ONCE = 4  # of two products each, whose eight sums stay in registers


@inlined
def exp_of_minus(value: np.float32) -> np.float32:
    """exp(-value) for value >= 0, but exp(-28) from 28 on. NaN stays NaN."""
    value = LARGEST if value > LARGEST else value
    shifted = f32(ROUNDING - value * LOG2_E)  # the exponent of 2
    number = shifted - ROUNDING
    rest = -value - number * LOG_2
    rest = rest - number * LOG_2_REST  # -value - number * log(2), at most log(2) / 2 away from 0
    power = (((((E6 * rest + E5) * rest + E4) * rest + E3) * rest + E2) * rest + ONE) * rest + ONE
    return power * np.int32(shifted.view(np.int32) << EXPONENT_PLACE).view(np.float32)


@inlined
def log1p_of_fraction(value: np.float32) -> np.float32:
    """log(1 + value) for value from 0 to 1."""
    high = (((L8 * value + L7) * value + L6) * value + L5) * value + L4
    return value * ((((high * value + L3) * value + L2) * value + L1) * value + L0)


@inlined
def _places(small: int, large: int) -> tuple[Any, Any]:
    """Where the large pixels of an axis lie between small ones: the last small pixel before each (the first one for
    those before it), and their weights for the one behind it."""
    places, weights = np.empty(large, np.int32), np.empty(large, np.float32)
    for number in range(large):
        place = max(0.0, (number + 0.5) * small / large - 0.5)
        places[number] = int(place)
        weights[number] = place - int(place)
    return places, weights


@inlined
def _starts(places: Any, small: int) -> Any:
    """The large pixels of a small one are those from its start to the next; unsigned, which saves checking the sign."""
    starts = np.zeros(small + 1, np.uint32)
    for place in places:
        starts[place + 1] += 1
    for place in range(small):
        starts[place + 1] += starts[place]
    return starts


@inlined
def _widen(row: Any, starts: Any, weights: Any, wide: Any) -> None:
    last = len(row) - 1
    for place in range(last + 1):
        value = row[place]
        step = row[min(place + 1, last)] - value
        for x in range(starts[place], starts[place + 1]):
            wide[x] = value + weights[x] * step


@inlined
def _narrow(wide: Any, starts: Any, weights: Any, maps: Any, row: int) -> None:
    """The adjoint of `_widen`: moves `wide` [3, W] to a row of `maps` [3, h, w]."""
    wide0, wide1, wide2 = wide[0], wide[1], wide[2]
    map0, map1, map2 = maps[0, row], maps[1, row], maps[2, row]
    last = len(map0) - 1
    next0 = next1 = next2 = ZERO
    for place in range(last + 1):
        sum0, sum1, sum2 = next0, next1, next2
        next0 = next1 = next2 = ZERO
        for x in range(starts[place], starts[place + 1]):
            value0, value1, value2, weight = wide0[x], wide1[x], wide2[x], weights[x]
            sum0, sum1, sum2 = sum0 + value0, sum1 + value1, sum2 + value2
            next0, next1, next2 = next0 + weight * value0, next1 + weight * value1, next2 + weight * value2
        map0[place] += sum0 - next0
        map1[place] += sum1 - next1
        map2[place] += sum2 - next2
    map0[last] += next0
    map1[last] += next1
    map2[last] += next2
    wide[:] = ZERO


@inlined_sums
def _rows(
    above: Any, below: Any, weights: Any, plane: Any, bits: Any, value: Any, valid: Any, upper: Any, lower: Any
) -> tuple[Any, Any, Any, Any]:
    """Sums of t, p, t p and the focal loss over rows; their gradients are added to `upper` and `lower` [3, W]."""
    target_area = wrong = wrong_target = focal = ZERO
    if upper is None:
        upper0 = upper1 = upper2 = lower0 = lower1 = lower2 = above  # not used
    else:  # indexed by two numbers in the loop, they would keep LLVM from vectorising it
        upper0, upper1, upper2 = upper[0], upper[1], upper[2]
        lower0, lower1, lower2 = lower[0], lower[1], lower[2]
    for y in range(len(plane)):
        weight, line = weights[y], plane[y]
        valid_line: Any = None if valid is None else valid[y]
        for x in range(len(above)):
            t = ONE if np.int32(line[x]) & bits == value else ZERO
            logit = above[x] + weight * (below[x] - above[x])
            z = logit * (ONE - TWO * t)
            e = exp_of_minus(abs(z))
            s = log1p_of_fraction(e) + (ZERO if z < ZERO else z)
            q = ONE / (ONE + e)  # 1 - p or p, whichever is the larger
            if valid is not None:
                v = ONE if valid_line[x] else ZERO
                q, t = q * v, t * v
            p = e * q if z < ZERO else q
            slope, p2 = e * q * q, p * p
            target_area += t
            wrong += p
            wrong_target += t * p
            focal += (THREE_QUARTERS - HALF * t) * p2 * s
            if upper is not None:
                gradient, target_slope = (THREE_QUARTERS - t) * p * (p2 + TWO * slope * s), t * slope
                upper0[x] += (ONE - weight) * gradient
                upper1[x] += (ONE - weight) * slope
                upper2[x] += (ONE - weight) * target_slope
                lower0[x] += weight * gradient
                lower1[x] += weight * slope
                lower2[x] += weight * target_slope
    return target_area, wrong, wrong_target, focal


@compiled
def walk(
    logits: Any, plane: Any, bits: Any, value: Any, valid: Any, num_valid: int, gradient: Any
) -> tuple[float, float]:
    """The focal and the dice loss of a pair.

    Args:
        logits: float32 [h, w], like all arrays contiguous.
        plane: integers [H, W]; the target is where `plane & bits == value`.
        valid: bool [H, W] or None.
        num_valid: what the sum of the focal loss is divided by.
        gradient: float32 [2, h, w] to be filled with the gradients of the two, or None.
    """
    (small_height, small_width), (height, width) = logits.shape, plane.shape
    tops, row_weights = _places(small_height, height)
    columns, weights = _places(small_width, width)
    starts = _starts(columns, small_width)
    above, below = np.empty(width, np.float32), np.empty(width, np.float32)
    bits, value = np.int32(bits), np.int32(value)
    maps: Any = None
    upper: Any = None
    lower: Any = None
    if gradient is not None:
        maps = np.zeros((3, small_height, small_width), np.float32)
        upper, lower = np.zeros((3, width), np.float32), np.zeros((3, width), np.float32)
    target_area = wrong = wrong_target = focal = 0.0
    loaded, last = -2, small_height - 1
    stop = 0
    while stop < height:
        start, top = stop, tops[stop]
        while stop < height and tops[stop] == top:
            stop += 1
        if gradient is not None and loaded >= 0:
            _narrow(upper, starts, weights, maps, loaded)
            upper, lower = lower, upper
            if top != loaded + 1:
                _narrow(upper, starts, weights, maps, min(loaded + 1, last))
        if top == loaded + 1:
            above, below = below, above
        else:
            _widen(logits[top], starts, weights, above)
        _widen(logits[min(top + 1, last)], starts, weights, below)
        loaded = top
        few = None if valid is None else valid[start:stop]
        sums = _rows(above, below, row_weights[start:stop], plane[start:stop], bits, value, few, upper, lower)
        target_area += sums[0]
        wrong += sums[1]
        wrong_target += sums[2]
        focal += sums[3]
    area = 1 + wrong - 2 * wrong_target + 2 * target_area
    dice = wrong / area
    if gradient is not None:
        _narrow(upper, starts, weights, maps, loaded)
        _narrow(lower, starts, weights, maps, min(loaded + 1, last))
        gradient[0] = maps[0] * f32(1 / num_valid)
        gradient[1] = maps[1] * f32((1 - dice) / area) - maps[2] * f32(2 / area)
    return focal / num_valid, dice


@inlined_sums
def _maps(logits: Any, valid: Any, difference: Any, probs: Any) -> tuple[Any, Any]:
    """4 (on - off) and p of a row [n] are written, and the sums of 4/3 off and p returned."""
    off_sum = area = ZERO
    for k in range(len(logits)):
        x = logits[k]
        e = exp_of_minus(abs(x))
        log = log1p_of_fraction(e)
        near = ONE / (ONE + e)
        far = e * near
        if valid is not None:
            v = ONE if valid[k] else ZERO
            near, far = near * v, far * v
        p, rest = (far, near) if x < ZERO else (near, far)  # sigmoid(x) and 1 - sigmoid(x)
        off = p * p * (log + (ZERO if x < ZERO else x))
        difference[k] = rest * rest * (log + (-x if x < ZERO else ZERO)) - THREE * off
        probs[k] = p
        off_sum += off
        area += p
    return off_sum, area


@inlined_sums
def _convert(target: Any, valid: Any, row: Any) -> Any:
    """The target as numbers, and its area."""
    area = ZERO
    for k in range(len(target)):
        t = ONE if target[k] else ZERO
        row[k] = t
        area += t if valid is None or valid[k] else ZERO
    return area


@inlined_sums
def _products(difference: Any, probs: Any, target0: Any, target1: Any, target2: Any, target3: Any) -> Any:
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = ZERO
    for k in range(len(difference)):
        d, p = difference[k], probs[k]
        t0, t1, t2, t3 = target0[k], target1[k], target2[k], target3[k]
        a0 += d * t0
        a1 += d * t1
        a2 += d * t2
        a3 += d * t3
        b0 += p * t0
        b1 += p * t1
        b2 += p * t2
        b3 += p * t3
    return (a0, a1, a2, a3), (b0, b1, b2, b3)


@compiled
def add_products(logits: Any, targets: Any, valid: Any, products: Any, sums: Any, areas: Any) -> None:
    """Adds up over the pixels, with `on` and `off` as in `kernels.matching_cost`.

    Args:
        logits: float32 [Q, K], like all arrays contiguous.
        targets: bool [N, K]
        valid: bool [K] or None.
        products: float64 [Q, 2, N + 3 or more], to which the sums of 4 (on - off) t and p t are added.
        sums: float64 [Q, 2], to which those of 4/3 off and p are added.
        areas: float64 [N], to which those of t are added.
    """
    num_queries, num_pixels = logits.shape
    num_targets = len(targets)
    padded = -(-num_targets // TARGETS_AT_ONCE) * TARGETS_AT_ONCE
    # A copy, because pixels of several targets that lie some power of 2 apart would push each other out of the cache.
    block = np.zeros((padded, PIXELS_AT_ONCE), np.float32)
    maps = np.empty((2, PIXELS_AT_ONCE), np.float32)
    for start in range(0, num_pixels, PIXELS_AT_ONCE):
        size = min(PIXELS_AT_ONCE, num_pixels - start)
        difference, probs = maps[0][:size], maps[1][:size]
        line = None if valid is None else valid[start : start + size]
        for number in range(num_targets):
            areas[number] += _convert(targets[number][start : start + size], line, block[number])
        for query in range(num_queries):
            off_sum, area = _maps(logits[query][start : start + size], line, difference, probs)
            sums[query, 0] += off_sum
            sums[query, 1] += area
            for first in range(0, padded, TARGETS_AT_ONCE):
                found = _products(difference, probs, block[first], block[first + 1], block[first + 2], block[first + 3])
                for number in range(TARGETS_AT_ONCE):
                    products[query, 0, first + number] += found[0][number]
                    products[query, 1, first + number] += found[1][number]
