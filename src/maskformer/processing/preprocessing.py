"""From decoded images and their annotations to one training batch: sizes, resizing, normalising, padding, targets.

The published settings stretch the resized image to a multiple of 32 (`size_divisor`); the authors pad instead
(`pad_size_divisor`). Batches are padded at the bottom and right with 0, after normalisation.

Which segments a map has is read off its resized form, so every target has at least one pixel. Rules for labels:
a pixel is ignored when its id or its class is `ignore_index`, and with `do_reduce_labels` also when either is 0;
all other classes then move down by one. An `ignore_index` of 0 is an id only, the background's: where ids are mapped
to classes, 0 is the first class.

Shapes: B batch, C channels, N targets, H W padded image, h w image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from maskformer.processing.loading import read_label_map
from maskformer.processing.settings import ProcessorSettings

Size: TypeAlias = tuple[int, int]

NEAREST, BILINEAR = 0, 2  # Pillow's numbers


def batch_images(
    pictures: Iterable[Tensor], settings: ProcessorSettings
) -> tuple[Tensor, Tensor, list[tuple[Size, Size]]]:
    """Resize, normalise and pad decoded images [C, h, w], taken one at a time; grey ones fill all channels.

    Returns:
        pixel_values [B, C, H, W] float32, pixel_mask [B, H, W] int64 with 1 = image, and each image's size before and
        after resizing.
    """
    images: list[Tensor] = []
    originals: list[Size] = []
    for picture in pictures:
        size = image_size(picture)
        originals.append(size)
        if settings.do_rescale and settings.rescale_factor < 1:
            _warn_if_rescaled_twice(picture)
        if settings.do_resize:
            size = resized_size(*size, settings.size, settings.size_divisor)
        images.append(resize_image(picture, size, settings.resample))
    sizes = [image_size(image) for image in images]
    padded = padded_size(sizes, settings)
    pixel_values = torch.zeros(len(images), settings.channels, *padded, dtype=torch.float32, device="cpu")
    pixel_mask = torch.zeros(len(images), *padded, dtype=torch.int64, device="cpu")
    mean, std = (pixel_values.new_tensor(values).view(-1, 1, 1) for values in (settings.image_mean, settings.image_std))
    for values, mask, image, (height, width) in zip(pixel_values, pixel_mask, images, sizes, strict=True):
        window = values[:, :height, :width]
        window.copy_(image)
        if settings.do_rescale:
            window.mul_(settings.rescale_factor)
        if settings.do_normalize:
            window.sub_(mean).div_(std)
        mask[:height, :width] = 1
    return pixel_values, pixel_mask, list(zip(originals, sizes, strict=True))


def _warn_if_rescaled_twice(image: Tensor) -> None:
    # floats in 0..1 divided by 255 again come out black: worth a warning, but they may be meant so
    if image.is_floating_point() and 0 < float(image.max()) <= 1:
        message = "an image holds floats up to 1; pass do_rescale=False for images that are already in 0..1."
        warnings.warn(message, UserWarning, stacklevel=5)


def image_size(image: Tensor) -> Size:
    """(height, width), the last two dimensions."""
    return int(image.shape[-2]), int(image.shape[-1])


def resized_size(height: int, width: int, size: Mapping[str, int], size_divisor: int = 0) -> Size:
    """(height, width) after resizing an image of this height and width to `size`, stretched to the divisor."""
    if "height" in size:
        new_height, new_width = size["height"], size["width"]
    elif "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        new_height, new_width = int(height * scale), int(width * scale)
    else:
        short, long = _edges(min(height, width), max(height, width), size["shortest_edge"], size.get("longest_edge"))
        new_height, new_width = (long, short) if width < height else (short, long)
    # a very thin image would round to nothing
    return _round_up((max(new_height, 1), max(new_width, 1)), size_divisor)


def _edges(short: int, long: int, shortest: int, longest: int | None) -> Size:
    """New (shorter, longer) edge. Truncation and rounding are those of the published processor, so sizes agree."""
    exact: float = shortest
    if longest is not None and long / short * shortest > longest:
        exact = longest * short / long
    new_short = round(exact)
    return (short, long) if new_short == short else (new_short, int(exact * long / short))


def _round_up(size: Size, divisor: int) -> Size:
    divisor = max(divisor, 1)
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def resize_image(image: Tensor, size: Size, resample: int = BILINEAR) -> Tensor:
    """Resize [C, H, W] (uint8 or float32) with a Pillow filter; uint8 stays uint8, within 1/255 of Pillow.

    Bilinear runs in torch's native antialiased kernel (several times Pillow's speed), the other filters in Pillow.
    """
    if image_size(image) == size:
        return image
    if resample == NEAREST:
        return resize_labels(image, size)
    if resample == BILINEAR and size[1] > 1:  # torch's kernel fails or returns garbage for a single column
        return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    height, width = size
    planes = [np.array(Image.fromarray(plane).resize((width, height), resample)) for plane in image.numpy()]
    return torch.from_numpy(np.stack(planes))


def resize_labels(labels: Tensor, size: Size) -> Tensor:
    """Resize [..., H, W] of any dtype by picking the nearest value; picks exactly the pixels Pillow picks."""
    for dim, (old, new) in enumerate(zip(image_size(labels), size, strict=True), start=-2):
        if old != new:
            # Pillow adds up the step in double precision instead of multiplying; where a centre falls on a pixel
            # boundary the accumulated rounding decides, so it is repeated here.
            steps = np.full(new, old / new)
            steps[0] *= 0.5
            picked = np.minimum(np.cumsum(steps).astype(np.int64), old - 1)
            labels = labels.index_select(dim, torch.from_numpy(picked))
    return labels


def padded_size(sizes: Sequence[Size], settings: ProcessorSettings) -> Size:
    """(height, width) of the batch that holds images of these sizes.

    Raises:
        ValueError: `pad_size` is smaller than an image, or sizes differ and `do_pad` is off.
    """
    largest = max(size[0] for size in sizes), max(size[1] for size in sizes)
    if not settings.do_pad:
        if len(set(sizes)) > 1:
            raise ValueError(f"images of different sizes {sorted(set(sizes))} need do_pad=True to form a batch.")
        return largest
    if settings.pad_size is not None:
        wanted = settings.pad_size["height"], settings.pad_size["width"]
        if wanted[0] < largest[0] or wanted[1] < largest[1]:
            raise ValueError(f"pad_size {wanted} is smaller than an image of {largest}; enlarge it.")
        largest = wanted
    return _round_up(largest, settings.pad_size_divisor)


def build_targets(
    sizes: list[tuple[Size, Size]],
    padded: Size,
    segmentation_maps: Any,
    mapping: Any,
    class_labels: Sequence[Any] | None,
    settings: ProcessorSettings,
) -> tuple[list[Tensor], list[Tensor]]:
    """mask_labels bool [N, H, W] and class_labels int64 [N] of each image.

    Sizes are those of `batch_images`; the annotations are `MaskFormerImageProcessor.preprocess`'s, as are the errors.
    """
    if segmentation_maps is None:
        raise ValueError("class_labels were given without segmentation_maps; pass the masks they belong to.")
    maps = _map_list(segmentation_maps, class_labels is not None and len(sizes) == 1)
    mappings = list(mapping) if isinstance(mapping, (list, tuple)) else [mapping] * len(sizes)
    given = [None] * len(sizes) if class_labels is None else list(class_labels)
    lists = {"segmentation_maps": maps, "instance_id_to_semantic_id": mappings, "class_labels": given}
    for name, entries in lists.items():
        if len(entries) != len(sizes):
            raise ValueError(f"{name} has {len(entries)} entries for {len(sizes)} images; pass one per image.")
    ignored = {settings.ignore_index, 0 if settings.do_reduce_labels else None}
    ignored_classes = ignored if settings.do_reduce_labels else ignored - {0}
    all_masks: list[Tensor] = []
    all_labels: list[Tensor] = []
    for index, (source, classes, labels, (before, after)) in enumerate(zip(maps, mappings, given, sizes, strict=True)):
        name = f"segmentation map {index}"
        label_map = resize_labels(_read_map(source, before, labels is not None, name), after)
        if labels is None:
            segments = _map_segments(label_map, classes, ignored, name)
        else:
            segments = _mask_segments(label_map, labels, name)
        segments = {key: label for key, label in segments.items() if label not in ignored_classes}
        all_masks.append(binary_masks(label_map, list(segments), padded))
        all_labels.append(_final_labels(list(segments.values()), settings, name))
    return all_masks, all_labels


def _map_list(segmentation_maps: Any, one_stack: bool) -> list[Any]:
    """One source per image, of a single map (or stack), a list, or an array of all maps."""
    single = not isinstance(segmentation_maps, (list, tuple))
    if isinstance(segmentation_maps, (np.ndarray, Tensor)):
        single = segmentation_maps.ndim == 2 or (segmentation_maps.ndim == 3 and one_stack)
    return [segmentation_maps] if single else list(segmentation_maps)


def _read_map(source: Any, size: Size, is_stack: bool, name: str) -> Tensor:
    """A map [h, w] or stack of masks [N, h, w] of the image's size."""
    empty = isinstance(source, (list, tuple)) and len(source) == 0
    label_map = torch.zeros(0, *size, dtype=torch.uint8, device="cpu") if empty else read_label_map(source, name)
    if not is_stack and label_map.ndim == 3 and len(label_map) == 1:
        label_map = label_map[0]
    if label_map.ndim != (3 if is_stack else 2):
        wanted = "[N, h, w] with class_labels" if is_stack else "[h, w], or class_labels for masks [N, h, w]"
        raise ValueError(f"{name} has shape {tuple(label_map.shape)}; expected {wanted}.")
    if (found := image_size(label_map)) != size:
        raise ValueError(f"{name} is {found} but its image is {size} (height, width); they must match.")
    return label_map


