"""What must hold for any targets and predictions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TERMS = ["loss_cross_entropy", "loss_mask", "loss_dice"]
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
any_counts = st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple)
any_seed = st.integers(0, 2**16)


@few
@given(counts=any_counts, seed=any_seed)
def test_the_order_of_the_targets_does_not_matter(make_batch, make_criterion, counts, seed):
    batch, criterion = make_batch(counts, seed=seed), make_criterion()
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=generator) for n in counts]
    permuted = [
        [values[order] for values, order in zip(labels, orders, strict=True)]
        for labels in (batch.mask_labels, batch.class_labels)
    ]
    expected, losses = criterion(*batch.arguments), criterion(batch.masks, batch.classes, *permuted)
    for name in TERMS:
        torch.testing.assert_close(losses[name], expected[name])


@few
@given(counts=any_counts, seed=any_seed)
def test_the_order_of_the_queries_moves_the_gradients_along(make_batch, make_criterion, counts, seed):
    batch, criterion = make_batch(counts, seed=seed), make_criterion()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    expected = torch.autograd.grad(sum(criterion(*batch.arguments).values()), (batch.masks, batch.classes))
    moved = [t.detach()[:, order].requires_grad_() for t in (batch.masks, batch.classes)]
    losses = criterion(*moved, batch.mask_labels, batch.class_labels)
    for gradient, same in zip(torch.autograd.grad(sum(losses.values()), moved), expected, strict=True):
        torch.testing.assert_close(gradient, same[:, order])


@few
@given(counts=any_counts, seed=any_seed, height=st.integers(1, 5), width=st.integers(1, 5), finest=st.booleans())
def test_losses_are_finite_and_not_negative(make_batch, make_criterion, counts, seed, height, width, finest):
    batch = make_batch(counts, size=(4 * height, 4 * width), seed=seed)
    masks = torch.nn.functional.interpolate(batch.masks, scale_factor=4.0) if finest else batch.masks
    losses = make_criterion()(masks, *batch.arguments[1:])
    for name in TERMS:
        assert losses[name].isfinite()
        assert losses[name] >= 0
    assert losses["loss_dice"] < 1


@few
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), seed=any_seed)
def test_a_perfect_prediction_costs_next_to_nothing(make_batch, make_criterion, counts, seed):
    batch, criterion = make_batch(counts, seed=seed), make_criterion()
    random = criterion(*batch.arguments)
    masks, classes = torch.full((len(counts), 6, 24, 32), -20.0), torch.zeros(len(counts), 6, 6)
    classes[:, :, -1] = 20.0
    for image, (own_masks, own_labels) in enumerate(zip(batch.mask_labels, batch.class_labels, strict=True)):
        for target, (mask, label) in enumerate(zip(own_masks, own_labels, strict=True)):
            query = 5 - target
            masks[image, query] = torch.where(mask, 20.0, -20.0)
            classes[image, query, -1], classes[image, query, label] = 0.0, 20.0
    perfect = criterion(masks, classes, batch.mask_labels, batch.class_labels)
    for name in TERMS:
        assert perfect[name].item() == pytest.approx(0, abs=1e-4)
        assert perfect[name] < random[name]


# Fixed seeds: a step may change the matching, and then nothing promises that the loss falls.
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("step", [0.01, 0.1])
def test_a_step_down_the_gradient_lowers_the_loss(make_batch, make_criterion, seed, step):
    batch, criterion = make_batch(seed=seed), make_criterion()

    def total(*arguments):
        return sum(criterion.weight_dict[name] * value for name, value in criterion(*arguments).items())

    before = total(*batch.arguments)
    gradients = torch.autograd.grad(before, (batch.masks, batch.classes))
    masks, classes = ((t - step * g).detach() for t, g in zip((batch.masks, batch.classes), gradients, strict=True))
    assert total(masks, classes, batch.mask_labels, batch.class_labels) < before
