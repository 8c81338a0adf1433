"""The authors' layout and ours: every weight has its counterpart, in both directions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maskformer.checkpoints.loading import model_class
from maskformer.checkpoints.original import canonical, from_original, relative_position_index, to_original
from maskformer.checkpoints.unpickling import read_weights
from maskformer.configuration import MaskFormerConfig

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
NETWORKS = sorted(path.parent.name for path in GOLDEN.glob("*/model.pkl"))
HEADS = 4


def original(name):
    return read_weights(GOLDEN / name / "model.pkl")


@pytest.fixture(scope="module")
def swin():
    return original("swin-fpn")


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_is_exact(name):
    weights = original(name)

    config, state = from_original(weights, HEADS)
    again = to_original(config, state)

    assert again.keys() == weights.keys()
    for key, weight in weights.items():
        assert again[key].dtype == weight.dtype
        assert torch.equal(again[key], weight), key


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_is_that_of_the_network(name):
    config, state = from_original(original(name), HEADS)
    with torch.device("meta"):
        network = model_class(config.architectures[0])(config)

    wanted = {
        key: tuple(value.shape)
        for key, value in network.state_dict().items()
        if "criterion." not in key and not key.endswith(("num_batches_tracked", "relative_position_index"))
    }
    assert {key: tuple(value.shape) for key, value in state.items()} == wanted


def test_there_are_six_networks():
    assert len(NETWORKS) == 6


def test_swin_architecture_is_read_from_the_shapes(swin):
    config, _ = from_original(swin, HEADS)
    backbone, decoder = config.backbone_config, config.decoder_config

    assert config.architectures == ["MaskFormerForInstanceSegmentation"]
    assert backbone.model_type == "swin"
    assert (backbone.embed_dim, backbone.depths, backbone.num_heads) == (8, [1, 1, 2, 1], [1, 2, 4, 8])
    assert (backbone.window_size, backbone.mlp_ratio, backbone.patch_size, backbone.qkv_bias) == (4, 4.0, 4, True)
    assert (decoder.num_queries, decoder.d_model, decoder.decoder_layers, decoder.decoder_ffn_dim) == (12, 32, 3, 64)
    assert decoder.decoder_attention_heads == decoder.encoder_attention_heads == HEADS
    assert (config.num_labels, config.fpn_feature_size, config.mask_feature_size) == (9, 32, 32)
    assert config.use_auxiliary_loss
    assert not config.is_extended


@pytest.mark.parametrize(
    ("name", "architecture", "stem", "encoder_layers", "num_labels"),
    [
        ("resnet50-fpn", "MaskFormerForInstanceSegmentation", "basic", 0, 9),
        ("resnet50c-fpn", "MaskFormerForInstanceSegmentation", "deeplab", 0, 9),
        ("resnet50-transformer-encoder", "MaskFormerForInstanceSegmentation", "basic", 2, 9),
        ("per-pixel-baseline", "PerPixelBaseline", "basic", 0, 9),
        ("per-pixel-baseline-plus", "PerPixelBaselinePlus", "basic", 0, 12),
    ],
)
def test_resnet_architectures_are_read_from_the_shapes(name, architecture, stem, encoder_layers, num_labels):
    config, state = from_original(original(name), HEADS)
    backbone = config.backbone_config

    assert config.architectures == [architecture]
    assert (backbone.model_type, backbone.layer_type, backbone.depths) == ("resnet", "bottleneck", [3, 4, 6, 3])
    assert (backbone.embedding_size, backbone.hidden_sizes) == (8, [16, 32, 64, 128])
    assert (config.backbone_norm, config.backbone_stem) == ("frozen", stem)
    assert (config.pixel_decoder_encoder_layers, config.num_labels) == (encoder_layers, num_labels)
    assert not any(key.endswith("num_batches_tracked") for key in state)


def test_fused_attention_weights_are_split_in_the_order_query_key_value(swin):
    _, state = from_original(swin, HEADS)

    fused = swin["sem_seg_head.predictor.transformer.decoder.layers.1.multihead_attn.in_proj_weight"]
    layer = "model.transformer_module.decoder.layers.1.encoder_attn"
    assert torch.equal(state[f"{layer}.v_proj.weight"], fused[64:])
    assert torch.equal(state[f"{layer}.q_proj.weight"], fused[:32])
    window = "model.pixel_level_module.encoder.model.encoder.layers.1.blocks.0.attention.self"
    assert torch.equal(state[f"{window}.key.bias"], swin["backbone.layers.1.blocks.0.attn.qkv.bias"][16:32])


def test_what_is_no_weight_is_dropped(swin):
    extra = {
        **swin,
        "criterion.empty_weight": torch.ones(10),
        "pixel_mean": torch.zeros(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
    }

    assert from_original(extra, HEADS)[1].keys() == from_original(swin, HEADS)[1].keys()


def test_older_names_are_those_without_the_pixel_decoder(swin):
    older = {key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value for key, value in swin.items()}

    assert "sem_seg_head.layer_1.weight" in older
    assert canonical(older).keys() == canonical(swin).keys()
    assert from_original(older, HEADS)[1].keys() == from_original(swin, HEADS)[1].keys()


def test_index_table_is_the_authors(swin):
    stored = swin["backbone.layers.0.blocks.0.attn.relative_position_index"]

    assert torch.equal(relative_position_index(4), stored)


def test_basic_blocks_are_read(swin):
    """ResNet-18 and 34: two convolutions a block, and no shortcut where the first stage keeps the stem's width."""
    config = MaskFormerConfig(
        backbone_config={
            "model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32],
            "depths": [2, 1, 1, 1], "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        decoder_config={"model_type": "detr", "d_model": 32, "decoder_layers": 1, "num_queries": 5},
        fpn_feature_size=32,
        mask_feature_size=32,
        backbone_norm="frozen",
        enforce_input_projection=True,
        num_labels=3,
        architectures=["MaskFormerForInstanceSegmentation"],
    )  # fmt: skip
    network = model_class("MaskFormerForInstanceSegmentation")(config)

    weights = to_original(config, network.state_dict())
    read, state = from_original(weights)

    assert "backbone.res2.0.shortcut.weight" not in weights
    assert "backbone.res3.0.shortcut.weight" in weights
    assert read.backbone_config.layer_type == "basic"
    assert read.backbone_config.hidden_sizes == [8, 16, 24, 32]
    assert read.enforce_input_projection  # the width is 32 on both sides, and the projection is there
    assert read.is_extended
    np.testing.assert_array_equal(
        state["model.pixel_level_module.encoder.encoder.stages.0.layers.1.layer.1.convolution.weight"].numpy(),
        weights["backbone.res2.1.conv2.weight"].numpy(),
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("backbone.norm2.bias"), r"lacks 'backbone.norm2.bias'"),
        (lambda w: w.pop("backbone.patch_embed.proj.weight"), r"has no weight 'backbone.stem.conv1.weight'"),
        (
            lambda w: w.pop("sem_seg_head.pixel_decoder.layer_1.weight"),
            r"no weight 'sem_seg_head.pixel_decoder.layer_1",
        ),
        (
            lambda w: w.update({"backbone.absolute_pos_embed": torch.zeros(1, 8, 4, 4)}),
            r"holds 'backbone.absolute_pos_embed', which would be left unused",
        ),
        (
            lambda w: w.update({"sem_seg_head.predictor.query_embed.weight": torch.zeros(3)}),
            r"query_embed.weight' has shape \[3\], expected 2 dimensions",
        ),
        (
            lambda w: w.update({"backbone.layers.0.blocks.0.attn.qkv.weight": torch.zeros(25, 8)}),
            r"qkv.weight' has shape \[25, 8\], expected 3 parts of equal size",
        ),
        (lambda w: [w.pop(key) for key in list(w) if "predictor" in key], r"no weight 'sem_seg_head.predictor.weight'"),
        (lambda w: w.clear(), r"has no weight"),
    ],
)
def test_weights_that_are_not_of_a_maskformer_are_refused(swin, change, complaint):
    weights = dict(swin)
    change(weights)

    with pytest.raises(ValueError, match=complaint) as error:
        from_original(weights, HEADS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("heads", [5, 0, -1, 64])
def test_heads_must_divide_the_width(swin, heads):
    with pytest.raises(
        ValueError, match=f"attention_heads is {heads}, expected a divisor of the transformer's width 32"
    ):
        from_original(swin, heads)


def test_heads_do_not_matter_without_a_transformer():
    config, _ = from_original(original("per-pixel-baseline"), 5)

    assert config.architectures == ["PerPixelBaseline"]


def test_backbones_the_authors_have_no_name_for_are_refused(swin):
    config, state = from_original(swin, HEADS)
    config.backbone_config.model_type = "convnext"

    with pytest.raises(ValueError, match=r"backbone is 'convnext', expected 'swin' .* or 'resnet'"):
        to_original(config, state)


@pytest.mark.parametrize(
    ("name", "part", "field", "value", "expected"),
    [
        ("swin-fpn", "backbone_config", "hidden_act", "relu", "gelu"),
        ("swin-fpn", "backbone_config", "layer_norm_eps", 1e-6, 1e-5),
        ("swin-fpn", "decoder_config", "activation_function", "gelu", "relu"),
        ("resnet50-fpn", "backbone_config", "downsample_in_bottleneck", True, False),
        ("resnet50-transformer-encoder", "decoder_config", "encoder_attention_heads", 2, 4),
    ],
)
def test_a_network_that_computes_what_no_file_can_say_is_not_written(name, part, field, value, expected):
    config, state = from_original(original(name), HEADS)
    assert to_original(config, state)
    setattr(getattr(config, part), field, value)

    with pytest.raises(ValueError, match=rf"^{part}\.{field} is {value!r}, expected {expected!r}: the authors' layout"):
        to_original(config, state)


def test_models_with_other_weights_are_not_written(swin):
    config, state = from_original(swin, HEADS)

    with pytest.raises(
        ValueError, match=r"the model lacks 'class_predictor.bias' and holds 'extra', which would be left"
    ):
        to_original(
            config, {"extra": torch.zeros(1), **{k: v for k, v in state.items() if k != "class_predictor.bias"}}
        )
