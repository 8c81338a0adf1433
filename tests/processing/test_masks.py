"""Masks in their other forms; run lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskformer.processing.masks import (
    decode_run_lengths,
    encode_run_lengths,
    map_from_masks,
    mask_boxes,
    masks_from_map,
    pad_masks,
    present_ids,
)

binary = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under numpy 2
@settings(max_examples=100, deadline=None)
@given(binary)
def test_run_lengths_are_cocos(mask: np.ndarray):
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools comes with the [eval] extra")
    ours = encode_run_lengths(torch.from_numpy(mask))
    compressed = coco.frPyObjects(dict(ours), *mask.shape)
    assert np.array_equal(coco.decode(compressed).astype(bool), mask)
    assert compressed["counts"] == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert torch.equal(decode_run_lengths(ours), torch.from_numpy(mask))


def test_run_lengths_by_hand():
    mask = torch.tensor([[1, 0, 0], [1, 0, 1]])
    assert encode_run_lengths(mask) == {"size": [2, 3], "counts": [0, 2, 3, 1]}
    assert encode_run_lengths(torch.zeros(2, 3)) == {"size": [2, 3], "counts": [6]}


def test_run_lengths_of_the_wrong_number():
    with pytest.raises(ValueError, match="add up to 5 pixels; expected 2 x 3"):
        decode_run_lengths({"size": [2, 3], "counts": [2, 3]})


@settings(max_examples=100, deadline=None)
@given(binary)
def test_boxes_are_cocos(mask: np.ndarray):
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools comes with the [eval] extra")
    box = mask_boxes(torch.from_numpy(mask)[None])[0].tolist()
    assert box == coco.toBbox(coco.encode(np.asfortranarray(mask.astype(np.uint8)))).tolist()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.int64, (5, 7), elements=st.integers(-3, 4)), st.booleans())
def test_maps_and_masks_are_two_forms_of_one_thing(ids: np.ndarray, large: bool):
    label_map = torch.from_numpy(ids) * (2**30 if large else 1)
    values = present_ids(label_map)
    assert values == sorted(set(label_map.flatten().tolist()))
    masks = masks_from_map(label_map, values)
    assert masks.dtype == torch.bool
    assert torch.equal(masks.sum(0), torch.ones(5, 7, dtype=torch.int64))
    if not large:
        assert torch.equal(map_from_masks(masks, values, void=99).long(), label_map)


def test_the_first_mask_wins_and_the_rest_is_void():
    masks = torch.tensor([[[1, 0, 0]], [[1, 1, 0]]])
    assert map_from_masks(masks).tolist() == [[0, 1, -1]]
    assert map_from_masks(masks[:0]).tolist() == [[-1, -1, -1]]


def test_padding_is_zero():
    padded = pad_masks(torch.ones(2, 3, 4, dtype=torch.bool), (5, 6))
    assert padded.shape == (2, 5, 6)
    assert padded.dtype == torch.bool
    assert int(padded.sum()) == 24
    assert masks_from_map(torch.zeros(3, 4, dtype=torch.int64), [0], (5, 6)).sum() == 12
    assert pad_masks(torch.ones(0, 3, 4), (5, 6)).shape == (0, 5, 6)
    assert present_ids(torch.zeros(0, 4, dtype=torch.int64)) == []
