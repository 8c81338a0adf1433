"""The folder to learn on reads back as the scenes it was drawn from."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer.cli import main
from maskformer.data.check import check_dataset
from maskformer.data.example import write_example
from maskformer.data.recognise import open_dataset
from maskformer.data.scene_set import FIRST_SEEDS
from maskformer.data.scenes import CLASSES, draw_scene


def test_example_reads_back(tmp_path: Path) -> None:
    root = write_example(tmp_path / "pictures", 2, (48, 64))
    dataset = open_dataset(str(root), "train")
    assert dataset.layout == "coco-panoptic"
    assert len(dataset) == 2
    assert len(open_dataset(str(root), "val")) == 1
    assert [category.name for category in dataset.categories] == [entry.name for entry in CLASSES]
    scene = draw_scene(FIRST_SEEDS["train"] + 1, (48, 64))
    sample = dataset.read(0)
    ids, classes = sample.flattened().planes[0], [region.label_id for region in sample.regions]
    drawn = {segment["id"]: segment["category_id"] for segment in scene.segments}
    expected = np.vectorize(drawn.get)(scene.segmentation)
    assert np.array_equal(np.array(classes)[ids.astype(int) - 1], expected)
    assert len(sample.regions) == len(scene.segments)
    assert check_dataset(dataset).ok


def test_equal_names_in_both_splits_and_in_the_annotations(tmp_path: Path) -> None:
    """Pictures of train, of val and the PNG files of the annotations may all be called the same."""
    root = write_example(tmp_path / "pictures", 1, (48, 64))
    for folder in (root / "train", root / "val"):
        Image.open(folder / "000001.jpg").save(folder / "000001.png")
    for split in ("train", "val"):
        file = root / "annotations" / f"panoptic_{split}.json"
        file.write_text(file.read_text().replace(".jpg", ".png"))
        sample = open_dataset(str(root), split).read(0)
        picture = np.asarray(Image.open(root / split / "000001.jpg"))
        assert np.array_equal(sample.image, picture)
    assert not np.array_equal(picture, open_dataset(str(root), "train").read(0).image)


def test_pictures_in_a_folder_called_like_the_annotations(tmp_path: Path) -> None:
    """`train.json` beside `train/`, as some tools export: nothing else holds the pictures, so they are those."""
    Image.new("RGB", (8, 6)).save((tmp_path / "train").mkdir() or tmp_path / "train" / "a.png")
    image = {"id": 1, "file_name": "a.png", "height": 6, "width": 8}
    entry = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4]], "iscrowd": 0}
    content = {"images": [image], "annotations": [entry], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert open_dataset(str(tmp_path), "train").read(0).image.shape == (6, 8, 3)


def test_example_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert main(["data", "example", str(folder), "--limit", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    assert main(["data", "example", str(folder), "--limit", "1"]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main(["data", "example", str(tmp_path / "none"), "--limit", "0"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]
