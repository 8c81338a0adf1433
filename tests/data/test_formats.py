"""Every published layout is recognised and read as exactly what was drawn; its oddities are known."""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer.data.coco_instances import CocoInstances
from maskformer.data.dataset import Records, SegmentationDataset
from maskformer.data.folders import pair_by_name
from maskformer.data.recognise import open_dataset, recognise
from maskformer.data.sample import IGNORED, Sample
from maskformer.data.scene_set import SceneDataset
from maskformer.data.scenes import CLASSES, STUFF_IDS, draw_scene

from . import publishers
from .publishers import HOLE, NAMES, SIZE, WRITERS, Truth


@pytest.fixture(scope="module", params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Truth]:
    root = tmp_path_factory.mktemp(request.param)
    return request.param, root, WRITERS[request.param][0](root)


def things_in(sample: Sample) -> int:
    return sum(region.is_target and region.isthing for region in sample.regions)


def test_a_published_layout_is_recognised_with_its_splits(written):
    key, root, _ = written
    name, (_, splits) = next(iter(recognise(root).items()))
    assert name == WRITERS[key][1]
    assert sorted(splits) == ["train", "val"]
    assert open_dataset(root).layout == WRITERS[key][1]
    assert len(open_dataset(root, "val")) == 1


def test_it_is_read_as_what_was_drawn(written):
    key, root, truth = written
    dataset = open_dataset(root)
    assert dataset.task == WRITERS[key][2]
    assert len(dataset) == 3
    for index in range(3):
        sample = dataset[index]
        assert sample.image.shape == (*SIZE, 3)
        drawn = draw_scene(index, SIZE).image.astype(int)
        assert np.abs(sample.image.astype(int) - drawn).mean() < 4  # JPEG
        assert Path(sample.path) == Path(dataset.path(index))
        assert np.array_equal(sample.class_map(), truth.class_maps[index])
        if dataset.task != "semantic":
            assert things_in(sample) == truth.instances[index] > 5


def test_a_panoptic_annotation_trains_every_task(written):
    key, root, truth = written
    dataset = open_dataset(root)
    if WRITERS[key][2] != "panoptic":
        assert dataset.tasks == (WRITERS[key][2],)
        with pytest.raises(ValueError, match=f"allows {dataset.task} segmentation, got task="):
            open_dataset(root, task="panoptic")
        return
    semantic, instance = open_dataset(root, task="semantic")[0], open_dataset(root, task="instance")[0]
    labels = [region.label_id for region in semantic.regions]
    assert len(set(labels)) == len(labels)
    assert np.array_equal(semantic.class_map(), truth.class_maps[0])
    assert all(region.isthing for region in instance.regions if region.label_id >= 0)
    assert things_in(instance) == truth.instances[0]
    stuff = np.isin(truth.class_maps[0], dataset.stuff_class_ids)
    assert not instance.planes[0][stuff].any()  # background, which counts
    ignored = [place for place, region in enumerate(instance.regions) if region.label_id == IGNORED]
    assert instance.masks(ignored).any(axis=0)[HOLE].all()


def test_names_and_things_come_from_the_annotation(written):
    key, root, truth = written
    dataset = open_dataset(root)
    used = [label for label in truth.label_ids if label != 255]
    drawn = [name for name, label in zip(NAMES, truth.label_ids, strict=True) if label != 255]
    names = [dataset.id2label[label] for label in used]
    if key == "ade20k":
        assert names == [f"class {number}" for number in range(1, 15)]
        assert len(dataset.categories) == 150
    elif key == "ade20k-full":
        assert names == [f"class {label}" for label in used]
        assert len(dataset.categories) == 847
    elif key == "cityscapes":
        assert names[:4] == ["sky", "terrain", "vegetation", "road"]
        assert len(dataset.categories) == 19
    elif key.startswith("coco-stuff"):
        assert [names[0], names[5], names[6], names[11]] == ["banner", "wood", "person", "refrigerator"]
        assert len(dataset.categories) == 171
    else:
        assert [name.lower() for name in names] == drawn
    if dataset.task == "panoptic":
        stuff = [label for place, label in enumerate(truth.label_ids) if place in STUFF_IDS]
        seen = set(np.unique(truth.class_maps).tolist())  # pairs know of things by seeing them
        assert set(dataset.stuff_class_ids) & seen == set(stuff) & seen
    elif dataset.task == "instance":
        assert dataset.stuff_class_ids == []


