"""The public processor as it is called, alone and inside a transformers pipeline."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BatchFeature,
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    SwinConfig,
    pipeline,
)
from transformers import MaskFormerImageProcessorPil as Peer

from maskformer.kernels import compiled
from maskformer.processing.image_processor import MaskFormerFeatureExtractor, MaskFormerImageProcessor

SMALL = {"size": {"shortest_edge": 32, "longest_edge": 64}}
RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
LABELS = np.arange(600, dtype=np.uint8).reshape(20, 30) % 3


def test_kinds_of_results():
    processor = MaskFormerImageProcessor(**SMALL)
    tensors = processor(RGB, LABELS, return_tensors="pt")
    assert isinstance(tensors, BatchFeature)
    assert tensors["pixel_values"].shape == (1, 3, 32, 64)
    assert tensors["pixel_values"].is_contiguous()
    assert (tensors["pixel_mask"].dtype, tensors["class_labels"][0].dtype) == (torch.int64, torch.int64)
    arrays = processor(RGB, LABELS, return_tensors="np")
    lists = processor.preprocess(RGB, LABELS)
    for name, value in tensors.items():
        for index, item in enumerate(value):
            assert isinstance(arrays[name][index], np.ndarray)
            assert isinstance(lists[name], list)
            assert np.array_equal(arrays[name][index], item.numpy())
            assert np.array_equal(lists[name][index], item.numpy())
    assert isinstance(arrays["pixel_values"], np.ndarray)
    with pytest.raises(ValueError, match="return_tensors must be"):
        processor(RGB, return_tensors="tf")


def test_the_device_and_half_precision():
    batch = MaskFormerImageProcessor(**SMALL)(RGB, LABELS, return_tensors="pt", device="meta")
    assert {batch["pixel_values"].device.type, batch["mask_labels"][0].device.type} == {"meta"}
    half = MaskFormerImageProcessor(**SMALL)(RGB, return_tensors="pt").to(torch.bfloat16)
    assert half["pixel_values"].dtype == torch.bfloat16


def test_any_mixture_of_images_is_one_batch(tmp_path: Path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    sources = [
        RGB,
        [Image.fromarray(RGB), tmp_path / "a.png"],
        torch.from_numpy(RGB),
        (tmp_path / "a.png").read_bytes(),
    ]
    batch = MaskFormerImageProcessor(**SMALL)(sources, return_tensors="pt")["pixel_values"]
    assert len(batch) == 5
    assert all(torch.equal(image, batch[0]) for image in batch)


def test_the_authors_padding():
    processor = MaskFormerImageProcessor(
        do_resize=True, size={"height": 40, "width": 50}, size_divisor=0, pad_size_divisor=32
    )
    batch = processor(RGB, LABELS, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    assert int(batch["pixel_mask"].sum()) == 40 * 50
    assert batch["mask_labels"][0].shape == (3, 64, 64)
    assert int(batch["mask_labels"][0].sum()) == 40 * 50


def test_nothing_given_is_changed():
    image, labels = RGB.copy(), LABELS.copy()
    processor = MaskFormerImageProcessor(do_resize=False)
    before = copy.deepcopy(processor.to_dict())
    processor(torch.from_numpy(image), labels, do_rescale=False, return_tensors="pt")
    processor(image.astype(np.float32), return_tensors="pt")
    assert np.array_equal(image, RGB)
    assert np.array_equal(labels, LABELS)
    assert processor.to_dict() == before


def test_encoding_prepared_inputs():
    processor = MaskFormerImageProcessor(ignore_index=0)
    prepared = [np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32) for size in ((20, 30), (25, 10))]
    batch = processor.encode_inputs(prepared, [LABELS, np.ones((25, 10), int)], {1: 5, 2: 6}, return_tensors="pt")
    assert torch.equal(batch["pixel_values"][0, :, :20, :30], torch.from_numpy(prepared[0]))
    assert batch["pixel_values"].shape == (2, 3, 25, 30)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [600, 250]
    assert [labels.tolist() for labels in batch["class_labels"]] == [[5, 6], [5]]
    again = processor.encode_inputs(prepared[:1], [LABELS], ignore_index=1, do_reduce_labels=True)
    assert again["class_labels"][0].tolist() == [1]


def test_the_old_name_saves_under_the_new_one(tmp_path: Path):
    with pytest.warns(FutureWarning):
        MaskFormerFeatureExtractor(**SMALL).save_pretrained(tmp_path)
    assert Peer.from_pretrained(tmp_path).to_dict() == Peer(**SMALL).to_dict()
    assert '"image_processor_type": "MaskFormerImageProcessor"' in (tmp_path / "preprocessor_config.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, "images is empty"),
        ((np.zeros((0, 3, 3), np.uint8),), {}, "image 0 is empty"),
        (([RGB, b"?"],), {}, "image 1 cannot be read"),
        ((np.zeros((9, 9, 2), np.uint8),), {}, "image 0 has shape"),
        (([RGB, RGB[:10]],), {"do_resize": False, "do_pad": False}, "do_pad=True"),
        ((RGB, LABELS[:, :-1]), {}, "must match"),
    ],
)
def test_errors_name_the_image(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        MaskFormerImageProcessor()(*arguments, **options)


@pytest.fixture(scope="module")
def tiny_model():
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    decoder = DetrConfig(
        d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, num_queries=8, encoder_layers=1,
        encoder_attention_heads=2, encoder_ffn_dim=16,
    )  # fmt: skip
    config = MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=16, num_labels=4
    )
    return MaskFormerForInstanceSegmentation(config).eval()


@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.bfloat16, "cpu"), (None, "meta")])
@pytest.mark.parametrize("loops", [True, False])
def test_torchs_defaults_change_nothing(blobs, monkeypatch, dtype, device, loops):
    monkeypatch.setattr(compiled, "available", loops and compiled.available)
    processor = MaskFormerImageProcessor(**SMALL)
    outputs, mask = blobs(), np.ones((2, 95, 127), np.int64)  # a fractional window

    def everything() -> list[Any]:
        inputs = processor([RGB, RGB[:, :20]], [LABELS, LABELS[:, :20]], return_tensors="pt")
        found: list[Any] = [inputs["pixel_values"], inputs["pixel_mask"], *inputs["mask_labels"]]
        options: dict[str, Any] = {"target_sizes": [(97, 61), (48, 130)], "pixel_mask": mask}
        for protocol in ("transformers", "paper"):
            found += processor.post_process_semantic_segmentation(outputs, protocol=protocol, **options)
            panoptic = processor.post_process_panoptic_segmentation(outputs, protocol=protocol, **options)
            instances = processor.post_process_instance_segmentation(outputs, protocol=protocol, **options)
            found += [result["segmentation"] for result in panoptic + instances]
        return [*found, *inputs["class_labels"]]

    expected, before = everything(), torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        with torch.device(device):  # what torch.set_default_device sets
            found = everything()
    finally:
        torch.set_default_dtype(before)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("subtask", ["semantic", "panoptic", "instance", None])
def test_in_a_transformers_pipeline(tiny_model, subtask):
    segmenter = pipeline("image-segmentation", model=tiny_model, image_processor=MaskFormerImageProcessor(**SMALL))
    options = {"threshold": 0.0, "overlap_mask_area_threshold": 0.0}
    found = segmenter(Image.fromarray(RGB), subtask=subtask, **options)
    assert found
    for segment in found:
        assert segment["mask"].size == (30, 20)
        assert segment["label"] in tiny_model.config.id2label.values()
        assert subtask == "semantic" or 0 <= segment["score"] <= 1
    if subtask == "semantic":
        theirs = pipeline("image-segmentation", model=tiny_model, image_processor=Peer(**SMALL))
        expected = theirs(Image.fromarray(RGB), subtask=subtask)
        agreement = [
            np.mean(np.array(one["mask"]) == np.array(other["mask"]))
            for one, other in zip(found, expected, strict=True)
        ]
        assert min(agreement) > 0.98


def test_our_targets_as_floats_train_transformers_own_model(tiny_model):
    batch = MaskFormerImageProcessor(**SMALL)([RGB, RGB[:, :20]], [LABELS, LABELS[:, :20]], return_tensors="pt")
    loss = tiny_model(
        pixel_values=batch["pixel_values"],
        pixel_mask=batch["pixel_mask"],
        mask_labels=[masks.float() for masks in batch["mask_labels"]],
        class_labels=batch["class_labels"],
    ).loss
    assert bool(torch.isfinite(loss))
