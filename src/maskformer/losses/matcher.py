"""Bipartite matching of queries and targets (MaskFormer, section 3.2), and the checks of the targets it is given.

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

    Args:
        cost_class: weight of the class term.
        cost_mask: weight of the focal term.
        cost_dice: weight of the dice term.

    Raises:
        ValueError: when all three weights are 0.
    """

    def __init__(self, cost_class: float = 1.0, cost_mask: float = 1.0, cost_dice: float = 1.0) -> None:
        super().__init__()
        if cost_class == 0 and cost_mask == 0 and cost_dice == 0:
            raise ValueError(
                "cost_class, cost_mask and cost_dice are all 0, but at least one must be non-zero to match."
            )
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
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
        """Matches the images of a batch, each for itself.

        Args:
            masks_queries_logits: [B, Q, h, w]
            class_queries_logits: [B, Q, C+1], the last class is "no object".
            mask_labels: per image [N, H, W], bool, uint8 or float with only 0 and 1; smaller images are padded with 0
                at the bottom and on the right to the largest of the batch.
            class_labels: per image [N] integers in 0..C-1.
            valid_mask: [B, H, W] bool with H, W of the largest image; pixels that are False do not count.

        Returns:
            Per image two int64 tensors of length min(Q, N), on the device of the logits: the queries in ascending
            order and the target of each. N may be 0. With more targets than queries the worst-fitting targets stay
            out, which is said once per matcher in a warning.

        Raises:
            ValueError: targets of a wrong shape, type, value or number.
            FloatingPointError: NaN or infinite predictions.
        """
        check_predictions(masks_queries_logits, class_queries_logits, "the predictions")
        batch_size, num_queries, num_classes = class_queries_logits.shape
        device = class_queries_logits.device
        labels = checked_class_labels(class_labels, batch_size, num_classes - 1)
        masks = checked_mask_labels(mask_labels, labels, device)
        valid = checked_valid_mask(valid_mask, masks)
        self._warn_of_surplus(labels, num_queries)
        with torch.autocast(device.type, enabled=False):
            costs = [
                self._costs(masks_queries_logits[i], class_queries_logits[i], masks[i], labels[i], image_valid)
                for i, image_valid in enumerate([None] * batch_size if valid is None else valid)
            ]
        return _assign(costs, num_queries, device)

    def _costs(self, masks_logits: Tensor, class_logits: Tensor, masks: Tensor, labels: Tensor, valid: Tensor | None):
        if len(labels) == 0:
            return class_logits.new_zeros((len(class_logits), 0), dtype=torch.float32)
        size = (masks_logits.shape[-2], masks_logits.shape[-1])
        logits = in_full_precision(masks_logits).flatten(1)  # [Q, K]
        targets = _nearest(masks, size).flatten(1).to(logits.dtype)  # [N, K]
        pixels = None if valid is None else _nearest(valid[None], size).flatten().to(logits.dtype)  # [K]
        probs = in_full_precision(class_logits).softmax(dim=-1)  # [Q, C+1]
        if logits.device.type == "cpu":
            focal, dice = matching_costs(masks_logits, targets, pixels)
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
    return F.interpolate(masks[:, None].view(torch.uint8), size=size, mode="nearest")[:, 0]  # [N, h, w]


