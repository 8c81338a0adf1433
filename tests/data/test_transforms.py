"""Augmentation: image and targets stay together, the same seed gives the same sample, nothing is lost unseen."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest

from maskformer.data.sample import IGNORED, Region, Sample, index_map
from maskformer.data.scene_set import SceneDataset
from maskformer.data.transforms import (
    Compose,
    OneOf,
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    ResizeShortestEdge,
    Transform,
    TransformedDataset,
    crop,
    paper_transforms,
    resize,
)

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def scene() -> Sample:
    return SceneDataset(5, size=(96, 128))[2]


def painted(sample: Sample) -> Sample:
    """The image shows which region is where, so that both can be compared after any transform."""
    shades = (1 + np.arange(len(sample.regions) + 1, dtype=np.uint8)) * 10
    return replace(sample, image=np.repeat(shades[sample.planes[0]][..., None], 3, axis=-1))


def agreement(sample: Sample) -> float:
    """The share of pixels whose shade is that of their region; not at borders, where the image's filter mixes."""
    ids = sample.planes[0]
    inner = np.ones(ids.shape, bool)
    for axis in (0, 1):
        for step in (1, 2, 3):
            same = np.roll(ids, step, axis) == ids
            inner &= same & np.roll(same, -step, axis)
    shades = np.array([0, *(region.value for region in sample.regions)])[ids]
    return float((sample.image[..., 0] == shades)[inner].mean())


def shaded(sample: Sample) -> Sample:
    sample = painted(sample)
    regions = tuple(region._replace(value=20 + 10 * place) for place, region in enumerate(sample.regions))
    return replace(sample, regions=regions)


@pytest.mark.parametrize(
    "transform",
    [
        ResizeShortestEdge([64, 192]),
        RandomCrop((40, 60)),
        RandomCrop((40, 90), "absolute_range"),
        RandomFlip(1.0),
        OneOf([RandomFlip(1.0), RandomCrop((30, 30))]),
        paper_transforms([64, 96], 200, (48, 48)),
        paper_transforms([64, 96], 200, (30, 60), "absolute_range"),
    ],
)
def test_image_and_targets_move_together_and_follow_the_seed(scene, transform: Transform):
    before = shaded(scene)
    for seed in range(5):
        after = transform(before, RNG(seed))
        again = transform(before, RNG(seed))
        assert after.image.shape[:2] == after.planes.shape[1:] == after.size
        assert after.image.dtype == np.uint8
        assert agreement(after) > 0.95
        assert np.array_equal(after.image, again.image)
        assert np.array_equal(after.planes, again.planes)
    several = [transform(before, RNG(seed)) for seed in range(12)]
    if not isinstance(transform, RandomFlip):
        assert len({sample.image.tobytes() for sample in several}) > 1


def test_resizing_keeps_the_shape_and_the_limit(scene):
    sizes = {ResizeShortestEdge([48, 72], 90)(scene, RNG(seed)).size for seed in range(20)}
    assert sizes == {(48, 64), (68, 90)}


def test_targets_are_resized_to_the_nearest_and_no_value_is_made_up(scene):
    doubled = resize(scene, (192, 256))
    assert np.array_equal(doubled.planes, scene.planes.repeat(2, axis=1).repeat(2, axis=2))
    third = resize(scene, (32, 43))
    assert set(np.unique(third.planes)) <= set(np.unique(scene.planes))
    assert np.array_equal(resize(doubled, scene.size).planes, scene.planes)
    assert np.array_equal(resize(scene, (32, 128)).planes, scene.planes[:, 1::3])  # the middle one of three
    assert resize(scene, scene.size) is scene


def test_a_crop_is_a_window_and_lost_objects_are_counted(scene):
    window = crop(scene, 10, 20, 30, 40)
    assert np.array_equal(window.image, scene.image[10:40, 20:60])
    assert np.array_equal(window.planes, scene.planes[:, 10:40, 20:60])
    done = Compose([RandomCrop((30, 40))])(scene, RNG(1))
    assert done.num_dropped == len(scene.regions) - len(done.regions) > 0
    assert (done.areas() > 0).all()
    small = RandomCrop((500, 50))(scene, RNG(0))
    assert small.size == (96, 50)  # never larger than the image


def test_crop_sizes_of_each_kind(scene):
    ranged = np.array([RandomCrop((40, 110), "absolute_range")(scene, RNG(seed)).size for seed in range(60)])
    assert ranged.min() >= 40
    assert 90 < ranged[:, 0].max() <= 96  # the image's height
    assert ranged[:, 1].max() <= 110
    assert len(np.unique(ranged[:, 1])) > 20


def test_no_class_fills_the_crop_where_that_can_be_avoided():
    """Left: one class. Right: a column of it, the rest ignored. In the middle: two classes."""
    values = np.zeros((20, 100), int)
    values[:, 45:55] = 1
    values[:, 60:] = 2
    classes = {0: Region(0, 0), 1: Region(1, 1), 2: Region(IGNORED, 255)}
    planes, regions = index_map(values, classes.get)
    sample = Sample(np.zeros((20, 100, 3), np.uint8), planes, regions)

    def largest(window: Sample) -> float:
        areas = [area for region, area in zip(window.regions, window.areas(), strict=True) if region.label_id >= 0]
        return max(areas) / sum(areas) if sum(areas) else 1.0

    free = [largest(RandomCrop((20, 20))(sample, RNG(seed))) for seed in range(100)]
    held = [largest(RandomCrop((20, 20), single_category_max_area=0.75)(sample, RNG(seed))) for seed in range(100)]
    assert np.mean(np.array(free) <= 0.75) < 0.4
    assert np.mean(np.array(held) <= 0.75) > 0.9  # ten attempts, then as it comes


