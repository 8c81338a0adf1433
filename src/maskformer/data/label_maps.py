"""Folders of images and label maps (PNG, TIFF): one value per pixel, with a class list; and pairs with instance maps.

    DIR/classes.txt   DIR/images/[train|val/]a.jpg   DIR/labels/[train|val/]a.png   DIR/instances/[train|val/]a.png
or  DIR/classes.txt   DIR/train/images/a.jpg         DIR/train/labels/a.png         DIR/train/instances/a.png

Values 255 and 65535 are ignored unless the list has them. In an instance map 0 is "no single instance": stuff, or a
crowd where the class is a thing. H W image.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskformer.data.classes import CLASS_FILES, USUALLY_IGNORED, ClassList, read_classes
from maskformer.data.dataset import DataError, Finding, SegmentationDataset, read_picture
from maskformer.data.folders import Layout, Splits, pair_by_name, paired_splits, pictures_below, split_folders
from maskformer.data.sample import Region, Sample, Task, index_map

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MAP_FOLDERS = ("labels", "label", "masks", "mask", "annotations", "semantic", "segmentation", "segmentationclass", "gt")
INSTANCE_FOLDERS = ("instances", "instance", "segmentationobject")
_MAPS_READ_FOR_THINGS, _MAPS_READ_FOR_DOUBTS = 500, 20


class LabelMaps(SegmentationDataset):
    """Images with one map of values each; formats say how to read it and what a value is."""

    def read(self, index: int) -> Sample:
        path, *_ = record = self.records[index]
        return Sample(read_picture(path), *index_map(self.read_values(record), self.region_of), path=path)

    def read_values(self, record: tuple[Any, ...]) -> NDArray[Any]:
        """[H, W] integers: the map of a record."""
        return read_values(record[1])

    def region_of(self, value: int) -> Region | None:
        return self.classes.region(value)


class InstancePairs(LabelMaps):
    """A class map and an instance map for each image; a value is class x 65536 + instance."""

    tasks = ("panoptic", "semantic", "instance")

    def read_values(self, record: tuple[Any, ...]) -> NDArray[Any]:
        joined = _joined(read_values(record[1]), read_values(record[2]), record[2])
        things = [category.original_id for category in self.categories if category.isthing]
        # Stuff is one region, whatever the instance map says of its parts.
        return np.where(np.isin(joined >> 16, things), joined, joined >> 16 << 16)

    def region_of(self, value: int) -> Region | None:
        region = self.classes.region(value >> 16)
        return region._replace(iscrowd=region.isthing and value & 0xFFFF == 0)


def _joined(labels: NDArray[Any], instances: NDArray[Any], path: str) -> NDArray[np.int64]:
    if labels.shape != instances.shape:
        message = f"{path} is {instances.shape} but the class map is {labels.shape}: they must be of one size"
        raise DataError("size mismatch", path, message)
    if instances.max(initial=0) > 0xFFFF:
        raise ValueError(
            f"{path} holds instance {instances.max()}, expected numbers up to 65535: count anew in each map"
        )
    return (labels.astype(np.int64) << 16) + instances


def read_values(path: str | Path) -> NDArray[Any]:
    """[H, W] integers of a label map's file, values untouched.

    Raises:
        ValueError: it is missing, damaged, or a colour picture.
    """
    from maskformer.processing.loading import open_picture, read_label_map

    values = read_label_map(open_picture(path, "the label map"), f"the label map ({path})").numpy()
    if values.ndim != 2:
        raise ValueError(f"{path} has the shape {values.shape}, expected one value per pixel")
    return values


def class_list_of(root: Path, ignored: tuple[int, ...] = USUALLY_IGNORED) -> ClassList | None:
    """The class list in a directory, if it has one."""
    for name in CLASS_FILES:
        if (root / name).is_file():
            return read_classes(root / name, ignored)
    return None


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
    return next((inside[name] for name in names if name in inside), None)


def _find(root: Path) -> Splits:
    splits: Splits = {}
    for split, folder in split_folders(root).items():
        images, maps, instances = (_child(folder, names) for names in (IMAGE_FOLDERS, MAP_FOLDERS, INSTANCE_FOLDERS))
        if images and maps and next(pictures_below(maps), None):
            for name, pair in paired_splits(images, maps).items():
                third = split_folders(instances).get(name) if instances else None
                splits[name if folder == root else split] = (*pair, third)
    return splits


def _read(root: Path, split: str, source: tuple[Path, Path, Path | None], task: Task | None) -> LabelMaps:
    images, maps, instances = source
    pairs, findings = pair_by_name(images, maps)
    classes = class_list_of(root)
    if classes is None:
        seen = sorted({int(value) for _, path in pairs[:20] for value in np.unique(read_values(path))})
        raise ValueError(
            f"{root} has label maps but no class list: write the names into {root / 'classes.txt'}, one per line as "
            f"`VALUE: NAME` (the first maps hold the values {', '.join(map(str, seen[:20]))})"
        )
    if instances is None:
        return LabelMaps(root, split, classes, pairs, findings, task)
    triples, findings = _triples(images, maps, instances)
    if not any(category.isthing for category in classes.categories):
        # Every split must have the same things, so the training split tells which they are.
        learnt = _find(root).get("train", source)
        things = _values_with_instances(_triples(*learnt)[0] if learnt[2] else triples, _MAPS_READ_FOR_THINGS)
        categories = (category._replace(isthing=category.original_id in things) for category in classes.categories)
        classes = replace(classes, categories=tuple(categories))
    else:
        findings += _doubts(classes, triples, root)
    return InstancePairs(root, split, classes, triples, findings, task)


def _triples(images: Path, maps: Path, instances: Path) -> tuple[list[tuple[str, str, str]], list[Finding]]:
    (pairs, findings), (partners, missing) = pair_by_name(images, maps), pair_by_name(images, instances)
    instance_maps = dict(partners)
    return [(*pair, instance_maps[pair[0]]) for pair in pairs if pair[0] in instance_maps], [*findings, *missing]


def _doubts(classes: ClassList, triples: list[tuple[str, str, str]], root: Path) -> list[Finding]:
    """Classes that a list with marks leaves unmarked, but whose objects are told apart."""
    counted = _values_with_instances(triples, _MAPS_READ_FOR_DOUBTS)
    lost = [each.name for each in classes.categories if not each.isthing and each.original_id in counted]
    message = (
        f"{', '.join(lost)} in {classes.source}: stuff, but the instance maps tell objects of it apart; mark things"
    )
    return [Finding("stuff with objects", "warning", str(root), f"{message} as `NAME (thing)`")] if lost else []


def _values_with_instances(triples: list[tuple[str, str, str]], limit: int) -> set[int]:
    """Values of the class maps at which an instance map counts; read off about `limit` maps, evenly spread."""
    found: set[int] = set()
    step = max(1, len(triples) // limit)
    for _, labels, instances in triples[::step]:
        try:
            values = np.unique(_joined(read_values(labels), read_values(instances), instances))
        except ValueError:
            continue  # told when the image's turn comes
        found |= {value >> 16 for value in values.tolist() if value & 0xFFFF}
    return found


LAYOUT = Layout("label-maps", _find, _read)
