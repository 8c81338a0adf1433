"""The loss of MaskFormer: matcher, mask loss, criterion (section 3.2). Pure torch and scipy, no network in here."""

from maskformer.losses.criterion import LossNormalizer, MaskFormerLoss
from maskformer.losses.mask_loss import dice_loss, matched_mask_losses, sigmoid_focal_loss
from maskformer.losses.matcher import MaskFormerHungarianMatcher, pairwise_dice_cost, pairwise_focal_cost

__all__ = [
    "LossNormalizer",
    "MaskFormerHungarianMatcher",
    "MaskFormerLoss",
    "dice_loss",
    "matched_mask_losses",
    "pairwise_dice_cost",
    "pairwise_focal_cost",
    "sigmoid_focal_loss",
]
