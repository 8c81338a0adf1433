"""Tiny data sets of drawn scenes, each in exactly the layout its publisher ships, and the truth they must be read as.

Every writer takes a directory, the number of training images and their size; one more image is written for "val".
`Truth` is per image the class map (label ids of the format, 255 ignored) and the label ids of the targets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from maskformer.data.scenes import CLASSES, STUFF_IDS, Scene, draw_scene

SIZE = (64, 96)
HOLE = (slice(0, 5), slice(0, 9))  # rows and columns that writers leave unlabelled
NAMES = [entry.name for entry in CLASSES]


@dataclass
class Truth:
    """What `dataset[i]` must hold; `label_ids` by scene class where the format has other classes."""

    class_maps: list[np.ndarray]
    instances: list[int]  # targets of things in each image
    label_ids: list[int]


def scenes(count: int, size: tuple[int, int] = SIZE) -> Iterator[tuple[str, str, Scene]]:
    """Split, name and scene; the last one is for validation."""
    for seed in range(count + 1):
        yield ("train" if seed < count else "val"), f"{seed:06}", draw_scene(seed, size)


def class_map(scene: Scene, hole: int | None = 255) -> np.ndarray:
    table = np.zeros(len(scene.segments) + 1, np.int32)
    for segment in scene.segments:
        table[segment["id"]] = segment["category_id"]
    classes = table[scene.segmentation]
    if hole is not None:
        classes[HOLE] = hole
    return classes


def truth(count: int, size: tuple[int, int], label_ids: list[int], hole: bool = True) -> Truth:
    table = np.full(256, 255)
    table[: len(label_ids)] = label_ids
    drawn = [scene for split, _, scene in scenes(count, size) if split == "train"]
    maps = [table[class_map(scene, 255 if hole else None)] for scene in drawn]
    instances = []
    for scene in drawn:
        visible = scene.segmentation.copy()
        if hole:
            visible[HOLE] = 0
        things = [segment["id"] for segment in scene.segments if segment["isthing"]]
        instances.append(len(set(things) & set(np.unique(visible).tolist())))
    return Truth(maps, instances, label_ids)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(array).save(path, **options)


def write_label_maps(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> Truth:
    for split, name, scene in scenes(count, size):
        save(root / "images" / split / f"{name}.jpg", scene.image)
        save(root / "labels" / split / f"{name}.png", class_map(scene).astype(np.uint8))
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return truth(count, size, list(range(len(NAMES))))


def write_pairs(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> Truth:
    for split, name, scene in scenes(count, size):
        things = np.isin(class_map(scene, 0), STUFF_IDS, invert=True)
        save(root / split / "images" / f"{name}.png", scene.image)
        save(root / split / "masks" / f"{name}_mask.png", class_map(scene).astype(np.uint8))
        save(root / split / "instances" / f"{name}.png", (scene.segmentation * things).astype(np.uint16))
    (root / "classes.json").write_text(json.dumps(dict(enumerate(NAMES))))
    return truth(count, size, list(range(len(NAMES))))


def write_ade20k(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> Truth:
    for split, name, scene in scenes(count, size):
        folder, stem = {"train": "training", "val": "validation"}[split], f"ADE_{split}_00{name}"
        save(root / "images" / folder / f"{stem}.jpg", scene.image)
        save(root / "annotations" / folder / f"{stem}.png", (class_map(scene, -1) + 1).astype(np.uint8))
    rows = [f"{number}\t0.1\t10\t1\tclass {number}, kind {number}" for number in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    return truth(count, size, list(range(len(NAMES))))


def write_ade20k_full(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> Truth:
    """The prepared form: 16-bit TIFF, here with classes from 700 on."""
    for split, name, scene in scenes(count, size):
        folder, stem = {"train": "training", "val": "validation"}[split], f"ADE_{split}_00{name}"
        labels = class_map(scene).astype(np.uint16)
        labels = np.where(labels == 255, 65535, labels + 700).astype(np.uint16)
        save(root / "images_detectron2" / folder / f"{stem}.jpg", scene.image)
        save(root / "annotations_detectron2" / folder / f"{stem}.tif", labels)
    return truth(count, size, list(range(700, 700 + len(NAMES))))


def write_ade20k_full_colors(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> Truth:
    """The publisher's form: the class in red and green, here with indices from 1000 on; the instance in blue."""
    for split, name, scene in scenes(count, size):
        folder = root / "images" / "ADE" / {"train": "training", "val": "validation"}[split] / "nature" / "drawn"
        index = np.where(class_map(scene) == 255, 0, class_map(scene) + 1000)
        colors = np.stack([index // 256 * 10, index % 256, scene.segmentation], axis=-1)
        save(folder / f"ADE_{split}_00{name}.jpg", scene.image)
        save(folder / f"ADE_{split}_00{name}_seg.png", colors.astype(np.uint8))
    lines = [f"{1000 + number}: {name}" for number, name in enumerate(NAMES) if name != "sky"]  # the sky is not learnt
    (root / "classes.txt").write_text("\n".join(lines))
    return truth(count, size, [255, *range(len(NAMES) - 1)])


# Things become things: the eight of the scenes are the eight of Cityscapes.
CITYSCAPES_IDS = (23, 22, 21, 7, 8, 11, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_TRAIN_IDS = (10, 9, 8, 0, 1, 2, 11, 12, 13, 14, 15, 16, 17, 18)


def write_cityscapes(
    root: Path, count: int = 3, size: tuple[int, int] = SIZE, kinds: tuple[str, ...] = ("instanceIds", "labelIds")
) -> Truth:
    for split, name, scene in scenes(count, size):
        stem = f"aachen_{name}_000019"
        labels = np.array(CITYSCAPES_IDS)[class_map(scene, 0)]
        instances = labels.copy()
        for number, segment in enumerate(scene.segments):
            if segment["isthing"]:
                inside = scene.segmentation == segment["id"]
                instances[inside] = labels[inside] * 1000 + number
        train_ids = np.array(CITYSCAPES_TRAIN_IDS)[class_map(scene, 0)]
        labels[HOLE], instances[HOLE], train_ids[HOLE] = 3, 3, 255  # out of the region of interest
        maps = {
            "instanceIds": instances.astype(np.uint16),
            "labelIds": labels.astype(np.uint8),
            "labelTrainIds": train_ids.astype(np.uint8),
        }
        save(root / "leftImg8bit" / split / "aachen" / f"{stem}_leftImg8bit.png", scene.image)
        for kind in kinds:
            save(root / "gtFine" / split / "aachen" / f"{stem}_gtFine_{kind}.png", maps[kind])
        (root / "gtFine" / split / "aachen" / f"{stem}_gtFine_polygons.json").write_text("{}")
    return truth(count, size, list(CITYSCAPES_TRAIN_IDS))


def write_mapillary(root: Path, count: int = 3, size: tuple[int, int] = SIZE, version: str = "") -> Truth:
    labels = [
        {"name": f"drawn--{e.name}", "readable": e.name.title(), "color": e.color, "instances": e.isthing}
        for e in CLASSES
    ]
    labels.insert(2, {"name": "void--nothing", "readable": "Unlabeled", "color": (0, 0, 0), "instances": False})
    for place, label in enumerate(labels):
        label["evaluate"] = place != 2
    places = np.array([0, 1, *range(3, len(labels))])
    (root / (f"config_{version}.json" if version else "config.json")).write_text(json.dumps({"labels": labels}))
    for split, name, scene in scenes(count, size):
        folder = root / {"train": "training", "val": "validation"}[split]
        labelled = places[class_map(scene, 0)]
        labelled[HOLE] = 2
        instances = labelled * 256
        for number, segment in enumerate(s for s in scene.segments if s["isthing"]):
            instances[scene.segmentation == segment["id"]] += number
        instances[HOLE] = 2 * 256
        save(folder / "images" / f"{name}.jpg", scene.image)
        save(folder / version / "labels" / f"{name}.png", labelled.astype(np.uint8))
        save(folder / version / "instances" / f"{name}.png", instances.astype(np.uint16))
    save(root / "testing" / "images" / "hidden.jpg", scene.image)
    return truth(count, size, list(range(len(NAMES))))


# 1 person, 82 refrigerator, 92 banner, 182 wood: among things and stuff, before and after the gaps in the ids.
COCO_STUFF_IDS = (92, 100, 110, 124, 150, 182, 1, 13, 27, 44, 67, 82, 84, 90)
COCO_STUFF_LABELS = (80, 88, 98, 112, 138, 170, 0, 11, 24, 39, 60, 72, 73, 79)


def write_coco_stuff(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> Truth:
    lists: dict[str, list[str]] = {"train": [], "test": []}
    (root / "annotations").mkdir(parents=True)
    for split, name, scene in scenes(count, size):
        stem = f"COCO_train2014_000000{name}"
        lists["train" if split == "train" else "test"].append(stem)
        labels = np.array(COCO_STUFF_IDS)[class_map(scene, 0)]
        labels[HOLE] = 0
        save(root / "images" / f"{stem}.jpg", scene.image)
        savemat(str(root / "annotations" / f"{stem}.mat"), {"S": labels.astype(np.uint16), "captions": ["a scene"]})
    (root / "imageLists").mkdir()
    for name, stems in {**lists, "all": lists["train"] + lists["test"]}.items():
        (root / "imageLists" / f"{name}.txt").write_text("\n".join(stems) + "\n")
    return truth(count, size, list(COCO_STUFF_LABELS))


def write_coco_stuff_maps(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> Truth:
    for split, name, scene in scenes(count, size):
        folder = "train" if split == "train" else "test"
        labels = np.array(COCO_STUFF_LABELS)[class_map(scene, 0)]
        labels[HOLE] = 255
        save(root / "images_detectron2" / folder / f"{name}.jpg", scene.image)
        save(root / "annotations_detectron2" / folder / f"{name}.png", labels.astype(np.uint8))
    return truth(count, size, list(COCO_STUFF_LABELS))


def coco_categories(with_stuff: bool) -> list[dict[str, Any]]:
    """With gaps in the ids and in no order, as published and as tools write them."""
    entries = [
        {"id": 3 * label + 1, "name": entry.name, "isthing": int(entry.isthing), "color": list(entry.color)}
        for label, entry in enumerate(CLASSES)
        if with_stuff or entry.isthing
    ]
    for entry in entries:
        if not with_stuff:
            del entry["isthing"], entry["color"]
    return entries[::-1]


def write_coco_panoptic(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> Truth:
    documents: dict[str, dict[str, list[Any]]] = {}
    for split, name, scene in scenes(count, size):
        document = documents.setdefault(split, {"images": [], "annotations": []})
        # Ids as large as the published ones, far beyond 16 bits.
        ids = scene.segmentation.astype(np.int64) * 70_001
        ids[HOLE] = 0
        infos = [
            {"id": s["id"] * 70_001, "category_id": 3 * s["category_id"] + 1, "iscrowd": 0, "area": s["area"]}
            for s in scene.segments
            if (ids == s["id"] * 70_001).any()
        ]
        number = int(name) + 17
        document["images"].append({"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        document["annotations"].append({"image_id": number, "file_name": f"{name}.png", "segments_info": infos})
        colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        save(root / f"{split}2017" / f"{name}.jpg", scene.image)
        save(root / "annotations" / f"panoptic_{split}2017" / f"{name}.png", colors)
    for split, document in documents.items():
        document["categories"] = coco_categories(with_stuff=True)
        (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(document))
    return truth(count, size, list(range(len(NAMES))))


def compressed(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as tools

    runs = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [1 - int(flat[-1])]])))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges.tolist()]).tolist()}


def write_coco_instances(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> Truth:
    """Things alone: run lengths, compressed and not, by turns (polygons have a test of their own)."""
    documents: dict[str, dict[str, list[Any]]] = {}
    for split, name, scene in scenes(count, size):
        document = documents.setdefault(split, {"info": {}, "images": [], "annotations": []})
        number = int(name) + 17
        document["images"].append({"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        for place, segment in enumerate(s for s in scene.segments if s["isthing"]):
            mask = scene.segmentation == segment["id"]
            document["annotations"].append(
                {
                    "id": 100 * number + place,
                    "image_id": number,
                    "category_id": 3 * segment["category_id"] + 1,
                    "iscrowd": 0,
                    "bbox": list(segment["bbox"]),
                    "segmentation": (compressed if place % 2 else uncompressed)(mask),
                }
            )
        save(root / f"{split}2017" / f"{name}.jpg", scene.image)
    (root / "annotations").mkdir(exist_ok=True)
    for split, document in documents.items():
        document["categories"] = coco_categories(with_stuff=False)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    first_thing = len(STUFF_IDS)
    return truth(count, size, [255] * first_thing + list(range(len(NAMES) - first_thing)), hole=False)


def hub_rows(mask: str = "annotation", instances: bool = False, count: int = 2, size: tuple[int, int] = SIZE) -> Any:
    """A `datasets.Dataset`: classes as masks, or classes in red and instances in green."""
    import datasets

    images, masks = [], []
    for _, _, scene in scenes(count - 1, size):
        labels = class_map(scene)
        ids = np.where(np.isin(class_map(scene, 0), STUFF_IDS), 0, scene.segmentation)
        stacked = np.stack([labels, ids, 0 * ids], axis=-1) if instances else labels
        images.append(Image.fromarray(scene.image))
        masks.append(Image.fromarray(stacked.astype(np.uint8)))
    features = datasets.Features({"image": datasets.Image(), mask: datasets.Image(), "scene": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": images, mask: masks, "scene": list(range(count))}, features=features)


def write_hub(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> Truth:
    """Not among `WRITERS`, because it needs `datasets` and its masks allow every task."""
    hub_rows(instances=True, count=count, size=size).save_to_disk(str(root))
    lines = [f"{entry.name} ({'thing' if entry.isthing else 'stuff'})" for entry in CLASSES]
    (root / "classes.txt").write_text("\n".join(lines))
    return truth(count, size, list(range(len(NAMES))))


Writer = Callable[..., Truth]
# Per format: the writer, the layout it must be recognised as, and the task it is made for.
WRITERS: dict[str, tuple[Writer, str, str]] = {
    "label-maps": (write_label_maps, "label-maps", "semantic"),
    "pairs": (write_pairs, "label-maps", "panoptic"),
    "ade20k": (write_ade20k, "ade20k", "semantic"),
    "ade20k-full": (write_ade20k_full, "ade20k-full", "semantic"),
    "ade20k-full-colors": (write_ade20k_full_colors, "ade20k-full", "semantic"),
    "cityscapes": (write_cityscapes, "cityscapes", "panoptic"),
    "mapillary": (write_mapillary, "mapillary", "panoptic"),
    "coco-stuff": (write_coco_stuff, "coco-stuff", "semantic"),
    "coco-stuff-maps": (write_coco_stuff_maps, "coco-stuff", "semantic"),
    "coco-panoptic": (write_coco_panoptic, "coco-panoptic", "panoptic"),
    "coco-instances": (write_coco_instances, "coco-instances", "instance"),
}
