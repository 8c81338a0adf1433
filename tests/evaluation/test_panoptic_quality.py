"""Panoptic quality: equal to the official implementation, and exact over shards."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import average_pq, pq_compute_single_core
from PIL import Image

from maskformer.evaluation.panoptic_quality import PanopticQuality
from maskformer.visualization import id2rgb

# The last two occur nowhere: one thing, one stuff.
CATEGORIES = [{"id": 7 + 3 * n, "isthing": int(n >= 3), "name": f"class {n}"} for n in range(8)]
USED = [entry["id"] for entry in CATEGORIES if entry["name"] not in {"class 2", "class 7"}]


def _boxes(rng, size, count, smallest):
    """A map of overlapping boxes with ids from 1, void (0) where there is none."""
    segmentation = np.zeros(size, np.int64)
    for number in range(1, count + 1):
        y, x = rng.integers(0, size[0] - smallest), rng.integers(0, size[1] - smallest)
        h, w = rng.integers(smallest, size[0] // 2, 2)
        segmentation[y : y + h, x : x + w] = number
    return segmentation


def _segments(rng, segmentation, crowds=False):
    segments = [{"id": int(i), "category_id": int(rng.choice(USED))} for i in np.unique(segmentation) if i]
    taken = set()
    for segment in segments:
        thing = next(entry["isthing"] for entry in CATEGORIES if entry["id"] == segment["category_id"])
        crowd = crowds and thing and segment["category_id"] not in taken and rng.random() < 0.3
        taken |= {segment["category_id"]} if crowd else set()
        segment["iscrowd"] = int(crowd)
        segment["area"] = int((segmentation == segment["id"]).sum())
    return segments


def _image(seed, size=(48, 64)):
    """A truth with void and crowds, and a prediction that moves, relabels, splits and invents segments."""
    rng = np.random.default_rng(seed)
    truth = _boxes(rng, size, 14, 3)
    truth_segments = _segments(rng, truth, crowds=True)
    prediction = np.roll(truth, rng.integers(-3, 4, 2), (0, 1))
    invented = _boxes(rng, size, 5, 1)
    prediction = np.where((invented > 0) & (rng.random(size) < 0.9), invented + 100_000, prediction * 300)
    category = {300 * s["id"]: s["category_id"] for s in truth_segments}
    prediction[0, :3] = 9  # tiny
    prediction_segments = _segments(rng, prediction)
    for segment in prediction_segments:
        if rng.random() < 0.8:
            segment["category_id"] = category.get(segment["id"], segment["category_id"])
    return prediction, prediction_segments, truth, truth_segments


def _official(images, folder):
    """The official state and averages over these images, through PNG files as it wants them."""
    annotations = []
    for number, (prediction, prediction_segments, truth, truth_segments) in enumerate(images):
        for name, segmentation in (("prediction", prediction), ("truth", truth)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(id2rgb(segmentation)).save(folder / name / f"{number}.png")
        entry = {"file_name": f"{number}.png", "image_id": number}
        both = ([dict(s) for s in truth_segments], [dict(s) for s in prediction_segments])
        annotations.append(tuple({**entry, "segments_info": segments} for segments in both))
    categories = {entry["id"]: entry for entry in CATEGORIES}
    folders = (str(folder / "truth"), str(folder / "prediction"))
    state = pq_compute_single_core(0, annotations, *folders, categories)
    return state, average_pq(state, categories)


def _evaluate(images):
    metric = PanopticQuality(CATEGORIES)
    for image in images:
        metric.update(*image)
    return metric


@pytest.mark.parametrize("start", [0, 100, 200])
def test_equals_the_official_implementation(start, tmp_path):
    images = [_image(seed) for seed in range(start, start + 12)]
    state, official = _official(images, tmp_path)
    metric = _evaluate(images)
    result = metric.result()
    for ours, theirs in ((result.all, "All"), (result.things, "Things"), (result.stuff, "Stuff")):
        assert ours.num_classes == official[theirs]["n"]
        for name in ("pq", "sq", "rq"):
            assert getattr(ours, name) == pytest.approx(100 * official[theirs][name], abs=1e-9)
    matches = crowds = 0
    for place, entry in enumerate(CATEGORIES):
        number = entry["id"]
        tp, fp, fn = metric.state[place, :3].tolist()
        theirs = state.pq_per_cat[number]
        assert (tp, fp, fn) == (theirs.tp, theirs.fp, theirs.fn)
        assert (number in result.per_class) == (tp + fp + fn > 0) == (number in USED)
        if number in USED:
            ours = result.per_class[number]
            assert ours.pq == pytest.approx(100 * official["per_class"][number]["pq"], abs=1e-9)
            assert ours.sq == pytest.approx(100 * official["per_class"][number]["sq"], abs=1e-9)
            assert ours.rq == pytest.approx(100 * official["per_class"][number]["rq"], abs=1e-9)
        matches += tp
    crowds = sum(segment["iscrowd"] for image in images for segment in image[3])
    assert matches > 30  # the data asks for something
    assert crowds > 5
    assert 5 < result.all.pq < 95


def _scene(truth, prediction, truth_category=16, predicted_category=16, iscrowd=0):
    """One row of pixels with one segment each (id 1), the class being a thing."""
    return (
        np.array([prediction]),
        [{"id": 1, "category_id": predicted_category}],
        np.array([truth]),
        [{"id": 1, "category_id": truth_category, "iscrowd": iscrowd}],
    )


@pytest.mark.parametrize(
    ("image", "counts"),
    [
        (_scene([1, 1, 1, 2], [1, 1, 1, 0]), (1, 0, 0)),
        (_scene([1, 1, 2, 2], [0, 1, 0, 0]), (0, 1, 1)),  # IoU exactly 0.5 is no match
        (_scene([1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]), (1, 0, 0)),  # void leaves the union
        (_scene([1, 0, 0, 0, 9], [0, 1, 1, 1, 1]), (0, 0, 1)),  # mostly void: no false positive
        (_scene([1, 0, 0, 9, 9], [0, 1, 1, 1, 1]), (0, 1, 1)),  # half void: one
        (_scene([1, 1, 1, 9, 9], [0, 1, 1, 1, 0], iscrowd=1), (0, 0, 0)),  # mostly on the crowd of its class
        (_scene([1, 1, 1, 1], [1, 1, 1, 1], iscrowd=1), (0, 0, 0)),  # a crowd is matched by nothing
        (_scene([1, 1, 1, 1], [1, 1, 1, 1], predicted_category=19), (0, 0, 1)),  # of another class
    ],
)
def test_the_rules_one_by_one(image, counts):
    metric = _evaluate([image])
    place = [entry["id"] for entry in CATEGORIES].index(16)
    assert tuple(metric.state[place, :3].tolist()) == counts


@pytest.mark.parametrize(("last", "counts"), [(1, (0, 0, 0)), (2, (0, 1, 0))])
def test_of_several_crowds_of_a_class_the_last_in_the_list_counts(last, counts):
    crowds = [{"id": number, "category_id": 16, "iscrowd": 1} for number in (3 - last, last)]
    truth = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 9, 9]])  # of the prediction, six lie on one and two on the other
    metric = _evaluate([(np.ones_like(truth), [{"id": 1, "category_id": 16}], truth, crowds)])
    place = [entry["id"] for entry in CATEGORIES].index(16)
    assert tuple(metric.state[place, :3].tolist()) == counts


def test_crowds_of_a_class_are_not_added_up():
    crowds = [{"id": number, "category_id": 16, "iscrowd": 1} for number in (1, 2)]
    truth = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 9, 9]])
    metric = _evaluate([(np.ones_like(truth), [{"id": 1, "category_id": 16}], truth, crowds)])
    place = [entry["id"] for entry in CATEGORIES].index(16)
    assert tuple(metric.state[place, :3].tolist()) == (0, 1, 0)


def test_known_number():
    result = _evaluate([_scene([1, 1, 1, 2], [1, 1, 1, 1])]).result()
    assert (result.all.pq, result.all.sq, result.all.rq) == (75.0, 75.0, 100.0)
    assert result.all.num_classes == 1
    assert result.stuff is None
    assert result.things == result.all
    assert result.per_class[16].name == "class 3"


def test_perfect_is_100():
    images = [_image(seed) for seed in range(4)]
    perfect = []
    for _, _, truth, segments in images:
        kept = [segment for segment in segments if not segment["iscrowd"]]
        prediction = np.where(np.isin(truth, [segment["id"] for segment in kept]), truth, 0)
        perfect.append((prediction, kept, truth, segments))
    result = _evaluate(perfect).result()
    assert (result.all.pq, result.all.sq, result.all.rq) == (100.0, 100.0, 100.0)
    assert all(quality.pq == 100.0 for quality in result.per_class.values())


@pytest.mark.parametrize("seed", range(3))
def test_renaming_ids_and_shuffling_segments_change_nothing(seed):
    rng = np.random.default_rng(seed)
    prediction, prediction_segments, truth, truth_segments = _image(seed)

    def rename(segmentation, segments):
        fresh = dict(zip([s["id"] for s in segments], rng.permutation(50_000)[: len(segments)] + 1, strict=True))
        renamed = np.zeros_like(segmentation)
        for old, new in fresh.items():
            renamed[segmentation == old] = new
        moved = [{**segment, "id": int(fresh[segment["id"]])} for segment in segments]
        return renamed, [moved[i] for i in rng.permutation(len(moved))]

    other = (*rename(prediction, prediction_segments), *rename(truth, truth_segments))
    one = _evaluate([(prediction, prediction_segments, truth, truth_segments)])
    assert np.array_equal(one.state, _evaluate([other]).state)


def test_shards_summed_in_any_order_equal_one_pass_exactly():
    images = [_image(seed) for seed in range(9)]
    whole = _evaluate(images)
    shards = [_evaluate(images[i::4]) for i in range(4)]
    for order in itertools.islice(itertools.permutations(shards), 0, None, 5):
        merged = PanopticQuality(CATEGORIES)
        for shard in order:
            merged.state += shard.state
        assert merged.result() == whole.result()
    assert np.array_equal(sum(shard.state for shard in shards), whole.state)  # what a sum over processes gives
    assert whole.state.dtype == np.int64


def test_the_sum_of_ious_is_exact():
    rng = np.random.default_rng(0)
    metric, ious = PanopticQuality(CATEGORIES), []
    for _ in range(200):
        length = int(rng.integers(20, 4000))
        missing = int(rng.integers(0, length // 2))
        prediction = np.where(np.arange(length) < missing, 0, 1)
        metric.update(*_scene(np.ones(length, int), prediction))
        ious.append((length - missing) / length)
    ious = [iou for iou in ious if iou > 0.5]
    assert metric.result().per_class[16].sq == 100 * math.fsum(ious) / len(ious)


def test_objects_with_label_ids_are_read_too():
    prediction, segments, truth, truth_segments = _image(5)
    objects = [SimpleNamespace(id=s["id"], label_id=s["category_id"], score=0.5) for s in segments]
    one, two = _evaluate([(prediction, segments, truth, truth_segments)]), PanopticQuality(CATEGORIES)
    two.update(prediction, objects, truth, truth_segments)
    assert np.array_equal(one.state, two.state)


def test_empty_predictions_and_class_zero():
    metric = PanopticQuality([{"id": 0, "isthing": False, "name": "sky"}])
    metric.update(np.zeros((2, 2), int), [], np.ones((2, 2), int), [{"id": 1, "category_id": 0}])
    assert metric.state[0, :3].tolist() == [0, 0, 1]
    assert metric.result().all.pq == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_segments": []}, r"ids \[1\] that no predicted segment has"),
        ({"prediction_segments": [{"id": n, "category_id": 16} for n in (1, 2)]}, r"segments \[2\] without a pixel"),
        ({"prediction_segments": [{"id": 1, "category_id": 99}]}, "segment 1 of the prediction with category 99"),
        ({"truth_segments": [{"id": 1, "category_id": 99}]}, "segment 1 of the truth with category 99"),
        ({"truth_segments": [{"id": 1, "category_id": 16}] * 2}, r"truth with the ids \[1, 1\]"),
        ({"prediction": np.full((1, 4), -1)}, r"ids \[-1\]"),
        ({"prediction": np.ones((2, 2), int)}, r"shape \(2, 2\) for a truth of shape \(1, 4\)"),
    ],
)
def test_wrong_input_is_told_and_not_counted(change, message):
    names = ("prediction", "prediction_segments", "truth", "truth_segments")
    metric = PanopticQuality(CATEGORIES)
    with pytest.raises(ValueError, match=message):
        metric.update(**(dict(zip(names, _scene([1] * 4, [1] * 4), strict=True)) | change))
    assert not metric.state.any()


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="has seen no segment"):
        PanopticQuality(CATEGORIES).result()
    with pytest.raises(ValueError, match="2 categories with 1 different ids"):
        PanopticQuality(CATEGORIES[:1] * 2)
