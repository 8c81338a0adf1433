"""What a `preprocessor_config.json` can say: every setting of the image processor, its default, its older spellings.

Paper, section 4 ("Inference"): pictures are resized by their shorter edge; the numbers of each dataset are in the zoo.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PUBLISHED_EDGES = {"shortest_edge": 800, "longest_edge": 1333}
SIZE_KEYS = ({"shortest_edge", "longest_edge"}, {"shortest_edge"}, {"height", "width"}, {"max_height", "max_width"})

# Older names in published files. The newer name wins where a file has both.
RENAMED = {"reduce_labels": "do_reduce_labels", "size_divisibility": "size_divisor"}
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # torchvision's names, by Pillow's number
MAX_SIZES = ("max_size", "_max_size")

# Written by other releases; none of them changes what this processor computes.
WITHOUT_EFFECT = {
    "auto_map", "crop_size", "data_format", "default_to_square", "device", "disable_grouping", "do_center_crop",
    "do_convert_rgb", "feature_extractor_type", "image_processor_type", "image_seq_length", "input_data_format",
    "processor_class", "return_tensors",
}  # fmt: skip

# The settings another library does not have: left out of a saved file while they are at their default.
OURS = ("do_pad", "pad_size_divisor", "num_channels", "label_ids_to_fuse")


@dataclass(frozen=True)
class ProcessorSettings:
    """One consistent set of settings. Build it with `from_options`, which reads every accepted spelling."""

    do_resize: bool = True
    """Resize each image to `size`."""
    size: Mapping[str, int] = field(default_factory=lambda: dict(PUBLISHED_EDGES))
    """`{"shortest_edge", "longest_edge"}` (the longer edge never exceeds the second), `{"shortest_edge"}`,
    `{"height", "width"}` or `{"max_height", "max_width"}`, in pixels. A number is a shortest edge."""
    size_divisor: int = 32
    """*Stretch* the resized image so that both edges are multiples of this; 0 = off."""
    resample: int = 2
    """Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming."""
    do_rescale: bool = True
    """Multiply the values by `rescale_factor`, whatever range they come in."""
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    """Subtract `image_mean` and divide by `image_std`, one number per channel (or one for all)."""
    image_mean: float | tuple[float, ...] = IMAGENET_MEAN
    image_std: float | tuple[float, ...] = IMAGENET_STD
    ignore_index: int | None = None
    """Value of a segmentation map that belongs to no segment."""
    do_reduce_labels: bool = False
    """Map class 0 means "nothing": it is ignored and all other classes move down by one."""
    num_labels: int | None = None
    """Number of classes; when given, labels are checked against it."""
    do_pad: bool = True
    """Pad the images of a batch at the bottom and right to one size."""
    pad_size: Mapping[str, int] | None = None
    """`{"height", "width"}` to pad to, instead of the largest of the batch."""
    pad_size_divisor: int = 0
    """*Pad* to a multiple of this, as the authors do (32); 0 = off. Use with `size_divisor=0`."""
    num_channels: int | None = None
    """Channels of an image; by default as many as `image_mean` has."""
    label_ids_to_fuse: list[int] | None = None
    """Classes without separate instances ("stuff"): the default of panoptic post-processing."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ProcessorSettings:
        """Read settings in any published spelling; raises TypeError for a name and ValueError for a value."""
        chosen = known_options(options)
        for name in ("image_mean", "image_std"):
            if isinstance(chosen.get(name), Iterable):
                chosen[name] = tuple(float(value) for value in chosen[name])
        if (pad_size := chosen.get("pad_size")) is not None:
            chosen["pad_size"] = _size_dict([pad_size] * 2 if isinstance(pad_size, int) else pad_size)
            if set(chosen["pad_size"]) != {"height", "width"}:
                raise ValueError(f"pad_size must hold height and width in pixels, got {pad_size}.")
        if chosen.get("label_ids_to_fuse") is not None:
            chosen["label_ids_to_fuse"] = sorted(int(label) for label in chosen["label_ids_to_fuse"])
        resample = chosen.get("resample", cls.resample)
        resample = str(getattr(resample, "value", resample))  # a member of Pillow's or torchvision's enumeration
        if resample not in (*FILTERS, *"012345"):
            raise ValueError(f"resample must be a Pillow filter from 0 to 5, got {resample}; bilinear is 2.")
        chosen["resample"] = FILTERS.index(resample) if resample in FILTERS else int(resample)
        settings = cls(**chosen)
        for name in ("size_divisor", "pad_size_divisor"):
            if getattr(settings, name) < 0:
                raise ValueError(f"{name} must be 0 (off) or a positive number, got {getattr(settings, name)}.")
        for name in ("image_mean", "image_std"):
            value = getattr(settings, name)
            if settings.do_normalize and isinstance(value, tuple) and len(value) not in (1, settings.channels):
                raise ValueError(
                    f"{name} has {len(value)} values for images of {settings.channels} channels; "
                    "give image_mean and image_std one value per channel, or pass do_normalize=False."
                )
        return settings

    @property
    def channels(self) -> int:
        """Channels of an image, from `num_channels` or the length of `image_mean`."""
        if self.num_channels is not None:
            return self.num_channels
        return len(self.image_mean) if isinstance(self.image_mean, tuple) else 3


FIELD_NAMES = tuple(field.name for field in fields(ProcessorSettings))
ACCEPTED = {*FIELD_NAMES, *RENAMED, *MAX_SIZES, *WITHOUT_EFFECT}
NULLABLE = ("ignore_index", "num_labels", "pad_size", "num_channels", "label_ids_to_fuse")


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under today's names, None only where it is a value of its own; TypeError for an unknown name."""
    chosen: dict[str, Any] = {}
    for name, value in options.items():
        if name not in ACCEPTED:
            close = difflib.get_close_matches(name, FIELD_NAMES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the options are {', '.join(FIELD_NAMES)}."
            raise TypeError(f"the image processor has no option {name!r}; {hint}")
        today = RENAMED.get(name, name)
        superseded = today != name and today in options
        if today in FIELD_NAMES and not superseded and (value is not None or today in NULLABLE):
            chosen[today] = value
    longest = options.get("max_size", options.get("_max_size"))
    if "size" in chosen or longest is not None:
        chosen["size"] = _size_dict(chosen.get("size"), longest)
    return chosen


def _size_dict(size: Any, max_size: int | None = None) -> dict[str, int]:
    """`size` as a dictionary; an int is a shortest edge (longest: `max_size`), a pair is (height, width)."""
    if size is None or isinstance(size, int):
        edges = PUBLISHED_EDGES if size is None else {"shortest_edge": size}
        size = edges if max_size is None else {**edges, "longest_edge": max_size}
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    try:
        chosen = {str(key): int(value) for key, value in dict(size).items() if value is not None}
    except (TypeError, ValueError):
        chosen = {}
    if set(chosen) not in SIZE_KEYS or min(chosen.values()) < 1:
        wanted = "shortest_edge and longest_edge, height and width, or max_height and max_width"
        raise ValueError(f"size must hold positive {wanted}, got {size}.")
    return chosen
