"""ResNet against transformers' with the same weights, and against the maps recorded from the authors' networks."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import AutoBackbone, ResNetConfig

from maskformer.modeling.backbones import build_backbone
from maskformer.modeling.backbones.resnet import FrozenBatchNorm2d

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden"
TINY: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 24, 32],
    "depths": [1, 2, 2, 1],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


def tiny(**changes: Any) -> ResNetConfig:
    return ResNetConfig(**{**TINY, **changes})


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"downsample_in_bottleneck": True},
        {"layer_type": "basic"},
        {"layer_type": "basic", "hidden_sizes": [8, 16, 24, 32], "hidden_act": "gelu"},
        {"downsample_in_first_stage": True, "hidden_act": "gelu", "num_channels": 4},
    ],
)
def test_maps_and_gradients_equal_the_peer(
    changes: dict[str, Any],
    training: bool,
    twins: Callable[..., Any],
    assert_same_maps: Any,
    assert_same_gradients: Any,
    loss: Any,
) -> None:
    peer, ours = twins(tiny(**changes))
    peer.train(training)
    ours.train(training)
    pixel_values = torch.randn(2, changes.get("num_channels", 3), 97, 131)
    theirs, mine = peer(pixel_values).feature_maps, ours(pixel_values).feature_maps
    assert_same_maps(mine, theirs, 2e-5)
    loss(theirs).backward()
    loss(mine).backward()
    assert_same_gradients(ours, peer)
    for name, tensor in peer.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        ({"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}, 11.18),
        ({}, 23.51),
        ({"depths": [3, 4, 23, 3]}, 42.50),
        ({"depths": [3, 8, 36, 3]}, 58.14),
    ],
)
def test_state_dict_and_parameter_counts(settings: dict[str, Any], millions: float) -> None:
    config = ResNetConfig(**settings)
    with torch.device("meta"):
        ours, theirs = build_backbone(config), AutoBackbone.from_config(config)
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert round(sum(each.numel() for each in ours.parameters()) / 1e6, 2) == millions


def golden(name: str, deeplab: bool) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Weights of the authors' backbone under our names, normalised images, and the last map of theirs."""

    def ours(key: str) -> str:
        stem = r"embedder.embedder.\1" if deeplab else "embedder.embedder"
        key = re.sub(r"^stem\.conv(\d)", stem, key)
        key = re.sub(r"^res(\d)\.(\d+)\.conv(\d)", r"encoder.stages.\1.layers.\2.layer.\3", key)
        key = re.sub(r"^res(\d)\.(\d+)\.shortcut", r"encoder.stages.\1.layers.\2.shortcut", key)
        key = re.sub(r"(embedder|layer)\.(\d)(?=\.(weight|norm))", lambda found: f"{found[1]}.{int(found[2]) - 1}", key)
        key = re.sub(r"stages\.(\d)", lambda found: f"stages.{int(found[1]) - 2}", key)
        return (
            key.replace(".norm.", ".normalization.")
            if ".norm." in key
            else key[: -len("weight")] + "convolution.weight"
        )

    with (GOLDEN / name / "model.pkl").open("rb") as file:
        weights = pickle.load(file)["model"]
    expected = np.load(GOLDEN / name / "expected.npz")
    prefix = "backbone."
    state = {
        ours(key[len(prefix) :]): torch.as_tensor(value) for key, value in weights.items() if key.startswith(prefix)
    }
    return state, torch.as_tensor(expected["pixel_values"]), torch.as_tensor(expected["features.last"])


