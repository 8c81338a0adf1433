"""Backbones that are not ours: taken from transformers, checked, and left as they are."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BeitConfig, BertConfig, ConvNextConfig, MaskFormerSwinConfig, ResNetConfig

from maskformer.modeling.backbones import build_backbone

STAGES = ["stem", "stage1", "stage2", "stage3", "stage4"]
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}


def convnext(out_features: list[str]) -> ConvNextConfig:
    return ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=out_features)


def test_convnext_is_transformers_own(
    twins: Callable[..., Any], assert_same_maps: Any, assert_same_gradients: Any, loss: Any
) -> None:
    peer, ours = twins(convnext(STAGES[1:]))
    assert list(ours.state_dict()) == list(peer.state_dict())
    assert ours.channels == [8, 16, 24, 32]
    assert ours.strides == [4, 8, 16, 32]
    pixel_values = torch.randn(2, 3, 97, 131)
    theirs, mine = peer(pixel_values).feature_maps, ours(pixel_values=pixel_values).feature_maps
    assert_same_maps(mine, theirs)
    for maps in (theirs, mine):
        loss(maps).backward()
    assert_same_gradients(ours, peer)


@pytest.mark.parametrize(
    "config", [MaskFormerSwinConfig(**SWIN), ResNetConfig(depths=[1, 1, 1, 1]), convnext(STAGES[1:])]
)
def test_every_backbone_keeps_the_contract_and_can_be_copied(config: Any, assert_same_maps: Any) -> None:
    backbone = build_backbone(config).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = backbone(pixel_values).feature_maps
        assert [each.shape[1] for each in maps] == backbone.channels
        assert [64 // each.shape[2] for each in maps] == backbone.strides
        assert_same_maps(copy.deepcopy(backbone)(pixel_values).feature_maps, maps, 0.0)
        if config.model_type != "convnext":  # transformers' own cannot be pickled
            assert_same_maps(pickle.loads(pickle.dumps(backbone))(pixel_values).feature_maps, maps, 0.0)


@pytest.mark.parametrize("out_features", [["stage4"], STAGES[2:], STAGES])
def test_other_than_four_maps(out_features: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"{len(out_features)} feature maps .*expected 4.*stage1"):
        build_backbone(convnext(out_features))


def test_four_maps_with_other_strides_show_with_the_first_image() -> None:
    backbone = build_backbone(convnext(STAGES[:4]))
    with pytest.raises(ValueError, match=r"sizes \[\(24, 24\), \(24, 24\), .*strides \[4, 8, 16, 32\]"):
        backbone(torch.zeros(1, 3, 96, 96))


def test_plain_transformer_has_no_pyramid() -> None:
    config = BeitConfig(
        image_size=64,
        hidden_size=8,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=True,
    )
    with pytest.raises(ValueError, match=r"expected 4 maps with strides \[4, 8, 16, 32\]"):
        build_backbone(config)(torch.zeros(1, 3, 64, 64))


def test_configuration_without_backbone() -> None:
    with pytest.raises(ValueError, match=r"'bert' configuration as backbone_config.*convnext"):
        build_backbone(BertConfig())


@pytest.mark.parametrize("options", [{"norm": "frozen"}, {"stem": "deeplab"}])
@pytest.mark.parametrize("config", [MaskFormerSwinConfig(**SWIN), convnext(STAGES[1:])])
def test_resnet_options_on_others(config: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exist for ResNet alone"):
        build_backbone(config, **options)
