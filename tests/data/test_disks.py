"""Folders as they are on disks: links, hidden ones, names that only start like a split, pictures that are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskformer.cli.predict import find_pictures
from maskformer.data.check import check_dataset
from maskformer.data.label_maps import read_values
from maskformer.data.recognise import open_dataset, recognise

from . import publishers
from .publishers import SIZE

PICTURE = np.zeros((*SIZE, 3), np.uint8)


def elsewhere(folder: Path, to: Path) -> None:
    """Leave a link where the folder was."""
    to.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(to)
    folder.symlink_to(to)


def test_a_longer_name_of_a_split_is_another_folder(tmp_path):
    """Cityscapes' coarse annotation comes with pictures in `train_extra`, of which `gtFine` has none."""
    truth = publishers.write_cityscapes(tmp_path, 1)
    publishers.save(tmp_path / "leftImg8bit" / "train_extra" / "x" / "x_leftImg8bit.png", PICTURE)
    dataset = open_dataset(tmp_path)
    assert (len(dataset), dataset.findings) == (1, ())
    assert np.array_equal(dataset[0].class_map(), truth.class_maps[0])


def test_cities_may_be_links(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    publishers.write_cityscapes(root, 1)
    for number, city in enumerate(sorted(root.glob("*/*/*"))):
        elsewhere(city, tmp_path / "disk" / str(number))
    assert set(recognise(root)["cityscapes"][1]) == {"train", "val"}
    assert len(open_dataset(root)) == 1


def test_pictures_of_an_annotation_file_may_be_linked(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    truth = publishers.write_coco_instances(root, 1)
    elsewhere(root / "train2017", tmp_path / "disk" / "pictures")
    assert np.array_equal(open_dataset(root)[0].class_map(), truth.class_maps[0])


@pytest.mark.parametrize("layout", ["coco-panoptic", "coco-instances"])
def test_the_first_picture_of_a_file_may_be_the_missing_one(tmp_path, layout):
    getattr(publishers, f"write_{layout.replace('-', '_')}")(tmp_path, 3)
    lost = tmp_path / "train2017" / "000000.jpg"
    lost.unlink()
    report = check_dataset(open_dataset(tmp_path))
    assert [finding.path for finding in report.errors] == [str(lost)]


def test_hidden_folders_hold_no_pictures(tmp_path):
    publishers.write_label_maps(tmp_path, 1)
    folder = tmp_path / "images" / "train"
    publishers.save(folder / ".ipynb_checkpoints" / "000000-checkpoint.jpg", PICTURE)
    assert check_dataset(open_dataset(tmp_path)).errors == []
    assert find_pictures((str(folder),), tmp_path / "out") == ([str(folder / "000000.jpg")], [])


def test_a_folder_linked_from_within_is_looked_into_once(tmp_path):
    publishers.save(tmp_path / "disk" / "b.png", PICTURE)
    publishers.save(tmp_path / "mine" / "a.png", PICTURE)
    (tmp_path / "mine" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "mine")
    files, failures = find_pictures((str(tmp_path / "mine"),), tmp_path / "out")
    assert [Path(file).relative_to(tmp_path / "mine").as_posix() for file in files] == ["a.png", "more/b.png"]
    assert failures == []


def test_accents_are_written_in_two_ways(tmp_path):
    """macOS takes letters and their accents apart in names, other systems do not."""
    publishers.save(tmp_path / "images" / "caf\u00e9.png", PICTURE)
    publishers.save(tmp_path / "labels" / "cafe\u0301.png", PICTURE[..., 0])
    (tmp_path / "classes.txt").write_text("sky")
    assert check_dataset(open_dataset(tmp_path)).ok


def test_a_map_that_is_none_is_named_once(tmp_path):
    (tmp_path / "a.png").write_text("map")
    with pytest.raises(ValueError, match=rf"^the label map \({tmp_path}/a\.png\) cannot be read as a picture"):
        read_values(tmp_path / "a.png")


def test_numbers_of_objects_that_would_change_their_class(tmp_path):
    publishers.save(tmp_path / "images" / "a.png", PICTURE)
    publishers.save(tmp_path / "labels" / "a.png", PICTURE[..., 0])
    numbers = np.full(SIZE, 1 << 16 | 7, np.int32)
    publishers.save(tmp_path / "instances" / "a.tif", numbers)
    (tmp_path / "classes.txt").write_text("cat (thing)\ndog (thing)")
    (error,) = check_dataset(open_dataset(tmp_path)).errors
    assert "holds instance 65543, expected numbers up to 65535" in error.message


@pytest.mark.parametrize("layout", ["coco-panoptic", "coco-instances"])
def test_two_annotation_files_of_one_split(tmp_path, layout):
    """COCO's of 2014 and of 2017, or a file and its copy: the first by name was taken."""
    truth = getattr(publishers, f"write_{layout.replace('-', '_')}")(tmp_path, 1)
    for path in sorted(tmp_path.glob("annotations/*_train2017*")):
        other = path.with_name(path.name.replace("2017", "2014"))
        other.symlink_to(path)
    names = [f"annotations/{layout[5:]}_train{year}.json" for year in (2014, 2017)]
    with pytest.raises(ValueError, match=rf"has {names[0]} and {names[1]} for its split 'train': name one"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, "val").split == "val"
    for name in names:
        assert np.array_equal(open_dataset(tmp_path, name)[0].class_map(), truth.class_maps[0])


def test_two_folders_of_one_split(tmp_path):
    publishers.write_label_maps(tmp_path, 1)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").rename(tmp_path / kind / "train2017")
    assert open_dataset(tmp_path).split == "train"
    publishers.save(tmp_path / "images" / "train2014" / "a.png", PICTURE)
    assert list(recognise(tmp_path)["label-maps"][1]) == ["train2017", "val"]  # the other has no maps
    publishers.save(tmp_path / "labels" / "train2014" / "a.png", PICTURE[..., 0])
    with pytest.raises(ValueError, match="has train2014 and train2017 for its split 'train'"):
        open_dataset(tmp_path)
    assert [len(open_dataset(tmp_path, f"train{year}")) for year in (2014, 2017)] == [1, 1]
