"""What the network does beyond transformers: deep supervision, checkpointing, half precision, compile, export."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch

from maskformer import MaskFormerConfig, MaskFormerForInstanceSegmentation, MaskFormerModel

from .conftest import labels, randomize, small_config


def build(backbone: str = "swin-window4", **changes: object) -> MaskFormerForInstanceSegmentation:
    torch.manual_seed(0)
    model = MaskFormerForInstanceSegmentation(small_config(backbone, **changes))
    randomize(model)
    return model


def test_deep_supervision_predicts_from_every_layer() -> None:
    model = build(use_auxiliary_loss=True).eval()
    pixel_values = torch.randn(2, 3, 64, 96)
    output = model(pixel_values, output_auxiliary_logits=True, output_hidden_states=True)
    assert len(output.auxiliary_logits) == 2
    states, norm = output.transformer_decoder_hidden_states, model.model.transformer_module.decoder.layernorm
    expected = model.class_predictor(norm(states[1]))
    assert torch.allclose(output.auxiliary_logits[0]["class_queries_logits"], expected, atol=1e-6)
    assert output.auxiliary_logits[1]["masks_queries_logits"].shape == (2, 10, 16, 24)


def test_deep_supervision_sums_the_heads() -> None:
    model = build(use_auxiliary_loss=True).eval()
    pixel_values, targets = torch.randn(2, 3, 64, 64), labels([(64, 64)] * 2, [2, 0])
    output = model(pixel_values, **targets, output_auxiliary_logits=True)
    heads = [
        {"masks_queries_logits": output.masks_queries_logits, "class_queries_logits": output.class_queries_logits},
        *output.auxiliary_logits,
    ]
    single = [sum(model.get_loss_dict(**head, **targets).values()) for head in heads]
    assert torch.allclose(output.loss, sum(single), rtol=1e-5)


def test_deep_supervision_is_written_so_that_transformers_can_read_it(tmp_path: Path) -> None:
    config = small_config(use_auxiliary_loss=True)
    config.save_pretrained(tmp_path)
    written = (tmp_path / "config.json").read_text()
    assert '"use_auxiliary_loss": false' in written
    assert '"deep_supervision": true' in written
    assert MaskFormerConfig.from_pretrained(tmp_path).use_auxiliary_loss


@pytest.mark.parametrize("backbone", ["swin-window4", "resnet-basic", "convnext"])
@pytest.mark.parametrize("layers", [0, 1], ids=["fpn", "encoder"])
def test_gradient_checkpointing_changes_nothing(backbone: str, layers: int) -> None:
    model = build(backbone, pixel_decoder_encoder_layers=layers, use_auxiliary_loss=True).train()
    recomputing = copy.deepcopy(model)
    recomputing._set_gradient_checkpointing(  # what both public entry points call, in every release since 5.4
        enable=True, gradient_checkpointing_func=partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    )
    assert any(getattr(module, "gradient_checkpointing", False) for module in recomputing.modules())
    pixel_values, targets = torch.randn(2, 3, 64, 64), labels([(64, 64)] * 2, [2, 1])
    losses = []
    for each in (model, recomputing):
        loss = each(pixel_values, **targets).loss
        loss.backward()
        losses.append(loss.detach())
    assert torch.allclose(losses[0], losses[1], rtol=1e-6)
    for (name, one), other in zip(model.named_parameters(), recomputing.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("entry", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*deprecated")
def test_gradient_checkpointing_entry_points(entry: str) -> None:
    model = build().train()
    if not hasattr(model, entry):
        pytest.skip(f"this release of transformers has no {entry}")
    getattr(model, entry)()
    assert sum(bool(getattr(module, "gradient_checkpointing", False)) for module in model.modules()) >= 4
    targets = labels([(64, 64)], [2])
    model(torch.randn(1, 3, 64, 64), **targets).loss.backward()
    assert model.model.transformer_module.decoder.layers[0].fc1.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backbone", ["swin-window4", "resnet-bottleneck"])
def test_half_precision_trains(backbone: str, dtype: torch.dtype) -> None:
    model = build(backbone).to(dtype).train()
    loss = model(torch.randn(1, 3, 64, 64, dtype=dtype), **labels([(64, 64)], [2])).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(loss)
    assert model.class_predictor.weight.grad.dtype == dtype


@pytest.mark.parametrize("backbone", ["swin-window4", "resnet-basic"])
def test_compiles_in_one_graph(backbone: str) -> None:
    torch._dynamo.reset()
    model = build(backbone).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, output = model(pixel_values), compiled(pixel_values)
    assert torch.allclose(output.masks_queries_logits, expected.masks_queries_logits, atol=1e-5)


@pytest.mark.parametrize(("backbone", "layers"), [("swin-window4", 0), ("resnet-basic", 0), ("resnet-bottleneck", 1)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exports_with_dynamic_sizes(backbone: str, layers: int) -> None:
    model = build(backbone, pixel_decoder_encoder_layers=layers).eval()
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        model, (torch.randn(2, 3, 96, 128),), dynamic_shapes={"pixel_values": dynamic}, strict=False
    )
    for size in ((2, 3, 96, 128), (3, 3, 70, 101)):
        pixel_values = torch.randn(size)
        with torch.no_grad():
            expected, output = model(pixel_values), program.module()(pixel_values)
        assert torch.allclose(output.masks_queries_logits, expected.masks_queries_logits, atol=1e-4)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    model = build().eval()
    pixel_values = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        together = model(pixel_values).masks_queries_logits
        alone = model(pixel_values[1:2]).masks_queries_logits
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_pixel_mask_does_not_enter_the_network() -> None:
    model = build().eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixel_values).masks_queries_logits
        output = model(pixel_values, pixel_mask=torch.zeros(1, 64, 64)).masks_queries_logits
    assert torch.equal(output, expected)


def test_normalizer_and_valid_mask_reach_the_loss() -> None:
    model = build().eval()
    pixel_values, targets = torch.randn(1, 3, 64, 64), labels([(64, 64)], [2])
    whole = model(pixel_values, **targets).loss
    blind = model(pixel_values, **targets, valid_mask=torch.zeros(1, 64, 64, dtype=torch.bool)).loss
    assert blind < whole


def test_overrides_written_for_transformers() -> None:
    class Doubled(MaskFormerForInstanceSegmentation):
        def get_loss_dict(  # pyright: ignore[reportIncompatibleMethodOverride]  # transformers' signature
            self, masks_queries_logits, class_queries_logits, mask_labels, class_labels, auxiliary_logits
        ):
            logits = masks_queries_logits, class_queries_logits
            terms = super().get_loss_dict(*logits, mask_labels, class_labels, auxiliary_logits)
            return {**terms, "loss_twice": sum(terms.values())}

        def get_loss(self, loss_dict):
            return 10 * super().get_loss(loss_dict)

    class Zero(torch.nn.Module):
        def forward(self, masks, classes, mask_labels, class_labels, auxiliary_predictions=None):
            return {"loss_mask": masks.sum() * 0, "loss_other": classes.sum() * 0 + 3}

    plain = build().eval()
    doubled = Doubled(plain.config).eval()
    doubled.load_state_dict(plain.state_dict())
    pixel_values, targets = torch.randn(1, 3, 64, 64), labels([(64, 64)], [2])
    expected = plain(pixel_values, **targets).loss
    assert torch.allclose(doubled(pixel_values, **targets).loss, 20 * expected)
    plain.weight_dict = {"loss_mask": 5.0}  # a term without a weight counts once
    terms = plain.criterion(*(plain(pixel_values)[f"{kind}_queries_logits"] for kind in ("masks", "class")), **targets)
    expected = terms["loss_cross_entropy"] + 5 * terms["loss_mask"] + terms["loss_dice"]
    assert torch.allclose(plain(pixel_values, **targets).loss, expected)
    plain.criterion = Zero()
    assert plain(pixel_values, **targets).loss.item() == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": None}, "pixel_values is nothing"),
        ({"pixel_values": torch.zeros(3, 64, 64)}, r"shape \[3, 64, 64\].*expected \[batch, 3, height, width\]"),
        ({"pixel_values": torch.zeros(1, 5, 64, 64)}, r"\[1, 5, 64, 64\]"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64), "mask_labels": []}, "class_labels is missing"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64), "class_labels": []}, "mask_labels is missing"),
    ],
)
def test_wrong_input(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(**arguments)


def test_cross_attentions_are_weights() -> None:
    output = MaskFormerModel(small_config()).eval()(torch.randn(1, 3, 64, 96), output_attentions=True)
    assert output.cross_attentions[0].shape == (1, 4, 10, 6)
    assert torch.allclose(output.cross_attentions[0].sum(-1), torch.ones(1, 4, 10), atol=1e-5)


def test_trainer_must_not_rescale_the_loss() -> None:
    assert MaskFormerForInstanceSegmentation.accepts_loss_kwargs is False


def test_gradient_checkpointing_counts_a_batch_once() -> None:
    model = build("resnet-basic").train()
    model._set_gradient_checkpointing(
        enable=True, gradient_checkpointing_func=partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    )
    plain = build("resnet-basic").train()
    pixel_values, targets = torch.randn(2, 3, 64, 64), labels([(64, 64)] * 2, [2, 1])
    for each in (model, plain):
        each(pixel_values, **targets).loss.backward()
    for (name, one), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(one, other), name
