"""Cityscapes as its publisher ships it: the 19 classes of the benchmark, eight of them with instances.

    leftImg8bit/train/<city>/<name>_leftImg8bit.png
    gtFine/train/<city>/<name>_gtFine_{instanceIds,labelIds,labelTrainIds}.png

`instanceIds` alone says everything: label id x 1000 + instance, or the label id itself for stuff and for groups of
things that were not told apart. Without it the label maps are read, which are good for semantic segmentation only.
"""

from __future__ import annotations

from pathlib import Path

from maskformer.data.classes import ClassList, packaged_classes
from maskformer.data.folders import Layout, Splits, holds, pair_by_name, paired_splits
from maskformer.data.label_maps import LabelMaps
from maskformer.data.sample import Region, Task

_KINDS = ("instanceIds", "labelIds", "labelTrainIds")


class CityscapesInstances(LabelMaps):
    tasks = ("panoptic", "semantic", "instance")

    def region_of(self, value: int) -> Region | None:
        region = self.classes.region(value if value < 1000 else value // 1000)
        return region._replace(iscrowd=region.isthing and value < 1000)


def _find(root: Path) -> Splits:
    splits = paired_splits(root / "leftImg8bit", root / "gtFine", "*_gtFine_*.png")
    return {name: source for name, source in splits.items() if name != "test"}  # published without annotation


def _read(root: Path, split: str, source: tuple[Path, Path], task: Task | None) -> LabelMaps:
    images, maps = source
    kind = next((kind for kind in _KINDS if holds(maps, f"*_{kind}.png")), _KINDS[0])
    pairs, findings = pair_by_name(images, maps, "_leftImg8bit.png", f"_gtFine_{kind}.png")
    categories, ignored = packaged_classes("cityscapes"), frozenset({255})
    if kind == "labelTrainIds":
        categories = tuple(category._replace(original_id=place) for place, category in enumerate(categories))
    else:
        ignored = frozenset(range(34)) - {category.original_id for category in categories}
    reader = CityscapesInstances if kind == "instanceIds" else LabelMaps
    return reader(root, split, ClassList(categories, ignored, "Cityscapes"), pairs, findings, task)


LAYOUT = Layout("cityscapes", _find, _read)
