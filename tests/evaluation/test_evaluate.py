"""The loop: what it prints is what the official code says of the files it writes, however it was run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import average_pq, pq_compute_single_core
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskformer.cli.evaluate import open_data
from maskformer.data.recognise import open_dataset
from maskformer.data.sample import IGNORED, Region, Sample
from maskformer.data.scenes import LABELS, STUFF_IDS
from maskformer.evaluation.average_precision import NAMES
from maskformer.evaluation.evaluate import class_table, evaluate
from maskformer.evaluation.judge import panoptic_truth
from maskformer.evaluation.loop import STAGES, Options
from maskformer.evaluation.panoptic_quality import PanopticQuality

from .painter import CATEGORY_IDS, painter_segmenter, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


def run(folder, task, layout="coco-panoptic", progress=None, model=None, **options):
    dataset = open_dataset(folder, "val", layout, task)
    return evaluate(painter_segmenter(task, **(model or {})), dataset, task, Options(**options), progress)


def official_pq(folder, submission):
    truth = json.loads((folder / "annotations/panoptic_val2017.json").read_text())
    found = {
        entry["image_id"]: entry for entry in json.loads((submission / "panoptic.json").read_text())["annotations"]
    }
    pairs = [(entry, found[entry["image_id"]]) for entry in truth["annotations"]]
    categories = {entry["id"]: entry for entry in truth["categories"]}
    folders = (str(folder / "annotations/panoptic_val2017"), str(submission / "panoptic"))
    return average_pq(pq_compute_single_core(0, pairs, *folders, categories), categories)


def test_panoptic_quality_is_the_official_one_of_the_submitted_files(folder, tmp_path):
    result = run(folder, "panoptic", directory=tmp_path, submission=True)
    official = official_pq(folder, tmp_path / "submission")
    for suffix, theirs in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for name in ("pq", "sq", "rq"):
            assert result.metrics[name.upper() + suffix] == pytest.approx(100 * official[theirs][name], abs=1e-9)
    assert 20 < result.metrics["PQ"] < 95
    assert len(result.per_class) == official["All"]["n"]
    assert any(row["TP"] + row["FN"] == 0 for row in result.per_class)  # a class that only predictions have
    for row in result.per_class:
        assert row["PQ"] == pytest.approx(100 * official["per_class"][CATEGORY_IDS[row["id"]]]["pq"], abs=1e-9)
    truth = json.loads((folder / "annotations/panoptic_val2017.json").read_text())
    assert sum(segment["iscrowd"] for entry in truth["annotations"] for segment in entry["segments_info"]) >= 3
    assert result.confusion is not None
    assert len(result.confusion) == len(LABELS) + 1


@pytest.mark.parametrize("backend", ["pycocotools", "faster-coco-eval"])
def test_average_precision_is_the_official_one_of_the_submitted_file(folder, tmp_path, backend):
    result = run(folder, "instance", "coco-instances", directory=tmp_path, submission=True, backend=backend)
    truth = COCO(str(folder / "annotations/instances_val2017.json"))
    official = COCOeval(truth, truth.loadRes(str(tmp_path / "submission/results.json")), "segm")
    official.evaluate()
    official.accumulate()
    official.summarize()
    expected = [None if value < 0 else pytest.approx(100 * value, abs=1e-9) for value in official.stats]
    assert [result.metrics[name] for name in NAMES] == expected
    # The areas of the file, not those one could count, decide on sizes.
    counted = run(folder, "instance", "coco-panoptic").metrics
    assert counted["AP"] == pytest.approx(result.metrics["AP"], abs=1e-9)
    assert counted["AP_small"] != pytest.approx(result.metrics["AP_small"], abs=1e-3)
    assert 3 < result.metrics["AP"] < 95


def test_instances_of_any_score_are_ranked(folder):
    low, default, high = (
        run(folder, "instance", model={"sure": 2.0}, post_processing=options)
        for options in ({"threshold": 0.0}, {}, {"threshold": 0.5})
    )
    assert default.metrics["AP"] == low.metrics["AP"] > high.metrics["AP"]
    assert default.images == high.images  # an image's own score is of what one would be shown


def test_mean_iou_is_that_of_two_loops_over_the_submitted_maps(folder, tmp_path):
    result = run(folder, "semantic", directory=tmp_path, submission=True)
    dataset = open_dataset(folder, "val", "coco-panoptic", "semantic")
    hits, true, predicted = (dict.fromkeys(CATEGORY_IDS, 0) for _ in range(3))
    for index in range(len(dataset)):
        found = np.asarray(Image.open(tmp_path / "submission/labels" / Path(dataset.target_path(index)).name))
        truth = dataset[index].class_map(255)
        for t, p in zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True):
            if t != 255:
                true[CATEGORY_IDS[t]] += 1
                predicted[p] += 1
                hits[p] += CATEGORY_IDS[t] == p
    ious = {c: 100 * (hits[c] / (true[c] + predicted[c] - hits[c])) for c in CATEGORY_IDS if true[c]}
    assert {CATEGORY_IDS[row["id"]]: row["IoU"] for row in result.per_class} == pytest.approx(ious, abs=1e-12)
    assert result.metrics["mIoU"] == pytest.approx(sum(ious.values()) / len(ious), abs=1e-12)
    assert result.metrics["pACC"] == pytest.approx(100 * sum(hits.values()) / sum(true.values()), abs=1e-12)


def test_submission_files_need_a_directory(folder):
    with pytest.raises(ValueError, match="need a directory"):
        run(folder, "panoptic", submission=True)


@pytest.mark.parametrize(("label_id", "quality"), [(None, 0.0), (IGNORED, 100.0)])
def test_what_is_predicted_on_background_is_wrong_and_on_ignored_pixels_it_is_not(label_id, quality):
    planes = np.array([[[1, 1, 2, 2]]], np.uint8) if label_id is not None else np.array([[[1, 1, 0, 0]]], np.uint8)
    regions = (Region(0, 5, True), *(() if label_id is None else (Region(label_id, 255),)))
    metric = PanopticQuality([{"id": 0, "isthing": True, "name": "cat"}])
    everywhere = np.ones((1, 4), np.int32), [{"id": 1, "category_id": 0}]
    metric.update(*everywhere, *panoptic_truth(Sample(np.zeros((1, 4, 3), np.uint8), planes, regions)))
    assert metric.result().all.pq == quality


def test_the_batch_changes_nothing(folder):
    one, four = (run(folder, "panoptic", batch_size=size) for size in (1, 4))
    assert one.metrics == four.metrics
    assert [row["path"] for row in one.images] == [row["path"] for row in four.images]


def test_speed_is_told_by_stage(folder):
    result = run(folder, "panoptic")
    assert list(result.seconds) == list(STAGES)
    assert all(0 < seconds < 60 for seconds in result.seconds.values())
    told = result.to_dict()
    assert told["images_per_second"]["metric"] == pytest.approx(8 / result.seconds["metric"])
    assert json.loads(json.dumps(told))["partial"] is False


class Stopped(Exception):
    pass


def stop_after(count):
    def progress(done, total):
        if done == count:
            raise Stopped

    return progress


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_an_interrupted_evaluation_goes_on(folder, tmp_path, task):
    whole = run(folder, task)
    with pytest.raises(Stopped):
        run(folder, task, progress=stop_after(3), directory=tmp_path)
    journal = tmp_path / "journal-0.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 1 + 3
    with journal.open("a") as file:  # killed in the middle of a line
        file.write(lines[-1][: len(lines[-1]) // 2])
    seen = []
    result = run(folder, task, directory=tmp_path, resume=True, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (4, 8)
    assert result.metrics == whole.metrics
    assert result.per_class == whole.per_class
    assert result.images == whole.images
    with pytest.raises(ValueError, match="its submission is False, now it is True"):
        run(folder, task, directory=tmp_path, resume=True, submission=True)
    again = run(folder, task, directory=tmp_path, resume=True)
    assert again.metrics == whole.metrics
    assert len(journal.read_text().splitlines()) == 1 + 8


def test_an_image_that_two_processes_have_counted_counts_once(folder, tmp_path):
    whole = run(folder, "panoptic", directory=tmp_path)
    lines = (tmp_path / "journal-0.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "journal-1.jsonl").write_text("".join(lines[:4]))
    assert run(folder, "panoptic", directory=tmp_path, resume=True).per_class == whole.per_class


def test_records_of_another_evaluation_are_refused(folder, tmp_path):
    run(folder, "panoptic", directory=tmp_path)
    with pytest.raises(ValueError, match=r"of another evaluation: its post_processing is \{\}"):
        run(folder, "panoptic", directory=tmp_path, resume=True, post_processing={"threshold": 0.9})
    with pytest.raises(ValueError, match="of another evaluation: its task is 'panoptic'"):
        run(folder, "semantic", directory=tmp_path, resume=True)
    trained_on, dataset = painter_segmenter("panoptic"), open_dataset(folder, "val", "coco-panoptic", "panoptic")
    trained_on.model.colors.data[0, 0] += 1e-6
    with pytest.raises(ValueError, match="of another evaluation: its weights is"):
        evaluate(trained_on, dataset, "panoptic", Options(directory=tmp_path, resume=True))
    resized, changed = painter_segmenter("panoptic"), Options(directory=tmp_path, resume=True)
    resized.image_processor.rescale_factor *= 2
    with pytest.raises(ValueError, match="of another evaluation: its image_processor is"):
        evaluate(resized, dataset, "panoptic", changed)
    unknowing = painter_segmenter("panoptic")
    unknowing.stuff_ids = frozenset()
    with pytest.raises(ValueError, match="of another evaluation: its stuff is"):
        evaluate(unknowing, dataset, "panoptic", changed)
    run(folder, "semantic", directory=tmp_path)  # without resume they are forgotten
    assert '"task":"semantic"' in (tmp_path / "journal-0.jsonl").read_text().splitlines()[0]


def test_a_set_of_classes_to_fuse_is_kept_with_the_records(folder, tmp_path):
    options = {"directory": tmp_path, "post_processing": {"label_ids_to_fuse": set(STUFF_IDS)}}
    assert run(folder, "panoptic", limit=2, **options).num_images == 8
    assert not run(folder, "panoptic", resume=True, **options).is_partial


def test_a_partial_result_says_so(folder):
    result = run(folder, "panoptic", limit=3)
    assert result.is_partial
    assert result.to_dict()["partial"] is True
    assert (len(result.images), result.num_images) == (3, 8)


def test_the_order_of_the_models_classes_changes_nothing(folder):
    last = len(LABELS) - 1
    turned = {label: LABELS[last - label] for label in LABELS}
    fused = {"label_ids_to_fuse": [last - label for label in STUFF_IDS]}
    found = run(folder, "panoptic", model={"labels": turned}, post_processing=fused)
    assert found.metrics == run(folder, "panoptic").metrics


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ({0: "cat", 1: "dog"}, ["cat", "cow"], r"2 classes \(id2label\).*the data's 'cow' .*, the model's 'dog' is"),
        ({0: "cat"}, ["cat", "cow"], "1 classes .* are not the 2 of the data: the data's 'cow'"),
        ({0: "cat", 1: "dog", 2: "cow"}, ["cat", "dog"], "the model's 'cow' is not among the data's"),
        ({0: "cat", 1: "cat"}, ["cat", "dog"], "'dog'"),
        ({0: "cat", 1: "Cat"}, ["dog", "cat"], "'dog'"),
        ({0: "cat", 1: "dog"}, ["dog", "cat", "Cat"], "a name occurs twice"),
        ({0: "cat", 1: "dog", 2: "Cat"}, ["dog", "cat"], "a name occurs twice"),
    ],
)  # fmt: skip
def test_classes_that_do_not_match_are_named(labels, names, message):
    with pytest.raises(ValueError, match=message):
        class_table(labels, names)


def test_classes_are_matched_by_name_or_by_order():
    assert class_table({0: "building, edifice", 1: "Traffic_Light"}, ["traffic light", "building"]).tolist() == [1, 0]
    assert class_table({0: "LABEL_0", 1: "LABEL_1"}, ["a", "b"]).tolist() == [0, 1]
    assert class_table({0: "x", 1: "y"}, ["a", "b"], by_order=True).tolist() == [0, 1]
    assert class_table({0: "sky", 1: "cat"}, ["cat"], dispensable={0}).tolist() == [-1, 0]


def test_suspicious_results_are_told(folder):
    untrained = run(folder, "semantic", model={"sure": 0.0, "lean": 0.01}).warnings
    assert any("class head looks untrained" in sentence for sentence in untrained)
    assert any(sentence.startswith("never predicted, though the data has them") for sentence in untrained)
    assert any(sentence == "every pixel is predicted as sky" for sentence in untrained)
    nothing = run(folder, "panoptic", post_processing={"threshold": 1.0}).warnings
    assert any(sentence.startswith("PQ is 0:") for sentence in nothing)
    assert not any("untrained" in sentence for sentence in run(folder, "panoptic").warnings)


def test_tiles(folder):
    whole, tiled = run(folder, "semantic"), run(folder, "semantic", tile=64, tile_overlap=16)
    assert tiled.metrics["mIoU"] == pytest.approx(whole.metrics["mIoU"], abs=8)
    assert tiled.metrics != whole.metrics
    with pytest.raises(ValueError, match="exclude each other"):
        run(folder, "semantic", tile=64, augment=True)


def test_the_form_and_split_of_a_folder(folder, tmp_path):
    assert open_data(str(folder), None, "panoptic").layout == "coco-panoptic"
    assert open_data(str(folder), "val", "semantic").layout == "coco-panoptic"
    assert open_data(str(folder), None, "instance").layout == "coco-instances"
    for split in ("train", "test"):
        for kind, array in (("images", np.zeros((4, 4, 3), np.uint8)), ("labels", np.zeros((4, 4), np.uint8))):
            (tmp_path / split / kind).mkdir(parents=True)
            Image.fromarray(array).save(tmp_path / split / kind / "a.png")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(ValueError, match="has the splits test, train: choose one with --split"):
        open_data(str(tmp_path), None, "semantic")
    assert open_data(str(tmp_path), "test", "semantic").split == "test"
    (tmp_path / "test").rename(tmp_path / "val")
    assert open_data(str(tmp_path), None, "semantic").split == "val"


def break_size(folder):
    path = sorted((folder / "annotations/panoptic_val2017").glob("*.png"))[0]
    Image.open(path).resize((30, 40), 0).save(path)
    return f"{path.name} is 40 x 30"


def break_ids(folder):
    path = folder / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][2]["segments_info"].pop(0)
    path.write_text(json.dumps(content))
    return "holds segment id"


def break_category(folder):
    path = folder / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][2]["segments_info"][0]["category_id"] = 4711
    path.write_text(json.dumps(content))
    return "category_id 4711"


def break_entry(folder):
    path = folder / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"].pop(2)
    path.write_text(json.dumps(content))
    return "has no entry in the annotations"


def break_image(folder):
    path = sorted((folder / "val2017").iterdir())[2]
    path.unlink()
    return path.name


@pytest.mark.parametrize("damage", [break_size, break_ids, break_category, break_entry, break_image])
def test_wrong_data_ends_it_with_a_sentence(tmp_path, damage):
    folder = write_folder(tmp_path / "data", 3, (64, 96))
    message = damage(folder)
    with pytest.raises(ValueError, match=r"expected|which|must be|is not|has no") as error:
        run(folder, "panoptic")
    assert message in str(error.value)


def test_data_opened_for_another_task(folder):
    dataset = open_dataset(folder, "val", "coco-panoptic", "semantic")
    with pytest.raises(ValueError, match="opened for task 'semantic', expected 'panoptic'"):
        evaluate(painter_segmenter("panoptic"), dataset, "panoptic")
    with pytest.raises(ValueError, match="need a directory"):
        evaluate(painter_segmenter("semantic"), dataset, "semantic", replace(Options(), submission=True))