def _assign(costs: list[Tensor], num_queries: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Hungarian assignment on the CPU; all cost matrices travel there, and all indices back, in one copy each."""
    counts = [cost.shape[1] for cost in costs]
    flat = torch.cat([cost.flatten() for cost in costs]).cpu()
    host = torch.split(flat, [num_queries * count for count in counts])
    pairs: list[np.ndarray] = []
    for image, (cost, count) in enumerate(zip(host, counts, strict=True)):
        matrix = cost.view(num_queries, count).numpy()
        if not np.isfinite(matrix).all():
            raise FloatingPointError(
                f"The matching costs of image {image} are non-finite: masks_queries_logits or class_queries_logits "
                "of this image holds NaN, infinity or values too large for float32."
            )
        pairs.append(np.stack(linear_sum_assignment(matrix)).astype(np.int64))  # [2, min(Q, N)]
    indices = torch.from_numpy(np.concatenate(pairs, axis=1)).to(device)  # [2, pairs of all images]
    queries, targets = (torch.split(row, [pair.shape[1] for pair in pairs]) for row in indices)
    return list(zip(queries, targets, strict=True))


def check_predictions(masks_queries_logits: Tensor, class_queries_logits: Tensor, head: str) -> None:
    """Raises ValueError unless the two belong together as [B, Q, h, w] and [B, Q, C+1] of floating point numbers."""
    masks, classes = tuple(masks_queries_logits.shape), tuple(class_queries_logits.shape)
    floating = masks_queries_logits.is_floating_point() and class_queries_logits.is_floating_point()
    if len(masks) != 4 or len(classes) != 3 or masks[:2] != classes[:2] or 0 in masks + classes or not floating:
        raise ValueError(
            f"masks_queries_logits {list(masks)} ({masks_queries_logits.dtype}) and class_queries_logits "
            f"{list(classes)} ({class_queries_logits.dtype}) of {head} must be floating point tensors of shape "
            "[batch, queries, height, width] and [batch, queries, classes + 1], none of them empty."
        )


def checked_class_labels(class_labels: Sequence[Tensor] | Tensor, num_images: int, num_labels: int) -> list[Tensor]:
    """The labels as int64 on the CPU, per image [N]; one copy to the host for the batch.

    Raises:
        ValueError: a wrong number of images, shape or type, or a label outside 0..num_labels-1.
    """
    if len(class_labels) != num_images:
        raise ValueError(f"class_labels has {len(class_labels)} entries, expected one per image: {num_images}.")
    for image, labels in enumerate(class_labels):
        if labels.ndim != 1:
            raise ValueError(
                f"class_labels of image {image} has shape {list(labels.shape)}, expected one label per target: [N]."
            )
        # torch.tensor([]) is what users write for an image without objects, and its type is float
        if len(labels) and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
            raise ValueError(
                f"class_labels of image {image} is {labels.dtype}, expected an integer type such as int64."
            )
    flat = torch.cat([labels.long() for labels in class_labels]).cpu()
    host = torch.split(flat, [len(labels) for labels in class_labels])
    for image, labels in enumerate(host):
        wrong = labels[(labels < 0) | (labels >= num_labels)]
        if len(wrong):
            raise ValueError(
                f"class_labels of image {image} holds label {int(wrong[0])}, but the labels of this model are in "
                f"0..{num_labels - 1} (num_labels={num_labels}): raise num_labels, or leave out ignored regions."
            )
    return list(host)


def checked_mask_labels(
    mask_labels: Sequence[Tensor] | Tensor, labels: list[Tensor], device: torch.device
) -> list[Tensor]:
    """The masks as bool on `device`, per image [N, H, W], all padded with False to the largest H and W of the batch.

    Raises:
        ValueError: a wrong number of images or of masks, a wrong shape or type, or a value that is neither 0 nor 1.
    """
    if len(mask_labels) != len(labels):
        raise ValueError(f"mask_labels has {len(mask_labels)} entries, expected one per image: {len(labels)}.")
    for image, (masks, classes) in enumerate(zip(mask_labels, labels, strict=True)):
        if masks.ndim != 3 or 0 in masks.shape[1:]:
            raise ValueError(
                f"mask_labels of image {image} has shape {list(masks.shape)}, expected [N, height, width], "
                "also for an image without targets: [0, height, width]."
            )
        if len(masks) != len(classes):
            raise ValueError(
                f"Image {image} has {len(masks)} masks in mask_labels but {len(classes)} labels in class_labels, "
                "expected one label per mask."
            )
        if not (masks.dtype in (torch.bool, torch.uint8) or masks.is_floating_point()):
            raise ValueError(
                f"mask_labels of image {image} is {masks.dtype}, expected one binary mask per target as bool, uint8 or "
                "floating point (a map of ids must be split into masks)."
            )
    _check_binary(mask_labels)
    height, width = (max(masks.shape[axis] for masks in mask_labels) for axis in (1, 2))
    binary = [masks.to(device=device, dtype=torch.bool) for masks in mask_labels]
    return [
        masks
        if masks.shape[1:] == (height, width)
        else F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
        for masks in binary
    ]


def _check_binary(mask_labels: Sequence[Tensor] | Tensor) -> None:
    suspects = [image for image, masks in enumerate(mask_labels) if masks.dtype != torch.bool]
    if not suspects:
        return
    binary = torch.stack([((mask_labels[i] == 0) | (mask_labels[i] == 1)).all() for i in suspects]).tolist()
    for image, is_binary in zip(suspects, binary, strict=True):
        if not is_binary:
            values = mask_labels[image]
            wrong = values[(values != 0) & (values != 1)][0].item()
            raise ValueError(
                f"mask_labels of image {image} holds the value {wrong:g}, expected only 0 and 1 "
                "(pad masks with 0, and pass ignored pixels as valid_mask)."
            )


def checked_valid_mask(valid_mask: Tensor | None, masks: list[Tensor]) -> Tensor | None:
    """The [B, H, W] valid pixels on the device of the masks; ValueError unless they are bool of the masks' size."""
    if valid_mask is None:
        return None
    expected = (len(masks), *masks[0].shape[1:])
    if valid_mask.dtype != torch.bool or tuple(valid_mask.shape) != expected:
        raise ValueError(
            f"valid_mask is {valid_mask.dtype} of shape {list(valid_mask.shape)}, expected torch.bool of shape "
            f"{list(expected)}: [batch, height, width] of the largest target masks."
        )
    return valid_mask.to(masks[0].device)
