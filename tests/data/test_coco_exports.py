"""COCO files as tools and scripts write them: what can be read is, and what cannot is told in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskformer.data.check import check_dataset, refuse_wrong_data
from maskformer.data.recognise import open_dataset
from maskformer.evaluation.submission import AnnotationFile

from . import publishers
from .test_check import findings, the_error
from .test_formats import BOX, write_coco

Content = dict[str, Any]


def export(root: Path, change: Callable[[Content], object], number: int = 1) -> Path:
    """A cat, or several, in a file that was changed."""
    write_coco(root, [{"category_id": 2, "segmentation": [BOX]}] * number)
    path = root / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return root


NUMBERS_AS_TEXT: dict[str, Callable[[Content], object]] = {
    "categories": lambda c: [entry.update(id=str(entry["id"])) for entry in c["categories"]],
    "category_id": lambda c: c["annotations"][0].update(category_id="2"),
    "crowd": lambda c: c["annotations"][0].update(iscrowd="0"),
    "size": lambda c: c["images"][0].update(height="20", width=30.0),
    "image ids": lambda c: (c["images"][0].update(id="x"), c["annotations"][0].update(image_id="x")),
    "colour": lambda c: c["categories"][1].update(color="#a8323a"),
}


@pytest.mark.parametrize("kind", NUMBERS_AS_TEXT)
def test_what_can_be_read_is(tmp_path, kind):
    dataset = open_dataset(export(tmp_path, NUMBERS_AS_TEXT[kind]))
    assert refuse_wrong_data(dataset).num_targets == 1
    assert dataset[0].masks()[0][5:15, 4:14].all()
    assert all(category.color is None for category in dataset.categories)


LACKING: list[tuple[str, str]] = [
    *(("images", name) for name in ("id", "file_name", "height", "width")),
    *(("annotations", name) for name in ("image_id", "category_id")),
    *(("categories", name) for name in ("id", "name")),
]


@pytest.mark.parametrize(("kind", "name"), LACKING)
def test_what_an_entry_lacks(tmp_path, kind, name):
    root = export(tmp_path, lambda content: content[kind][0].pop(name))
    with pytest.raises(ValueError, match=rf"an entry of .*_annotations\.coco\.json lacks '{name}', expected"):
        open_dataset(root)


@pytest.mark.parametrize("name", ["file_name", "image_id", "segments_info"])
def test_what_an_entry_of_a_panoptic_file_lacks(tmp_path, name):
    publishers.write_coco_panoptic(tmp_path, 1)
    path = tmp_path / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][0][name]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"an entry of .*panoptic_train2017\.json lacks '{name}', expected"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(images={"5": content["images"][0]}),
        lambda content: content.update(annotations=[None]),
        lambda content: content["images"][0].update(height=None),
        lambda content: content["annotations"][0].update(category_id="cat"),
    ],
)
def test_what_has_another_form(tmp_path, change):
    with pytest.raises(ValueError, match=r"an entry of .*_annotations\.coco\.json is not in COCO's form \(.*\), exp"):
        open_dataset(export(tmp_path, change))


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_an_id_is_of_one(tmp_path, kind):
    """Two files joined to one: both images would get all objects, or all objects the last class."""
    root = export(tmp_path, lambda content: content[kind].append({**content[kind][-1], "name": "other"}))
    assert f"twice in its {kind}: renumber them" in the_error(root, "unknown value").message


@pytest.mark.parametrize(
    "shape",
    [
        [[*BOX[:-1], float("nan")]],  # pycocotools would walk there, through all memory
        [[*BOX[:-1], None]],
        [[*BOX[:-1], 1e12]],
        [[*BOX[:-1], "far"]],
        [[[4, 5], [14, 5], [14, 15], [4, 15], [4, 10], [4, 7]]],
        {"size": [20, 30], "counts": ""},
        {"size": [20, 30], "counts": None},
        {"size": [20, 30], "counts": ["600"]},
        {"size": [20, 30], "counts": [[600]]},
    ],
)  # fmt: skip
def test_a_segmentation_that_is_none(tmp_path, shape):
    root = export(tmp_path, lambda content: content["annotations"][0].update(segmentation=shape))
    assert "annotation 0 of" in the_error(root, "unreadable").message


@pytest.mark.parametrize("size", [(10**9, 10**9), (-20, 30)])
def test_masks_are_not_made_of_any_size_that_a_file_says(tmp_path, size):
    root = export(tmp_path, lambda content: content["images"][0].update(height=size[0], width=size[1]))
    assert f"is {size[0]} x {size[1]} (height x width) but its" in the_error(root, "size mismatch").message


def test_boxes_with_empty_polygons(tmp_path):
    root = export(tmp_path, lambda content: content["annotations"][0].update(segmentation=[]))
    report = check_dataset(open_dataset(root))
    assert "its objects have boxes, expected masks" in findings(report, "no targets")[0].message


def test_areas_are_told_apart_where_annotation_ids_are_not(tmp_path):
    areas = [7, None, 12.5]

    def change(content: Content) -> None:
        for entry, area in zip(content["annotations"], areas, strict=True):
            entry.update({"id": 1, "area": area})

    dataset = open_dataset(export(tmp_path, change, number=3))
    assert AnnotationFile(dataset).region_areas(0, np.array([100, 101, 102])) == [7.0, 101.0, 12.5]
