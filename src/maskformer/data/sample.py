"""One annotated image, whatever the format it was stored in: what data sets give, transforms pass on, collation reads.

Targets stay compact, because N full-size masks of a photograph are hundreds of megabytes: an index map where segments
cannot overlap (semantic, panoptic), one bit per instance and pixel where they can (COCO instances). Both are a stack of
planes [L, H, W], so cropping, flipping and nearest resizing are the same few lines for both.

N regions (targets, crowds and ignored areas), L planes, C classes, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Task: TypeAlias = Literal["semantic", "instance", "panoptic"]
Image: TypeAlias = NDArray[np.uint8]
Planes: TypeAlias = NDArray[np.uint8 | np.int16]

IGNORED = -1  # label id of pixels that count neither for nor against any class
UNKNOWN = -2  # label id of a value that the class list does not have; a data set raises instead of handing it out


class Region(NamedTuple):
    """One segment of an annotation. `value` is what the file says of it: its label value or category id."""

    label_id: int
    value: int
    isthing: bool = False
    iscrowd: bool = False

    @property
    def is_target(self) -> bool:
        """Whether it is learnt; a crowd (a group without single outlines) and an ignored area are not."""
        return self.label_id >= 0 and not self.iscrowd


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and its regions. Arrays are shared between samples and must not be written to.

    Source: docs/data.md#label-values.

    Attributes:
        image: uint8 [H, W, 3].
        planes: [L, H, W]. Index map (L = 1): 0 where there is no region, k where region k - 1 is; uint8, or int16 from
            256 regions on. Bits (`overlapping`): uint8, region k is bit k % 8 of plane k // 8.
        regions: N of them. A pixel of no region is background: it counts, against every class.
        overlapping: which of the two `planes` are.
        path: the image's file, for messages.
        num_dropped: targets that transforms have lost so far.

    Raises:
        Nothing: formats check what they read, before.

    Examples:
        >>> from maskformer.data.recognise import open_dataset
        >>> sample = open_dataset("scenes:10", "train", task="semantic")[0]
        >>> sample.size, sample.class_map().dtype
        ((192, 256), dtype('int32'))
    """

    image: Image
    planes: Planes
    regions: tuple[Region, ...]
    overlapping: bool = False
    path: str = ""
    num_dropped: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[0], self.image.shape[1]

    def areas(self) -> NDArray[np.int64]:
        """int64 [N]: pixels of each region."""
        count = len(self.regions)
        if not self.overlapping:
            return np.bincount(self.planes.ravel(), minlength=count + 1)[1:].astype(np.int64)
        return np.array([np.count_nonzero(expand(self.planes, k, True)) for k in range(count)], np.int64)

    def masks(self, places: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """bool [n, H, W]: the masks of some regions, by their places; of all, by default. Large: use it last."""
        wanted = range(len(self.regions)) if places is None else places
        masks = np.zeros((len(wanted), *self.planes.shape[1:]), np.bool_)
        for number, place in enumerate(wanted):
            masks[number] = expand(self.planes, place, self.overlapping)
        return masks

    def with_masks(self, image: Image, masks: Iterable[NDArray[Any]]) -> Sample:
        """The sample of a changed image [h, w, 3] and one changed mask [h, w] per region, in their order."""
        return replace(self, image=image, planes=pack(masks, image.shape[:2]), overlapping=True)

    def without_empty(self) -> Sample:
        """Regions without a pixel left are dropped, and counted where they were targets."""
        areas = self.areas()
        if areas.all():
            return self
        lost = sum(region.is_target for region, area in zip(self.regions, areas, strict=True) if not area)
        return replace(self._only(np.flatnonzero(areas).tolist()), num_dropped=self.num_dropped + lost)

    def _only(self, places: Sequence[int]) -> Sample:
        """With those regions alone; the pixels of the others become background."""
        if self.overlapping:
            planes = pack((expand(self.planes, place, True) for place in places), self.planes.shape[1:])
        else:
            table = np.zeros(len(self.regions) + 1, self.planes.dtype)
            table[np.array(places, np.intp) + 1] = np.arange(1, len(places) + 1)
            planes = table[self.planes]
        return replace(self, planes=planes, regions=tuple(self.regions[place] for place in places))

    def flattened(self) -> Sample:
        """As an index map; where regions overlap, the smaller one is on top."""
        if not self.overlapping:
            return self
        areas = self.areas()
        flat = np.zeros(self.planes.shape[1:], np.uint8 if len(areas) < 256 else np.int16)
        for place in np.argsort(-areas, kind="stable").tolist():
            flat[expand(self.planes, place, True)] = place + 1
        return replace(self, planes=flat[None], overlapping=False)

    def for_task(self, task: Task) -> Sample:
        """The targets of a task: one per class (semantic), things alone over background (instance), or all."""
        if task == "panoptic":
            return self
        if task == "instance":
            kept = [place for place, region in enumerate(self.regions) if region.isthing or region.label_id < 0]
            return self if len(kept) == len(self.regions) else self._only(kept)
        flat = self.flattened()
        keys = [(region.label_id, region.value) for region in flat.regions]
        order = list(dict.fromkeys(keys))
        table = np.array([0, *(order.index(key) + 1 for key in keys)], flat.planes.dtype)
        # A crowd is of its class, only its members cannot be told apart.
        regions = tuple(flat.regions[keys.index(key)]._replace(iscrowd=False) for key in order)
        return replace(flat, planes=table[flat.planes], regions=regions)

    def class_map(self, ignore_index: int = 255) -> NDArray[np.int32]:
        """int32 [H, W]: label ids; `ignore_index` where there is none, background included."""
        flat = self.flattened()
        labels = [region.label_id if region.label_id >= 0 else ignore_index for region in flat.regions]
        return np.array([ignore_index, *labels], np.int32)[flat.planes[0]]


def expand(planes: Any, place: int, overlapping: bool) -> Any:
    """bool [H, W]: the mask of the region at that place; of numpy planes or of a tensor."""
    return (planes[place // 8] >> (place % 8)) & 1 != 0 if overlapping else planes[0] == place + 1


def pack(masks: Iterable[NDArray[Any]], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """uint8 [ceil(N / 8), H, W]: N masks [H, W] as bits; they may come one by one, so that one at a time is large."""
    planes: list[NDArray[np.uint8]] = []
    for place, mask in enumerate(masks):
        if place % 8 == 0:
            planes.append(np.zeros(size, np.uint8))
        planes[-1] |= (np.asarray(mask) != 0).astype(np.uint8) << (place % 8)
    return np.stack(planes) if planes else np.zeros((0, *size), np.uint8)


def index_map(values: NDArray[Any], region_of: Callable[[int], Region | None]) -> tuple[Planes, tuple[Region, ...]]:
    """Planes [1, H, W] and regions of a map [H, W] of integers, one region per distinct value.

    Args:
        values: not negative.
        region_of: what a value stands for; None for background.

    Raises:
        ValueError: there are more than 32,767 distinct values, or negative ones.
    """
    highest = int(values.max(initial=0))
    if int(values.min(initial=0)) < 0:
        raise ValueError(f"the map holds {values.min()}, expected values from 0 on")
    if highest < 1 << 20:  # counting is many times faster than sorting
        present, dense = np.flatnonzero(np.bincount(values.ravel())), values
    else:
        present, inverse = np.unique(values, return_inverse=True)
        dense, highest = inverse.reshape(values.shape), len(present) - 1  # [H, W]
    if len(present) > np.iinfo(np.int16).max:
        raise ValueError(f"the map holds {len(present)} distinct values, which are no labels; is it a photograph?")
    regions: list[Region] = []
    table = np.zeros(highest + 1, np.uint8 if len(present) < 256 else np.int16)
    for place, value in enumerate(present.tolist()):
        region = region_of(value)
        if region is not None:
            regions.append(region)
            table[value if dense is values else place] = len(regions)
    return table[dense][None], tuple(regions)
