"""Where an image lies in the maps, and resizing from there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from maskformer.processing.placement import Placement, placements, strongest_plane


def maps(height: int, width: int, planes: int = 3) -> torch.Tensor:
    return torch.rand(planes, height, width, generator=torch.Generator().manual_seed(height))


def resized(place: Placement, planes: torch.Tensor) -> torch.Tensor:
    planes, resize = place.window(planes)
    return resize.plain(planes)


def pixel_mask(padded: tuple[int, int], *valid: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(len(valid), *padded, dtype=torch.int64)
    for one, (height, width) in zip(mask, valid, strict=True):
        one[:height, :width] = 1
    return mask


def test_whole_cells_are_an_ordinary_crop_and_resize():
    expected = F.interpolate(maps(16, 16)[None, :, :10, :13], size=(80, 33), mode="bilinear")[0]
    assert torch.equal(resized(Placement((64, 64), (40, 52), (80, 33)), maps(16, 16)), expected)
    assert torch.equal(resized(Placement((64, 64), (40, 52), (10, 13)), maps(16, 16)), maps(16, 16)[:, :10, :13])


@settings(max_examples=100, deadline=None)
@example(45, 1, 12, 1)  # lengths that stay the same, where torch's kernels ignore the scale
@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 90), st.integers(1, 90))
def test_a_fractional_window_follows_the_picture(height: int, width: int, new_height: int, new_width: int):
    """A ramp over the input keeps its value at every place of the picture, whatever the valid size."""
    place = Placement((64, 64), (height, width), (new_height, new_width))
    centres = torch.arange(16) * 4 + 2.0  # what the cells show, in input pixels
    ramp = torch.stack((centres[:, None].expand(16, 16), centres[None].expand(16, 16)))
    result = resized(place, ramp)
    rows, columns = place.crop(ramp).shape[-2:]
    for axis, (valid, size, cells) in enumerate(((height, new_height, rows), (width, new_width, columns))):
        where = (torch.arange(size) + 0.5) * valid / size
        expected = where.clamp(2, 4 * cells - 2)  # held at the first and last cell with image
        found = result[0][:, 0] if axis == 0 else result[1][0]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_a_fractional_window_never_shows_padding():
    planes = torch.zeros(1, 16, 16)
    planes[:, 10:] = 1  # only padding lies there: 38 rows are ten cells
    assert float(resized(Placement((64, 64), (38, 64), (99, 64)), planes).max()) == 0


def test_the_authors_order():
    place, same = Placement((64, 64), (38, 50), (70, 90)), Placement((64, 64), (38, 50), (38, 50))
    up = F.interpolate(maps(16, 16)[None], size=(64, 64), mode="bilinear")
    expected = F.interpolate(up[..., :38, :50], size=(70, 90), mode="bilinear")[0]
    assert torch.equal(place.from_input(place.to_input(maps(16, 16))), expected)
    assert torch.equal(same.from_input(same.to_input(maps(16, 16))), up[0, :, :38, :50])


def test_nearest_cells():
    expected = F.interpolate(maps(16, 16)[None, :, :10, :13], size=(80, 33), mode="nearest")[0]
    assert torch.equal(Placement((64, 64), (40, 52), (80, 33)).resize_nearest(maps(16, 16)), expected)
    whole = Placement((64, 64), (40, 52), (10, 13)).resize_nearest(maps(16, 16))
    assert torch.equal(whole, maps(16, 16)[:, :10, :13])
    assert Placement((64, 64), (38, 50), (76, 100)).resize_nearest(maps(16, 16)).shape == (3, 76, 100)


def test_reading_the_pixel_mask():
    logits = torch.zeros(2, 5, 16, 16)

    def found(mask, batch: int = 2) -> list[Placement]:
        return placements(logits[:batch], [(9, 9)] * batch, mask, "transformers")

    assert found(None) == [Placement((64, 64), (64, 64), (9, 9))] * 2
    two = pixel_mask((64, 64), (38, 64), (64, 1))
    assert found(two) == [Placement((64, 64), (38, 64), (9, 9)), Placement((64, 64), (64, 1), (9, 9))]
    assert found(two.numpy()) == found(two)
    assert found(pixel_mask((61, 64), (61, 60)), 1) == [Placement((61, 64), (61, 60), (9, 9))]
    assert found(pixel_mask((32, 31), (20, 20)), 1)[0].stride == 2


def test_without_target_sizes_the_result_is_the_cells_or_the_input():
    logits, mask = torch.zeros(1, 5, 16, 16), pixel_mask((64, 64), (38, 64))
    assert placements(logits, None, mask, "transformers") == [Placement((64, 64), (40, 64), (10, 16))]
    assert placements(logits, None, mask, "paper") == [Placement((64, 64), (38, 64), (38, 64))]
    assert placements(logits, None, None, "transformers") == [Placement((64, 64), (64, 64), (16, 16))]


def test_bad_pixel_masks():
    logits = torch.zeros(1, 5, 16, 16)
    with pytest.raises(ValueError, match=r"shape \(2, 64, 64\); expected \[1, H, W\]"):
        placements(logits, None, pixel_mask((64, 64), (1, 1), (1, 1)), "paper")
    with pytest.raises(ValueError, match="does not belong to mask logits of 16 x 16; expected about 64 x 64"):
        placements(logits, None, pixel_mask((128, 64), (64, 64)), "paper")
    moved = pixel_mask((64, 64), (8, 8))
    moved[0, 7, 7:9] = torch.tensor([0, 1])
    for mask in (torch.zeros(1, 64, 64), pixel_mask((64, 64), (8, 8)).flip(1), torch.eye(64)[None], moved):
        with pytest.raises(ValueError, match="rectangle at the top left"):
            placements(logits, None, mask, "paper")


def test_target_sizes():
    logits = torch.zeros(2, 5, 16, 16)
    for given_sizes in ([(3, 4), (5, 6)], torch.tensor([[3, 4], [5, 6]]), [[3, np.int64(4)], [torch.tensor(5.0), 6]]):
        found = placements(logits, given_sizes, None, "transformers")
        assert [place.target for place in found] == [(3, 4), (5, 6)]
    with pytest.raises(ValueError, match="1 entries for 2 images"):
        placements(logits, [(3, 4)], None, "transformers")
    for wrong in ((0, 4), (3,), (3, 4, 5), 3, torch.tensor(3)):  # the last two: one pair for two images
        with pytest.raises(ValueError, match=r"expected \(height, width\)"):
            placements(logits, [wrong, wrong], None, "transformers")


@pytest.mark.parametrize("group", [1, 2, 7])
def test_the_strongest_plane_is_the_first_argmax(group: int):
    planes = torch.randint(0, 4, (7, 30, 40), generator=torch.Generator().manual_seed(0)).float()
    kept = planes.clone()
    assert torch.equal(strongest_plane(planes.split(group)), planes.argmax(0))
    assert torch.equal(planes, kept)