def test_ignored_pixels_have_no_share_in_a_crop():
    """Left column: one class over ignored pixels, which is all of what is labelled. Right column: two classes."""
    values = np.array([[0, 0]] * 6 + [[2, 0]] * 4 + [[2, 1]] * 10)
    classes = {0: Region(0, 0), 1: Region(1, 1), 2: Region(IGNORED, 255)}
    planes, regions = index_map(values, classes.get)
    sample = Sample(np.zeros((20, 2, 3), np.uint8), planes, regions)
    columns = [RandomCrop((20, 1), single_category_max_area=0.75)(sample, RNG(seed)).planes for seed in range(20)]
    assert all(np.array_equal(column, planes[:, :, 1:]) for column in columns)


def test_flipping_is_by_chance_and_undoes_itself(scene):
    flipped = RandomFlip(1.0)(scene, RNG(0))
    assert np.array_equal(flipped.image, scene.image[:, ::-1])
    assert np.array_equal(RandomFlip(1.0)(flipped, RNG(0)).planes, scene.planes)
    kept = sum(RandomFlip()(scene, RNG(seed)) is scene for seed in range(200))
    assert 70 < kept < 130


def test_colours_change_within_their_limits_and_targets_do_not(scene):
    jitter = PhotometricDistortion()
    means = []
    for seed in range(40):
        after = jitter(scene, RNG(seed))
        assert after.planes is scene.planes
        means.append(after.image.mean())
    assert np.std(means) > 10
    off = PhotometricDistortion(chance=0.0)
    assert all(np.array_equal(off(scene, RNG(seed)).image, scene.image) for seed in range(5))


def one_pixel(color: tuple[int, int, int], transform: Transform) -> set[tuple[int, ...]]:
    planes, regions = index_map(np.zeros((1, 1), int), lambda value: Region(0, value))
    sample = Sample(np.array([[color]], np.uint8), planes, regions)
    return {tuple(transform(sample, RNG(seed)).image[0, 0].tolist()) for seed in range(60)}


def test_each_distortion_does_what_it_says():
    brighter = one_pixel((100, 100, 100), PhotometricDistortion(32, (1, 1), (1, 1), 0, 1.0))
    assert all(68 <= red == green == blue <= 132 for red, green, blue in brighter)
    assert len(brighter) > 20
    contrast = one_pixel((100, 100, 100), PhotometricDistortion(0, (0.5, 1.5), (1, 1), 0, 1.0))
    assert all(50 <= red <= 150 for red, *_ in contrast)
    assert min(contrast)[0] < 60 < 140 < max(contrast)[0]
    assert len(contrast) > 35  # early or late, it always acts
    turned = one_pixel((200, 60, 60), PhotometricDistortion(0, (1, 1), (1, 1), 0.1, 1.0))
    hues = [(colorsys.rgb_to_hsv(*(value / 255 for value in color))[0] + 0.5) % 1 - 0.5 for color in turned]
    assert max(map(abs, hues)) < 0.11
    assert min(hues) < -0.05 < 0.05 < max(hues)
    paler = one_pixel((200, 100, 100), PhotometricDistortion(0, (1, 1), (0.5, 0.5), 0, 1.0))
    assert all(red == 200 and 148 <= green <= 152 for red, green, _ in paler)


def test_the_published_recipes(scene):
    semantic = paper_transforms([96], 400, (64, 64), single_category_max_area=0.9, distort_colors=True)
    kinds = [type(step) for step in semantic.steps]
    assert kinds == [ResizeShortestEdge, RandomCrop, PhotometricDistortion, RandomFlip]
    assert semantic(scene, RNG(0)).size == (64, 64)
    assert [type(step) for step in paper_transforms([96], 400, None).steps] == [ResizeShortestEdge, RandomFlip]
    panoptic = paper_transforms([120], 400, (384, 600), "absolute_range")
    heights = {panoptic(scene, RNG(seed)).size for seed in range(30)}
    assert (120, 160) in heights  # plain
    assert len(heights) > 5  # cropped to any shape first


def test_any_callable_can_be_plugged_in(scene):
    def darken(sample: Sample, rng: np.random.Generator) -> Sample:
        return replace(sample, image=(sample.image * rng.uniform(0.1, 0.2)).astype(np.uint8))

    done = Compose([RandomFlip(1.0), darken])(scene, RNG(0))
    assert done.image.mean() < 0.3 * scene.image.mean()

    def upside_down(sample: Sample, rng: np.random.Generator) -> Sample:  # one that knows images and masks only
        return sample.with_masks(sample.image[::-1], sample.masks()[:, ::-1])

    turned = Compose([upside_down])(scene, RNG(0))
    assert np.array_equal(turned.flattened().class_map(), scene.class_map()[::-1])


def test_a_draw_is_the_same_whenever_it_is_asked_for():
    dataset = TransformedDataset(SceneDataset(3, size=(48, 64)), paper_transforms([40, 60], 100, (32, 32)), seed=7)
    first = dataset[1, 500]
    assert len(dataset) == 3
    assert np.array_equal(dataset[1, 500].image, first.image)
    assert not np.array_equal(dataset[1, 501].image, first.image)
    other = TransformedDataset(dataset.dataset, dataset.transform, seed=8)
    assert not np.array_equal(other[1, 500].image, first.image)
    assert np.array_equal(dataset[1].image, dataset[1, 0].image)
