"""Upsampling in blocks equals F.interpolate, and its adjoint the gradient of F.interpolate, for every pair of sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from maskformer.kernels import upsampling
from maskformer.kernels.upsampling import CellUpsampling, TileUpsampling, Upsampling, build_upsampling

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def check(up: Upsampling, small: Tensor, size: tuple[int, int]) -> None:
    """Walks over the blocks; by gathering the number of each pixel it needs no knowledge of their order."""
    leaf = small.clone().requires_grad_()
    expected = F.interpolate(leaf[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    upstream = torch.randn(2, *size, dtype=torch.float64)
    wanted = [torch.autograd.grad(expected, leaf, gradient, retain_graph=True)[0] for gradient in upstream]
    numbers = torch.arange(size[0] * size[1]).view(size)
    bits = [(numbers >> bit) % 2 == 1 for bit in range(20)]

    up.load(small)
    seen = torch.zeros(numbers.numel())
    for block in up.blocks:
        number = torch.zeros_like(block.maps[0], dtype=torch.int64)
        for bit, plane in enumerate(bits):
            block.gather(up.lay_out(plane), into=2)
            number += block.maps[2].long() << bit
        block.upsample()
        torch.testing.assert_close(block.maps[0], expected.detach().flatten()[number])
        seen[number] += 1
        block.maps[:2] = upstream.flatten(1)[:, number]
        block.collect()
    assert (seen == 1).all()
    torch.testing.assert_close(up.gradients(), torch.stack(wanted))


@given(small=SIZES, factors=SIZES, pixels=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_cells(small, factors, pixels):
    large = (small[0] * factors[0], small[1] * factors[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsampling, "PIXELS_AT_ONCE", pixels)
        up = CellUpsampling(small, large, 3, 2, torch.float64)
    check(up, torch.randn(small, dtype=torch.float64), large)


@given(small=SIZES, large=st.tuples(st.integers(1, 40), st.integers(1, 40)), tile=SIZES)
@settings(max_examples=40, deadline=None)
def test_tiles(small, large, tile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsampling, "TILE", tile)
        up = TileUpsampling(small, large, 3, 2, torch.float64)
    check(up, torch.randn(small, dtype=torch.float64), large)


def test_nothing_is_left_of_the_last_map():
    for up in (
        CellUpsampling((3, 4), (12, 16), 3, 2, torch.float64),
        TileUpsampling((3, 4), (11, 17), 3, 2, torch.float64),
    ):
        size = (12, 16) if isinstance(up, CellUpsampling) else (11, 17)
        for _ in range(2):
            check(up, torch.randn(3, 4, dtype=torch.float64), size)


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [
        ((128, 128), (512, 512), CellUpsampling),
        ((200, 304), (800, 1216), CellUpsampling),
        ((5, 5), (5, 5), CellUpsampling),
        ((201, 304), (801, 1216), TileUpsampling),
        ((8, 8), (4, 4), TileUpsampling),
        ((1, 1), (512, 512), TileUpsampling),  # a single cell would be the whole map
    ],
)
def test_choice(small, large, expected):
    up = build_upsampling(small, large, 8, 3, torch.float32)
    assert isinstance(up, expected)
    assert max(block.maps.shape[1] for block in up.blocks) <= upsampling.PIXELS_AT_ONCE
