"""Two models on the same images: nothing apart where they are one, and the right numbers where they are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskformer.data.recognise import open_dataset
from maskformer.evaluation.compare import compare
from maskformer.evaluation.evaluate import evaluate
from maskformer.evaluation.loop import Options

from .painter import painter_segmenter, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), 4)


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_a_model_equals_itself(folder, task):
    dataset = open_dataset(folder, "val", "coco-panoptic", task)
    found = compare(painter_segmenter(task), painter_segmenter(task), dataset, task)
    expected = evaluate(painter_segmenter(task), dataset, task).metrics
    assert found.metrics == {name: (value, value) for name, value in expected.items()}
    assert found.pixel_agreement == 100
    assert found.identical_maps == found.num_images == 4
    assert found.map_agreement == (100 if task == "panoptic" else None)
    assert {name: each.largest for name, each in found.logits.items()} == {
        "class_queries_logits": 0, "masks_queries_logits": 0,
    }  # fmt: skip


def test_what_two_models_differ_in(folder):
    dataset = open_dataset(folder, "val", "coco-panoptic", "panoptic")
    other = painter_segmenter()
    with torch.no_grad():
        other.model.colors[:8] += 0.05  # sky and mountains
    found = compare(painter_segmenter(), other, dataset, "panoptic", Options(batch_size=4, limit=3))
    assert found.num_images == 3
    alone = [evaluate(each, dataset, "panoptic", Options(limit=3)).metrics for each in (painter_segmenter(), other)]
    assert found.metrics == {name: (alone[0][name], alone[1][name]) for name in alone[0]}
    assert alone[0] != alone[1]
    assert 10 < found.pixel_agreement < 99
    assert found.identical_maps == 0
    assert found.map_agreement is not None
    assert found.map_agreement < 99
    # A colour apart by 0.05 in three channels moves the logits by 200 * 0.15 at most.
    apart = found.logits["masks_queries_logits"]
    assert apart.largest == pytest.approx(30, abs=0.01)
    assert 0 < apart.mean < 30 * 8 / 56 + 0.01
    sums = np.zeros(2)
    for index in range(3):
        image = painter_segmenter().image_processor(dataset[index].image, return_tensors="pt")["pixel_values"]
        ours, theirs = (each.model(image).masks_queries_logits.detach() for each in (painter_segmenter(), other))
        sums += [float((ours - theirs).double().square().sum()), float(ours.double().square().sum())]
    assert apart.relative == pytest.approx(np.sqrt(sums[0] / sums[1]), rel=1e-6)


def test_models_of_other_classes_are_refused(folder):
    dataset = open_dataset(folder, "val", "coco-panoptic", "panoptic")
    with pytest.raises(ValueError, match="are not the 14 of the data"):
        compare(painter_segmenter(), painter_segmenter(labels={0: "sky", 1: "cat"}), dataset, "panoptic")