def _map_segments(
    label_map: Tensor, classes: Mapping[int, int] | None, ignored: set[int | None], name: str
) -> dict[int, int]:
    """The class of each id in a map; its ids are the classes where there is no mapping."""
    ids = [value for value in present_ids(label_map) if value not in ignored]
    if classes is None:
        return {value: value for value in ids}
    missing = [value for value in ids if value not in classes]
    if missing:
        raise ValueError(
            f"{name} holds the ids {missing[:5]}, for which instance_id_to_semantic_id has no class; "
            "add them or mark their pixels with ignore_index."
        )
    return {value: int(classes[value]) for value in ids}


def _mask_segments(masks: Tensor, labels: Sequence[int] | Tensor, name: str) -> dict[int, int]:
    """The class of each mask, by its place in the stack; empty masks are left out."""
    if len(masks) != len(labels):
        raise ValueError(
            f"{name} has shape {tuple(masks.shape)} and {len(labels)} class_labels; expected [N, H, W] and N labels."
        )
    if not masks.eq(masks.ne(0)).all():
        raise ValueError(f"{name} holds {int(masks.min())}..{int(masks.max())}; masks must be 0 and 1, use masks > 0.")
    present = masks.flatten(1).any(1).nonzero().flatten().tolist()
    return {index: int(labels[index]) for index in present}


