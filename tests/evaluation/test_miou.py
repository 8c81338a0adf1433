"""Mean IoU: equal to counting pixel by pixel, and exact over shards."""

from __future__ import annotations

import numpy as np
import pytest

from maskformer.evaluation.miou import MeanIoU


def _maps(seed, num_classes=6, size=(17, 23)):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes - 1, size)  # the last class is never true
    prediction = np.where(rng.random(size) < 0.6, truth, rng.integers(0, num_classes, size))
    truth[rng.random(size) < 0.15] = 255
    return prediction, truth


def _brute_force(pairs, num_classes):
    confusion = [[0] * num_classes for _ in range(num_classes)]
    for prediction, truth in pairs:
        for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t != 255:
                confusion[t][p] += 1
    return confusion


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_double_loop(seed):
    pairs = [_maps(seed * 10 + i) for i in range(3)]
    metric = MeanIoU(6)
    for pair in pairs:
        metric.update(*pair)
    confusion = _brute_force(pairs, 6)
    assert metric.confusion.tolist() == confusion
    assert metric.confusion.dtype == np.int64
    true = [sum(row) for row in confusion]
    predicted = [sum(row[c] for row in confusion) for c in range(6)]
    hits = [confusion[c][c] for c in range(6)]
    support = [c for c in range(6) if true[c]]
    iou = {c: 100 * hits[c] / (true[c] + predicted[c] - hits[c]) for c in support}
    accuracy = {c: 100 * hits[c] / true[c] for c in support}
    result = metric.result()
    assert result.iou == iou
    assert result.accuracy == accuracy
    assert len(result.iou) == len(support) == 5
    assert result.pixel_accuracy == 100 * sum(hits) / sum(true)
    assert result.mean_iou == pytest.approx(sum(iou.values()) / 5, rel=1e-14)
    assert result.mean_accuracy == pytest.approx(sum(accuracy.values()) / 5, rel=1e-14)
    weighted = sum(iou[c] * true[c] for c in support) / sum(true)
    assert result.frequency_weighted_iou == pytest.approx(weighted, rel=1e-14)


def test_known_numbers():
    metric = MeanIoU(3)
    metric.update([[0, 0, 1, 1]], [[0, 1, 1, 255]])
    result = metric.result()
    assert result.iou == {0: 50.0, 1: 50.0}
    assert result.mean_iou == 50.0
    assert result.mean_accuracy == 75.0
    assert result.pixel_accuracy == pytest.approx(200 / 3)


def test_perfect_is_100_and_ignored_pixels_count_nowhere():
    _, truth = _maps(1)
    metric = MeanIoU(6)
    metric.update(np.where(truth == 255, 3, truth), truth)
    result = metric.result()
    assert (result.mean_iou, result.frequency_weighted_iou, result.mean_accuracy, result.pixel_accuracy) == (100.0,) * 4


def test_shards_summed_in_any_order_equal_one_pass():
    pairs = [_maps(seed) for seed in range(6)]
    whole, shards = MeanIoU(6), [MeanIoU(6) for _ in range(3)]
    for number, pair in enumerate(pairs):
        whole.update(*pair)
        shards[number % 3].update(*pair)
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = MeanIoU(6)
        for number in order:
            merged.confusion += shards[number].confusion
        assert merged.result() == whole.result()


def test_small_and_unsigned_types_do_not_overflow():
    metric = MeanIoU(200)
    metric.update(np.full((4, 4), 199, np.uint8), np.full((4, 4), 199, np.uint8))
    assert metric.confusion[199, 199] == 16
    assert MeanIoU(3, ignore_index=-100).ignore_index == -100


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([[0, 6]], [[0, 1]], "predicted classes from 0 to 6, expected 0 to 5"),
        ([[0, -1]], [[0, 255]], "predicted classes from -1 to 0"),
        ([[0, 1]], [[0, 77]], "true classes from 0 to 77"),
        ([[0, 1]], [[0], [1]], r"shape \(1, 2\) for a truth of shape \(2, 1\)"),
        ([[0.0, 1.0]], [[0, 1]], "predicted classes of float64, expected integers"),
    ],
)
def test_wrong_maps_are_told_and_not_counted(prediction, truth, message):
    metric = MeanIoU(6)
    with pytest.raises(ValueError, match=message):
        metric.update(prediction, truth)
    assert not metric.confusion.any()


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="has seen no pixel"):
        MeanIoU(3).result()
    with pytest.raises(ValueError, match="num_classes=0"):
        MeanIoU(0)
