"""The fast matching costs against the definition of the losses, pair by pair."""

from __future__ import annotations

import pytest
import torch

from maskformer.kernels import matching_cost
from maskformer.kernels.matching_cost import matching_costs

pytestmark = pytest.mark.usefixtures("implementation")


def expected_costs(plain, logits, targets, valid=None):
    """[Q, N] costs: the losses of every query with every target at their common resolution."""
    masks = targets.view(-1, *logits.shape[1:]).bool()
    keep = None if valid is None else [valid.view(logits.shape[1:]).bool()]
    losses = [
        plain(logits[query].expand(len(masks), -1, -1), [masks], [torch.arange(len(masks))], keep)
        for query in range(len(logits))
    ]
    return [torch.stack(rows) for rows in zip(*losses, strict=True)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("num_queries", "size", "num_targets"), [(7, (5, 9), 4), (30, (40, 50), 3), (1, (1, 1), 1)])
def test_costs(plain, num_threads, num_queries, size, num_targets, masked):
    logits = 4 * torch.randn(num_queries, *size)
    targets = (torch.rand(num_targets, logits[0].numel()) > 0.6).float()
    valid = (torch.rand(logits[0].numel()) > 0.3).float() if masked else None
    actual = matching_costs(logits, targets, valid)
    for ours, theirs in zip(actual, expected_costs(plain, logits, targets, valid), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_the_result_does_not_depend_on_the_blocks(monkeypatch):
    logits, targets = torch.randn(11, 6, 7, dtype=torch.float64), (torch.rand(5, 42) > 0.5).double()
    expected = matching_costs(logits, targets)
    monkeypatch.setattr(matching_cost, "QUERIES_AT_ONCE", 3)
    monkeypatch.setattr(matching_cost, "PIXELS_AT_ONCE", 5)
    torch.testing.assert_close(matching_costs(logits, targets), expected)


def test_types_and_modes():
    logits, targets = torch.randn(6, 5, 4, requires_grad=True), torch.rand(3, 20) > 0.5
    expected = matching_costs(logits, targets.float())
    assert not expected[0].requires_grad
    torch.testing.assert_close(matching_costs(logits, targets), expected)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(matching_costs(logits.detach().clone(), targets), expected)
    half = logits.detach().bfloat16()
    torch.testing.assert_close(matching_costs(half, targets), matching_costs(half.float(), targets))


def test_nothing_to_match_and_nothing_valid():
    logits = torch.randn(6, 5, 4)
    assert [cost.shape for cost in matching_costs(logits, torch.zeros(0, 20))] == [(6, 0), (6, 0)]
    for cost in matching_costs(logits, torch.ones(2, 20), torch.zeros(20)):
        assert torch.equal(cost, torch.zeros(6, 2))


@pytest.mark.parametrize("sign", [1e4, -1e4])
def test_saturated_logits(sign):
    targets = torch.stack([torch.ones(20), torch.zeros(20)])
    focal, dice = matching_costs(torch.full((1, 5, 4), sign), targets)
    torch.testing.assert_close(focal, torch.tensor([[0.0, 7500.0]] if sign > 0 else [[2500.0, 0.0]]))
    torch.testing.assert_close(dice, torch.tensor([[0.0, 20 / 21]] if sign > 0 else [[20 / 21, 0.0]]))


def test_errors():
    with pytest.raises(AssertionError, match=r"\[2, 21\] targets for \[6, 20\] logits"):
        matching_costs(torch.randn(6, 5, 4), torch.zeros(2, 21))
    with pytest.raises(AssertionError, match="pairwise_dice_cost do the same"):
        matching_costs(torch.randn(6, 5, 4, device="meta"), torch.zeros(2, 20))
