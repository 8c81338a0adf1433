"""Focal and dice loss of matched pairs: definitions, gradients, and the same result however the pairs are grouped."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from maskformer.losses import dice_loss, mask_loss, matched_mask_losses, sigmoid_focal_loss


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    masks = torch.rand(4, 16, 20, generator=generator) > 0.5
    return logits.requires_grad_(), [masks[:3], masks[1:]], [torch.tensor([2, 0]), torch.tensor([2])]


def test_focal_loss_is_its_definition():
    # float64, because the definition itself loses digits in 1 - sigmoid
    logits, targets = 3 * torch.randn(4, 50, dtype=torch.float64), torch.rand(4, 50) > 0.5
    right = torch.where(targets, logits.sigmoid(), 1 - logits.sigmoid())
    alpha = torch.where(targets, 0.25, 0.75)
    expected = (-alpha * (1 - right) ** 2 * right.log()).mean(dim=1)
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets), expected)
    torch.testing.assert_close(sigmoid_focal_loss(logits.float(), targets), expected.float(), rtol=1e-5, atol=0)


def test_dice_loss_is_its_definition():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    targets = torch.tensor([[True, True, False, False]])
    assert dice_loss(logits, targets).item() == pytest.approx(1 - (2 * 1.0 + 1) / (2 + 2 + 1))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    targets = torch.tensor([[True, True, False, False]])
    loss = sigmoid_focal_loss(logits, targets)
    loss.sum().backward()
    assert loss.item() == pytest.approx((0.25 * 1e4 + 0.75 * 1e4) / 4)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, -0.25, 0.75, 0.0]]) / 4)


@pytest.mark.parametrize("masked", [False, True])
def test_pairs_at_the_size_of_the_targets(pairs, masked):
    logits, masks, index = pairs
    valid = torch.rand(2, 16, 20, generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    losses = matched_mask_losses(logits, masks, index, valid)
    full = F.interpolate(logits[None], size=(16, 20), mode="bilinear", align_corners=False)[0]  # [P, H, W]
    for pair, (image, row) in enumerate([(0, 2), (0, 0), (1, 2)]):
        keep = torch.ones(16, 20, dtype=torch.bool) if valid is None else valid[image]
        crops = full[pair, keep][None], masks[image][row, keep][None]  # [1, K]
        for loss, alone in zip(losses, (sigmoid_focal_loss, dice_loss), strict=True):
            torch.testing.assert_close(loss[pair], alone(*crops)[0])


@pytest.mark.parametrize("masked", [False, True])
def test_gradients(pairs, masked):
    logits, masks, index = pairs
    valid = (torch.arange(320).view(16, 20) % 3 > 0).expand(2, -1, -1) if masked else None
    assert torch.autograd.gradcheck(lambda x: matched_mask_losses(x, masks, index, valid), logits)


def test_grouping_changes_nothing(pairs, monkeypatch):
    logits, masks, index = pairs
    results = []
    for pixels in (1, 2 * 16 * 20, 2**21):
        monkeypatch.setattr(mask_loss, "_PIXELS_AT_ONCE", pixels)
        losses = matched_mask_losses(logits, masks, index)
        results.append([*losses, *torch.autograd.grad(sum(losses).sum(), logits)])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_full_size_maps_do_not_wait_for_the_backward_pass(pairs):
    logits, masks, index = pairs
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        matched_mask_losses(logits, masks, index)
    assert not [shape for shape in saved if shape.numel() > 2 * 16 * 20 and shape != masks[0].shape]


def test_no_pair_is_a_connected_zero():
    logits = torch.randn(0, 4, 5, requires_grad=True)
    masks, index = [torch.zeros(0, 16, 20, dtype=torch.bool)], [torch.zeros(0, dtype=torch.long)]
    for loss in matched_mask_losses(logits, masks, index):
        assert loss.shape == (0,)
        assert loss.requires_grad


def test_no_valid_pixel_is_zero(pairs):
    logits, masks, index = pairs
    losses = matched_mask_losses(logits, masks, index, torch.zeros(2, 16, 20, dtype=torch.bool))
    assert torch.stack(losses).tolist() == [[0.0] * 3] * 2
    assert torch.autograd.grad(sum(losses).sum(), logits)[0].count_nonzero() == 0
