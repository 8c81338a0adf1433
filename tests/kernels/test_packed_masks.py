"""Packed masks are the masks they were made of, however they are read, and stay packed in the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskformer.data.sample import pack
from maskformer.kernels.mask_loss import mask_losses
from maskformer.kernels.packed_masks import PackedMasks, plane_of


@pytest.fixture(params=["bits", "map", "large map"])
def packed_and_masks(request):
    """11 targets among the regions, one of them empty; the map of more than 255 regions is of int16."""
    places = (0, 3, 7, 8, 9, 15, 16, 2, 21, 20, 12)
    if request.param == "bits":
        regions = torch.rand(22, 19, 26) > 0.6
        regions[9] = False
        planes = torch.from_numpy(pack(list(regions.numpy()), (19, 26)))
        return PackedMasks(planes, places, overlapping=True), regions[list(places)]
    kind, count = (torch.uint8, 23) if request.param == "map" else (torch.int16, 400)
    places = places if request.param == "map" else tuple(15 * place for place in places)
    planes = torch.randint(count, (1, 19, 26)).to(kind)
    return PackedMasks(planes, places, False), torch.stack([planes[0] == place + 1 for place in places])


def test_reading(packed_and_masks):
    packed, masks = packed_and_masks
    assert packed.shape == tuple(masks.shape)
    assert len(packed) == 11
    rows = torch.tensor([4, 0, 10, 0])
    for actual, expected in [
        (packed.unpack(), masks),
        (packed[rows], masks[rows]),
        (packed[rows[:0]], masks[:0]),
        (packed.with_planes(packed.planes[:, ::2]).unpack(), masks[:, ::2]),
    ]:
        assert actual.dtype == torch.bool
        assert torch.equal(actual, expected)
    for either in (packed, masks):
        for row in range(11):
            plane, bits, value = plane_of(either, row)
            assert np.array_equal(plane.numpy() & bits == value, masks[row].numpy())


@pytest.mark.usefixtures("implementation")
def test_losses_of_packed_masks(packed_and_masks):
    packed, masks = packed_and_masks
    logits, rows, valid = torch.randn(4, 5, 7), torch.tensor([4, 0, 10, 2]), torch.rand(1, 19, 26) > 0.2
    for of_packed, of_masks in zip(
        mask_losses(logits, [packed], [rows], valid), mask_losses(logits, [masks], [rows], valid), strict=True
    ):
        assert torch.equal(of_packed, of_masks)
