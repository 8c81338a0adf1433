"""Pictures in, typed results out: the Segmenter (paper section 3.4, inference).

Only pictures of the same processed size share a forward pass, so no result depends on what else is in the batch.

B batch, Q queries, C classes, H W picture as given, h w stride-4 map.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from maskformer.checkpoints.exported import graph_segments, is_exported, load_exported
from maskformer.checkpoints.loading import load_model, resolve_checkpoint
from maskformer.configuration import PER_PIXEL_MODEL_TYPE
from maskformer.explanations import explained
from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.processing.loading import read_image
from maskformer.processing.postprocessing import InferenceProtocol
from maskformer.processing.preprocessing import image_size
from maskformer.results import TASKS, Segment, Segmentation, Task, map_of_runs, segments_of_map, segments_of_runs

__all__ = ["PostProcessing", "Segment", "Segmentation", "Segmenter", "Task"]

# Pictures that may wait for others of their size, in batches: what `stream` holds at most, and reads ahead at most.
_BATCHES_AHEAD = 4


class PostProcessing(TypedDict, total=False):
    """How logits become segments; what is left out or None has the post-processor's default.

    Source: arXiv 2107.06278, section 3.4.

    Raises:
        Nothing: `Segmenter.predict` checks the options.

    Examples:
        >>> from maskformer.data.scenes import draw_scene
        >>> options: PostProcessing = {"threshold": 0.9, "overlap_mask_area_threshold": 0.5}
        >>> result = Segmenter.from_pretrained("scenes").predict(draw_scene(1).image, **options)[0]
        >>> min(segment.score for segment in result.segments) >= 0.9
        True
    """

    threshold: float | None
    """Panoptic: the class probability a query must exceed; instance: the score to reach. Default 0.5."""
    mask_threshold: float | None
    """Panoptic, instance: mask probability from which a pixel is claimed. Default 0.5."""
    overlap_mask_area_threshold: float | None
    """Panoptic: the share of its claimed area a query must win (default 0.8); instance: the share that must stay
    visible under higher scores (default: overlaps do not matter)."""
    label_ids_to_fuse: Collection[int] | None
    """Panoptic: classes whose queries form one segment. Default: the checkpoint's stuff classes; an empty set: none."""
    protocol: InferenceProtocol | None
    """The order of resizing and sigmoid, see `processing.postprocessing`. Default "transformers"."""


_OPTIONS: dict[Task, frozenset[str]] = {
    "semantic": frozenset({"protocol"}),
    "panoptic": frozenset(PostProcessing.__annotations__),
    "instance": frozenset(PostProcessing.__annotations__) - {"label_ids_to_fuse"},
}


@dataclass(frozen=True, slots=True)
class _Prepared:
    index: int
    image: Any
    image_size: tuple[int, int]
    pixel_values: Tensor  # [3, H', W'], processed
    pixel_mask: Tensor  # [H', W']