def test_a_data_set_travels_to_loader_processes_and_holds_no_pixels(written):
    _, root, truth = written
    dataset = open_dataset(root)
    packed = pickle.dumps(dataset)
    assert len(packed) < 120_000
    again: SegmentationDataset = pickle.loads(packed)
    assert np.array_equal(again[2].class_map(), truth.class_maps[2])
    with pytest.raises(IndexError):
        again[3]


def test_published_names_of_ade20k_when_the_table_is_gone(tmp_path):
    publishers.write_ade20k(tmp_path, 1)
    (tmp_path / "objectInfo150.txt").unlink()
    names = open_dataset(tmp_path).id2label
    assert [names[0], names[12], names[149], len(names)] == ["wall", "person", "flag", 150]


def test_names_of_the_full_ade20k_may_be_given(tmp_path):
    publishers.write_ade20k_full(tmp_path, 1)
    (tmp_path / "classes.txt").write_text("\n".join(f"thing number {number}" for number in range(847)))
    assert open_dataset(tmp_path).id2label[700] == "thing number 700"


def test_the_colour_coded_ade20k_needs_the_classes_to_learn(tmp_path):
    publishers.write_ade20k_full_colors(tmp_path, 1)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"no class list: write .*classes\.txt"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_without_instances_is_semantic(tmp_path, kind):
    truth = publishers.write_cityscapes(tmp_path, 1, kinds=(kind,))
    dataset = open_dataset(tmp_path)
    assert dataset.tasks == ("semantic",)
    assert np.array_equal(dataset[0].class_map(), truth.class_maps[0])


def test_a_group_of_cityscapes_is_a_crowd(tmp_path):
    publishers.write_cityscapes(tmp_path, 1)
    path = next(tmp_path.glob("gtFine/train/*/*_instanceIds.png"))
    values = np.array(Image.open(path))
    values[30:40, 10:50] = 26  # cars that were not told apart
    Image.fromarray(values).save(path)
    groups = [region for region in open_dataset(tmp_path)[0].regions if region.iscrowd]
    assert [(region.label_id, region.is_target) for region in groups] == [(13, False)]
    semantic = open_dataset(tmp_path, task="semantic")[0]
    assert (semantic.class_map()[30:40, 10:50] == 13).all()
    assert not any(region.iscrowd for region in semantic.regions)


def test_labels_that_cityscapes_does_not_evaluate_are_ignored(tmp_path):
    publishers.write_cityscapes(tmp_path, 1)
    path = next(tmp_path.glob("gtFine/train/*/*_instanceIds.png"))
    values = np.array(Image.open(path))
    others = sorted(set(range(34)) - {7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33})
    values[:2, : len(others)] = others
    Image.fromarray(values).save(path)
    assert (open_dataset(tmp_path)[0].class_map()[:2, : len(others)] == 255).all()


def test_mapillary_2_is_found_beside_its_images(tmp_path):
    truth = publishers.write_mapillary(tmp_path, 1, version="v2.0")
    dataset = open_dataset(tmp_path)
    assert np.array_equal(dataset[0].class_map(), truth.class_maps[0])
    assert things_in(dataset[0]) == truth.instances[0]


def test_mapillary_labels_that_lack_something(tmp_path):
    publishers.write_mapillary(tmp_path, 1)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"color"', '"colour"', 1))
    with pytest.raises(ValueError, match=r"an entry of .*config\.json lacks 'color', expected labels as Mapillary's"):
        open_dataset(tmp_path)


