"""Fields, files and refusals of the configuration."""

import copy
import json
from pathlib import Path

import pytest
import transformers

from maskformer import MaskFormerConfig
from maskformer.configuration import PerPixelBaselineConfig

DOCUMENTED = {
    "fpn_feature_size": 256,
    "mask_feature_size": 256,
    "no_object_weight": 0.1,
    "use_auxiliary_loss": False,
    "init_std": 0.02,
    "init_xavier_std": 1.0,
    "dice_weight": 1.0,
    "cross_entropy_weight": 1.0,
    "mask_weight": 20.0,
    "output_auxiliary_logits": None,
}
OURS = {"pixel_decoder_encoder_layers", "enforce_input_projection", "backbone_norm", "backbone_stem"}
OURS |= {"class_cost", "class_weights", "stuff_class_ids", "deep_supervision"}


def test_defaults_are_those_documented() -> None:
    config = MaskFormerConfig()
    assert {name: getattr(config, name) for name in DOCUMENTED} == DOCUMENTED
    assert config.backbone_config.model_type == "swin"
    assert config.backbone_config.embed_dim == 128
    assert config.decoder_config.model_type == "detr"


def test_our_fields_are_left_out_of_the_file_when_default() -> None:
    assert not OURS & set(MaskFormerConfig().to_dict())
    changed = MaskFormerConfig(num_labels=3, class_cost=2.0, class_weights=[1, 2, 3], stuff_class_ids=[2]).to_dict()
    assert {name: changed[name] for name in OURS & set(changed)} == {
        "class_cost": 2.0,
        "class_weights": [1.0, 2.0, 3.0],
        "stuff_class_ids": [2],
    }


@pytest.mark.parametrize("config_class", [MaskFormerConfig, PerPixelBaselineConfig])
def test_equal_are_configurations_with_the_same_fields(config_class: type[MaskFormerConfig], tmp_path: Path) -> None:
    config = config_class(num_labels=3)
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path) == config == copy.deepcopy(config)
    for change in (
        {"mask_weight": 2.0},
        {"use_auxiliary_loss": True},
        {"class_cost": 2.0},
        {"id2label": {0: "sky", 1: "sea", 2: "land"}},
        {"decoder_config": {"num_queries": 7}},
        {"backbone_config": {"model_type": "resnet"}},
    ):
        assert config_class(**{"num_labels": 3, **change}) != config
    assert MaskFormerConfig() != PerPixelBaselineConfig()


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 4, "class_weights": [1, 1, 1, 2], "stuff_class_ids": [0], "use_auxiliary_loss": True},
        {"pixel_decoder_encoder_layers": 6, "backbone_config": {"model_type": "resnet"}},
        {"backbone_norm": "frozen", "backbone_stem": "deeplab", "backbone_config": {"model_type": "resnet"}},
    ],
)
@pytest.mark.parametrize("config_class", [MaskFormerConfig, PerPixelBaselineConfig])
def test_round_trip(config_class: type[MaskFormerConfig], fields: dict, tmp_path: Path) -> None:
    config = config_class(**fields)
    config.save_pretrained(tmp_path)
    again = config_class.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.use_auxiliary_loss == config.use_auxiliary_loss


def test_published_file_of_an_old_release(tmp_path: Path) -> None:
    """The fields that the published checkpoints carry from the releases they were written by."""
    published = {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "backbone_config": {"model_type": "swin", "depths": [2, 2, 6, 2], "embed_dim": 96, "path_norm": True},
        "decoder_config": {"model_type": "detr", "num_queries": 100, "use_timm_backbone": True, "backbone": "resnet50"},
        "model_type": "maskformer",
        "num_attention_heads": 8,
        "num_hidden_layers": 6,
        "torch_dtype": "float32",
        "id2label": {str(label): f"class {label}" for label in range(150)},
        "transformers_version": "4.18.0",
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = MaskFormerConfig.from_pretrained(tmp_path)
    assert config.num_labels == 150
    assert config.backbone_config.embed_dim == 96
    assert config.decoder_config.num_queries == 100


@pytest.mark.parametrize("fields", [{"pixel_decoder_encoder_layers": 2}, {"backbone_stem": "deeplab"}])
def test_transformers_refuses_what_it_cannot_represent(fields: dict, tmp_path: Path) -> None:
    MaskFormerConfig(backbone_config={"model_type": "resnet"}, **fields).save_pretrained(tmp_path)
    for peer in (transformers.AutoConfig, transformers.MaskFormerConfig):
        with pytest.raises(ValueError, match="maskformer-extended"):
            peer.from_pretrained(tmp_path)


def test_transformers_reads_a_frozen_norm(tmp_path: Path) -> None:
    MaskFormerConfig(backbone_config={"model_type": "resnet"}, backbone_norm="frozen").save_pretrained(tmp_path)
    assert transformers.MaskFormerConfig.from_pretrained(tmp_path).backbone_config.model_type == "resnet"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_config": {"model_type": "bert"}}, "model type 'bert', expected 'detr'"),
        ({"backbone_config": {"model_type": "swine"}}, "'swine', which transformers does not know"),
        (
            {"backbone": "microsoft/resnet-50", "use_pretrained_backbone": True},
            "backbone='microsoft/resnet-50', expected",
        ),
        ({"backbone_norm": "group"}, "backbone_norm is 'group', expected 'batch' or 'frozen'"),
        ({"backbone_stem": "c"}, "backbone_stem is 'c'"),
        ({"pixel_decoder_encoder_layers": -1}, "is -1, expected 0"),
        ({"num_labels": 3, "class_weights": [1.0]}, "class_weights has 1 entries but the model has 3"),
        ({"num_labels": 3, "stuff_class_ids": [3]}, r"stuff_class_ids is \[3\], expected class ids from 0 to 2"),
    ],
)
def test_wrong_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskFormerConfig(**fields)


def test_from_backbone_and_decoder_configs() -> None:
    backbone, decoder = transformers.ResNetConfig(), transformers.DetrConfig(num_queries=7)
    config = MaskFormerConfig.from_backbone_and_decoder_configs(backbone, decoder, mask_feature_size=64)
    assert config.backbone_config is backbone
    assert config.decoder_config.num_queries == 7
    assert config.hidden_size == 64


def test_from_zoo_by_both_names() -> None:
    path = "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml"
    config = MaskFormerConfig.from_zoo(path, num_labels=7)
    assert config.num_labels == 7
    assert config.pixel_decoder_encoder_layers == 6
    assert config.backbone_norm == "frozen"
    assert config.use_auxiliary_loss


def test_published_panoptic_models_know_their_stuff() -> None:
    assert MaskFormerConfig.from_zoo("swin-base-coco-panoptic").stuff_class_ids == list(range(80, 133))
    assert MaskFormerConfig.from_zoo("r50-ade20k-150").stuff_class_ids is None
    for others in ({"num_labels": 7}, {"id2label": {0: "cat"}}):
        assert MaskFormerConfig.from_zoo("swin-base-coco-panoptic", **others).stuff_class_ids is None
    mine = MaskFormerConfig.from_zoo("swin-base-coco-panoptic", num_labels=7, stuff_class_ids=[3])
    assert mine.stuff_class_ids == [3]


def test_unknown_zoo_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="no published model called 'swin-giant'"):
        MaskFormerConfig.from_zoo("swin-giant")
