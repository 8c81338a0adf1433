"""The three methods: equal to transformers where it is right, and to the authors' recorded results."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import MaskFormerImageProcessorPil as Peer

from maskformer.kernels import compiled
from maskformer.processing import postprocessing
from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.processing.masks import decode_run_lengths
from maskformer.processing.postprocessing import (
    instance_segmentation,
    panoptic_segmentation,
    semantic_segmentation,
)

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "postprocessing"
META = json.loads((GOLDEN / "meta.json").read_text())
SIZES = [(97, 61), (48, 130)]
METHODS = (semantic_segmentation, panoptic_segmentation, instance_segmentation)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "expected.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def recorded(golden):
    """The recorded logits with their pixel mask and target sizes."""
    mask = torch.zeros(2, *META["padded_size"], dtype=torch.int64)
    for one, (height, width) in zip(mask, META["image_sizes"], strict=True):
        one[:height, :width] = 1
    names = ("class_queries_logits", "masks_queries_logits")
    outputs = SimpleNamespace(**{name: torch.from_numpy(golden[name]) for name in names})
    return outputs, {"pixel_mask": mask, "target_sizes": META["output_sizes"]}


@pytest.mark.parametrize(
    ("protocol", "name"), [("paper", "scores_resized_last"), ("paper-panoptic", "masks_resized_first")]
)
def test_semantic_golden(golden, recorded, protocol, name):
    outputs, options = recorded
    for index, found in enumerate(semantic_segmentation(outputs, protocol=protocol, **options)):
        assert (found.numpy() != golden[f"image{index}.semantic.{name}"]).mean() <= 2e-4


@pytest.mark.parametrize(("threshold", "overlap"), [(0.0, 0.0), (0.3, 0.5), (0.5, 0.8), (0.8, 0.8)])
@pytest.mark.parametrize("protocol", ["paper", "paper-panoptic", "transformers"])
def test_panoptic_golden(golden, recorded, protocol, threshold, overlap):
    outputs, options = recorded
    stuff = set(range(META["num_classes"])) - set(META["thing_class_ids"])
    results = panoptic_segmentation(outputs, threshold, 0.5, overlap, stuff, protocol=protocol, **options)
    for index, found in enumerate(results):
        name = f"image{index}.panoptic.threshold{threshold}.overlap{overlap}"
        segments = [[s["id"], s["label_id"], int(not s["was_fused"])] for s in found["segments_info"]]
        assert segments == golden[f"{name}.segments"].tolist()
        # another order of sigmoid and resizing moves edges by a fraction of a cell
        allowed = 0.03 if protocol == "transformers" else 2e-4
        assert (found["segmentation"].numpy() != golden[name]).mean() <= allowed


def test_the_default_order_is_near_the_authors(golden, recorded):
    outputs, options = recorded
    for index, found in enumerate(semantic_segmentation(outputs, **options)):
        assert (found.numpy() != golden[f"image{index}.semantic.scores_resized_last"]).mean() <= 0.015


def noise(seed: int = 0) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        class_queries_logits=4 * torch.randn(2, 10, 6, generator=generator),
        masks_queries_logits=4 * torch.randn(2, 10, 16, 20, generator=generator),
    )


@pytest.mark.parametrize("sizes", [None, SIZES])
@pytest.mark.parametrize("seed", range(4))
def test_semantic_equals_the_peer(blobs, seed, sizes):
    for outputs in (blobs(seed), noise(seed)):
        theirs = Peer().post_process_semantic_segmentation(outputs, target_sizes=sizes)
        ours = MaskFormerImageProcessor().post_process_semantic_segmentation(outputs, sizes)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.dtype == other.dtype
            assert len(mine.unique()) > 1
            assert torch.equal(mine, other)


def test_semantic_scores_equal_the_peer(blobs):
    theirs = Peer().post_process_semantic_segmentation(blobs(), target_sizes=SIZES, return_segmentation_scores=True)
    ours = MaskFormerImageProcessor().post_process_semantic_segmentation(blobs(), SIZES, True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.segmentation_scores, other.segmentation_scores)
        assert torch.equal(mine["segmentation"], other["segmentation"])


@pytest.mark.parametrize("sizes", [None, SIZES])
@pytest.mark.parametrize("seed", range(4))
def test_panoptic_equals_the_peer_without_fusing(blobs, seed, sizes):
    # scores near 1 and no overlap test: there the peer's weighted area test cannot go wrong
    options = {"threshold": 0.8, "overlap_mask_area_threshold": 0.0, "label_ids_to_fuse": set(), "target_sizes": sizes}
    for outputs in (blobs(seed), noise(seed)):
        theirs = Peer().post_process_panoptic_segmentation(outputs, **options)
        ours = MaskFormerImageProcessor().post_process_panoptic_segmentation(outputs, **options)
        assert sum(len(result["segments_info"]) for result in ours) > 2
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["segments_info"] == other["segments_info"]
            assert torch.equal(mine["segmentation"], other["segmentation"].int().clamp(min=0))


@pytest.mark.parametrize("sizes", [None, SIZES])
@pytest.mark.parametrize("seed", range(4))
def test_instances_and_scores_equal_the_peers(blobs, seed, sizes):
    for outputs, threshold in ((blobs(seed), 0.5), (noise(seed), 0.1)):
        theirs = Peer().post_process_instance_segmentation(outputs, threshold, target_sizes=sizes)
        ours = MaskFormerImageProcessor().post_process_instance_segmentation(outputs, threshold, target_sizes=sizes)
        for mine, other in zip(ours, theirs, strict=True):
            found = [(info["score"], info["label_id"]) for info in mine["segments_info"]]
            expected = [(info["score"], info["label_id"]) for info in other["segments_info"]]
            assert found == sorted(expected, reverse=True)
            assert [info["id"] for info in mine["segments_info"]] == list(range(len(found)))
        assert any(result["segments_info"] for result in ours)


def test_the_three_forms_of_instances_agree(blobs):
    outputs = blobs(3, queries=20)
    options = {"target_sizes": SIZES, "threshold": 0.4}
    maps = instance_segmentation(outputs, **options)
    stacks = instance_segmentation(outputs, return_binary_maps=True, **options)
    runs = instance_segmentation(outputs, return_coco_annotation=True, **options)
    for flat, stack, coco, size in zip(maps, stacks, runs, SIZES, strict=True):
        assert flat["segments_info"] == stack["segments_info"] == coco["segments_info"]
        masks = stack["segmentation"]
        assert masks.dtype == torch.bool
        assert masks.shape == (len(stack["segments_info"]), *size)
        decoded = torch.stack([decode_run_lengths(run) for run in coco["segmentation"]])
        assert torch.equal(decoded, masks)
        first = torch.where(masks.any(0), masks.int().argmax(0), -1)  # the best score is on top
        assert torch.equal(flat["segmentation"].long(), first)


def test_instance_masks_are_the_thresholded_resized_probabilities(blobs):
    outputs = blobs(1)
    sizes = [(96, 128)] * 2
    result = instance_segmentation(outputs, 0.3, 0.6, target_sizes=sizes, return_binary_maps=True)[0]
    probs = torch.nn.functional.interpolate(outputs.masks_queries_logits[:1].sigmoid(), (96, 128), mode="bilinear")[0]
    for mask in result["segmentation"]:
        assert any(torch.equal(mask, prob >= 0.6) for prob in probs)


def test_an_instance_that_resizing_would_empty_keeps_its_cells(designed):
    mask = torch.full((8, 8), 0.01)
    mask[3, 4] = 0.8
    result = instance_segmentation(
        designed([(0, 0.95, mask)], classes=2), 0.3, 0.9, target_sizes=[(16, 16)], return_binary_maps=True
    )[0]
    assert result["segmentation"].nonzero().tolist() == [[0, 6, 8], [0, 6, 9], [0, 7, 8], [0, 7, 9]]


def test_a_mask_without_any_positive_cell_is_no_instance(designed):
    outputs = designed([(0, 0.95, torch.full((8, 8), 0.4))], classes=2)
    assert instance_segmentation(outputs, threshold=0.0)[0]["segments_info"] == []
    assert instance_segmentation(outputs, threshold=0.0, mask_threshold=0.3)[0]["segments_info"] == []


@pytest.mark.parametrize("sizes", [None, [(64, 64)]])
@pytest.mark.parametrize("protocol", ["transformers", "paper"])
def test_the_panoptic_mask_threshold_decides_what_a_query_claims(designed, sizes, protocol):
    # the weak query wins 8 of the 16 columns; it claims 8 of them at 0.5 and all 16 at 0.3
    weak, strong = torch.full((16, 16), 0.4), torch.full((16, 16), 0.01)
    weak[:, :8], strong[:, 8:] = 0.9, 0.95
    outputs = designed([(0, 0.9, weak), (1, 0.9, strong)], classes=2)

    def labels(mask_threshold: float) -> list[int]:
        result = panoptic_segmentation(outputs, 0.5, mask_threshold, target_sizes=sizes, protocol=protocol)[0]
        return [info["label_id"] for info in result["segments_info"]]

    assert labels(0.5) == [0, 1]
    assert labels(0.3) == [1]


def test_a_fused_segment_has_the_score_of_its_best_query(designed):
    masks = [torch.full((8, 8), 0.01) for _ in range(3)]
    for number, mask in enumerate(masks):
        mask[2 * number : 2 * number + 2] = 0.9
    outputs = designed([(0, score, mask) for score, mask in zip((0.6, 0.9, 0.7), masks, strict=True)], classes=2)
    (segment,) = panoptic_segmentation(outputs, label_ids_to_fuse={0})[0]["segments_info"]
    assert (segment["was_fused"], segment["score"]) == (True, pytest.approx(0.9, abs=1e-6))


@pytest.mark.parametrize("protocol", ["transformers", "paper"])
def test_a_panoptic_score_must_exceed_the_threshold(protocol):
    outputs = SimpleNamespace(class_queries_logits=torch.zeros(1, 1, 2), masks_queries_logits=torch.ones(1, 1, 8, 8))
    for threshold, kept in ((0.5, 0), (0.49, 1)):  # the score is 1/2, exactly
        result = panoptic_segmentation(outputs, threshold, protocol=protocol)[0]
        assert len(result["segments_info"]) == kept


def test_a_query_that_wins_just_the_share_it_needs_is_kept(designed):
    weak, strong = torch.full((16, 16), 0.4), torch.full((16, 16), 0.01)
    weak[:, :8], strong[:, 8:] = 0.9, 0.95  # the weak one claims 16 columns and wins half of them
    outputs = designed([(0, 0.9, weak), (1, 0.9, strong)], classes=2)
    for share, kept in ((0.5, [0, 1]), (0.51, [1])):
        result = panoptic_segmentation(outputs, 0.5, 0.3, share)[0]
        assert [info["label_id"] for info in result["segments_info"]] == kept


@pytest.mark.parametrize("protocol", ["transformers", "paper"])
def test_instance_masks_reach_the_mask_threshold(designed, protocol):
    mask = torch.full((8, 8), 0.01)
    mask[2:6, 2:6], mask[3:5, 3:5] = 0.7, 0.9
    outputs = designed([(0, 0.95, mask)], classes=2)
    areas = [
        int((instance_segmentation(outputs, 0.3, level, protocol=protocol)[0]["segmentation"] == 0).sum())
        for level in (0.6, 0.8)
    ]
    assert areas == [16, 4] if protocol == "transformers" else areas[0] > areas[1] > 0


def test_without_target_sizes_nothing_is_resized_though_the_window_is_fractional(designed):
    """90 x 61 input pixels are 22.5 x 15.25 cells; the results are the 23 x 16 cells themselves."""
    probs = 0.98 * torch.rand(4, 24, 32, generator=torch.Generator().manual_seed(0)) + 0.01
    outputs = designed([(label, 0.9, prob) for label, prob in enumerate(probs)], classes=4)
    mask = torch.zeros(1, 96, 128)
    mask[:, :90, :61] = 1
    probs = outputs.masks_queries_logits[0, :, :23, :16].sigmoid()
    classes = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    scores = torch.einsum("qc,qhw->chw", classes, probs)
    assert torch.equal(semantic_segmentation(outputs, pixel_mask=mask)[0], scores.argmax(0))
    with_scores = semantic_segmentation(outputs, None, True, pixel_mask=mask)[0]
    assert torch.equal(with_scores["segmentation"], scores.argmax(0))
    logits = SimpleNamespace(logits=outputs.masks_queries_logits)
    assert torch.equal(semantic_segmentation(logits, pixel_mask=mask)[0], probs.logit().argmax(0))
    panoptic = panoptic_segmentation(outputs, overlap_mask_area_threshold=0.0, pixel_mask=mask)[0]
    assert torch.equal(panoptic["segmentation"].long() - 1, probs.argmax(0))
    for level in (0.5, 0.995):  # the second leaves no pixel: the positive cells are shown instead
        options = {"threshold": 0.0, "mask_threshold": level, "pixel_mask": mask}
        stack = instance_segmentation(outputs, return_binary_maps=True, **options)[0]
        for info, found in zip(stack["segments_info"], stack["segmentation"], strict=True):
            assert torch.equal(found, probs[info["label_id"]] >= 0.5)
        flat = instance_segmentation(outputs, **options)[0]["segmentation"]
        first = torch.where(stack["segmentation"].any(0), stack["segmentation"].int().argmax(0), -1)
        assert torch.equal(flat.long(), first)


def test_both_forms_of_instances_at_once():
    with pytest.raises(ValueError, match="exclude each other"):
        instance_segmentation(noise(), return_coco_annotation=True, return_binary_maps=True)


@pytest.mark.parametrize("protocol", ["transformers", "paper", "paper-panoptic"])
def test_without_target_sizes_the_result_has_the_images_own_size(blobs, protocol):
    outputs = blobs(grid=(24, 32))
    mask = torch.zeros(2, 96, 128, dtype=torch.int64)
    mask[0, :90, :128], mask[1, :96, :61] = 1, 1
    expected = [(23, 32), (24, 16)] if protocol == "transformers" else [(90, 128), (96, 61)]
    whole = (24, 32) if protocol == "transformers" else (96, 128)
    for method in METHODS:
        for results, sizes in (
            (method(outputs, pixel_mask=mask, protocol=protocol), expected),
            (method(outputs, protocol=protocol), [whole] * 2),
        ):
            maps = [result["segmentation"] if isinstance(result, dict) else result for result in results]
            assert [tuple(one.shape) for one in maps] == sizes


@pytest.mark.parametrize("protocol", ["transformers", "paper", "paper-panoptic"])
@pytest.mark.parametrize("method", METHODS)
def test_padding_changes_nothing(blobs, method, protocol):
    """An image alone and the same image in a larger padded batch give one result; what is in the padding is ignored."""
    alone = blobs(5, batch=1, grid=(20, 24))
    padded = SimpleNamespace(
        class_queries_logits=alone.class_queries_logits,
        masks_queries_logits=torch.nn.functional.pad(alone.masks_queries_logits, (0, 8, 0, 12), mode="replicate"),
    )
    mask = torch.zeros(1, 128, 128, dtype=torch.int64)
    mask[:, :80, :96] = 1
    options = {"target_sizes": [(75, 133)], "protocol": protocol}
    found = method(padded, pixel_mask=mask, **options)[0]
    expected = method(alone, **options)[0]
    if isinstance(found, dict):
        assert found["segments_info"] == expected["segments_info"]
        found, expected = found["segmentation"], expected["segmentation"]
    assert float((found != expected).float().mean()) < (1e-9 if protocol == "transformers" else 1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(blobs, method, dtype):
    half = SimpleNamespace(**{name: value.to(dtype).requires_grad_() for name, value in vars(blobs()).items()})
    single = SimpleNamespace(**{name: value.detach().float() for name, value in vars(half).items()})
    for found, expected in zip(method(half, target_sizes=SIZES), method(single, target_sizes=SIZES), strict=True):
        if isinstance(found, dict):
            assert found["segments_info"] == expected["segments_info"]
            found, expected = found["segmentation"], expected["segmentation"]
        assert torch.equal(found, expected)
        assert not found.requires_grad


@pytest.mark.parametrize("protocol", ["transformers", "paper", "paper-panoptic"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loops", [True, False])
def test_autocast_does_not_round_scores_and_counts(blobs, monkeypatch, method, protocol, loops):
    monkeypatch.setattr(compiled, "available", loops and compiled.available)
    arguments = {"outputs": blobs(), "target_sizes": SIZES, "protocol": protocol}
    expected = method(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method(**arguments)
    assert all(
        (one["segments_info"] == other["segments_info"] and torch.equal(one["segmentation"], other["segmentation"]))
        if isinstance(one, dict)
        else torch.equal(one, other)
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("method", METHODS)
def test_results_live_where_the_logits_live(blobs, method):
    if method is semantic_segmentation:
        # the paper's order decides nothing from values, so it runs on a device that has none
        meta = SimpleNamespace(**{name: value.to("meta") for name, value in vars(blobs()).items()})
        assert {result.device.type for result in method(meta, target_sizes=SIZES, protocol="paper")} == {"meta"}
        return
    none = blobs()
    none.class_queries_logits[..., -1] = 100.0
    assert {result["segmentation"].device for result in method(none)} == {none.masks_queries_logits.device}


@pytest.mark.parametrize("protocol", ["transformers", "paper", "paper-panoptic"])
@pytest.mark.parametrize("method", METHODS)
def test_results_do_not_depend_on_the_size_of_the_groups(blobs, monkeypatch, method, protocol):
    options = {"target_sizes": SIZES, "protocol": protocol}
    together = method(blobs(), **options)
    monkeypatch.setattr(postprocessing, "VALUES_AT_ONCE", 1)
    for one, other in zip(together, method(blobs(), **options), strict=True):
        pair = (one["segmentation"], other["segmentation"]) if isinstance(one, dict) else (one, other)
        assert float((pair[0] != pair[1]).float().mean()) < 1e-4


@pytest.mark.parametrize("protocol", ["transformers", "paper"])
def test_per_pixel_logits(protocol):
    logits = torch.randn(2, 5, 16, 20, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 64, 80, dtype=torch.int64)
    mask[:, :40, :64] = 1
    found = semantic_segmentation(SimpleNamespace(logits=logits), [(50, 70)] * 2, pixel_mask=mask, protocol=protocol)
    resize = torch.nn.functional.interpolate
    cropped = logits[..., :10, :16]
    if protocol == "paper":
        cropped = resize(logits, (64, 80), mode="bilinear")[..., :40, :64]
    assert torch.equal(torch.stack(found), resize(cropped, (50, 70), mode="bilinear").argmax(1))


def test_fusing_everything_or_nothing(blobs):
    outputs = blobs(2)
    fused = panoptic_segmentation(outputs, label_ids_to_fuse=range(6))[0]
    labels = [info["label_id"] for info in fused["segments_info"]]
    assert len(labels) == len(set(labels))
    assert all(info["was_fused"] for info in fused["segments_info"])
    assert fused["segmentation"].unique().tolist() in ([*range(len(labels) + 1)], [*range(1, len(labels) + 1)])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize("labels", [[0], [1, 2]])  # an array of one 0 is false
def test_classes_to_fuse_may_be_an_array(blobs, kind, labels):
    outputs = blobs(2)
    processor, options = MaskFormerImageProcessor(), {"threshold": 0.0, "overlap_mask_area_threshold": 0.0}
    found = processor.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=kind(labels), **options)
    expected = panoptic_segmentation(outputs, label_ids_to_fuse=set(labels), **options)
    assert [result["segments_info"] for result in found] == [result["segments_info"] for result in expected]
    assert any(segment["was_fused"] for result in found for segment in result["segments_info"])


def test_the_processors_own_stuff_classes_are_the_default(blobs):
    outputs = blobs(2)
    processor = MaskFormerImageProcessor(label_ids_to_fuse=[0, 1, 2, 3, 4, 5])
    own = processor.post_process_panoptic_segmentation(outputs)[0]["segments_info"]
    none = processor.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=set())[0]["segments_info"]
    assert own == panoptic_segmentation(outputs, label_ids_to_fuse=range(6))[0]["segments_info"]
    assert none == panoptic_segmentation(outputs)[0]["segments_info"]
    assert own != none


@pytest.mark.parametrize("method", METHODS)
def test_bad_arguments(blobs, method):
    outputs = blobs()
    with pytest.raises(ValueError, match="protocol 'authors' is unknown; choose one of transformers, paper"):
        method(outputs, protocol="authors")
    with pytest.raises(ValueError, match="1 entries for 2 images"):
        method(outputs, target_sizes=[(3, 4)])
    with pytest.raises(ValueError, match="pixel_mask has shape"):
        method(outputs, pixel_mask=torch.ones(1, 96, 128))
    with pytest.raises(ValueError, match=r"expected \[B, Q, C \+ 1\] and \[B, Q, h, w\]"):
        method(SimpleNamespace(class_queries_logits=torch.zeros(1, 3, 4), masks_queries_logits=torch.zeros(1, 2, 5, 5)))
