"""Scores averaged over sizes and mirrored images."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from maskformer.evaluation import test_time_augmentation as augmentation
from maskformer.evaluation.protocol import Protocol, authors_size
from maskformer.inference import Segmenter
from maskformer.processing.postprocessing import semantic_segmentation

from .painter import color, painter_segmenter

PROTOCOL = Protocol((72, 200), 32, {"protocol": "paper"}, ((48, 200), (72, 200), (100, 110)), True)


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


@pytest.mark.parametrize("order", ["paper", "paper-panoptic"])
def test_bands_give_the_sum_of_the_versions(segmenter, monkeypatch, order):
    segmenter.model.sure = 1.0  # no class is certain, many can win
    averaging = augmentation.AugmentedSegmenter(segmenter, PROTOCOL)
    image = picture()
    total = torch.zeros(14, 90, 131)
    with torch.no_grad():
        for processor in averaging.processors:
            inputs = processor(image, return_tensors="pt")
            values, mask = inputs["pixel_values"], inputs["pixel_mask"]
            width = int(mask[0, 0].sum())
            for mirrored in (False, True):
                if mirrored:
                    values[..., :width] = values[..., :width].flip(-1)
                outputs = segmenter.model(pixel_values=values)
                found = semantic_segmentation(outputs, [(90, 131)], True, pixel_mask=mask, protocol=order)
                scores = found[0].segmentation_scores
                total += scores.flip(-1) if mirrored else scores
    second, first = total.sort(0).values[-2:]
    clear = (first - second > 1e-5 * first).numpy()
    assert clear.mean() > 0.9
    for values_at_once, columns in ((2**26, 64), (131 * 350 * 7, 17), (1, 1000)):
        monkeypatch.setattr(augmentation, "_VALUES_AT_ONCE", values_at_once)
        monkeypatch.setattr(augmentation, "_COLUMNS_AT_ONCE", columns)
        result = next(averaging.stream([image], protocol=order))
        assert np.array_equal(result.segmentation[clear], total.argmax(0).numpy()[clear])


def test_neither_autocast_nor_torchs_default_type_rounds_the_sums(segmenter):
    segmenter.model.sure = 1.0
    averaging = augmentation.AugmentedSegmenter(segmenter, PROTOCOL)
    expected, before = next(averaging.stream([picture()])).segmentation, torch.get_default_dtype()
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(next(averaging.stream([picture()])).segmentation, expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(next(averaging.stream([picture()])).segmentation, expected)
    finally:
        torch.set_default_dtype(before)


def test_a_per_pixel_baseline_is_averaged_too(monkeypatch):
    baseline = painter_segmenter("semantic")
    baseline.is_per_pixel = True
    forward = baseline.model.forward
    labels = torch.tensor(baseline.model.classes)

    def logits(pixel_values):
        planes = forward(pixel_values).masks_queries_logits  # [1, Q, h, w]
        best = [planes[:, labels == label].amax(1) for label in range(14)]
        return SimpleNamespace(logits=torch.stack(best, 1))

    monkeypatch.setattr(baseline.model, "forward", logits)
    monkeypatch.setattr(augmentation, "_VALUES_AT_ONCE", 40_000)
    image = picture()
    result = next(augmentation.AugmentedSegmenter(baseline, replace(PROTOCOL, flip=False)).stream([image]))
    total = torch.zeros(14, 90, 131)
    for edges in PROTOCOL.augmented_edges:
        processor = augmentation.ClockedProcessor.like(baseline.image_processor, 32, PROTOCOL.edges, edges)
        inputs = processor(image, return_tensors="pt")
        with torch.no_grad():
            outputs = logits(inputs["pixel_values"])
        found = semantic_segmentation(outputs, [(90, 131)], True, pixel_mask=inputs["pixel_mask"], protocol="paper")
        total += found[0].segmentation_scores
    second, first = total.sort(0).values[-2:]
    clear = (first - second > 1e-5 * first.abs()).numpy()
    assert np.array_equal(result.segmentation[clear], total.argmax(0).numpy()[clear])


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
    with pytest.raises(ValueError, match="threshold has no meaning for task 'semantic'"):
        next(augmentation.AugmentedSegmenter(segmenter, PROTOCOL).stream([picture()], threshold=0.5))