@pytest.mark.parametrize(("name", "stem"), [("resnet50-fpn", "basic"), ("resnet50c-fpn", "deeplab")])
def test_authors_networks(name: str, stem: Any) -> None:
    state, pixel_values, expected = golden(name, stem == "deeplab")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64, 128])
    backbone = build_backbone(config, norm="frozen", stem=stem).train()
    backbone.load_state_dict(state)
    with torch.no_grad():
        last = backbone(pixel_values).feature_maps[-1]
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_frozen_norm_is_batch_norm_in_eval_and_has_no_parameters(randomize: Any) -> None:
    frozen, reference = FrozenBatchNorm2d(6).train(), randomize(nn.BatchNorm2d(6)).eval()
    state = reference.state_dict()
    del state["num_batches_tracked"]
    frozen.load_state_dict(state)
    assert list(frozen.parameters()) == []
    features = torch.randn(2, 6, 5, 5, requires_grad=True)
    mine, theirs = frozen(features), reference(features)
    torch.testing.assert_close(mine, theirs)
    weight = torch.randn_like(mine)
    torch.testing.assert_close(
        torch.autograd.grad(mine, features, weight)[0], torch.autograd.grad(theirs, features, weight)[0]
    )
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_frozen_backbone_trains_convolutions_only(twins: Callable[..., Any], assert_same_maps: Any, loss: Any) -> None:
    peer, ours = twins(tiny(), norm="frozen")
    ours.train()
    assert {name.rsplit(".", 2)[-2] for name, _ in ours.named_parameters()} == {"convolution"}
    pixel_values = torch.randn(1, 3, 64, 64)
    maps = ours(pixel_values)
    assert_same_maps(maps, peer(pixel_values).feature_maps)
    loss(maps).backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_deeplab_layout() -> None:
    backbone: Any = build_backbone(ResNetConfig(**{**TINY, "depths": [1, 1, 1, 3]}), stem="deeplab")
    stem = [(each.convolution.stride, tuple(each.convolution.weight.shape)) for each in backbone.embedder.embedder]
    assert stem == [((2, 2), (4, 3, 3, 3)), ((1, 1), (4, 4, 3, 3)), ((1, 1), (8, 4, 3, 3))]
    assert [block.layer[1].convolution.dilation[0] for block in backbone.encoder.stages[3].layers] == [1, 2, 4]
    assert [tuple(each.shape[-2:]) for each in backbone(torch.randn(2, 3, 64, 96))] == [
        (16, 24),
        (8, 12),
        (4, 6),
        (2, 3),
    ]


@pytest.mark.parametrize(("norm", "stem"), [("batch", "basic"), ("frozen", "deeplab")])
def test_export_holds_for_every_size(norm: Any, stem: Any, assert_same_maps: Any) -> None:
    backbone = build_backbone(tiny(), norm=norm, stem=stem).eval()
    shapes = {0: Dim("batch", max=16), 2: Dim("height", min=64, max=2048), 3: Dim("width", min=64, max=2048)}
    exported = torch.export.export(backbone, (torch.randn(2, 3, 96, 130),), dynamic_shapes=(shapes,)).module()
    for size in ((1, 3, 64, 64), (3, 3, 97, 131)):
        pixel_values = torch.randn(size)
        with torch.no_grad():
            assert_same_maps(exported(pixel_values).feature_maps, backbone(pixel_values).feature_maps)


def test_output_is_a_tuple_of_maps_with_a_name() -> None:
    backbone = build_backbone(tiny(out_features=["stage4"]))
    output = backbone(torch.randn(2, 3, 64, 96))
    assert backbone.channels == [16, 16, 24, 32]
    assert backbone.strides == [4, 8, 16, 32]
    assert [tuple(each.shape) for each in output] == [(2, 16, 16, 24), (2, 16, 8, 12), (2, 24, 4, 6), (2, 32, 2, 3)]
    assert all(mine is theirs for mine, theirs in zip(output, output.feature_maps, strict=True))
    assert build_backbone(tiny(downsample_in_first_stage=True)).strides == [8, 16, 32, 64]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"depths": [1, 1, 1], "out_features": ["stage1"]}, {}, "depths=.* 3 entries, expected 4"),
        ({"hidden_sizes": [16, 16, 24]}, {}, "hidden_sizes=.* 3 entries, expected 4"),
        ({"depths": [1, 1, 1, 4]}, {"stem": "deeplab"}, "at most 3"),
        ({"layer_type": "basic"}, {"stem": "deeplab"}, "expected 'bottleneck'"),
        ({}, {"norm": "group"}, "norm='group'"),
        ({}, {"stem": "patchify"}, "stem='patchify'"),
    ],
)
def test_impossible_configurations(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(tiny(**changes), **options)
