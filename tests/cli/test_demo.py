"""`maskformer demo`, with the bundled checkpoint and with tiny untrained ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer import Segmenter
from maskformer.cli import main
from maskformer.cli.demo import FIRST_UNSEEN_SEED, measure
from maskformer.data.scenes import CLASSES, draw_scene
from maskformer.evaluation.miou import MeanIoU
from maskformer.evaluation.panoptic_quality import PanopticQuality

from .conftest import save


def test_quality_is_percent_of_the_exact_labels(checkpoint) -> None:
    """The same figures, scene by scene, from what the Segmenter returns."""
    segmenter = Segmenter.from_pretrained("scenes", device="cpu")
    categories = [{"id": i, "name": entry.name, "isthing": entry.isthing} for i, entry in enumerate(CLASSES)]
    quality, iou = PanopticQuality(categories), MeanIoU(len(CLASSES))
    for seed in range(FIRST_UNSEEN_SEED, FIRST_UNSEEN_SEED + 3):
        scene = draw_scene(seed)
        result = segmenter.predict(scene.image, "panoptic")[0]
        quality.update(result.segmentation, result.segments, scene.segmentation, scene.segments)
        classes = np.zeros(len(scene.segments) + 1, np.int64)
        for segment in scene.segments:
            classes[segment["id"]] = segment["category_id"]
        iou.update(segmenter.predict(scene.image, "semantic")[0].segmentation, classes[scene.segmentation])
    expected = quality.result().all.pq, iou.result().mean_iou
    assert measure(segmenter, 3) == pytest.approx(expected, abs=0.1)  # batches round differently
    assert measure(Segmenter.from_pretrained(checkpoint, device="cpu"), 3)[0] < 5  # of an untrained network


def test_json_is_the_same_every_time(tmp_path, capsys) -> None:
    """The bundled checkpoint itself: it knows what it was trained for, and says so in the same figures each time."""
    out = tmp_path / "new" / "demo"
    words = ["demo", "--out", str(out), "--scenes", "2", "--json"]
    assert main(words) == 0
    first = capsys.readouterr().out
    content = json.loads(first)
    assert 50 < content["panoptic_quality"] <= 100
    assert 50 < content["mean_iou"] <= 100
    assert content["scenes"] == 2
    assert content["segments"]
    assert set(content["segments"][0]) == {"id", "label", "label_id", "score", "area", "bbox", "is_thing"}
    expected = {"picture.png", *(f"picture.{task}.overlay.png" for task in ("semantic", "instance", "panoptic"))}
    assert {path.name for path in out.iterdir()} == expected
    assert {Path(file).name for file in content["written"]} == expected - {"picture.png"}
    with Image.open(out / "picture.png") as picture:
        assert picture.size == (512, 384)
    before = (out / "picture.png").read_bytes()
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert (out / "picture.png").read_bytes() == before


def test_text_and_a_picture_of_ones_own(checkpoint, tmp_path, capsys) -> None:
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "mine.jpg")
    out = tmp_path / "demo"
    words = ["demo", "--image", str(tmp_path / "mine.jpg"), "--out", str(out), "--model", checkpoint, "--scenes", "1"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "panoptic quality" in captured.out
    assert "mean IoU" in captured.out
    assert "semantic: " in captured.out
    assert "unseen scenes" in captured.err
    assert {path.name for path in out.iterdir()} == {
        f"mine.{task}.overlay.png" for task in ("semantic", "instance", "panoptic")
    }


def test_a_model_of_other_classes_is_not_measured(tmp_path, capsys) -> None:
    model = save(tmp_path / "model", {0: "one", 1: "two"})
    assert main(["demo", "--out", str(tmp_path / "demo"), "--model", model, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["panoptic_quality"], content["mean_iou"], content["scenes"]) == (None, None, 0)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--model", model]) == 0
    assert "not measured" in capsys.readouterr().out


def test_bad_usage_and_missing_files(checkpoint, tmp_path, capsys) -> None:
    assert main(["demo", "--scenes", "0", "--model", checkpoint]) == 2
    assert (
        main(["demo", "--image", str(tmp_path / "no.png"), "--out", str(tmp_path / "demo"), "--model", checkpoint]) == 1
    )
    assert "no.png" in capsys.readouterr().err