def test_mapillary_without_instance_maps_is_semantic(tmp_path):
    truth = publishers.write_mapillary(tmp_path, 1)
    for path in tmp_path.rglob("instances/*.png"):
        path.unlink()
    dataset = open_dataset(tmp_path)
    assert dataset.tasks == ("semantic",)
    assert np.array_equal(dataset[0].class_map(), truth.class_maps[0])


def test_coco_stuff_1_0_is_hdf5_and_counts_otherwise(tmp_path, monkeypatch):
    truth = publishers.write_coco_stuff(tmp_path, 1)
    path = min(tmp_path.glob("annotations/*.mat"))
    path.write_bytes(b"MATLAB 7.3 MAT-file")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        open_dataset(tmp_path)[0]

    labels = truth.class_maps[0]

    class File:
        def __init__(self, opened: Path) -> None:
            assert opened == path

        def __enter__(self) -> dict[str, np.ndarray]:
            return {"S": np.where(labels == 255, 1, labels + 2).T.astype(np.uint16)}

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=File))
    assert np.array_equal(open_dataset(tmp_path)[0].class_map(), labels)


def write_coco(root: Path, annotations: list[dict[str, object]], name: str = "train/_annotations.coco.json") -> Path:
    """One image of 20 x 30, as annotation tools export it."""
    publishers.save(root / "train" / "a.jpg", np.zeros((20, 30, 3), np.uint8))
    content = {
        "info": {},
        "images": [{"id": 5, "file_name": "a.jpg", "height": 20, "width": 30}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"id": number, "image_id": 5, **entry} for number, entry in enumerate(annotations)],
    }
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return root


BOX = [4.0, 5.0, 14.0, 5.0, 14.0, 15.0, 4.0, 15.0]  # corners of the pixels 4 to 13, 5 to 14


@pytest.mark.parametrize(
    "name", ["train/_annotations.coco.json", "annotations.json", "annotations/instances_train.json"]
)
def test_polygons_overlap_and_crowds_are_no_targets(tmp_path, name):
    crowd = np.zeros((20, 30), bool)
    crowd[:, 20:] = True
    root = write_coco(
        tmp_path,
        [
            {"category_id": 9, "segmentation": [BOX]},
            {"category_id": 2, "segmentation": [[0, 0, 8, 0, 8, 20, 0, 20], [25, 0, 30, 0, 30, 4, 25, 4]]},
            {"category_id": 9, "iscrowd": 1, "segmentation": publishers.uncompressed(crowd)},
        ],
        name,
    )
    dataset = open_dataset(root)
    assert isinstance(dataset, CocoInstances)
    assert dataset.id2label == {0: "cat", 1: "dog"}
    assert dataset.stuff_class_ids == []
    sample = dataset[0]
    dog, cat, many = sample.masks()
    assert sample.areas().tolist() == [100, 180, 200]
    assert dog[5:15, 4:14].all()
    assert cat[:, :8].all()
    assert cat[:4, 25:].all()
    assert (dog & cat).sum() == 40  # both keep what they share
    assert np.array_equal(many, crowd)
    assert [region.is_target for region in sample.regions] == [True, True, False]
    assert (sample.class_map()[5:15, 4:14] == 1).all()  # the smaller one is on top


def test_the_folder_says_which_split_a_file_of_an_annotation_tool_is(tmp_path):
    write_coco(tmp_path, [{"category_id": 9, "segmentation": [BOX]}])
    publishers.save(tmp_path / "valid" / "a.jpg", np.full((20, 30, 3), 200, np.uint8))
    write_coco(tmp_path, [{"category_id": 2, "segmentation": [BOX]}], "valid/_annotations.coco.json")
    train, val = (open_dataset(tmp_path, split)[0] for split in ("train", "val"))
    assert [region.label_id for sample in (train, val) for region in sample.regions] == [1, 0]
    assert (train.image.mean(), val.image.mean()) == (0, 200)


