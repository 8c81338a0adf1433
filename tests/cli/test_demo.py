"""`maskformer demo`, with the bundled checkpoint and with tiny untrained ones."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskformer.cli import main
from maskformer.cli.demo import FIRST_UNSEEN_SEED, measure
from maskformer.configuration import MaskFormerConfig
from maskformer.data.scenes import LABELS, STUFF_IDS, draw_scene
from maskformer.inference import Segment, Segmentation
from maskformer.modeling.maskformer import MaskFormerForInstanceSegmentation
from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.results import segments_of_map


def save(directory: Path, labels: dict[int, str]) -> str:
    torch.manual_seed(0)
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    decoder = {"model_type": "detr", "d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2}
    decoder |= {"decoder_ffn_dim": 32, "encoder_layers": 0, "encoder_attention_heads": 2, "num_queries": 10}
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    config = MaskFormerConfig(
        backbone_config=swin | stages,
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        id2label=labels,
    )
    model = MaskFormerForInstanceSegmentation(config)
    with torch.no_grad():
        model.mask_embedder[-1][0].weight.mul_(30)
        model.class_predictor.bias[0] = 3
        model.class_predictor.bias[-1] = -20
    model.save_pretrained(directory)
    fuse = [label for label in STUFF_IDS if label in labels]
    MaskFormerImageProcessor(size=64, max_size=96, label_ids_to_fuse=fuse).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("checkpoint"), LABELS)


class Oracle:
    """Answers with the scenes' own labels, shifted by `shift` classes."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def stream(self, images, task, batch_size):
        for seed, image in enumerate(images, start=FIRST_UNSEEN_SEED):
            scene = draw_scene(seed)
            assert (image == scene.image).all()
            infos = [
                {"id": s["id"], "label_id": (s["category_id"] + self.shift) % len(LABELS), "score": 1.0}
                for s in scene.segments
            ]
            segments: list[Segment] = segments_of_map(scene.segmentation, infos, LABELS, STUFF_IDS)
            result = scene.segmentation
            if task == "semantic":
                result = result.copy()
                for info in infos:
                    result[scene.segmentation == info["id"]] = info["label_id"]
            yield Segmentation(task, result, segments, scene.segmentation.shape, LABELS)


def test_quality_is_percent_of_the_exact_labels() -> None:
    assert measure(Oracle(), 3) == (100.0, 100.0)  # pyright: ignore
    assert measure(Oracle(shift=1), 3)[0] == 0.0  # pyright: ignore
    assert measure(Oracle(shift=1), 3)[1] < 5  # pyright: ignore


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
