"""All that makes training go wrong is found, in one sentence that names file and value; training says the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer.data.check import Report, check_dataset, refuse_wrong_data
from maskformer.data.dataset import Finding
from maskformer.data.recognise import open_dataset

from . import publishers
from .publishers import NAMES, SIZE
from .test_formats import BOX, write_coco


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    publishers.write_label_maps(tmp_path, 3)
    return tmp_path


def label_map(root: Path, number: int = 1) -> Path:
    return root / "labels" / "train" / f"{number:06}.png"


def changed(path: Path, where: tuple[slice, slice], value: int) -> None:
    values = np.array(Image.open(path))
    values[where] = value
    Image.fromarray(values).save(path)


def findings(report: Report, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


def the_error(root: Path, kind: str) -> Finding:
    """The one error of the training split, which training must refuse in the same words."""
    report = check_dataset(open_dataset(root))
    assert [finding.kind for finding in report.errors] == [kind]
    assert not report.ok
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        refuse_wrong_data(open_dataset(root))
    assert str(refused.value) == report.errors[0].message
    return report.errors[0]


def test_good_data_is_counted_value_by_value(maps):
    report = check_dataset(open_dataset(maps))
    assert report.ok
    assert (report.num_images, report.num_checked, report.num_classes) == (3, 3, 14)
    truth = publishers.truth(3, SIZE, list(range(14)))
    for row in report.values:
        pixels = [int((labels == row.value).sum()) for labels in truth.class_maps]
        assert row.pixels == sum(pixels)
        assert row.images == row.segments == sum(count > 0 for count in pixels)
    assert [(row.value, row.becomes, row.label) for row in report.values] == [
        *((number, "class", name) for number, name in enumerate(NAMES)),
        (255, "ignored", ""),
    ]
    assert sum(row.pixels for row in report.values) == 3 * SIZE[0] * SIZE[1]
    assert report.num_targets == sum(row.segments for row in report.values if row.becomes == "class")
    assert report.most_targets == max(len(set(labels.ravel().tolist()) - {255}) for labels in truth.class_maps)
    assert refuse_wrong_data(open_dataset(maps)).num_targets == report.num_targets


def test_the_most_targets_are_those_of_any_image(maps):
    changed(label_map(maps, 2), (slice(None), slice(None)), 0)  # the last image has one
    report = check_dataset(open_dataset(maps))
    truth = publishers.truth(2, SIZE, list(range(14)))
    assert report.most_targets == max(len(set(labels.ravel().tolist()) - {255}) for labels in truth.class_maps) > 1


def test_instances_stand_on_background(tmp_path):
    publishers.write_coco_instances(tmp_path, 2)
    rows = check_dataset(open_dataset(tmp_path)).values
    assert (rows[0].value, rows[0].becomes) == (None, "background")
    assert sum(row.pixels for row in rows) == 2 * SIZE[0] * SIZE[1]
    assert [row.value for row in rows[1:]] == [3 * label + 1 for label in range(6, 14)]  # as in the file


def test_a_value_outside_the_class_list(maps):
    changed(label_map(maps), (slice(10, 12), slice(20, 25)), 77)
    error = the_error(maps, "unknown value")
    assert error.value == 77
    assert error.message == (
        f"{label_map(maps)} holds value 77 (10 pixels), which is not among the 14 classes of {maps / 'classes.txt'}: "
        "add it to the class list, there as `VALUE: ignored` if it is not to be learnt"
    )
    assert ("unknown", 77) in [(row.becomes, row.value) for row in check_dataset(open_dataset(maps)).values]
    with pytest.raises(ValueError, match="holds value 77"):
        open_dataset(maps)[1]


@pytest.mark.parametrize("part", ["image", "label map"])
@pytest.mark.parametrize("fault", ["cut off", "no picture"])
def test_an_unreadable_file(maps, part, fault):
    path = label_map(maps) if part == "label map" else maps / "images" / "train" / "000001.jpg"
    path.write_bytes(path.read_bytes()[:200] if fault == "cut off" else b"what?")
    error = the_error(maps, "unreadable")
    assert f"({path})" in error.message
    assert "cannot be read as a picture" in error.message


def test_a_colour_picture_as_label_map(maps):
    Image.new("RGB", SIZE[::-1]).save(label_map(maps))
    error = the_error(maps, "unreadable")
    assert f"({label_map(maps)}) is a RGB picture; expected one number per pixel" in error.message


def test_a_photograph_as_label_map(maps):
    values = np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)
    publishers.save(label_map(maps), values)
    assert "65536 distinct values" in the_error(maps, "unreadable").message


def test_another_size(maps):
    publishers.save(label_map(maps), np.zeros((SIZE[1], SIZE[0]), np.uint8))
    error = the_error(maps, "size mismatch")
    assert f"{label_map(maps)} is 96 x 64 (height x width)" in error.message
    assert "000001.jpg is 64 x 96" in error.message


def test_an_instance_map_of_another_size(tmp_path):
    publishers.write_pairs(tmp_path, 2)
    path = tmp_path / "train" / "instances" / "000001.png"
    publishers.save(path, np.zeros((5, 5), np.uint16))
    assert f"{path} is (5, 5)" in the_error(tmp_path, "size mismatch").message


def test_an_image_without_label_map_and_the_other_way_round(maps):
    label_map(maps).rename(maps / "labels" / "train" / "other.png")
    error = the_error(maps, "missing")
    assert f"{maps / 'images' / 'train' / '000001.jpg'} has no label map {label_map(maps)}" in error.message
    report = check_dataset(open_dataset(maps))
    assert "other.png has no image in" in next(f.message for f in report.findings if f.level == "warning")
    assert report.num_images == 2


def test_a_missing_image_of_a_list(tmp_path):
    publishers.write_coco_panoptic(tmp_path, 2)
    (tmp_path / "train2017" / "000001.jpg").unlink()
    assert "000001.jpg) is not a file" in the_error(tmp_path, "unreadable").message


def test_classes_that_never_occur_are_a_warning(maps):
    with (maps / "classes.txt").open("a") as file:
        file.write("unicorn\n")
    report = check_dataset(open_dataset(maps))
    assert report.ok
    warning = findings(report, "unused class")[-1]
    assert (warning.level, warning.value) == ("warning", 14)
    told = f"class unicorn (value 14) occurs in no image of {maps} (train): it is not learnt"
    assert warning.message == f"{told}; value 255 is ignored: if it is a class, list it as `255: NAME`"
    assert not findings(check_dataset(open_dataset(maps), limit=2), "unused class")  # not known from a part


def test_a_class_with_objects_that_a_marked_list_calls_stuff_is_a_warning(tmp_path):
    publishers.write_pairs(tmp_path, 2)
    (tmp_path / "classes.json").unlink()
    lines = [f"{name} (thing)" if name == "car" else name for name in NAMES]
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    (warning,) = findings(check_dataset(open_dataset(tmp_path)), "stuff with objects")
    assert warning.level == "warning"
    assert "balloon" in warning.message
    assert "car" not in warning.message.partition(" in ")[0]
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))  # without marks, the maps tell which are things
    assert not findings(check_dataset(open_dataset(tmp_path)), "stuff with objects")


def test_an_image_with_nothing_to_learn_is_a_warning(maps):
    changed(label_map(maps), (slice(None), slice(None)), 255)
    report = check_dataset(open_dataset(maps))
    assert report.ok
    (warning,) = findings(report, "empty image")
    assert warning.path == str(label_map(maps))
    assert "nothing to learn" in warning.message


def test_nothing_to_learn_anywhere_is_an_error(maps):
    for number in range(3):
        changed(label_map(maps, number), (slice(None), slice(None)), 255)
    error = the_error(maps, "no targets")
    assert f"{maps} has nothing to learn in any of its 3 images" in error.message


def test_no_images_at_all(tmp_path):
    publishers.write_coco_panoptic(tmp_path, 1)
    path = tmp_path / "annotations" / "panoptic_train2017.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": publishers.coco_categories(True)}))
    assert "has no images in its split 'train'" in the_error(tmp_path, "no images").message


def test_a_category_that_is_not_listed(tmp_path):
    root = write_coco(tmp_path, [{"category_id": 44, "segmentation": [BOX]}])
    error = the_error(root, "unknown value")
    assert error.value == 44
    assert "holds category_id 44 (100 pixels), which is not among the 2 classes of" in error.message
    assert "add it to `categories`" in error.message


def test_a_category_that_is_not_listed_among_objects_that_overlap(tmp_path):
    root = write_coco(tmp_path, [{"category_id": number, "segmentation": [BOX]} for number in (2, 9, 44)])
    assert the_error(root, "unknown value").value == 44


def test_an_annotation_of_no_image(tmp_path):
    root = write_coco(tmp_path, [{"category_id": 2, "segmentation": [BOX]}, {"category_id": 2, "image_id": 6}])
    error = the_error(root, "missing")
    assert "annotation 1 of" in error.message
    assert "is of image 6, which is not listed" in error.message


def test_boxes_alone(tmp_path):
    root = write_coco(tmp_path, [{"category_id": 2, "bbox": [1, 2, 3, 4]}])
    assert "annotation 0 of" in the_error(root, "unreadable").message


def test_objects_without_a_pixel_are_a_warning(tmp_path):
    shapes = ([], [[1.0, 2.0, 9.0, 9.0]], [BOX])  # nothing, a line that is no box, an object
    root = write_coco(tmp_path, [{"category_id": 2, "segmentation": shape} for shape in shapes])
    report = check_dataset(open_dataset(root))
    assert report.ok
    (warning,) = findings(report, "empty object")
    assert "has 2 objects without a pixel" in warning.message
    assert report.num_targets == 1


@pytest.mark.parametrize("fault", ["size", "counts", "string"])
def test_run_lengths_of_another_image(tmp_path, fault):
    runs = publishers.uncompressed(np.eye(20, 30))
    shape = {
        "size": {**runs, "size": [30, 20]},
        "counts": {**runs, "counts": [3, 4]},
        "string": {**publishers.compressed(np.eye(20, 30)), "counts": "1"},
    }[fault]
    root = write_coco(tmp_path, [{"category_id": 2, "segmentation": shape}])
    assert "expected (20, 30)" in the_error(root, "size mismatch").message


def test_an_image_of_another_size_than_its_json_says(tmp_path):
    root = write_coco(tmp_path, [{"category_id": 2, "segmentation": [BOX]}])
    publishers.save(root / "train" / "a.jpg", np.zeros((40, 60, 3), np.uint8))
    assert "is 20 x 30 (height x width) but its image" in the_error(root, "size mismatch").message


def test_a_panoptic_png_with_a_segment_that_the_json_lacks(tmp_path):
    publishers.write_coco_panoptic(tmp_path, 2)
    path = tmp_path / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    lost = content["annotations"][1]["segments_info"].pop()
    path.write_text(json.dumps(content))
    error = the_error(tmp_path, "unknown value")
    assert error.value == lost["id"]
    assert f"000001.png holds segment id {lost['id']}" in error.message


def test_a_panoptic_image_without_annotation(tmp_path):
    publishers.write_coco_panoptic(tmp_path, 2)
    path = tmp_path / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][1]
    path.write_text(json.dumps(content))
    assert "000001.jpg has no entry in the annotations of" in the_error(tmp_path, "missing").message


@pytest.mark.parametrize(("text", "sentence"), [("{", "cannot be read as JSON"), ("{}", "has no images and no")])
def test_a_damaged_json_is_refused_on_opening(tmp_path, text, sentence):
    publishers.write_coco_panoptic(tmp_path, 1)
    (tmp_path / "annotations" / "panoptic_train2017.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        open_dataset(tmp_path)


def test_a_damaged_matrix(tmp_path):
    publishers.write_coco_stuff(tmp_path, 2)
    path = tmp_path / "annotations" / "COCO_train2014_000000000001.mat"
    path.write_bytes(path.read_bytes()[:150])
    assert f"{path} cannot be read as an annotation of COCO-Stuff" in the_error(tmp_path, "unreadable").message


def test_several_errors_are_counted_in_the_refusal(maps):
    changed(label_map(maps, 0), (slice(0, 1), slice(0, 1)), 70)
    changed(label_map(maps, 2), (slice(0, 1), slice(0, 2)), 71)
    with pytest.raises(ValueError, match=r"value 70 .*\(and 1 more: `maskformer data check .*` lists them\)"):
        refuse_wrong_data(open_dataset(maps))


def test_more_images_than_are_read_ahead(tmp_path):
    for number in range(70):
        publishers.save(tmp_path / "images" / f"{number}.png", np.zeros((4, 4, 3), np.uint8))
        publishers.save(tmp_path / "masks" / f"{number}.png", np.full((4, 4), number % 2, np.uint8))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    seen: list[int] = []
    report = check_dataset(open_dataset(tmp_path), progress=seen.append)
    assert seen == list(range(1, 71))
    assert [(row.pixels, row.images) for row in report.values] == [(560, 35), (560, 35)]
    assert [row.images for row in check_dataset(open_dataset(tmp_path), limit=7).values] == [4, 3]


def test_the_report_is_json(maps):
    content = json.loads(json.dumps(check_dataset(open_dataset(maps)).to_dict()))
    assert content["ok"] is True
    assert content["values"][0]["label"] == "sky"
