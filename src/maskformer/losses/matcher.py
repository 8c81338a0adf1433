"""Bipartite matching of queries and targets (MaskFormer, section 3.2).

Shapes: B batch, Q queries, C classes, N targets of one image, H W image, h w stride-4 map, K = h w.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.kernels.matching_cost import matching_costs
from maskformer.kernels.packed_masks import PackedMasks
from maskformer.losses.mask_loss import FOCAL_ALPHA, in_full_precision
from maskformer.losses.targets import check_predictions, checked_targets


def pairwise_focal_cost(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Focal loss between every query and every target, mean over the pixels.

    Source: arXiv 1708.02002, section 3.2.

    Args:
        logits: [Q, K] mask logits, float32 or float64.
        targets: [N, K] in {0, 1}, of the same type.
        valid: [K] in {0, 1}, of the same type; 0 where a pixel counts for nothing.

    Returns:
        [Q, N] costs >= 0.

    Raises:
        Nothing: `MaskFormerHungarianMatcher` checks its arguments, before.

    Examples:
        >>> cost = pairwise_focal_cost(torch.zeros(5, 64), torch.ones(2, 64))
        >>> tuple(cost.shape)  # [Q, N]
        (5, 2)
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
    """Dice loss between every query and every target; arguments and result as for `pairwise_focal_cost`.

    Source: arXiv 1606.04797, section 3.

    Raises:
        Nothing: `MaskFormerHungarianMatcher` checks its arguments, before.

    Examples:
        >>> cost = pairwise_dice_cost(torch.full((5, 64), 20.0), torch.ones(2, 64))
        >>> tuple(cost.shape), round(abs(float(cost.max())), 3)  # [Q, N]
        ((5, 2), 0.0)
    """
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

    Source: arXiv 2107.06278, section 3.2; arXiv 2005.12872, section 3.1.

    Raises:
        ValueError: when all three weights are 0; when called, predictions or targets of a wrong shape, type or value.
        FloatingPointError: when called, predictions that are not finite.

    Examples:
        >>> matcher = MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
        >>> logits = torch.full((1, 5, 8, 8), -5.0)  # [B, Q, h, w]
        >>> logits[0, 3] = 5.0
        >>> masks, labels = torch.ones(1, 32, 32, dtype=torch.bool), torch.tensor([2])
        >>> matcher(logits, torch.zeros(1, 5, 4), [masks], [labels])  # query 3 answers for target 0
        [(tensor([3]), tensor([0]))]
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
        mask_labels: Sequence[Tensor | PackedMasks] | Tensor,
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
        masks, labels, valid = checked_targets(mask_labels, class_labels, valid_mask, class_queries_logits)
        return self.match_heads([(masks_queries_logits, class_queries_logits)], masks, labels, valid)[0]

    @torch.no_grad()
    def match_heads(
        self,
        heads: Sequence[tuple[Tensor, Tensor]],
        masks: Sequence[Tensor | PackedMasks],
        labels: Sequence[Tensor],
        valid: Tensor | None = None,
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """What `forward` returns, of each head's mask and class logits; one copy to the host for all of them.

        The targets must be as `checked_targets` gives them.
        """
        device, num_queries = heads[0][1].device, heads[0][1].shape[1]
        self._warn_of_surplus(labels, num_queries)
        costs: list[Tensor] = []
        with torch.autocast(device.type, enabled=False):
            # The targets are looked up once per image and size, not for every head.
            cells = cache(
                lambda image, *size: (
                    _nearest(masks[image], size),
                    None if valid is None else _nearest(valid[image][None], size)[0],
                )
            )
            for masks_logits, class_logits in heads:
                costs += [
                    self._costs(own_masks, own_classes, *cells(image, *own_masks.shape[-2:]), labels[image])
                    for image, (own_masks, own_classes) in enumerate(zip(masks_logits, class_logits, strict=True))
                ]
        pairs, batch_size = _assign(costs, len(labels), device), len(labels)
        return [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]

    def _costs(
        self, masks_logits: Tensor, class_logits: Tensor, targets: Tensor, pixels: Tensor | None, labels: Tensor
    ) -> Tensor:
        """[Q, N] of one image; targets [N, K] and valid pixels [K] bool."""
        if len(labels) == 0:
            return class_logits.new_zeros((len(class_logits), 0), dtype=torch.float32)
        probs = in_full_precision(class_logits).softmax(dim=-1)  # [Q, C+1]
        if masks_logits.device.type == "cpu":
            focal, dice = matching_costs(masks_logits, targets, pixels)
        else:
            logits = in_full_precision(masks_logits).flatten(1)  # [Q, K]
            arguments = logits, targets.to(logits.dtype), None if pixels is None else pixels.to(logits.dtype)
            focal, dice = pairwise_focal_cost(*arguments), pairwise_dice_cost(*arguments)
        return self.cost_class * -probs[:, labels.to(probs.device)] + self.cost_mask * focal + self.cost_dice * dice

    def _warn_of_surplus(self, labels: Sequence[Tensor], num_queries: int) -> None:
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


def _nearest(masks: Tensor | PackedMasks, size: tuple[int, int]) -> Tensor:
    """bool [N, K] at another size."""
    if isinstance(masks, PackedMasks):
        return masks.with_planes(_pick(masks.planes, size)).unpack().flatten(1)  # [N, K]
    return _pick(masks, size).flatten(1)  # [N, K]


def _pick(planes: Tensor, size: tuple[int, int]) -> Tensor:
    # The cells that nearest interpolation picks, then two gathers: interpolating the masks themselves takes ten times
    # as long, because torch's kernel is made for many channels.
    rows, columns = (
        F.interpolate(torch.arange(length, dtype=torch.float64, device=planes.device)[None, None], cells)
        .long()
        .flatten()
        for length, cells in zip(planes.shape[-2:], size, strict=True)
    )
    return planes[:, rows[:, None], columns]


def _assign(costs: list[Tensor], batch_size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Hungarian assignment on the CPU; all cost matrices travel there, and all indices back, in one copy each."""
    host = torch.cat([cost.flatten() for cost in costs]).cpu().split([cost.numel() for cost in costs])
    pairs: list[Tensor] = []
    for number, (cost, values) in enumerate(zip(costs, host, strict=True)):
        if not values.isfinite().all():
            raise FloatingPointError(
                f"The matching costs of image {number % batch_size} are non-finite: masks_queries_logits or "
                "class_queries_logits of this image holds NaN, infinity or values too large for float32."
            )
        chosen = linear_sum_assignment(values.view(cost.shape).numpy())
        pairs.append(torch.from_numpy(np.stack(chosen).astype(np.int64)))  # [2, min(Q, N)]
    numbers = [pair.shape[1] for pair in pairs]
    queries, targets = torch.cat(pairs, dim=1).to(device)  # [pairs of all images] each
    return list(zip(queries.split(numbers), targets.split(numbers), strict=True))
