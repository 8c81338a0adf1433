"""The authors' sizes, orders and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer.checkpoints.zoo import list_zoo
from maskformer.evaluation.protocol import ClockedProcessor, authors_size, find_entry, paper_protocol
from maskformer.processing.image_processor import MaskFormerImageProcessor


@pytest.mark.parametrize(
    ("size", "edges", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),  # 1066.67 is rounded, where transformers truncates
        ((640, 480), (800, 1333), (1067, 800)),
        ((427, 640), (800, 1333), (800, 1199)),
        ((300, 900), (800, 1333), (444, 1333)),  # limited
        ((512, 512), (512, 2048), (512, 512)),
        ((333, 500), (512, 2048), (512, 769)),
        ((1024, 2048), (1024, 2048), (1024, 2048)),
        ((10, 1000), (512, 2048), (20, 2048)),
    ],
)
def test_sizes(size, edges, expected):
    assert authors_size(*size, edges) == expected


def test_the_processor_resizes_by_that_rule_and_pads():
    picture = np.random.default_rng(0).integers(0, 256, (50, 75, 3), np.uint8)
    base = MaskFormerImageProcessor(
        size=64, max_size=96, label_ids_to_fuse=[1], image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    processor = ClockedProcessor.like(base, 32, (45, 90))
    assert processor.label_ids_to_fuse == [1]
    inputs = processor(picture, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 96)
    assert inputs["pixel_mask"].sum() == 45 * 68  # 67.5 is rounded up
    expected = np.asarray(Image.fromarray(picture).resize((68, 45), Image.Resampling.BILINEAR))
    found = 255 * inputs["pixel_values"][0, :, :45, :68].permute(1, 2, 0)
    assert (found - torch.from_numpy(expected.copy())).abs().max() < 1.01
    assert processor.seconds > 0


def test_without_edges_it_is_the_same_processor():
    picture = np.random.default_rng(0).integers(0, 256, (50, 75, 3), np.uint8)
    base = MaskFormerImageProcessor(size=64, max_size=96)
    theirs, ours = (each(picture, return_tensors="pt") for each in (base, ClockedProcessor.like(base)))
    assert torch.equal(theirs["pixel_values"], ours["pixel_values"])
    assert torch.equal(theirs["pixel_mask"], ours["pixel_mask"])


def test_settings_come_from_the_zoo():
    panoptic = paper_protocol(find_entry("r50-ade20k-150-panoptic"), "panoptic")
    assert panoptic.edges == (640, 2560)
    assert panoptic.post_processing == {
        "protocol": "paper-panoptic", "threshold": 0.7, "overlap_mask_area_threshold": 0.8,
    }  # fmt: skip
    semantic = paper_protocol(find_entry("facebook/maskformer-swin-tiny-ade"), "semantic")
    assert semantic.post_processing == {"protocol": "paper"}
    assert semantic.augmented_edges == tuple((size, 3584) for size in (256, 384, 512, 640, 768, 896))
    assert (semantic.pad_divisor, semantic.flip) == (32, True)
    other = {**find_entry("r50-ade20k-150-panoptic"), "object_mask_threshold": 0.6, "overlap_threshold": 0.4}
    assert list(paper_protocol(other, "panoptic").post_processing.values())[1:] == [0.6, 0.4]
    coco = paper_protocol(find_entry("anything", "swin-tiny-coco-panoptic"), "panoptic")
    assert (coco.pad_divisor, coco.edges) == (0, (800, 1333))
    for entry in list_zoo():
        assert paper_protocol(entry, "semantic").edges is not None
    with pytest.raises(ValueError, match=r"the zoo has no settings for my/model: .* with --zoo"):
        find_entry("my/model")
    with pytest.raises(ValueError, match="no settings for nothing"):
        find_entry("r50-ade20k-150", "nothing")
