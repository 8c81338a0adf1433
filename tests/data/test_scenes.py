"""Drawn scenes: exact labels, the same for every run, alike at every size, and not told by colour alone."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest

from maskformer.data.scenes import CLASSES, LABELS, STUFF_IDS, Scene, draw_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in range(60)]


def _label_map(scene: Scene) -> np.ndarray:
    table = np.zeros(len(scene.segments) + 1, int)
    for segment in scene.segments:
        table[segment["id"]] = segment["category_id"]
    return table[scene.segmentation]


def test_classes_are_enough_and_told_apart_in_a_legend():
    assert list(LABELS) == list(range(len(CLASSES)))
    assert len(set(LABELS.values())) == len(CLASSES) == len({entry.color for entry in CLASSES})
    assert len(STUFF_IDS) >= 4
    assert len(CLASSES) - len(STUFF_IDS) >= 6
    assert all(not CLASSES[number].isthing for number in STUFF_IDS)


def test_segments_describe_the_map(scenes):
    for scene in scenes:
        assert scene.image.shape == (192, 256, 3)
        assert scene.image.dtype == np.uint8
        assert scene.segmentation.dtype == np.int32
        assert [s["id"] for s in scene.segments] == list(range(1, len(scene.segments) + 1))
        assert sum(s["area"] for s in scene.segments) == scene.segmentation.size  # no pixel without a label
        for segment in scene.segments:
            mask = scene.segmentation == segment["id"]
            rows, columns = np.nonzero(mask)
            x, y, width, height = segment["bbox"]
            assert segment["area"] == mask.sum() >= 69  # 0.14 % of the picture
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x, y, x + width, y + height)
            assert segment["isthing"] == CLASSES[segment["category_id"]].isthing


def test_stuff_is_one_segment_per_class_and_things_are_many(scenes):
    most = Counter()
    for scene in scenes:
        counts = Counter(s["category_id"] for s in scene.segments)
        assert all(counts[number] <= 1 for number in STUFF_IDS)
        for label, count in counts.items():
            most[label] = max(most[label], count)
    assert set(most) == set(LABELS)
    assert all(most[label] >= 3 for label in LABELS if label not in STUFF_IDS)


def test_things_hide_each_other(scenes):
    """Two things share a border in many scenes, which takes one standing before the other."""
    touching = 0
    for scene in scenes:
        things = {s["id"] for s in scene.segments if s["isthing"]}
        left, right = scene.segmentation[:, :-1], scene.segmentation[:, 1:]
        pairs = {(int(a), int(b)) for a, b in np.stack([left, right], -1)[left != right].tolist()}
        touching += any(a in things and b in things for a, b in pairs)
    assert touching > len(scenes) / 3


def test_outlines_in_the_picture_are_outlines_in_the_labels(monkeypatch):
    """At a thing's border the picture steps at least twice as hard as 8 pixels aside: both are the same geometry.

    Seen without the light, which follows the labels and would put the steps there by itself.
    """
    monkeypatch.setattr("maskformer.data.scenes.illuminate", lambda flat, *rest: flat.transpose(1, 2, 0))
    sharp = []
    for seed in range(40):
        scene = draw_scene(seed)
        step = np.abs(np.diff(scene.image.astype(int), axis=1)).max(axis=2)
        for number in (s["id"] for s in scene.segments if s["isthing"]):
            mask = scene.segmentation == number
            border = mask[:, 1:] != mask[:, :-1]
            aside = (np.roll(border, 8, axis=1) | np.roll(border, -8, axis=1)) & ~border
            sharp.append(np.median(step[border]) > 2 * np.median(step[aside]))
    assert len(sharp) > 300
    assert np.mean(sharp) > 0.98


def test_what_would_hardly_show_is_not_there(monkeypatch):
    before = draw_scene(1)
    monkeypatch.setattr("maskformer.data.scenes._SMALLEST_SHARE", 0.03)
    after = draw_scene(1)
    least = 0.03 * 192 * 256
    assert min(s["area"] for s in before.segments) < least <= min(s["area"] for s in after.segments)
    assert sum(s["area"] for s in after.segments) == 192 * 256  # what was behind has the pixels now
    gone = [s for s in before.segments if s["isthing"] and s["area"] < least]
    for segment in gone:
        mask = before.segmentation == segment["id"]
        assert np.abs(before.image[mask].astype(int) - after.image[mask]).mean() > 10  # nor is it painted


def test_a_seed_is_a_scene_here_and_in_another_process():
    first, again, other = draw_scene(11), draw_scene(11), draw_scene(12)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.segmentation, again.segmentation)
    assert first.segments == again.segments
    assert not np.array_equal(first.segmentation, other.segmentation)
    code = (
        "import sys, zlib; from maskformer.data.scenes import draw_scene; scene = draw_scene(11); "
        "print(zlib.crc32(scene.image.tobytes()), zlib.crc32(scene.segmentation.tobytes()), 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert printed == [str(zlib.crc32(first.image.tobytes())), str(zlib.crc32(first.segmentation.tobytes())), "False"]


@pytest.mark.parametrize("seed", [0, 5, 21])
def test_a_larger_drawing_is_the_same_scene(seed):
    small, large = draw_scene(seed, (96, 128)), draw_scene(seed, (288, 384))
    agreement = (_label_map(small) == _label_map(large)[1::3, 1::3]).mean()
    assert agreement > 0.97
    assert _label_map(large).shape == (288, 384)


def test_any_shape_can_be_drawn():
    for size in ((64, 64), (33, 190), (190, 33)):
        scene = draw_scene(7, size)
        assert scene.image.shape == (*size, 3)
        assert scene.segmentation.min() == 1


def test_colour_alone_does_not_tell_the_class(scenes):
    """The best table from (coarse) colour to class, fitted on the very pixels it is judged by, stays poor on things."""
    bins = np.concatenate([(s.image // 43).reshape(-1, 3) @ (36, 6, 1) for s in scenes])
    labels = np.concatenate([_label_map(s).ravel() for s in scenes])
    joint = np.bincount(bins * len(CLASSES) + labels, minlength=216 * len(CLASSES)).reshape(216, -1)
    right = np.zeros(len(CLASSES))
    best = joint.argmax(axis=1)
    np.add.at(right, best, joint.max(axis=1))
    recall = right / joint.sum(axis=0)
    assert recall[len(STUFF_IDS) :].mean() < 0.25
    assert right.sum() / len(labels) < 0.65


@pytest.mark.parametrize(("seed", "size"), [(-1, (192, 256)), (0, (16, 256))])
def test_wrong_arguments_are_told(seed, size):
    with pytest.raises(ValueError, match=r"draw_scene got seed=.* expected"):
        draw_scene(seed, size)
