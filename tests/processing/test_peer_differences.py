"""Each known fault of transformers 5.23.0 in processing, shown there and shown absent here, on the same input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from transformers import MaskFormerImageProcessorPil as Peer

from maskformer.processing.image_processor import MaskFormerFeatureExtractor, MaskFormerImageProcessor
from maskformer.processing.masks import decode_run_lengths

TWO_SIZES = [np.zeros((64, 64, 3), np.uint8), np.zeros((32, 96, 3), np.uint8)]
SMALL = {"do_resize": False, "ignore_index": 255}


def box(top: int, left: int, bottom: int, right: int, value: float = 0.99, size: tuple[int, int] = (16, 16)):
    mask = torch.full(size, 0.01)
    mask[top:bottom, left:right] = value
    return mask


def test_row_2_targets_of_a_mixed_batch_hold_only_zero_and_one():
    maps = [np.ones((64, 64), np.uint8), np.ones((32, 96), np.uint8)]
    theirs = Peer(**SMALL)(TWO_SIZES, segmentation_maps=maps, return_tensors="pt")
    ours = MaskFormerImageProcessor(**SMALL)(TWO_SIZES, maps, return_tensors="pt")
    assert float(theirs["mask_labels"][0].max()) == 255
    for target, size in zip(ours["mask_labels"], ((64, 64), (32, 96)), strict=True):
        assert target.dtype == torch.bool
        assert int(target.sum()) == size[0] * size[1]


def test_row_3_padding_is_cropped_from_instances(designed):
    # the image fills the left half of the padded input; the object fills the image
    outputs = designed([(0, 0.95, box(0, 0, 16, 8))], classes=2)
    pixel_mask = torch.zeros(1, 64, 64, dtype=torch.int64)
    pixel_mask[:, :, :32] = 1
    theirs = Peer().post_process_instance_segmentation(outputs, target_sizes=[(64, 32)])[0]["segmentation"]
    ours = MaskFormerImageProcessor().post_process_instance_segmentation(
        outputs, target_sizes=[(64, 32)], pixel_mask=pixel_mask
    )[0]["segmentation"]
    assert float((theirs == 0).float().mean()) == pytest.approx(0.5)
    assert bool((ours == 0).all())


def test_row_3_semantic_and_panoptic_with_padding(designed):
    # object 0 on the left quarter of the padded input = left half of the image; object 1 on the rest of the image
    outputs = designed([(0, 0.95, box(0, 0, 16, 4)), (1, 0.95, box(0, 4, 16, 8))], classes=2)
    pixel_mask = torch.zeros(1, 64, 64, dtype=torch.int64)
    pixel_mask[:, :, :32] = 1
    expected = torch.zeros(64, 32, dtype=torch.int64)
    expected[:, 16:] = 1
    ours, theirs = MaskFormerImageProcessor(), Peer()
    sizes = [(64, 32)]
    assert not torch.equal(theirs.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0], expected)
    assert torch.equal(ours.post_process_semantic_segmentation(outputs, sizes, pixel_mask=pixel_mask)[0], expected)
    panoptic = ours.post_process_panoptic_segmentation(outputs, target_sizes=sizes, pixel_mask=pixel_mask)[0]
    assert torch.equal(panoptic["segmentation"].long() - 1, expected)


def stuff_thing_stuff_thing(designed):
    quarters = [box(0, 4 * i, 16, 4 * i + 4) for i in range(4)]
    scores = (0.9, 0.95, 0.97, 0.93)
    return designed(
        [(label, score, mask) for label, score, mask in zip((0, 1, 0, 1), scores, quarters, strict=True)], classes=2
    )


def test_row_5_ids_are_unique_and_fused_segments_listed_once(designed):
    outputs = stuff_thing_stuff_thing(designed)
    theirs = Peer().post_process_panoptic_segmentation(outputs, label_ids_to_fuse={0})[0]
    ours = MaskFormerImageProcessor().post_process_panoptic_segmentation(outputs, label_ids_to_fuse={0})[0]
    assert [segment["id"] for segment in theirs["segments_info"]] == [1, 2, 1, 2]
    assert ours["segments_info"] == [
        {"id": 1, "label_id": 0, "was_fused": True, "score": pytest.approx(0.97, abs=1e-5)},
        {"id": 2, "label_id": 1, "was_fused": False, "score": pytest.approx(0.95, abs=1e-5)},
        {"id": 3, "label_id": 1, "was_fused": False, "score": pytest.approx(0.93, abs=1e-5)},
    ]
    assert ours["segmentation"][0].tolist() == [1] * 4 + [2] * 4 + [1] * 4 + [3] * 4


def test_row_6_a_threshold_below_one_half_has_an_effect(designed):
    outputs = designed([(0, 0.4, box(0, 0, 16, 16, value=0.9))], classes=3)
    theirs = Peer().post_process_panoptic_segmentation(outputs, threshold=0.3, label_ids_to_fuse=set())[0]
    ours = MaskFormerImageProcessor().post_process_panoptic_segmentation(outputs, threshold=0.3)[0]
    assert theirs["segments_info"] == []  # 0.4 x 0.9 never reaches mask_threshold there
    assert len(ours["segments_info"]) == 1
    assert MaskFormerImageProcessor().post_process_panoptic_segmentation(outputs)[0]["segments_info"] == []


def test_row_6_a_segment_with_exactly_the_wanted_share_stays(designed):
    # query 0 claims 12 columns and wins 9 of them: a share of exactly 0.75
    weak, strong = box(0, 0, 16, 12, value=0.6), box(0, 9, 16, 16, value=0.99)
    outputs = designed([(0, 0.9, weak), (1, 0.9, strong)], classes=2)
    options = {"overlap_mask_area_threshold": 0.75, "label_ids_to_fuse": set()}
    theirs = Peer().post_process_panoptic_segmentation(outputs, **options)[0]
    ours = MaskFormerImageProcessor().post_process_panoptic_segmentation(outputs, **options)[0]
    assert [segment["label_id"] for segment in theirs["segments_info"]] == [1]
    assert [segment["label_id"] for segment in ours["segments_info"]] == [0, 1]


def test_row_6_inputs_are_untouched(blobs):
    from transformers.models.maskformer.image_processing_pil_maskformer import compute_segments

    outputs = blobs()
    before = outputs.masks_queries_logits.clone(), outputs.class_queries_logits.clone()
    probs = outputs.masks_queries_logits[0].sigmoid()
    kept = probs.clone()
    compute_segments(probs, torch.full((12,), 0.5), torch.arange(12), label_ids_to_fuse=set())
    assert not torch.equal(probs, kept)  # there
    processor = MaskFormerImageProcessor()
    processor.post_process_panoptic_segmentation(outputs)
    processor.post_process_instance_segmentation(outputs)
    processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(outputs.masks_queries_logits, before[0])
    assert torch.equal(outputs.class_queries_logits, before[1])


def instance_masks(processor, outputs, **options):
    return processor.post_process_instance_segmentation(
        outputs, target_sizes=[(64, 64)], return_binary_maps=True, threshold=0.3, **options
    )[0]["segmentation"]


def test_row_7_mask_threshold_works(designed):
    outputs = designed([(0, 0.95, box(2, 2, 12, 12, value=0.7))], classes=2)
    assert torch.equal(
        instance_masks(Peer(), outputs, mask_threshold=0.3), instance_masks(Peer(), outputs, mask_threshold=0.65)
    )
    ours = MaskFormerImageProcessor()
    low = instance_masks(ours, outputs, mask_threshold=0.3)
    high = instance_masks(ours, outputs, mask_threshold=0.65)
    assert int(low.sum()) > int(high.sum()) > 0


def test_row_7_overlap_threshold_works(designed):
    front, back = box(0, 0, 16, 12), box(0, 0, 16, 16)  # of the back, a quarter stays visible
    outputs = designed([(0, 0.98, front), (1, 0.9, back)], classes=2)
    assert len(instance_masks(Peer(), outputs, overlap_mask_area_threshold=0.9)) == 2
    ours = MaskFormerImageProcessor()
    assert len(instance_masks(ours, outputs)) == 2
    assert len(instance_masks(ours, outputs, overlap_mask_area_threshold=0.2)) == 2
    assert len(instance_masks(ours, outputs, overlap_mask_area_threshold=0.3)) == 1


def test_row_7_coco_annotation_is_coco_and_keeps_overlaps(designed):
    front, back = box(0, 0, 16, 12), box(0, 4, 16, 16)
    outputs = designed([(0, 0.98, front), (1, 0.9, back)], classes=2)
    options = {"target_sizes": [(16, 16)], "return_coco_annotation": True}
    theirs = Peer().post_process_instance_segmentation(outputs, **options)[0]
    ours = MaskFormerImageProcessor().post_process_instance_segmentation(outputs, **options)[0]
    # theirs: row-major starts and lengths, without a size, of non-overlapping pieces
    assert isinstance(theirs["segmentation"][0], list)
    assert [run["size"] for run in ours["segmentation"]] == [[16, 16], [16, 16]]
    assert [info["label_id"] for info in ours["segments_info"]] == [0, 1]
    assert torch.equal(decode_run_lengths(ours["segmentation"][0]), front > 0.5)
    assert torch.equal(decode_run_lengths(ours["segmentation"][1]), back > 0.5)


def test_row_7_coco_annotation_has_no_entry_for_the_background(designed):
    outputs = designed([(0, 0.98, box(2, 2, 8, 8))], classes=2)
    theirs = Peer().post_process_instance_segmentation(outputs, return_coco_annotation=True)[0]
    ours = MaskFormerImageProcessor().post_process_instance_segmentation(outputs, return_coco_annotation=True)[0]
    assert len(theirs["segmentation"]) == 2
    assert len(ours["segmentation"]) == len(ours["segments_info"]) == 1


def test_row_8_reducing_labels_keeps_the_ignored_ignored():
    image = np.zeros((32, 32, 3), np.uint8)
    label_map = np.full((32, 32), 255, np.uint8)
    label_map[:8], label_map[8:16] = 0, 3
    options = {"do_resize": False, "ignore_index": 255, "do_reduce_labels": True}
    theirs = Peer(**options)(image, segmentation_maps=label_map, return_tensors="pt")
    ours = MaskFormerImageProcessor(**options)(image, label_map, return_tensors="pt")
    assert theirs["class_labels"][0].tolist() == [2, 254]
    assert ours["class_labels"][0].tolist() == [2]
    assert torch.equal(ours["mask_labels"][0][0], torch.from_numpy(label_map == 3))


def test_row_9_void_is_the_same_whether_or_not_something_was_found(designed):
    nothing = designed([(2, 0.95, box(0, 0, 16, 16))], classes=2)  # class 2 of 2 = no object
    theirs = Peer().post_process_panoptic_segmentation(nothing, label_ids_to_fuse=set())[0]["segmentation"]
    assert theirs.dtype == torch.float32
    assert float(theirs.unique()) == -1
    ours = MaskFormerImageProcessor()
    empty = ours.post_process_panoptic_segmentation(nothing, target_sizes=[(20, 30)])[0]
    assert empty["segmentation"].dtype == torch.int32
    assert empty["segmentation"].shape == (20, 30)
    assert empty["segmentation"].unique().tolist() == [0]
    assert empty["segments_info"] == []
    instances = ours.post_process_instance_segmentation(nothing, target_sizes=[(20, 30)])[0]["segmentation"]
    assert instances.dtype == torch.int32
    assert instances.unique().tolist() == [-1]


def test_row_9_instance_maps_are_integers(designed):
    outputs = designed([(0, 0.98, box(2, 2, 8, 8))], classes=2)
    assert Peer().post_process_instance_segmentation(outputs)[0]["segmentation"].dtype == torch.float32
    ours = MaskFormerImageProcessor().post_process_instance_segmentation(outputs)[0]["segmentation"]
    assert ours.dtype == torch.int32
    assert ours.unique().tolist() == [-1, 0]


def test_row_14_five_channels():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 5), dtype=np.uint8)
    options = {"image_mean": [0.5] * 5, "image_std": [0.25] * 5, "size": {"height": 32, "width": 32}}
    with pytest.raises(ValueError, match="channel"):
        Peer(**options)(image, return_tensors="pt")
    ours = MaskFormerImageProcessor(**options)(image, return_tensors="pt")["pixel_values"]
    assert ours.shape == (1, 5, 32, 32)
    # one path for every input: the first channel comes out as it would alone
    alone = {**options, "image_mean": [0.5], "image_std": [0.25]}
    grey = MaskFormerImageProcessor(**alone)(image[..., 0], return_tensors="pt")["pixel_values"]
    assert float((ours[:, :1] - grey).abs().max()) <= 1 / 255 / 0.25 + 1e-6


def test_row_14_ids_above_255():
    image = np.zeros((40, 40, 3), np.uint8)
    label_map = np.zeros((40, 40), np.int32)
    label_map[:, :10], label_map[:, 10:20] = 1000, 70000
    classes = {0: 0, 1000: 1, 70000: 2}
    options = {"size": {"height": 32, "width": 32}}
    with pytest.raises((ValueError, KeyError)):
        Peer(**options)(image, segmentation_maps=label_map, instance_id_to_semantic_id=classes, return_tensors="pt")
    ours = MaskFormerImageProcessor(**options)(image, label_map, classes, return_tensors="pt")
    assert ours["class_labels"][0].tolist() == [0, 1, 2]
    assert ours["mask_labels"][0].flatten(1).sum(1).tolist() == [512, 256, 256]


def test_row_14_default_ignore_index_with_images_of_two_sizes():
    maps = [np.ones((64, 64), np.uint8), np.ones((32, 96), np.uint8)]
    with pytest.raises((TypeError, ValueError)):
        Peer(do_resize=False)(TWO_SIZES, segmentation_maps=maps, return_tensors="pt")["mask_labels"][0].float()
    ours = MaskFormerImageProcessor(do_resize=False)(TWO_SIZES, maps, return_tensors="pt")
    assert [target.shape for target in ours["mask_labels"]] == [(1, 64, 96), (1, 64, 96)]


def test_row_15_the_old_name_still_works():
    assert not hasattr(transformers, "MaskFormerFeatureExtractor")
    with pytest.warns(FutureWarning, match="MaskFormerImageProcessor"):
        extractor = MaskFormerFeatureExtractor(do_resize=False)
    batch = extractor(TWO_SIZES, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 64, 96)
    again = extractor.encode_inputs([np.zeros((3, 8, 8), np.float32)], return_tensors="pt")
    assert again["pixel_mask"].shape == (1, 8, 8)
    for task in ("semantic", "instance", "panoptic"):
        assert callable(getattr(extractor, f"post_process_{task}_segmentation"))
