"""Data sets of the library `datasets`: columns are found, masks of one and of three channels are read."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from maskformer.data.classes import Category, ClassList
from maskformer.data.hub import HubDataset, open_hub_dataset
from maskformer.data.recognise import open_dataset

from . import publishers
from .publishers import NAMES, SIZE
from .publishers import hub_rows as rows

datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 'maskformer[data]'")

CLASSES = ClassList(tuple(Category(name, False, number) for number, name in enumerate(NAMES)), frozenset({255}))


@pytest.mark.parametrize("column", ["annotation", "label", "mask"])
def test_a_class_per_pixel(column):
    dataset = HubDataset(rows(column), CLASSES, "drawn")
    truth = publishers.truth(2, SIZE, list(range(14)))
    assert len(dataset) == 2
    assert dataset.task == "semantic"
    for index in range(2):
        assert np.array_equal(dataset[index].class_map(), truth.class_maps[index])
        drawn = list(publishers.scenes(1))[index][2]
        assert np.array_equal(dataset[index].image, drawn.image)
    assert dataset.path(1) == dataset[1].path == "drawn[1]"


def test_class_and_instance_in_red_and_green():
    dataset = HubDataset(rows(instances=True), CLASSES, "drawn", task="panoptic")
    truth = publishers.truth(2, SIZE, list(range(14)))
    assert np.array_equal(dataset[0].class_map(), truth.class_maps[0])
    assert sum(region.isthing for region in dataset[0].regions) == truth.instances[0]
    instance = HubDataset(rows(instances=True), CLASSES, "drawn", task="instance")
    assert sum(region.is_target for region in instance[0].regions) == truth.instances[0]


def test_columns_of_other_names_are_asked_for():
    with pytest.raises(ValueError, match="drawn has the columns image, other, scene, expected one of images and one"):
        HubDataset(rows("other"), CLASSES, "drawn")
    assert len(HubDataset(rows("other"), CLASSES, "drawn", mask_column="other")[0].regions) > 3


def test_wrong_values_name_the_row():
    few = ClassList(CLASSES.categories[:3], frozenset({255}))
    with pytest.raises(ValueError, match=r"drawn\[0\] \(annotation\) holds value \d+ .*not among the 3 classes"):
        HubDataset(rows(), few, "drawn")[0]


@pytest.mark.parametrize("kind", ["one", "splits"])
def test_a_directory_that_was_saved(tmp_path: Path, kind: str):
    saved = rows() if kind == "one" else datasets.DatasetDict({"train": rows(), "validation": rows(count=1)})
    saved.save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=r"no class list: write the names into .*classes\.txt"):
        open_dataset(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset, HubDataset)
    assert dataset.id2label[7] == NAMES[7]
    assert len(dataset) == 2
    if kind == "splits":
        assert len(open_dataset(tmp_path, "val")) == 1


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What would be downloaded is here: which file, which configuration and which split is asked for."""
    (tmp_path / "id2label.json").write_text('{"0": "sky", "1": "ground"}')
    monkeypatch.setattr("huggingface_hub.file_exists", lambda repo, name, repo_type: name == "id2label.json")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, repo_type: str(tmp_path / name))
    asked, found = [], rows()

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        return found

    library = SimpleNamespace(get_dataset_split_names=lambda *_: ["train", "validation"], load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", library)
    dataset = open_dataset("hub:someone/scenes:small", "val")
    assert asked == [("someone/scenes", "small", "validation")]
    assert dataset.id2label == {0: "sky", 1: "ground"}
    monkeypatch.setattr("huggingface_hub.file_exists", lambda *_, **__: False)
    with pytest.raises(ValueError, match="someone/scenes has no class list"):
        open_hub_dataset("someone/scenes")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows().save_to_disk(str(tmp_path))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'maskformer\[data\]'"):
        open_dataset(tmp_path)
