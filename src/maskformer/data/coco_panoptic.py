"""COCO panoptic annotations: a JSON file, and a folder of the same name with a PNG per image.

    annotations/panoptic_train2017.json, annotations/panoptic_train2017/*.png, train2017/*.jpg

A pixel's segment is id = R + 256 G + 65536 B; `segments_info` gives its category; id 0 is void, which is ignored. This
is also how the panoptic form of ADE20K is stored (`ade20k_panoptic_train.json`). H W image.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from maskformer.data.classes import flag
from maskformer.data.coco_instances import annotation_file, coco_classes, listed_twice
from maskformer.data.dataset import DataError, Finding, SegmentationDataset, read_picture
from maskformer.data.folders import Layout, Splits, by_split, image_folder, pictures_below
from maskformer.data.sample import IGNORED, Region, Sample, Task, index_map


class CocoPanoptic(SegmentationDataset):
    """Records: image, PNG, the JSON file, the category and crowd flag of each segment id, and the image's id."""

    tasks = ("panoptic", "semantic", "instance")
    value_noun = "category_id"
    remedy = "add it to `categories`, or correct segments_info"

    def read(self, index: int) -> Sample:
        image_path, path, source, segments, _ = self.records[index]
        image, colors = read_picture(image_path), read_picture(path).astype(np.int32)
        ids = colors[..., 0] | colors[..., 1] << 8 | colors[..., 2] << 16  # [H, W]

        def region_of(value: int) -> Region:
            if value == 0:
                return Region(IGNORED, 0)
            if value not in segments:
                message = f"{path} holds segment id {value}, which the segments_info of {source} lacks for this image"
                raise DataError("unknown value", path, message, value)
            return self.classes.region(*segments[value])

        return Sample(image, *index_map(ids, region_of), path=image_path)


def _find(root: Path) -> Splits:
    found: dict[str, Path] = {}
    for folder in (root, root / "annotations"):
        for path in sorted(folder.glob("*.json")):
            if next(pictures_below(path.with_suffix(""), (".png",)), None) and _has_segments(path):
                found[path.relative_to(root).as_posix()] = path
    return by_split(found, "train")


def _has_segments(path: Path) -> bool:
    """Whether the annotations are panoptic ones; a file of instances may lie beside a folder of its name, too."""
    if not path.stat().st_size:
        return True  # what is wrong with it is told when it is read
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first = re.search(rb'"(segments_info|segmentation)"', content)
        return first is None or first.group(1) == b"segments_info"


def _read(root: Path, split: str, source: Path, task: Task | None) -> CocoPanoptic:
    with annotation_file(source) as content:
        classes, findings = coco_classes(content, source, False, frozenset({0})), listed_twice(content, source)
        images = [(os.fspath(image["file_name"]), image["id"]) for image in content["images"]]
        maps: dict[Any, tuple[str, dict[int, Any]]] = {}
        for entry in content["annotations"]:
            infos = entry["segments_info"]
            segments = {int(info["id"]): (int(info["category_id"]), flag(info, "iscrowd")) for info in infos}
            maps[entry["image_id"]] = str(source.with_suffix("") / entry["file_name"]), segments
    folder = image_folder(root, source, [name for name, _ in images], split, source.with_suffix(""))
    records: list[tuple[Any, ...]] = []
    for name, number in images:
        path = str(folder / name)
        if number in maps:
            label_map, segments = maps[number]
            records.append((path, label_map, str(source), segments, number))
        else:
            message = f"{path} has no entry in the annotations of {source}: add it, or remove the image from there"
            findings.append(Finding("missing", "error", path, message))
    return CocoPanoptic(root, split, classes, records, findings, task)


LAYOUT = Layout("coco-panoptic", _find, _read)
