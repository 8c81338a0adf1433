"""What training learns from: label maps or stacks of masks as binary masks and class labels.

Which segments a map has is read off its resized form, so every target has at least one pixel. Rules for labels:
a pixel is ignored when its id or its class is `ignore_index`, and with `do_reduce_labels` also when either is 0;
all other classes then move down by one.

Shapes: N targets, H W padded image, h w image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskformer.processing.loading import read_label_map
from maskformer.processing.masks import masks_from_map, pad_masks, present_ids
from maskformer.processing.preprocessing import image_size, resize_labels
from maskformer.processing.settings import ProcessorSettings


def read_annotations(
    segmentation_maps: Any, class_labels: Sequence[Any] | None, sizes: list[tuple[int, int]]
) -> list[Tensor] | None:
    """One map [h, w] or stack of masks [N, h, w] per image, of that image's size."""
    if segmentation_maps is None:
        if class_labels is not None:
            raise ValueError("class_labels were given without segmentation_maps; pass the masks they belong to.")
        return None
    sources = _map_sources(segmentation_maps, class_labels is not None, len(sizes))
    if len(sources) != len(sizes):
        raise ValueError(f"got {len(sources)} segmentation_maps for {len(sizes)} images; pass one per image.")
    if class_labels is not None and len(class_labels) != len(sizes):
        raise ValueError(f"class_labels has {len(class_labels)} entries for {len(sizes)} images; pass one per image.")
    maps: list[Tensor] = []
    for index, (source, size) in enumerate(zip(sources, sizes, strict=True)):
        name = f"segmentation map {index}"
        stack = class_labels is not None and class_labels[index] is not None
        empty = isinstance(source, (list, tuple)) and len(source) == 0
        label_map = torch.zeros(0, *size, dtype=torch.uint8) if empty else read_label_map(source, name)
        if not stack and label_map.ndim == 3 and len(label_map) == 1:
            label_map = label_map[0]
        if label_map.ndim != (3 if stack else 2):
            wanted = "[N, h, w] with class_labels" if stack else "[h, w], or class_labels for masks [N, h, w]"
            raise ValueError(f"{name} has shape {tuple(label_map.shape)}; expected {wanted}.")
        if image_size(label_map) != size:
            raise ValueError(
                f"{name} is {image_size(label_map)} but image {index} is {size} (height, width); they must match."
            )
        maps.append(label_map)
    return maps


def _map_sources(segmentation_maps: Any, stacks: bool, num_images: int) -> list[Any]:
    """One source per image of a single map, a list, or an array of all maps."""
    if isinstance(segmentation_maps, (np.ndarray, Tensor)):
        single = segmentation_maps.ndim == 2 or (segmentation_maps.ndim == 3 and stacks and num_images == 1)
        return [segmentation_maps] if single else list(segmentation_maps)
    return list(segmentation_maps) if isinstance(segmentation_maps, (list, tuple)) else [segmentation_maps]


def classes_per_map(mapping: Any, class_labels: Sequence[Any] | None, num_maps: int) -> list[Any]:
    """Per map: its id-to-class mapping, its list of classes, or None."""
    mappings = list(mapping) if isinstance(mapping, (list, tuple)) else [mapping] * num_maps
    if len(mappings) != num_maps:
        raise ValueError(
            f"instance_id_to_semantic_id has {len(mappings)} mappings for {num_maps} maps; pass one, or one per map."
        )
    if class_labels is None:
        return mappings
    return [given if labels is None else labels for given, labels in zip(mappings, class_labels, strict=True)]


def build_targets(
    maps: list[Tensor],
    classes: list[Any],
    sizes: list[tuple[int, int]],
    padded: tuple[int, int],
    settings: ProcessorSettings,
) -> tuple[list[Tensor], list[Tensor]]:
    """mask_labels and class_labels of maps, resized like their images."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for index, (label_map, known, size) in enumerate(zip(maps, classes, sizes, strict=True)):
        name = f"segmentation map {index}"
        build = targets_from_map if label_map.ndim == 2 else targets_from_masks
        pairs.append(build(resize_labels(label_map, size), known, padded, settings, name))
    return [masks for masks, _ in pairs], [labels for _, labels in pairs]


def targets_from_map(
    label_map: Tensor, classes: Mapping[int, int] | None, size: tuple[int, int], settings: ProcessorSettings, name: str
) -> tuple[Tensor, Tensor]:
    """(mask_labels bool [N, H, W], class_labels int64 [N]) of an integer map [h, w], padded to `size`.

    Args:
        classes: the class of each id (`instance_id_to_semantic_id`); None when the map's values are classes.
        name: what to call the map in errors.

    Raises:
        ValueError: an id is missing from `classes`, or a class is outside 0..num_labels-1.
    """
    ids = [value for value in present_ids(label_map) if not _ignored(value, settings)]
    if classes is None:
        pairs = [(value, value) for value in ids]
    else:
        missing = [value for value in ids if value not in classes]
        if missing:
            raise ValueError(
                f"{name} holds the ids {missing[:5]}, for which instance_id_to_semantic_id has no class; "
                "add them or mark their pixels with ignore_index."
            )
        pairs = [(value, int(classes[value])) for value in ids]
    kept = [(value, label) for value, label in pairs if not _ignored(label, settings)]
    labels = _final_labels([label for _, label in kept], settings, name)
    return masks_from_map(label_map, [value for value, _ in kept], size), labels


def targets_from_masks(
    masks: Tensor, classes: Sequence[int] | Tensor, size: tuple[int, int], settings: ProcessorSettings, name: str
) -> tuple[Tensor, Tensor]:
    """The same from masks [N, h, w] of 0 and 1 (which may overlap) and one class each; empty masks are dropped.

    Raises:
        ValueError: other values than 0 and 1, another number of classes than masks, or a class out of range.
    """
    given = [int(label) for label in classes]
    if masks.ndim != 3 or len(masks) != len(given):
        raise ValueError(
            f"{name} has shape {tuple(masks.shape)} and {len(given)} class_labels; expected [N, H, W] and N labels."
        )
    if not masks.eq(masks.ne(0)).all():
        raise ValueError(f"{name} holds {int(masks.min())}..{int(masks.max())}; masks must be 0 and 1, use masks > 0.")
    masks = masks.bool()
    present = masks.flatten(1).any(1).tolist() if len(given) else []
    kept = [i for i, label in enumerate(given) if present[i] and not _ignored(label, settings)]
    labels = _final_labels([given[i] for i in kept], settings, name)
    return pad_masks(masks[kept], size), labels


def _ignored(value: int, settings: ProcessorSettings) -> bool:
    return value == settings.ignore_index or (settings.do_reduce_labels and value == 0)


def _final_labels(labels: list[int], settings: ProcessorSettings, name: str) -> Tensor:
    final = [label - 1 for label in labels] if settings.do_reduce_labels else labels
    highest = settings.num_labels
    for label, result in zip(labels, final, strict=True):
        if result < 0 or (highest is not None and result >= highest):
            allowed = "at least 0" if highest is None else f"0..{highest - 1}"
            raise ValueError(
                f"{name} holds class {label}, which becomes label {result}; labels must be {allowed}: "
                "set ignore_index, do_reduce_labels or num_labels to match the annotation."
            )
    return torch.tensor(final, dtype=torch.int64)
