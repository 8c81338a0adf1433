"""Samples become a batch: normalised images padded to one size, and targets as masks or packed.

Padding is at the bottom and on the right, 0 after normalisation, and belongs to no target. Crowds and ignored areas are
no targets. B batch, N targets of one image, L planes, H W padded image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskformer.data.sample import Sample, expand
from maskformer.kernels.packed_masks import PackedMasks
from maskformer.processing.settings import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Collate:
    """Makes a batch of a list of samples.

    Source: docs/data.md#transforms; padding as in arXiv 2107.06278, section 4.1.

    Attributes:
        mean: per channel, of values from 0 to 1.
        std: likewise.
        size: pad to this (height, width), as recipes with crops do; by default to the largest of the batch.
        multiple: and on to a multiple of this.
        with_valid_mask: also return `valid_mask`, False at ignored pixels, crowds and padding.
        packed: leave the targets packed, for a loader that is not to move full masks between processes.
        target_stride: of rows and columns that targets and valid mask keep: [H / stride, W / stride].

    Examples:
        >>> from maskformer.data.recognise import open_dataset
        >>> dataset = open_dataset("scenes:10", "train")
        >>> batch = Collate()([dataset[0], dataset[1]])
        >>> tuple(batch["pixel_values"].shape), len(batch["mask_labels"])
        ((2, 3, 192, 256), 2)
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    size: tuple[int, int] | None = None
    multiple: int = 1
    with_valid_mask: bool = False
    packed: bool = False
    target_stride: int = 1

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The arguments of the model's forward.

        Returns:
            `pixel_values` float32 [B, 3, H, W], `pixel_mask` int64 [B, H, W] (1 = image), `mask_labels` (B times bool
            [N, H, W], or `PackedMasks`), `class_labels` (B times int64 [N]), and perhaps `valid_mask` bool [B, H, W].

        Raises:
            ValueError: an image is larger than `size`.
        """
        samples = [sample.without_empty() for sample in samples]
        size = self._padded_size(samples)
        pixel_values = torch.zeros(len(samples), 3, *size, dtype=torch.float32, device="cpu")
        pixel_mask = torch.zeros(len(samples), *size, dtype=torch.int64, device="cpu")
        valid_mask = torch.zeros(len(samples), *size, dtype=torch.bool, device="cpu")
        masks: list[Any] = []
        classes: list[Tensor] = []
        for place, sample in enumerate(samples):
            height, width = sample.size
            pixel_values[place, :, :height, :width] = self._normalised(sample)
            pixel_mask[place, :height, :width] = 1
            if self.with_valid_mask:
                valid_mask[place, :height, :width] = torch.from_numpy(~_uncounted(sample))
            targets = _packed_targets(sample, size, self.target_stride)
            masks.append(targets if self.packed else targets.unpack())
            labels = [region.label_id for region in sample.regions if region.is_target]
            classes.append(torch.tensor(labels, dtype=torch.int64, device="cpu"))
        batch = {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "mask_labels": masks, "class_labels": classes}
        if self.with_valid_mask:
            batch["valid_mask"] = strided(valid_mask, self.target_stride)
        return batch

    def _padded_size(self, samples: Sequence[Sample]) -> tuple[int, int]:
        largest = [max(sample.size[axis] for sample in samples) for axis in (0, 1)]
        if self.size is not None and (largest[0] > self.size[0] or largest[1] > self.size[1]):
            raise ValueError(f"an image is {largest} (height, width), larger than size={self.size}: crop it to that")
        height, width = (-(-edge // self.multiple) * self.multiple for edge in self.size or largest)
        return height, width

    def _normalised(self, sample: Sample) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1))).float()  # [3, H, W]
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) * 255 for values in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)


def strided(planes: Any, stride: int) -> Any:
    """[..., H / s, W / s]: a pixel next to each cell's middle; with its first one, all would be learnt too far down."""
    if stride == 1:
        return planes
    rows, columns = (
        (np.arange(0, length, stride) + (stride - 1) // 2).clip(max=length - 1) for length in planes.shape[-2:]
    )
    return planes[..., rows[:, None], columns]


def _packed_targets(sample: Sample, size: tuple[int, int], stride: int) -> PackedMasks:
    """The targets padded to `size`, every `stride`-th pixel of them."""
    places = tuple(place for place, region in enumerate(sample.regions) if region.is_target)
    planes = np.zeros((len(sample.planes), *size), sample.planes.dtype)
    planes[:, : sample.size[0], : sample.size[1]] = sample.planes
    return PackedMasks(torch.from_numpy(np.ascontiguousarray(strided(planes, stride))), places, sample.overlapping)


def _uncounted(sample: Sample) -> np.ndarray:
    """bool [H, W]: pixels of crowds and ignored areas that no target covers."""
    inside = {True: np.zeros(sample.size, bool), False: np.zeros(sample.size, bool)}
    for place, region in enumerate(sample.regions):
        inside[region.is_target] |= expand(sample.planes, place, sample.overlapping)
    return inside[False] & ~inside[True]
