"""Matches and losses equal those recorded from the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from maskformer.losses import MaskFormerHungarianMatcher, MaskFormerLoss

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
NAMES = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}


@pytest.fixture(params=["resnet50-fpn", "resnet50-transformer-encoder", "resnet50c-fpn", "swin-fpn"])
def folder(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / request.param


def _load(folder: Path):
    arrays = np.load(folder / "expected.npz")
    tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    targets = [[tensors[f"target{i}.{kind}"] for i in range(2)] for kind in ("mask_labels", "class_labels")]
    settings = json.loads((folder / "meta.json").read_text())["effective"]["mask_former"]
    matcher = MaskFormerHungarianMatcher(1.0, settings["MASK_WEIGHT"], settings["DICE_WEIGHT"])
    return tensors, targets, settings, matcher


def test_matches_are_identical(folder: Path):
    tensors, targets, _, matcher = _load(folder)
    matches = matcher(tensors["masks_queries_logits"], tensors["class_queries_logits"], *targets)
    for image, (queries, classes) in enumerate(matches):
        assert torch.equal(torch.stack([queries, classes]), tensors[f"match{image}"])


def test_losses_of_all_heads_and_their_total(folder: Path):
    tensors, targets, settings, matcher = _load(folder)
    weights = {
        "loss_cross_entropy": 1.0,
        "loss_mask": settings["MASK_WEIGHT"],
        "loss_dice": settings["DICE_WEIGHT"],
    }
    num_labels = tensors["class_queries_logits"].shape[-1] - 1
    criterion = MaskFormerLoss(num_labels, matcher, weights, settings["NO_OBJECT_WEIGHT"])
    kinds = ("masks_queries_logits", "class_queries_logits")
    auxiliary = [{kind: tensors[f"aux{i}.{kind}"] for kind in kinds} for i in range(2)]
    losses = criterion(tensors["masks_queries_logits"], tensors["class_queries_logits"], *targets, auxiliary)
    expected = {
        ours + suffix: tensors[f"loss.{theirs}{suffix}"]
        for theirs, ours in NAMES.items()
        for suffix in ("", "_0", "_1")
    }
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=0)
    total = sum(weights[name] * losses[name + suffix] for name in NAMES.values() for suffix in ("", "_0", "_1"))
    torch.testing.assert_close(total, tensors["loss.total_weighted"], rtol=1e-5, atol=0)
