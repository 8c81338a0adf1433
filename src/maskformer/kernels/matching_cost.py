"""The mask terms of the matching cost on the CPU: focal and dice of every query with every target (section 3.2).

Both are sums over pixels of something of the query where the target is 1 and of something else where it is 0, hence
matrix products; see `maskformer.losses.matcher` for the plain formulation. Here the maps of the queries are made a few
pixel columns at a time, while they fit in the cache, and one product serves both costs.

Shapes: Q queries, N targets of one image, h w stride-4 map, K = h w.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from maskformer.kernels import compiled
from maskformer.kernels.loss_loops import TARGETS_AT_ONCE, add_products
from maskformer.kernels.threads import in_threads

# Queries and pixels of a block: four maps of 100 kB each, and 1024 columns of some ten targets, fit in an L2 cache.
QUERIES_AT_ONCE = 25
PIXELS_AT_ONCE = 1024

# Of some queries the sums over the pixels of (on - off) t and p t [Q, N], of off and p [Q], and of t [N].
Sums = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def matching_costs(masks_logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean focal loss (alpha 0.25, gamma 2) and dice loss between every query and every target; no gradient.

    Args:
        masks_logits: [Q, h, w] or [Q, K] of one head and image, on the CPU. Computed in float32 whatever the type,
            except for float64.
        targets: [N, K] in {0, 1}, of any type; bool is not converted (with numba).
        valid: [K] in {0, 1}, 0 where a pixel counts for nothing.

    Returns:
        Two [Q, N] tensors of costs >= 0, float32 (float64 for float64 logits).
    """
    logits = masks_logits.detach().flatten(1)  # [Q, K]
    assert logits.device.type == "cpu", "elsewhere pairwise_focal_cost and pairwise_dice_cost do the same"
    assert targets.shape[1:] == logits.shape[1:], f"{list(targets.shape)} targets for {list(logits.shape)} logits"
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if compiled.available and dtype == torch.float32:
        targets, valid = targets.bool().contiguous(), None if valid is None else valid.bool().contiguous()
        work_on = partial(_compiled_sums, targets=targets, valid=valid)
    else:
        targets, valid = targets.to(dtype), None if valid is None else valid.to(dtype)
        work_on = partial(_sums, targets=targets, valid=valid)
    parts = torch.split(logits, QUERIES_AT_ONCE)
    found: list[Sums | None] = [None] * len(parts)

    def work(numbers: Iterator[int]) -> None:
        with torch.autocast("cpu", enabled=False):  # it would multiply in bfloat16
            for number in numbers:
                found[number] = work_on(parts[number])

    in_threads(work, len(parts))
    *sums, (target_area, *_) = zip(*(part for part in found if part), strict=True)
    on_minus_off, intersection, off_sum, area = map(torch.cat, sums)
    num_pixels = logits.shape[1] if valid is None else max(1.0, float(valid.sum()))
    focal = (on_minus_off + off_sum[:, None]) / num_pixels
    dice = 1 - (2 * intersection + 1) / (area[:, None] + target_area + 1)
    return focal.to(dtype), dice.to(dtype)


def _compiled_sums(logits: Tensor, targets: Tensor, valid: Tensor | None) -> Sums:
    num_queries, num_targets = len(logits), len(targets)
    products = torch.zeros(num_queries, 2, num_targets + TARGETS_AT_ONCE - 1, dtype=torch.float64, device="cpu")
    sums = torch.zeros(num_queries, 2, dtype=torch.float64, device="cpu")
    areas = torch.zeros(num_targets, dtype=torch.float64, device="cpu")
    add_products(
        logits.float().contiguous().numpy(),
        targets.numpy(),
        None if valid is None else valid.numpy(),
        *(tensor.numpy() for tensor in (products, sums, areas)),
    )
    return 0.25 * products[:, 0, :num_targets], products[:, 1, :num_targets], 0.75 * sums[:, 0], sums[:, 1], areas


def _sums(logits: Tensor, targets: Tensor, valid: Tensor | None) -> Sums:
    """In plain torch.

    With p = sigmoid(x), on = (1 - p)^2 softplus(-x) / 4 is the focal loss where the target is 1, and
    off = 3/4 p^2 softplus(x) where it is 0.
    """
    num_queries, num_pixels = logits.shape
    scratch = targets.new_empty(4, num_queries * PIXELS_AT_ONCE)
    zero = targets.new_zeros(())
    products = targets.new_zeros(2 * num_queries, len(targets))
    off_sum, area = targets.new_zeros(num_queries), targets.new_zeros(num_queries)
    for start in range(0, num_pixels, PIXELS_AT_ONCE):
        columns = slice(start, start + PIXELS_AT_ONCE)
        block, few_targets = logits[:, columns], targets[:, columns]
        difference, probs, off, soft = maps = scratch[:, : block.numel()].view(4, *block.shape)  # [4, Q, n]
        difference.copy_(block)
        torch.sigmoid(difference, out=probs)
        torch.logaddexp(difference, zero, out=soft)  # softplus(x)
        torch.mul(probs, probs, out=off).mul_(soft)  # 4/3 off
        soft -= difference  # softplus(-x)
        torch.sub(probs, 1, out=difference).square_().mul_(soft).sub_(off, alpha=3)  # 4 (on - off)
        if valid is not None:
            maps[:3] *= valid[columns]
        off_sum += off.sum(dim=1)
        area += probs.sum(dim=1)
        products.addmm_(maps[:2].flatten(0, 1), few_targets.T)
    on_minus_off, intersection = products.view(2, num_queries, -1)  # [Q, N]
    target_area = targets.sum(dim=1) if valid is None else targets @ valid
    return 0.25 * on_minus_off, intersection, 0.75 * off_sum, area, target_area
