"""Bipartite matching of queries and targets (MaskFormer, section 3.2).

Shapes: B batch, Q queries, C classes, N targets of one image, H W image, h w stride-4 map, K = h w.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.kernels.matching_cost import matching_costs
from maskformer.losses.mask_loss import FOCAL_ALPHA, in_full_precision
from maskformer.losses.targets import check_predictions, checked_class_labels, checked_masks

__all__ = ["MaskFormerHungarianMatcher", "pairwise_dice_cost", "pairwise_focal_cost"]


def pairwise_focal_cost(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Focal loss between every query and every target, mean over the pixels.

    Args:
        logits: [Q, K] mask logits, float32 or float64.
        targets: [N, K] in {0, 1}, of the same type.
        valid: [K] in {0, 1}, of the same type; 0 where a pixel counts for nothing.

    Returns:
        [Q, N] costs >= 0.
    """
    probs = logits.sigmoid()
    on_mask = FOCAL_ALPHA * (1 - probs).square() * F.softplus(-logits)  # [Q, K] cost where the target is 1
    off_mask = (1 - FOCAL_ALPHA) * probs.square() * F.softplus(logits)  # [Q, K] cost where it is 0
    num_pixels = logits.shape[1] if valid is None else valid.sum().clamp(min=1)
    if valid is not None:
        on_mask, off_mask = on_mask * valid, off_mask * valid
    # sum of on * t + off * (1 - t) over the pixels, with one matrix product instead of two
    return ((on_mask - off_mask) @ targets.T + off_mask.sum(dim=1, keepdim=True)) / num_pixels


def pairwise_dice_cost(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Dice loss between every query and every target; arguments and result as for `pairwise_focal_cost`."""
    probs = logits.sigmoid()
    if valid is not None:
        probs, targets = probs * valid, targets * valid
    area = probs.sum(dim=1, keepdim=True) + targets.sum(dim=1)  # [Q, N]
    return 1 - (2 * (probs @ targets.T) + 1) / (area + 1)


class MaskFormerHungarianMatcher(nn.Module):
    """Assigns to each target of an image the query that predicts it best, one query per target.

    cost[query, target] = cost_class * -probability of the target's class + cost_mask * focal + cost_dice * dice,
    all at the resolution of the predictions; the targets are brought there with nearest interpolation. The class term
    is a probability and not the loss's logarithm of it because it must weigh comparably with the mask terms: a class
    that is a little unlikely must not forbid a perfect mask.

    Raises:
        ValueError: when all three weights are 0.
    """

    def __init__(self, cost_class: float = 1.0, cost_mask: float = 1.0, cost_dice: float = 1.0) -> None:
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError(
                "cost_class, cost_mask and cost_dice are all 0, but at least one must be non-zero to match."
            )
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self._warned_of_surplus = False

    @torch.no_grad()
    def forward(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: Sequence[Tensor] | Tensor,
        class_labels: Sequence[Tensor] | Tensor,
        valid_mask: Tensor | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Matches the images of a batch, each for itself; arguments and errors as for `MaskFormerLoss.forward`.

        Returns:
            Per image two int64 tensors of length min(Q, N), on the device of the logits: the queries in ascending
            order and the target of each. N may be 0. With more targets than queries the worst-fitting targets stay
            out, which is said once per matcher in a warning.
        """
        check_predictions(masks_queries_logits, class_queries_logits, "the predictions")
        batch_size, num_queries, num_classes = class_queries_logits.shape
        device = class_queries_logits.device
        labels = checked_class_labels(class_labels, batch_size, num_classes - 1)
        masks, valid = checked_masks(mask_labels, valid_mask, labels, device)
        self._warn_of_surplus(labels, num_queries)
        with torch.autocast(device.type, enabled=False):
            costs = [
                self._costs(masks_queries_logits[i], class_queries_logits[i], masks[i], labels[i], image_valid)
                for i, image_valid in enumerate([None] * batch_size if valid is None else valid)
            ]
        return _assign(costs, device)

    def _costs(
        self, masks_logits: Tensor, class_logits: Tensor, masks: Tensor, labels: Tensor, valid: Tensor | None
    ) -> Tensor:
        """[Q, N] of one image."""
        if len(labels) == 0:
            return class_logits.new_zeros((len(class_logits), 0), dtype=torch.float32)
        size = (masks_logits.shape[-2], masks_logits.shape[-1])
        logits = in_full_precision(masks_logits).flatten(1)  # [Q, K]
        targets = _nearest(masks, size).to(logits.dtype)  # [N, K]
        pixels = None if valid is None else _nearest(valid[None], size)[0].to(logits.dtype)  # [K]
        probs = in_full_precision(class_logits).softmax(dim=-1)  # [Q, C+1]
        if logits.device.type == "cpu":
            focal, dice = matching_costs(logits, targets, pixels)
        else:
            focal, dice = pairwise_focal_cost(logits, targets, pixels), pairwise_dice_cost(logits, targets, pixels)
        return self.cost_class * -probs[:, labels.to(probs.device)] + self.cost_mask * focal + self.cost_dice * dice

    def _warn_of_surplus(self, labels: list[Tensor], num_queries: int) -> None:
        image, most = max(enumerate(map(len, labels)), key=lambda pair: pair[1])
        if most > num_queries and not self._warned_of_surplus:
            self._warned_of_surplus = True
            warnings.warn(
                f"Image {image} of the batch has {most} targets but the model has only {num_queries} queries, so "
                f"{most - num_queries} targets stay out of the loss; raise num_queries. This is said only once.",
                UserWarning,
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        return f"cost_class={self.cost_class}, cost_mask={self.cost_mask}, cost_dice={self.cost_dice}"


def _nearest(masks: Tensor, size: tuple[int, int]) -> Tensor:
    # The cells that nearest interpolation picks, then two gathers: interpolating the masks themselves takes ten times
    # as long, because torch's kernel is made for many channels.
    rows, columns = (
        F.interpolate(torch.arange(length, dtype=torch.float64, device=masks.device)[None, None], cells)
        .long()
        .flatten()
        for length, cells in zip(masks.shape[-2:], size, strict=True)
    )
    return masks[:, rows[:, None], columns].flatten(1)  # [N, K]


def _assign(costs: list[Tensor], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Hungarian assignment on the CPU; all cost matrices travel there, and all indices back, in one copy each."""
    host = torch.cat([cost.flatten() for cost in costs]).cpu().split([cost.numel() for cost in costs])
    pairs: list[Tensor] = []
    for image, (cost, values) in enumerate(zip(costs, host, strict=True)):
        if not values.isfinite().all():
            raise FloatingPointError(
                f"The matching costs of image {image} are non-finite: masks_queries_logits or class_queries_logits "
                "of this image holds NaN, infinity or values too large for float32."
            )
        chosen = linear_sum_assignment(values.view(cost.shape).numpy())
        pairs.append(torch.from_numpy(np.stack(chosen).astype(np.int64)))  # [2, min(Q, N)]
    numbers = [pair.shape[1] for pair in pairs]
    queries, targets = torch.cat(pairs, dim=1).to(device)  # [pairs of all images] each
    return list(zip(queries.split(numbers), targets.split(numbers), strict=True))
