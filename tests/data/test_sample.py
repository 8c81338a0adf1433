"""Samples stay compact, both forms of targets mean the same masks, and nothing full-size is held on the way."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskformer.data.collate import Collate
from maskformer.data.recognise import open_dataset
from maskformer.data.sample import IGNORED, Region, Sample, index_map, pack
from maskformer.data.transforms import Compose, RandomCrop, RandomFlip, ResizeShortestEdge

from . import publishers

THING, STUFF, VOID = Region(1, 11, True), Region(0, 10), Region(IGNORED, 255)


def flat() -> Sample:
    """4 x 6: void on the left, a thing, stuff, background on the right."""
    values = np.array([[0, 1, 1, 2, 2, 9]] * 4)
    planes, regions = index_map(values, lambda value: {0: VOID, 1: THING, 2: STUFF}.get(value))
    return Sample(np.zeros((4, 6, 3), np.uint8), planes, regions)


def overlapping(count: int = 19, size: tuple[int, int] = (16, 24)) -> tuple[Sample, np.ndarray]:
    masks = np.random.default_rng(0).random((count, *size)) < 0.3
    regions = tuple(Region(place % 3, place, True) for place in range(count))
    return Sample(np.zeros((*size, 3), np.uint8), pack(masks, size), regions, True), masks


def test_an_index_map_is_one_byte_per_pixel():
    sample = flat()
    assert sample.planes.dtype == np.uint8
    assert sample.planes.tolist() == [[[1, 2, 2, 3, 3, 0]] * 4]
    assert sample.regions == (VOID, THING, STUFF)
    assert sample.areas().tolist() == [4, 8, 8]
    assert sample.masks()[1].sum(axis=1).tolist() == [2] * 4
    assert sample.class_map(ignore_index=99).tolist() == [[99, 1, 1, 0, 0, 99]] * 4
    many, _ = index_map(np.arange(400).reshape(20, 20), lambda value: Region(0, value))
    assert many.dtype == np.int16
    assert many.max() == 400
    large = np.array([[5_000_000, 16_000_000, 5_000_000]])  # panoptic ids
    planes, regions = index_map(large, lambda value: Region(0, value))
    assert planes.tolist() == [[[1, 2, 1]]]
    assert [region.value for region in regions] == [5_000_000, 16_000_000]


def test_bits_hold_overlapping_masks():
    sample, masks = overlapping()
    assert sample.planes.shape == (3, 16, 24)
    assert np.array_equal(sample.masks(), masks)
    assert np.array_equal(sample.masks([18, 2]), masks[[18, 2]])
    assert sample.areas().tolist() == masks.sum(axis=(1, 2)).tolist()
    nothing = pack([], (4, 5))
    assert nothing.shape == (0, 4, 5)
    assert Sample(np.zeros((4, 5, 3), np.uint8), nothing, (), True).flattened().planes.tolist() == [[[0] * 5] * 4]


def test_the_smaller_of_two_is_on_top_when_flattened():
    sample, masks = overlapping(5)
    ids = sample.flattened().planes[0]
    areas = masks.sum(axis=(1, 2))
    for row, column in np.ndindex(16, 24):
        inside = np.flatnonzero(masks[:, row, column])
        assert ids[row, column] == (inside[np.argmin(areas[inside])] + 1 if len(inside) else 0)


def test_regions_without_pixels_are_dropped_and_counted():
    sample = flat()
    hidden = Sample(sample.image, np.where(sample.planes < 3, 0, sample.planes), sample.regions)
    kept = hidden.without_empty()
    assert kept.regions == (STUFF,)
    assert kept.planes.tolist() == [[[0, 0, 0, 1, 1, 0]] * 4]
    assert kept.num_dropped == 1  # the thing; void is no loss
    assert sample.without_empty() is sample

    sample, masks = overlapping()
    masks[[3, 9, 10]] = False
    kept = sample.with_masks(sample.image, masks).without_empty()
    assert kept.num_dropped == 3
    assert np.array_equal(kept.masks(), np.delete(masks, [3, 9, 10], axis=0))
    assert [region.value for region in kept.regions] == [v for v in range(19) if v not in (3, 9, 10)]


def test_tasks():
    sample = flat()
    twice = Sample(sample.image, sample.planes, (VOID, STUFF, STUFF._replace(iscrowd=True)))
    semantic = twice.for_task("semantic")
    assert semantic.planes.tolist() == [[[1, 2, 2, 2, 2, 0]] * 4]
    assert semantic.regions == (VOID, STUFF)
    assert semantic.regions[1].is_target
    instance = sample.for_task("instance")
    assert instance.regions == (VOID, THING)
    assert instance.planes.tolist() == [[[1, 2, 2, 0, 0, 0]] * 4]
    crowd = Sample(sample.image, sample.planes, (VOID, THING._replace(iscrowd=True), STUFF)).for_task("instance")
    assert [region.is_target for region in crowd.regions] == [False, False]
    assert sample.for_task("panoptic") is sample

    many, masks = overlapping(9)
    regions = [region._replace(isthing=place not in (2, 7)) for place, region in enumerate(many.regions)]
    things = replace(many, regions=tuple(regions)).for_task("instance")
    assert np.array_equal(things.masks(), np.delete(masks, [2, 7], axis=0))
    assert [region.value for region in things.regions] == [0, 1, 3, 4, 5, 6, 8]
    assert things.num_dropped == 0


def test_negative_values_are_refused():
    with pytest.raises(ValueError, match="holds -1, expected values from 0 on"):
        index_map(np.array([[-1, 3]]), lambda value: None)


def crowded(root: Path, count: int = 200) -> Path:
    """Polygons over a picture of 800 x 1333, most of them overlapping others."""
    rng = np.random.default_rng(0)
    publishers.save(root / "train" / "a.jpg", np.zeros((800, 1333, 3), np.uint8))
    annotations = []
    for number in range(count):
        (y, x), (h, w) = rng.integers(0, (600, 1000)), rng.integers(30, (200, 300))
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        entry = {"id": number, "image_id": 1, "category_id": 1, "segmentation": [[float(v) for v in corners]]}
        annotations.append(entry)
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 800, "width": 1333}], "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "brick"}]
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def test_two_hundred_instances_stay_below_a_hundred_megabytes(tmp_path):
    dataset = open_dataset(crowded(tmp_path))
    steps = [ResizeShortestEdge([800], 1333), RandomCrop((700, 1300)), RandomFlip(1.0)]
    collate = Collate(packed=True)
    tracemalloc.start()
    sample = Compose(steps)(dataset[0], np.random.default_rng(0))
    batch = collate([sample])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (targets,) = batch["mask_labels"]
    assert len(targets) == 200 - sample.num_dropped > 190
    assert targets.planes.numel() * targets.planes.element_size() < 25e6
    assert peak < 100e6  # the picture and all steps on the way included
    assert targets[torch.tensor([0, 5])].sum(dim=(1, 2)).tolist() == sample.areas()[[0, 5]].tolist()