class Segmenter:
    """A model, its image processor and a task: segments pictures of any form and size.

    Source: arXiv 2107.06278, section 3.4.

    Args:
        model: `MaskFormerForInstanceSegmentation`, or a per-pixel baseline (semantic only). It is put into evaluation
            mode and onto `device`, in place.
        image_processor: the one the checkpoint was saved with.
        task: "semantic", "instance" or "panoptic". Default: panoptic where the checkpoint says which classes are stuff
            (`label_ids_to_fuse` of the processor, `stuff_class_ids` of the configuration), instance where it says that
            none is, and semantic where it says nothing.
        device: default: where the model is.
        dtype: to run the network in, such as `torch.bfloat16`; the post-processing is in float32 always.

    Raises:
        ValueError: an unknown task, or one the model cannot do, or a device that is not there.

    Examples:
        >>> from maskformer.data.scenes import draw_scene
        >>> segmenter = Segmenter.from_pretrained("scenes")
        >>> result = segmenter.predict(draw_scene(1).image)[0]
        >>> result.task, result.image_size  # (height, width) in pixels
        ('panoptic', (192, 256))
        >>> result.segments[0].label in segmenter.labels.values()
        True
    """

    def __init__(
        self,
        model: nn.Module,
        image_processor: MaskFormerImageProcessor,
        task: Task | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config: Any = model.config
        self.model = _moved(model, device, dtype).eval()
        self.image_processor = image_processor
        self.labels: dict[int, str] = {int(number): str(name) for number, name in config.id2label.items()}
        self.is_per_pixel = config.model_type == PER_PIXEL_MODEL_TYPE
        # An exported graph may end in the maps of one task.
        self.graph_task: Task | None = getattr(model, "graph_task", None)
        stuff = image_processor.label_ids_to_fuse
        if stuff is None:
            stuff = getattr(config, "stuff_class_ids", None)
        self.stuff_ids: frozenset[int] | None = None if stuff is None else frozenset(stuff)
        default: Task = "panoptic" if self.stuff_ids else "instance"
        if self.stuff_ids is None or self.is_per_pixel:
            default = "semantic"
        self.task: Task = self._checked_task(task or self.graph_task or default)

    @classmethod
    @explained
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        task: Task | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Segmenter:
        """The Segmenter of a checkpoint: a directory, an id on the hub, or "scenes", which comes with the package.

        Args:
            path_or_hub_id: as for `load_model`; or a file of `maskformer export`, which takes neither `dtype` nor
                `kwargs`.
            task: see the class.
            device: default: the first GPU if there is one, else the CPU.
            dtype: see the class; default: that of the checkpoint on a GPU, float32 on a CPU.
            **kwargs: for `load_model` (`revision`, `cache_dir`, ...).

        Raises:
            ValueError: there is no such checkpoint or it cannot do the task, or the device is not there.
            ImportError: an ONNX file, and onnxruntime is not installed.
        """
        if is_exported(path_or_hub_id):
            if fixed := [*kwargs, *(["dtype"] if dtype else [])]:
                raise ValueError(f"{path_or_hub_id} is an exported file and as it is: leave out {', '.join(fixed)}")
            network = load_exported(path_or_hub_id, device)
            return cls(network, network.image_processor, task)
        model = load_model(path_or_hub_id, **kwargs)
        shared = {
            name: kwargs[name] for name in ("revision", "cache_dir", "token", "local_files_only") if name in kwargs
        }
        try:
            processor = MaskFormerImageProcessor.from_pretrained(resolve_checkpoint(path_or_hub_id), **shared)
        except OSError as error:
            raise ValueError(
                f"the checkpoint {path_or_hub_id} has no readable preprocessor_config.json: save its image processor "
                "beside the model, or build Segmenter(model, image_processor) yourself"
            ) from error
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype is None and torch.device(device).type == "cpu":
            dtype = torch.float32  # a file of half the size is no reason to compute at a fraction of the speed
        return cls(model, processor, task, device, dtype)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return _place(self.model)[0]

    @property
    def num_channels(self) -> int:
        """The channels of a picture, usually 3."""
        processor: Any = self.image_processor
        mean = processor.image_mean
        return processor.num_channels or (len(mean) if isinstance(mean, Sequence) else 3)

    @explained
    def predict(
        self, images: Any, task: Task | None = None, *, batch_size: int = 4, **post_processing: Unpack[PostProcessing]
    ) -> list[Segmentation]:
        """The results of one picture or many, in their order; a list also for a single one.

        Args:
            images: a Pillow picture, array ([H, W, 3], [3, H, W] or [H, W]), tensor, path, http(s) address or file
                content, or any iterable or 4-D array of them. Sizes may differ.
            task: instead of the Segmenter's.
            batch_size: pictures per forward pass, at most.
            **post_processing: see `PostProcessing`; only what the task has a use for.

        Raises:
            ValueError: a picture that cannot be read, by its place in the list; a task the model cannot do; an option
                the task has no use for, or outside its range.
            TypeError: an option that no task knows.
            FloatingPointError: the network's output is not finite (float16 is too narrow for some).
        """
        return list(self.stream(images, task, batch_size=batch_size, **post_processing))

    def stream(
        self, images: Any, task: Task | None = None, *, batch_size: int = 4, **post_processing: Unpack[PostProcessing]
    ) -> Iterator[Segmentation]:
        """As `predict`, but each result as soon as it and those before it are finished.

        `images` may be endless: it is read `4 * batch_size` pictures ahead at most (with `batch_size=1`: none).
        """
        chosen = self._checked_task(task or self.task)
        options = _checked_options(chosen, post_processing)
        if self.graph_task and options:
            raise ValueError(f"{next(iter(options))} is fixed in a file exported for a task: export without one")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        return self._stream(_each(images), chosen, options, batch_size)

    def _stream(
        self, images: Iterable[Any], task: Task, options: dict[str, Any], batch_size: int
    ) -> Iterator[Segmentation]:
        finished: dict[int, Segmentation] = {}
        due = 0
        for group in _groups(itertools.starmap(self._prepare, enumerate(images)), batch_size):
            numbers = [item.index for item in group]
            finished |= zip(numbers, self._segment(group, task, options), strict=True)
            del group  # not beside the next one
            while due in finished:
                yield finished.pop(due)
                due += 1

    def _prepare(self, index: int, image: Any) -> _Prepared:
        picture = read_image(image, self.num_channels, None, f"image {index}")
        # Alone, so that it is padded by its own rule and not to its neighbours' size.
        inputs = self.image_processor(picture, return_tensors="pt", input_data_format="channels_first")
        return _Prepared(index, image, image_size(picture), inputs["pixel_values"][0], inputs["pixel_mask"][0])

    @torch.inference_mode()
    def _segment(self, group: list[_Prepared], task: Task, options: dict[str, Any]) -> list[Segmentation]:
        device, dtype = _place(self.model)
        pixel_values = torch.stack([item.pixel_values for item in group]).to(device, dtype)  # [B, 3, H', W']
        self.model.eval()
        outputs = self.model(pixel_values=pixel_values)
        where: dict[str, Any] = {
            "target_sizes": [item.image_size for item in group],
            "pixel_mask": torch.stack([item.pixel_mask for item in group]),  # [B, H', W']
        }
        if self.graph_task is None:
            outputs = _logits(outputs, self.is_per_pixel)
            build = {"semantic": self._semantic, "panoptic": self._panoptic, "instance": self._instance}[task]
            results = build(outputs, **where, **options)
        else:
            found = graph_segments(outputs, **where)
            results = ((ids, segments_of_map(ids, infos, self.labels, self.stuff_ids)) for ids, infos in found)
        return [
            Segmentation(task, segmentation, segments, item.image_size, self.labels, item.image)
            for item, (segmentation, segments) in zip(group, results, strict=True)
        ]

    def _semantic(self, outputs: Any, **options: Any) -> Iterator[tuple[np.ndarray, list[Segment]]]:
        maps: Any = self.image_processor.post_process_semantic_segmentation(outputs, **options)
        if self.is_per_pixel:
            scores = outputs.logits.softmax(1).amax((2, 3))  # [B, C]
        else:
            scores = outputs.class_queries_logits.softmax(-1)[..., :-1].amax(1)  # [B, C]
        for class_map, class_scores in zip(maps, scores.tolist(), strict=True):
            segmentation = class_map.to(torch.int32).cpu().numpy()
            infos = [{"id": n, "label_id": n, "score": round(score, 6)} for n, score in enumerate(class_scores)]
            yield segmentation, segments_of_map(segmentation, infos, self.labels, self.stuff_ids)

    def _panoptic(
        self, outputs: Any, label_ids_to_fuse: Collection[int] | None = None, **options: Any
    ) -> Iterator[tuple[np.ndarray, list[Segment]]]:
        fuse = self.stuff_ids if label_ids_to_fuse is None else label_ids_to_fuse
        stuff = self.stuff_ids if self.stuff_ids is not None else (label_ids_to_fuse or None)
        found = self.image_processor.post_process_panoptic_segmentation(
            outputs, label_ids_to_fuse=set(fuse or ()), **options
        )
        for result in found:
            segmentation = result["segmentation"].to(torch.int32).cpu().numpy()
            yield segmentation, segments_of_map(segmentation, result["segments_info"], self.labels, stuff)

    def _instance(self, outputs: Any, **options: Any) -> Iterator[tuple[np.ndarray, list[Segment]]]:
        found = self.image_processor.post_process_instance_segmentation(outputs, return_coco_annotation=True, **options)
        # As in Mask2Former's inference, stuff is left out of the ranking's result, not of the ranking.
        stuff = self.stuff_ids or frozenset()
        for result, size in zip(found, options["target_sizes"], strict=True):
            pairs = zip(result["segmentation"], result["segments_info"], strict=True)
            things = [(runs, info) for runs, info in pairs if info["label_id"] not in stuff]
            runs: list[Any] = [runs for runs, _ in things]
            segments = segments_of_runs(runs, [info for _, info in things], self.labels, stuff)
            yield map_of_runs(runs, size), segments

    def _checked_task(self, task: str) -> Task:
        if task not in TASKS:
            raise ValueError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
        if self.is_per_pixel and task != "semantic":
            raise ValueError(
                f"a per-pixel baseline knows no segments and cannot do task {task!r}: use task='semantic', or a "
                "MaskFormer checkpoint"
            )
        if self.graph_task not in (None, task):
            raise ValueError(f"the file was exported for task {self.graph_task!r} and cannot do {task!r}")
        return task


def _checked_options(task: Task, post_processing: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say something, after a check that the task has a use for each."""
    known = PostProcessing.__annotations__
    if unknown := [name for name in post_processing if name not in known]:
        raise TypeError(f"unknown option {unknown[0]!r}, expected some of {', '.join(known)}")
    given = {name: value for name, value in post_processing.items() if value is not None}
    for name, value in given.items():
        if name not in _OPTIONS[task]:
            raise ValueError(f"{name} has no meaning for task {task!r}: leave it out")
        if name.endswith("threshold") and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, expected a share from 0 to 1")
    return given


def _groups(pictures: Iterable[_Prepared], batch_size: int) -> Iterator[list[_Prepared]]:
    """The pictures in lists of one size, at most `batch_size` each."""
    waiting: dict[tuple[int, ...], list[_Prepared]] = {}  # by size, in the order of their oldest picture
    for picture in pictures:
        size = tuple(picture.pixel_values.shape)
        waiting.setdefault(size, []).append(picture)
        if len(waiting[size]) == batch_size:
            yield waiting.pop(size)
        # Everything after a picture that waits for its like has to be held, finished or not: an odd one must go.
        oldest = next(iter(waiting), size)
        if waiting and picture.index - waiting[oldest][0].index + 1 >= _BATCHES_AHEAD * batch_size:
            yield waiting.pop(oldest)
    yield from waiting.values()


def _each(images: Any) -> Iterator[Any]:
    """One picture after the other, of one or of an iterable of them."""
    if isinstance(images, Image.Image | str | os.PathLike | bytes | bytearray):
        return iter([images])
    if isinstance(images, np.ndarray | Tensor):
        return iter(images if images.ndim == 4 else [images])
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise ValueError(f"images is a {type(images).__name__}, expected a picture or an iterable of pictures")
    return iter(images)


def _logits(outputs: Any, is_per_pixel: bool) -> SimpleNamespace:
    """The logits alone, in float32, so that the network's other outputs can be freed."""
    names = ["logits"] if is_per_pixel else ["class_queries_logits", "masks_queries_logits"]
    logits: dict[str, Tensor] = {}
    for name in names:
        value = getattr(outputs, name, None)
        if value is None:
            raise ValueError(
                f"the model returned no {name}: use MaskFormerForInstanceSegmentation, PerPixelBaseline or "
                "PerPixelBaselinePlus"
            )
        if not bool(value.isfinite().all()):
            raise FloatingPointError(
                f"{name} holds non-finite values: run in bfloat16 or float32 if this is float16, else the weights are "
                "damaged"
            )
        logits[name] = value.float()
    return SimpleNamespace(**logits)


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating type of the model; those of the CPU for one without weights."""
    weight = next((each for each in model.parameters() if each.is_floating_point()), torch.empty(0, device="cpu"))
    return weight.device, weight.dtype


def _moved(model: nn.Module, device: str | torch.device | None, dtype: torch.dtype | None) -> nn.Module:
    try:
        return model.to(device=torch.device(device) if device is not None else None, dtype=dtype)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}): try 'cpu'") from error
