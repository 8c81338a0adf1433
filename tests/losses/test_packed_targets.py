"""Packed targets give the losses of the masks they stand for, without all of these existing at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from maskformer.data.sample import pack
from maskformer.kernels.packed_masks import PackedMasks
from maskformer.losses import MaskFormerHungarianMatcher, matched_mask_losses


def packed(masks):
    planes = torch.from_numpy(pack(list(masks.numpy()), tuple(masks.shape[1:])))
    return PackedMasks(planes, tuple(range(len(masks))), overlapping=True)


@pytest.mark.parametrize("with_valid", [False, True])
def test_same_losses_and_gradients(make_batch, make_criterion, with_valid):
    batch, criterion = make_batch((10, 3, 0), num_queries=12), make_criterion()
    batch.mask_labels[1] = batch.mask_labels[1][:, :17, :29]  # is padded
    valid = torch.rand(3, 24, 32) > 0.2 if with_valid else None
    heads = [{"masks_queries_logits": -batch.masks, "class_queries_logits": batch.classes}]
    found = []
    for masks in (batch.mask_labels, [packed(own) for own in batch.mask_labels]):
        losses = criterion(batch.masks, batch.classes, masks, batch.class_labels, heads, valid_mask=valid)
        found.append((losses, torch.autograd.grad(sum(losses.values()), batch.masks)[0]))
    (expected, gradient), (actual, actual_gradient) = found
    assert all(torch.equal(actual[name], loss) for name, loss in expected.items())
    assert torch.equal(actual_gradient, gradient)


def test_an_own_matcher_gets_bool_masks(make_batch, make_criterion):
    class Own(MaskFormerHungarianMatcher):
        def forward(self, masks_queries_logits, class_queries_logits, mask_labels, class_labels):
            assert all(masks.dtype == torch.bool for masks in mask_labels)
            return super().forward(masks_queries_logits, class_queries_logits, mask_labels, class_labels)

    batch, criterion = make_batch(), make_criterion()
    expected = criterion(*batch.arguments)
    criterion.matcher = Own(1.0, 20.0, 1.0)
    masks = [packed(own) for own in batch.mask_labels]
    losses = criterion(batch.masks, batch.classes, masks, batch.class_labels)
    assert all(torch.equal(losses[name], loss) for name, loss in expected.items())


def test_plain_losses(make_batch):
    masks = make_batch((5,)).mask_labels
    logits, rows = torch.randn(3, 6, 8), [torch.tensor([4, 0, 2])]
    for actual, expected in zip(
        matched_mask_losses(logits, [packed(masks[0])], rows), matched_mask_losses(logits, masks, rows), strict=True
    ):
        assert torch.equal(actual, expected)


def test_wrong_number_of_packed_masks(make_batch, make_criterion):
    batch = make_batch((2, 3))
    masks = [packed(own) for own in batch.mask_labels][::-1]
    with pytest.raises(ValueError, match="Image 0 has 3 masks in mask_labels but 2 labels"):
        make_criterion()(batch.masks, batch.classes, masks, batch.class_labels)


MEMORY = """
import re, warnings
from pathlib import Path
import torch
from maskformer.kernels.packed_masks import PackedMasks
from maskformer.losses import MaskFormerHungarianMatcher, MaskFormerLoss
warnings.simplefilter("ignore")  # there are more targets than queries
criterion = MaskFormerLoss(3, MaskFormerHungarianMatcher(1.0, 20.0, 1.0), {}, 0.1)
def run(count, height, width):
    planes = torch.randint(256, (count // 8, height, width), dtype=torch.uint8)
    masks = torch.randn(1, 10, height // 4, width // 4, requires_grad=True)
    classes, labels = torch.randn(1, 10, 4), torch.zeros(count, dtype=torch.int64)
    before = read("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from now
    losses = criterion(masks, classes, [PackedMasks(planes, tuple(range(count)), True)], [labels])
    sum(losses.values()).backward()
    return read("VmHWM") - before
def read(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
run(8, 32, 32)
print(run(200, 800, 1333))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    # 13 MB of targets at stride 4 and 15 MB of gradients and copies of logits; unpacked, the targets are 213 MB
    assert 10 < float(done.stdout) < 70
