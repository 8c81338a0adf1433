"""Where transformers' network is wrong and ours is not: each test shows both, so that it tells when the peer is fixed.

The numbers are those of the table in the changelog's Numerics section; rows of the loss and of the processor are in
their own rooms.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from maskformer import MaskFormerForInstanceSegmentation, MaskFormerImageProcessor, Segmenter

from .conftest import BACKBONES, labels, model_fields, small_config

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
DYNAMIC = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}


def peer(backbone: str = "swin-window4", **changes: object) -> transformers.MaskFormerForInstanceSegmentation:
    config = transformers.MaskFormerConfig(**model_fields(backbone, **changes))
    return transformers.MaskFormerForInstanceSegmentation(config)


def ours(backbone: str = "swin-window4", **changes: object) -> MaskFormerForInstanceSegmentation:
    return MaskFormerForInstanceSegmentation(small_config(backbone, **changes))


def test_row_1_auxiliary_losses() -> None:
    pixel_values, targets = torch.randn(1, 3, 64, 64), labels([(64, 64)], [2])
    with pytest.raises(TypeError):
        peer(use_auxiliary_loss=True)(pixel_values, **targets)
    loss = ours(use_auxiliary_loss=True)(pixel_values, **targets).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_row_1_auxiliary_heads_see_normalised_states_only() -> None:
    """With hidden states the peer runs, and supervises the zero input of the first layer and raw states."""
    pixel_values = torch.randn(1, 3, 64, 64)
    other = peer(use_auxiliary_loss=True).eval()
    found = other(pixel_values, output_hidden_states=True, output_auxiliary_logits=True)
    blank = other.class_predictor(torch.zeros(1, 10, 32))
    assert len(found.auxiliary_logits) == 3
    assert torch.allclose(found.auxiliary_logits[0]["class_queries_logits"], blank)
    output = ours(use_auxiliary_loss=True).eval()(pixel_values, output_auxiliary_logits=True)
    assert len(output.auxiliary_logits) == 2


def test_row_12_gradient_checkpointing() -> None:
    with pytest.raises(ValueError, match="does not support"):
        peer().gradient_checkpointing_enable()
    model = ours()
    model.gradient_checkpointing_enable()
    assert model.model.transformer_module.decoder.gradient_checkpointing


@pytest.mark.slow  # the peer's export takes more than a minute
def test_row_13_export_with_dynamic_sizes() -> None:
    """The peer's Swin exports a program that holds for multiples of 4 alone."""
    example = (torch.randn(2, 3, 96, 128),)
    program = torch.export.export(peer().eval(), example, dynamic_shapes={"pixel_values": DYNAMIC}, strict=False)
    with pytest.raises(AssertionError, match="Guard failed"):
        program.module()(torch.randn(1, 3, 70, 101))
    program = torch.export.export(ours().eval(), example, dynamic_shapes={"pixel_values": DYNAMIC}, strict=False)
    assert program.module()(torch.randn(1, 3, 70, 101)).masks_queries_logits.shape[-2:] == (18, 26)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = ((64, 96), (96, 64))
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_row_16_a_result_does_not_depend_on_the_batch(pictures: list[Image.Image]) -> None:
    settings = {"size": {"shortest_edge": 64, "longest_edge": 96}, "size_divisor": 32}
    processor = transformers.MaskFormerImageProcessorPil(**settings)
    torch.manual_seed(0)
    other = peer().eval()
    with torch.no_grad():
        together = other(**processor(pictures, return_tensors="pt")).class_queries_logits[0]
        alone = other(**processor(pictures[:1], return_tensors="pt")).class_queries_logits[0]
    assert not torch.allclose(together, alone, atol=1e-5)
    torch.manual_seed(0)
    segmenter = Segmenter(ours().eval(), MaskFormerImageProcessor(**settings), task="semantic")
    both, single = segmenter.predict(pictures), segmenter.predict(pictures[0])
    assert (both[0].segmentation == single[0].segmentation).mean() >= 0.9999


def test_row_17_drop_path_on_both_branches() -> None:
    """In training, at a rate of almost 1, nothing of either branch is left: a block passes its input through."""
    fields = {**BACKBONES["swin-window4"], "drop_path_rate": 0.999}
    theirs = transformers.MaskFormerSwinConfig(**{k: v for k, v in fields.items() if k != "model_type"})
    models = (
        transformers.AutoBackbone.from_config(theirs),
        ours(backbone_config=fields).model.pixel_level_module.encoder,
    )
    changed: list[float] = []
    for model in models:
        torch.manual_seed(0)
        block = model.get_submodule("model.encoder.layers.3.blocks.0")
        block.register_forward_hook(
            lambda module, arguments, result: changed.append(
                float(((result[0] if isinstance(result, tuple) else result) - arguments[0]).detach().abs().max())
            )
        )
        model.train()(torch.randn(1, 3, 64, 64))
    assert changed[0] > 1e-3
    assert changed[1] == 0


def test_row_18_what_transformers_cannot_represent_it_refuses(tmp_path: Path) -> None:
    """Marked as ours it is refused; under the published name the same file loads with random weights left over."""
    model = ours("resnet-basic", pixel_decoder_encoder_layers=2)
    model.save_pretrained(tmp_path)
    for loader in (transformers.AutoConfig, transformers.MaskFormerForInstanceSegmentation):
        with pytest.raises(ValueError, match="maskformer-extended"):
            loader.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"], config["decoder_config"]["model_type"] = "maskformer", "detr"
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, report = transformers.MaskFormerForInstanceSegmentation.from_pretrained(
        tmp_path, output_loading_info=True, ignore_mismatched_sizes=True
    )
    assert report["unexpected_keys"]
