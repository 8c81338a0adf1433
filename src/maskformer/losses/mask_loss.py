"""Focal and dice loss of matched mask pairs (MaskFormer, section 3.2 and the implementation details of section 4).

The focal loss is that of "Focal Loss for Dense Object Detection" (arXiv 1708.02002, alpha 0.25, gamma 2), the dice loss
that of V-Net (arXiv 1606.04797) with 1 added above and below the fraction, so that two empty masks agree perfectly.

Shapes: P mask pairs, N targets of one image, H W image, h w stride-4 map, K pixels of a mask in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from maskformer.kernels.packed_masks import PackedMasks

FOCAL_ALPHA = 0.25  # weight of the mask's pixels; the background's pixels weigh 1 - alpha. Gamma is 2: a plain square.

# How many full-size pixels are in the works at once: 2M pixels make 8 MB per intermediate map in float32, which keeps
# the peak far below the size of a batch's masks and still feeds an accelerator well.
_PIXELS_AT_ONCE = 2**21


def in_full_precision(values: Tensor) -> Tensor:
    """Float32, or float64 where the input already is: half precision is too coarse for sums over an image."""
    return values if values.dtype == torch.float64 else values.float()


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Focal loss of each mask pair, mean over its pixels.

    Source: arXiv 1708.02002, section 3.2.

    Args:
        logits: [P, K] mask logits, float32 or float64.
        targets: [P, K] bool, True where the mask is.
        valid: [K] bool, False where a pixel counts for nothing; the mean is then over the others.

    Returns:
        [P] losses >= 0; 0 where no pixel is valid.

    Raises:
        Nothing: `MaskFormerLoss` checks its arguments, before.

    Examples:
        >>> loss = sigmoid_focal_loss(torch.zeros(1, 64), torch.ones(1, 64, dtype=torch.bool))
        >>> round(float(loss), 4)  # 1/4 x (1/2)^2 x log 2
        0.0433
    """
    # With the sign turned towards the mistake, both cases of the loss are one formula: the probability of being
    # wrong, squared, times the cross entropy softplus(wrong).
    wrong = torch.where(targets, -logits, logits)  # [P, K]
    alpha = torch.where(targets, FOCAL_ALPHA, 1 - FOCAL_ALPHA)  # [P, K]
    loss = alpha * wrong.sigmoid().square() * F.softplus(wrong)  # [P, K]
    return loss.mean(dim=1) if valid is None else (loss * valid).sum(dim=1) / valid.sum().clamp(min=1)


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Dice loss of each mask pair: 1 - (2 |intersection| + 1) / (|prediction| + |target| + 1), in [0, 1).

    Arguments [P, K] and result [P] as for `sigmoid_focal_loss`.

    Source: arXiv 1606.04797, section 3.

    Raises:
        Nothing: `MaskFormerLoss` checks its arguments, before.

    Examples:
        >>> loss = dice_loss(torch.full((1, 64), 20.0), torch.ones(1, 64, dtype=torch.bool))
        >>> round(float(loss), 3)
        0.0
    """
    probs = logits.sigmoid()
    if valid is not None:
        probs, targets = probs * valid, targets & valid
    area = probs.sum(dim=1) + targets.sum(dim=1)
    return 1 - (2 * (probs * targets).sum(dim=1) + 1) / (area + 1)


def matched_mask_losses(
    logits: Tensor,
    masks: Sequence[Tensor | PackedMasks],
    target_index: Sequence[Tensor],
    valid: Sequence[Tensor] | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`kernels.mask_loss.mask_losses` in plain torch, on any device; its arguments, and its result.

    The pairs are worked on a few at a time and recomputed in the backward pass: what stays in memory between the
    passes is at stride 4, whatever the number of targets. `logits` must be float32 or float64.

    Source: arXiv 2107.06278, section 3.2.

    Raises:
        Nothing: `MaskFormerLoss` checks its arguments, before.

    Examples:
        >>> masks = torch.ones(2, 32, 32, dtype=torch.bool)
        >>> focal, dice = matched_mask_losses(torch.zeros(1, 8, 8), [masks], [torch.tensor([1])])  # one pair: [P, h, w]
        >>> round(float(focal), 4), round(float(dice), 3)
        (0.0433, 0.333)
    """
    losses: list[tuple[Tensor, Tensor]] = []
    for image, of_image in enumerate(torch.split(logits, [len(rows) for rows in target_index])):
        pixels = None if valid is None else valid[image]
        at_once = max(1, _PIXELS_AT_ONCE // math.prod(masks[image].shape[1:]))
        for few, rows in zip(of_image.split(at_once), target_index[image].split(at_once), strict=True):
            few_losses = checkpoint(
                _pair_losses, few, masks[image], rows, pixels, use_reentrant=False, preserve_rng_state=False
            )
            losses.append(few_losses)
    focal, dice = zip(*losses, strict=True)
    return torch.cat(focal), torch.cat(dice)


def _pair_losses(
    logits: Tensor, masks: Tensor | PackedMasks, rows: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    # The targets are gathered in here, and not by the caller, so that no copy of them waits for the backward pass.
    size = (masks.shape[1], masks.shape[2])
    logits = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False).flatten(1)  # [P, K]
    targets = masks[rows].flatten(1)  # [P, K]
    valid = None if valid is None else valid.flatten()  # [K]
    return sigmoid_focal_loss(logits, targets, valid), dice_loss(logits, targets, valid)