def test_polygons_need_pycocotools_and_say_so_at_once(tmp_path, monkeypatch):
    root = write_coco(tmp_path, [{"category_id": 9, "segmentation": [BOX]}])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match=r"pip install 'maskformer\[train\]'"):
        open_dataset(root)


def test_run_lengths_do_not_need_it(tmp_path, monkeypatch):
    truth = publishers.write_coco_instances(tmp_path, 1)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert np.array_equal(open_dataset(tmp_path)[0].class_map(), truth.class_maps[0])


def test_run_lengths_of_any_mask_are_read_like_pycocotools_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    blocks = [np.kron(rng.random((5, 6)) < share, np.ones((4, 5))) for share in (0.0, 0.2, 0.5, 0.9, 1.0)]
    noise = [rng.random((20, 30)) < share for share in (0.02, 0.5, 0.98)]
    masks = [mask.astype(bool) for mask in [*blocks, *noise]]
    shapes = [shape for mask in masks for shape in (publishers.compressed(mask), publishers.uncompressed(mask))]
    root = write_coco(tmp_path, [{"category_id": 9, "segmentation": shape} for shape in shapes])
    read = open_dataset(root).read(0).masks()
    assert np.array_equal(read, np.repeat(masks, 2, axis=0))


def test_a_crowd_of_coco_panoptic_is_no_target(tmp_path):
    publishers.write_coco_panoptic(tmp_path, 1)
    path = tmp_path / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    segment = next(s for s in content["annotations"][0]["segments_info"] if s["category_id"] > 3 * len(STUFF_IDS))
    before = things_in(open_dataset(tmp_path)[0])
    segment["iscrowd"] = 1
    path.write_text(json.dumps(content))
    assert things_in(open_dataset(tmp_path)[0]) == before - 1
    assert [region.iscrowd for region in open_dataset(tmp_path)[0].regions].count(True) == 1


def test_panoptic_ade20k_has_its_images_elsewhere(tmp_path):
    truth = publishers.write_coco_panoptic(tmp_path, 1)
    (tmp_path / "annotations" / "panoptic_train2017.json").rename(tmp_path / "ade20k_panoptic_train.json")
    (tmp_path / "annotations" / "panoptic_train2017").rename(tmp_path / "ade20k_panoptic_train")
    (tmp_path / "images").mkdir()
    (tmp_path / "train2017").rename(tmp_path / "images" / "training")
    assert np.array_equal(open_dataset(tmp_path)[0].class_map(), truth.class_maps[0])


def test_every_split_of_pairs_has_the_things_of_the_training_split(tmp_path):
    publishers.write_pairs(tmp_path, 2)
    for path in tmp_path.glob("val/instances/*.png"):
        publishers.save(path, np.zeros(SIZE, np.uint16))
    train, val = open_dataset(tmp_path), open_dataset(tmp_path, "val")
    assert val.categories == train.categories
    groups = [region for region in val[0].regions if region.isthing]
    assert groups
    assert all(region.iscrowd for region in groups)  # things without an instance are told from none


