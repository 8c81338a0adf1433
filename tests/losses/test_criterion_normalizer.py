"""The normalizer: its two numbers, and micro-batches that add up to the whole batch."""

from __future__ import annotations

import pytest
import torch

from maskformer.losses import LossNormalizer

TERMS = ["loss_cross_entropy", "loss_mask", "loss_dice"]
WEIGHTS = [0.5, 1.0, 2.0, 3.0, 0.25]


def test_numbers_from_targets(make_criterion):
    criterion = make_criterion(class_weights=WEIGHTS)
    labels = [torch.tensor([2, 3]), torch.tensor([], dtype=torch.long), torch.tensor([0, 1, 2, 3, 4, 4])]
    numbers = criterion.compute_normalizer(labels, num_queries=4)
    assert numbers.num_masks.ndim == numbers.class_weight.ndim == 0
    assert numbers.num_masks.item() == 8
    more_than_queries = 4 * (0.5 + 1 + 2 + 3 + 0.25 + 0.25) / 6
    assert numbers.class_weight.item() == pytest.approx((2 + 3 + 2 * 0.1) + 4 * 0.1 + more_than_queries)


def test_labels_are_checked(make_criterion):
    with pytest.raises(ValueError, match="image 0 holds label 5"):
        make_criterion().compute_normalizer([torch.tensor([5])], num_queries=4)


@pytest.mark.parametrize("counts", [(2, 3), (1, 0)])
def test_the_default_is_the_normalizer_of_the_batch(make_batch, make_criterion, counts):
    batch, criterion = make_batch(counts), make_criterion(class_weights=WEIGHTS)
    explicit = criterion.compute_normalizer(batch.class_labels, num_queries=6)
    default, given = criterion(*batch.arguments), criterion(*batch.arguments, normalizer=explicit)
    for name in TERMS:
        assert torch.equal(default[name], given[name])


def test_losses_are_sums_divided_by_the_numbers(make_batch, make_criterion):
    batch, criterion = make_batch(), make_criterion()
    sums = criterion(*batch.arguments, normalizer=LossNormalizer(1.0, 1.0))
    halves = criterion(*batch.arguments, normalizer=LossNormalizer(torch.tensor(0.5), torch.tensor(4.0)))
    for name, by in zip(TERMS, (4.0, 0.5, 0.5), strict=True):
        torch.testing.assert_close(halves[name], sums[name] / by)


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        LossNormalizer(1.0, 1.0).num_masks = 2.0


@pytest.mark.parametrize("counts", [(2, 3, 1, 4), (0, 1, 0, 0), (0, 0, 0, 0), (0, 0, 3, 1)])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_two_micro_batches_of_two_equal_one_batch_of_four(make_batch, make_criterion, counts, class_weights):
    batch, criterion = make_batch(counts), make_criterion(class_weights=class_weights)
    whole = criterion(*batch.arguments)
    expected = torch.autograd.grad(sum(whole.values()), (batch.masks, batch.classes))

    parts = [slice(0, 2), slice(2, 4)]
    normalizer = criterion.compute_normalizer(batch.class_labels, 6)
    micro = [criterion(*(values[part] for values in batch.arguments), normalizer=normalizer) for part in parts]
    for name in TERMS:
        torch.testing.assert_close(sum(losses[name] for losses in micro), whole[name], rtol=1e-5, atol=1e-7)
    gradients = torch.autograd.grad(sum(sum(losses.values()) for losses in micro), (batch.masks, batch.classes))
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-7)
