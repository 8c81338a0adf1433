"""What the Segmenter returns: one map and its segments per picture, and the formats they are passed on in.

The three tasks are the paper's section 1: a class per pixel (semantic), the countable objects (instance), or both
(panoptic). H W picture, in pixels of the picture as it was given (upright, before any resizing).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from maskformer.data.sample import Task as Task
from maskformer.processing.loading import read_image
from maskformer.processing.masks import RunLengths, decode_run_lengths, encode_run_lengths
from maskformer.visualization import id2rgb, overlay

TASKS: tuple[Task, ...] = get_args(Task)

_VOID_PIXEL = 65535  # of a 16-bit instance picture, whose ids start at 0


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a picture.

    Source: arXiv 2107.06278, section 3.4.

    Attributes:
        id: its value in the map.
        label: the name of its class.
        label_id: the number of its class.
        score: 0 to 1. Panoptic: the class probability of its (best) query; instance: that times the mean mask
            probability; semantic: the highest probability any query (per-pixel baseline: any pixel) gives the class.
        area: its pixels, for an instance those that others cover too.
        bbox: the tight box (x, y, width, height).
        is_thing: whether its class is countable; None where the checkpoint does not say.

    Raises:
        ValueError: from `mask`, `pixels` are run lengths that do not fit their size.

    Examples:
        >>> segment = Segment(1, "cat", 0, 0.9, 4, (0, 0, 2, 2), True, np.ones((2, 2), np.int32))
        >>> int(segment.mask.sum()), segment.rle()
        (4, {'size': [2, 2], 'counts': [0, 4]})
    """

    id: int
    label: str
    label_id: int
    score: float
    area: int
    bbox: tuple[int, int, int, int]
    is_thing: bool | None
    # The map it lies in, shared by all segments of the picture; for an instance, which may overlap, its own pixels.
    pixels: NDArray[np.int32] | RunLengths = field(repr=False, compare=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """bool [H, W], made anew at each access."""
        if isinstance(self.pixels, dict):
            return decode_run_lengths(self.pixels).numpy()
        return self.pixels == self.id

    def rle(self, compressed: bool = False) -> dict[str, Any]:
        """COCO run lengths `{"size": [H, W], "counts": [...]}`: down the columns, starting with zeros.

        `compressed` gives `counts` as COCO's string, which `pycocotools` makes and reads.

        Raises:
            ImportError: `compressed` without pycocotools.
        """
        runs = self.pixels if isinstance(self.pixels, dict) else encode_run_lengths(torch.from_numpy(self.mask))
        return compressed_runs(runs) if compressed else {"size": list(runs["size"]), "counts": list(runs["counts"])}

    def to_dict(self, rle: bool = False) -> dict[str, Any]:
        """The fields as JSON has them; with `rle`, the run lengths as `segmentation`."""
        names = ("id", "label", "label_id", "score", "area", "bbox", "is_thing")
        entry = {name: getattr(self, name) for name in names} | {"bbox": list(self.bbox)}
        return entry | {"segmentation": self.rle()} if rle else entry


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The result for one picture.

    Source: arXiv 2107.06278, section 3.4; the COCO formats.

    Attributes:
        task: what was asked for.
        segmentation: int32 [H, W]. Semantic: label ids. Panoptic: segment ids from 1, 0 = void. Instance: segment ids
            from 0, -1 = void, the higher score on top.
        segments: panoptic: by id; instance: by id, which is by falling score; semantic: one per class in the map, its
            id being the label id.
        image_size: (H, W).
        labels: the names of all classes of the model, by label id.
        image: the picture as it was handed in, for `overlay`.

    Examples:
        >>> ids = np.ones((2, 2), np.int32)
        >>> segment = Segment(1, "cat", 0, 0.9, 4, (0, 0, 2, 2), True, ids)
        >>> result = Segmentation("panoptic", ids, [segment], (2, 2), {0: "cat"})
        >>> result.to_dict()["segments"][0]["label"]
        'cat'
        >>> [path.name for path in result.save("out", "a")] if result.image is not None else result.to_png().size
        (2, 2)
    """

    task: Task
    segmentation: NDArray[np.int32] = field(repr=False)
    segments: list[Segment]
    image_size: tuple[int, int]
    labels: Mapping[int, str] = field(repr=False)
    image: Any = field(default=None, repr=False)

    def overlay(self, image: Any = None, **style: Any) -> Image.Image:
        """The segments drawn over the picture, with a legend; `style` goes to `visualization.overlay`.

        Args:
            image: another picture of the same size, instead of the one that was segmented.

        Raises:
            ValueError: there is no picture, it cannot be read as RGB or is of another size.
        """
        source = self.image if image is None else image
        if source is None:
            raise ValueError("this result holds no picture to draw on: pass image= to overlay")
        return overlay(_displayed(read_image(source)), self.segmentation, self.segments, self.labels, **style)

    def to_dict(self, rle: bool = False) -> dict[str, Any]:
        """Task, size (height, width) and segments, ready for JSON; with `rle`, each with its run lengths."""
        segments = [segment.to_dict(rle) for segment in self.segments]
        return {"task": self.task, "size": list(self.image_size), "segments": segments}

    def to_json(self, rle: bool = False) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(rle))

    def to_coco(
        self, image_id: int | str, category_ids: Mapping[int, int] | None = None, compressed: bool = False
    ) -> list[dict[str, Any]]:
        """One entry per segment of a COCO results file.

        Entries have no box: the official code would then rank small, medium and large by the area of the box instead
        of the mask's. It makes the boxes itself.

        Args:
            image_id: the picture's id in the annotation file.
            category_ids: the data set's category of each label id, where they differ (in COCO they do).
            compressed: run lengths as strings, which `COCO.loadRes` of pycocotools insists on.

        Raises:
            ImportError: `compressed` without pycocotools.
        """
        return [
            {
                "image_id": image_id,
                "category_id": _category(segment, category_ids),
                "score": segment.score,
                "segmentation": segment.rle(compressed),
            }
            for segment in self.segments
        ]

    def to_panoptic(
        self, image_id: int | str, category_ids: Mapping[int, int] | None = None
    ) -> tuple[Image.Image, dict[str, Any]]:
        """The PNG picture of the COCO panoptic format (id = R + 256 G + 65536 B), and its annotation.

        Args:
            image_id: the picture's id in the annotation file; the PNG file is to be called `<image_id>.png`.
            category_ids: the data set's category of each label id, where they differ.

        Raises:
            ValueError: the result is not panoptic.
        """
        if self.task != "panoptic":
            raise ValueError(f"a {self.task} result has no panoptic form: predict with task='panoptic'")
        entries = [
            {
                "id": segment.id,
                "category_id": _category(segment, category_ids),
                "area": segment.area,
                "bbox": list(segment.bbox),
                "iscrowd": 0,
            }
            for segment in self.segments
        ]
        annotation = {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": entries}
        return self.to_png(), annotation

    def to_png(self) -> Image.Image:
        """The map as a picture without loss.

        Panoptic: colours of the COCO panoptic format. Semantic: grey values = label ids, 8 bit up to 256 classes and 16
        bit above. Instance: 16-bit grey values = ids, void = 65535.
        """
        if self.task == "panoptic":
            return Image.fromarray(id2rgb(self.segmentation))
        if self.task == "instance":
            return Image.fromarray(np.where(self.segmentation < 0, _VOID_PIXEL, self.segmentation).astype(np.uint16))
        few = max(self.labels, default=0) < 256
        return Image.fromarray(self.segmentation.astype(np.uint8 if few else np.uint16))

    def save(self, directory: str | Path, stem: str) -> list[Path]:
        """Write `<stem>.overlay.png`, `<stem>.<task>.png` (`to_png`) and `<stem>.json` (`to_dict`).

        Instances have their run lengths in the JSON file: the picture cannot show where they overlap. Each file
        appears whole or not at all.

        Returns:
            The three paths.

        Raises:
            ValueError: there is no picture to draw on.
            OSError: the directory cannot be written to.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.to_json(rle=self.task == "instance")
        files: dict[str, Callable[[Path], Any]] = {
            f"{stem}.overlay.png": lambda path: self.overlay().save(path, "PNG"),
            f"{stem}.{self.task}.png": lambda path: self.to_png().save(path, "PNG"),
            f"{stem}.json": lambda path: path.write_text(text + "\n", encoding="utf-8"),
        }
        for name, write in files.items():
            write_whole(folder / name, write)
        return [folder / name for name in files]


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` fill a file beside `path` that takes its name once it is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        if error.filename in (None, str(part)) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
        raise
    finally:
        part.unlink(missing_ok=True)


def segments_of_map(
    segmentation: NDArray[np.int32],
    infos: Sequence[Mapping[str, Any]],
    labels: Mapping[int, str],
    stuff: Collection[int] | None,
) -> list[Segment]:
    """The segments of a map [H, W] whose ids are not negative, from `infos` with `id`, `label_id` and `score`.

    Those without a pixel are left out. `stuff` are the label ids of uncountable classes, None where not known.
    """
    lowest = min((int(info["id"]) for info in infos), default=0)
    # One pass for all boxes: find_objects looks for 1, 2, 3, ...
    places = ndimage.find_objects(segmentation if lowest > 0 else segmentation + 1)
    areas = np.bincount(segmentation.ravel())
    segments: list[Segment] = []
    for info in infos:
        number = int(info["id"])
        place = places[number - (lowest > 0)] if number < len(areas) else None
        if place is not None:
            rows, columns = place
            box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            segments.append(_segment(info, int(areas[number]), box, labels, stuff, segmentation))
    return segments


def segments_of_runs(
    runs: Sequence[RunLengths],
    infos: Sequence[Mapping[str, Any]],
    labels: Mapping[int, str],
    stuff: Collection[int] | None,
) -> list[Segment]:
    """The instances, which may overlap, of their run lengths; ids count from 0 in the order given."""
    segments: list[Segment] = []
    for number, (run_lengths, info) in enumerate(zip(runs, infos, strict=True)):
        starts, stops = _runs(run_lengths)
        height = run_lengths["size"][0]
        left, right = int(starts[0]) // height, int(stops[-1] - 1) // height
        # A run that goes on in the next column touches the lower and the upper edge.
        wraps = bool((starts // height != (stops - 1) // height).any())
        top = 0 if wraps else int((starts % height).min())
        bottom = height - 1 if wraps else int(((stops - 1) % height).max())
        box = (left, top, right - left + 1, bottom - top + 1)
        area = int((stops - starts).sum())
        segments.append(_segment({**info, "id": number}, area, box, labels, stuff, run_lengths))
    return segments


def compressed_runs(runs: Mapping[str, Any]) -> dict[str, Any]:
    """COCO run lengths with their counts as COCO's string; they may be so already, or bytes.

    Raises:
        ImportError: pycocotools is not installed.
    """
    counts, size = runs["counts"], list(runs["size"])
    if isinstance(counts, list):
        try:
            from pycocotools import mask
        except ImportError as error:
            raise ImportError("compressed run lengths need pycocotools: pip install 'maskformer[eval]'") from error
        plain: Any = {"size": size, "counts": counts}  # their types know the compressed form only
        packed: Any = mask.frPyObjects(plain, *size)
        counts = packed["counts"]
    return {"size": size, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def map_of_runs(runs: Sequence[RunLengths], size: tuple[int, int]) -> NDArray[np.int32]:
    """int32 [H, W]: at each pixel the number, from 0, of the first mask there, -1 where there is none."""
    height, width = size
    columns = np.full(width * height, -1, np.int32)
    for number, run_lengths in reversed(list(enumerate(runs))):
        for start, stop in zip(*_runs(run_lengths), strict=True):
            columns[start:stop] = number
    return np.ascontiguousarray(columns.reshape(width, height).T)  # [H, W]


def _runs(run_lengths: RunLengths) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the runs of ones start and stop, counted down the columns."""
    edges = np.cumsum(np.asarray(run_lengths["counts"], np.int64))
    starts, stops = edges[:-1:2], edges[1::2]
    filled = stops > starts
    return starts[filled], stops[filled]


def _segment(
    info: Mapping[str, Any],
    area: int,
    bbox: tuple[int, int, int, int],
    labels: Mapping[int, str],
    stuff: Collection[int] | None,
    pixels: NDArray[np.int32] | RunLengths,
) -> Segment:
    label_id = int(info["label_id"])
    is_thing = None if stuff is None else label_id not in stuff
    label = labels.get(label_id, f"class {label_id}")
    return Segment(int(info["id"]), label, label_id, float(info["score"]), area, bbox, is_thing, pixels)


def _category(segment: Segment, category_ids: Mapping[int, int] | None) -> int:
    if category_ids is None:
        return segment.label_id
    if segment.label_id not in category_ids:
        raise ValueError(f"category_ids has no entry for label id {segment.label_id} ({segment.label}): add it")
    return category_ids[segment.label_id]


def _displayed(picture: Tensor) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] or [H, W] of a picture [C, H, W] in 0..255, or in floats up to 1."""
    values = picture.permute(1, 2, 0)  # [H, W, C]
    if values.is_floating_point():
        values = (values * (255 if float(values.max()) <= 1 else 1)).round().clamp(0, 255).byte()
    return values.squeeze(-1).numpy()  # [H, W] if grey
