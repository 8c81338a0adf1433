"""Overlays: the colours are where the map says, the legend is complete and legible, the COCO colour code is exact."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ImageFont
from transformers.image_transforms import rgb_to_id

from maskformer.data.scenes import CLASSES, LABELS, draw_scene
from maskformer.visualization import _Cells, _Entry, id2rgb, label_colors, overlay


def _segment(number, label_id, label="thing", score=0.5):
    return SimpleNamespace(id=number, label_id=label_id, label=label, score=score, area=0, bbox=None)


def _halves(height=40, width=60, left=1, right=2):
    segmentation = np.full((height, width), left, np.int32)
    segmentation[:, width // 2 :] = right
    return np.full((height, width, 3), 100, np.uint8), segmentation


def test_colours_are_distinct_and_do_not_depend_on_their_number():
    colors = label_colors(40)
    assert colors.dtype == np.uint8
    assert np.array_equal(label_colors(12), colors[:12])
    gaps = np.abs(colors[:, None].astype(int) - colors[None]).sum(axis=-1)
    assert gaps[~np.eye(40, dtype=bool)].min() > 30
    neighbours = np.abs(np.diff(colors.astype(int), axis=0)).sum(axis=1)
    assert neighbours.min() > 150
    assert len(np.unique(label_colors(200), axis=0)) == 200
    assert label_colors(0).shape == (0, 3)


def test_every_pixel_of_a_segment_is_blended_with_its_colour():
    image, segmentation = _halves()
    drawn = np.asarray(overlay(image, segmentation, [_segment(1, 3), _segment(2, 5)], alpha=0.5, legend=False))
    colors = label_colors(6)
    assert drawn.shape == image.shape
    for columns, label_id in ((slice(0, 29), 3), (slice(31, 60), 5)):
        assert np.abs(drawn[:, columns] - (100 + colors[label_id].astype(float)) / 2).max() <= 1
    assert np.array_equal(drawn[:, 29], np.tile((colors[3] * 0.55).astype(np.uint8), (40, 1)))  # crisp, one pixel each
    assert np.array_equal(drawn[:, 30], np.tile((colors[5] * 0.55).astype(np.uint8), (40, 1)))


def test_colors_may_be_the_rows_of_an_array():
    image, segmentation = _halves()
    segments, palette = [_segment(1, 3), _segment(2, 3)], label_colors(8)[::-1]
    drawn = overlay(image, segmentation, segments, colors=dict(enumerate(palette)))
    same = overlay(image, segmentation, segments, colors={3: tuple(palette[3].tolist())})
    assert drawn.tobytes() == same.tobytes()


def test_borders_are_drawn_alike_in_both_directions():
    image, segmentation = _halves()
    segments = [_segment(1, 3), _segment(2, 5)]
    across = np.asarray(overlay(image, segmentation, segments, legend=False))
    down = np.asarray(overlay(image.swapaxes(0, 1).copy(), segmentation.T, segments, legend=False))
    assert np.array_equal(down, across.swapaxes(0, 1))


def test_ids_may_come_in_any_order_and_be_large():
    image, segmentation = _halves(left=900_000, right=7)
    segments = [_segment(900_000, 2), _segment(5, 0), _segment(7, 1)]
    drawn = np.asarray(overlay(image, segmentation, segments, alpha=1.0, legend=False))
    assert np.array_equal(drawn[5, 5], label_colors(3)[2])
    assert np.array_equal(drawn[5, 55], label_colors(3)[1])


@pytest.mark.parametrize("void", [0, -1, 77])
def test_pixels_of_no_segment_stay_as_they_are(void):
    image, segmentation = _halves(right=void)
    drawn = np.asarray(overlay(image, segmentation, [_segment(1, 0)], legend=False))
    assert np.array_equal(drawn[:, 30:], image[:, 30:])
    assert not np.array_equal(drawn[:, :30], image[:, :30])
    empty = overlay(image, np.full_like(segmentation, void), [])
    assert np.array_equal(np.asarray(empty), image)


def test_semantic_maps_need_no_segments():
    image, segmentation = _halves(left=0, right=255)
    drawn = overlay(image, segmentation, id2label={0: "grass"}, alpha=1.0)
    assert drawn.width > 60
    assert np.array_equal(np.asarray(drawn)[10, 10], label_colors(1)[0])
    assert np.array_equal(np.asarray(drawn)[10, 50], image[10, 50])
    named = overlay(image, segmentation, id2label={255: "sky"}, alpha=1.0, legend=False)  # one of 847 classes
    assert np.array_equal(np.asarray(named)[10, 50], label_colors(256)[255])


def test_instances_of_a_class_are_shades_and_dicts_are_read_too():
    image, segmentation = _halves()
    segments = [{"id": 1, "label_id": 4, "score": 0.9}, {"id": 2, "label_id": 4}]
    drawn = np.asarray(overlay(image, segmentation, segments, alpha=1.0, legend=False)).astype(int)
    one, two = drawn[5, 5], drawn[5, 55]
    assert 0 < np.abs(one - two).sum() < 150
    assert np.array_equal(one, label_colors(5)[4])


def test_given_colours_are_used_and_appear_in_the_legend():
    scene = draw_scene(2)
    segments = [_segment(s["id"], s["category_id"], LABELS[s["category_id"]], 0.9) for s in scene.segments]
    colors = {number: entry.color for number, entry in enumerate(CLASSES)}
    sheet = np.asarray(overlay(scene.image, scene.segmentation, segments, colors=colors))
    legend = sheet[:, scene.image.shape[1] :].reshape(-1, 3)
    for label_id in {s["category_id"] for s in scene.segments}:
        assert (legend == colors[label_id]).all(axis=1).sum() >= 100  # a patch of at least 12 x 12 pixels, exactly


@pytest.mark.parametrize("size", [(192, 192), (96, 400), (1500, 1000), (1000, 4000)])
def test_the_legend_has_a_patch_per_segment_at_every_size(size):
    rows = np.arange(size[0])[:, None] * 30 // size[0] + 1
    segmentation = np.broadcast_to(rows, size).astype(np.int32)
    segments = [_segment(number, number, f"label {number}") for number in range(1, 31)]
    sheet = np.asarray(overlay(np.zeros((*size, 3), np.uint8), segmentation, segments))
    assert (sheet[: size[0], : size[1]].max(axis=(0, 1)) > 0).all()
    legend = sheet.copy()
    legend[: size[0], : size[1]] = 255
    code = legend.astype(np.int64) @ (1, 256, 65536)
    counts = dict(zip(*np.unique(code, return_counts=True), strict=True))
    least = (min(size) / 40) ** 2 if min(size) > 400 else 110
    for color in label_colors(31)[1:].astype(np.int64) @ (1, 256, 65536):
        assert counts.get(color, 0) > least


def test_long_labels_are_cut_and_foreign_letters_spelled():
    font = ImageFont.load_default(size=20)
    cells = _Cells(font, [_Entry(0, "x" * 200, None, 0.5, (0, 0, 0))])
    cut = cells.shorten("a very long name of a class that no legend could ever hold in one line")
    assert cut.startswith("a very long")
    assert cut.endswith("…")
    assert font.getlength(cut) <= cells.label_width
    assert cells.shorten("tree") == "tree"
    spelled = cells.shorten("Café Åre 木")
    assert spelled in {"Cafe Are ?", "Café Åre ?", "Café Åre 木"}  # as many of the letters as the font has
    tofu = font.getmask("\uffff").getbbox()
    assert all(letter.isascii() or font.getmask(letter).getbbox() != tofu for letter in spelled)


def test_wrong_input_is_told():
    image, segmentation = _halves()
    with pytest.raises(ValueError, match=r"shape \(40, 30\).*height 40 and width 60"):
        overlay(image, segmentation[:, :30], [])
    with pytest.raises(ValueError, match=r"alpha=1.5"):
        overlay(image, segmentation, [], alpha=1.5)
    with pytest.raises(ValueError, match=r"float64, expected uint8"):
        overlay(image / 255, segmentation, [])


def test_the_coco_colour_code():
    ids = np.array([[0, 1, 255, 256], [65535, 65536, (1 << 24) - 1, 123456]])
    rgb = id2rgb(ids)
    assert rgb[1, 3].tolist() == [123456 % 256, 123456 // 256 % 256, 123456 // 65536]
    assert rgb.dtype == np.uint8
    assert np.array_equal(rgb_to_id(rgb), ids)
    for wrong in (-1, 1 << 24):
        with pytest.raises(ValueError, match="id2rgb got ids"):
            id2rgb(np.full((2, 2), wrong))
