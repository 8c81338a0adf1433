"""COCO instance annotations: polygons, run lengths and crowds in one JSON file per split.

    annotations/instances_train2017.json, train2017/*.jpg         the publisher's
    train/_annotations.coco.json, train/*.jpg                     annotation tools'
    annotations.json, images/*.jpg

Instances may overlap, so targets are bits, decoded one mask at a time. H W image.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskformer.data.classes import ClassList, category_of
from maskformer.data.dataset import DataError, Finding, SegmentationDataset, read_picture
from maskformer.data.folders import Layout, Splits, image_folder, split_of
from maskformer.data.sample import Sample, Task, pack

_NAME = re.compile(r"instances|coco|annotations|^train|^val|^test")
_OTHER_NAMES = re.compile(r"caption|keypoint|panoptic|image_info|stuff|lvis")


class CocoInstances(SegmentationDataset):
    """Records: image, annotation file, (H, W), and (category id, crowd, segmentation, annotation id) of each object."""

    tasks = ("instance",)
    value_noun = "category_id"
    remedy = "add it to `categories`, or remove its annotations"

    def read(self, index: int) -> Sample:
        image_path, path, size, objects = self.records[index]
        image = read_picture(image_path)
        regions = tuple(self.classes.region(category, crowd) for category, crowd, *_ in objects)
        masks = (_decode(shape, size, f"annotation {number} of {path} (image {image_path})", path)
                 for _, _, shape, number in objects)  # fmt: skip
        return Sample(image, pack(masks, size), regions, True, image_path)


def _mask_tools() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError("COCO polygons and run lengths need pycocotools: pip install 'maskformer[train]'") from error
    return mask


def _decode(shape: Any, size: tuple[int, int], name: str, path: str) -> NDArray[np.uint8]:
    """uint8 [H, W] of a list of polygons, or of run lengths, compressed or not."""
    if isinstance(shape, list) and all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in shape):
        # Fewer than three corners enclose nothing; and four numbers would be taken for a box.
        polygons = [polygon for polygon in shape if len(polygon) >= 6]
        if not polygons:
            return np.zeros(size, np.uint8)
        tools = _mask_tools()
        shape = tools.merge(tools.frPyObjects(polygons, *size))
    if not isinstance(shape, dict) or "counts" not in shape:
        message = f"{name} has no polygons or run lengths as segmentation: boxes alone cannot be learnt from"
        raise DataError("unreadable", path, message)
    counts = shape["counts"] if isinstance(shape["counts"], list) else _run_lengths(shape["counts"])
    if tuple(shape.get("size", ())) != size or int(np.sum(counts)) != size[0] * size[1]:
        message = f"{name} has {np.sum(counts)} pixels of run lengths and size {shape.get('size')}, expected {size}"
        raise DataError("size mismatch", path, message)
    inside = (np.arange(len(counts)) % 2).astype(np.uint8)
    return np.repeat(inside, counts).reshape(size[::-1]).T  # [W * H] -> [H, W]: runs go down the columns


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
    splits: Splits = {}
    for folder in (root, root / "annotations", *sorted(path for path in root.iterdir() if path.is_dir())):
        for path in sorted(folder.glob("*.json")):
            if _NAME.search(path.name) and not _OTHER_NAMES.search(path.name) and _is_coco(path):
                beside = None if folder == root else split_of(folder.name)
                splits.setdefault(split_of(path.stem) or beside or "train", path)
    return splits


def _is_coco(path: Path) -> bool:
    """Whether the file starts like an object of COCO; reading all of it only to find out may take a minute."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return re.match(r'\s*\{\s*"(info|images|licenses|annotations|categories|type)"', file.read(4096)) is not None


def read_json(path: Path, keys: tuple[str, ...] = ("images", "annotations", "categories")) -> dict[str, Any]:
    """An annotation file, by default COCO's.

    Raises:
        ValueError: it is damaged or lacks one of the keys.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); is it cut off?") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}, expected an annotation file that has")
    return content


def coco_classes(content: dict[str, Any], path: Path, isthing: bool, ignored: frozenset[int]) -> ClassList:
    """The `categories`, by rising id; `isthing` is for those that do not say."""
    categories = (category_of(entry, isthing=isthing) for entry in content["categories"])
    return ClassList(tuple(sorted(categories, key=lambda category: category.original_id)), ignored, str(path))


def _read(root: Path, split: str, source: Path, task: Task | None) -> CocoInstances:
    content = read_json(source)
    if any(isinstance(entry.get("segmentation"), list) for entry in content["annotations"]):
        _mask_tools()  # missing, it is better missed now than in the middle of training
    objects: dict[Any, list[tuple[Any, ...]]] = {image["id"]: [] for image in content["images"]}
    findings: list[Finding] = []
    for entry in content["annotations"]:
        if entry["image_id"] in objects:
            described = (entry["category_id"], bool(entry.get("iscrowd")), entry.get("segmentation"), entry.get("id"))
            objects[entry["image_id"]].append(described)
        else:
            message = f"annotation {entry.get('id')} of {source} is of image {entry['image_id']}, which is not listed"
            findings.append(Finding("missing", "error", str(source), message, entry["image_id"]))
    folder = image_folder(root, source, [image["file_name"] for image in content["images"]], split)
    records = (
        (str(folder / image["file_name"]), str(source), (image["height"], image["width"]), objects[image["id"]])
        for image in content["images"]
    )
    return CocoInstances(root, split, coco_classes(content, source, True, frozenset()), records, findings, task)


LAYOUT = Layout("coco-instances", _find, _read)
