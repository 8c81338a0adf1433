"""Sizes, resizing, normalising and padding, against transformers and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import MaskFormerImageProcessorPil as Peer
from transformers.image_transforms import get_size_with_aspect_ratio

from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.processing.preprocessing import padded_size, resize_image, resize_labels, resized_size
from maskformer.processing.settings import ProcessorSettings

edge = st.integers(1, 5000)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@settings(max_examples=300, deadline=None)
@example(10, 101, 10, 100, 0)  # the shorter edge rounds to what it was: the image stays, a pixel too long
@given(edge, edge, st.integers(1, 1500), st.integers(1, 2500), st.sampled_from([0, 1, 32]))
def test_new_sizes_are_the_peers(height: int, width: int, shortest: int, longest: int, divisor: int):
    ours = resized_size(height, width, {"shortest_edge": shortest, "longest_edge": longest}, divisor)
    theirs = get_size_with_aspect_ratio((height, width), shortest, longest)
    theirs = tuple(max(1, value) for value in theirs)  # where a thin image would vanish, ours keeps one pixel
    assert ours == (theirs if divisor < 2 else tuple(-(-value // divisor) * divisor for value in theirs))


def test_new_sizes_of_the_other_kinds():
    assert resized_size(100, 200, {"height": 33, "width": 44}) == (33, 44)
    assert resized_size(100, 200, {"height": 33, "width": 44}, 32) == (64, 64)
    assert resized_size(100, 200, {"max_height": 50, "max_width": 50}) == (25, 50)
    assert resized_size(100, 200, {"max_height": 200, "max_width": 500}) == (200, 400)
    assert resized_size(100, 200, {"shortest_edge": 50}) == (50, 100)
    assert resized_size(1, 5000, {"shortest_edge": 800, "longest_edge": 1333}, 32) == (32, 1344)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400), st.integers(1, 400))
def test_labels_take_exactly_the_pixels_pillow_takes(height: int, width: int, new_height: int, new_width: int):
    ids = np.arange(height * width, dtype=np.int32).reshape(height, width)
    reference = np.array(Image.fromarray(ids).resize((new_width, new_height), Image.Resampling.NEAREST))
    assert np.array_equal(resize_labels(torch.from_numpy(ids), (new_height, new_width)).numpy(), reference)


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_are_resized_as_pillow_does(resample: int, channels: int):
    array = picture(61, 83, channels)
    image = torch.from_numpy(array).permute(2, 0, 1)
    for size in ((40, 50), (100, 120), (61, 40)):
        ours = resize_image(image, size, resample)
        reference = np.stack([np.array(Image.fromarray(plane).resize(size[::-1], resample)) for plane in image.numpy()])
        assert ours.dtype == torch.uint8
        assert int(np.abs(ours.numpy().astype(int) - reference).max()) <= (1 if resample == 2 else 0)


@pytest.mark.parametrize("resample", [0, 2, 3])
def test_float_images_are_resized_without_rounding(resample: int):
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    ours = resize_image(image, (30, 35), resample)
    reference = np.stack([np.array(Image.fromarray(plane).resize((35, 30), resample)) for plane in image.numpy()])
    assert ours.dtype == torch.float32
    assert float((ours - torch.from_numpy(reference)).abs().max()) < 1e-5


@pytest.mark.parametrize("size", [(9, 1), (1, 1), (1, 9), (2, 2)])
def test_one_column_is_resized_as_pillow_does(size: tuple[int, int]):
    image = picture(40, 5)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    levels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    for ours in (resize_image(levels, size), resize_image(levels.float(), size)):
        assert float(np.abs(ours.numpy().transpose(1, 2, 0) - expected).max()) <= 1.01


@settings(max_examples=12, deadline=None)
@given(st.integers(20, 260), st.integers(20, 260), st.sampled_from([0, 32]))
def test_the_default_path_equals_the_peer(height: int, width: int, divisor: int):
    options = {"size": {"shortest_edge": 80, "longest_edge": 133}, "size_divisor": divisor, "ignore_index": 255}
    image = picture(height, width, seed=height)
    label_map = (np.add.outer(np.arange(height) // 9, np.arange(width) // 7) % 11).astype(np.uint8)
    ours = MaskFormerImageProcessor(**options)(image, label_map, return_tensors="pt")
    theirs = Peer(**options)(image, segmentation_maps=label_map, return_tensors="pt")
    assert ours["pixel_values"].shape == theirs["pixel_values"].shape
    assert ours["pixel_values"].dtype == torch.float32
    level = 1 / 255 / 0.224  # one of 255 levels, after normalisation
    difference = (ours["pixel_values"] - theirs["pixel_values"]).abs()
    # Both round to whole levels after each axis; where both roundings fall apart a pixel is two levels off.
    assert float(difference.max()) < 2 * level * 1.03
    assert float((difference > level * 1.03).float().mean()) < 1e-3
    assert torch.equal(ours["pixel_mask"], theirs["pixel_mask"])
    assert torch.equal(ours["class_labels"][0], theirs["class_labels"][0])
    assert torch.equal(ours["mask_labels"][0].float(), theirs["mask_labels"][0])


def test_the_published_size_equals_the_peer():
    images = [picture(240, 320, seed=1)]
    ours = MaskFormerImageProcessor()(images, return_tensors="pt")
    theirs = Peer()(images, return_tensors="pt")
    assert ours["pixel_values"].shape == theirs["pixel_values"].shape
    assert torch.equal(ours["pixel_mask"], theirs["pixel_mask"])
    difference = (ours["pixel_values"] - theirs["pixel_values"]).abs()
    assert float(difference.max()) < 1.03 / 255 / 0.224
    assert float(difference.mean()) < 0.2 / 255 / 0.224


@pytest.mark.parametrize("options", [{"do_rescale": False}, {"do_normalize": False}, {"rescale_factor": 0.01}])
def test_single_steps_equal_the_peer(options):
    images = [picture(30, 40), picture(50, 20)]
    ours = MaskFormerImageProcessor(do_resize=False, **options)(images, return_tensors="pt")
    theirs = Peer(do_resize=False, **options)(images, return_tensors="pt")
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"].float())


def test_padding_is_zero_and_marked():
    batch = MaskFormerImageProcessor(do_resize=False)([picture(30, 40), picture(50, 20)], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 50, 40)
    assert batch["pixel_mask"].dtype == torch.int64
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [30 * 40, 50 * 20]
    assert bool((batch["pixel_values"][batch["pixel_mask"][:, None].expand(-1, 3, -1, -1) == 0] == 0).all())


def test_sizes_to_pad_to():
    sizes = [(30, 40), (50, 20)]
    assert padded_size(sizes, ProcessorSettings()) == (50, 40)
    assert padded_size(sizes, ProcessorSettings(pad_size_divisor=32)) == (64, 64)
    assert padded_size(sizes, ProcessorSettings(pad_size={"height": 60, "width": 70})) == (60, 70)
    assert padded_size([(30, 40)] * 2, ProcessorSettings(do_pad=False, pad_size_divisor=32)) == (30, 40)
    with pytest.raises(ValueError, match=r"pad_size \(40, 70\) is smaller"):
        padded_size(sizes, ProcessorSettings(pad_size={"height": 40, "width": 70}))
    with pytest.raises(ValueError, match="do_pad=True"):
        padded_size(sizes, ProcessorSettings(do_pad=False))


def test_grey_images_fill_all_channels():
    grey = picture(20, 30, 1)
    options = {"do_resize": False, "return_tensors": "pt"}
    as_grey = MaskFormerImageProcessor()(grey[..., 0], **options)["pixel_values"]
    as_colour = MaskFormerImageProcessor()(grey.repeat(3, axis=2), **options)["pixel_values"]
    assert torch.equal(as_grey, as_colour)


def test_floats_are_rescaled_like_everything_else_with_a_warning():
    image = picture(20, 30)
    processor = MaskFormerImageProcessor(do_resize=False)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    as_levels = processor(image.astype(np.float32), return_tensors="pt")["pixel_values"]
    as_unit = processor(image.astype(np.float32) / 255, do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(as_levels, expected)
    torch.testing.assert_close(as_unit, expected, atol=1e-5, rtol=1e-5)
    with pytest.warns(UserWarning, match="do_rescale=False"):
        processor(image.astype(np.float32) / 255, return_tensors="pt")
