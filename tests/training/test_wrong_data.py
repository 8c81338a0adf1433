"""What `maskformer data check` calls an error, training refuses in the same words, before it has written anything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer.data.check import check_dataset
from maskformer.data.recognise import open_dataset
from maskformer.training.trainer import train

from ..data import publishers
from .tiny import settings


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
