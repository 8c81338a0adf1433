"""ADE20K as its publishers ship it: SceneParse150, and the full data set with its hundreds of classes.

    ADEChallengeData2016/objectInfo150.txt, images/training/*.jpg, annotations/training/*.png     0 other, 1 to 150
    ADE20K_2021_17_01/images/ADE/training/<scene>/*.jpg, *_seg.png                  class = red // 10 x 256 + green
    ADE20K_2021_17_01/images_detectron2/training/*.jpg, annotations_detectron2/training/*.tif   0 to 846, 65535 ignored

The full set in its first form needs `classes.txt` with the classes to learn (`VALUE: NAME`; all others are ignored); in
its second, made for the 847 classes of the paper (appendix A), the list gives the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskformer.data.classes import Category, ClassList, packaged_classes
from maskformer.data.dataset import read_picture
from maskformer.data.folders import Layout, Splits, pair_by_name, paired_splits, split_folders
from maskformer.data.label_maps import LabelMaps, class_list_of
from maskformer.data.sample import IGNORED, UNKNOWN, Region, Task

FULL_CLASSES = 847


class FullColors(LabelMaps):
    """The colour-coded maps of the publisher."""

    def read_values(self, record: tuple[Any, ...]) -> NDArray[Any]:
        colors = read_picture(record[1])
        return colors[..., 0].astype(np.int32) // 10 * 256 + colors[..., 1]

    def region_of(self, value: int) -> Region | None:
        region = super().region_of(value)
        # Of three thousand classes a list names some; the others are not wrong.
        return region._replace(label_id=IGNORED) if region and region.label_id == UNKNOWN else region


def _find_150(root: Path) -> Splits:
    return paired_splits(root / "images", root / "annotations", "ADE_*.png")


def _read_150(root: Path, split: str, source: tuple[Path, Path], task: Task | None) -> LabelMaps:
    table = root / "objectInfo150.txt"
    categories = _object_info(table) if table.is_file() else packaged_classes("ade20k")
    return LabelMaps(root, split, ClassList(categories, frozenset({0}), "ADE20K"), *pair_by_name(*source), task)


def _object_info(path: Path) -> tuple[Category, ...]:
    """The publisher's table: a header with Idx and Name, then tab-separated lines; a name is a list of synonyms."""
    header, *lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    index, name = header.index("Idx"), header.index("Name")
    return tuple(Category(line[name].split(",")[0].strip(), False, int(line[index])) for line in lines)


def _find_full(root: Path) -> Splits:
    raw = root / "images" / "ADE"
    prepared = paired_splits(root / "images_detectron2", root / "annotations_detectron2", "ADE_*.tif")
    return prepared or ({name: (path, path) for name, path in split_folders(raw).items()} if raw.is_dir() else {})


def _read_full(root: Path, split: str, source: tuple[Path, Path], task: Task | None) -> LabelMaps:
    images, maps = source
    if images != maps:
        unnamed = tuple(Category(f"class {number}", False, number) for number in range(FULL_CLASSES))
        classes = class_list_of(root) or ClassList(unnamed, frozenset({65535}))
        return LabelMaps(root, split, classes, *pair_by_name(images, maps), task)
    classes = class_list_of(root, (0,))
    if classes is None:
        raise ValueError(
            f"{root} has the colour-coded maps of the full ADE20K but no class list: write those of its classes that "
            f"are to be learnt into {root / 'classes.txt'}, one per line as `VALUE: NAME` (place in the index, from 1)"
        )
    return FullColors(root, split, classes, *pair_by_name(images, maps, ".jpg", "_seg.png"), task)


LAYOUT = Layout("ade20k", _find_150, _read_150)
FULL_LAYOUT = Layout("ade20k-full", _find_full, _read_full)
