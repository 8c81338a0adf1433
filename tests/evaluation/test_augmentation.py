"""Scores averaged over sizes and mirrored images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from maskformer.evaluation import test_time_augmentation as augmentation
from maskformer.evaluation.protocol import Protocol, authors_size
from maskformer.inference import Segmenter
from maskformer.processing.postprocessing import semantic_segmentation

from .painter import SLOTS, color, painter_segmenter

PROTOCOL = Protocol(
    "paper", (72, 200), 32, {"protocol": "paper"}, ((48, 200), (72, 200), (100, 110)), True
)  # fmt: skip


def picture() -> np.ndarray:
    rng = np.random.default_rng(1)
    labels = np.asarray(Image.fromarray(rng.integers(0, 14, (5, 7), np.uint8)).resize((131, 90), 0))
    colors = np.array([color(label, 0) for label in range(14)])
    return (colors[labels] + rng.normal(0, 6, (90, 131, 3))).clip(0, 255).astype(np.uint8)


def by_hand(segmenter: Segmenter, image: np.ndarray, protocol: Protocol) -> torch.Tensor:
    """[C, H, W]: what the authors' recipe says, step by step, with Pillow."""
    base = Image.fromarray(image).resize(authors_size(90, 131, protocol.edges)[::-1], Image.Resampling.BILINEAR)
    total = torch.zeros(14, 90, 131)
    for edges in protocol.augmented_edges:
        size = authors_size(base.height, base.width, edges)
        resized = np.asarray(base.resize(size[::-1], Image.Resampling.BILINEAR))
        for mirrored in (False, True):
            turned = (resized[:, ::-1] if mirrored else resized).copy()
            values = torch.from_numpy(turned).permute(2, 0, 1)[None].float() / 255
            padded = F.pad(values, (0, -size[1] % 32, 0, -size[0] % 32))
            mask = torch.zeros(1, *padded.shape[-2:])
            mask[:, : size[0], : size[1]] = 1
            outputs = segmenter.model(pixel_values=padded)
            found = semantic_segmentation(outputs, [(90, 131)], True, pixel_mask=mask, protocol="paper")
            scores = found[0].segmentation_scores
            total += scores.flip(-1) if mirrored else scores
    return total / 6


@pytest.fixture
def segmenter() -> Segmenter:
    return painter_segmenter("semantic", sure=4.0)


def test_equals_the_recipe_step_by_step(segmenter):
    image = picture()
    result = next(augmentation.AugmentedSegmenter(segmenter, PROTOCOL).stream([image]))
    expected = by_hand(segmenter, image, PROTOCOL)
    assert result.segmentation.shape == (90, 131)
    # Pillow and torch round a pixel differently here and there, and this network is steep.
    assert (result.segmentation == expected.argmax(0).numpy()).mean() > 0.997
    alone = segmenter.predict(image, "semantic", protocol="paper")[0]
    assert (result.segmentation != alone.segmentation).mean() > 0.01
    assert {segment.id for segment in result.segments} == set(np.unique(result.segmentation).tolist())


def test_groups_of_classes_change_nothing(segmenter, monkeypatch):
    image = picture()
    whole = next(augmentation.AugmentedSegmenter(segmenter, PROTOCOL).stream([image]))
    monkeypatch.setattr(augmentation, "_SCORES_AT_ONCE", 3 * 90 * 131)
    grouped = next(augmentation.AugmentedSegmenter(segmenter, PROTOCOL).stream([image]))
    assert (whole.segmentation == grouped.segmentation).mean() > 0.9999


def test_mirroring_counts(segmenter):
    image = picture()
    straight = next(augmentation.AugmentedSegmenter(segmenter, replace(PROTOCOL, flip=False)).stream([image]))
    mirrored = next(augmentation.AugmentedSegmenter(segmenter, PROTOCOL).stream([image[:, ::-1]]))
    both = next(augmentation.AugmentedSegmenter(segmenter, PROTOCOL).stream([image]))
    assert (straight.segmentation != both.segmentation).any()
    assert (mirrored.segmentation[:, ::-1] == both.segmentation).mean() > 0.999


def test_wrong_use_is_told(segmenter):
    with pytest.raises(ValueError, match="needs the published sizes"):
        augmentation.AugmentedSegmenter(segmenter, Protocol())
    with pytest.raises(ValueError, match="got task 'panoptic'"):
        next(augmentation.AugmentedSegmenter(segmenter, PROTOCOL).stream([picture()], "panoptic"))
    assert SLOTS == 4
