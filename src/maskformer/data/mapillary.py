"""Mapillary Vistas as its publisher ships it, versions 1.2 and 2.0.

    config.json, training/images/*.jpg, training/instances/*.png                            version 1.2
    config_v2.0.json, training/images/*.jpg, training/v2.0/instances/*.png                  version 2.0

`instances` is 16-bit: place of the label in the configuration x 256 + instance. `labels`, read where it is missing, is
the place alone. Labels that the configuration does not evaluate are ignored (paper: 65 classes remain of version 1.2).
"""

from __future__ import annotations

from pathlib import Path

from maskformer.data.classes import Category, ClassList
from maskformer.data.coco_instances import annotation_file
from maskformer.data.folders import Layout, Splits, pair_by_name, pictures_below, split_folders
from maskformer.data.label_maps import LabelMaps
from maskformer.data.sample import Region, Task


class VistasInstances(LabelMaps):
    tasks = ("panoptic", "semantic", "instance")

    def region_of(self, value: int) -> Region | None:
        return self.classes.region(value >> 8)


def _find(root: Path) -> Splits:
    splits: Splits = {}
    for split, folder in split_folders(root).items():
        for config, content in (("config_v2.0.json", "v2.0"), ("config_v1.2.json", "v1.2"), ("config.json", "")):
            kinds = [folder / content / kind for kind in ("instances", "labels")]
            maps = next((kind for kind in kinds if next(pictures_below(kind), None)), None)
            if (root / config).is_file() and (folder / "images").is_dir() and maps:
                splits.setdefault(split, (root / config, folder / "images", maps))
    return splits


def _read(root: Path, split: str, source: tuple[Path, Path, Path], task: Task | None) -> LabelMaps:
    config, images, maps = source
    with annotation_file(config, ("labels",), "Mapillary's") as content:
        categories = tuple(
            Category(label.get("readable", label["name"]), bool(label.get("instances")), place, tuple(label["color"]))
            for place, label in enumerate(content["labels"])
            if label.get("evaluate", True)
        )
    ignored = set(range(len(content["labels"]))) - {category.original_id for category in categories}
    classes = ClassList(categories, frozenset(ignored), str(config))
    reader = VistasInstances if maps.name == "instances" else LabelMaps
    return reader(root, split, classes, *pair_by_name(images, maps), task)


LAYOUT = Layout("mapillary", _find, _read)
