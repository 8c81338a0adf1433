"""Tiles: where they lie, and that what they say of a picture is joined to what one look at all of it says."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.image_transforms import rgb_to_id

from maskformer.data.scenes import LABELS, STUFF_IDS, draw_scene
from maskformer.evaluation.panoptic_quality import PanopticQuality
from maskformer.inference import Segmenter
from maskformer.processing.masks import encode_run_lengths
from maskformer.results import Segmentation, map_of_runs, segments_of_map, segments_of_runs
from maskformer.tiling import TiledSegmenter, tiles
from maskformer.visualization import id2rgb


class Reader:
    """Segments pictures whose colours are 100 * label + segment number, exactly, with ids of its own for each."""

    num_channels = 3
    labels = LABELS
    stuff_ids = frozenset(STUFF_IDS)

    def __init__(self) -> None:
        self.largest = (0, 0)

    def stream(self, images: Iterable, task: str, *, batch_size: int = 4, **options) -> Iterator[Segmentation]:
        for image in images:
            values = rgb_to_id(image.permute(1, 2, 0).numpy())
            self.largest = max(self.largest, values.shape)
            found = [int(value) for value in np.unique(values)]
            # The later the tile, the higher the score: the best one of all tiles must win.
            score = round(0.5 + values.shape[1] / 10_000, 6)
            if task == "semantic":
                found, values = sorted({value // 100 for value in found}), values // 100
                infos = [{"id": value, "label_id": value, "score": score} for value in found]
                segments = segments_of_map(values.astype(np.int32), infos, LABELS, self.stuff_ids)
                yield Segmentation(task, values.astype(np.int32), segments, values.shape, LABELS, image)
            elif task == "panoptic":
                table = np.zeros(values.max() + 1, np.int32)
                table[found] = np.random.default_rng(len(found)).permutation(len(found)) + 1
                infos = [{"id": int(table[v]), "label_id": v // 100, "score": score} for v in found]
                segments = segments_of_map(table[values], infos, LABELS, self.stuff_ids)
                yield Segmentation(task, table[values], segments, values.shape, LABELS, image)
            else:
                things = [value for value in found if value // 100 not in self.stuff_ids]
                runs = [encode_run_lengths(torch.from_numpy(values == value)) for value in things]
                infos = [{"id": n, "label_id": v // 100, "score": score} for n, v in enumerate(things)]
                segments = segments_of_runs(runs, infos, LABELS, self.stuff_ids)
                yield Segmentation(task, map_of_runs(runs, values.shape), segments, values.shape, LABELS, image)


def _scene(seed: int, size: tuple[int, int] = (300, 420)) -> tuple[np.ndarray, np.ndarray, list]:
    scene = draw_scene(seed, size)
    table = np.zeros(len(scene.segments) + 1, np.int32)
    for segment in scene.segments:
        table[segment["id"]] = 100 * segment["category_id"] + segment["id"]
    return id2rgb(table[scene.segmentation]), scene.segmentation, scene.segments


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((4000, 6000), 1024, 128), ((100, 100), 100, 0), ((101, 100), 100, 50), ((5, 2000), 64, 7), ((1, 1), 9, 4)],
)
def test_tiles_cover_the_picture_and_overlap_enough(size, tile, overlap) -> None:
    found = tiles(size, tile, overlap)
    assert len({(place.row, place.column) for place in found}) == len(found)
    for axis, length in zip(("row", "column"), size, strict=True):
        spans = {getattr(p, axis): (p.top, p.bottom) if axis == "row" else (p.left, p.right) for p in found}
        ends = [spans[number] for number in sorted(spans)]
        assert ends[0][0] == 0
        assert ends[-1][1] == length
        assert all(end - start == min(tile, length) for start, end in ends)
        shared = [before[1] - after[0] for before, after in itertools.pairwise(ends)]
        assert all(overlap <= pixels < tile for pixels in shared)
        fewest = max(-(-(length - overlap) // (tile - overlap)), 1)
        assert len(ends) == fewest


@pytest.mark.parametrize("overlap", [24, 64])
@pytest.mark.parametrize("seed", range(4))
def test_panoptic_segments_are_joined(seed, overlap) -> None:
    picture, truth, segments = _scene(seed)
    reader = Reader()
    result = TiledSegmenter(reader, 128, overlap).predict([picture], "panoptic")[0]
    assert reader.largest == (128, 128)
    assert result.image is picture
    ids = [segment.id for segment in result.segments]
    assert ids == list(range(1, len(ids) + 1))
    assert set(np.unique(result.segmentation)) == set(ids)
    metric = PanopticQuality([{"id": n, "name": name, "isthing": n not in STUFF_IDS} for n, name in LABELS.items()])
    metric.update(result.segmentation, result.segments, truth, segments)
    quality = metric.result().all
    assert quality.sq == 100
    # A thing that only touches a seam with its legs, say, may fall into two: nothing else may.
    assert quality.rq > 97
    for segment in result.segments:
        assert segment.area == (result.segmentation == segment.id).sum()


def test_pixels_away_from_seams_are_those_of_the_whole_picture() -> None:
    picture, truth, segments = _scene(3)
    label = np.array([0, *(segment["category_id"] for segment in segments)])
    result = TiledSegmenter(Reader(), 100, 20).predict([picture], "semantic")[0]
    assert np.array_equal(result.segmentation, label[truth])
    assert [segment.id for segment in result.segments] == sorted(set(label[1:].tolist()))
    assert {segment.score for segment in result.segments} == {0.51}


@pytest.mark.parametrize("seed", range(3))
def test_instances_are_joined_with_their_overlaps(seed) -> None:
    picture, truth, segments = _scene(seed)
    result = TiledSegmenter(Reader(), 128, 64).predict([picture], "instance")[0]
    things = [segment for segment in segments if segment["isthing"]]
    whole = {segment["area"]: segment for segment in things}
    found = [segment for segment in result.segments if segment.area in whole]
    assert len(things) >= 3
    assert len(found) >= len(things) - 1
    for segment in found:
        assert np.array_equal(segment.mask, truth == whole[segment.area]["id"])
        assert segment.bbox == whole[segment.area]["bbox"]
    assert [segment.id for segment in result.segments] == list(range(len(result.segments)))


@pytest.mark.parametrize(("task", "options"), [("instance", {}), ("panoptic", {"label_ids_to_fuse": {9}})])
def test_joined_segments_are_things_or_stuff_as_in_one_piece(task, options) -> None:
    model = Segmenter.from_pretrained("scenes")
    unknowing = Segmenter(model.model, model.image_processor)
    unknowing.stuff_ids = None  # as of a checkpoint that does not say which classes are stuff
    picture = draw_scene(1, (100, 150)).image
    whole = unknowing.predict(picture, task, **options)[0]
    joined = TiledSegmenter(unknowing, 100).predict([picture], task, **options)[0]
    assert joined.segments
    for segment in whole.segments + joined.segments:
        assert segment.is_thing is (segment.label_id not in options.get("label_ids_to_fuse", ()))


def test_without_fusing_stuff_stays_apart_where_it_is_not_connected() -> None:
    values = np.zeros((60, 200), np.int32) + 100 * 6 + 1  # a house ...
    values[:, :20] = values[:, 180:] = 2  # ... between two pieces of sky
    fused = TiledSegmenter(Reader(), 80, 20).predict([id2rgb(values)], "panoptic")[0]
    apart = TiledSegmenter(Reader(), 80, 20).predict([id2rgb(values)], "panoptic", label_ids_to_fuse=set())[0]
    assert sorted(segment.label_id for segment in fused.segments) == [0, 6]
    assert sorted(segment.label_id for segment in apart.segments) == [0, 0, 6]


def test_two_things_that_touch_at_a_seam_stay_two() -> None:
    values = np.zeros((60, 140), np.int32) + 1
    values[10:40, 20:68], values[10:40, 72:120] = 601, 602  # the overlap is 60 to 80, each is seen in a part of it
    result = TiledSegmenter(Reader(), 80, 20).predict([id2rgb(values)], "panoptic")[0]
    assert sorted(segment.area for segment in result.segments if segment.label_id == 6) == [1440, 1440]


def test_segments_of_different_classes_are_not_joined() -> None:
    class Undecided(Reader):
        """Sees a house in the left tile and a tree in the right one."""

        def stream(self, images: Iterable, task: str, **options) -> Iterator[Segmentation]:
            for number, image in enumerate(images):
                ids = np.ones(image.shape[1:], np.int32)
                infos = [{"id": 1, "label_id": 6 + number, "score": 0.9}]
                yield Segmentation(task, ids, segments_of_map(ids, infos, LABELS, None), ids.shape, LABELS, image)

    result = TiledSegmenter(Undecided(), 8, 4).predict([np.zeros((8, 12, 3), np.uint8)], "panoptic")[0]
    assert [(each.label_id, each.area) for each in result.segments] == [(6, 48), (7, 48)]


def test_joined_segments_have_the_best_score_of_their_parts() -> None:
    class Tired(Reader):
        """Sees one house in every tile, and is less sure of it each time."""

        def stream(self, images: Iterable, task: str, **options) -> Iterator[Segmentation]:
            for number, image in enumerate(images):
                ids = np.ones(image.shape[1:], np.int32)
                infos = [{"id": 1, "label_id": 6, "score": 0.9 - 0.1 * number}]
                yield Segmentation(task, ids, segments_of_map(ids, infos, LABELS, None), ids.shape, LABELS, image)

    (house,) = TiledSegmenter(Tired(), 8, 4).predict([np.zeros((8, 16, 3), np.uint8)], "panoptic")[0].segments
    assert (house.area, house.score) == (128, 0.9)


def test_a_thing_inside_a_larger_one_of_the_other_tile_is_not_part_of_it() -> None:
    class Divided(Reader):
        """Sees all of the left tile as one house, and in the right one a window of four pixels as another."""

        def stream(self, images: Iterable, task: str, **options) -> Iterator[Segmentation]:
            for number, image in enumerate(images):
                ids = np.ones(image.shape[1:], np.int32)
                if number == 1:
                    ids[:] = 2  # sky
                    ids[3:5, 1:3] = 1
                infos = [{"id": 1, "label_id": 6, "score": 0.9}, {"id": 2, "label_id": 0, "score": 0.9}]
                yield Segmentation(task, ids, segments_of_map(ids, infos, LABELS, None), ids.shape, LABELS, image)

    result = TiledSegmenter(Divided(), 8, 4).predict([np.zeros((8, 12, 3), np.uint8)], "panoptic")[0]
    assert [(each.label_id, each.area) for each in result.segments] == [(6, 48), (6, 2), (0, 46)]


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_tiles_that_share_nothing(task) -> None:
    values = np.zeros((50, 100), np.int32) + 1
    values[10:20, 10:20] = 601  # a house in the first tile, and the sky in both
    result = TiledSegmenter(Reader(), 50, 0).predict([id2rgb(values)], task)[0]
    assert result.segmentation.shape == (50, 100)
    assert [segment.area for segment in result.segments if segment.label_id == 6] == [100]


def test_an_eighth_is_shared_by_default() -> None:
    assert TiledSegmenter(Reader()).overlap == 128
    assert TiledSegmenter(Reader(), 96).overlap == 12


def test_small_pictures_go_through() -> None:
    picture, truth, _ = _scene(0, (100, 120))
    result = TiledSegmenter(Reader(), 128, 20).predict([picture], "panoptic")[0]
    assert result.segmentation.shape == truth.shape
    assert result.image is picture


@pytest.mark.parametrize(("tile", "overlap"), [(100, 51), (100, -1), (0, 0)])
def test_impossible_overlaps(tile, overlap) -> None:
    with pytest.raises(ValueError, match="the overlap must be 0 to half the tile"):
        TiledSegmenter(Reader(), tile, overlap)


def test_pixels_come_from_the_tile_whose_border_is_further_away() -> None:
    class Shaky(Reader):
        """Knows nothing of the ten pixels along the border of what it is shown."""

        def stream(self, images: Iterable, task: str, **options) -> Iterator[Segmentation]:
            for result in super().stream(images, task, **options):
                inner = np.full_like(result.segmentation, 13)
                inner[10:-10, 10:-10] = result.segmentation[10:-10, 10:-10]
                yield replace(result, segmentation=inner)

    picture, truth, segments = _scene(3)
    label = np.array([0, *(segment["category_id"] for segment in segments)])
    result = TiledSegmenter(Shaky(), 100, 20).predict([picture], "semantic")[0]
    assert np.array_equal(result.segmentation[10:-10, 10:-10], label[truth][10:-10, 10:-10])
