"""Swin against transformers' MaskFormerSwin with the same weights, and what transformers' does not do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim
from transformers import AutoBackbone, MaskFormerSwinConfig, SwinConfig

from maskformer.modeling.backbones import build_backbone
from maskformer.modeling.backbones.swin import (
    SwinBackbone,
    SwinBlock,
    WindowSelfAttention,
    relative_position_index,
)
from maskformer.modeling.backbones.windows import window_layout

STAGES = ["stage1", "stage2", "stage3", "stage4"]
TINY: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 8,
    "depths": [2, 1, 2, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "out_features": STAGES,
}


def tiny(**changes: Any) -> MaskFormerSwinConfig:
    return MaskFormerSwinConfig(**{**TINY, **changes})


def any_block(drop_path: float) -> SwinBlock:
    attention = WindowSelfAttention(8, 2, 4, True, 0.0)
    return SwinBlock(8, attention, 32, nn.GELU(), 0.0, drop_path, 1e-5)


@pytest.mark.parametrize("window_size", [4, 5, 7, 12])
def test_maps_and_gradients_equal_the_peer(
    window_size: int, twins: Callable[..., Any], assert_same_maps: Any, assert_same_gradients: Any, loss: Any
) -> None:
    peer, ours = twins(tiny(window_size=window_size))
    pixel_values = torch.randn(2, 3, 97, 131)
    theirs, mine = peer(pixel_values).feature_maps, ours(pixel_values).feature_maps
    assert_same_maps(mine, theirs)
    loss(theirs).backward()
    loss(mine).backward()
    assert_same_gradients(ours, peer)


@pytest.mark.parametrize(
    "changes",
    [
        {"qkv_bias": False, "mlp_ratio": 2.5},
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2},
        {"patch_size": 2, "num_channels": 4},
        {"depths": [1, 1, 1, 3], "window_size": 3},
    ],
)
def test_settings_equal_the_peer(changes: dict[str, Any], twins: Callable[..., Any], assert_same_maps: Any) -> None:
    peer, ours = twins(tiny(**changes))
    pixel_values = torch.randn(1, changes.get("num_channels", 3), 41, 75)
    with torch.no_grad():
        assert_same_maps(ours(pixel_values).feature_maps, peer(pixel_values).feature_maps)


@pytest.mark.parametrize("size", [(1, 1), (5, 33), (32, 32), (100, 64)])
def test_sizes_equal_the_peer(size: tuple[int, int], twins: Callable[..., Any], assert_same_maps: Any) -> None:
    peer, ours = twins(tiny(window_size=5))
    pixel_values = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_same_maps(ours(pixel_values).feature_maps, peer(pixel_values).feature_maps)


@pytest.mark.parametrize("size", [(64, 48), (50, 90)])
def test_absolute_embeddings(
    size: tuple[int, int], twins: Callable[..., Any], randomize: Any, assert_same_maps: Any
) -> None:
    """transformers' own fail on every size (they have a row for a class token), so theirs are set to what fits."""
    peer, _ = twins(tiny(image_size=(64, 48)))
    ours = build_backbone(tiny(image_size=(64, 48), use_absolute_embeddings=True)).eval()
    missing, unexpected = ours.load_state_dict(
        {name: tensor for name, tensor in peer.state_dict().items() if name in ours.state_dict()}, strict=False
    )
    assert (missing, unexpected) == (["model.embeddings.position_embeddings"], [])
    table = ours.model.embeddings.position_embeddings
    assert table.shape == (1, 16 * 12 + 1, 8)
    with torch.no_grad():
        table.normal_()
        height, width = (-(-each // 4) for each in size)
        grid = table[0, 1:].view(16, 12, 8).permute(2, 0, 1)[None]
        if (height, width) != (16, 12):
            grid = F.interpolate(grid, (height, width), mode="bicubic")
        peer.model.embeddings.position_embeddings = nn.Parameter(grid[0].flatten(1).t()[None])
        pixel_values = torch.randn(2, 3, *size)
        assert_same_maps(ours(pixel_values).feature_maps, peer(pixel_values).feature_maps)


def test_state_dict_keys_and_shapes_are_the_published_ones() -> None:
    config = tiny(use_absolute_embeddings=True)
    theirs = {name: tensor.shape for name, tensor in AutoBackbone.from_config(config).state_dict().items()}
    unused = {"model.layernorm.weight", "model.layernorm.bias"}
    expected = {
        name: shape
        for name, shape in theirs.items()
        if name not in unused and not name.endswith("relative_position_index")
    }
    assert {name: tensor.shape for name, tensor in build_backbone(config).state_dict().items()} == expected


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        ({}, 27.52),
        ({"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}, 86.88),
    ],
)
def test_parameter_counts(settings: dict[str, Any], millions: float) -> None:
    config = MaskFormerSwinConfig(**settings, out_features=STAGES)
    with torch.device("meta"):
        ours = sum(each.numel() for each in build_backbone(config).parameters())
        theirs = sum(each.numel() for each in AutoBackbone.from_config(config).parameters())
    assert ours == theirs - 2 * config.hidden_size
    assert round(ours / 1e6, 2) == millions


def test_relative_position_index() -> None:
    drawn = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_position_index(2, torch.device("cpu")).tolist() == drawn


def test_meta_build_is_whole_after_loading(assert_same_maps: Any) -> None:
    config = tiny()
    source = build_backbone(config).eval()
    with torch.device("meta"):
        backbone = build_backbone(config).eval()
    backbone.to_empty(device="cpu")
    for module in backbone.modules():
        if hasattr(module, "reset_buffers"):
            module.relative_position_index.fill_(-1)
            address = module.relative_position_index.data_ptr()
            module.reset_buffers()
            assert module.relative_position_index.data_ptr() == address
    backbone.load_state_dict(source.state_dict())
    pixel_values = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert_same_maps(backbone(pixel_values), source(pixel_values), 0.0)


def test_output_is_a_tuple_of_maps_with_a_name() -> None:
    backbone = build_backbone(tiny())
    output = backbone(torch.randn(2, 3, 64, 96))
    assert backbone.channels == [8, 16, 32, 64]
    assert backbone.strides == [4, 8, 16, 32]
    assert [tuple(each.shape) for each in output] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]
    assert all(mine is theirs for mine, theirs in zip(output, output.feature_maps, strict=True))
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in output)


