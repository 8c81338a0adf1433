"""Where the loss of transformers (5.23.0) is wrong: its result beside ours.

A test here that fails in its first half says that the peer was mended and the table of differences needs a new look.
"""

from __future__ import annotations

import math
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import MaskFormerImageProcessor
from transformers.models.maskformer import modeling_maskformer as peer


@pytest.fixture
def theirs() -> peer.MaskFormerLoss:
    return peer.MaskFormerLoss(5, peer.MaskFormerHungarianMatcher(1.0, 20.0, 1.0), {}, eos_coef=0.1)


def _as_floats(masks: list[torch.Tensor]) -> list[torch.Tensor]:
    return [mask.float() for mask in masks]


@pytest.fixture
def padded_by_the_peer() -> dict:
    """Two label maps of different sizes through the processor of transformers."""
    processor = MaskFormerImageProcessor(do_resize=False, size_divisor=0, ignore_index=255)
    maps = [np.zeros((16, 24), dtype=np.uint8), np.ones((24, 16), dtype=np.uint8)]
    maps[0][:4], maps[1][:4] = 2, 2
    images = [np.zeros((*labels.shape, 3), dtype=np.uint8) for labels in maps]
    return processor(images, maps, return_tensors="pt")


def test_row_2_targets_padded_with_255(theirs, make_criterion, make_batch, padded_by_the_peer):
    batch = make_batch((2, 2), size=(24, 24))
    masks, labels = padded_by_the_peer["mask_labels"], padded_by_the_peer["class_labels"]
    assert max(mask.max().item() for mask in masks) == 255
    no_mask = -batch.masks.abs()  # what a network learns to say about padding
    assert theirs(no_mask, batch.classes, masks, labels)["loss_mask"] < -1e6

    with pytest.raises(ValueError, match=r"image 0 holds the value 255, expected only 0 and 1 \(pad masks with 0"):
        make_criterion()(batch.masks, batch.classes, masks, labels)
    unpadded = [masks[0][:, :16, :24], masks[1][:, :24, :16]]
    assert 0 < make_criterion()(no_mask, batch.classes, unpadded, labels)["loss_mask"] < 10


def test_row_2_smaller_targets_are_stretched_in_the_matcher(theirs, make_criterion):
    """A target in the right half of an image of half the width: in the batch it is the second quarter."""
    masks = torch.full((2, 2, 8, 8), -6.0)
    masks[:, 0, :, 2:4] = 6.0  # where it is
    masks[:, 1, :, 4:] = 6.0  # where it comes to lie when the image is stretched over the padding
    large, small = torch.zeros(1, 32, 32, dtype=torch.bool), torch.zeros(1, 32, 16, dtype=torch.bool)
    large[:, :, 16:], small[:, :, 8:] = True, True
    arguments = (masks, torch.zeros(2, 2, 6), [large, small], [torch.tensor([0])] * 2)
    wrong = theirs.matcher(*arguments[:2], _as_floats(arguments[2]), arguments[3])
    assert wrong[1][0].item() == 1
    assert make_criterion().matcher(*arguments)[1][0].item() == 0


def test_row_4_cross_entropy_of_two_ranks_differs_from_one(theirs, make_criterion, make_batch):
    """The mean over ranks of per-rank cross entropies is not that of the batch; sums over shared numbers are."""
    batch, criterion = make_batch((5, 0)), make_criterion()
    masks = _as_floats(batch.mask_labels)
    batch.classes.data[:, :, -1] += 4.0  # a network that says "no object" everywhere: wrong on one image, right on one
    name = "loss_cross_entropy"
    ranks = [slice(0, 1), slice(1, 2)]
    whole = theirs(batch.masks, batch.classes, masks, batch.class_labels)[name].item()
    means = [theirs(batch.masks[r], batch.classes[r], masks[r], batch.class_labels[r])[name].item() for r in ranks]
    assert abs(sum(means) / 2 - whole) > 0.05 * whole

    numbers = criterion.compute_normalizer(batch.class_labels, num_queries=6)
    parts = [criterion(*(values[r] for values in batch.arguments), normalizer=numbers)[name].item() for r in ranks]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_row_4_the_number_of_masks_ignores_the_other_processes(theirs, make_criterion, make_batch):
    """Under plain torchrun, without Accelerate: eight targets here, none on the other of two processes."""
    batch = make_batch((4, 4))

    def no_other_targets(tensor: torch.Tensor, op: object = None) -> None:
        """The sum over two processes when the other one adds zeros: unchanged."""

    with (
        mock.patch("torch.distributed.is_initialized", return_value=True),
        mock.patch("torch.distributed.get_world_size", return_value=2),
        mock.patch("torch.distributed.all_reduce", side_effect=no_other_targets) as all_reduce,
    ):
        assert theirs.get_num_masks(batch.class_labels, device=torch.device("cpu")).item() == 8
        all_reduce.assert_not_called()
        assert make_criterion().compute_normalizer(batch.class_labels, num_queries=6).num_masks.item() == 4
        all_reduce.assert_called_once()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_row_10_half_precision_crashes(theirs, make_criterion, make_batch, dtype):
    batch = make_batch(dtype=dtype)
    with pytest.raises((RuntimeError, TypeError)):
        theirs(batch.masks, batch.classes, _as_floats(batch.mask_labels), batch.class_labels)
    assert all(loss.isfinite() for loss in make_criterion()(*batch.arguments).values())


def test_row_10_not_a_number_in_silence(theirs, make_criterion, make_batch):
    batch = make_batch()
    batch.masks.data[1] = math.nan
    silent = theirs(batch.masks, batch.classes, _as_floats(batch.mask_labels), batch.class_labels)
    assert silent["loss_mask"].isnan()
    with pytest.raises(FloatingPointError, match=r"masks_queries_logits of the final head is non-finite .* image 1"):
        make_criterion()(*batch.arguments)


def test_row_11_more_targets_than_queries_in_silence(theirs, make_criterion, make_batch):
    batch = make_batch((15,), num_queries=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs(batch.masks, batch.classes, _as_floats(batch.mask_labels), batch.class_labels)
    with pytest.warns(UserWarning, match="15 targets .* 10 queries"):
        make_criterion()(*batch.arguments)


def test_row_11_label_out_of_range(theirs, make_criterion, make_batch):
    batch = make_batch()
    batch.class_labels[1][0] = 77
    with pytest.raises(IndexError) as bare:
        theirs(batch.masks, batch.classes, _as_floats(batch.mask_labels), batch.class_labels)
    assert "image 1" not in str(bare.value)
    with pytest.raises(ValueError, match=r"image 1 holds label 77, .* 0\.\.4 "):
        make_criterion()(*batch.arguments)
