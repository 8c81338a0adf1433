"""`maskformer compare`: our class against transformers', and one checkpoint against another."""

import json

import pytest
import torch

from maskformer.cli import main
from maskformer.configuration import MaskFormerConfig
from maskformer.data.scenes import LABELS, STUFF_IDS
from maskformer.modeling.maskformer import MaskFormerForInstanceSegmentation
from maskformer.processing.image_processor import MaskFormerImageProcessor


def save(directory, seed) -> str:
    torch.manual_seed(seed)
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    decoder = {"model_type": "detr", "d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2}
    decoder |= {"decoder_ffn_dim": 32, "encoder_layers": 0, "encoder_attention_heads": 2, "num_queries": 10}
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    config = MaskFormerConfig(
        backbone_config=swin | stages, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32,
        id2label=LABELS,
    )  # fmt: skip
    model = MaskFormerForInstanceSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.mul_(12)
        model.class_predictor.bias[-1] = -30
    model.save_pretrained(directory)
    MaskFormerImageProcessor(size=64, max_size=96, label_ids_to_fuse=STUFF_IDS).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> tuple[str, str]:
    return save(tmp_path_factory.mktemp("one"), 0), save(tmp_path_factory.mktemp("two"), 1)


def test_ours_against_transformers(checkpoints, capsys) -> None:
    a = checkpoints[0]
    assert main(["compare", a, f"transformers:{a}", "--data", "scenes:2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pixel_agreement"] > 99.9
    assert set(found["logits"]) == {"class_queries_logits", "masks_queries_logits"}
    assert all(apart["relative"] < 1e-4 for apart in found["logits"].values())
    assert found["metrics"]["PQ"][0] == pytest.approx(found["metrics"]["PQ"][1], abs=0.1)


def test_two_checkpoints(checkpoints, capsys) -> None:
    assert main(["compare", *checkpoints, "--data", "scenes:3", "--limit", "2", "--task", "semantic"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "semantic, 2 images, percent"
    assert lines[1].split()[0] == "metric"
    assert lines[1].endswith("B - A")
    assert any(line.startswith("mIoU") for line in lines)
    assert any(line.startswith("same class: ") for line in lines)
    assert any(line.startswith("masks_queries_logits: largest difference ") for line in lines)


def test_wrong_use(checkpoints, capsys) -> None:
    assert main(["compare", *checkpoints]) == 2
    assert "compare needs --data DIR" in capsys.readouterr().err
    assert main(["compare", checkpoints[0], "--data", "scenes:1"]) == 2
    assert main(["compare", checkpoints[0], "transformers:/nothing/there", "--data", "scenes:1"]) == 1
    assert "/nothing/there" in capsys.readouterr().err
