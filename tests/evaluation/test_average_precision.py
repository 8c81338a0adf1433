"""Average precision: the twelve numbers of the official code, from images that come one at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskformer.evaluation.average_precision import NAMES, AveragePrecision
from maskformer.processing.masks import encode_run_lengths
from maskformer.results import compressed_runs

CATEGORIES = [{"id": number, "name": f"class {number}"} for number in (3, 5, 8, 13)]  # the last one is never there
SIZE = (150, 180)


def _runs(mask):
    packed = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": packed["size"], "counts": packed["counts"].decode()}


def _image(seed):
    """Instances of all three sizes with crowds, and detections that move, miss and invent some; scores with ties."""
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for _ in range(rng.integers(0, 8)):
        mask = np.zeros(SIZE, bool)
        reach = int(rng.choice([12, 50, 140]))
        (y, x), (h, w) = rng.integers(0, 90, 2), rng.integers(4, reach, 2)
        mask[y : y + h, x : x + w] = True
        category = int(rng.choice([3, 5, 8]))
        truth.append((category, _runs(mask), float(mask.sum()) * 0.9, bool(rng.random() < 0.15)))
        for _ in range(rng.integers(0, 3)):
            moved = np.roll(mask, rng.integers(-3, 4, 2), (0, 1))
            detections.append((category, float(rng.integers(0, 20)) / 20, _runs(moved)))
    return f"{seed:03}", detections, truth


def _official(images, tmp_path):
    """What pycocotools says of the files one would hand in."""
    truths, found = [], []
    for number, (_, detections, truth) in enumerate(images, start=1):
        for category, runs, area, crowd in truth:
            entry = {"id": len(truths) + 1, "image_id": number, "category_id": category, "segmentation": runs}
            truths.append({**entry, "area": area, "iscrowd": int(crowd), "bbox": [0, 0, 1, 1]})
        for category, score, runs in detections:
            found.append({"image_id": number, "category_id": category, "segmentation": runs, "score": score})
    pictures = [{"id": number, "height": SIZE[0], "width": SIZE[1]} for number in range(1, len(images) + 1)]
    data = {"info": {}, "images": pictures, "annotations": truths, "categories": CATEGORIES}
    (tmp_path / "truth.json").write_text(json.dumps(data))
    (tmp_path / "found.json").write_text(json.dumps(found))
    true = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(true, true.loadRes(str(tmp_path / "found.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def _collect(images, **options):
    metric = AveragePrecision(CATEGORIES, **options)
    for name, detections, truth in images:
        metric.update(name, SIZE, detections, truth)
    return metric


@pytest.mark.parametrize("backend", ["pycocotools", "faster-coco-eval"])
def test_equals_the_official_code(backend, tmp_path):
    images = [_image(seed) for seed in range(25)]
    official = _official(images, tmp_path)
    result = _collect(images, backend=backend).result()
    ours = [result.numbers[name] for name in NAMES]
    assert ours == pytest.approx((100 * official.stats).tolist(), abs=1e-9)
    assert 5 < result.numbers["AP"] < 95
    for place, number in enumerate(official.params.catIds):
        precision = official.eval["precision"][:, :, place, 0, 2]
        if number == 13:
            assert number not in result.per_class
        else:
            assert result.per_class[number]["AP"] == pytest.approx(100 * precision[precision > -1].mean(), abs=1e-9)


def test_the_order_of_arrival_changes_nothing():
    images = [_image(seed) for seed in range(12)]
    whole = _collect(images).result()
    shards = [_collect(images[start::3]) for start in (2, 0, 1)]
    merged = AveragePrecision(CATEGORIES)
    for shard in shards:
        merged.records += json.loads(json.dumps(shard.records))  # a journal keeps them as JSON
    assert merged.result() == whole


def test_perfect_is_100_and_absent_sizes_are_none():
    mask = np.zeros(SIZE, bool)
    mask[10:20, 10:20] = True
    metric = AveragePrecision(CATEGORIES)
    metric.update(1, SIZE, [(3, 0.9, _runs(mask))], [(3, _runs(mask), 100.0, False)])
    result = metric.result()
    assert result.numbers["AP"] == pytest.approx(100)
    assert result.numbers["AP_small"] == pytest.approx(100)
    assert result.numbers["AP_large"] is None
    assert list(result.per_class) == [3]


@pytest.mark.parametrize("backend", ["pycocotools", "faster-coco-eval"])
def test_nothing_found_is_0(backend):
    images = [(name, [], truth) for name, _, truth in (_image(seed) for seed in range(4))]
    assert _collect(images, backend=backend).result().numbers["AP"] == 0


def test_boundary_is_stricter():
    images = [_image(seed) for seed in range(6)]
    boundary = _collect(images, boundary=True).result().numbers
    assert boundary["AP"] < _collect(images).result().numbers["AP"]
    assert boundary["AP"] > 0


def test_runs_may_be_uncompressed():
    mask = np.random.default_rng(0).random(SIZE) < 0.5
    plain = encode_run_lengths(torch.from_numpy(mask))
    assert compressed_runs(plain) == _runs(mask) == compressed_runs(_runs(mask))


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="0 images"):
        AveragePrecision(CATEGORIES).result()
    with pytest.raises(ValueError, match="image 7 has category 4, expected one of"):
        AveragePrecision(CATEGORIES).update(7, SIZE, [(4, 0.5, _runs(np.ones(SIZE)))], [])
    twice = _collect([_image(1), _image(1)])
    with pytest.raises(ValueError, match="2 images with 1 ids"):
        twice.result()
