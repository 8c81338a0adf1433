"""A batch is what the model's forward takes: normalised, padded, with targets that are only targets."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maskformer.data.collate import Collate, PackedMasks
from maskformer.data.sample import IGNORED, Region, Sample, index_map, pack
from maskformer.data.scene_set import SceneDataset
from maskformer.data.transforms import crop
from maskformer.processing.image_processor import MaskFormerImageProcessor


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [SceneDataset(4, size=(40, 56))[0], SceneDataset(4, size=(48, 36))[1]]


def test_images_are_padded_at_the_bottom_and_right(samples):
    batch = Collate()(samples)
    assert set(batch) == {"pixel_values", "pixel_mask", "mask_labels", "class_labels"}
    assert batch["pixel_values"].shape == (2, 3, 48, 56)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_mask"].dtype == torch.int64
    for place, sample in enumerate(samples):
        height, width = sample.size
        inside = np.zeros((48, 56), bool)
        inside[:height, :width] = True
        assert np.array_equal(batch["pixel_mask"][place].numpy(), inside)
        assert not batch["pixel_values"][place][:, ~torch.from_numpy(inside)].any()
        expected = (sample.image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        shown = batch["pixel_values"][place, :, :height, :width].permute(1, 2, 0).numpy()
        assert np.abs(shown - expected).max() < 1e-5


@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.bfloat16, "cpu"), (None, "meta")])
def test_torchs_defaults_change_nothing(samples, dtype, device):
    collate = Collate(packed=False, with_valid_mask=True)
    expected, before = collate(samples), torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        with torch.device(device):  # what torch.set_default_device sets
            found = collate(samples)
    finally:
        torch.set_default_dtype(before)
    for name, values in expected.items():
        for one, other in zip(found[name], values, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_it_is_what_the_image_processor_makes(samples):
    sample = samples[0]
    mine = Collate()([sample])
    labels = torch.from_numpy(sample.planes[0].astype(np.int64))
    classes = {place + 1: region.label_id for place, region in enumerate(sample.regions)}
    processor = MaskFormerImageProcessor(do_resize=False, size_divisor=0)
    theirs = processor([sample.image], [labels], instance_id_to_semantic_id=classes, return_tensors="pt")
    assert torch.allclose(mine["pixel_values"], theirs["pixel_values"], atol=1e-5)
    assert torch.equal(mine["pixel_mask"], theirs["pixel_mask"].to(torch.int64))
    assert torch.equal(mine["mask_labels"][0], theirs["mask_labels"][0].bool())
    assert torch.equal(mine["class_labels"][0], theirs["class_labels"][0])


def test_masks_are_those_of_the_targets(samples):
    crowd = replace(samples[0], regions=(samples[0].regions[0]._replace(iscrowd=True), *samples[0].regions[1:]))
    batch = Collate()([crowd, samples[1]])
    for place, sample in enumerate((crowd, samples[1])):
        wanted = [number for number, region in enumerate(sample.regions) if region.is_target]
        masks, classes = batch["mask_labels"][place], batch["class_labels"][place]
        assert masks.dtype == torch.bool
        assert masks.shape == (len(wanted), 48, 56)
        assert np.array_equal(masks[:, : sample.size[0], : sample.size[1]].numpy(), sample.masks(wanted))
        assert int(masks.sum()) == sample.areas()[wanted].sum()  # none in the padding
        assert classes.tolist() == [sample.regions[number].label_id for number in wanted]
    assert len(batch["mask_labels"][0]) == len(samples[0].regions) - 1


def test_objects_without_pixels_are_gone_from_masks_and_classes_alike(samples):
    window = crop(samples[0], 0, 0, 8, 8)
    batch = Collate()([window])
    assert 0 < len(batch["mask_labels"][0]) < len(window.regions)
    assert len(batch["class_labels"][0]) == len(batch["mask_labels"][0])
    assert batch["mask_labels"][0].flatten(1).any(1).all()
    shown = {window.regions[place].label_id for place in np.unique(window.planes) - 1}
    assert set(batch["class_labels"][0].tolist()) == shown


def test_sizes_that_recipes_ask_for(samples):
    assert Collate(multiple=32)(samples)["pixel_values"].shape == (2, 3, 64, 64)
    fixed = Collate(size=(64, 100))(samples)
    assert fixed["pixel_values"].shape == (2, 3, 64, 100)
    assert fixed["mask_labels"][1].shape[1:] == (64, 100)
    with pytest.raises(ValueError, match=r"an image is \[48, 56\] \(height, width\), larger than size=\(40, 60\)"):
        Collate(size=(40, 60))(samples)


def test_what_does_not_count_is_not_valid():
    values = np.array([[0, 1, 2, 3]] * 2)
    classes = {0: Region(0, 0), 1: Region(IGNORED, 255), 2: Region(1, 1, True, iscrowd=True)}
    planes, regions = index_map(values, classes.get)  # 3 is background, which counts
    sample = Sample(np.zeros((2, 4, 3), np.uint8), planes, regions)
    batch = Collate(with_valid_mask=True, size=(3, 5))([sample])
    assert batch["valid_mask"].dtype == torch.bool
    assert batch["valid_mask"][0].int().tolist() == [[1, 0, 0, 1, 0]] * 2 + [[0] * 5]
    assert batch["class_labels"][0].tolist() == [0]


def test_a_target_inside_a_crowd_counts():
    crowd, target = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    target[1:3] = True
    regions = (Region(1, 1, True, iscrowd=True), Region(1, 1, True))
    sample = Sample(np.zeros((4, 4, 3), np.uint8), pack([crowd, target], (4, 4)), regions, True)
    assert np.array_equal(Collate(with_valid_mask=True)([sample])["valid_mask"][0].numpy(), target)


def test_an_image_without_any_object():
    sample = Sample(np.zeros((8, 8, 3), np.uint8), pack([], (8, 8)), (), True)
    batch = Collate(with_valid_mask=True)([sample])
    assert batch["mask_labels"][0].shape == (0, 8, 8)
    assert batch["class_labels"][0].shape == (0,)
    assert batch["class_labels"][0].dtype == torch.int64
    assert batch["valid_mask"].all()


def test_packed_targets_are_the_same_masks(samples):
    many = replace(samples[0], planes=pack(samples[0].masks(), samples[0].size), overlapping=True)
    for sample in (samples[0], many):
        plain = Collate()([sample, samples[1]])["mask_labels"]
        packed = Collate(packed=True)([sample, samples[1]])["mask_labels"]
        for masks, compact in zip(plain, packed, strict=True):
            assert isinstance(compact, PackedMasks)
            assert compact.shape == masks.shape
            assert len(compact) == len(masks)
            assert torch.equal(compact.unpack(), masks)
            assert torch.equal(compact[torch.tensor([2, 0])], masks[[2, 0]])
            again = pickle.loads(pickle.dumps(compact)).to("cpu")
            assert torch.equal(again.unpack(), masks)
            assert compact.planes.numel() * compact.planes.element_size() * 4 <= masks.numel()


def test_a_loader_with_workers(samples):
    loader = torch.utils.data.DataLoader(
        SceneDataset(4, size=(40, 56)), batch_size=2, collate_fn=Collate(packed=True), num_workers=1
    )
    batches = list(loader)
    assert len(batches) == 2
    assert torch.equal(batches[0]["mask_labels"][0].unpack(), Collate()([samples[0]])["mask_labels"][0])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_what_is_learnt_at_a_stride_stays_in_its_place(stride):
    """A network that learns its targets exactly, and whose masks are enlarged: they lie where the objects are."""
    rows, columns = np.mgrid[:128, :128]
    offsets = []
    for seed in range(40):
        row, column, radius = np.random.default_rng(seed).uniform([30, 30, 8], [98, 98, 28])
        disc = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        planes, regions = index_map(disc.astype(int), {0: Region(IGNORED, 255), 1: Region(0, 1)}.get)
        sample = Sample(np.zeros((128, 128, 3), np.uint8), planes, regions)
        batch = Collate(target_stride=stride, with_valid_mask=True)([sample])
        (mask,) = batch["mask_labels"]
        assert torch.equal(mask, batch["valid_mask"])
        learnt = F.interpolate(mask[None].float() - 0.5, size=(128, 128), mode="bilinear")[0, 0] >= 0
        offsets.append(learnt.nonzero().double().mean(0) - torch.from_numpy(disc).nonzero().double().mean(0))
    assert torch.stack(offsets).mean(0).abs().max() < 0.6  # half a pixel is left, as cells have no middle one


def test_the_smallest_pictures_keep_a_target_at_a_stride():
    planes, regions = index_map(np.ones((5, 1), int), lambda value: Region(0, value))
    (mask,) = Collate(target_stride=4)([Sample(np.zeros((5, 1, 3), np.uint8), planes, regions)])["mask_labels"]
    assert mask.shape == (1, 2, 1)
