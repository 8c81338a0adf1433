"""COCO instance annotations: polygons, run lengths and crowds in one JSON file per split.

    annotations/instances_train2017.json, train2017/*.jpg         the publisher's
    train/_annotations.coco.json, train/*.jpg                     annotation tools'
    annotations.json, images/*.jpg

Instances may overlap, so targets are bits, decoded one mask at a time. H W image.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskformer.data.classes import ClassList, category_of, flag
from maskformer.data.dataset import DataError, Finding, SegmentationDataset, read_picture
from maskformer.data.folders import Layout, Splits, by_split, image_folder
from maskformer.data.sample import Sample, Task, pack

_NAME = re.compile(r"instances|coco|annotations|^train|^val|^test")
_FARTHEST = 100  # times the image's longer side that a corner of a polygon may be off
_OTHER_NAMES = re.compile(r"caption|keypoint|panoptic|image_info|stuff|lvis")


class CocoInstances(SegmentationDataset):
    """Records: image, annotation file, (H, W), the objects, and the image's id.

    An object is (category id, crowd, segmentation, annotation id, area or None).
    """

    tasks = ("instance",)
    value_noun = "category_id"
    remedy = "add it to `categories`, or remove its annotations"

    def read(self, index: int) -> Sample:
        image_path, path, size, objects, _ = self.records[index]
        image = read_picture(image_path)
        if image.shape[:2] != size:  # masks of a size out of a file could be of any
            raise self.size_mismatch(index, size, image.shape[:2])
        regions = tuple(self.classes.region(category, crowd) for category, crowd, *_ in objects)
        masks = (_decode(shape, size, f"annotation {number} of {path} (image {image_path})", path)
                 for _, _, shape, number, _ in objects)  # fmt: skip
        return Sample(image, pack(masks, size), regions, True, image_path)


def _mask_tools() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError("COCO polygons and run lengths need pycocotools: pip install 'maskformer[train]'") from error
    return mask


def _decode(shape: Any, size: tuple[int, int], name: str, path: str) -> NDArray[np.uint8]:
    """uint8 [H, W] of a list of polygons, or of run lengths, compressed or not."""
    try:
        return _decoded(shape, size, name, path)
    except DataError:
        raise
    except (TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise DataError("unreadable", path, f"{name} has a segmentation that cannot be read ({error})") from error


def _decoded(shape: Any, size: tuple[int, int], name: str, path: str) -> NDArray[np.uint8]:
    if isinstance(shape, list) and all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in shape):
        # Fewer than three corners enclose nothing; and four numbers would be taken for a box.
        polygons = [np.array(polygon, float) for polygon in shape if len(polygon) >= 6]
        if not polygons:
            return np.zeros(size, np.uint8)
        if not all((np.abs(polygon) < _FARTHEST * max(size)).all() for polygon in polygons):
            # The tools would walk along its edges, and take all memory for that.
            raise DataError("unreadable", path, f"{name} has a corner that is no number, or far outside of the image")
        tools = _mask_tools()
        shape = tools.merge(tools.frPyObjects([polygon.tolist() for polygon in polygons], *size))
    if not isinstance(shape, dict) or "counts" not in shape:
        message = f"{name} has no polygons or run lengths as segmentation: boxes alone cannot be learnt from"
        raise DataError("unreadable", path, message)
    counts = np.array(shape["counts"]) if isinstance(shape["counts"], list) else _run_lengths(shape["counts"])
    if tuple(shape.get("size") or ()) != size or counts.sum() != size[0] * size[1] or counts.min() < 0:
        message = f"{name} has {counts.sum()} pixels of run lengths and size {shape.get('size')}, expected {size}"
        raise DataError("size mismatch", path, message)
    inside = (np.arange(len(counts)) % 2).astype(np.uint8)
    return np.repeat(inside, counts.astype(np.int64)).reshape(size[::-1]).T  # [W * H] -> [H, W]: down the columns


def _run_lengths(text: str | bytes) -> NDArray[np.int64]:
    """The run lengths of COCO's string: 5 bits a character, the last one of a number without bit 6 and with its sign.

    From the fourth number on, each is the difference to the one two before. (pycocotools decodes too, but warns under
    numpy 2.)
    """
    codes = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0) + 1
    starts = np.concatenate([[0], ends[:-1]])
    shifts = 5 * (np.arange(ends[-1]) - np.repeat(starts, ends - starts))
    numbers = np.add.reduceat((codes[: ends[-1]] & 31) << shifts, starts)
    numbers -= np.where(codes[ends - 1] & 16, 1 << 5 * (ends - starts), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def _find(root: Path) -> Splits:
    found: dict[str, Path] = {}
    for folder in (root, root / "annotations", *sorted(path for path in root.iterdir() if path.is_dir())):
        for path in sorted(folder.glob("*.json")):
            if _NAME.search(path.name) and not _OTHER_NAMES.search(path.name) and _is_coco(path):
                found[path.relative_to(root).as_posix()] = path
    return by_split(found, "train")


def _is_coco(path: Path) -> bool:
    """Whether the file starts like an object of COCO; reading all of it only to find out may take a minute."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return re.match(r'\s*\{\s*"(info|images|licenses|annotations|categories|type)"', file.read(4096)) is not None


