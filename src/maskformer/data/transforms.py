"""Augmentation of the paper (section 4, "Training settings"): resize, crop, flip and colour distortion of samples.

A transform is any callable that takes a sample and a numpy Generator and returns a sample; all randomness comes from
that generator, so a seed gives a result, in any process. Images are resized bilinearly with antialiasing, targets with
nearest. H W image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from maskformer.data.dataset import SegmentationDataset
from maskformer.data.sample import Sample

Transform: TypeAlias = Callable[[Sample, np.random.Generator], Sample]
_CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class Compose:
    """One transform after the other; regions without a pixel left at the end are dropped and counted."""

    steps: Sequence[Transform]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for step in self.steps:
            sample = step(sample, rng)
        return sample.without_empty()


@dataclass(frozen=True)
class ResizeShortestEdge:
    """The shorter edge becomes one of `sizes`, the longer one at most `max_size`; the shape is kept."""

    sizes: Sequence[int]
    max_size: int | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.size
        scale = int(rng.choice(np.asarray(self.sizes))) / min(height, width)
        if self.max_size is not None:
            scale = min(scale, self.max_size / max(height, width))
        return resize(sample, (max(1, round(height * scale)), max(1, round(width * scale))))


@dataclass(frozen=True)
class RandomCrop:
    """Cut out a random window.

    Attributes:
        size: "absolute": (height, width) in pixels; "absolute_range": each edge is drawn between these two. At most
            the image's.
        kind: see `size`.
        single_category_max_area: no class may fill more of the window's labelled pixels than this share; ten windows
            are tried, the last is taken as it is. 1 is no limit.
    """

    size: tuple[int, int]
    kind: Literal["absolute", "absolute_range"] = "absolute"
    single_category_max_area: float = 1.0

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        limit, window = self.single_category_max_area, sample
        for _ in range(_CROP_ATTEMPTS):
            height, width = self._window(sample.size, rng)
            top = int(rng.integers(sample.size[0] - height + 1))
            left = int(rng.integers(sample.size[1] - width + 1))
            window = crop(sample, top, left, height, width)
            if limit >= 1 or _largest_share(window) <= limit:
                break
        return window

    def _window(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        wanted: Sequence[int] = self.size
        if self.kind == "absolute_range":
            low, high = self.size
            wanted = [int(rng.integers(min(edge, low), min(edge, high) + 1)) for edge in size]
        return min(size[0], max(1, wanted[0])), min(size[1], max(1, wanted[1]))


@dataclass(frozen=True)
class OneOf:
    """One of several transforms, each as often."""

    options: Sequence[Transform]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.options[int(rng.integers(len(self.options)))](sample, rng)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror left and right."""

    chance: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.chance:
            return sample
        return replace(sample, image=sample.image[:, ::-1], planes=sample.planes[:, :, ::-1])


@dataclass(frozen=True)
class PhotometricDistortion:
    """Brightness, contrast, saturation and hue of SSD (arXiv 1512.02325): each by chance, contrast early or late."""

    brightness: float = 32  # grey levels up or down
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18 / 180  # of the circle, either way
    chance: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        shift = rng.uniform(-self.brightness, self.brightness) * (rng.random() < self.chance)
        early = bool(rng.random() < 0.5)
        contrast = rng.uniform(*self.contrast) if rng.random() < self.chance else 1.0
        saturation = rng.uniform(*self.saturation) if rng.random() < self.chance else 1.0
        turn = round(256 * rng.uniform(-self.hue, self.hue) * (rng.random() < self.chance))
        # All of it maps single values, so tables of 256 entries do what arithmetic on whole images would.
        levels = np.arange(256)
        image = _look_up(sample.image, (levels + shift) * (contrast if early else 1))
        if saturation != 1 or turn:
            hsv = np.asarray(Image.fromarray(image).convert("HSV"))
            hue, strength = (levels + turn) % 256, levels * saturation
            planes = [_look_up(hsv[..., 0], hue), _look_up(hsv[..., 1], strength), hsv[..., 2]]
            image = np.asarray(Image.fromarray(np.stack(planes, axis=-1), mode="HSV").convert("RGB"))
        return replace(sample, image=image if early else _look_up(image, levels * contrast))


def _look_up(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table.round().clip(0, 255).astype(np.uint8)[values]


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample at (height, width); each target pixel is the one whose centre is nearest."""
    if size == sample.size:
        return sample
    image = Image.fromarray(np.ascontiguousarray(sample.image)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip(size, sample.size, strict=True)
    )
    return replace(sample, image=np.asarray(image), planes=sample.planes[:, rows[:, None], columns])


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """A window of the sample; regions outside of it stay in the list, without pixels."""
    window = (slice(top, top + height), slice(left, left + width))
    return replace(sample, image=sample.image[window], planes=sample.planes[:, *window])


def _largest_share(sample: Sample) -> float:
    """The largest class's share of the labelled pixels; 1 without any, which is no better than a single class."""
    totals = Counter[int]()
    for region, area in zip(sample.regions, sample.areas().tolist(), strict=True):
        if region.label_id >= 0:
            totals[region.label_id] += area
    return max(totals.values()) / totals.total() if totals.total() else 1.0


def paper_transforms(
    min_sizes: Sequence[int],
    max_size: int,
    crop_size: tuple[int, int] | None,
    crop_kind: Literal["absolute", "absolute_range"] = "absolute",
    single_category_max_area: float = 1.0,
    distort_colors: bool = False,
) -> Compose:
    """The augmentation of a published configuration, in the words of `maskformer zoo --json`.

    "absolute": resize, crop, distort, flip. "absolute_range", the panoptic recipe of COCO: flip, then either resize, or
    resize to 400, 500 or 600, crop and resize.

    Source: arXiv 2107.06278, section 4.1 (training settings).

    Raises:
        Nothing: settings are checked where a training is configured, before.

    Examples:
        >>> from maskformer.data.recognise import open_dataset
        >>> transform = paper_transforms([96, 128], 256, (96, 96), distort_colors=True)
        >>> transform(open_dataset("scenes:2", "train")[0], np.random.default_rng(0)).size
        (96, 96)
    """
    resized = ResizeShortestEdge(min_sizes, max_size)
    if crop_size is not None and crop_kind == "absolute_range":
        cropped = Compose([ResizeShortestEdge((400, 500, 600)), RandomCrop(crop_size, "absolute_range"), resized])
        return Compose([RandomFlip(), OneOf([resized, cropped])])
    steps: list[Transform] = [resized]
    if crop_size is not None:
        steps.append(RandomCrop(crop_size, single_category_max_area=single_category_max_area))
    return Compose([*steps, *([PhotometricDistortion()] if distort_colors else []), RandomFlip()])


class TransformedDataset:
    """A data set with a transform on top.

    An item is asked for by (index, draw): the same pair gives the same result in every process and after every
    restart. A plain index is draw 0. The draw is best the number of the sample in the whole training.

    Source: arXiv 2107.06278, section 4.1 (training settings); docs/data.md#transforms.

    Raises:
        ValueError: the sample cannot be read (as the data set on its own).

    Examples:
        >>> from maskformer.data.recognise import open_dataset
        >>> dataset = TransformedDataset(open_dataset("scenes:2", "train"), paper_transforms([96], 256, None))
        >>> len(dataset), dataset[0].size
        (2, (96, 128))
    """

    def __init__(self, dataset: SegmentationDataset, transform: Transform, seed: int = 0) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        index, draw = key if isinstance(key, tuple) else (key, 0)
        return self.transform(self.dataset[index], np.random.default_rng([self.seed, draw, index]))