def test_stuff_is_one_region_whatever_the_instance_map_says(tmp_path):
    truth = publishers.write_pairs(tmp_path, 1)
    listed = [{"id": number, "name": entry.name, "isthing": entry.isthing} for number, entry in enumerate(CLASSES)]
    (tmp_path / "classes.json").write_text(json.dumps(listed))
    path = next(tmp_path.glob("train/instances/*.png"))
    values = np.array(Image.open(path))
    values[:, 40:] += 100
    Image.fromarray(values).save(path)
    sample = open_dataset(tmp_path)[0]
    stuff = [region.label_id for region in sample.regions if region.label_id in STUFF_IDS]
    assert len(set(stuff)) == len(stuff)
    assert things_in(sample) > truth.instances[0]  # things are cut where the map cuts them


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "sky\n3: tall tree (thing)\n7:void\n"),
        ("classes.json", '[{"name": "sky"}, {"id": 3, "name": "tall tree", "isthing": 1}, {"id": 7, "name": "void"}]'),
        ("id2label.json", '{"0": "sky", "3": "tall tree", "7": "ignored"}'),
    ],
)  # fmt: skip
def test_class_lists(tmp_path, name, text):
    publishers.save(tmp_path / "images" / "a.png", np.zeros((4, 4, 3), np.uint8))
    publishers.save(tmp_path / "masks" / "a.png", np.array([[0, 3, 7, 255]] * 4, np.uint8))
    (tmp_path / name).write_text(text)
    dataset = open_dataset(tmp_path)
    assert dataset.id2label == {0: "sky", 1: "tall tree"}
    assert dataset.stuff_class_ids == ([0, 1] if name == "id2label.json" else [0])
    assert dataset[0].class_map().tolist() == [[0, 1, 255, 255]] * 4


@pytest.mark.parametrize(
    ("text", "fault"), [("", "no class"), ("1: a\n1: b", "value 1 twice"), ("void", "no class")]
)  # fmt: skip
def test_a_class_list_must_be_one(tmp_path, text, fault):
    publishers.write_label_maps(tmp_path, 1)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=f"classes.txt holds {fault}"):
        open_dataset(tmp_path)


def test_label_maps_without_a_class_list_are_told_what_they_hold(tmp_path):
    publishers.write_label_maps(tmp_path, 1)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"no class list: write the names into .*classes\.txt.* values 0, .*255\)"):
        open_dataset(tmp_path)


def test_a_directory_that_is_none_of_them(tmp_path):
    with pytest.raises(ValueError, match="is not a directory"):
        recognise(tmp_path / "absent")
    publishers.write_label_maps(tmp_path / "mine", 1)
    with pytest.raises(ValueError, match=r"has none of the formats cityscapes, .*did you mean .*mine\?"):
        recognise(tmp_path)
    with pytest.raises(ValueError, match=r"has no split 'test', only train, val"):
        open_dataset(tmp_path / "mine", "test")
    with pytest.raises(ValueError, match="is no cityscapes, but label-maps"):
        open_dataset(tmp_path / "mine", layout="cityscapes")


def test_a_map_of_just_the_images_name_is_the_images(tmp_path):
    """Annotation tools may leave both `a.png` and `a_mask.png`, or an image may be called `a_mask` itself."""
    for name, value in (("a", 1), ("a_mask", 2), ("b_label", 3)):
        publishers.save(tmp_path / "images" / f"{name.removesuffix('_label')}.png", np.zeros((4, 4, 3), np.uint8))
        publishers.save(tmp_path / "labels" / f"{name}.png", np.full((4, 4), value, np.uint8))
    pairs, findings = pair_by_name(tmp_path / "images", tmp_path / "labels")
    assert [Path(label_map).stem for _, label_map in pairs] == ["a", "a_mask", "b_label"]
    assert findings == []


def test_the_task_chooses_among_the_formats_of_a_directory(tmp_path):
    publishers.write_coco_panoptic(tmp_path, 1)
    for path in publishers_instances(tmp_path):
        assert path.is_file()
    assert open_dataset(tmp_path).layout == "coco-panoptic"
    assert open_dataset(tmp_path, layout="coco-instances").layout == "coco-instances"


def publishers_instances(root: Path) -> list[Path]:
    """Adds the instance annotations that COCO ships in the same directory."""
    other = root.parent / f"{root.name}-instances"
    publishers.write_coco_instances(other, 1)
    targets = []
    for path in other.glob("annotations/*.json"):
        targets.append(path.rename(root / "annotations" / path.name))
    return targets