def present_ids(label_map: Tensor) -> list[int]:
    """The distinct values of an integer map, ascending."""
    low, high = (int(value) for value in label_map.aminmax())
    if low < 0 or high >= 2**20:
        return label_map.unique().tolist()
    # counting is many times faster than the sort inside unique()
    return label_map.flatten().bincount().nonzero().flatten().tolist()


def binary_masks(label_map: Tensor, keys: Sequence[int], size: Size) -> Tensor:
    """bool [N, H, W]: where a map [h, w] equals each key, or the masks [*, h, w] at these places; 0 on the padding."""
    height, width = image_size(label_map)
    masks = torch.zeros(len(keys), *size, dtype=torch.bool, device=label_map.device)
    for mask, key in zip(masks[:, :height, :width], keys, strict=True):
        if label_map.ndim == 2:
            torch.eq(label_map, key, out=mask)
        else:
            mask.copy_(label_map[key])
    return masks


def _final_labels(labels: list[int], settings: ProcessorSettings, name: str) -> Tensor:
    first, num_labels = int(settings.do_reduce_labels), settings.num_labels
    for label in labels:
        if label < first or (num_labels is not None and label - first >= num_labels):
            allowed = "at least 0" if num_labels is None else f"0..{num_labels - 1}"
            raise ValueError(
                f"{name} holds class {label}, which becomes label {label - first}; labels must be {allowed}: "
                "set ignore_index, do_reduce_labels or num_labels to match the annotation."
            )
    return torch.tensor(labels, dtype=torch.int64, device="cpu") - first
