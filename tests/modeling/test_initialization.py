"""Every weight starts as the table says, and loading leaves nothing to chance."""

from pathlib import Path

import pytest
import torch
from torch import nn

from maskformer import MaskFormerForInstanceSegmentation, PerPixelBaseline
from maskformer.configuration import PerPixelBaselineConfig

from .conftest import model_fields, small_config


@pytest.fixture(scope="module")
def fresh() -> MaskFormerForInstanceSegmentation:
    torch.manual_seed(0)
    config = small_config("swin-window7", init_std=0.5, init_xavier_std=3.0, pixel_decoder_encoder_layers=1)
    return MaskFormerForInstanceSegmentation(config)


def test_every_weight_has_a_rule(fresh: MaskFormerForInstanceSegmentation) -> None:
    for path, module in fresh.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            assert getattr(module, "initialization_rule", None), path


@pytest.mark.parametrize(
    ("path", "deviation", "bias"),
    [
        # truncated normal of init_std
        ("model.pixel_level_module.encoder.model.encoder.layers.3.blocks.0.intermediate.dense", 0.5, 0.0),
        # Xavier uniform times init_xavier_std: 3 * sqrt(2 / (32 + 48))
        ("model.transformer_module.decoder.layers.0.fc1", 3 * (2 / 80) ** 0.5, 0.0),
        ("model.pixel_level_module.decoder.encoder.layers.0.self_attn.q_proj", 3 * (2 / 64) ** 0.5, 0.0),
        # "c2" Xavier: uniform with variance 1 / fan_in, 32 * 9
        ("model.pixel_level_module.decoder.mask_projection", (1 / 288) ** 0.5, 0.0),
        ("model.pixel_level_module.decoder.fpn.stem.0", (1 / 288) ** 0.5, None),
        ("model.transformer_module.queries_embedder", 1.0, None),
        # PyTorch's default: uniform with variance 1 / (3 fan_in)
        ("mask_embedder.0.0", (1 / 96) ** 0.5, (1 / 96) ** 0.5),
    ],
)
def test_table(fresh: MaskFormerForInstanceSegmentation, path: str, deviation: float, bias: float | None) -> None:
    module = fresh.get_submodule(path)
    assert isinstance(module.weight, torch.Tensor)
    assert float(module.weight.detach().std()) == pytest.approx(deviation, rel=0.15)
    if bias is not None:
        assert isinstance(module.bias, torch.Tensor)
        assert float(module.bias.detach().std()) == pytest.approx(bias, rel=0.4)


def test_resnet_convolutions() -> None:
    model = MaskFormerForInstanceSegmentation(small_config("resnet-basic"))
    module = model.get_submodule("model.pixel_level_module.encoder.encoder.stages.3.layers.0.layer.1.convolution")
    assert isinstance(module.weight, torch.Tensor)
    assert float(module.weight.detach().std()) == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.15)  # fan out, ReLU


def test_the_per_pixel_baselines_classifier() -> None:
    model = PerPixelBaseline(PerPixelBaselineConfig(**model_fields("resnet-basic", num_labels=200)))
    assert float(model.predictor.weight.detach().std()) == pytest.approx((2 / 200) ** 0.5, rel=0.15)
    assert model.predictor.bias is not None
    assert not model.predictor.bias.detach().any()


@pytest.mark.parametrize("backbone", ["swin-window5", "resnet-basic"])
def test_missing_weights_are_drawn_and_loaded_ones_kept(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MaskFormerForInstanceSegmentation(small_config(backbone))
    model.save_pretrained(tmp_path)
    loaded, report = MaskFormerForInstanceSegmentation.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {each[0] for each in report["mismatched_keys"]} == {"class_predictor.weight", "class_predictor.bias"}
    assert loaded.class_predictor.weight.shape == (8, 32)
    assert 0 < float(loaded.class_predictor.weight.detach().std()) < 1
    for (path, one), other in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert path.startswith("class_predictor") or torch.equal(one, other), path
    for (path, one), other in zip(model.named_buffers(), loaded.buffers(), strict=True):
        assert path == "criterion.empty_weight" or torch.equal(one, other), path
    assert loaded.criterion.empty_weight.tolist() == pytest.approx([1.0] * 7 + [0.1])


def test_accelerates_empty_weights(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs the extra [train]")
    model = MaskFormerForInstanceSegmentation(small_config()).eval()
    model.save_pretrained(tmp_path)
    with accelerate.init_empty_weights():
        empty = MaskFormerForInstanceSegmentation(model.config)
    loaded = accelerate.load_checkpoint_and_dispatch(empty, str(tmp_path), device_map={"": "cpu"}).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values).masks_queries_logits, model(pixel_values).masks_queries_logits)


def test_the_configuration_decides_the_weight_of_no_object(tmp_path: Path) -> None:
    MaskFormerForInstanceSegmentation(small_config()).save_pretrained(tmp_path)
    loaded = MaskFormerForInstanceSegmentation.from_pretrained(tmp_path, no_object_weight=0.4)
    assert float(loaded.criterion.empty_weight[-1]) == pytest.approx(0.4)
