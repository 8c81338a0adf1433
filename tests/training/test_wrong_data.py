"""What `maskformer data check` calls an error, training refuses in the same words, before it has written anything."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskformer.data.check import check_dataset
from maskformer.data.recognise import open_dataset
from maskformer.training.batches import check_val_set, open_evaluation_set
from maskformer.training.trainer import train

from ..data import publishers
from .tiny import save_tiny, settings


def maps_with(root: Path, values: np.ndarray | bytes | None, which: int | None = 1, split: str = "train") -> list[str]:
    """Label maps of which one, or every one, is replaced."""
    publishers.write_label_maps(root, 2)
    paths = sorted((root / "labels" / split).iterdir())
    for path in paths if which is None else [paths[which]]:
        if values is None:
            path.unlink()
        elif isinstance(values, bytes):
            path.write_bytes(values)
        else:
            Image.fromarray(values).save(path)
    return [] if which is None else [str(paths[which])]


def filled(value: int, size: tuple[int, int] = publishers.SIZE) -> np.ndarray:
    return np.full(size, value, np.uint8)


def unknown_value(root: Path) -> list[str]:
    return [*maps_with(root, filled(99)), "value 99"]


def unreadable_map(root: Path) -> list[str]:
    return maps_with(root, b"no picture")


def unreadable_image(root: Path) -> list[str]:
    maps_with(root, filled(0))
    path = sorted((root / "images" / "train").iterdir())[0]
    path.write_bytes(path.read_bytes()[:100])
    return [str(path)]


def map_of_another_size(root: Path) -> list[str]:
    return [*maps_with(root, filled(0, (10, 96))), "10 x 96"]


def missing_map(root: Path) -> list[str]:
    return maps_with(root, None)


def nothing_but_ignored(root: Path) -> list[str]:
    return [*maps_with(root, filled(255), None), str(root)]


def category_that_is_not_listed(root: Path) -> list[str]:
    publishers.write_coco_panoptic(root, 2)
    path = root / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 4242
    path.write_text(json.dumps(content))
    return ["4242"]


def list_without_images(root: Path) -> list[str]:
    publishers.write_coco_instances(root, 2)
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "images": [], "annotations": []}))
    return [str(root)]


FAULTS = {
    unknown_value: "unknown value",
    category_that_is_not_listed: "unknown value",
    unreadable_map: "unreadable",
    unreadable_image: "unreadable",
    map_of_another_size: "size mismatch",
    missing_map: "missing",
    nothing_but_ignored: "no targets",
    list_without_images: "no images",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_wrong_data_is_refused_as_the_check_does(tmp_path, fault) -> None:
    parts = fault(tmp_path / "data")
    error = check_dataset(open_dataset(tmp_path / "data")).errors[0]
    assert error.kind == FAULTS[fault]
    assert not [part for part in parts if part not in error.message]
    with pytest.raises(ValueError, match=f"^{re.escape(error.message)}") as caught:
        train(settings(tmp_path / "run", "no checkpoint is needed to see this", data=str(tmp_path / "data")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_data_to_evaluate_on_is_checked_as_well(tmp_path) -> None:
    (path,) = maps_with(tmp_path / "data", filled(99), 0, "val")
    with pytest.raises(ValueError, match=f"^{re.escape(path)} holds value 99"):
        train(settings(tmp_path / "run", "none", data=str(tmp_path / "data"), eval_every=1))
    assert not (tmp_path / "run").exists()


def categories(root: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Changed in the annotation of the split val alone."""
    publishers.write_coco_panoptic(root, 2)
    path = root / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    change(content["categories"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda listed: listed.append({"id": 999, "name": "extra"}), "14 classes in train and 15 others in val ('ext"),
        (lambda listed: listed[0].update(name="heaven"), "14 classes in train and 14 others in val ('heaven'"),
        (lambda listed: listed[0].update(name=listed[1]["name"]), "in val ('balloon' is in one alone)"),
    ],
)  # fmt: skip
def test_other_classes_to_evaluate_on(tmp_path, change, sentence):
    categories(tmp_path, change)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        train(settings(tmp_path / "run", "scenes", data=str(tmp_path), eval_every=1))
    assert not (tmp_path / "run").exists()


def test_the_same_classes_in_another_order_can_be_evaluated_on(tmp_path):
    categories(tmp_path, lambda listed: [entry.update(id=-entry["id"]) for entry in listed])
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    path.write_text(path.read_text().replace('"category_id": ', '"category_id": -'))
    config = settings(tmp_path / "run", "scenes", data=str(tmp_path), eval_every=1)
    check_val_set(config, open_dataset(tmp_path))


def test_nothing_to_count_in_the_images_to_evaluate_on(tmp_path):
    root = tmp_path / "data"
    maps_with(root, filled(255), 0, "val")
    publishers.save(root / "images" / "val" / "z.jpg", np.zeros((*publishers.SIZE, 3), np.uint8))
    publishers.save(root / "labels" / "val" / "z.png", filled(0))
    config = settings(tmp_path / "run", "scenes", data=str(root), eval_every=1, eval_images=1)
    with pytest.raises(ValueError, match="nothing to count in the first 1 images of val"):
        train(config)
    check_val_set(config.model_copy(update={"eval_images": 2}), open_dataset(root))


def test_a_split_to_evaluate_on_that_was_asked_for_must_exist(tmp_path):
    publishers.write_label_maps(tmp_path, 2)
    fields = {"data": str(tmp_path), "eval_every": 1}
    with pytest.raises(ValueError, match="has no split 'test', only train, val"):
        train(settings(tmp_path / "run", "scenes", eval_split="test", **fields))
    shutil.rmtree(tmp_path / "images" / "val")
    assert open_evaluation_set(settings(tmp_path / "run", "scenes", **fields)) is None


@pytest.mark.parametrize("content", ['{"image_mean": [0.5', "[]"])
def test_colours_of_the_first_weights_that_cannot_be_read(tmp_path, content):
    """They had been taken for ImageNet's."""
    model = save_tiny(tmp_path / "first")
    (Path(model) / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"preprocessor_config.json"):
        train(settings(tmp_path / "run", model, steps=1))
    assert not (tmp_path / "run").exists()
