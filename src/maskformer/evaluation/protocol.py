"""How the published numbers were measured (paper section 4, "Inference"), beside transformers' way of preparing images.

The authors resize by detectron2's rule, which rounds sizes where transformers' processor truncates, pad instead of
stretching, resize the logits in their own order, and drop segments by their own thresholds. All of it stands in the
zoo. C channels, H W image.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from maskformer.checkpoints.zoo import ZooEntry, find_in_zoo, list_zoo
from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.processing.loading import flat_list, read_image
from maskformer.processing.preprocessing import image_size, resize_image

Edges = tuple[int, int]  # shorter edge, and the limit of the longer one


@dataclass(frozen=True, slots=True)
class Protocol:
    """What `--protocol` stands for: sizes of the image, options of the post-processing, test-time augmentation."""

    edges: Edges | None = None
    pad_divisor: int = 0
    post_processing: dict[str, Any] = field(default_factory=dict)
    augmented_edges: tuple[Edges, ...] = ()
    flip: bool = False


def find_entry(model: str, zoo_name: str | None = None) -> ZooEntry:
    """The published settings of a model, by the name it was asked for or by a name of the zoo.

    Raises:
        ValueError: there are none.
    """
    entry = find_in_zoo(zoo_name or model)
    if entry is None and zoo_name is None:
        entry = next((each for each in list_zoo() if each["hub_id"] == model), None)
    if entry is None:
        raise ValueError(
            f"the zoo has no settings for {zoo_name or model}: name the published model whose protocol to use with "
            "--zoo; `maskformer zoo` lists them"
        )
    return entry


def paper_protocol(entry: ZooEntry, task: str) -> Protocol:
    """The authors' protocol for a task.

    Thresholds are theirs for panoptic maps; the authors have no instance inference.
    """
    options: dict[str, Any] = {"protocol": "paper-panoptic" if entry["masks_resized_first"] else "paper"}
    if task == "panoptic":
        # Their semantic models have 0 here, which means that nobody ever asked them for a panoptic map.
        options["threshold"] = entry["object_mask_threshold"] or 0.8
        options["overlap_mask_area_threshold"] = entry["overlap_threshold"] or 0.8
    return Protocol(
        edges=(entry["min_size_test"], entry["max_size_test"]),
        pad_divisor=entry["pad_divisor"],
        post_processing=options,
        augmented_edges=tuple((size, entry["tta_max"]) for size in entry["tta_sizes"]),
        flip=bool(entry["tta_flip"]),
    )


def authors_size(height: int, width: int, edges: Edges) -> tuple[int, int]:
    """(height, width) by detectron2's rule: the shorter edge set, the longer one limited, rounded to the nearest."""
    shortest, longest = edges
    scale = shortest / min(height, width)
    new = [scale * height, scale * width]
    new[0 if height < width else 1] = float(shortest)
    if max(new) > longest:
        scale = longest / max(new)
        new = [scale * length for length in new]
    return int(new[0] + 0.5), int(new[1] + 0.5)


class ClockedProcessor(MaskFormerImageProcessor):
    """An image processor with its clock, which resizes as the authors do if `edges` are set.

    Attributes:
        edges: one or several steps of resizing, the second of the first one's result, and so on.
        seconds: spent so far.
    """

    edges: tuple[Edges, ...] = ()
    pad_divisor: int = 0
    seconds: float = 0.0

    @classmethod
    def like(cls, processor: MaskFormerImageProcessor, pad_divisor: int = 0, *edges: Edges) -> ClockedProcessor:
        """A processor with the same settings; with `edges`, resizing and padding are the authors'."""
        settings = {name: value for name, value in processor.to_dict().items() if name != "image_processor_type"}
        new = cls(**settings)
        new.edges, new.pad_divisor = edges, pad_divisor
        return new

    def preprocess(self, images: Any, *args: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As the base class."""
        start = time.perf_counter()
        if self.edges:
            data_format = options.pop("input_data_format", None)
            images = [self._resized(image, data_format) for image in flat_list(images)]
            options |= {"input_data_format": "channels_first", "do_resize": False}
            options |= {"size_divisor": 0, "pad_size_divisor": self.pad_divisor}
        batch = super().preprocess(images, *args, **options)
        self.seconds += time.perf_counter() - start
        return batch

    def _resized(self, image: Any, data_format: str | None) -> Tensor:
        picture = read_image(image, self._settings({}).channels, data_format)
        for edges in self.edges:
            picture = resize_image(picture, authors_size(*image_size(picture), edges))
        return picture
