"""From decoded images to one normalised batch: output sizes, resizing, normalising, padding. Pure functions.

The published settings stretch the resized image to a multiple of 32 (`size_divisor`); the authors pad instead
(`pad_size_divisor`). Batches are padded at the bottom and right with 0, after normalisation.

Shapes: B batch, C channels, N masks, H W image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from maskformer.processing.settings import ProcessorSettings

Size: TypeAlias = tuple[int, int]

NEAREST, BILINEAR = 0, 2  # Pillow's numbers


class ImageBatch(NamedTuple):
    """A normalised batch, and the (height, width) of each image before resizing and in the batch."""

    pixel_values: Tensor
    pixel_mask: Tensor
    original_sizes: list[Size]
    sizes: list[Size]


def batch_images(pictures: Iterable[Tensor], settings: ProcessorSettings) -> ImageBatch:
    """Resize, normalise and pad decoded images [C, h, w], which are taken one at a time."""
    resized: list[Tensor] = []
    original_sizes: list[Size] = []
    for picture in pictures:
        size = image_size(picture)
        original_sizes.append(size)
        if settings.do_rescale:
            _warn_if_rescaled_twice(picture, settings.rescale_factor)
        if settings.do_resize:
            size = resized_size(*size, settings.size, settings.size_divisor)
        resized.append(resize_image(picture, size, settings.resample))
    sizes = [image_size(picture) for picture in resized]
    pixel_values, pixel_mask = normalized_batch(resized, padded_size(sizes, settings), settings)
    return ImageBatch(pixel_values, pixel_mask, original_sizes, sizes)


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
    divisor = max(size_divisor, 1)
    # a very thin image would round to nothing
    return -(-max(new_height, 1) // divisor) * divisor, -(-max(new_width, 1) // divisor) * divisor


def _edges(short: int, long: int, shortest: int, longest: int | None) -> Size:
    """New (shorter, longer) edge. Truncation and rounding are those of the published processor, so sizes agree."""
    exact: float = shortest
    if longest is not None and long / short * shortest > longest:
        exact = longest * short / long
    new_short = round(exact)
    if new_short == short:
        return short, long
    return new_short, int(exact * long / short)


def resize_image(image: Tensor, size: Size, resample: int = BILINEAR) -> Tensor:
    """Resize [C, H, W] (uint8 or float32) with a Pillow filter; uint8 stays uint8, within 1/255 of Pillow.

    Bilinear runs in torch's native antialiased kernel (several times Pillow's speed), the other filters in Pillow.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    if resample == NEAREST:
        return resize_labels(image, size)
    if resample == BILINEAR:
        return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    height, width = size
    planes = [np.array(Image.fromarray(plane).resize((width, height), resample)) for plane in image.numpy()]
    return torch.from_numpy(np.stack(planes))


def resize_labels(labels: Tensor, size: Size) -> Tensor:
    """Resize [..., H, W] of any dtype by picking the nearest value; picks exactly the pixels Pillow picks."""
    height, width = labels.shape[-2:]
    if (height, width) == size:
        return labels
    rows, columns = _nearest_index(height, size[0]), _nearest_index(width, size[1])
    return labels.index_select(-2, rows).index_select(-1, columns)


def _nearest_index(source: int, target: int) -> Tensor:
    """Which source pixel each target pixel shows."""
    # Pillow adds up the step in double precision instead of multiplying; where a centre falls on a pixel boundary
    # the accumulated rounding decides, so it is repeated here.
    steps = np.full(target, source / target)
    steps[0] *= 0.5
    return torch.from_numpy(np.minimum(np.cumsum(steps).astype(np.int64), source - 1))


def padded_size(sizes: Sequence[Size], settings: ProcessorSettings) -> Size:
    """(height, width) of the batch that holds images of these sizes.

    Raises:
        ValueError: `pad_size` is smaller than an image, or sizes differ and `do_pad` is off.
    """
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    if not settings.do_pad:
        if len(set(sizes)) > 1:
            raise ValueError(f"images of different sizes {sorted(set(sizes))} need do_pad=True to form a batch.")
        return height, width
    if settings.pad_size is not None:
        wanted = settings.pad_size["height"], settings.pad_size["width"]
        if wanted[0] < height or wanted[1] < width:
            raise ValueError(f"pad_size {wanted} is smaller than an image of {(height, width)}; enlarge it.")
        height, width = wanted
    divisor = max(settings.pad_size_divisor, 1)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def normalized_batch(images: Sequence[Tensor], size: Size, settings: ProcessorSettings) -> tuple[Tensor, Tensor]:
    """Rescale, normalise and pad: (pixel_values [B, C, H, W] float32, pixel_mask [B, H, W] int64 with 1 = image).

    Grey images fill all channels.
    """
    pixel_values = torch.zeros(len(images), settings.channels, *size)
    pixel_mask = torch.zeros(len(images), *size, dtype=torch.int64)
    mean = torch.tensor(settings.image_mean).view(-1, 1, 1)
    std = torch.tensor(settings.image_std).view(-1, 1, 1)
    for values, mask, image in zip(pixel_values, pixel_mask, images, strict=True):
        height, width = image.shape[-2:]
        window = values[:, :height, :width]
        window.copy_(image)
        if settings.do_rescale:
            window.mul_(settings.rescale_factor)
        if settings.do_normalize:
            window.sub_(mean).div_(std)
        mask[:height, :width] = 1
    return pixel_values, pixel_mask


def _warn_if_rescaled_twice(image: Tensor, rescale_factor: float) -> None:
    # floats in 0..1 divided by 255 again come out black: worth a warning, but they may be meant so
    if rescale_factor < 1 and image.is_floating_point() and 0 < float(image.max()) <= 1:
        warnings.warn(
            f"an image holds floats up to 1 and is multiplied by rescale_factor={rescale_factor:.4g} again; "
            "pass do_rescale=False for images that are already in 0..1.",
            UserWarning,
            stacklevel=5,
        )