def test_drawn_scenes_are_a_data_set():
    dataset = open_dataset("scenes:4")
    assert isinstance(dataset, SceneDataset)
    assert len(dataset) == 4
    scene = draw_scene(3, (192, 256))
    sample = dataset[3]
    assert np.array_equal(sample.image, scene.image)
    assert np.array_equal(sample.class_map(), publishers.class_map(scene, None))
    assert len(sample.regions) == len(scene.segments)
    assert dataset.stuff_class_ids == STUFF_IDS
    assert open_dataset("scenes:4", "val").path(0) == "scene 5000000"
    with pytest.raises(IndexError):
        dataset[4]
    with pytest.raises(ValueError, match="scenes:many has no number of scenes after the colon"):
        open_dataset("scenes:many")


def test_records_are_a_list_that_forked_processes_share():
    records = Records([("a", 1), ("b", [2, 3]), ("c", {"x": None})])
    assert list(records) == [("a", 1), ("b", [2, 3]), ("c", {"x": None})]
    assert records[-1] == ("c", {"x": None})
    assert len(Records([])) == 0
    with pytest.raises(IndexError):
        records[3]


def test_panoptic_maps_are_no_pictures_though_they_have_their_names(tmp_path):
    truth = publishers.write_coco_panoptic(tmp_path, 1)
    for path in tmp_path.glob("*2017/*.jpg"):
        publishers.save(path.with_suffix(".png"), np.array(Image.open(path)))
        path.unlink()
    for path in tmp_path.glob("annotations/*.json"):
        path.write_text(path.read_text().replace(".jpg", ".png"))
    dataset = open_dataset(tmp_path)
    assert dataset.path(0) == str(tmp_path / "train2017" / "000000.png")
    assert np.array_equal(dataset[0].class_map(), truth.class_maps[0])
    (tmp_path / "train2017").rename(
        tmp_path / "pictures"
    )  # a folder called like no split before one called like another
    publishers.save(tmp_path / "val2017" / "000000.png", np.zeros((*SIZE, 3), np.uint8))
    assert open_dataset(tmp_path).path(0) == str(tmp_path / "pictures" / "000000.png")
    publishers.save(tmp_path / "more" / "000000.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match=r"000000\.png, an image of .*json, is in .*more and in .*pictures: move the"):
        open_dataset(tmp_path)
    for folder in ("pictures", "more"):
        (tmp_path / folder / "000000.png").unlink()
    (tmp_path / "val2017" / "000000.png").unlink()
    sample, findings = open_dataset(tmp_path).examine(0)
    assert (sample, [finding.kind for finding in findings]) == (None, ["unreadable"])


def test_panoptic_maps_are_no_pictures_of_the_instances_either(tmp_path):
    publishers.write_coco_panoptic(tmp_path, 1)
    publishers.write_coco_instances(tmp_path, 1)
    for path in tmp_path.glob("*2017/*.jpg"):
        publishers.save(path.with_suffix(".png"), np.array(Image.open(path)))
        path.unlink()
    for path in tmp_path.glob("annotations/*.json"):
        path.write_text(path.read_text().replace(".jpg", ".png"))
    dataset = open_dataset(tmp_path, "train", "coco-instances")
    assert dataset.path(0) == str(tmp_path / "train2017" / "000000.png")


def test_the_innermost_folder_says_which_split_pictures_are_of(tmp_path):
    publishers.write_coco_instances(tmp_path, 1)
    (tmp_path / "training_data").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").rename(tmp_path / "training_data" / split)
    for path in tmp_path.glob("training_data/*/*.jpg"):
        path.rename(path.with_name("a.jpg"))  # the same name in both
    for path in tmp_path.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        content["images"][0]["file_name"] = "a.jpg"
        path.write_text(json.dumps(content))
    for split in ("train", "val"):
        assert open_dataset(tmp_path, split).path(0) == str(tmp_path / "training_data" / split / "a.jpg")
