"""Semantic maps from several sizes and the mirrored image ("multi-scale + flip", paper section 4.1 and table 1).

As in the authors' code: the image at test size is resized to each size, and mirrored; the class scores of every
version, at the image's own size, are averaged. That is done a band of rows at a time. A resize and the sum over queries
may change places, so the masks of all versions are resized rather than the scores of all classes, and one product
makes the scores; where a class cannot win, none are made.

B batch, Q queries, V versions, C K classes, H W image, h w stride-4 map, n rows of a band, P pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.evaluation.protocol import ClockedProcessor, Protocol
from maskformer.inference import Segmenter
from maskformer.kernels.resized import MARGIN, Axis
from maskformer.processing.loading import read_image
from maskformer.processing.placement import Placement, placements
from maskformer.processing.preprocessing import image_size
from maskformer.results import Segmentation, segments_of_map

# Values of a band, masks of all versions and scores of all classes: 256 MiB.
_VALUES_AT_ONCE = 2**26
# Columns for which it is settled at once which classes may win: few pixels have few classes.
_COLUMNS_AT_ONCE = 16


class AugmentedSegmenter:
    """Segments each image once per size and mirror image; semantic maps only, as the authors.

    Args:
        segmenter: whose model is used.
        protocol: has the sizes.

    Raises:
        ValueError: a protocol without sizes.
    """

    def __init__(self, segmenter: Segmenter, protocol: Protocol) -> None:
        if not protocol.augmented_edges or protocol.edges is None:
            raise ValueError("test-time augmentation needs the published sizes: use the paper's protocol")
        self.segmenter, self.flip = segmenter, protocol.flip
        self.processors = [
            ClockedProcessor.like(segmenter.image_processor, protocol.pad_divisor, protocol.edges, edges)
            for edges in protocol.augmented_edges
        ]

    def stream(
        self,
        images: Iterable[Any],
        task: Any = "semantic",
        *,
        batch_size: int = 1,
        protocol: Any = "paper",
        **others: Any,
    ) -> Iterator[Segmentation]:
        """As `Segmenter.stream`, image by image; `protocol` is one of the paper's.

        Raises:
            ValueError: another task, or an option that semantic maps have no use for.
        """
        if others:
            raise ValueError(f"{next(iter(others))} has no meaning for task 'semantic': leave it out")
        if task != "semantic":
            raise ValueError(f"test-time augmentation averages semantic scores, as the authors do; got task {task!r}")
        segmenter = self.segmenter
        for number, image in enumerate(images):
            picture = read_image(image, segmenter.num_channels, None, f"image {number}")
            size = image_size(picture)
            versions = list(self._versions(picture, size, protocol))
            with torch.autocast(segmenter.device.type, enabled=False):  # it would multiply in half precision
                segmentation = _strongest(versions, size, len(segmenter.labels)).numpy()
            infos = [{"id": label, "label_id": label, "score": 1.0} for label in range(len(segmenter.labels))]
            segments = segments_of_map(segmentation, infos, segmenter.labels, segmenter.stuff_ids)
            yield Segmentation("semantic", segmentation, segments, size, segmenter.labels, image)

    @torch.inference_mode()
    def _versions(self, picture: Tensor, size: tuple[int, int], protocol: Any) -> Iterator[_Version]:
        weight = next(self.segmenter.model.parameters())
        per_pixel = self.segmenter.is_per_pixel
        for processor in self.processors:
            inputs = processor(picture, return_tensors="pt", input_data_format="channels_first")
            valid = int(inputs["pixel_mask"][0, 0].sum())
            for mirrored in (False, True) if self.flip else (False,):
                pixel_values = inputs["pixel_values"].to(weight)
                if mirrored:  # the image, not the padding to its right
                    pixel_values[..., :valid] = pixel_values[..., :valid].flip(-1)
                outputs = self.segmenter.model(pixel_values=pixel_values)
                maps = (outputs.logits if per_pixel else outputs.masks_queries_logits).float()  # [1, Q or C, h, w]
                probs = None if per_pixel else outputs.class_queries_logits[0].float().softmax(-1)[:, :-1]  # [Q, C]
                (place,) = placements(maps, [size], inputs["pixel_mask"], protocol)
                yield _Version(maps[0], probs, place, mirrored, protocol == "paper-panoptic")


@dataclass(frozen=True, slots=True)
class _Version:
    """What the network says of the image at one size, mirrored or not."""

    maps: Tensor  # [Q, h, w] mask logits; [C, h, w] scores of a per-pixel baseline
    probs: Tensor | None  # [Q, C]
    place: Placement
    mirrored: bool
    masks_first: bool  # resized to the image's size before the sigmoid

    def band(self, start: int, stop: int) -> Tensor:
        """[Q or C, n, W]: mask probabilities, or scores, in the image's rows from `start` to `stop`."""
        place = self.place
        vertical = _Rows(place.valid[0], place.target[0], start, stop)
        first, last = int(vertical.low.min()), int(vertical.high.max()) + 1
        planes = _Rows(self.maps.shape[-2], place.padded[0], first, last).of(self.maps)  # [Q, rows of the input, w]
        planes = _widened(planes, place.padded[1])[..., : place.valid[1]]
        if self.probs is not None and not self.masks_first:
            planes = planes.sigmoid()
        planes = _widened(vertical.of(planes, first), place.target[1])  # [Q, n, W]
        if self.probs is not None and self.masks_first:
            planes = planes.sigmoid()
        return planes.flip(-1) if self.mirrored else planes


