"""What predictions and targets must look like; every error names the image, what it got and what to do.

Shapes: B batch, Q queries, C classes, N targets of one image, H W image, h w stride-4 map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.explanations import explained
from maskformer.kernels.packed_masks import PackedMasks


def _require(*checks: tuple[bool, str]) -> None:
    for fine, message in checks:
        if not fine:
            raise ValueError(message)


@explained
def check_predictions(masks_queries_logits: Tensor, class_queries_logits: Tensor, head: str) -> None:
    """Raises ValueError unless the two belong together as [B, Q, h, w] and [B, Q, C+1] of floating point numbers."""
    masks, classes = masks_queries_logits.shape, class_queries_logits.shape
    floating = masks_queries_logits.is_floating_point() and class_queries_logits.is_floating_point()
    if len(masks) != 4 or len(classes) != 3 or masks[:2] != classes[:2] or 0 in masks + classes or not floating:
        raise ValueError(
            f"masks_queries_logits {list(masks)} ({masks_queries_logits.dtype}) and class_queries_logits "
            f"{list(classes)} ({class_queries_logits.dtype}) of {head} must be floating point tensors of shape "
            "[batch, queries, height, width] and [batch, queries, classes + 1], none of them empty."
        )


@explained
def checked_class_labels(class_labels: Sequence[Tensor] | Tensor, num_images: int, num_labels: int) -> list[Tensor]:
    """The labels as int64 on the CPU, per image [N]; one copy to the host for the batch."""
    found = len(class_labels)
    _require((found == num_images, f"class_labels has {found} entries, expected one per image: {num_images}."))
    class_labels = [_from_array(labels) for labels in class_labels]
    for image, labels in enumerate(class_labels):
        name = f"class_labels of image {image}"
        # torch.tensor([]) is what users write for an image without objects, and its type is float
        integer = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        _require(
            (labels.ndim == 1, f"{name} has shape {list(labels.shape)}, expected one label per target: [N]."),
            (integer or labels.numel() == 0, f"{name} is {labels.dtype}, expected an integer type such as int64."),
        )
    flat = torch.cat([labels.long() for labels in class_labels]).cpu()
    host = list(torch.split(flat, [len(labels) for labels in class_labels]))
    for image, labels in enumerate(host):
        for wrong in labels[(labels < 0) | (labels >= num_labels)].tolist():
            raise ValueError(
                f"class_labels of image {image} holds label {wrong}, but the labels of this model are in "
                f"0..{num_labels - 1} (num_labels={num_labels}): raise num_labels, or leave out ignored regions."
            )
    return host


@explained
def checked_targets(
    mask_labels: Sequence[Tensor | PackedMasks] | Tensor,
    class_labels: Sequence[Tensor] | Tensor,
    valid_mask: Tensor | None,
    class_queries_logits: Tensor,
) -> tuple[list[Tensor | PackedMasks], list[Tensor], Tensor | None]:
    """The masks as bool per image [N, H, W], padded with False to the largest of the batch, their labels as
    `checked_class_labels` gives them, and [B, H, W] valid pixels.

    Masks and pixels are on the device of the logits; packed masks stay packed.
    """
    (num_images, _, num_classes), device = class_queries_logits.shape, class_queries_logits.device
    labels = checked_class_labels(class_labels, num_images, num_classes - 1)
    found = len(mask_labels)
    _require((found == len(labels), f"mask_labels has {found} entries, expected one per image: {len(labels)}."))
    mask_labels = [_from_array(masks) for masks in mask_labels]
    for image, (masks, classes) in enumerate(zip(mask_labels, labels, strict=True)):
        _check_masks(masks, len(classes), image)
    height, width = (max(masks.shape[axis] for masks in mask_labels) for axis in (1, 2))

    def pad(planes: Tensor) -> Tensor:
        border = (0, width - planes.shape[2], 0, height - planes.shape[1])
        return F.pad(planes, border) if any(border) else planes  # without a border it would copy

    padded = [
        pad(masks.to(device=device, dtype=torch.bool))
        if isinstance(masks, Tensor)
        else masks.with_planes(pad(masks.planes.to(device)))
        for masks in mask_labels
    ]
    labels = [own[: planes.shape[0]] for own, planes in zip(labels, padded, strict=True)]  # one without a mask
    if valid_mask is None:
        return padded, labels, None
    expected, got = [len(padded), height, width], f"{valid_mask.dtype} of shape {list(valid_mask.shape)}"
    if valid_mask.dtype != torch.bool or list(valid_mask.shape) != expected:
        raise ValueError(
            f"valid_mask is {got}, expected torch.bool of shape {expected}, that of the largest target masks."
        )
    return padded, labels, valid_mask.to(device)


def _from_array(values: Any) -> Any:
    """The processor gives arrays as well; without a device, torch's default would be copied to."""
    return values if isinstance(values, Tensor | PackedMasks) else torch.as_tensor(values, device="cpu")


def _check_masks(masks: Tensor | PackedMasks, num_labels: int, image: int) -> None:
    name, shape = f"mask_labels of image {image}", masks.shape
    counts = f"{shape[0] if shape else 0} masks in mask_labels but {num_labels} labels in class_labels"
    # no mask and one label is what a well-known tutorial makes of an image without objects; that label does not count
    paired = shape[:1] == (num_labels,) or (*shape[:1], num_labels) == (0, 1)
    _require(
        (len(shape) == 3 and 0 not in shape[1:], f"{name} has shape {list(shape)}, expected [N, height, width]."),
        (paired, f"Image {image} has {counts}, expected one label per mask."),
    )
    if isinstance(masks, PackedMasks) or masks.dtype == torch.bool:
        return
    binary = masks.dtype == torch.uint8 or masks.is_floating_point()
    _require((binary, f"{name} is {masks.dtype}, expected bool, uint8 or float (split a map of ids into masks)."))
    if (wrong := (masks != 0) & (masks != 1)).any():
        raise ValueError(
            f"{name} holds the value {masks[wrong][0].item():g}, expected only 0 and 1 "
            "(pad masks with 0, and pass ignored pixels as valid_mask)."
        )