def test_images_of_a_batch_do_not_mix(assert_same_maps: Any) -> None:
    backbone = build_backbone(tiny()).eval()
    pixel_values = torch.randn(3, 3, 50, 70)
    with torch.no_grad():
        together = backbone(pixel_values)
        apart = [backbone(each[None]) for each in pixel_values]
    assert_same_maps(together, tuple(torch.cat(maps) for maps in zip(*apart, strict=True)))


def test_drop_path_of_one_leaves_the_identity() -> None:
    """Also on the MLP branch, which transformers never drops."""
    block = any_block(drop_path=1.0)
    tokens = torch.randn(2, 36, 8)
    layout = window_layout(tokens.view(2, 6, 6, 8), 4, 0)
    assert torch.equal(block.train()(tokens, layout, None), tokens)
    assert not torch.allclose(block.eval()(tokens, layout, None), tokens)


@pytest.mark.parametrize("branch", ["attention.output.dense", "output.dense"])
def test_drop_path_drops_images_and_scales_the_rest(branch: str) -> None:
    block = any_block(drop_path=0.75).train()
    for parameter in block.get_submodule(branch).parameters():
        nn.init.zeros_(parameter)  # of the two branches the other one remains
    tokens = torch.randn(1, 36, 8).expand(64, -1, -1)
    layout = window_layout(tokens.view(64, 6, 6, 8), 4, 0)
    with torch.no_grad():
        added = (block(tokens, layout, None) - tokens).flatten(1)
        full = (block.eval()(tokens, layout, None) - tokens).flatten(1)
    kept = added.abs().amax(1) > 0
    assert 4 <= kept.sum() <= 32  # a quarter of 64, give or take
    torch.testing.assert_close(added[kept], 4 * full[kept], rtol=0, atol=1e-5)


def test_drop_path_rises_evenly() -> None:
    config = tiny(drop_path_rate=0.3)
    ours: Any = build_backbone(config)
    peer: Any = AutoBackbone.from_config(config)
    mine = [block.drop_path for stage in ours.model.encoder.layers for block in stage.blocks]
    theirs = [
        getattr(block.drop_path, "drop_prob", 0.0) for stage in peer.model.encoder.layers for block in stage.blocks
    ]
    assert mine == pytest.approx(theirs, abs=1e-6)
    assert mine == pytest.approx([0.0, 0.06, 0.12, 0.18, 0.24, 0.3])


@pytest.mark.parametrize("rates", [{"hidden_dropout_prob": 0.5}, {"attention_probs_dropout_prob": 0.5}])
def test_dropout_acts_in_training_only(rates: dict[str, float]) -> None:
    backbone = build_backbone(tiny(**rates))
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        backbone.train()
        assert not torch.equal(backbone(pixel_values)[3], backbone(pixel_values)[3])
        backbone.eval()
        assert torch.equal(backbone(pixel_values)[3], backbone(pixel_values)[3])


def test_hidden_dropout_follows_every_linear_layer() -> None:
    """The authors' places: embeddings, and in each block the projection and both layers of the MLP."""
    backbone = build_backbone(tiny(hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.5))
    rates = [module.p for module in backbone.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.25] * (1 + 3 * 6)


def export(lower: bool) -> tuple[nn.Module, Any]:
    """A window of 7 covers the example's last map with one, larger pictures with several."""
    backbone = build_backbone(tiny(depths=[2, 1, 1, 1], window_size=7, use_absolute_embeddings=True)).eval()
    shapes = {0: Dim("batch", max=16), 2: Dim("height", min=64, max=2048), 3: Dim("width", min=64, max=2048)}
    program = torch.export.export(backbone, (torch.randn(2, 3, 96, 130),), dynamic_shapes=(shapes,))
    return backbone, (program.run_decompositions() if lower else program).module()


# Of PyTorch's own making while it copies its trees.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("lower", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_export_holds_for_every_size(lower: bool, assert_same_maps: Any) -> None:
    backbone, exported = export(lower)
    for size in ((1, 3, 64, 64), (3, 3, 97, 131), (1, 3, 300, 240)):
        pixel_values = torch.randn(size)
        with torch.no_grad():
            assert_same_maps(exported(pixel_values).feature_maps, backbone(pixel_values).feature_maps)


def test_swin_configurations_of_both_names() -> None:
    settings = {**TINY, "depths": (1, 1, 1, 1)}
    for config in (SwinConfig(**settings), MaskFormerSwinConfig(**{**settings, "out_features": ["stage4"]})):
        assert isinstance(build_backbone(config), SwinBackbone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": [3, 2, 2, 4]}, "8 channels for 3 heads"),
        ({"depths": [1, 1, 1], "num_heads": [1, 1, 1], "out_features": STAGES[:3]}, "3 entries, expected 4"),
        ({"num_heads": [1, 2, 4]}, "num_heads=.* 3 entries, expected 4"),
        ({"patch_size": (4, 2)}, "expected square patches"),
        ({"hidden_act": "gleu"}, "hidden_act='gleu'.*gelu"),
    ],
)
def test_impossible_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(tiny(**changes))