class _Rows:
    """Rows `start` to `stop` of a bilinear resize from `cells` to `length` rows."""

    def __init__(self, cells: int, length: int, start: int, stop: int) -> None:
        axis = Axis.build(cells, length, None, torch.device("cpu"))
        self.low, self.high = (
            place.repeat_interleave(axis.count)[start:stop] for place in (axis.low, axis.high)
        )  # [n]
        self.weight = axis.weight[start:stop, None]

    def of(self, planes: Tensor, first: int = 0) -> Tensor:
        """[K, n, w] of planes [K, rows, w] whose first row is the `first`."""
        low, high, weight = (part.to(planes.device) for part in (self.low - first, self.high - first, self.weight))
        return torch.lerp(planes[:, low], planes[:, high], weight)


def _widened(planes: Tensor, width: int) -> Tensor:
    """[K, n, width]: only the columns are resized."""
    return F.interpolate(planes[None], (planes.shape[-2], width), mode="bilinear", align_corners=False)[0]


@torch.inference_mode()
def _strongest(versions: list[_Version], size: tuple[int, int], num_classes: int) -> Tensor:
    """int32 [H, W]: the class with the largest sum of scores; ties go to the lowest."""
    planes = sum(len(version.maps) for version in versions)
    rows = max(1, _VALUES_AT_ONCE // ((planes + num_classes) * size[1]))
    result = torch.empty(size, dtype=torch.int32, device="cpu")
    probs = [version.probs for version in versions if version.probs is not None]
    votes = torch.cat(probs).T.contiguous() if probs else None  # [C, VQ]
    for start in range(0, size[0], rows):
        stop = min(start + rows, size[0])
        bands = (version.band(start, stop) for version in versions)
        if votes is None:
            result[start:stop] = sum(bands, torch.zeros((), device="cpu")).argmax(0)
            continue
        masks = votes.new_empty(planes, stop - start, size[1])  # [VQ, n, W]
        for place, band in zip(masks.split([len(version.maps) for version in versions]), bands, strict=True):
            place.copy_(band)
        _elect(votes, masks, result[start:stop])
    return result


def _elect(votes: Tensor, masks: Tensor, result: Tensor) -> None:
    """Write the strongest class of votes [C, VQ] times masks [VQ, n, W] into result [n, W]."""
    # Neither a vote nor a mask is negative: the masks' extremes bound what any pixel of a block can give a class.
    least = votes @ -F.max_pool1d(-masks.amin(1), _COLUMNS_AT_ONCE, ceil_mode=True)  # [C, blocks]
    most = votes @ F.max_pool1d(masks.amax(1), _COLUMNS_AT_ONCE, ceil_mode=True)
    able = most >= least.amax(0) * (1 - 100 * MARGIN)
    for block, (some, place) in enumerate(
        zip(masks.split(_COLUMNS_AT_ONCE, -1), result.split(_COLUMNS_AT_ONCE, -1), strict=True)
    ):
        classes = able[:, block].nonzero().flatten()  # [K]
        best = (votes[classes] @ some.flatten(1)).argmax(0) if len(classes) > 1 else torch.zeros_like(place).flatten()
        place.copy_(classes[best].view(place.shape))
