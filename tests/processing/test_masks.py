"""Run lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from maskformer.processing.masks import decode_run_lengths, encode_run_lengths

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
