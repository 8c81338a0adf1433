"""Where the loss of transformers is right, ours equals it: values, gradients, matches."""

from __future__ import annotations

import pytest
import torch
from transformers.models.maskformer import modeling_maskformer as peer

TERMS = ["loss_cross_entropy", "loss_mask", "loss_dice"]


@pytest.fixture
def theirs() -> peer.MaskFormerLoss:
    matcher = peer.MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
    weights = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    return peer.MaskFormerLoss(5, matcher, weights, eos_coef=0.1)


@pytest.mark.parametrize("counts", [(1, 1), (3, 4), (6, 2), (0, 3)])
@pytest.mark.parametrize("size", [(24, 32), (18, 27)])
def test_losses_and_gradients(make_batch, make_criterion, theirs, counts, size):
    batch = make_batch(counts, size=size, seed=sum(counts))
    head = make_batch(counts, size=size, seed=1)
    auxiliary = [{"masks_queries_logits": head.masks, "class_queries_logits": head.classes}]
    inputs = (batch.masks, batch.classes, head.masks, head.classes)
    as_floats = [mask.float() for mask in batch.mask_labels]

    expected = theirs(batch.masks, batch.classes, as_floats, batch.class_labels, auxiliary)
    losses = make_criterion()(*batch.arguments, auxiliary)
    assert losses.keys() == expected.keys()
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-7)
        wanted = torch.autograd.grad(
            expected[name], inputs, allow_unused=True, materialize_grads=True, retain_graph=True
        )
        gradients = torch.autograd.grad(
            losses[name], inputs, allow_unused=True, materialize_grads=True, retain_graph=True
        )
        torch.testing.assert_close(gradients, wanted, rtol=1e-5, atol=1e-7)


def test_matches(make_batch, make_criterion, theirs):
    for seed in range(5):
        batch = make_batch((3, 5), seed=seed)
        as_floats = [mask.float() for mask in batch.mask_labels]
        wanted = theirs.matcher(batch.masks, batch.classes, as_floats, batch.class_labels)
        for ours, same in zip(make_criterion().matcher(*batch.arguments), wanted, strict=True):
            assert torch.equal(torch.stack(ours), torch.stack(same))


def test_the_buffer_in_the_files_of_the_peer_has_our_value(make_criterion, theirs):
    criterion = make_criterion()
    loaded = criterion.load_state_dict(theirs.state_dict(), strict=False)
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], ["empty_weight"])
    torch.testing.assert_close(criterion.empty_weight, theirs.empty_weight)


def test_the_same_keyword_arguments(make_batch, make_criterion, theirs):
    batch = make_batch()
    names = ("masks_queries_logits", "class_queries_logits", "mask_labels", "class_labels")
    arguments = dict(zip(names, batch.arguments, strict=True))
    losses = make_criterion()(**arguments, auxiliary_predictions=None)
    as_floats = [mask.float() for mask in batch.mask_labels]
    expected = theirs(**{**arguments, "mask_labels": as_floats}, auxiliary_predictions=None)
    for name in TERMS:
        torch.testing.assert_close(losses[name], expected[name])
