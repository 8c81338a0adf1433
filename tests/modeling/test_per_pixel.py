"""The per-pixel baselines: outputs, losses, files. Golden outputs are in test_golden.py."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from maskformer import PerPixelBaseline, PerPixelBaselinePlus, load_model
from maskformer.configuration import PerPixelBaselineConfig
from maskformer.modeling.per_pixel import ignored_label, per_pixel_loss

from .conftest import BACKBONES, decoder_fields, model_fields

CLASSES = 5


def build(plus: bool, **changes: object) -> PerPixelBaseline | PerPixelBaselinePlus:
    torch.manual_seed(0)
    queries = decoder_fields(num_queries=CLASSES)
    config = PerPixelBaselineConfig(**model_fields("resnet-basic", decoder_config=queries, **changes))
    return PerPixelBaselinePlus(config) if plus else PerPixelBaseline(config)


@pytest.mark.parametrize("plus", [False, True])
def test_logits_are_at_stride_four(plus: bool) -> None:
    output = build(plus).eval()(torch.randn(2, 3, 64, 96))
    assert output.logits.shape == (2, CLASSES, 16, 24)
    assert output.loss is None


def test_loss_is_the_mean_over_labelled_pixels() -> None:
    logits, labels = torch.randn(2, CLASSES, 4, 6), torch.randint(CLASSES, (2, 16, 24))
    labels[:, :, 20:] = 255
    enlarged = F.interpolate(logits, size=(16, 24), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(enlarged[..., :20], labels[..., :20])
    assert torch.allclose(per_pixel_loss(logits, labels), expected, rtol=1e-5)


def test_without_any_label_the_loss_is_zero_and_connected() -> None:
    logits = torch.randn(1, CLASSES, 4, 4, requires_grad=True)
    loss = per_pixel_loss(logits, torch.full((1, 16, 16), 255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("plus", [False, True])
def test_class_weights_make_a_weighted_mean(plus: bool) -> None:
    weights = [0.0, 0.001, 2.0, 0.5, 1.0]
    model, pixel_values = build(plus, class_weights=weights).eval(), torch.randn(2, 3, 64, 64)
    labels = torch.randint(CLASSES, (2, 64, 64))
    labels[:, 50:] = 255
    output = model(pixel_values, labels=labels)
    enlarged = F.interpolate(output.logits, size=(64, 64), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(enlarged, labels, torch.tensor(weights), ignore_index=255)
    assert torch.allclose(output.loss, expected, rtol=1e-5)
    labels[labels != 255] = 0
    assert float(model(pixel_values, labels=labels).loss.detach()) == 0


def test_with_more_classes_255_is_one_of_them() -> None:
    logits, labels = torch.randn(1, 847, 4, 4), torch.full((1, 4, 4), 255)
    labels[:, 2:] = 65535
    expected = -logits.log_softmax(1)[0, 255, :2].mean()
    assert torch.allclose(per_pixel_loss(logits, labels), expected)
    with pytest.raises(ValueError, match="holds 847, expected 0 to 846 or 65535"):
        per_pixel_loss(logits, torch.full((1, 4, 4), 847))
    assert ignored_label(255) == 255
    assert ignored_label(256) == 65535


def test_baseline_plus_supervises_every_layer() -> None:
    model = build(plus=True, deep_supervision=True).eval()
    pixel_values, labels = torch.randn(1, 3, 64, 64), torch.randint(CLASSES, (1, 64, 64))
    output = model(pixel_values, labels=labels)
    assert output.auxiliary_logits is not None
    assert len(output.auxiliary_logits) == 2
    expected = sum(per_pixel_loss(each, labels) for each in (*output.auxiliary_logits, output.logits))
    assert torch.allclose(output.loss, expected)
    single = build(plus=True).eval()(pixel_values, labels=labels)
    assert single.auxiliary_logits is None


@pytest.mark.parametrize("plus", [False, True])
def test_file_round_trip(plus: bool, tmp_path: Path) -> None:
    model = build(plus).eval()
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path).eval()
    assert type(again) is type(model)
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(16, 16), r"shape \[16, 16\], expected \[1, height, width\]"),
        (torch.zeros(2, 16, 16), r"expected \[1, height, width\]"),
        (torch.full((1, 16, 16), 7), "holds 7, expected 0 to 4 or 255"),
    ],
)
def test_wrong_labels(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        per_pixel_loss(torch.zeros(1, CLASSES, 4, 4), labels)


def test_the_queries_of_baseline_plus_are_its_classes() -> None:
    config = PerPixelBaselineConfig(
        backbone_config=BACKBONES["resnet-basic"], decoder_config=decoder_fields(num_queries=7), num_labels=CLASSES
    )
    with pytest.raises(ValueError, match="7 queries and 5 classes"):
        PerPixelBaselinePlus(config)
