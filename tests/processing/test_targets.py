"""Labels and masks for training: which pixels count, as what, and what goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import MaskFormerImageProcessorPil as Peer

from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.processing.preprocessing import binary_masks, present_ids

IMAGE = np.zeros((8, 12, 3), np.uint8)
PROCESSOR = MaskFormerImageProcessor(do_resize=False)


def targets(*arguments, images=IMAGE, **options):
    batch = PROCESSOR(images, *arguments, return_tensors="pt", **options)
    return batch["mask_labels"], [labels.tolist() for labels in batch["class_labels"]]


def halves(left: int, right: int, dtype=np.int64) -> np.ndarray:
    label_map = np.full((8, 12), left, dtype)
    label_map[:, 6:] = right
    return label_map


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_labels_equal_the_peers_where_it_is_right(reduce: bool, mapped: bool):
    label_map = np.random.default_rng(0).integers(0, 5, (8, 12)).astype(np.uint8)
    classes = {0: 1, 1: 4, 2: 2, 3: 4, 4: 3} if mapped else None
    options = {"do_resize": False, "ignore_index": 250, "do_reduce_labels": reduce}
    ours = MaskFormerImageProcessor(**options)(IMAGE, label_map, classes, return_tensors="pt")
    theirs = Peer(**options)(IMAGE, label_map, classes, return_tensors="pt")
    assert torch.equal(ours["class_labels"][0], theirs["class_labels"][0])
    assert torch.equal(ours["mask_labels"][0].float(), theirs["mask_labels"][0])


def test_one_mapping_or_one_per_image():
    maps, images = [halves(1, 2), halves(1, 3)], [IMAGE, IMAGE]
    _, labels = targets(maps, {1: 7, 2: 7, 3: 9}, images=images)
    assert labels == [[7, 7], [7, 9]]
    _, labels = targets(maps, [{1: 0, 2: 5}, {1: 4, 3: 4}], images=images)
    assert labels == [[0, 5], [4, 4]]


def test_ignored_pixels():
    assert targets(halves(255, 2), ignore_index=255)[1] == [[2]]
    assert targets(halves(-1, 2), ignore_index=-1)[1] == [[2]]
    assert targets(halves(1, 2), {1: 255, 2: 3}, ignore_index=255)[1] == [[3]]  # the class is the ignored one
    assert targets(halves(0, 2), ignore_index=255, do_reduce_labels=True)[1] == [[1]]
    assert targets(halves(255, 2), ignore_index=255, do_reduce_labels=True)[1] == [[1]]
    assert targets(halves(1, 2), {1: 0, 2: 3}, do_reduce_labels=True)[1] == [[2]]  # class 0 is the background
    assert targets(halves(0, 2), reduce_labels=True)[1] == [[1]]


def test_a_background_of_0_does_not_ignore_the_first_class():
    label_map = halves(0, 2)
    label_map[:4] = 1
    classes = {1: 0, 2: 3}
    masks, labels = targets(label_map, classes, ignore_index=0)
    theirs = Peer(do_resize=False, ignore_index=0)(IMAGE, label_map, classes, return_tensors="pt")
    assert labels == [theirs["class_labels"][0].tolist()] == [[0, 3]]
    assert torch.equal(masks[0].float(), theirs["mask_labels"][0])
    stack = np.stack([label_map == 1, label_map == 2])
    assert targets([stack], class_labels=[[0, 3]], ignore_index=0)[1] == [[0, 3]]
    assert targets(label_map, classes, ignore_index=0, do_reduce_labels=True)[1] == [[2]]


def test_images_without_any_object():
    masks, labels = targets(halves(255, 255), ignore_index=255)
    assert labels == [[]]
    assert masks[0].shape == (0, 8, 12)
    assert masks[0].dtype == torch.bool
    for empty in (np.zeros((0, 8, 12), np.uint8), []):
        masks, labels = targets([empty], class_labels=[[]])
        assert (labels, tuple(masks[0].shape)) == ([[]], (0, 8, 12))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_overlapping_masks_with_labels(dtype):
    masks = np.zeros((2, 8, 12), dtype)
    masks[0, :, :8], masks[1, :, 4:] = 1, 1
    for stack in ([masks], masks, [torch.from_numpy(masks)]):
        found, labels = targets(stack, class_labels=[torch.tensor([5, 3])])
        assert labels == [[5, 3]]
        assert torch.equal(found[0], torch.from_numpy(masks).bool())


def test_masks_and_maps_in_one_batch_padded_and_reduced():
    masks = np.zeros((3, 4, 5), np.uint8)
    masks[0], masks[1, 0, 0] = 1, 1  # the third is empty
    images = [IMAGE, np.zeros((4, 5, 3), np.uint8)]
    found, labels = targets([halves(0, 2), masks], class_labels=[None, [4, 6, 1]], images=images, do_reduce_labels=True)
    assert labels == [[1], [3, 5]]
    assert [tuple(mask.shape) for mask in found] == [(1, 8, 12), (2, 8, 12)]
    assert found[1].flatten(1).sum(1).tolist() == [20, 1]


def test_masks_are_resized_like_maps():
    label_map = np.random.default_rng(0).integers(0, 3, (8, 12)).astype(np.uint8)
    options = {"do_resize": True, "size": {"height": 13, "width": 10}, "size_divisor": 0}
    from_map, labels = targets(label_map, **options)
    stack = np.stack([label_map == value for value in labels[0]])
    from_masks, again = targets([stack], class_labels=labels, **options)
    assert again == labels
    assert torch.equal(from_map[0], from_masks[0])


def test_maps_may_come_in_many_forms():
    batched = np.stack([halves(1, 2), halves(1, 3)])
    for maps in (batched, torch.from_numpy(batched), list(batched), [batched[:1], batched[1:]]):
        assert targets(maps, images=[IMAGE, IMAGE])[1] == [[1, 2], [1, 3]]


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (halves(1, 2)[:4], {}, r"segmentation map 0 is \(4, 12\) but its image is \(8, 12\)"),
        (halves(1, 2, np.float32), {}, "float32 values; expected integer ids"),
        ([halves(1, 2)] * 2, {}, "segmentation_maps has 2 entries for 1 images"),
        ([np.zeros((8, 12, 3), int)], {}, r"shape \(8, 12, 3\); expected \[h, w\], or class_labels"),
        (halves(1, 2), {"instance_id_to_semantic_id": {2: 0}}, r"segmentation map 0 holds the ids \[1\]"),
        (
            halves(1, 2),
            {"instance_id_to_semantic_id": [{}, {}]},
            "instance_id_to_semantic_id has 2 entries for 1 images",
        ),
        (halves(-1, 2), {}, "class -1, which becomes label -1; labels must be at least 0"),
        (halves(1, 77), {"num_labels": 5}, r"class 77, which becomes label 77; labels must be 0\.\.4"),
        ([np.ones((2, 8, 12), int)], {"class_labels": [[1]]}, r"\(2, 8, 12\) and 1 class_labels"),
        ([np.full((1, 8, 12), 255)], {"class_labels": [[1]]}, "masks must be 0 and 1"),
        ([halves(1, 2)], {"class_labels": [[1]]}, r"shape \(8, 12\); expected \[N, h, w\]"),
        ([halves(1, 2)], {"class_labels": [[1], [2]]}, "class_labels has 2 entries for 1 images"),
        (None, {"class_labels": [[1]]}, "class_labels were given without segmentation_maps"),
    ],
)
def test_bad_annotations(maps, options, message):
    with pytest.raises(ValueError, match=message):
        PROCESSOR(IMAGE, maps, **options)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.int64, (5, 7), elements=st.integers(-3, 4)), st.booleans())
def test_maps_and_masks_are_two_forms_of_one_thing(ids: np.ndarray, large: bool):
    label_map = torch.from_numpy(ids) * (2**30 if large else 1)
    values = present_ids(label_map)
    assert values == sorted(set(label_map.flatten().tolist()))
    masks = binary_masks(label_map, values, (5, 7))
    assert masks.dtype == torch.bool
    assert torch.equal(masks.sum(0), torch.ones(5, 7, dtype=torch.int64))
    assert torch.equal(torch.tensor(values)[masks.int().argmax(0)], label_map)
    assert torch.equal(binary_masks(masks, range(len(values)), (5, 7)), masks)


def test_padding_is_zero():
    padded = binary_masks(torch.ones(2, 3, 4, dtype=torch.bool), [0, 1], (5, 6))
    assert padded.shape == (2, 5, 6)
    assert padded.dtype == torch.bool
    assert int(padded.sum()) == 24
    assert binary_masks(torch.zeros(3, 4, dtype=torch.int64), [0], (5, 6)).sum() == 12
    assert binary_masks(torch.ones(0, 3, 4), [], (5, 6)).shape == (0, 5, 6)