@contextlib.contextmanager
def annotation_file(
    path: Path, keys: tuple[str, ...] = ("images", "annotations", "categories"), whose: str = "COCO's"
) -> Iterator[dict[str, Any]]:
    """The content of an annotation file; a ValueError if it is damaged, or what is read of it is not in its form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); is it cut off?") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}, expected an annotation file that has")
    try:
        yield content
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        fault = f"lacks {error}" if isinstance(error, KeyError) else f"is not in {whose} form ({error})"
        raise ValueError(f"an entry of {path} {fault}, expected {', '.join(keys)} as {whose}") from error


def coco_classes(content: dict[str, Any], path: Path, isthing: bool, ignored: frozenset[int]) -> ClassList:
    """The `categories`, by rising id; `isthing` is for those that do not say."""
    categories = (category_of(entry, isthing=isthing) for entry in content["categories"])
    return ClassList(tuple(sorted(categories, key=lambda category: category.original_id)), ignored, str(path))


def listed_twice(content: dict[str, Any], path: Path) -> list[Finding]:
    """Ids that are of several images or of several categories: whose the annotations are cannot be told."""
    return [
        Finding("unknown value", "error", str(path), f"{path} lists id {number!r} twice in its {kind}: renumber them")
        for kind in ("images", "categories")
        for number, count in Counter(entry["id"] for entry in content[kind]).items()
        if count > 1
    ]


def _read(root: Path, split: str, source: Path, task: Task | None) -> CocoInstances:
    with annotation_file(source) as content:
        classes, findings = coco_classes(content, source, True, frozenset()), listed_twice(content, source)
        images = [
            (os.fspath(image["file_name"]), (int(image["height"]), int(image["width"])), image["id"])
            for image in content["images"]
        ]
        objects: dict[Any, list[tuple[Any, ...]]] = {number: [] for _, _, number in images}
        for entry in content["annotations"]:
            number = entry["image_id"]
            kind = int(entry["category_id"]), flag(entry, "iscrowd")
            described = (*kind, *(entry.get(name) for name in ("segmentation", "id", "area")))
            if number in objects:
                objects[number].append(described)
            else:
                message = f"annotation {entry.get('id')} of {source} is of image {number!r}, which is not listed"
                findings.append(Finding("missing", "error", str(source), message, number))
    if any(isinstance(shape, list) for described in objects.values() for _, _, shape, *_ in described):
        _mask_tools()  # missing, it is better missed now than in the middle of training
    folder = image_folder(root, source, [name for name, *_ in images], split)
    records = ((str(folder / name), str(source), size, objects[number], number) for name, size, number in images)
    return CocoInstances(root, split, classes, records, findings, task)


LAYOUT = Layout("coco-instances", _find, _read)
