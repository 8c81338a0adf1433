"""The matcher against brute force, and its contract at the edges."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch.nn import functional as F

from maskformer.losses import MaskFormerHungarianMatcher, pairwise_dice_cost, pairwise_focal_cost


@pytest.fixture
def matcher() -> MaskFormerHungarianMatcher:
    return MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)


@torch.no_grad()
def _pair_cost(logits: torch.Tensor, class_logits: torch.Tensor, mask: torch.Tensor, label: torch.Tensor) -> float:
    """The cost of one pair, straight from the definitions of the losses."""
    target, probs = mask.double(), logits.double().sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits.double(), target, reduction="none")
    agreement = probs * target + (1 - probs) * (1 - target)
    focal = ((0.25 * target + 0.75 * (1 - target)) * (1 - agreement) ** 2 * cross_entropy).mean()
    dice = 1 - (2 * (probs * target).sum() + 1) / (probs.sum() + target.sum() + 1)
    return float(-class_logits.double().softmax(-1)[label] + 20 * focal + dice)


@pytest.mark.parametrize("seed", range(8))
def test_finds_the_cheapest_of_all_assignments(matcher, make_batch, seed):
    batch = make_batch((1, 2, 3), num_queries=5, size=(16, 24), seed=seed)
    for image, (queries, targets) in enumerate(matcher(*batch.arguments)):
        # every fourth pixel is what nearest interpolation to a quarter of the size keeps
        masks = batch.mask_labels[image][:, ::4, ::4]
        labels = batch.class_labels[image]
        costs = [
            [
                _pair_cost(batch.masks[image, q], batch.classes[image, q], masks[n], labels[n])
                for n in range(len(labels))
            ]
            for q in range(5)
        ]
        best = min(
            itertools.permutations(range(5), len(labels)),
            key=lambda order: sum(costs[q][n] for n, q in enumerate(order)),
        )
        assert sorted(zip(targets.tolist(), queries.tolist(), strict=True)) == list(enumerate(best))
        assert queries.tolist() == sorted(queries.tolist())
        assert queries.dtype == targets.dtype == torch.int64


def test_each_weight_decides_alone():
    masks = torch.full((1, 2, 4, 4), -5.0)
    masks[0, 1] = 5.0  # the second query has the right mask, the first one the right class
    classes = torch.tensor([[[9.0, 0, 0], [0, 9.0, 0]]])
    targets = ([torch.ones(1, 16, 16, dtype=torch.bool)], [torch.tensor([0])])
    chosen = {
        weights: MaskFormerHungarianMatcher(*weights)(masks, classes, *targets)[0][0].item()
        for weights in [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    }
    assert chosen == {(1.0, 0.0, 0.0): 0, (0.0, 1.0, 0.0): 1, (0.0, 0.0, 1.0): 1}


def test_pairwise_costs_equal_the_pairs_one_by_one():
    logits, targets = torch.randn(4, 30), (torch.rand(3, 30) > 0.5).float()
    total = 20 * pairwise_focal_cost(logits, targets) + pairwise_dice_cost(logits, targets)
    for q, n in itertools.product(range(4), range(3)):
        alone = _pair_cost(logits[q], torch.tensor([0.0, -50.0]), targets[n], torch.tensor(1))
        assert total[q, n].item() == pytest.approx(alone, rel=1e-5)


def test_valid_pixels_equal_the_costs_of_the_crop():
    logits, targets = torch.randn(4, 30), (torch.rand(3, 30) > 0.5).float()
    valid = torch.rand(30) > 0.4
    for cost in (pairwise_focal_cost, pairwise_dice_cost):
        torch.testing.assert_close(
            cost(logits, targets, valid.float()), cost(logits[:, valid], targets[:, valid]), rtol=1e-5, atol=1e-6
        )
        assert cost(logits, targets, torch.zeros(30)).count_nonzero() == 0


def test_ignored_pixels_do_not_decide_the_match(matcher):
    target = torch.zeros(1, 16, 32, dtype=torch.bool)
    labels, classes = [torch.tensor([1])], torch.zeros(1, 2, 4)
    masks = torch.empty(1, 2, 4, 8)
    masks[0, 0, :, :4], masks[0, 0, :, 4:] = -3.0, 9.0  # right on the left half, badly wrong on the right half
    masks[0, 1, :, :4], masks[0, 1, :, 4:] = 3.0, -9.0  # the other way round
    valid = torch.ones(1, 16, 32, dtype=torch.bool)
    valid[:, :, 16:] = False
    assert matcher(masks, classes, [target], labels)[0][0].tolist() == [1]
    assert matcher(masks, classes, [target], labels, valid)[0][0].tolist() == [0]


def test_images_without_targets(matcher, make_batch):
    matches = matcher(*make_batch((0, 2, 0)).arguments)
    assert [len(queries) for queries, _ in matches] == [0, 2, 0]
    assert all(queries.dtype == targets.dtype == torch.int64 for queries, targets in matches)
    assert [len(queries) for queries, _ in matcher(*make_batch((0, 0)).arguments)] == [0, 0]


def test_smaller_images_are_padded_and_not_stretched(matcher, make_batch):
    batch = make_batch((3, 3), size=(32, 32), seed=3)
    padded = [mask.clone() for mask in batch.mask_labels]
    padded[1][:, 16:], padded[1][:, :, 24:] = False, False
    expected = matcher(batch.masks, batch.classes, padded, batch.class_labels)
    small = [padded[0], padded[1][:, :16, :24]]
    for (queries, targets), (same_queries, same_targets) in zip(
        matcher(batch.masks, batch.classes, small, batch.class_labels), expected, strict=True
    ):
        assert torch.equal(queries, same_queries)
        assert torch.equal(targets, same_targets)


def test_more_targets_than_queries_are_said_once(matcher, make_batch):
    batch = make_batch((2, 15), num_queries=10)
    with pytest.warns(UserWarning, match=r"Image 1 .* 15 targets .* only 10 queries"):
        matches = matcher(*batch.arguments)
    assert matches[1][0].tolist() == list(range(10))
    assert len(set(matches[1][1].tolist())) == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matcher(*batch.arguments)


def test_half_precision_matches_like_its_float32_values(matcher, make_batch):
    for dtype in (torch.bfloat16, torch.float16):
        half = make_batch((3, 4), dtype=dtype, seed=5)
        expected = matcher(half.masks.float(), half.classes.float(), half.mask_labels, half.class_labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            matches = matcher(*half.arguments)
        assert all(
            torch.equal(a, b)
            for one, other in zip(matches, expected, strict=True)
            for a, b in zip(one, other, strict=True)
        )


def test_autocast_does_not_round_the_costs():
    """Two queries whose costs differ by less than bfloat16 can tell apart."""
    masks = torch.full((1, 2, 16, 16), 2.0)
    masks[0, 1] += 0.001
    targets = ([torch.ones(1, 64, 64, dtype=torch.bool)], [torch.tensor([0])])
    matcher = MaskFormerHungarianMatcher(0.0, 1.0, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matcher(masks, torch.zeros(1, 2, 2), *targets)[0][0].item() == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["masks", "classes"])
def test_non_finite_predictions(matcher, make_batch, value, which):
    batch = make_batch((2, 2))
    with torch.no_grad():
        getattr(batch, which)[1].fill_(value)
    with pytest.raises(FloatingPointError, match=r"image 1 are non-finite"):
        matcher(*batch.arguments)


def test_labels_out_of_range(matcher, make_batch):
    batch = make_batch((2, 2))
    batch.class_labels[1][0] = 77
    with pytest.raises(ValueError, match=r"image 1 holds label 77.*0\.\.4"):
        matcher(*batch.arguments)


def test_all_weights_zero():
    with pytest.raises(ValueError, match="all 0"):
        MaskFormerHungarianMatcher(0, 0, 0)
    assert "cost_mask=20.0" in repr(MaskFormerHungarianMatcher(1.0, 20.0, 1.0))
