"""The public image processor: transformers' names, arguments and saved file around the pure functions of this room.

Shapes: B batch, C channels, N targets, H W padded image, h w image.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature

from maskformer.explanations import explained
from maskformer.processing import postprocessing
from maskformer.processing.loading import flat_list, read_image
from maskformer.processing.preprocessing import batch_images, build_targets, image_size
from maskformer.processing.settings import ACCEPTED, FIELD_NAMES, OURS, ProcessorSettings, known_options

IdToClass: TypeAlias = Mapping[int, int] | Sequence[Mapping[int, int]] | None


class MaskFormerImageProcessor(BaseImageProcessor):
    """Prepares images and annotations for MaskFormer and turns its outputs into segments.

    Every option of `ProcessorSettings` is a keyword of the constructor, an attribute, and a keyword of a single call.
    Unknown options are a TypeError that names the nearest one, impossible values a ValueError. Sizes are in pixels,
    (height, width).

    Source: arXiv 2107.06278, sections 3.4 and 4.1; docs/transformers.md#what-changes-and-why.

    Examples:
        >>> processor = MaskFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
        >>> inputs = processor(np.zeros((50, 70, 3), np.uint8), return_tensors="pt")
        >>> tuple(inputs["pixel_values"].shape), tuple(inputs["pixel_mask"].shape)
        ((1, 3, 64, 96), (1, 64, 96))
    """

    model_input_names = ["pixel_values", "pixel_mask"]  # a list, as in the base class
    label_ids_to_fuse: list[int] | None

    def __init__(self, **options: Any) -> None:
        super().__init__()
        settings = ProcessorSettings.from_options(options)
        for name in FIELD_NAMES:
            setattr(self, name, getattr(settings, name))

    @explained
    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]  # the base takes anything
        self,
        images: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: IdToClass = None,
        *,
        class_labels: Sequence[Any] | None = None,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Make a batch of images of any form, and targets of their maps.

        Args:
            images: one or many (nested lists are flattened) Pillow images, arrays, tensors, paths, http(s) addresses
                or file contents. The EXIF orientation is applied: sizes for post-processing are those of the
                upright picture. Floats are rescaled like everything else: pass `do_rescale=False` for 0..1.
            segmentation_maps: one per image, of the same size: integer maps [h, w], or masks [N, h, w] of 0 and 1
                (which may overlap) together with `class_labels`.
            instance_id_to_semantic_id: the class of each id of a map, for all images or one mapping per image. None:
                the map's values are the classes.
            class_labels: one entry per image: the N classes of its masks, or None where a map is given.
            return_tensors: "pt" for tensors (on `device`), "np" for arrays, None for lists of arrays.
            input_data_format: "channels_first" or "channels_last", where an array could be read as either.
            options: any option of the processor, for this call only.

        Returns:
            `pixel_values` [B, C, H, W] float32; `pixel_mask` [B, H, W] int64, 1 = image; and with maps, per image
            `mask_labels` bool [N, H, W] (transformers' own model wants `.float()`), 0 on padding, and `class_labels`
            int64 [N]. N may be 0.

        Raises:
            ValueError: unreadable images, maps that do not fit their images, ids without a class.
        """
        settings = self._settings(options)
        pictures = (
            read_image(image, settings.channels, input_data_format, f"image {index}")
            for index, image in enumerate(flat_list(images))
        )
        pixel_values, pixel_mask, sizes = batch_images(pictures, settings)
        data: dict[str, Any] = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        if segmentation_maps is not None or class_labels is not None:
            annotations = segmentation_maps, instance_id_to_semantic_id, class_labels
            targets = build_targets(sizes, image_size(pixel_values), *annotations, settings)
            data["mask_labels"], data["class_labels"] = targets
        return BatchFeature(_converted(data, return_tensors, device))

    def encode_inputs(
        self,
        pixel_values_list: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: IdToClass = None,
        **options: Any,
    ) -> BatchFeature:
        """Pad images that are already resized and normalised, with their maps: `preprocess` without its first steps."""
        steps: dict[str, Any] = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), False)
        given = {name: value for name, value in options.items() if value is not None}
        return self.preprocess(pixel_values_list, segmentation_maps, instance_id_to_semantic_id, **steps | given)

    post_process_semantic_segmentation = staticmethod(explained(postprocessing.semantic_segmentation))
    post_process_instance_segmentation = staticmethod(explained(postprocessing.instance_segmentation))

    @explained
    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sequence[Any] | Tensor | None = None,
        **options: Any,
    ) -> list[postprocessing.SegmentsResult]:
        """See `panoptic_segmentation`; None fuses the processor's own classes, an empty set nothing."""
        fused = self.label_ids_to_fuse if label_ids_to_fuse is None else label_ids_to_fuse
        thresholds = threshold, mask_threshold, overlap_mask_area_threshold
        return postprocessing.panoptic_segmentation(outputs, *thresholds, fused, target_sizes, **options)

    def to_dict(self) -> dict[str, Any]:
        """The content of `preprocessor_config.json`; options another library lacks only where they are set."""
        saved: dict[str, Any] = {"image_processor_type": "MaskFormerImageProcessor"}
        default = ProcessorSettings()
        for name, value in dataclasses.asdict(self._settings({})).items():
            if value is not None and (name not in OURS or value != getattr(default, name)):
                saved[name] = list(value) if isinstance(value, tuple) else value
        return saved

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A processor from the content of a file; unknown entries of the file are ignored, `kwargs` override it."""
        return_unused = kwargs.pop("return_unused_kwargs", False)
        if not hasattr(image_processor_dict, "items"):
            raise ValueError(f"preprocessor_config.json holds {image_processor_dict!r:.20}, expected names and values")
        read = {name: value for name, value in image_processor_dict.items() if name in ACCEPTED}
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in ACCEPTED}
        processor = cls(**{**known_options(read), **known_options(overrides)})
        return (processor, kwargs) if return_unused else processor

    def _settings(self, overrides: Mapping[str, Any]) -> ProcessorSettings:
        own = {name: getattr(self, name) for name in FIELD_NAMES}
        return ProcessorSettings.from_options({**own, **known_options(overrides)})


class MaskFormerFeatureExtractor(MaskFormerImageProcessor):
    """Deprecated name of `MaskFormerImageProcessor`, kept for code written before 2023.

    Source: docs/transformers.md.

    Raises:
        ValueError, TypeError: as `MaskFormerImageProcessor`.

    Examples:
        >>> processor = MaskFormerFeatureExtractor()  # warns: it is the old name
        >>> isinstance(processor, MaskFormerImageProcessor)
        True
    """

    def __init__(self, **options: Any) -> None:
        warnings.warn("MaskFormerFeatureExtractor is now MaskFormerImageProcessor.", FutureWarning, stacklevel=2)
        super().__init__(**options)


def _converted(data: dict[str, Any], return_tensors: str | None, device: Any) -> dict[str, Any]:
    """Tensors on a device, arrays, or (None) lists of arrays."""
    kind = getattr(return_tensors, "value", return_tensors)  # an enumeration member or the word itself
    if kind not in ("pt", "np", None):
        raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}.")
    converted: dict[str, Any] = {}
    for name, value in data.items():
        whole = isinstance(value, Tensor)
        if kind == "pt":
            converted[name] = value.to(device) if whole else [item.to(device) for item in value]
        else:
            converted[name] = value.numpy() if whole and kind == "np" else [item.numpy() for item in value]
    return converted
